"""Open GRIB files as one lazy dataset of xarray, where cfgrib is installed: by the headers of their messages."""

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from dpipe.collect.array_files import Header, Stored
from dpipe.collect.files import find_files, is_remote, stamp_of
from dpipe.collect.netcdf import dataset_of
from dpipe.collect.parquet import block_limit
from dpipe.errors import SourceError

#: Where a field lies: its dimensions are those of the grid, and are never left out.
_OF_THE_GRID = ("latitude", "longitude", "y", "x", "values")
#: One thread at a time is inside of ecCodes, which need not be built for several.
_ECCODES = threading.RLock()


def open_grib(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    filter_by_keys: Mapping[str, Any] | None = None,
    concat_dim: str | None = None,
    drop_variables: str | Sequence[str] = (),
    block_nbytes: int | str | None = None,
    memory: int | str | None = None,
) -> xr.Dataset:
    """Open GRIB files as one lazy dataset, by reading the headers of their messages only.

    Files are joined as by `open_netcdf`. No index is left beside them.

    Parameters
    ----------
    paths : path, glob, folder, or a sequence of them
        A folder's are those that end in ``.grib``.
    filter_by_keys : mapping, optional
        Which messages to take, as cfgrib says it: ``{"typeOfLevel": "surface"}``.
    concat_dim : str, optional
        The dimension along which files follow each other; default the one whose coordinate differs.
    drop_variables : sequence of str, optional
        Variables that are passed over.
    block_nbytes : int or str, default "32 MiB"
        Messages are joined to blocks of at most this decoded size.
    memory : int or str, optional
        Choose `block_nbytes` for this memory budget instead.

    Returns
    -------
    xarray.Dataset
        Of lazy Dask arrays. Steps and levels of which there is one are coordinates without a dimension.

    Raises
    ------
    SourceError
        If cfgrib is not installed, a file cannot be read, is not on this machine, or holds messages that make no one
        array; the message names it.

    Notes
    -----
    cfgrib comes with ecCodes: pip install 'dpipe[grib]'.
    """
    try:
        import cfgrib  # noqa: F401
    except (ImportError, RuntimeError) as err:
        raise SourceError(
            f"GRIB is read by cfgrib, which cannot be used: {err}. Install it: pip install 'dpipe[grib]'."
        ) from err
    files = find_files(paths, {}, ".grib")
    far = next((path for path in files if is_remote(path)), None)
    if far is not None:
        raise SourceError(f"{far} is not on this machine, and ecCodes reads no others. Copy it here first.")
    drop = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables)
    with ThreadPoolExecutor(max_workers=min(8, len(files))) as pool:
        headers = list(pool.map(lambda path: _header(path, dict(filter_by_keys or {}), drop), files))
    whole = dataset_of(headers, concat_dim, {}, block_limit(block_nbytes, memory))
    single = [dim for dim, n in whole.sizes.items() if n == 1 and dim not in (*_OF_THE_GRID, "time")]
    return whole.squeeze(single)


@dataclass(frozen=True)
class Messages:
    """Where the fields of a variable lie in a file, and how they become its values."""

    offsets: dict[tuple[int, ...], Any]
    """By their place along the dimensions before those of the grid."""
    grid: tuple[int, ...]
    missing: float
    dtype: str

    def values(self, opened: Any, where: Sequence[slice]) -> np.ndarray:
        """Read a part from an open file."""
        from cfgrib.dataset import get_values_in_order
        from cfgrib.messages import Message

        n = len(where) - len(self.grid)
        ranges = [range(part.start, part.stop) for part in where[:n]]
        fields = np.full((*map(len, ranges), *self.grid), np.nan, self.dtype)
        for place in product(*ranges):
            if place not in self.offsets:
                continue
            at = tuple(i - part.start for i, part in zip(place, where[:n], strict=True))
            with _ECCODES:
                message = Message.from_file(opened, self.offsets[place])
                fields[at] = np.reshape(get_values_in_order(message, self.grid), self.grid)
        fields[fields == np.asarray(self.missing, self.dtype)] = np.nan
        return np.asarray(fields[(slice(None),) * n + tuple(where[n:])])


@dataclass(frozen=True)
class Known:
    """Values that are in memory already."""

    held: np.ndarray

    def values(self, opened: Any, where: Sequence[slice]) -> np.ndarray:
        """Give a part."""
        return self.held[tuple(where)]


def _header(path: str, keys: dict[str, Any], drop: set[str]) -> Header:
    import cfgrib

    try:
        stamp = stamp_of(path, {})
        with _ECCODES:
            found = cfgrib.open_file(path, indexpath="", squeeze=False, filter_by_keys=keys, errors="raise")
    except Exception as err:  # ecCodes and cfgrib raise what they like
        said = " ".join(str(err).split())[:400]
        raise SourceError(
            f"{path} cannot be read as GRIB: {type(err).__name__}: {said}. Repair or leave out the file; of messages "
            "that make no one array, take some: filter_by_keys={...}, and open the others apart."
        ) from err
    variables = {name: _stored(name, v) for name, v in found.variables.items() if name not in drop}
    held = {name: v.at.held for name, v in variables.items() if v.dims == (name,)}
    attrs = {
        key: value for key, value in found.attributes.items() if key != "history"
    }  # it tells when it was opened
    return Header(path, stamp, "grib", variables, attrs, held)


def _stored(name: str, variable: Any) -> Stored:
    dims = tuple(map(str, variable.dimensions))
    attrs = {key: value for key, value in variable.attributes.items() if key != "dtype"}
    data = variable.data
    if not hasattr(data, "field_id_index"):
        values = np.asarray(data)
        return Stored(name, dims, values.shape, values.dtype, attrs, None, Known(values))
    offsets = {place: ids[0] for place, ids in data.field_id_index.items()}
    grid = data.shape[-data.geo_ndim :]
    at = Messages(offsets, grid, float(data.missing_value), str(data.dtype))
    chunks = (1,) * (len(dims) - len(grid)) + tuple(grid)
    return Stored(name, dims, data.shape, np.dtype(data.dtype), attrs, chunks, at)
