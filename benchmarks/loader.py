"""Batches for a network, by dpipe's loader and by torch's own means: `python -m benchmarks.loader`.

Made rows of 32 float32 features and a label, about a gigabyte, in Parquet files without compression, and the same in
Arrow IPC files. Every contender gives all rows once, shuffled, in batches, in a process of its own and in turns; one
Markdown table gives the medians. "CPU" are the seconds of all processors, which a busy machine changes less than the
others; "peak" is by how much the memory of the process and its children grows over what it was before the first batch,
with all code imported and used once on a few rows; "in all" is the whole of it. Memory that processes share, such as
files that are mapped, is counted once. `arrow_decode` is the floor: Arrow decodes the same row groups in two threads,
and nobody looks at them. Loaders that take row after row in Python give a part of the rows only, and Ray Data one file.
Those of packages that are not installed, or that fail, are left out, and named.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import dpipe
from benchmarks.contenders.job import Clock
from benchmarks.contenders.loaders import BATCH, LOADERS, NEEDS, PART_ROWS, WRITERS
from benchmarks.fit_and_score import ROOT, conditions

N_FILES, GROUP_ROWS, WIDTH = 8, 65_536, 32
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


def arrow_decode(paths: Sequence[Path]) -> Iterator[Any]:
    """Decode the row groups by Arrow in two threads, in order; what is given are the columns of a group."""
    files = [pq.ParquetFile(path, pre_buffer=False) for path in paths]

    def decoded(half: int) -> list[tuple[int, Any]]:
        found = []
        for path, file in zip(paths, files, strict=True):
            own = pq.ParquetFile(path, metadata=file.metadata, pre_buffer=False)
            for g in range(half, file.num_row_groups, 2):
                table = own.read_row_group(g, use_threads=False)
                found.append((table.num_rows, table["y"].to_numpy().sum()))
        return found

    with ThreadPoolExecutor(2) as pool:
        for half in pool.map(decoded, range(2)):
            for n, total in half:
                yield range(n), np.float32(total)


def _iterable(paths: Sequence[Path], batch_size: int = BATCH) -> Any:
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
                for first in range(0, len(X), batch_size):
                    some = rows[first : first + batch_size]
                    yield X[some], y[some]

    return Groups()


def torch_iterable(paths: Sequence[Path], batch_size: int = BATCH) -> Iterator[Any]:
    """Give batches by torch's DataLoader over an IterableDataset of batches."""
    from torch.utils.data import DataLoader

    return iter(DataLoader(_iterable(paths, batch_size), batch_size=None))


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
    for function in (
        dpipe_loader,
        dpipe_arrow,
        arrow_decode,
        torch_iterable,
        torch_iterable_workers,
        torch_map,
    )
} | LOADERS
#: Loaders that give a part of the rows.
IN_PART = {"torch_map": MAPPED_ROWS, "mosaic_streaming": PART_ROWS, "litdata_streaming": PART_ROWS}
#: Loaders that give the first file.
OF_ONE_FILE = ("ray_data",)


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

    def stopped(self) -> dict[str, int]:
        """Stop looking; give by how much it grew, and what it was in all."""
        self._ended.set()
        self._thread.join()
        return {"peak_nbytes": self.peak - self._begun, "total_nbytes": self.peak}


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
    if name in WRITERS:
        WRITERS[name](paths)
    memory, clock, before = _Memory(), Clock(), os.times()
    n_rows, labels = 0, 0.0
    for X, y in CONTENDERS[name](paths):
        n_rows += len(X)
        labels += float(y.sum())
    clock.lap("all")
    cpu_s = sum(os.times()[:4]) - sum(before[:4])
    found = {"seconds": clock.seconds, "cpu_s": cpu_s, "rows": n_rows, "labels": labels}
    print(json.dumps(found | memory.stopped()))


def run_apart(name: str, folder: Path, rows: int) -> dict[str, float]:
    """Run a contender in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loader", "--only", name, "--folder", str(folder.resolve())]
    done = subprocess.run(
        [*command, "--rows", str(rows)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        told = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{name} ended with status {done.returncode}: {' '.join(told)}")
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str, runs: Sequence[dict[str, float]]) -> str:
    """Draw one row of the table.

    Examples
    --------
    >>> row("mine", [{"seconds": 2.0, "cpu_s": 3.0, "rows": 8e6, "peak_nbytes": 100e6, "total_nbytes": 4e8}])
    '| mine | 8,000,000 | 2.00 s | 4.00 | 3.00 s | 100 MB | 400 MB |'
    """
    names = "seconds", "cpu_s", "peak_nbytes", "total_nbytes"
    seconds, cpu_s, peak, total = (median(run[what] for run in runs) for what in names)
    rows = runs[0]["rows"]
    figures = f"{seconds:.2f} s | {rows / seconds / 1e6:.2f} | {cpu_s:.2f} s"
    figures += f" | {peak / 1e6:.0f} MB | {total / 1e6:.0f} MB"
    return f"| {name} | {rows:,.0f} | {figures} |"


def missing(name: str) -> str:
    """Say what a loader lacks here; empty if it can run.

    Examples
    --------
    >>> missing("dpipe_loader")
    ''
    """
    module, package = NEEDS.get(name, ("", ""))
    try:
        there = not module or find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that the module is part of
        there = False
    return "" if there else f"{name} is left out: pip install '{package}'"


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
    left_out = {name: missing(name) for name in arguments.contenders.split(",")}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name, why in left_out.items() if not why}
    for _ in range(arguments.repeat):
        for name, own in runs.items():
            if left_out[name]:
                continue
            try:
                own.append(run_apart(name, folder, arguments.rows))
                print(row(name, own[-1:]), file=sys.stderr)  # should a later one take too long
            except RuntimeError as err:
                if name not in NEEDS:
                    raise
                left_out[name] = f"{name} is left out: {err}"
    print(conditions(arguments.rows, arguments.repeat), end="\n\n")
    print(
        "| loader | rows | median | million rows a second | CPU | peak | in all |\n|---|---|---|---|---|---|---|"
    )
    for name, own in runs.items():
        if own:
            print(row(name, own))
    print(*filter(None, left_out.values()), sep="\n")
    expected = arguments.rows // N_FILES * N_FILES
    part = {name: min(n, expected // N_FILES) for name, n in IN_PART.items()}
    part |= dict.fromkeys(OF_ONE_FILE, expected // N_FILES)
    return int(
        any(
            run["rows"] != part.get(name, expected) or (name not in part and run["labels"] != labels)
            for name, own in runs.items()
            for run in own
        )
    )


if __name__ == "__main__":
    sys.exit(main())
