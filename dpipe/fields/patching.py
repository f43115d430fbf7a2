"""Patches: windows of a field as samples for training."""

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.tokenize import tokenize

from dpipe.blocks.patches import cut
from dpipe.errors import InputError
from dpipe.fields.checks import each_variable, ordered, sizes_of
from dpipe.fields.costs import Step
from dpipe.fields.regions import Axis, check_regions, map_regions

#: Cells that the windows of one block have at most, where more than one begins in a block of the field. It depends on
#: no types, so that the patches of features and of labels are in the same blocks.
_CELLS = 2**22


def patches(
    x: Any,
    size: Mapping[Hashable, int],
    overlap: Mapping[Hashable, int] | int = 0,
    *,
    remainder: str = "flush",
    memory: int | str | None = None,
) -> Any:
    """Cut a field into windows along a new dim ``patch``, lazily.

    Parameters
    ----------
    x : xarray.DataArray or Dataset
        Of a Dataset, the variables that have all the dims are cut, and those that have none are left.
    size : mapping of str to int
        Cells of a window along each dim, such as ``{"time": 1, "lat": 32, "lon": 32}``; dims that are not named stay
        whole in each patch.
    overlap : int or mapping of str to int, default 0
        Cells that a window shares with the next one, less than its size; an int holds for the dims whose size is
        larger than it.
    remainder : {"flush", "drop"}, default "flush"
        Where the windows do not end with the field: one more, that does, overlapping the one before by more; or none.
    memory : int or str, optional
        Budget of the process, or of each worker, that will compute; default 2 GiB.

    Returns
    -------
    xarray.DataArray or Dataset
        Of dims ``patch`` and those of `x`; lazy. Each patch has its origin along every dim beside it, as
        ``lat_origin``: the coordinate of its first cell, or its position. Patches are in the order of the blocks of
        `x` in which they begin, in blocks of those; each takes what it needs of its neighbours, so that every stored
        chunk is read once. Fields in equal chunks give patches in equal order and blocks.

    Raises
    ------
    InputError
        If a dim is not there or shorter than its window, or its coordinate is doubled or out of order.
    MemoryLimitError
        If a block of patches does not fit.

    Examples
    --------
    >>> x = xr.DataArray(np.arange(7.0), dims="lat", coords={"lat": np.arange(10, 17)}).chunk(lat=4)
    >>> found = patches(x, {"lat": 3}, overlap=1)
    >>> found.values.tolist(), found["lat_origin"].values.tolist()
    ([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0], [4.0, 5.0, 6.0]], [10, 12, 14])
    """
    if remainder not in ("flush", "drop"):
        raise InputError(f"patches: remainder must be flush or drop, got {remainder!r}.")
    made = partial(_patches, size=size, overlap=overlap, remainder=remainder, memory=memory)
    if isinstance(x, xr.Dataset):
        _check_chunks(x, size)
    return each_variable(x, size if isinstance(size, Mapping) else (), "patches", made)


@dataclass(frozen=True)
class _Cut:
    def __call__(self, region: np.ndarray, windows: tuple[Any, ...]) -> np.ndarray:
        return cut(region, windows)


def _check_chunks(x: xr.Dataset, dims: Any) -> None:
    """Refuse variables whose patches would come in different orders."""
    seen: dict[Hashable, tuple[Hashable, Any]] = {}
    for name, values in x.data_vars.items():
        for dim in values.dims:
            if dim not in dims:
                continue
            chunks = values.chunksizes.get(dim, (values.sizes[dim],))
            first, wanted = seen.setdefault(dim, (name, chunks))
            if chunks != wanted:
                raise InputError(
                    f"patches: {name!r} has other chunks along {dim!r} than {first!r}, {chunks[:5]} and {wanted[:5]}. "
                    "Chunk them alike: x.unify_chunks()."
                )


def _overlaps(overlap: Any, sizes: Mapping[Hashable, int]) -> dict[Hashable, int]:
    whole = isinstance(overlap, int | np.integer) and not isinstance(overlap, bool)
    if whole and overlap >= max(sizes.values()):
        raise InputError(
            f"patches: overlap={overlap} must be less than the size along some dim, got {dict(sizes)}."
        )
    given = {dim: overlap for dim, n in sizes.items() if overlap < n} if whole else overlap
    if not isinstance(given, Mapping) or set(given) - set(sizes):
        raise InputError(
            f"patches: overlap must be an integer, or name dims of size, {', '.join(map(repr, sizes))}; got "
            f"{overlap!r}."
        )
    for dim, shared in given.items():
        good = isinstance(shared, int | np.integer) and not isinstance(shared, bool)
        if not good or not 0 <= shared < sizes[dim]:
            raise InputError(
                f"patches: the overlap along {dim!r} must be an integer from 0 to {sizes[dim] - 1}, less than its "
                f"size, got {shared!r}."
            )
    return {dim: int(given.get(dim, 0)) for dim in sizes}


def _begins(n: int, size: int, step: int, remainder: str) -> np.ndarray:
    """Give where the windows along a dim begin."""
    begins = np.arange(0, n - size + 1, step)
    if remainder == "flush" and begins[-1] != n - size:
        begins = np.append(begins, n - size)
    return begins


def _groups(begins: np.ndarray, chunks: Sequence[int], most: int | None = None) -> list[np.ndarray]:
    """Gather the windows that begin in one block, at most so many."""
    owner = np.searchsorted(np.cumsum(chunks), begins, side="right")
    found = [begins[owner == i] for i in np.unique(owner)]
    return [
        each[i : i + (most or len(each))] for each in found for i in range(0, len(each), most or len(each))
    ]


def _grouped(
    x: xr.DataArray, sizes: Mapping[Hashable, int], begins: Mapping[Hashable, np.ndarray]
) -> dict[Any, Any]:
    """Gather the windows along each dim, so that no block has too many cells."""
    found = {dim: _groups(begins[dim], x.chunksizes[dim]) for dim in sizes}
    most = {dim: max(map(len, each)) for dim, each in found.items()}
    for dim in sizes:
        cells = math.prod(most[each] * sizes[each] for each in sizes)
        if cells > _CELLS:
            most[dim] = max(1, _CELLS * most[dim] // cells)
            found[dim] = _groups(begins[dim], x.chunksizes[dim], most[dim])
    return found


def _patches(x: xr.DataArray, *, size: Any, overlap: Any, remainder: str, memory: Any) -> xr.DataArray:
    given = sizes_of(size, x.dims, "size", "patches")
    sizes = {dim: given[dim] for dim in x.dims if dim in given}
    shared = _overlaps(overlap, sizes)
    for dim, n in sizes.items():
        ordered(x, dim, "patches", needed=False)
        if n > x.sizes[dim]:
            raise InputError(
                f"patches: a window of {n} is longer than {dim!r}, which has {x.sizes[dim]} cells. Take a smaller one."
            )
    origins = {dim: f"{dim}_origin" for dim in sizes}
    taken = [name for name in ("patch", *origins.values()) if name in x.dims or name in x.coords]
    if taken:
        raise InputError(
            f"patches: the array has a {taken[0]!r} already. Rename it: x.rename({taken[0]}=...)."
        )
    begins = {dim: _begins(x.sizes[dim], n, n - shared[dim], remainder) for dim, n in sizes.items()}
    groups = _grouped(x, sizes, begins)
    axes = [
        _window_axis(groups[dim], sizes[dim]) if dim in sizes else Axis.same(chunks)
        for dim, chunks in zip(x.dims, x.data.chunks, strict=True)
    ]
    expands = math.prod(
        max(len(each) * sizes[dim] / (each[-1] - each[0] + sizes[dim]) for each in groups[dim])
        for dim in sizes
    )
    # the region, and the patches once while they are picked and once as they are given
    step = check_regions(x, axes, 1 + 2 * expands, memory, "patches")
    values = _cut_blocks(x, sizes, groups, axes, step)
    return xr.DataArray(
        values,
        dims=("patch", *x.dims),
        coords={
            **{name: coord for name, coord in x.coords.items() if not set(coord.dims) & set(sizes)},
            **_origins(x, sizes, groups),
        },
        name=x.name,
        attrs=x.attrs,
    )


def _window_axis(groups: Sequence[np.ndarray], size: int) -> Axis:
    ranges = tuple([(int(each[0]), int(each[-1]) + size)] for each in groups)
    return Axis(tuple(map(len, groups)), ranges, tuple((each - each[0], size) for each in groups))


def _cut_blocks(x: xr.DataArray, sizes: Any, groups: Any, axes: Sequence[Axis], step: Step) -> da.Array:
    numbers = [len(groups[dim]) for dim in sizes]
    at = [x.get_axis_num(dim) for dim in sizes]
    counts = tuple(math.prod(map(len, each)) for each in itertools.product(*(groups[dim] for dim in sizes)))
    chunks = [(sizes[dim],) if dim in sizes else x.chunksizes[dim] for dim in x.dims]

    def place_of(place: tuple[int, ...]) -> tuple[int, ...]:
        first = int(np.ravel_multi_index([place[i] for i in at], numbers))
        return (first, *(0 if i in at else number for i, number in enumerate(place)))

    begins = {str(dim): [each.tolist() for each in groups[dim]] for dim in sizes}
    name = f"patches-{tokenize(x.data.name, dict(sizes), begins)}"
    return map_regions(x.data, name, axes, _Cut(), x.dtype, step, chunks=(counts, *chunks), place_of=place_of)


def _origins(x: xr.DataArray, sizes: Any, groups: Any) -> dict[str, Any]:
    """Give where each patch begins, as coordinates of the dim patch."""
    meshes = [
        np.meshgrid(*each, indexing="ij") for each in itertools.product(*(groups[dim] for dim in sizes))
    ]
    found = {}
    for i, (dim, size) in enumerate(sizes.items()):
        places = np.concatenate([mesh[i].ravel() for mesh in meshes])
        values, attrs = places, {}
        if dim in x.indexes:
            values, attrs = x[dim].values[places], x[dim].attrs
        found[f"{dim}_origin"] = xr.Variable("patch", values, {**attrs, "patch_size": size})
    return found
