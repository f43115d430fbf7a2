"""Climatology and anomalies: means of groups of time steps, and what differs from them."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.task_spec import List, Task, TaskRef
from dask.tokenize import tokenize

from dpipe.blocks.cells import GroupSums, less_groups
from dpipe.errors import InputError
from dpipe.fields.checks import attributes, check_cells, computed, each_variable, ordered, refuse_beyond, room
from dpipe.fields.passes import Fold, Reading, block_ref, fold_blocks, lanes_of, map_blocks_beside
from dpipe.sizes import counted

_STATISTICS = ("mean", "std", "count")
#: Ranges of groups that are folded beside each other where the cells are in few blocks.
_RANGES = 4


def climatology(
    x: Any,
    by: str | xr.DataArray = "dayofyear",
    *,
    dim: Hashable = "time",
    statistic: str = "mean",
    memory: int | str | None = None,
) -> Any:
    """Give the mean of each group of time steps in each cell, lazily.

    Parameters
    ----------
    x : xarray.DataArray or Dataset
        Of any dims, in any chunks. Variables of a Dataset without `dim` are left as they are.
    by : str or xarray.DataArray, default "dayofyear"
        A part of the time, as in ``x.time.dt``: "dayofyear", "month", "season", "hour" and the like, of any calendar;
        or labels of your own along `dim`, of one dimension and with a name.
    dim : str, default "time"
    statistic : {"mean", "std", "count"}, default "mean"
        Missing values are left out; the standard deviation is that of the values themselves (``ddof=0``).
    memory : int or str, optional
        Budget of the process, or of each worker, that will compute; default 2 GiB. Where the groups do not fit into
        it at a time, they are worked on in ranges, and blocks that reach over several of them are read again.

    Returns
    -------
    xarray.DataArray or Dataset
        With a dim named after `by` in the place of `dim`, in the order of the groups. Lazy. Sums are in float64; the
        result is of the type of `x`, if that is of floating point.

    Raises
    ------
    InputError
        If dims or statistics do not exist, or times are missing, doubled or out of order.
    MemoryLimitError
        If not even one group fits.

    Notes
    -----
    Each task goes through some blocks, one in memory at a time, those of a season of all years before the next; what
    it holds beside are the sums of its groups. The order is that of the blocks alone: so are the bits.

    Examples
    --------
    >>> time = pd.date_range("2001-01-01", "2002-12-31", freq="MS")
    >>> x = xr.DataArray(np.arange(24.0), dims="time", coords={"time": time}).chunk(time=5)
    >>> climatology(x, "month").compute().values[:3]
    array([6., 7., 8.])
    """
    if statistic not in _STATISTICS:
        raise InputError(
            f"climatology: statistic must be one of {', '.join(_STATISTICS)}, got {statistic!r}."
        )
    return each_variable(
        x, [dim], "climatology", partial(_climatology, by=by, dim=dim, statistic=statistic, memory=memory)
    )


def anomalies(
    x: Any,
    climatology: Any,
    *,
    by: xr.DataArray | None = None,
    scale: Any = None,
    dim: Hashable = "time",
    memory: int | str | None = None,
) -> Any:
    """Subtract from each time step the climatology of its group, lazily.

    Parameters
    ----------
    x : xarray.DataArray or Dataset
        Of any dims, in any chunks.
    climatology : xarray.DataArray or Dataset
        From `climatology`, of the same or of other years, lazy or computed.
    by : xarray.DataArray, optional
        The labels of the time steps, if the climatology is one of labels of your own.
    scale : xarray.DataArray or Dataset, optional
        To divide by afterwards: a climatology of the same groups with ``statistic="std"``.
    dim : str, default "time"
    memory : int or str, optional
        As in `climatology`.

    Returns
    -------
    xarray.DataArray or Dataset
        Like `x`, with its dims, coordinates and attributes, in its chunks. Lazy.

    Raises
    ------
    InputError
        If groups of `x` are not in the climatology, cells differ, or the calendars do.
    MemoryLimitError
        If the groups of one block do not fit.

    Notes
    -----
    Each block is read again when its climatology is known: nothing is held in between. What reads the anomalies several
    times also computes a lazy climatology several times: if it is small, compute it first.

    Examples
    --------
    >>> import dpipe
    >>> time = pd.date_range("2001-01-01", "2002-12-31", freq="MS")
    >>> x = xr.DataArray(np.arange(24.0), dims="time", coords={"time": time}).chunk(time=5)
    >>> anomalies(x, dpipe.fields.climatology(x, "month")).compute().values[[0, -1]]
    array([-6.,  6.])
    """

    def one(values: xr.DataArray) -> xr.DataArray:
        usual, spread = (_variable_of(given, values.name, "anomalies") for given in (climatology, scale))
        return _anomalies(values, usual, spread, by=by, dim=dim, memory=memory)

    return each_variable(x, [dim], "anomalies", one)


def _variable_of(given: Any, name: Any, who: str) -> Any:
    if given is None or isinstance(given, xr.DataArray):
        return given
    if not isinstance(given, xr.Dataset) or name not in given:
        raise InputError(f"{who}: the climatology has no variable {name!r}. Make it of the same variables.")
    return given[name]


def _labels(x: xr.DataArray, by: Any, dim: Hashable, who: str) -> xr.DataArray:
    """Give the label of each step, named."""
    ordered(x, dim, who, needed=not isinstance(by, xr.DataArray))
    if isinstance(by, xr.DataArray):
        if by.dims != (dim,) or by.name is None or by.sizes[dim] != x.sizes[dim]:
            raise InputError(
                f"{who}: labels must have a name and be along {dim!r}, of size {x.sizes[dim]}; got {by.name!r} of "
                f"dims {by.dims} and shape {by.shape}."
            )
        found = by.drop_vars(list(by.coords)).compute()
    else:
        try:
            found = getattr(x[dim].dt, by)
        except (AttributeError, TypeError) as err:
            raise InputError(
                f"{who}: {dim!r} has no part {by!r}, it is of type {x[dim].dtype}. Take one of dayofyear, month, "
                "season, hour and the like, for a coordinate of times, or give labels of your own."
            ) from err
        if not isinstance(found, xr.DataArray) or found.dims != (dim,):
            raise InputError(
                f"{who}: {by!r} is no part of a time. Take dayofyear, month, season or the like."
            )
        found = found.drop_vars(list(found.coords)).rename(by)
    if found.isnull().any():
        raise InputError(f"{who}: some labels are missing. Leave these steps out first.")
    return found


def _calendar(x: xr.DataArray, dim: Hashable) -> str | None:
    index = x.indexes.get(dim)
    if isinstance(index, pd.DatetimeIndex | xr.CFTimeIndex):
        return str(x[dim].dt.calendar)
    return None


def _climatology(x: xr.DataArray, *, by: Any, dim: Hashable, statistic: str, memory: Any) -> xr.DataArray:
    labels = _labels(x, by, dim, "climatology")
    groups, codes = np.unique(labels.values, return_inverse=True)
    grouping = _Grouping.of(x, x.get_axis_num(dim), codes, len(groups), statistic, memory)
    dims = [labels.name if name == dim else name for name in x.dims]
    kept = {name: coord for name, coord in x.coords.items() if dim not in coord.dims}
    calendar = _calendar(x, dim)
    about = {} if calendar is None else {"calendar": calendar}
    coords = {**kept, labels.name: (labels.name, groups, about)}
    attrs = attributes(x, pure=statistic == "count")
    return xr.DataArray(grouping.array(), dims=dims, coords=coords, name=x.name, attrs=attrs)


@dataclass(frozen=True)
class _Grouping:
    """How the steps of an array are gathered in groups."""

    data: da.Array
    axis: int
    codes: np.ndarray
    """Number of the group of each step."""
    n_groups: int
    statistic: str
    width: int
    """Groups that are worked on at a time."""
    lanes: int
    need: float
    """Bytes that a task takes at most."""

    @classmethod
    def of(
        cls, x: xr.DataArray, axis: int, codes: np.ndarray, n_groups: int, statistic: str, memory: Any
    ) -> "_Grouping":
        """Choose how many groups are worked on at a time, and in how many lanes."""
        each, threads = room(memory, x)
        data = x.data
        cells = math.prod(max(sizes) for i, sizes in enumerate(data.chunks) if i != axis)
        steps = max(data.chunks[axis])
        per_group = cells * (24 if statistic == "std" else 16)
        # a block is read, its values are chosen, and their sums are made, beside the state and a copy of it
        block = cells * steps * (data.dtype.itemsize * 2 + 8)
        refuse_beyond(
            block + 2 * per_group,
            each,
            threads,
            f"a block of {steps} steps of {cells:,} cells",
            f"Read smaller blocks, such as x.chunk({{{x.dims[axis]!r}: {max(1, steps // 4)}}}), or give more memory.",
            who="climatology",
        )
        lanes = lanes_of(data.numblocks[axis], n_groups * per_group)
        width = min(n_groups, (each - block) // (2 * per_group))
        columns = math.prod(n for i, n in enumerate(data.numblocks) if i != axis)
        if (
            lanes * columns < _RANGES
        ):  # few cells and many groups: several ranges are worked on beside each other
            in_block = max(len(np.unique(part)) for part in _parts(codes, data.chunks[axis]))
            width = min(width, max(2 * in_block, -(-n_groups // _RANGES)))
        return cls(data, axis, codes, n_groups, statistic, width, lanes, block + 2 * per_group * width)

    def array(self) -> da.Array:
        """Give the statistic of each group and cell."""
        axis, data = self.axis, self.data
        in_block = _parts(self.codes, data.chunks[axis])
        order = sorted(range(len(in_block)), key=lambda i: (in_block[i].min(initial=self.n_groups), i))
        lane_of = {i: number * self.lanes // len(order) for number, i in enumerate(order)}
        starts = range(0, self.n_groups, self.width)
        ranges = [np.arange(a, min(a + self.width, self.n_groups)) for a in starts]
        note = f"{counted(self.n_groups, 'group')} at a time"
        if len(ranges) > 1:
            note = (
                f"{self.n_groups:,} groups in {len(ranges):,} ranges of at most {self.width:,}: blocks that reach over "
                "several are read again"
            )
        reading = Reading.of(data, f"climatology-{tokenize(self)[:8]}", self.need, note)
        dtype = data.dtype if data.dtype.kind == "f" and self.statistic != "count" else np.dtype(np.float64)
        name = reading.token
        tasks = {}
        for column in np.ndindex(*(n for i, n in enumerate(data.numblocks) if i != axis)):
            places = [(*column[:axis], i, *column[axis:]) for i in range(data.numblocks[axis])]
            cells = tuple(data.chunks[i][places[0][i]] for i in range(data.ndim) if i != axis)
            for number, groups in enumerate(ranges):
                wanted = [i for i in order if np.isin(in_block[i], groups).any()]
                blocks = [(lane_of[i], places[i], in_block[i]) for i in wanted]
                key = f"{name}-sums-{number}-{'-'.join(map(str, column))}"
                begin = groups, cells, self.statistic == "std"
                state = fold_blocks(reading, key, Fold(GroupSums, (axis,)), begin, blocks, self.lanes)
                place = (name, *column[:axis], number, *column[axis:])
                tasks[place] = Task(place, _finished, TaskRef(state), self.statistic, axis, dtype)
        chunks = tuple(tuple(map(len, ranges)) if i == axis else sizes for i, sizes in enumerate(data.chunks))
        return reading.array(name, tasks, chunks, dtype)


def _parts(codes: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(codes, np.cumsum(sizes)[:-1])


def _finished(state: GroupSums, statistic: str, axis: int, dtype: Any) -> np.ndarray:
    return np.moveaxis(state.finished(statistic), 0, axis).astype(dtype, copy=False)


def _anomalies(
    x: xr.DataArray, usual: xr.DataArray, scale: Any, *, by: Any, dim: Hashable, memory: Any
) -> xr.DataArray:
    who = "anomalies"
    group = _group_dim(x, usual, by, dim)
    labels = _labels(x, by if by is not None else str(group), dim, who)
    _check_calendars(x, usual, group, dim)
    places = _places(labels.values, usual, group)
    others = [_beside(x, given, group, dim) for given in (usual, scale) if given is not None]
    if len(others) == 2 and others[0].chunks != others[1].chunks:
        others[1] = others[1].rechunk(others[0].chunks)
    axis = x.get_axis_num(dim)
    groups = others[0].chunks[axis]
    in_block = _parts(places, x.data.chunks[axis])
    each, threads = room(memory, x)
    cells = math.prod(max(sizes) for i, sizes in enumerate(x.data.chunks) if i != axis)
    ends = np.cumsum(groups)
    touched = [np.unique(np.searchsorted(ends, part, side="right")) for part in in_block]
    held = max(sum(groups[i] for i in which) for which in touched) * len(others)
    need = cells * (max(x.data.chunks[axis]) * (x.dtype.itemsize + 8) + held * others[0].dtype.itemsize)
    refuse_beyond(
        need,
        each,
        threads,
        f"a block of {max(x.data.chunks[axis])} steps of {cells:,} cells, with the {held} groups beside it,",
        f"Read smaller blocks, such as x.chunk({{{dim!r}: {max(1, max(x.data.chunks[axis]) // 4)}}}), or give more "
        "memory.",
        who=who,
    )
    reading = Reading.of(x.data, "anomalies", need)

    def arguments(place: tuple[int, ...]) -> tuple[Any, ...]:
        which = touched[place[axis]]
        pieces = [
            List(*(block_ref(other, (*place[:axis], int(i), *place[axis + 1 :])) for i in which))
            for other in others
        ]
        # where each step's group stands among the groups of the pieces
        firsts = np.concatenate([np.arange(ends[i] - groups[i], ends[i]) for i in which])
        return axis, np.searchsorted(firsts, in_block[place[axis]]), *pieces

    dtype = np.result_type(x.dtype, *(other.dtype for other in others))
    name = f"anomalies-{tokenize(x.data.name, [other.name for other in others], places)}"
    made = map_blocks_beside(reading, name, _less_pieces, arguments, dtype, others)
    return computed(x, made, pure=scale is not None)


def _group_dim(x: xr.DataArray, usual: xr.DataArray, by: Any, dim: Hashable) -> Hashable:
    """Find which dim of the climatology numbers the groups."""
    new = [name for name in usual.dims if name not in x.dims]
    lost = [name for name in x.dims if name not in usual.dims and name != dim]
    if len(new) != 1 or lost or dim in usual.dims:
        raise InputError(
            f"anomalies: the climatology has the dims {usual.dims}; it must have those of x, {x.dims}, with one dim of "
            f"groups in the place of {dim!r}. Make it with climatology(x, ...)."
        )
    if isinstance(by, xr.DataArray) and by.name != new[0]:
        raise InputError(
            f"anomalies: the labels are named {by.name!r}, but the climatology is by {new[0]!r}."
        )
    if new[0] not in usual.coords:
        raise InputError(f"anomalies: the climatology has no coordinate {new[0]!r} that names its groups.")
    return new[0]


def _check_calendars(x: xr.DataArray, usual: xr.DataArray, group: Hashable, dim: Hashable) -> None:
    mine, theirs = _calendar(x, dim), usual[group].attrs.get("calendar")
    same = {
        "standard": "proleptic_gregorian",
        "gregorian": "proleptic_gregorian",
    }  # they differ before 1582 only
    if mine and theirs and same.get(mine, mine) != same.get(theirs, theirs):
        raise InputError(
            f"anomalies: x has the calendar {mine!r}, but the climatology was made of {theirs!r}: their groups are not "
            f"the same days. Convert one of them: x.convert_calendar({theirs!r})."
        )


def _places(labels: np.ndarray, usual: xr.DataArray, group: Hashable) -> np.ndarray:
    index = pd.Index(usual[group].values)
    places = np.asarray(index.get_indexer(labels))
    if (places < 0).any():
        missing = pd.unique(pd.Series(labels[places < 0])).tolist()
        raise InputError(
            f"anomalies: the climatology has no {group} {', '.join(map(str, missing[:5]))}"
            f"{', ...' if len(missing) > 5 else ''}. It has {len(index)}, from {index[0]} to {index[-1]}. Make it of "
            "years that have all of them, or leave these steps out."
        )
    return places


def _beside(x: xr.DataArray, given: xr.DataArray, group: Hashable, dim: Hashable) -> da.Array:
    """Give a climatology in the order and the chunks of the cells of `x`."""
    if set(given.dims) != {group, *x.dims} - {dim}:
        raise InputError(f"anomalies: scale has the dims {given.dims}, not those of the climatology.")
    rest = [name for name in x.dims if name != dim]
    check_cells(x, given, rest, "anomalies")
    ordered_dims = [group if name == dim else name for name in x.dims]
    given = given.transpose(*ordered_dims)
    return given.chunk({name: x.chunksizes[name] for name in rest}).data


def _less_pieces(
    block: np.ndarray, axis: int, places: np.ndarray, usual: list[np.ndarray], scale: Any = None
) -> np.ndarray:
    steps = np.moveaxis(block, axis, 0)
    groups, scales = (
        None if given is None else np.moveaxis(_together(given, axis), axis, 0) for given in (usual, scale)
    )
    assert groups is not None
    return np.moveaxis(less_groups(steps, places, groups, scales), 0, axis)


def _together(pieces: list[np.ndarray], axis: int) -> np.ndarray:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=axis)
