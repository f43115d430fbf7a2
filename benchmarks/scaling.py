"""How far a run scales: the driver's cost of a block, measured, and what it means for 10 to 1,000 workers.

`python -m benchmarks.scaling` does three things. It fits a scaler on blocks that only sleep, with 1 to 64 threads
in processes of up to 16, and measures the processor time that scheduler and client take for each block. From that it
tells how long a block must take to keep so many workers busy, and compares the prediction with the seconds that passed.
Then it fits a real model on 1 and 2 workers of this machine.
"""

import os
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from benchmarks.made_table import LABEL, made_table
from dpipe.sizes import format_bytes, format_seconds

#: Threads of one worker process.
THREADS = 16
#: The share of its time that a worker should work, where a size is given for it.
BUSY = 0.9


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
    def cost_s(self) -> float:
        """Processor time of the driver for a block."""
        return self.cpu_s / self.n_blocks

    def predicted_s(self, cost_s: float) -> float:
        """Tell how long it must take, if the driver needs so long for a block: the slower of the two counts.

        Examples
        --------
        >>> [Simulated(n, 1000, 0.1, 0.0, 0.0).predicted_s(cost_s=0.002) for n in (10, 100)]
        [10.0, 2.0]
        """
        return max(self.n_blocks * self.pause_s / self.workers, self.n_blocks * cost_s)


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
    rows = da.ones((n_blocks, 1), chunks=(1, 1))
    blocks = rows.map_blocks(asleep, pause=pause_s, dtype=float, meta=np.empty((0, 1)))
    with cluster_of(workers) as cluster, Client(cluster) as client:
        client.run(import_module, dpipe.__name__)
        warm = da.ones((2 * workers, 1), chunks=(1, 1))
        dpipe.fit(StandardScaler(), warm, client=client)
        begun, cpu = time.perf_counter(), time.process_time()
        fitted = dpipe.fit(StandardScaler(), blocks, client=client)
        took = Simulated(workers, n_blocks, pause_s, time.perf_counter() - begun, time.process_time() - cpu)
    assert fitted.n_samples_seen_ == n_blocks
    return took


def block_for(workers: int, cost_s: float) -> float:
    """Tell how many seconds a block must take, so that so many workers are busy for `BUSY` of their time.

    Examples
    --------
    >>> round(block_for(100, cost_s=0.0009), 3)
    0.1
    """
    return workers * cost_s / BUSY


def fit_real(workers: int, folder: Path) -> tuple[float, int]:
    """Fit a real model with so many worker processes of one thread; give seconds and bytes of the files."""
    paths = sorted(folder.glob("*.parquet"))
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        client.run(import_module, dpipe.__name__)
        frame = dpipe.read_parquet(paths, block_nbytes="8 MiB")
        numbers = frame.select_dtypes("number").fillna(0)
        model = make_pipeline(StandardScaler(), Ridge())
        dpipe.fit(model, numbers.partitions[:workers], LABEL, client=client)  # what is done once is done
        begun = time.perf_counter()
        dpipe.fit(model, numbers, LABEL, client=client)
        return time.perf_counter() - begun, sum(path.stat().st_size for path in paths)


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
        "| workers | blocks a second at most | a block must take | and be, in files |",
        "|---|---|---|---|",
    ]
    for workers in (10, 100, 1000):
        least = block_for(workers, cost_s)
        size = format_bytes(least * rate)
        lines.append(f"| {workers:,} | {1 / cost_s:,.0f} | {format_seconds(least)} | {size} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the tables.

    Returns
    -------
    int
        Exit status: 0.
    """
    parser = ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--workers", default="1,2,4,8,16,32,64", help="simulated workers (%(default)s)")
    parser.add_argument("--blocks", type=int, default=100, help="blocks for each worker (%(default)s)")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds that a block sleeps (%(default)s)")
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows of the table (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the table is or goes (a temporary folder)")
    arguments = parser.parse_args(argv)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start.\n")
    runs: list[Simulated] = []
    for workers in map(int, arguments.workers.split(",")):
        runs.append(simulate(workers, arguments.blocks * workers, arguments.pause))
        print(runs[-1], file=sys.stderr, flush=True)
    cost = runs[-1].cost_s  # with the most blocks, what is done once counts least
    print("| workers | blocks | ideal | predicted | measured | driver's processor time a block |")
    print("|---|---|---|---|---|---|")
    for run in runs:
        told: list[Any] = [run.predicted_s(0), run.predicted_s(cost), run.seconds]
        said = " | ".join(f"{seconds:.2f} s" for seconds in told)
        print(f"| {run.workers} | {run.n_blocks:,} | {said} | {run.cost_s * 1e3:.2f} ms |")
    folder = arguments.folder or Path(tempfile.gettempdir()) / f"fit_and_score-{arguments.rows}"
    for path in made_table(folder, rows=arguments.rows):
        path.read_bytes()  # into the page cache
    (one, size), (two, _) = (fit_real(workers, folder) for workers in (1, 2))
    print(f"\n1 worker {one:.2f} s, 2 workers {two:.2f} s: {one / two:.2f} times as fast.\n")
    print("\n".join(projection(cost, size / one)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
