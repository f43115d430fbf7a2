"""Maps to time series, beside Dask's own rechunk through P2P and rechunker: `python -m benchmarks.rechunk`.

A made field in a Zarr store, a chunk for each few maps, is written again in chunks that are whole along time. Every
contender runs in a process of its own on the same store, with the same memory, in turns; one Markdown table gives the
medians. Clocks start when all is imported; what a contender wrote is compared with the field.
"""

import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.utils import parse_bytes

import dpipe
from benchmarks.apart import options, parsed, run_apart
from benchmarks.contenders.job import Clock, peak_nbytes
from benchmarks.fit_and_score import conditions

LATS, LONS, DAYS_A_CHUNK = 90, 180, 4


def made_store(folder: Path, days: int) -> Path:
    """Write the field from a seed, unless it is there."""
    path = folder / f"maps-{days}.zarr"
    if path.exists():
        return path
    unfinished = folder / f"{path.name}.tmp"
    array = zarr.create_array(
        unfinished / "t",
        shape=(days, LATS, LONS),
        chunks=(DAYS_A_CHUNK, LATS, LONS),
        dtype="f4",
        dimension_names=("time", "lat", "lon"),
    )
    zarr.open_group(unfinished, mode="a")
    for first in range(0, days, DAYS_A_CHUNK):
        array[first : first + DAYS_A_CHUNK] = _maps(first, min(DAYS_A_CHUNK, days - first))
    unfinished.rename(path)
    return path


def _maps(first: int, n: int) -> np.ndarray:
    # rounded, as measurements are: random bits would not be compressed
    return np.random.default_rng(first).normal(size=(n, LATS, LONS)).round(2).astype("f4")


def target(days: int) -> tuple[int, int, int]:
    """Give the chunks to be: all days of some places."""
    return days, 10, 20


def dpipe_rechunk(store: Path, out: Path, arguments: Namespace) -> None:
    """Rechunk with dpipe, in threads of this process."""
    days, lats, lons = target(arguments.days)
    sizes = {"time": days, "lat": lats, "lon": lons}
    dpipe.rechunk(store, out, chunks=sizes, memory=arguments.memory)


def dask_p2p(store: Path, out: Path, arguments: Namespace) -> None:
    """Rechunk with Dask, through the disks of two workers that share the memory."""
    from distributed import Client

    limit = parse_bytes(arguments.memory) // 2
    with Client(n_workers=2, threads_per_worker=1, memory_limit=limit, dashboard_address=None):
        made = da.from_zarr(str(store / "t")).rechunk(target(arguments.days), method="p2p")
        made.to_zarr(str(out / "t"), compute=True)


def rechunker_dask(store: Path, out: Path, arguments: Namespace) -> None:
    """Rechunk with rechunker, by Dask's threads."""
    from rechunker import rechunk

    plan = rechunk(
        zarr.open_array(store / "t", mode="r"),
        target(arguments.days),
        parse_bytes(arguments.memory) // 2,
        str(out / "t"),
        temp_store=str(out.with_suffix(".between")),
    )
    plan.execute(num_workers=2)


CONTENDERS: dict[str, Callable[[Path, Path, Namespace], None]] = {
    function.__name__: function for function in (dpipe_rechunk, dask_p2p, rechunker_dask)
}


def run_here(arguments: Namespace) -> None:
    """Do one contender's work in this process and print one line of JSON."""
    import distributed  # noqa: F401  (imports come before the clock)

    store = made_store(arguments.folder, arguments.days)
    out = arguments.folder / f"{arguments.only}.zarr"
    shutil.rmtree(out, ignore_errors=True)
    clock = Clock()
    CONTENDERS[arguments.only](store, out, arguments)
    clock.lap("rechunk")
    found = zarr.open_array(out / "t", mode="r")
    firsts = range(0, arguments.days, DAYS_A_CHUNK)[:: max(arguments.days // (10 * DAYS_A_CHUNK), 1)]
    right = found.chunks == target(arguments.days) and all(
        np.array_equal(found[first], _maps(first, min(DAYS_A_CHUNK, arguments.days - first))[0])
        for first in firsts
    )
    shutil.rmtree(out)
    print(json.dumps({"seconds": clock.seconds, "peak_nbytes": peak_nbytes(), "right": right}))


def row(name: str, runs: dict[str, list[dict[str, float]]]) -> str:
    """Draw one row of the table: medians, and the median of the ratios of each turn.

    Examples
    --------
    >>> row("dpipe_rechunk", {"dpipe_rechunk": [{"seconds": 2.0, "peak_nbytes": 2**20, "right": True}]})
    '| dpipe_rechunk | 2.00 s | 1.00 | 1 MiB | yes |'
    """
    seconds, peak = (median(run[what] for run in runs[name]) for what in ("seconds", "peak_nbytes"))
    pairs = zip(runs[name], runs["dpipe_rechunk"], strict=True)
    ratio = median(mine["seconds"] / theirs["seconds"] for mine, theirs in pairs)
    right = "yes" if all(run["right"] for run in runs[name]) else "NO"
    return f"| {name} | {seconds:.2f} s | {ratio:.2f} | {peak / 2**20:.0f} MiB | {right} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the store, run all in turns, print the table."""
    size = "maps of 65 kB (16_000, one gigabyte)"
    parser = options("rechunk", __doc__, CONTENDERS, 16_000, size)
    parser.add_argument("--memory", default="1 GiB", help="the budget of each (1 GiB)")
    parser.set_defaults(contenders="dpipe_rechunk,dask_p2p")
    arguments = parsed(parser, argv, "rechunk")
    if arguments.only:
        run_here(arguments)
        return 0
    made_store(arguments.folder, arguments.days)
    print(conditions(arguments.days, arguments.repeat), end="\n\n")
    print("| contender | median | ratio | peak | right |\n|---|---|---|---|---|")
    names = arguments.contenders.split(",")
    given = {option: getattr(arguments, option) for option in ("days", "memory", "folder")}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for _ in range(arguments.repeat):
        for name in names:
            if name not in failed:
                try:
                    runs[name].append(run_apart("rechunk", name, given))
                except RuntimeError as err:
                    failed[name] = str(err).splitlines()[-1][:200]
    for name in names:
        print(f"| {name} | failed: {failed[name]} | | | |" if name in failed else row(name, runs), flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
