"""dpipe: the whole job as one scikit-learn pipeline, on a local Dask cluster.

The cluster is up before the clock starts, and has imported what it needs, as every contender has by then.
"""

from argparse import ArgumentParser, BooleanOptionalAction
from importlib import import_module
from pathlib import Path

from distributed import Client, LocalCluster

import dpipe
from benchmarks.contenders.job import Clock, Job, make_model, print_result, train_and_test
from benchmarks.made_table import LABEL


def run(job: Job, client: Client) -> float:
    """Fit on the training files, return the ROC AUC on the others."""
    frame = dpipe.read_parquet(job.train)
    X, y = frame.drop(columns=LABEL), frame[LABEL]
    fitted = dpipe.fit(make_model(), X, y, client=client)
    job.clock.lap("fit")
    held_out = dpipe.read_parquet(job.test)
    X_test, y_test = held_out.drop(columns=LABEL), held_out[LABEL]
    auc = dpipe.score(fitted, X_test, y_test, scoring="roc_auc", client=client)
    assert isinstance(auc, float)  # one metric, one number
    job.clock.lap("score")
    return auc


def main() -> None:
    """Start the cluster, do the job and print one line of JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2, help="blocks worked on at a time (default: 2)")
    parser.add_argument(
        "--processes",
        action=BooleanOptionalAction,
        default=True,
        help="a process for each; else threads of this process, as dpipe runs without a client (default: processes)",
    )
    arguments = parser.parse_args()
    train, test = train_and_test(arguments.folder)
    with (
        LocalCluster(
            n_workers=arguments.workers if arguments.processes else 1,
            threads_per_worker=1 if arguments.processes else arguments.workers,
            processes=arguments.processes,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.run(import_module, dpipe.__name__)
        job = Job(train, test, Clock())
        print_result(run(job, client), job.clock)  # while the workers live: their memory counts


if __name__ == "__main__":
    main()
