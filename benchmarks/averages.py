"""Averaged learners beside the single stream: held-out log loss at equal epochs, and seconds.

`python -m benchmarks.averages` makes the table of `benchmarks.fit_and_score` where it is absent, and runs every
contender in a process of its own on the same files, in turns.
"""

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from distributed import Client, LocalCluster
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline

import dpipe
from benchmarks.contenders.job import Clock, make_model, train_and_test
from benchmarks.fit_and_score import ROOT, conditions
from benchmarks.made_table import LABEL, made_table

#: How many learners are averaged; 0 for the single stream.
CONTENDERS = ("stream", "average 2", "average 4")
LEARNERS: dict[str, Any] = {
    "sgd": SGDClassifier(loss="log_loss", random_state=0),
    "asgd": SGDClassifier(loss="log_loss", average=True, random_state=0),
    "mlp": MLPClassifier((16,), random_state=0),
}


def run_here(contender: str, learner: str, epochs: int, folder: Path, *, processes: bool = True) -> None:
    """Fit and score once, on two worker processes, and print one line of JSON."""
    train, test = train_and_test(folder)
    _, _, shards = contender.partition(" ")
    seen = dpipe.Epochs(epochs, average=int(shards) if shards else None)
    model = Pipeline([("columns", make_model()[0]), ("learner", LEARNERS[learner])])
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=processes, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        client.run(import_module, dpipe.__name__)
        frame, held = dpipe.read_parquet(train), dpipe.read_parquet(test)
        clock = Clock()
        fitted = dpipe.fit(model, frame.drop(columns=LABEL), frame[LABEL], epochs=seen, client=client)
        clock.lap("fit")
        loss = dpipe.score(
            fitted, held.drop(columns=LABEL), held[LABEL], scoring="neg_log_loss", client=client
        )
    assert isinstance(loss, float)  # one metric, one number
    print(json.dumps({"seconds": clock.seconds, "log_loss": -loss}))


def run_apart(contender: str, learner: str, epochs: int, folder: Path) -> dict[str, float]:
    """Do it in a new process."""
    options = ["--learner", learner, "--epochs", str(epochs), "--folder", str(folder.resolve())]
    command = [sys.executable, "-m", "benchmarks.averages", "--only", contender, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def row(contender: str, runs: Sequence[dict[str, float]], stream: Sequence[dict[str, float]]) -> str:
    """Draw one row of the table: medians, and what they are beside the single stream.

    Examples
    --------
    >>> stream = [{"seconds": 4.0, "log_loss": 0.5}]
    >>> row("average 2", [{"seconds": 2.0, "log_loss": 0.49}], stream)
    '| average 2 | 2.00 s | 2.00 | 0.49000 | -2.00 % |'
    """
    seconds = median(run["seconds"] for run in runs)
    times = median(a["seconds"] / b["seconds"] for a, b in zip(stream, runs, strict=True))
    loss, base = runs[0]["log_loss"], stream[0]["log_loss"]
    return f"| {contender} | {seconds:.2f} s | {times:.2f} | {loss:.5f} | {loss / base - 1:+.2%} |".replace(
        "%", " %"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Make the data, run the contenders in turns, print the table.

    Returns
    -------
    int
        Exit status: 0.
    """
    parser = ArgumentParser(prog="python -m benchmarks.averages", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the table (10_000_000)")
    parser.add_argument("--folder", type=Path, help="where the data is or goes (a temporary folder)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each contender (3)")
    parser.add_argument("--epochs", type=int, default=5, help="how often the data is seen (5)")
    parser.add_argument("--learner", choices=LEARNERS, default="sgd", help="which learner (%(default)s)")
    parser.add_argument(
        "--contenders", default=",".join(CONTENDERS), help="which, the stream first (%(default)s)"
    )
    parser.add_argument("--only", choices=CONTENDERS, help="run this one here, and print JSON")
    arguments = parser.parse_args(argv)
    folder = arguments.folder or Path(tempfile.gettempdir()) / f"fit_and_score-{arguments.rows}"
    if arguments.only:
        run_here(arguments.only, arguments.learner, arguments.epochs, folder)
        return 0
    for path in made_table(folder, rows=arguments.rows):
        path.read_bytes()  # the first contender must not be the only one to wait for the disk
    names = arguments.contenders.split(",")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(arguments.repeat):
        for name in names:
            runs[name].append(run_apart(name, arguments.learner, arguments.epochs, folder))
            print(f"{turn + 1}/{arguments.repeat} {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    print(f"{conditions(arguments.rows, arguments.repeat)} {arguments.learner}, {arguments.epochs} epochs.\n")
    print("| contender | median | times as fast | log loss | beside stream |\n|---|---|---|---|---|")
    for name, its_runs in runs.items():
        print(row(name, its_runs, runs[names[0]]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
