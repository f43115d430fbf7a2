"""Check fields by their metadata, before any graph is built; Datasets variable by variable."""

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from dpipe.cluster.local import find_place
from dpipe.collect.array_join import not_monotonic
from dpipe.errors import InputError, MemoryLimitError
from dpipe.sizes import DEFAULT_BLOCK_NBYTES, format_bytes, parse_bytes

#: More blocks than these, each smaller than those bytes, cost more to schedule than to read.
_MANY, _SMALL_NBYTES = 1000, 64 * 1024
#: Bytes that all blocks at work may take together where no budget is given.
_DEFAULT_MEMORY = 2**31
#: What functions of fields may take that are called without a budget of their own, inside of `budget`.
_budget: ContextVar[int | str | None] = ContextVar("budget of fields", default=None)

Field = TypeVar("Field", xr.DataArray, xr.Dataset)


def each_variable(x: Any, dims: Iterable[Hashable], who: str, function: Callable[..., xr.DataArray]) -> Any:
    """Apply a function to a DataArray, or to the variables of a Dataset that have all `dims`; leave the others.

    Raises
    ------
    InputError
        If `x` is neither, or has none of the dims.
    """
    dims = list(dims)
    if isinstance(x, xr.DataArray):
        return function(lazy(x, dims, who))
    if not isinstance(x, xr.Dataset):
        raise InputError(
            f"{who} takes an xarray.DataArray or Dataset, got a {type(x).__module__}.{type(x).__name__}. Name its "
            "dims first: xarray.DataArray(values, dims=...)."
        )
    having = [name for name, values in x.data_vars.items() if set(dims) <= set(values.dims)]
    if not having:
        raise InputError(
            f"{who}: no variable of the Dataset has the dims {', '.join(map(str, dims))}. It has: "
            f"{', '.join(f'{name} {values.dims}' for name, values in x.data_vars.items())}."
        )
    made = {name: function(lazy(x[name], dims, who)) for name in having}
    rest = {name: x[name] for name in x.data_vars if name not in having}
    touched = [name for name, values in rest.items() if set(dims) & set(values.dims)]
    if touched:
        raise InputError(
            f"{who}: the variables {', '.join(map(str, touched))} have some of the dims "
            f"{', '.join(map(str, dims))}, but not all. Leave them out: x.drop_vars({[*map(str, touched)]})."
        )
    return xr.Dataset({**made, **rest}, attrs=x.attrs)


def lazy(x: xr.DataArray, dims: Iterable[Hashable], who: str) -> xr.DataArray:
    """Give the array with Dask blocks and the dims it must have; one in memory becomes one block."""
    missing = [dim for dim in dims if dim not in x.dims]
    if missing:
        raise InputError(
            f"{who}: there is no dim {', '.join(map(repr, missing))}. The array has: "
            f"{', '.join(map(repr, x.dims))}."
        )
    named = f"{x.name!r} holds" if x.name is not None else "the array holds"
    if x.dtype.kind not in "fiub":
        raise InputError(
            f"{who}: {named} values of type {x.dtype}, which cannot be computed with. Convert them to numbers "
            "(x.astype), or leave them out."
        )
    if any(map(math.isnan, x.shape)):
        raise InputError(
            f"{who}: {named} blocks of unknown size. Find out the sizes first, by x.compute(), or by "
            "compute_chunk_sizes() of its Dask array."
        )
    if not x.size:
        raise InputError(f"{who}: the array has no elements, its shape is {x.shape}. Select at least one.")
    chunked = x if x.chunks is not None else x.chunk()
    warn_of_small_blocks(chunked, who)
    return chunked


def warn_of_small_blocks(x: xr.DataArray, who: str) -> None:
    """Warn of blocks so small that the scheduler takes longer than the work, with the rewrite that helps."""
    n = x.data.npartitions
    one_element = n > 1 and max(max(sizes) for sizes in x.data.chunks) == 1
    if one_element or (n > _MANY and x.nbytes / n < _SMALL_NBYTES):
        what = "one element" if one_element else format_bytes(x.nbytes / n)
        chunks = larger_chunks(x, DEFAULT_BLOCK_NBYTES)
        warn_caller(
            f"{who}: the array is in {n:,} blocks of {what}; each costs the scheduler about a millisecond. Read it in "
            f"larger ones: x.chunk({chunks}); if it is stored like this, write it anew once: dpipe.rechunk(x, "
            f"'new.zarr', chunks={chunks})."
        )


def warn_caller(text: str) -> None:
    """Warn at the line that calls dpipe."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("dpipe."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def attributes(x: xr.DataArray, *, pure: bool = False) -> dict[Any, Any]:
    """Give the attributes for what was computed of x; `pure` numbers, such as counts, have the unit 1."""
    if not pure:
        return dict(x.attrs)
    kept = {name: value for name, value in x.attrs.items() if name != "standard_name"}
    return {**kept, "units": "1"} if "units" in kept else kept


def computed(x: xr.DataArray, data: Any, *, pure: bool = False) -> xr.DataArray:
    """Give an array like x of other values, which are not packed as those of x are stored."""
    made = x.copy(data=data)
    made.attrs, made.encoding = attributes(x, pure=pure), {}
    return made


def larger_chunks(x: xr.DataArray, nbytes: int, whole: Iterable[Hashable] = ()) -> dict[str, int]:
    """Propose chunks of at most about so many bytes, the dims `whole` in one."""
    chunks = {dim: 1 for dim in x.dims}
    chunks |= {dim: x.sizes[dim] for dim in whole}
    for dim in reversed(x.dims):  # the last dims lie together on disk
        room = nbytes // (x.dtype.itemsize * math.prod(chunks.values()))
        chunks[dim] = min(x.sizes[dim], max(chunks[dim], chunks[dim] * max(room, 1)))
    return {str(dim): size for dim, size in chunks.items()}


def ordered(x: xr.DataArray, dim: Hashable, who: str, *, needed: bool = True) -> np.ndarray | None:
    """Check that a coordinate is there, complete and strictly monotonic; give its values as numbers or times.

    Raises
    ------
    InputError
        If it is missing, doubled or out of order, naming where.
    """
    if dim not in x.indexes:
        if needed:
            raise InputError(f"{who}: {dim!r} has no coordinate. Give it one: x.assign_coords({dim}=...).")
        return None
    index = x.indexes[dim]
    if index.hasnans:
        raise InputError(f"{who}: the coordinate {dim!r} has missing values. Leave them out first.")
    said = not_monotonic(np.asarray(index))
    if said:
        call = "drop_duplicates" if "twice" in said else "sortby"
        raise InputError(
            f"{who}: the coordinate {dim!r} {said}. "
            f"{'Keep one of each' if 'twice' in said else 'Sort it'}: x.{call}({str(dim)!r})."
        )
    return np.asarray(index)


def as_numbers(x: xr.DataArray, dim: Hashable, who: str, origin: Any = None) -> np.ndarray:
    """Give a coordinate as float64: days since an origin for times of any calendar, else its numbers, else positions.

    Parameters
    ----------
    origin : time or number, optional
        Default the first one.
    """
    ordered(x, dim, who, needed=False)
    index = x.indexes[dim] if dim in x.indexes else pd.RangeIndex(x.sizes[dim])
    origin = index[0] if origin is None else origin
    try:
        if isinstance(index, pd.DatetimeIndex | xr.CFTimeIndex):
            return np.asarray((index - origin) / pd.Timedelta(days=1), dtype=np.float64)
        return np.asarray(index - origin, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise InputError(
            f"{who}: the coordinate {dim!r} is of type {index.dtype}, and counted from {origin!r}; both must be "
            "numbers, or times of one calendar."
        ) from err


def check_cells(x: xr.DataArray, given: xr.DataArray, dims: Iterable[Hashable], who: str) -> None:
    """Raise InputError if what was found is of other cells than those of `x`."""
    for name in dims:
        differ = given.sizes[name] != x.sizes[name]
        if not differ and name in x.indexes and name in given.indexes:
            differ = not x.indexes[name].equals(given.indexes[name])
        if differ:
            raise InputError(
                f"{who}: x and what was found before have different cells along {name!r}, {x.sizes[name]} and "
                f"{given.sizes[name]}. Select the same ones, or regrid one of them."
            )


@contextlib.contextmanager
def budget(memory: int | str | None) -> Iterator[None]:
    """Let functions of fields that are called inside and given no `memory` take this as their budget."""
    token = _budget.set(_budget.get() if memory is None else memory)
    try:
        yield
    finally:
        _budget.reset(token)


def room(memory: int | float | str | None, x: xr.DataArray) -> tuple[int, int]:
    """Give the bytes that one thread may take, and the number of threads."""
    memory = _budget.get() if memory is None else memory
    nbytes = None if memory is None else parse_bytes(memory)
    place = find_place(None, nbytes, x.data.npartitions)
    budget = place.memory or nbytes or _DEFAULT_MEMORY
    return budget // max(place.threads, 1), place.threads


def refuse_beyond(need: float, each: int, threads: int, what: str, remedy: str, *, who: str) -> None:
    """Raise MemoryLimitError if a task needs more than its share of the budget."""
    if need > each:
        raise MemoryLimitError(
            f"{who}: {what} takes {format_bytes(need)} in each of {threads} threads, but the memory budget leaves "
            f"{format_bytes(each)}. {remedy}"
        )


def sizes_of(value: Any, dims: Sequence[Hashable], name: str, who: str) -> dict[Hashable, int]:
    """Check a mapping of dims to positive whole numbers."""
    if not isinstance(value, Mapping) or not value:
        raise InputError(f"{who}: {name} must name dims and sizes, such as {{'time': 3}}, got {value!r}.")
    for dim, size in value.items():
        if dim not in dims:
            raise InputError(f"{who}: there is no dim {dim!r}. The array has: {', '.join(map(repr, dims))}.")
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise InputError(f"{who}: {name} along {dim!r} must be an integer of at least 1, got {size!r}.")
    return {dim: int(size) for dim, size in value.items()}
