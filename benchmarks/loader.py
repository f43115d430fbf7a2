"""Batches for a network, by dpipe's loader and by torch's own means: `python -m benchmarks.loader`.

Made rows of 32 float32 features and a label, about a gigabyte, in Parquet files without compression, and the same in
Arrow IPC files. Every contender gives all rows once, shuffled, in batches, in a process of its own and in turns; one
Markdown table gives the medians. "CPU" are the seconds of all processors, which a busy machine changes less than the
others; "peak" is by how much the memory of the process and its children grows over what it was before the first batch.
The map-style data set is so slow that it gives a part of the rows only.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import dpipe
from benchmarks.contenders.job import Clock
from benchmarks.fit_and_score import ROOT, conditions

N_FILES, GROUP_ROWS, WIDTH, BATCH = 8, 65_536, 32, 1024
#: What the map-style data set gives: rows of the first file.
MAPPED_ROWS = 100_000
_NAMES = [f"x{j:02d}" for j in range(WIDTH)]


def made_files(folder: Path, rows: int) -> list[Path]:
    """Write the files, from a seed, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.parquet" for i in range(N_FILES)]
    for i, path in enumerate(paths):
        if path.exists() and path.with_suffix(".arrow").exists():
            continue
        rng = np.random.default_rng(i)
        n = rows // N_FILES
        values: dict[str, Any] = {name: rng.normal(size=n).astype(np.float32) for name in _NAMES}
        table = pa.table(values | {"y": (values["x00"] > 0).astype(np.float32)})
        with (
            pa.OSFile(str(path.with_suffix(".arrow")), "wb") as file,
            pa.ipc.new_file(file, table.schema) as out,
        ):
            out.write_table(table, max_chunksize=GROUP_ROWS)
        pq.write_table(table, path, row_group_size=GROUP_ROWS, use_dictionary=False, compression="none")
    return paths


def dpipe_loader(paths: Sequence[Path]) -> Iterator[Any]:
    """Give batches by dpipe, rows of 8 row groups mixed, two reading threads."""
    frame = dpipe.read_parquet(paths, block_nbytes=GROUP_ROWS * (WIDTH + 1) * 4)
    return iter(dpipe.Loader(frame, "y", batch_size=BATCH))


def dpipe_arrow(paths: Sequence[Path]) -> Iterator[Any]:
    """Give batches by dpipe of the Arrow files."""
    frame = dpipe.read_arrow(
        [path.with_suffix(".arrow") for path in paths], block_nbytes=GROUP_ROWS * (WIDTH + 1) * 4
    )
    return iter(dpipe.Loader(frame, "y", batch_size=BATCH))


def _iterable(paths: Sequence[Path]) -> Any:
    """Make a data set as one writes it by hand: row groups in random order, and the rows of each."""
    import torch
    from torch.utils.data import IterableDataset, get_worker_info

    class Groups(IterableDataset[Any]):  # type: ignore[misc,unused-ignore]
        def __iter__(self) -> Iterator[Any]:
            files = [pq.ParquetFile(path) for path in paths]
            groups = [(i, g) for i, file in enumerate(files) for g in range(file.num_row_groups)]
            order = np.random.default_rng(0).permutation(len(groups))
            info = get_worker_info()
            for k in order if info is None else order[info.id :: info.num_workers]:
                i, g = groups[k]
                table = files[i].read_row_group(g)
                X = torch.from_numpy(np.stack([column.to_numpy() for column in table.columns[:-1]], axis=1))
                y = torch.tensor(table.column("y").to_numpy())
                rows = torch.randperm(len(X))
                for first in range(0, len(X), BATCH):
                    some = rows[first : first + BATCH]
                    yield X[some], y[some]

    return Groups()


def torch_iterable(paths: Sequence[Path]) -> Iterator[Any]:
    """Give batches by torch's DataLoader over an IterableDataset of batches."""
    from torch.utils.data import DataLoader

    return iter(DataLoader(_iterable(paths), batch_size=None))


def torch_iterable_workers(paths: Sequence[Path]) -> Iterator[Any]:
    """Do the same with two worker processes."""
    from torch.utils.data import DataLoader

    return iter(DataLoader(_iterable(paths), batch_size=None, num_workers=2))


def torch_map(paths: Sequence[Path]) -> Iterator[Any]:
    """Give batches by torch's DataLoader over a map-style data set of rows, which are all in memory."""
    import torch
    from torch.utils.data import DataLoader, Subset, TensorDataset

    table = pq.read_table(paths[0])
    X = torch.from_numpy(np.stack([column.to_numpy() for column in table.columns[:-1]], axis=1))
    rows = TensorDataset(X, torch.tensor(table.column("y").to_numpy()))
    some = Subset(rows, range(min(MAPPED_ROWS, len(X))))
    return iter(DataLoader(some, batch_size=BATCH, shuffle=True))


CONTENDERS: dict[str, Callable[[Sequence[Path]], Iterator[Any]]] = {
    function.__name__: function
    for function in (dpipe_loader, dpipe_arrow, torch_iterable, torch_iterable_workers, torch_map)
}


class _Memory:
    """The memory of this process and its children, looked at once in a while."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._begun = self.peak = self._now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _now(self) -> int:
        found = self._process.memory_info().rss
        for child in self._process.children(recursive=True):
            try:
                found += child.memory_full_info().uss  # what it shares with us is counted once
            except psutil.Error:  # it has ended
                continue
        return int(found)

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.peak = max(self.peak, self._now())

    def growth(self) -> int:
        """Stop looking; give by how much it grew."""
        self._ended.set()
        self._thread.join()
        return self.peak - self._begun


def run_here(name: str, folder: Path, rows: int) -> None:
    """Do one contender's work in this process and print one line of JSON."""
    import torch

    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as few
    ):  # the code that is loaded when it is first used is nobody's memory
        for _, y in CONTENDERS[name](made_files(Path(few), N_FILES * 10)):
            y.sum()
    paths = made_files(folder, rows)
    memory, clock, before = _Memory(), Clock(), os.times()
    n_rows, labels = 0, 0.0
    for X, y in CONTENDERS[name](paths):
        n_rows += len(X)
        labels += float(y.sum())
    clock.lap("all")
    cpu_s = sum(os.times()[:4]) - sum(before[:4])
    found = {"seconds": clock.seconds, "cpu_s": cpu_s, "peak_nbytes": memory.growth()}
    print(json.dumps(found | {"rows": n_rows, "labels": labels}))


def run_apart(name: str, folder: Path, rows: int) -> dict[str, float]:
    """Run a contender in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loader", "--only", name, "--folder", str(folder.resolve())]
    done = subprocess.run(
        [*command, "--rows", str(rows)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str, runs: Sequence[dict[str, float]]) -> str:
    """Draw one row of the table.

    Examples
    --------
    >>> row("mine", [{"seconds": 2.0, "cpu_s": 3.0, "rows": 8e6, "peak_nbytes": 100e6}])
    '| mine | 8,000,000 | 2.00 s | 4.00 | 3.00 s | 100 MB |'
    """
    seconds, cpu_s, peak = (median(run[what] for run in runs) for what in ("seconds", "cpu_s", "peak_nbytes"))
    rows = runs[0]["rows"]
    figures = f"{seconds:.2f} s | {rows / seconds / 1e6:.2f} | {cpu_s:.2f} s | {peak / 1e6:.0f} MB"
    return f"| {name} | {rows:,.0f} | {figures} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the data, run the contenders in turns, print the table.

    Returns
    -------
    int
        Exit status: 1 if a contender has not given every row once.
    """
    parser = ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("--rows", type=int, default=8_192_000, help="rows of the files (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the data is or goes (a temporary folder)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each contender (3)")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="which (%(default)s)")
    parser.add_argument("--only", choices=CONTENDERS, help="run this one here, and print JSON")
    arguments = parser.parse_args(argv)
    folder = arguments.folder or Path(tempfile.gettempdir()) / f"loader-{arguments.rows}"
    if arguments.only:
        run_here(arguments.only, folder, arguments.rows)
        return 0
    labels = 0.0
    for path in made_files(folder, arguments.rows):
        labels += float(np.sum(pq.read_table(path, columns=["y"]).column("y").to_numpy()))
        path.read_bytes()  # the first contender must not be the only one to wait for the disk
        path.with_suffix(".arrow").read_bytes()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.contenders.split(",")}
    for _ in range(arguments.repeat):
        for name, own in runs.items():
            own.append(run_apart(name, folder, arguments.rows))
    print(conditions(arguments.rows, arguments.repeat), end="\n\n")
    print("| loader | rows | median | million rows a second | CPU | peak |\n|---|---|---|---|---|---|")
    for name, own in runs.items():
        print(row(name, own))
    whole = [run for name, own in runs.items() if name != "torch_map" for run in own]
    expected = arguments.rows // N_FILES * N_FILES
    return int(any((run["rows"], run["labels"]) != (expected, labels) for run in whole))


if __name__ == "__main__":
    sys.exit(main())
