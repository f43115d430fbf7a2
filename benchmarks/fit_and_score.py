"""Fit and score a mixed table, with dpipe and with its peers, side by side.

`python -m benchmarks.fit_and_score` makes the data where it is absent, runs every contender in a process
of its own on the same files, in turns (A B C, A B C, ...), and prints one Markdown table of medians.
"""

import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.made_table import FILES, TEST_FILES, made_table

CONTENDERS = (
    "dpipe_fit --no-processes",
    "dpipe_fit",
    "polars_streaming",
    "polars_streaming --ahead",
    "polars_streaming --ahead --permuted",
    "by_hand",
    "sklearn_in_memory",
)
BASELINE = "polars_streaming"
ROOT = Path(__file__).parents[1]
PACKAGES = ("dask", "numpy", "pandas", "polars", "pyarrow", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """One run of one contender: what it printed, or its error.

    Attributes
    ----------
    contender : str
        Name, with the options if any.
    result : dict
        The line of JSON that it printed; empty if it failed.
    error : str
        The last line of its standard error; empty unless it failed.
    """

    contender: str
    result: dict[str, Any]
    error: str = ""


def run_contender(contender: str, folder: Path) -> Run:
    """Do the job once, in a new process.

    Parameters
    ----------
    contender : str
        A module of `benchmarks.contenders`, then its options: "dpipe_fit --workers 4".
    folder : pathlib.Path
        The data.

    Returns
    -------
    Run
        Failures included: a contender that fails never raises here.
    """
    name, *options = shlex.split(contender)
    command = [sys.executable, "-m", f"benchmarks.contenders.{name}", str(folder.resolve()), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Run(contender, json.loads(done.stdout.splitlines()[-1]))
    last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return Run(contender, {}, f"exit status {done.returncode}: {last_line}")


def run_in_turns(contenders: Sequence[str], folder: Path, repeat: int) -> list[Run]:
    """Run all contenders once, then all once more, so that none has the machine's quiet hour to itself."""
    runs = []
    for turn in range(repeat):
        for contender in contenders:
            runs.append(run_contender(contender, folder))
            outcome = runs[-1].error or f"{runs[-1].result['seconds']:.2f} s"
            print(f"{turn + 1}/{repeat} {contender}: {outcome}", file=sys.stderr, flush=True)
    return runs


def as_table(runs: Sequence[Run]) -> str:
    """Return the medians of each contender as a Markdown table.

    Parameters
    ----------
    runs : sequence of Run
        Any number for each contender. A contender that failed once is shown with its error.

    Returns
    -------
    str
        One row per contender, in the order of their first runs.

    Examples
    --------
    >>> fast = {"seconds": 2.0, "auc": 0.8, "peak_nbytes": 2**20, "phases": {"learn": 1.5}}
    >>> print(as_table([Run("polars_streaming", fast), Run("other", {}, "exit status 1: no")]))
    | contender | median | ratio to polars_streaming | ROC AUC | peak memory | phases |
    |---|---|---|---|---|---|
    | polars_streaming | 2.00 s | 1.00 | 0.80000 | 1 MiB | learn 1.50 s |
    | other | failed | | | | exit status 1: no |
    """
    by_contender: dict[str, list[Run]] = {}
    for run in runs:
        by_contender.setdefault(run.contender, []).append(run)
    baseline = by_contender.get(BASELINE, [])
    base = None if not baseline or _error(baseline) else _median(baseline, "seconds")
    lines = [
        f"| contender | median | ratio to {BASELINE} | ROC AUC | peak memory | phases |",
        "|---|---|---|---|---|---|",
        *(_row(contender, its_runs, base) for contender, its_runs in by_contender.items()),
    ]
    return "\n".join(lines)


def _row(contender: str, runs: Sequence[Run], base: float | None) -> str:
    """Return one row of the table."""
    if error := _error(runs):
        return f"| {contender} | failed | | | | {error.replace('|', chr(92) + '|')} |"
    seconds = _median(runs, "seconds")
    phases = ", ".join(
        f"{phase} {median(run.result['phases'][phase] for run in runs):.2f} s"
        for phase in runs[0].result["phases"]
    )
    cells = [
        contender,
        f"{seconds:.2f} s",
        "" if base is None else f"{seconds / base:.2f}",
        f"{_median(runs, 'auc'):.5f}",
        f"{_median(runs, 'peak_nbytes') / 2**20:.0f} MiB",
        phases,
    ]
    return f"| {' | '.join(cells)} |"


def _median(runs: Sequence[Run], what: str) -> float:
    """Return the median of one figure over the runs."""
    return float(median(run.result[what] for run in runs))


def _error(runs: Sequence[Run]) -> str:
    """Return the first error of the runs, or nothing."""
    return next((run.error for run in runs if run.error), "")


def disagreement(runs: Sequence[Run]) -> float:
    """Return the largest difference between two ROC AUCs; zero if fewer than two runs succeeded."""
    aucs = [run.result["auc"] for run in runs if not run.error]
    return max(aucs) - min(aucs) if aucs else 0.0


def tolerance(rows: int) -> float:
    """Return the difference between two ROC AUCs that means nothing: about one standard error.

    The first steps of the classifier are so long that the last bit of a value can change its way; over
    millions of rows the ways meet again (differences of 1e-5), over thousands they need not.

    Examples
    --------
    >>> round(tolerance(10_000_000), 5), round(tolerance(4_000), 3)
    (0.0005, 0.025)
    """
    test_rows = rows * TEST_FILES / FILES
    return 0.5 / math.sqrt(test_rows)


def conditions(rows: int, repeat: int) -> str:
    """Describe data, machine and packages in one line."""
    memory = psutil.virtual_memory().total / 2**30
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        f"{rows:,} rows, median of {repeat}, files in the page cache. "
        f"{os.cpu_count()} cores, {memory:.0f} GiB. Python {sys.version.split()[0]}, {packages}."
    )


def _arguments(argv: Sequence[str] | None) -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(prog="python -m benchmarks.fit_and_score", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the table (10_000_000)")
    parser.add_argument("--folder", type=Path, help="where the data is or goes (a temporary folder)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each contender (3)")
    parser.add_argument(
        "--contenders",
        default=",".join(CONTENDERS),
        help="modules of benchmarks.contenders, with options if any, separated by commas (%(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the data, run the contenders, print the table.

    Returns
    -------
    int
        Exit status: 1 if a contender failed, or if two of them do not agree on the AUC.
    """
    arguments = _arguments(argv)
    folder = arguments.folder or Path(tempfile.gettempdir()) / f"fit_and_score-{arguments.rows}"
    for path in made_table(folder, rows=arguments.rows):
        path.read_bytes()  # the first contender must not be the only one to wait for the disk
    contenders = [name.strip() for name in arguments.contenders.split(",")]
    runs = run_in_turns(contenders, folder, arguments.repeat)
    print(f"{conditions(arguments.rows, arguments.repeat)}\n\n{as_table(runs)}")
    difference = disagreement(runs)
    allowed = tolerance(arguments.rows)
    if difference > allowed:
        print(f"\nThe contenders did not do the same job: their AUCs differ by {difference:.2g}.")
    return int(difference > allowed or any(run.error for run in runs))


if __name__ == "__main__":
    sys.exit(main())
