"""How far a run scales: the driver's cost of a block, measured, and what it means for 10 to 1,000 workers.

`python -m benchmarks.scaling` does three things. It fits a real model on 1 and 2 workers of this machine, and, because
two processes slow each other where they share caches and memory, in 1 and 2 bare processes beside it. Then it fits a
scaler on blocks that only sleep, with 1 to 64 threads in processes of up to 16, and measures the processor time that
scheduler and client take for each block. From that it tells how long a block must take to keep so many workers busy,
and compares the prediction with the seconds that passed.
"""

import os
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import dpipe
from benchmarks.made_table import LABEL, NUMERIC, made_table
from dpipe.sizes import format_bytes, format_seconds

#: Threads of one worker process.
THREADS = 16
#: The share of its time that a worker should work, where a size is given for it.
BUSY = 0.9
#: By how much a prediction may miss what is measured.
MARGIN = 0.15


@dataclass(frozen=True)
class Simulated:
    """One fit on blocks that sleep."""

    workers: int
    n_blocks: int
    pause_s: float
    seconds: float
    cpu_s: float
    """Processor time of this process, which holds the scheduler and the client."""

    @property
    def ideal_s(self) -> float:
        """Seconds that the blocks sleep, shared out among the workers."""
        return self.n_blocks * self.pause_s / self.workers


@dataclass(frozen=True)
class Cost:
    """What the driver takes."""

    once_s: float
    """Seconds of a fit on hardly any blocks."""
    block_s: float
    """Processor time for each block."""

    def predicted_s(self, run: Simulated) -> float:
        """Tell how long a run must take at most: the driver does nothing while the workers do.

        Examples
        --------
        >>> Cost(0.5, 0.001).predicted_s(Simulated(10, 1000, 0.1, 0.0, 0.0))
        11.5
        """
        return self.once_s + run.n_blocks * self.block_s + run.ideal_s


def asleep(block: np.ndarray, pause: float) -> np.ndarray:
    """Give a block as it is, after a pause."""
    time.sleep(pause)
    return block


def cluster_of(workers: int) -> LocalCluster:
    """Start so many worker threads, in processes that share nothing with this one."""
    processes = max(workers // THREADS, 1)
    return LocalCluster(
        n_workers=processes,
        threads_per_worker=workers // processes,
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
    )


def simulate(workers: int, n_blocks: int, pause_s: float) -> Simulated:
    """Fit a scaler on blocks that sleep, with so many workers."""

    def blocks(n: int, pause: float) -> da.Array:
        rows = da.ones((n, 1), chunks=(1, 1))
        return rows.map_blocks(asleep, pause=pause, dtype=float, meta=np.empty((0, 1)))

    with cluster_of(workers) as cluster, Client(cluster) as client:
        client.run(import_module, dpipe.__name__)
        for _ in range(2):  # what is done once in a process
            dpipe.fit(StandardScaler(), blocks(2 * workers, 0.01), client=client)
        begun, cpu = time.perf_counter(), time.process_time()
        fitted = dpipe.fit(StandardScaler(), blocks(n_blocks, pause_s), client=client)
        took = Simulated(workers, n_blocks, pause_s, time.perf_counter() - begun, time.process_time() - cpu)
    assert fitted.n_samples_seen_ == n_blocks
    return took


def measured_cost() -> Cost:
    """Fit on few and on many blocks that do not sleep."""
    few, many = simulate(THREADS, THREADS, 0.0), simulate(THREADS, 200 * THREADS, 0.0)
    return Cost(few.seconds, (many.cpu_s - few.cpu_s) / (many.n_blocks - few.n_blocks))


def block_for(workers: int, cost_s: float) -> float:
    """Tell how many seconds a block must take, so that so many workers are busy for `BUSY` of their time.

    Examples
    --------
    >>> round(block_for(100, cost_s=0.0009), 3)
    0.1
    """
    return workers * cost_s / BUSY


def model() -> Pipeline:
    """Give what is fitted: the products of all pairs of columns make a block of 25,000 rows some 150 ms of work."""
    return make_pipeline(
        SimpleImputer(), PolynomialFeatures(2, include_bias=False), StandardScaler(), Ridge()
    )


def open_share(folder: Path, first: int = 0, step: int = 1) -> Any:
    """Open the numbers of the table, or every so many files of it."""
    frame = dpipe.read_parquet(sorted(folder.glob("*.parquet"))[first::step], block_nbytes="3 MiB")
    return frame[[*NUMERIC, LABEL]]


def timed_fit(frame: Any, n_warm: int, **place: Any) -> float:
    """Fit the model; give seconds, without what is done once in a process."""
    dpipe.fit(model(), frame.partitions[:n_warm], LABEL, **place)
    begun = time.perf_counter()
    dpipe.fit(model(), frame, LABEL, **place)
    return time.perf_counter() - begun


def fit_real(workers: int, folder: Path) -> float:
    """Fit the model with so many worker processes of one thread; give seconds."""
    with dpipe.Cluster("local", workers=workers, cores=1) as client:
        client.run(import_module, dpipe.__name__)
        return timed_fit(open_share(folder), 2 * workers, client=client)


_TOGETHER: list[Any] = []  # of a process: the barrier that it shares with those beside it


def meet(barrier: Any) -> None:
    """Remember, in a process that has just started, where those beside it are waited for."""
    _TOGETHER.append(barrier)


def fit_bare(number: int, folder: Path, n: int) -> float:
    """Fit the model on one of `n` shares of the files in this process alone, when all have come so far."""
    frame = open_share(folder, number, n)
    with dask.config.set(scheduler="synchronous"):
        dpipe.fit(model(), frame.partitions[:1], LABEL)
        _TOGETHER[-1].wait()
        return timed_fit(frame, 1)


def bare(processes: int, folder: Path) -> float:
    """Do the same arithmetic in so many processes that know nothing of each other; give the seconds of the slowest."""
    context = get_context("spawn")
    given: dict[str, Any] = {"initializer": meet, "initargs": (context.Barrier(processes),)}
    with ProcessPoolExecutor(processes, mp_context=context, **given) as pool:
        running = [pool.submit(fit_bare, i, folder, processes) for i in range(processes)]
        return max(each.result() for each in running)


def real(folder: Path, times: int) -> tuple[list[str], float]:
    """Fit the model on 1 and 2 workers, and in 1 and 2 bare processes, in turns.

    Returns
    -------
    table : list of str
        The best of each.
    seconds : float
        Of one worker.
    """
    runs: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(times):
        for name, run in (("bare processes", bare), ("workers of dpipe", fit_real)):
            one, two = runs.setdefault(name, ([], []))
            one.append(run(1, folder))
            two.append(run(2, folder))
    lines = ["| what | 1 | 2 | times as fast |", "|---|---|---|---|"]
    for name, (one, two) in runs.items():
        lines.append(f"| {name} | {min(one):.2f} s | {min(two):.2f} s | {min(one) / min(two):.2f} |")
    return lines, min(runs["workers of dpipe"][0])


def projection(cost_s: float, rate: float) -> list[str]:
    """Draw the table of what blocks must be, for clusters of several sizes.

    Parameters
    ----------
    cost_s : float
        Processor time of the driver for a block.
    rate : float
        Bytes of files that a worker reads and fits in a second.
    """
    lines = [
        f"| workers | blocks a second at most | no faster with blocks below | {BUSY:.0%} busy from | in files |",
        "|---|---|---|---|---|",
    ]
    for workers in (10, 100, 1000):
        least = block_for(workers, cost_s)
        full = f"{format_seconds(workers * cost_s)}, {format_bytes(workers * cost_s * rate)}"
        size = format_bytes(least * rate)
        lines.append(f"| {workers:,} | {1 / cost_s:,.0f} | {full} | {format_seconds(least)} | {size} |")
    return lines


def simulations(runs: Sequence[Simulated], cost: Cost) -> tuple[list[str], float]:
    """Draw the table of predictions beside what was measured; give it, and by how much the worst was missed."""
    lines = [
        "| workers | blocks | ideal | predicted | measured | measured / predicted |",
        "|---|---|---|---|---|---|",
    ]
    worst = 0.0
    for run in runs:
        ratio = run.seconds / cost.predicted_s(run)
        worst = max(worst, abs(ratio - 1))
        said = " | ".join(f"{each:.2f} s" for each in (run.ideal_s, cost.predicted_s(run), run.seconds))
        lines.append(f"| {run.workers} | {run.n_blocks:,} | {said} | {ratio:.2f} |")
    return lines, worst


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the tables.

    Returns
    -------
    int
        Exit status: 0.
    """
    parser = ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--workers", default="1,4,16,64", help="simulated workers (%(default)s)")
    parser.add_argument("--blocks", type=int, default=100, help="blocks for each worker (%(default)s)")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds that a block sleeps (%(default)s)")
    parser.add_argument("--rows", type=int, default=4_000_000, help="rows of the table (%(default)s)")
    parser.add_argument(
        "--times", type=int, default=3, help="fits of each kind, the best counts (%(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where the table is or goes (a temporary folder)")
    arguments = parser.parse_args(argv)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start.\n")
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))  # of each process
    folder = arguments.folder or Path(tempfile.gettempdir()) / f"fit_and_score-{arguments.rows}"
    for path in made_table(folder, rows=arguments.rows):
        path.read_bytes()  # into the page cache
    table, one_s = real(folder, arguments.times)
    print("\n".join(table), end="\n\n", flush=True)
    cost = measured_cost()
    print(
        f"The driver takes {cost.once_s:.2f} s for a fit, and {cost.block_s * 1e3:.2f} ms for each block.\n",
        flush=True,
    )
    runs: list[Simulated] = []
    for workers in map(int, arguments.workers.split(",")):
        runs.append(simulate(workers, arguments.blocks * workers, arguments.pause))
        print(runs[-1], file=sys.stderr, flush=True)
    table, worst = simulations(runs, cost)
    print("\n".join(table))
    said = "within" if worst <= MARGIN else "NOT within"
    print(f"\nThe worst prediction is {worst:.0%} off, {said} {MARGIN:.0%}.\n")
    size = sum(path.stat().st_size for path in folder.glob("*.parquet"))
    print("\n".join(projection(cost.block_s, size / one_s)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
