"""Made-up sea levels in many NetCDF files, with known patterns and regimes: the answer can be checked.

Each day is the sum of a season, of three patterns that stand at right angles to each other (weighted by the area of the
cells), and of noise. The strengths of the patterns follow from the day's regime, one of four. A continent has no data.
"""

import numbers
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

import dpipe

#: Days in a file.
DAYS_PER_FILE = 30
#: Strengths of the three patterns in each regime, in metres.
CENTRES = np.array([[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, -2.0, 0.0]])
#: Days that a regime lasts.
_SPELL = 3
#: What varies within a regime: strengths of the patterns, and each cell.
_WITHIN, _NOISE = np.array([0.3, 0.3, 0.8]), 0.02
# Part of the default folder's name: raise it with any change that makes other fields.
_VERSION = 1


class SeaLevelError(dpipe.DpipeError, ValueError):
    """Fields cannot be made as they are asked for."""


@dataclass(frozen=True)
class KnownTruth:
    """What made fields were made of."""

    patterns: xr.DataArray
    """Of mode, lat and lon; NaN on land."""
    regimes: xr.DataArray
    """The number of the regime of each day."""


def known_truth(days: int, seed: int = 0, n_lat: int = 16, n_lon: int = 24) -> KnownTruth:
    """Tell what the fields of `made_sea_level` are made of.

    Examples
    --------
    >>> truth = known_truth(10)
    >>> truth.patterns.dims, truth.regimes.sizes["time"]
    (('mode', 'lat', 'lon'), 10)
    """
    rng = np.random.default_rng([seed, 0])
    n_cycles = -(-days // (len(CENTRES) * _SPELL))
    order = np.concatenate([rng.permutation(len(CENTRES)) for _ in range(n_cycles)])
    time = pd.date_range("1993-01-01", periods=days)
    regimes = xr.DataArray(np.repeat(order, _SPELL)[:days], {"time": time}, name="regime")
    return KnownTruth(_patterns(n_lat, n_lon), regimes)


def _patterns(n_lat: int, n_lon: int) -> xr.DataArray:
    lat = np.linspace(-90 + 90 / n_lat, 90 - 90 / n_lat, n_lat)
    lon = np.arange(n_lon) * 360.0 / n_lon
    y, x = np.meshgrid(np.deg2rad(lat), np.deg2rad(lon), indexing="ij")
    land = (np.abs(y) < 0.9) & (np.abs(x - 4.5) < 0.6 + 0.2 * np.sin(3 * y))
    root = np.sqrt(np.cos(y))
    waves = [np.sin(2 * x) * np.cos(y), np.cos(x) * np.sin(2 * y), np.sin(x) * np.cos(3 * y)]
    weighted = np.stack([np.where(land, 0, wave * root).ravel() for wave in waves], axis=1)
    right_angled = np.linalg.qr(weighted)[0].T.reshape(3, n_lat, n_lon)
    values = np.where(land, np.nan, right_angled / root)
    return xr.DataArray(
        values, {"mode": np.arange(3), "lat": lat, "lon": lon}, dims=("mode", "lat", "lon"), name="pattern"
    )


def made_sea_level(
    days: int,
    folder: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    n_lat: int = 16,
    n_lon: int = 24,
) -> list[Path]:
    """Write made sea levels as NetCDF files of thirty days each, once, and return their paths.

    Parameters
    ----------
    days : int
        From 1993-01-01 on, at least 60.
    folder : path, default: `dpipe/made-sea-level-v1` in the user's cache folder
        The files lie in a folder of their own in it. The cache folder is `$XDG_CACHE_HOME`, or else `~/.cache`.
    seed : int, default 0
    n_lat, n_lon : int, default 16 and 24
        Cells of the grid; 365 days of the default take 0.6 MB.

    Returns
    -------
    list of pathlib.Path
        In the order of their days. If they were there already, nothing is written.

    Raises
    ------
    SeaLevelError
        If a number is not whole, or too small.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in made_sea_level(60, folder)]
    ['sla-1993-01-01.nc', 'sla-1993-01-31.nc']
    """
    for name, value, least in (
        ("days", days, 60),
        ("seed", seed, 0),
        ("n_lat", n_lat, 4),
        ("n_lon", n_lon, 4),
    ):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
            raise SeaLevelError(f"{name} must be a whole number, {least} or more, but is {value!r}.")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parent = home / "dpipe" / f"made-sea-level-v{_VERSION}" if folder is None else Path(folder).expanduser()
    target = parent / f"days-{days}-{seed}-{n_lat}x{n_lon}"
    truth = known_truth(days, seed, n_lat, n_lon)
    starts = range(0, days, DAYS_PER_FILE)
    names = [f"sla-{truth.regimes.time.values[start].astype('M8[D]')}.nc" for start in starts]
    if not target.is_dir():
        unfinished = parent / f".{target.name}-{uuid.uuid4().hex}"
        unfinished.mkdir(parents=True)
        try:
            for name, start in zip(names, starts, strict=True):
                made = _fields(truth, slice(start, start + DAYS_PER_FILE), [seed, 1, start])
                made.to_netcdf(unfinished / name, engine="scipy")
            unfinished.rename(target)  # whole or not there
        except OSError:
            # Another process may have finished the same set first; its files are the same.
            if not target.is_dir():
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return [target / name for name in names]


def _fields(truth: KnownTruth, days: slice, seed: list[int]) -> xr.Dataset:
    """Make the fields of some days, from a seed of their own."""
    rng = np.random.default_rng(seed)
    regimes = truth.regimes[days]
    strengths = CENTRES[regimes.values] + rng.normal(size=(len(regimes), 3)) * _WITHIN
    cells = np.einsum("tm,myx->tyx", strengths, truth.patterns.values)
    angle = 2 * np.pi * regimes.time.dt.dayofyear.values / 365.25
    season = np.cos(angle)[:, None, None] * np.sin(np.deg2rad(truth.patterns.lat.values))[None, :, None]
    values = cells + 0.1 * season + _NOISE * rng.normal(size=cells.shape)
    about = {"standard_name": "sea_surface_height_above_geoid", "long_name": "made sea level", "units": "m"}
    coords = {
        "time": ("time", regimes.time.values, {"standard_name": "time"}),
        "lat": ("lat", truth.patterns.lat.values, {"standard_name": "latitude", "units": "degrees_north"}),
        "lon": ("lon", truth.patterns.lon.values, {"standard_name": "longitude", "units": "degrees_east"}),
    }
    fields = (("time", "lat", "lon"), values.astype("float32"), about)
    return xr.Dataset({"sla": fields}, coords, {"Conventions": "CF-1.11", "title": "Made sea levels"})
