"""Straight lines in time, and moments along any dims: found in one reading, taken out in the next."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.task_spec import Task, TaskRef
from dask.tokenize import tokenize

from dpipe.blocks.cells import GroupSums, TrendSums, less_line, standardised
from dpipe.errors import InputError
from dpipe.fields.checks import (
    as_numbers,
    attributes,
    check_cells,
    computed,
    each_variable,
    larger_chunks,
    lazy,
    refuse_beyond,
    room,
)
from dpipe.fields.passes import (
    Fold,
    Reading,
    block_ref,
    blocks_over,
    fold_blocks,
    lanes_of,
    map_blocks_beside,
)


def trend(x: xr.DataArray, dim: Hashable = "time", *, memory: int | str | None = None) -> xr.Dataset:
    """Find the straight line along a dim in each cell by least squares, lazily.

    Parameters
    ----------
    x : xarray.DataArray
    dim : str, default "time"
        Its coordinate holds times of any calendar or numbers, in order; without one, positions count.
    memory : int or str, optional
        Budget of the process, or of each worker, that will compute; default 2 GiB.

    Returns
    -------
    xarray.Dataset
        ``slope``, a day or a unit of the coordinate, and ``intercept``, at the coordinate ``origin``, the first step;
        lazy, float64, without `dim`. Missing values are left out: a cell with one step has a slope of 0, one
        with none NaN.

    Raises
    ------
    InputError
        If the dim is not there, or its coordinate is doubled or out of order.
    MemoryLimitError
        If a block does not fit.

    Examples
    --------
    >>> x = xr.DataArray(np.array([1.0, np.nan, 5.0, 7.0]), dims="time").chunk(time=2)
    >>> line = trend(x).compute()
    >>> float(line["slope"]), float(line["intercept"])
    (2.0, 1.0)
    """
    if not isinstance(x, xr.DataArray):
        raise InputError(
            f"trend takes a DataArray, got a {type(x).__name__}. Choose a variable of a Dataset."
        )
    x = lazy(x, [dim], "trend")
    t = as_numbers(x, dim, "trend")
    middle, half = (t[0] + t[-1]) / 2, max(abs(t[-1] - t[0]) / 2, 1e-300)
    axis = x.get_axis_num(dim)
    parts = np.split((t - middle) / half, np.cumsum(x.data.chunks[axis])[:-1])
    need = _check_room(x, [axis], 48, memory, "trend")
    keep = [i for i in range(x.ndim) if i != axis]
    states = _folded(
        x.data, f"trend-{tokenize(t)[:8]}", (axis,), TrendSums, lambda cells: (cells,), 48, parts, need
    )
    origin = x[dim].values[0] if dim in x.indexes else 0
    dims = [x.dims[i] for i in keep]
    coords = {name: coord for name, coord in x.coords.items() if dim not in coord.dims} | {"origin": origin}
    made = {}
    for what in ("slope", "intercept"):
        values = _of_states(states, x.data, keep, _line, what, middle, half)
        made[what] = (dims, values, attributes(x) if what == "intercept" else _per_step(x, dim))
    return xr.Dataset(made, coords=coords)


def _per_step(x: xr.DataArray, dim: Hashable) -> dict[Any, Any]:
    """Give the attributes of a slope: its unit is that of x for each day, or for each unit of the dim."""
    made = attributes(x, pure=True)
    unit = "day" if _is_times(x, dim) else str(x[dim].attrs.get("units", "1"))
    return {**made, "units": f"{x.attrs['units']} {unit}-1".replace(" 1-1", "")} if "units" in made else made


def _is_times(x: xr.DataArray, dim: Hashable) -> bool:
    return isinstance(x.indexes.get(dim), pd.DatetimeIndex | xr.CFTimeIndex)


def detrend(
    x: Any, dim: Hashable = "time", *, line: xr.Dataset | None = None, memory: int | str | None = None
) -> Any:
    """Subtract the straight line along a dim from each cell, lazily.

    Parameters
    ----------
    x : xarray.DataArray or Dataset
        Missing values stay missing.
    dim : str, default "time"
    line : xarray.Dataset, optional
        What `trend` has found, of other steps perhaps; default that of `x`.
    memory : int or str, optional
        As in `trend`.

    Returns
    -------
    xarray.DataArray or Dataset
        Like `x`, in its chunks. Lazy: blocks are read once for the line, and once more to take it out.

    Raises
    ------
    InputError
        As `trend` does, or if `line` is of other cells.

    Examples
    --------
    >>> x = xr.DataArray(np.array([1.0, np.nan, 5.0, 7.0]), dims="time").chunk(time=2)
    >>> detrend(x).values
    array([ 0., nan,  0.,  0.])
    """

    def one(values: xr.DataArray) -> xr.DataArray:
        found = trend(values, dim, memory=memory) if line is None else line
        missing = {"slope", "intercept"} - set(found) or {"origin"} - set(found.coords)
        if missing:
            raise InputError(f"detrend: line has no {', '.join(sorted(missing))}. Make it with trend(x).")
        t = as_numbers(values, dim, "detrend", found["origin"].values[()])
        axis = values.get_axis_num(dim)
        parts = np.split(t, np.cumsum(values.data.chunks[axis])[:-1])
        keep = [i for i in range(values.ndim) if i != axis]
        others = [
            beside(values, found[name], [values.dims[i] for i in keep], "detrend")
            for name in ("slope", "intercept")
        ]
        need = _check_room(values, range(values.ndim), 0, memory, "detrend")
        return _mapped(
            values, keep, others, _less_line, lambda place: (axis, parts[place[axis]]), "detrend", need
        )

    return each_variable(x, [dim], "detrend", one)


def moments(
    x: xr.DataArray, dims: Hashable | Sequence[Hashable], *, memory: int | str | None = None
) -> xr.Dataset:
    """Find mean, standard deviation and count along any dims, lazily, in one reading.

    Parameters
    ----------
    x : xarray.DataArray
    dims : str or sequence of str
        The dims to go along; the result has the others.
    memory : int or str, optional
        Budget of the process, or of each worker, that will compute; default 2 GiB.

    Returns
    -------
    xarray.Dataset
        ``mean``, ``std`` (``ddof=0``) and ``count`` of the values that are not missing; float64, lazy.

    Raises
    ------
    InputError
        If a dim is not there.
    MemoryLimitError
        If a block does not fit.

    Examples
    --------
    >>> x = xr.DataArray(np.arange(6.0).reshape(3, 2), dims=("time", "lat")).chunk(time=2)
    >>> moments(x, "time")["mean"].values
    array([2., 3.])
    """
    if not isinstance(x, xr.DataArray):
        raise InputError(
            f"moments takes a DataArray, got a {type(x).__name__}. Choose a variable of a Dataset."
        )
    dims = [dims] if isinstance(dims, str) or not isinstance(dims, Sequence) else list(dims)
    x = lazy(x, dims, "moments")
    axes = tuple(sorted(x.get_axis_num(dim) for dim in dims))
    if not axes:
        raise InputError(f"moments: name at least one dim, of {', '.join(map(repr, x.dims))}.")
    need = _check_room(x, axes, 24, memory, "moments")
    keep = [i for i in range(x.ndim) if i not in axes]
    states = _folded(
        x.data,
        f"moments-{axes}",
        axes,
        GroupSums,
        lambda cells: (np.zeros(1, dtype=np.int64), cells, True),
        24,
        None,
        need,
    )
    coords = {name: coord for name, coord in x.coords.items() if not set(dims) & set(coord.dims)}
    made = {
        what: (
            [x.dims[i] for i in keep],
            _of_states(states, x.data, keep, _moment, what),
            attributes(x, pure=what == "count"),
        )
        for what in ("mean", "std", "count")
    }
    return xr.Dataset(made, coords=coords)


def standardise(
    x: Any,
    dims: Hashable | Sequence[Hashable],
    *,
    found: xr.Dataset | None = None,
    memory: int | str | None = None,
) -> Any:
    """Subtract the mean along some dims, and divide by the standard deviation, lazily.

    Parameters
    ----------
    x : xarray.DataArray or Dataset
    dims : str or sequence of str
        The dims to go along: ``"time"`` for each cell by itself, all dims for the field as a whole.
    found : xarray.Dataset, optional
        What `moments` has found, of the training steps perhaps; default that of `x`.
    memory : int or str, optional
        As in `moments`.

    Returns
    -------
    xarray.DataArray or Dataset
        Like `x`, in its chunks. Lazy, in two readings. Where all values are equal there is 0, as scikit-learn has it.

    Raises
    ------
    InputError
        If a dim is not there, or `found` is of other cells.

    Examples
    --------
    >>> x = xr.DataArray(np.arange(6.0).reshape(3, 2), dims=("time", "lat")).chunk(time=2)
    >>> standardise(x, "time").values[:, 0].round(3).tolist()
    [-1.225, 0.0, 1.225]
    """
    dims = [dims] if isinstance(dims, str) or not isinstance(dims, Sequence) else list(dims)

    def one(values: xr.DataArray) -> xr.DataArray:
        known = moments(values, dims, memory=memory) if found is None else found
        missing = {"mean", "std"} - set(known)
        if missing:
            raise InputError(
                f"standardise: found has no {', '.join(sorted(missing))}. Make it with moments(x, dims)."
            )
        keep = [i for i in range(values.ndim) if values.dims[i] not in dims]
        rest = [values.dims[i] for i in keep]
        others = [beside(values, known[name], rest, "standardise") for name in ("mean", "std")]
        need = _check_room(values, range(values.ndim), 0, memory, "standardise")
        return _mapped(values, keep, others, standardised, lambda place: (tuple(keep),), "standardise", need)

    return each_variable(x, dims, "standardise", one)


def _check_room(x: xr.DataArray, axes: Sequence[int], per_cell: int, memory: Any, who: str) -> float:
    each, threads = room(memory, x)
    sizes = [max(sizes) for sizes in x.data.chunks]
    block = math.prod(sizes) * (2 * x.dtype.itemsize + 16)
    cells = math.prod(size for i, size in enumerate(sizes) if i not in axes)
    need = block + 3 * per_cell * cells
    refuse_beyond(
        need,
        each,
        threads,
        f"a block of shape {tuple(sizes)}, with its sums,",
        f"Read smaller ones, such as x.chunk({larger_chunks(x, each // (8 * x.dtype.itemsize))}), or give more memory.",
        who=who,
    )
    return need


def _folded(
    data: da.Array,
    purpose: str,
    axes: tuple[int, ...],
    kind: Any,
    begin: Any,
    per_cell: int,
    parts: Any,
    need: float,
) -> tuple[Reading, dict[tuple[int, ...], str]]:
    """Fold all blocks along some axes; give the key of the state of each place along the others."""
    reading = Reading.of(data, purpose, need)
    keep = [i for i in range(data.ndim) if i not in axes]
    largest = math.prod(max(data.chunks[i]) for i in keep) * per_cell
    lanes = lanes_of(math.prod(data.numblocks[i] for i in axes), largest)
    states = {}
    for column in np.ndindex(*(data.numblocks[i] for i in keep)):
        places = blocks_over(data.numblocks, dict(zip(keep, column, strict=True)))
        cells = tuple(data.chunks[i][n] for i, n in zip(keep, column, strict=True))
        blocks = [
            (number * lanes // len(places), place, None if parts is None else parts[place[axes[0]]])
            for number, place in enumerate(places)
        ]
        key = "-".join(map(str, (reading.token, "state", *column)))
        states[column] = fold_blocks(reading, key, Fold(kind, axes), begin(cells), blocks, lanes)
    return reading, states


def _of_states(
    states: tuple[Reading, dict[tuple[int, ...], str]],
    data: da.Array,
    keep: list[int],
    finish: Any,
    what: str,
    *more: Any,
) -> da.Array:
    reading, keys = states
    name = f"{what}-{reading.token}"
    tasks = {
        (name, *column): Task((name, *column), finish, TaskRef(key), what, *more)
        for column, key in keys.items()
    }
    return reading.array(name, tasks, tuple(data.chunks[i] for i in keep), np.float64)


def _line(state: TrendSums, what: str, middle: float, half: float) -> np.ndarray:
    """Give the line in days or units, from the origin, where the sums are of times between -1 and 1."""
    slope = state.finished("slope") / half
    return slope if what == "slope" else state.finished("intercept") - slope * middle


def _moment(state: GroupSums, what: str) -> np.ndarray:
    return state.finished(what)[0, ...]


def beside(x: xr.DataArray, given: xr.DataArray, rest: Sequence[Hashable], who: str) -> da.Array:
    """Give what was found of some cells in the order and the chunks of the cells of `x`.

    Raises
    ------
    InputError
        If it is of other cells.
    """
    if set(given.dims) != set(rest):
        raise InputError(f"{who}: what was found has the dims {given.dims}; it must have {tuple(rest)}.")
    check_cells(x, given, rest, who)
    given = given.transpose(*rest)
    values = given.chunk({name: x.chunksizes[name] for name in rest}).data if rest else given.data
    return values if isinstance(values, da.Array) else da.asarray(values)


def _mapped(
    x: xr.DataArray,
    keep: list[int],
    others: list[da.Array],
    function: Any,
    arguments: Any,
    purpose: str,
    need: float,
) -> xr.DataArray:
    """Apply a function to each block, beside the blocks of what was found for its cells."""
    reading = Reading.of(x.data, purpose, need)
    name = f"{purpose}-{tokenize(x.data.name, [other.name for other in others], keep)}"
    dtype = np.result_type(x.dtype, np.float32)

    def given(place: tuple[int, ...]) -> tuple[Any, ...]:
        cells = [place[i] for i in keep]
        return *arguments(place), dtype, *(block_ref(other, cells) for other in others)

    made = map_blocks_beside(reading, name, function, given, dtype, others)
    return computed(x, made, pure=purpose == "standardise")


def _less_line(
    block: np.ndarray, axis: int, t: np.ndarray, dtype: Any, slope: np.ndarray, intercept: np.ndarray
) -> np.ndarray:
    return np.moveaxis(less_line(np.moveaxis(block, axis, 0), t, slope, intercept, dtype), 0, axis)
