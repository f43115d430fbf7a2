"""Gridded data beside the usual tools, on one Zarr store: `python -m benchmarks.fields`.

A made field of known modes, a cycle of the year and noise. EOFs weighted by area, by dpipe, by dask-ml's PCA on the
stacked array, and by xeofs where that is installed; anomalies by day and by month, by dpipe and by xarray with flox.
Every contender runs in a process of its own, in turns; one Markdown table gives the medians, and whether the answers
are right. Clocks start when all is imported. With `--memory`, dpipe alone works on a store and on one of half the size,
each under a hard limit if a program is named that sets one, and the table shows the peaks.
"""

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import xarray as xr
import zarr
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from zarr.codecs import BloscCodec

import dpipe
from benchmarks.apart import options, parsed, run_apart
from benchmarks.contenders.job import Clock, peak_nbytes
from benchmarks.fit_and_score import conditions

LATS, LONS, DAYS_A_CHUNK = 181, 360, 32
#: Standard deviations of the modes of the field; the last of them stand out of the noise by far.
MODES = (40.0, 30.0, 20.0, 14.0, 10.0)
#: What is compared: a fit, what stands beside it, and the ratio that is allowed.
PAIRS = (
    ("dpipe_eofs", "dask_ml_eofs", 0.5),
    ("dpipe_eofs", "xeofs_eofs", 0.5),
    ("dpipe_dayofyear", "flox_dayofyear", 1.0),
    ("dpipe_month", "flox_month", 1.0),
)


def made_store(folder: Path, days: int) -> Path:
    """Write the field from a seed, unless it is there."""
    path = folder / f"field-{days}.zarr"
    if path.exists():
        return path
    unfinished = folder / f"{path.name}.tmp"
    group = zarr.open_group(unfinished, mode="w")
    array = group.create_array(
        "z",
        shape=(days, LATS, LONS),
        chunks=(min(DAYS_A_CHUNK, days), LATS, LONS),
        dtype="f4",
        compressors=BloscCodec(cname="lz4", shuffle="bitshuffle"),
        dimension_names=("time", "lat", "lon"),
    )
    modes = _modes()
    noise = np.random.default_rng(0).normal(size=(2 * DAYS_A_CHUNK, LATS * LONS)).round(1)
    for first in range(0, days, DAYS_A_CHUNK):
        here = np.arange(first, min(first + DAYS_A_CHUNK, days))
        start = int(np.random.default_rng((1, first)).integers(DAYS_A_CHUNK))
        maps = _series(here) @ modes + 5500 + noise[start : start + len(here)]
        array[first : first + len(here)] = maps.reshape(-1, LATS, LONS).round(1)
    coordinates = {
        "time": np.arange(days),
        "lat": np.linspace(-90, 90, LATS),
        "lon": np.arange(LONS) * 360.0 / LONS,
    }
    for name, values in coordinates.items():
        made = group.create_array(name, shape=values.shape, dtype=values.dtype, dimension_names=(name,))
        made[:] = values
    group["time"].attrs.update({"units": "days since 1950-01-01", "calendar": "proleptic_gregorian"})
    unfinished.rename(path)
    return path


def _modes() -> np.ndarray:
    """Patterns over the whole field, of shape (modes and the cycle of the year, cells)."""
    lat, lon = np.meshgrid(
        np.deg2rad(np.linspace(-90, 90, LATS)), 2 * np.pi * np.arange(LONS) / LONS, indexing="ij"
    )
    waves = [np.cos((k + 1) * lon + k) * np.cos(lat) ** (k + 1) for k in range(len(MODES))]
    return np.stack([*waves, np.sin(lat)]).reshape(len(MODES) + 1, -1)


def _series(days: np.ndarray) -> np.ndarray:
    """The amplitudes of the modes on some days, and 100 times the cosine of the year."""
    drawn = [np.random.default_rng((2, int(day))).normal(size=len(MODES)) * MODES for day in days]
    return np.column_stack([np.array(drawn), 100 * np.cos(2 * np.pi * days / 365.25)])


def _field(store: Path) -> xr.DataArray:
    return xr.open_zarr(store, consolidated=False).z


def _weighted(store: Path) -> xr.DataArray:
    z = _field(store)
    return z * np.sqrt(np.cos(np.deg2rad(z.lat)).clip(0, None)).astype("f4")


def dpipe_eofs(store: Path, arguments: Namespace) -> Any:
    """Find EOFs with dpipe, in threads of this process."""
    fitted = dpipe.fit(
        PCA(arguments.modes), _weighted(store), sample_dims="time", missing="keep", memory=arguments.memory
    )
    return fitted.explained_variance_


def dask_ml_eofs(store: Path, arguments: Namespace) -> Any:
    """Find EOFs with dask-ml, which chooses its solver, on the stacked array."""
    from dask_ml.decomposition import PCA as DaskPCA

    stacked = _weighted(store).stack(cell=("lat", "lon")).data
    stacked = stacked.rechunk({1: -1})
    return DaskPCA(arguments.modes, svd_solver="randomized", random_state=0).fit(stacked).explained_variance_


def xeofs_eofs(store: Path, arguments: Namespace) -> Any:
    """Find EOFs with xeofs."""
    from xeofs.single import EOF

    model = EOF(n_modes=arguments.modes, use_coslat=True, random_state=0)
    return model.fit(_field(store), dim="time").explained_variance().values


def _spread_of_anomalies(anomalies: xr.DataArray) -> Any:
    return np.atleast_1d(float((anomalies**2).mean().compute()))


def dpipe_dayofyear(store: Path, arguments: Namespace, by: str = "dayofyear") -> Any:
    """Take the mean of each day of the year off, with dpipe; give the mean square of what is left."""
    z = _field(store)
    usual = dpipe.fields.climatology(z, by, memory=arguments.memory).compute()
    return _spread_of_anomalies(dpipe.fields.anomalies(z, usual, memory=arguments.memory))


def flox_dayofyear(store: Path, arguments: Namespace, by: str = "dayofyear") -> Any:
    """Do the same with xarray, which sums up by flox."""
    import flox  # noqa: F401  (without it, xarray would go another way)

    grouped = _field(store).groupby(f"time.{by}")
    return _spread_of_anomalies(grouped - grouped.mean().compute())


def dpipe_month(store: Path, arguments: Namespace) -> Any:
    """Take the mean of each month off, with dpipe."""
    return dpipe_dayofyear(store, arguments, "month")


def flox_month(store: Path, arguments: Namespace) -> Any:
    """Take the mean of each month off, with xarray and flox."""
    return flox_dayofyear(store, arguments, "month")


def dpipe_regimes(store: Path, arguments: Namespace) -> Any:
    """Gather the maps in four regimes: k-means with dpipe, three iterations of it."""
    kmeans = KMeans(4, n_init=1, max_iter=3, random_state=0)
    fitted = dpipe.fit(kmeans, _field(store), sample_dims="time", missing="keep", memory=arguments.memory)
    return np.sort(np.bincount(fitted.labels_))


CONTENDERS: dict[str, Callable[[Path, Namespace], Any]] = {
    function.__name__: function
    for function in (
        dpipe_eofs,
        dask_ml_eofs,
        xeofs_eofs,
        dpipe_dayofyear,
        flox_dayofyear,
        dpipe_month,
        flox_month,
        dpipe_regimes,
    )
}


def run_here(arguments: Namespace) -> None:
    """Do one contender's work in this process and print one line of JSON."""
    import distributed  # noqa: F401  (imports come before the clock)

    store = made_store(arguments.folder, arguments.days)
    clock = Clock()
    found = CONTENDERS[arguments.only](store, arguments)
    clock.lap("all")
    answer = np.asarray(found, dtype=float).tolist()
    print(json.dumps({"seconds": clock.seconds, "peak_nbytes": peak_nbytes(), "answer": answer}))


def _apart(name: str, arguments: Namespace, days: int, limit: Sequence[str] = ()) -> dict[str, Any]:
    given = {"days": days, "memory": arguments.memory, "modes": arguments.modes, "folder": arguments.folder}
    return run_apart("fields", name, given, limit)


def row(pair: tuple[str, str, float], runs: dict[str, list[dict[str, Any]]]) -> str:
    """Draw one row of the table: medians, the median of the ratios of each turn, and how far the answers differ.

    Examples
    --------
    >>> run = {"seconds": 1.0, "peak_nbytes": 2**20, "answer": [4.0, 2.0]}
    >>> row(("mine", "theirs", 0.5), {"mine": [run], "theirs": [run | {"seconds": 4.0, "answer": [4.0, 1.0]}]})
    '| mine | 1.00 s | 1 MiB | theirs | 4.00 s | 1 MiB | 0.25 | 0.5 | 5e-01 |'
    """
    mine, theirs, allowed = pair
    both = list(zip(runs[mine], runs[theirs], strict=True))
    ratio = median(a["seconds"] / b["seconds"] for a, b in both)
    wanted, other = (np.array(runs[name][0]["answer"]) for name in (mine, theirs))
    differ = float(np.abs(other / wanted - 1).max())
    cells = [cell for name in (mine, theirs) for cell in (name, *_figures(runs[name]))]
    return f"| {' | '.join([*cells, f'{ratio:.2f}', f'{allowed:g}', f'{differ:.0e}'])} |"


def _figures(runs: list[dict[str, Any]]) -> tuple[str, str]:
    seconds, peak = (median(run[what] for run in runs) for what in ("seconds", "peak_nbytes"))
    return f"{seconds:.2f} s", f"{peak / 2**20:.0f} MiB"


def compare_peaks(arguments: Namespace) -> None:
    """Run dpipe on the store and on one of half the size, and print the peaks."""
    print("| contender | days | decoded | seconds | peak | under the limit |\n|---|---|---|---|---|---|")
    for name in arguments.contenders.split(","):
        for days in (arguments.days // 2, arguments.days):
            made_store(arguments.folder, days)
            found = _apart(name, arguments, days, shlex.split(arguments.limit or ""))
            size = days * LATS * LONS * 4 / 2**20
            peak = found["peak_nbytes"] / 2**20
            print(
                f"| {name} | {days:,} | {size:,.0f} MiB | {found['seconds']:.1f} s | {peak:.0f} MiB | "
                f"{found['limit'] or 'not set'} |",
                flush=True,
            )


def compare_speed(arguments: Namespace) -> None:
    """Run the pairs in turns, and print the table."""
    print(
        "| task | median | peak | beside | median | peak | ratio | allowed | answers differ by |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for pair in PAIRS:
        if not set(pair[:2]) <= set(arguments.contenders.split(",")):
            continue
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in pair[:2]}
        for _ in range(arguments.repeat):
            for name in runs:
                runs[name].append(_apart(name, arguments, arguments.days))
        print(row(pair, runs), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the store, run all in turns, print the table."""
    size = "maps of 261 kB (4_000, one gigabyte)"
    parser = options("fields", __doc__, CONTENDERS, 4_000, size)
    parser.add_argument("--modes", type=int, default=5, help="EOFs that are sought (5)")
    parser.add_argument(
        "--memory", help="the budget of dpipe; with it, the peaks are compared, not the speed"
    )
    parser.add_argument("--limit", help="a command that runs another one under a hard limit")
    arguments = parsed(parser, argv, "fields")
    if arguments.only:
        run_here(arguments)
        return 0
    made_store(arguments.folder, arguments.days)
    print(conditions(arguments.days, arguments.repeat), end="\n\n")
    if arguments.memory:
        arguments.contenders = arguments.contenders or "dpipe_eofs,dpipe_regimes,dpipe_dayofyear"
        compare_peaks(arguments)
    else:
        arguments.contenders = arguments.contenders or ",".join(CONTENDERS)
        compare_speed(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
