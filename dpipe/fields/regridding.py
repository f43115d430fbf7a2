"""Regrid to another regular grid: bilinear, or conservative to first order."""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import xarray as xr
from dask.tokenize import tokenize

from dpipe.blocks.regridding import bilinear_weights, edges_between, overlap_weights, weighted
from dpipe.errors import InputError
from dpipe.fields.checks import each_variable, ordered
from dpipe.fields.regions import Axis, check_regions, map_regions

_LATITUDES = ("lat", "latitude")
_LONGITUDES = ("lon", "longitude")


def regrid(
    x: Any,
    target: Mapping[Hashable, Any] | xr.DataArray | xr.Dataset,
    method: str = "bilinear",
    *,
    min_cover: float = 0.5,
    memory: int | str | None = None,
) -> Any:
    """Bring a field to another regular grid, lazily.

    Parameters
    ----------
    x : xarray.DataArray or Dataset
        With coordinates of numbers along the dims to regrid, ascending or descending.
    target : mapping of str to sequence of float, or xarray object
        The centres of the new cells along each dim; of an xarray object, its coordinates of numbers that are dims of
        `x`, too.
    method : {"bilinear", "conservative"}, default "bilinear"
        Linear interpolation between centres; or means over the area that cells share, which keep the integral. Areas
        are those of the sphere along a dim named ``lat`` or ``latitude``, or with units of degrees_north.
    min_cover : float, default 0.5
        The share of a new cell, by its weights, that must not be missing; what is missing is left out of the mean. With
        0, one value is enough.
    memory : int or str, optional
        Budget of the process, or of each worker, that will compute; default 2 GiB.

    Returns
    -------
    xarray.DataArray or Dataset
        Of the type of `x`, if that is of floating point. Lazy; each block takes the source cells that it needs. A dim
        named ``lon`` or ``longitude``, or with units of degrees_east, whose cells go around the globe is periodic, and
        longitudes may be counted from -180 or from 0.

    Raises
    ------
    InputError
        If dims or coordinates are missing, or the target reaches beyond the source: bilinear by more than half a
        source cell, within which the value at the edge holds; conservative at all.
    MemoryLimitError
        If the region of a block does not fit.

    Examples
    --------
    >>> x = xr.DataArray(np.array([0.0, 10.0, 20.0]), dims="lat", coords={"lat": [0.0, 1.0, 2.0]}).chunk(lat=2)
    >>> regrid(x, {"lat": [0.5, 1.25]}).values
    array([ 5. , 12.5])
    """
    if method not in ("bilinear", "conservative"):
        raise InputError(f"regrid: method must be bilinear or conservative, got {method!r}.")
    if isinstance(min_cover, bool) or not isinstance(min_cover, int | float) or not 0 <= min_cover <= 1:
        raise InputError(f"regrid: min_cover must lie between 0 and 1, got {min_cover!r}.")
    if isinstance(target, xr.DataArray | xr.Dataset):
        named = {
            name: target[name].values for name in target.dims if name in target.indexes and name in x.dims
        }
        target = {name: values for name, values in named.items() if values.dtype.kind in "fiu"}
    if not isinstance(target, Mapping) or not target:
        raise InputError(
            f"regrid: target must name dims and the centres of their new cells, such as {{'lat': [...]}}; got "
            f"{type(target).__name__} without any."
        )
    made = partial(_regrid, target=target, method=method, min_cover=float(min_cover), memory=memory)
    return each_variable(x, target, "regrid", made)


@dataclass(frozen=True)
class _Weigh:
    least: float
    dtype: Any

    def __call__(self, region: np.ndarray, weights: tuple[Any, ...]) -> np.ndarray:
        return weighted(region, weights, self.least, self.dtype)


def _regrid(x: xr.DataArray, *, target: Any, method: str, min_cover: float, memory: Any) -> xr.DataArray:
    axes, coords = [], {name: c for name, c in x.coords.items() if not set(c.dims) & set(target)}
    for dim, chunks in zip(x.dims, x.data.chunks, strict=True):
        if dim not in target:
            axes.append(Axis.same(chunks))
            continue
        try:
            centres = np.asarray(target[dim], dtype=np.float64)
        except (TypeError, ValueError) as err:
            raise InputError(
                f"regrid: the new cells along {dim!r} must be a list of numbers: {err}."
            ) from err
        matrix = _Dim.of(x, dim).weights(centres, method)
        axes.append(_weighing_axis(matrix, chunks))
        coords[dim] = xr.DataArray(centres, dims=[dim], attrs=x[dim].attrs)
    step = check_regions(x, axes, 40 / x.dtype.itemsize, memory, "regrid")
    kernel = _Weigh(min_cover, x.dtype if x.dtype.kind == "f" else np.dtype(np.float64))
    name = (
        f"regrid-{tokenize(x.data.name, kernel, method, {str(k): np.asarray(v) for k, v in target.items()})}"
    )
    values = map_regions(x.data, name, axes, kernel, kernel.dtype, step)
    return xr.DataArray(values, dims=x.dims, coords=coords, name=x.name, attrs=x.attrs)


@dataclass(frozen=True)
class _Dim:
    """One dim of the source grid: ascending centres and edges, as they are on it."""

    name: Hashable
    centres: np.ndarray
    descending: bool
    latitude: bool
    longitude: bool
    period: float | None

    @classmethod
    def of(cls, x: xr.DataArray, dim: Hashable) -> "_Dim":
        values = ordered(x, dim, "regrid")
        assert values is not None
        if values.dtype.kind not in "fiu":
            raise InputError(
                f"regrid: the coordinate {dim!r} is of type {values.dtype}; it must hold numbers."
            )
        if len(values) < 2:
            raise InputError(
                f"regrid: {dim!r} has one cell, whose width is not known. Regrid the other dims."
            )
        centres = values.astype(np.float64)
        descending = bool(centres[1] < centres[0])
        centres = centres[::-1] if descending else centres
        units = str(x[dim].attrs.get("units", "")).lower()
        latitude = (
            str(dim).lower() in _LATITUDES or units.startswith("degrees_n") or units.startswith("degree_n")
        )
        longitude = (
            str(dim).lower() in _LONGITUDES or units.startswith("degrees_e") or units.startswith("degree_e")
        )
        edges = edges_between(centres)
        around = longitude and abs(edges[-1] - edges[0] - 360) < 1e-3 * (centres[1] - centres[0])
        return cls(dim, centres, descending, latitude, longitude, 360.0 if around else None)

    def weights(self, target: np.ndarray, method: str) -> sp.csr_matrix:
        """Give the weights of each new cell, in the order of the source as it is stored."""
        if target.ndim != 1 or not len(target) or not np.isfinite(target).all():
            raise InputError(
                f"regrid: the new cells along {self.name!r} must be a list of numbers, got {target!r}."
            )
        source = edges_between(self.centres)
        if self.longitude and self.period is None:
            target = _turned(target, source, whole=method == "conservative")
        if method == "bilinear":
            self._check_range(target, source, "centres")
            found = bilinear_weights(self.centres, target, self.period)
        else:
            found = self._shared(target, source)
        return found[:, ::-1].tocsr() if self.descending else found

    def _shared(self, target: np.ndarray, source: np.ndarray) -> sp.csr_matrix:
        if len(target) < 2:
            raise InputError(f"regrid: one new cell along {self.name!r} has no width. Give at least two.")
        step = np.diff(target)
        if not ((step > 0).all() or (step < 0).all()):
            raise InputError(f"regrid: the new cells along {self.name!r} must be in order, each once.")
        edges = edges_between(target[::-1] if step[0] < 0 else target)
        if self.latitude:
            edges, source = (np.sin(np.deg2rad(np.clip(each, -90, 90))) for each in (edges, source))
        self._check_range(edges, source, "edges")
        found = overlap_weights(source, edges, self.period)
        return found[::-1].tocsr() if step[0] < 0 else found

    def _check_range(self, target: np.ndarray, source: np.ndarray, what: str) -> None:
        if self.period is None and _outside(target, source):
            sphere = " (sines of latitude)" if self.latitude and what == "edges" else ""
            raise InputError(
                f"regrid: along {self.name!r} the {what} of the new cells go from {target.min():g} to "
                f"{target.max():g}, but the source cells from {source[0]:g} to {source[-1]:g}{sphere}. "
                "Leave out what lies beyond."
            )


def _turned(target: np.ndarray, source: np.ndarray, *, whole: bool) -> np.ndarray:
    """Count longitudes as the source does, from -180 or from 0: all by the same turns, or each by its own."""
    if not _outside(target, source):
        return target
    if whole:
        return target + 360 * np.round((source[0] + source[-1] - target[0] - target[-1]) / 720)
    moved = source[0] + np.mod(target - source[0], 360)
    return np.where(moved <= source[-1], moved, target)


def _outside(target: np.ndarray, edges: np.ndarray) -> bool:
    room = 1e-6 * (edges[-1] - edges[0])
    return bool(target.min() < edges[0] - room or target.max() > edges[-1] + room)


def _weighing_axis(matrix: sp.csr_matrix, chunks: Sequence[int]) -> Axis:
    """Cut the new cells where the source blocks end, and find what each part needs of the source."""
    n = matrix.shape[0]
    last = np.cumsum(chunks) - 1
    middle = np.array(
        [np.median(matrix.indices[a:b]) for a, b in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)]
    )
    owner = np.searchsorted(last, middle)
    cuts = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), n]
    sizes, ranges, parts = [], [], []
    for a, b in itertools.pairwise(cuts):
        rows = matrix[a:b]
        used = np.unique(rows.indices)
        gap = int(np.argmax(np.diff(used))) if len(used) > 1 else 0
        around = len(used) > 1 and used[gap + 1] - used[gap] > 1
        found = [(int(used[0]), int(used[-1]) + 1)]
        if around:
            # around the end of a periodic dim: the last source cells, then the first
            found = [(int(used[gap + 1]), int(used[-1]) + 1), (int(used[0]), int(used[gap]) + 1)]
        columns = np.concatenate([np.arange(first, stop) for first, stop in found])
        sizes.append(b - a)
        ranges.append(found)
        parts.append(rows[:, columns].tocsr())
    return Axis(tuple(sizes), tuple(ranges), tuple(parts))
