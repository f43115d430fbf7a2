"""A search over files that are larger than memory: `python -m benchmarks.search_files`.

Hyperband over pipelines of scaler and linear classifier, on the rows of `benchmarks.boosting`. It prints what the
search read of the files, and what a stream for each candidate would have read. Everything runs in this process, so that
it can be put under a hard limit of memory from outside.
"""

import json
import tempfile
import warnings
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import loguniform
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from benchmarks.boosting import LABEL, made_files
from benchmarks.contenders.job import Clock, peak_nbytes

SPACE = {
    "sgdclassifier__alpha": loguniform(1e-7, 1e1),
    "sgdclassifier__penalty": ["l1", "l2", "elasticnet"],
    "sgdclassifier__learning_rate": ["optimal", "adaptive", "invscaling"],
    "sgdclassifier__eta0": np.logspace(-4, 0, 20),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Make the files, search, and print one line of JSON.

    Returns
    -------
    int
        Exit status: 0.
    """
    parser = ArgumentParser(prog="python -m benchmarks.search_files", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows to search with (2_000_000)")
    parser.add_argument("--columns", type=int, default=30, help="columns of X (30)")
    parser.add_argument("--max-iter", type=int, default=81, help="the most calls of a candidate (81)")
    parser.add_argument("--memory", help="the budget that dpipe is given (none)")
    parser.add_argument("--folder", type=Path, help="where the data is or goes (a temporary folder)")
    arguments = parser.parse_args(argv)
    if arguments.folder is None:
        arguments.folder = Path(tempfile.gettempdir()) / f"boosting-{arguments.rows}-{arguments.columns}"
    *paths, test = made_files(arguments.folder.resolve(), arguments.rows, arguments.columns)
    frame, held = dpipe.read_parquet(paths), dpipe.read_parquet([test])
    estimator = make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0))
    clock = Clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # candidates that diverge are dropped, which is told
        found = dpipe.search(
            estimator,
            SPACE,
            frame.drop(columns=LABEL),
            frame[LABEL],
            max_iter=arguments.max_iter,
            memory=arguments.memory,
        )
    clock.lap("search")
    read = found.read_
    said = {
        "seconds": clock.seconds,
        "peak_nbytes": peak_nbytes(),
        "candidates": len(found.cv_results_["params"]),
        "calls": found.metadata_["partial_fit_calls"],
        "read_nbytes": read.nbytes,
        "a_stream_each_nbytes": read.used_nbytes,
        "times_less": read.used_nbytes / read.nbytes,
        "auc": dpipe.score(
            found.best_estimator_,
            held.drop(columns=LABEL),
            held[LABEL],
            scoring="roc_auc",
            memory=arguments.memory,
        ),
    }
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
