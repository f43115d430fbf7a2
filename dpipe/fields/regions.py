"""Graphs of regions: each block of the result is made of a region of the input, wherever its blocks end.

A region is taken from as many blocks as it needs, and of each only what it needs: so windows are exact at the edges of
blocks, nothing is rechunked, and what lies in a neighbour is sent as a slice of it.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import List, Task, TaskRef

from dpipe.blocks.windows import assembled
from dpipe.fields.checks import larger_chunks, refuse_beyond, room, warn_caller
from dpipe.fields.costs import Step, steps_of, told

#: Blocks that a region may need along one dim before a warning tells of it.
_MANY_PIECES = 16

#: From where to where along an axis; several where it goes around the end.
Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Axis:
    """What the blocks of a result take along one axis of the input.

    Attributes
    ----------
    sizes : tuple of int
        The chunks of the result.
    ranges : tuple of ranges
        For each of them, what it takes of the input.
    arguments : tuple
        For each of them, what the kernel is given.
    """

    sizes: tuple[int, ...]
    ranges: tuple[Ranges, ...]
    arguments: tuple[Any, ...]

    @classmethod
    def same(cls, sizes: Sequence[int]) -> "Axis":
        """Keep the blocks as they are."""
        ends = np.cumsum(sizes).tolist()
        ranges = tuple([(end - size, end)] for end, size in zip(ends, sizes, strict=True))
        return cls(tuple(sizes), ranges, (None,) * len(ranges))


def map_regions(
    data: da.Array,
    name: str,
    axes: Sequence[Axis],
    kernel: Callable[[np.ndarray, tuple[Any, ...]], np.ndarray],
    dtype: Any,
    step: Step,
    *,
    chunks: Any = None,
    place_of: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda place: place,
) -> da.Array:
    """Make each block of a result from a region of an array, lazily.

    Parameters
    ----------
    data : dask.array.Array
    name : str
        Of the result: all keys begin with it.
    axes : sequence of Axis
        One for each axis of `data`.
    kernel : callable ``(region, arguments) -> block``
        Given the arguments of each axis.
    dtype : dtype
    step : Step
        From `check_regions`.
    chunks : tuple of tuple of int, optional
        Of the result, if it has other axes than the input.
    place_of : callable, optional
        Gives for the numbers along the axes of the input the place of the block in the result.

    Returns
    -------
    dask.array.Array
    """
    pieces = [
        [_pieces(ranges, sizes) for ranges in axis.ranges]
        for axis, sizes in zip(axes, data.chunks, strict=True)
    ]
    shapes = [[sum(b - a for a, b in ranges) for ranges in axis.ranges] for axis in axes]
    tasks: dict[Any, Any] = {}
    for place in itertools.product(*(range(len(axis.ranges)) for axis in axes)):
        shape = tuple(lengths[i] for lengths, i in zip(shapes, place, strict=True))
        taken, where = [], []
        for parts in itertools.product(*(found[i] for found, i in zip(pieces, place, strict=True))):
            block = (data.name, *(part[0] for part in parts))
            inside = tuple(part[1] for part in parts)
            where.append(tuple(part[2] for part in parts))
            taken.append(TaskRef(_piece(tasks, name, block, inside, data.chunks)))
        key = (name, *place_of(place))
        arguments = tuple(axis.arguments[i] for axis, i in zip(axes, place, strict=True))
        tasks[key] = Task(key, _on_region, kernel, arguments, shape, where, List(*taken))
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=list[Any]([data]))
    made = da.Array(graph, name, chunks or tuple(axis.sizes for axis in axes), dtype=dtype)
    return told(made, replace(step, token=name))


def _pieces(ranges: Ranges, sizes: Sequence[int]) -> list[tuple[int, tuple[int, int], slice]]:
    """Give the blocks that ranges of an axis need, what of each, and where it goes."""
    ends = np.cumsum(sizes).tolist()
    found, at = [], 0
    for start, stop in ranges:
        for i, (end, size) in enumerate(zip(ends, sizes, strict=True)):
            first, last = max(start, end - size), min(stop, end)
            if first < last:
                found.append((i, (first - (end - size), last - (end - size)), slice(at, at + last - first)))
                at += last - first
    return found


def _piece(
    tasks: dict[Any, Any], name: str, block: Any, inside: tuple[tuple[int, int], ...], chunks: Any
) -> Any:
    """Give the key of a part of a block, which is the block's own if it is all of it."""
    whole = all((a, b) == (0, sizes[i]) for (a, b), sizes, i in zip(inside, chunks, block[1:], strict=True))
    if whole:
        return block
    key = (f"{name}-of", *block[1:], *itertools.chain(*inside))
    if key not in tasks:
        tasks[key] = Task(key, _part, TaskRef(block), tuple(slice(a, b) for a, b in inside))
    return key


def _part(block: np.ndarray, inside: tuple[slice, ...]) -> np.ndarray:
    return block[inside].copy()  # a view would keep the whole block


def _on_region(
    kernel: Any, arguments: Any, shape: tuple[int, ...], where: Any, pieces: Sequence[np.ndarray]
) -> np.ndarray:
    return kernel(assembled(shape, where, pieces), arguments)


def check_regions(x: xr.DataArray, axes: Sequence[Axis], copies: float, memory: Any, who: str) -> Step:
    """Refuse regions beyond the budget, and warn of those that need very many blocks; tell what they cost.

    Parameters
    ----------
    x : xarray.DataArray
    axes : sequence of Axis
    copies : float
        Bytes that a task takes for each byte of its region.
    memory : int, str or None
    who : str

    Returns
    -------
    Step
        Its token is the name of the input; the graph gives it its own.

    Raises
    ------
    MemoryLimitError
        If a region does not fit.
    """
    each, threads = room(memory, x)
    sizes = [max(sum(b - a for a, b in ranges) for ranges in axis.ranges) for axis in axes]
    need = math.prod(sizes) * x.dtype.itemsize * copies
    refuse_beyond(
        need,
        each,
        threads,
        f"a region of shape {tuple(sizes)}",
        f"Read smaller blocks, such as x.chunk({larger_chunks(x, int(each / copies / 4))}), or give more memory.",
        who=who,
    )
    dims: list[Hashable] = []
    for dim, axis, chunks in zip(x.dims, axes, x.data.chunks, strict=True):
        if max(len(_pieces(ranges, chunks)) for ranges in (axis.ranges[0], axis.ranges[-1])) > _MANY_PIECES:
            dims.append(dim)
    for dim in dims:
        number = x.get_axis_num(dim)
        region, chunk = sizes[number], x.data.chunksize[number]
        better = min(4 * region, x.shape[number])
        warn_caller(
            f"{who}: along {dim!r} each block needs {region} elements, and the chunks hold {chunk}: very many "
            f"blocks are read for each. Read larger ones: x.chunk({{{str(dim)!r}: {better}}}).",
        )
    taken = x.dtype.itemsize * math.prod(
        sum(b - a for ranges in axis.ranges for a, b in ranges) for axis in axes
    )
    made = bool(steps_of(x.data))
    return Step(
        token=x.data.name,
        what=who,
        n_blocks=x.data.npartitions,
        nbytes=x.nbytes,
        n_read=x.data.npartitions,
        read_nbytes=x.nbytes,
        shared_nbytes=max(taken - x.nbytes, 0),
        task_nbytes=int(need),
        source="" if made else x.data.name,
    )
