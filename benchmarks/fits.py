"""Single fits, each beside what it is measured against: `python -m benchmarks.fits`.

Every contender runs in a process of its own on the same files, in turns; one Markdown table gives the medians and
their ratio. Clocks start when all is imported. "peak" is the resident memory of the process and its children.
"""

import json
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from sklearn.compose import ColumnTransformer
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    StandardScaler,
)

import dpipe
from benchmarks.contenders.job import Clock, make_model, peak_nbytes, train_and_test
from benchmarks.contenders.polars_streaming import read_statistics
from benchmarks.fit_and_score import ROOT, conditions
from benchmarks.made_table import CATEGORICAL, LABEL, NUMERIC, made_table

#: What is measured, what it is measured against, and the ratio that is allowed.
PAIRS = (
    ("preprocessing", "polars_statistics", 1.0),
    ("arrow_decode", "polars_statistics", 1.0),
    ("logistic", "logistic_in_memory", 0.5),
    ("medians", "one_pass", 2.0),
    ("ten_fits", "dearest_of_ten", 1.3),
)


def preprocessing(train: Sequence[Path]) -> None:
    """Fit imputer, scaler and encoder."""
    dpipe.fit(make_model()[:-1], dpipe.read_parquet(train).drop(columns=LABEL))


def polars_statistics(train: Sequence[Path]) -> None:
    """Collect the same statistics by hand."""
    read_statistics(list(train))


def arrow_decode(train: Sequence[Path]) -> None:
    """Have Arrow decode the same columns, and look at none: the least that a fit by Arrow can take."""

    def decode(path: Path) -> None:
        with pq.ParquetFile(path, read_dictionary=list(CATEGORICAL)) as file:
            for i in range(file.num_row_groups):
                file.read_row_group(i, columns=[*NUMERIC, *CATEGORICAL], use_threads=False)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, train))


def _logistic() -> Any:
    return make_pipeline(make_model()[0], LogisticRegression())


def logistic(train: Sequence[Path]) -> None:
    """Fit the preprocessing and a logistic regression out of core."""
    frame = dpipe.read_parquet(train)
    dpipe.fit(_logistic(), frame.drop(columns=LABEL), frame[LABEL])


def logistic_in_memory(train: Sequence[Path]) -> None:
    """Do the same with all rows in memory."""
    frame = pd.read_parquet(train)
    _logistic().fit(frame.drop(columns=LABEL), frame[LABEL])


def one_pass(train: Sequence[Path]) -> None:
    """Standardise the numbers: one pass."""
    dpipe.fit(StandardScaler(), dpipe.read_parquet(train)[list(NUMERIC)])


def medians(train: Sequence[Path]) -> None:
    """Find the exact median of 20 columns."""
    dpipe.quantile(dpipe.read_parquet(train)[list(NUMERIC)])


def _ten() -> list[tuple[str, Any, list[str]]]:
    """Ten fits that need not wait for each other, all of the same 20 columns."""
    parts = [
        StandardScaler(),
        StandardScaler(with_mean=False),
        MinMaxScaler(),
        MinMaxScaler(feature_range=(-1, 1)),
        MaxAbsScaler(),
        SimpleImputer(),
        SimpleImputer(strategy="constant", fill_value=0.0),
        VarianceThreshold(),
        make_pipeline(SimpleImputer(), StandardScaler()),
        make_pipeline(SimpleImputer(), MinMaxScaler()),
    ]
    return [(f"part{i}", part, list(NUMERIC)) for i, part in enumerate(parts)]


def ten_fits(train: Sequence[Path]) -> None:
    """Fit ten transformers together."""
    dpipe.fit(ColumnTransformer(_ten()), dpipe.read_parquet(train)[list(NUMERIC)])


def dearest_of_ten(train: Sequence[Path]) -> float:
    """Fit each of the ten alone; only the dearest counts."""
    frame = dpipe.read_parquet(train)[list(NUMERIC)]
    seconds = []
    for _, part, _ in _ten():
        clock = Clock()
        dpipe.fit(part, frame)
        clock.lap("fit")
        seconds.append(clock.seconds)
    return max(seconds)


CONTENDERS: dict[str, Callable[[Sequence[Path]], float | None]] = {
    function.__name__: function
    for function in (
        preprocessing,
        polars_statistics,
        arrow_decode,
        logistic,
        logistic_in_memory,
        medians,
        one_pass,
        ten_fits,
        dearest_of_ten,
    )
}


def run_here(name: str, folder: Path) -> None:
    """Do one contender's work in this process and print one line of JSON."""
    train, _ = train_and_test(folder)
    clock = Clock()
    seconds = CONTENDERS[name](train)
    clock.lap("all")
    print(
        json.dumps({"seconds": clock.seconds if seconds is None else seconds, "peak_nbytes": peak_nbytes()})
    )


def run_apart(name: str, folder: Path) -> dict[str, float]:
    """Run a contender in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.fits", "--only", name, "--folder", str(folder.resolve())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(pair: tuple[str, str, float], runs: dict[str, list[dict[str, float]]]) -> str:
    """Draw one row of the table: medians, and the median of the ratios of each turn.

    Examples
    --------
    >>> run = {"seconds": 1.0, "peak_nbytes": 2**20}
    >>> row(("mine", "theirs", 0.5), {"mine": [run], "theirs": [run | {"seconds": 4.0}]})
    '| mine | 1.00 s | 1 MiB | theirs | 4.00 s | 1 MiB | 0.25 | 0.5 |'
    """
    mine, theirs, allowed = pair
    ratio = median(a["seconds"] / b["seconds"] for a, b in zip(runs[mine], runs[theirs], strict=True))
    cells = [cell for name in (mine, theirs) for cell in (name, *_figures(runs[name]))]
    return f"| {' | '.join([*cells, f'{ratio:.2f}', f'{allowed:g}'])} |"


def _figures(runs: list[dict[str, float]]) -> tuple[str, str]:
    seconds, peak = (median(run[what] for run in runs) for what in ("seconds", "peak_nbytes"))
    return f"{seconds:.2f} s", f"{peak / 2**20:.0f} MiB"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the data, run the pairs in turns, print the table.

    Returns
    -------
    int
        Exit status: 0; a ratio above what is allowed is shown, not punished: machines are noisy.
    """
    parser = ArgumentParser(prog="python -m benchmarks.fits", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the table (10_000_000)")
    parser.add_argument("--folder", type=Path, help="where the data is or goes (a temporary folder)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each contender (3)")
    parser.add_argument("--pairs", default=",".join(mine for mine, _, _ in PAIRS), help="which (%(default)s)")
    parser.add_argument("--only", choices=CONTENDERS, help="run this one here, and print JSON")
    arguments = parser.parse_args(argv)
    folder = arguments.folder or Path(tempfile.gettempdir()) / f"fit_and_score-{arguments.rows}"
    if arguments.only:
        run_here(arguments.only, folder)
        return 0
    for path in made_table(folder, rows=arguments.rows):
        path.read_bytes()  # the first contender must not be the only one to wait for the disk
    chosen = [pair for pair in PAIRS if pair[0] in arguments.pairs.split(",")]
    print(conditions(arguments.rows, arguments.repeat), end="\n\n")
    print(
        "| fit | median | peak | beside | median | peak | ratio | allowed |\n|---|---|---|---|---|---|---|---|"
    )
    for pair in chosen:
        runs: dict[str, list[dict[str, float]]] = {}
        for _ in range(arguments.repeat):
            for name in pair[:2]:
                runs.setdefault(name, []).append(run_apart(name, folder))
        print(row(pair, runs), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
