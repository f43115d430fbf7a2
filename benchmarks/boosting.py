"""Gradient boosting out of core, beside the library in memory on the same rows: `python -m benchmarks.boosting`.

Made rows of many float64 columns in Parquet files. Every contender runs in a process of its own, in turns; one Markdown
table gives the medians of seconds and memory, and the ROC AUC on rows that were held out. `--only` runs one contender,
so that it can be put under a hard limit of memory from outside.
"""

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score

import dpipe
from benchmarks.contenders.job import Clock, peak_nbytes
from benchmarks.fit_and_score import ROOT, conditions

N_FILES = 20
LABEL = "label"


def made_files(folder: Path, rows: int, columns: int) -> list[Path]:
    """Write the files, from a seed, unless they are there; the last one is the rows to score on."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:02d}.parquet" for i in range(N_FILES + 1)]
    weights = np.random.default_rng(1).normal(size=columns) * (np.arange(columns) < 20)
    for i, path in enumerate(paths):
        if path.exists():
            continue
        rng = np.random.default_rng(100 + i)
        X = rng.normal(size=(rows // N_FILES, columns))
        margin = X @ weights + 2 * X[:, 0] * X[:, 1] + rng.logistic(size=len(X))
        table = pa.table({f"x{j}": X[:, j] for j in range(columns)} | {LABEL: (margin > 0).astype(np.int8)})
        unfinished = path.with_suffix(".tmp")
        pq.write_table(table, unfinished, row_group_size=max(len(X) // 4, 1), use_dictionary=False)
        unfinished.rename(path)
    return paths


def _estimator(arguments: Namespace) -> Any:
    options = {"n_estimators": arguments.rounds, "max_bin": arguments.max_bin}
    if arguments.library == "lightgbm":
        from lightgbm import LGBMClassifier

        return LGBMClassifier(**options, verbose=-1)
    from xgboost import XGBClassifier

    return XGBClassifier(**options)


def dpipe_fit(train: Sequence[Path], arguments: Namespace) -> Any:
    """Train with dpipe, on the files."""
    frame = dpipe.read_parquet(train)
    return dpipe.fit(_estimator(arguments), frame, LABEL, memory=arguments.memory)


def dpipe_shares(train: Sequence[Path], arguments: Namespace) -> Any:
    """Train with dpipe, two learners that XGBoost joins, each with a half of the blocks."""
    frame = dpipe.read_parquet(train)
    return dpipe.fit(_estimator(arguments), frame, LABEL, memory=arguments.memory, shares=2)


def in_memory(train: Sequence[Path], arguments: Namespace) -> Any:
    """Train with the library itself, on one pandas frame."""
    frame = pd.read_parquet(train)
    return _estimator(arguments).fit(frame.drop(columns=LABEL), frame[LABEL])


CONTENDERS: dict[str, Callable[[Sequence[Path], Namespace], Any]] = {
    function.__name__: function for function in (dpipe_fit, dpipe_shares, in_memory)
}


def run_here(arguments: Namespace) -> None:
    """Do one contender's work in this process and print one line of JSON."""
    _estimator(arguments)  # imports come before the clock
    *train, test = made_files(arguments.folder, arguments.rows, arguments.columns)
    clock = Clock()
    fitted = CONTENDERS[arguments.only](train, arguments)
    clock.lap("fit")
    peak = peak_nbytes()
    print(json.dumps({"seconds": clock.seconds, "peak_nbytes": peak, "auc": _auc(fitted, test)}))


def _auc(fitted: Any, test: Path) -> float:
    """Score on the rows of a file, a few at a time: a limit of memory holds here, too."""
    labels, scores = [], []
    for batch in pq.ParquetFile(test).iter_batches(10_000):
        rows = batch.to_pandas()
        labels.append(rows[LABEL].to_numpy())
        scores.append(fitted.predict_proba(rows.drop(columns=LABEL))[:, 1])
    return float(roc_auc_score(np.concatenate(labels), np.concatenate(scores)))


def run_apart(name: str, arguments: Namespace) -> dict[str, float]:
    """Run a contender in a process of its own."""
    options = [
        f"--{option}={getattr(arguments, option)}" for option in ("rows", "columns", "rounds", "folder")
    ]
    options += [f"--max-bin={arguments.max_bin}", f"--library={arguments.library}", f"--only={name}"]
    options += [] if arguments.memory is None else [f"--memory={arguments.memory}"]
    command = [sys.executable, "-m", "benchmarks.boosting", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, runs: dict[str, list[dict[str, float]]]) -> str:
    """Draw one row of the table: medians, and the median of the ratios of each turn.

    Examples
    --------
    >>> runs = {"in_memory": [{"seconds": 2.0, "peak_nbytes": 2**20, "auc": 0.75}]}
    >>> row("in_memory", runs)
    '| in_memory | 2.00 s | 1.00 | 1 MiB | 0.75000 |'
    """
    seconds, peak, auc = (
        median(run[what] for run in runs[name]) for what in ("seconds", "peak_nbytes", "auc")
    )
    pairs = zip(runs[name], runs["in_memory"], strict=True)
    ratio = median(mine["seconds"] / theirs["seconds"] for mine, theirs in pairs)
    return f"| {name} | {seconds:.2f} s | {ratio:.2f} | {peak / 2**20:.0f} MiB | {auc:.5f} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the data, run the contenders in turns, print the table."""
    parser = ArgumentParser(prog="python -m benchmarks.boosting", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows to train on (2_000_000)")
    parser.add_argument("--columns", type=int, default=30, help="columns of X (30)")
    parser.add_argument("--rounds", type=int, default=100, help="boosting rounds (100)")
    parser.add_argument("--max-bin", type=int, default=256, help="bins of a column (256)")
    parser.add_argument("--library", choices=("xgboost", "lightgbm"), default="xgboost", help="(%(default)s)")
    parser.add_argument("--memory", help="the budget that dpipe is given (none)")
    parser.add_argument("--folder", type=Path, help="where the data is or goes (a temporary folder)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each contender (3)")
    parser.add_argument("--only", choices=CONTENDERS, help="run this one here, and print JSON")
    arguments = parser.parse_args(argv)
    if arguments.folder is None:
        arguments.folder = Path(tempfile.gettempdir()) / f"boosting-{arguments.rows}-{arguments.columns}"
    arguments.folder = arguments.folder.resolve()
    if arguments.only:
        run_here(arguments)
        return 0
    for path in made_files(arguments.folder, arguments.rows, arguments.columns):
        path.read_bytes()  # the first contender must not be the only one to wait for the disk
    print(conditions(arguments.rows, arguments.repeat), end="\n\n")
    print("| contender | median | ratio | peak | ROC AUC |\n|---|---|---|---|---|")
    # LightGBM learns on one worker
    names = [name for name in CONTENDERS if arguments.library == "xgboost" or name != "dpipe_shares"]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(arguments.repeat):
        for name in names:
            runs[name].append(run_apart(name, arguments))
    for name in names:
        print(row(name, runs), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
