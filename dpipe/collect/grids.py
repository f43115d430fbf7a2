"""xarray objects as rows: some dims are samples, the others, or the variables of a data set, are features.

A block is a chunk of the array along the sample dims, as it is stored: nothing is stacked or rechunked in a graph.
Only metadata is looked at here; chunks are put together inside of the tasks that need them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import DataNode, List, Task, TaskRef
from dask.tokenize import tokenize

from dpipe.blocks.grid import Cells, GridLayout, GridRows, Missing
from dpipe.collect.loads import Graph, WholeLoad, packed_loads
from dpipe.errors import InputError
from dpipe.sizes import format_bytes


@dataclass(frozen=True)
class Variable:
    """One array of a grid: a variable of X, the target, or the weights."""

    name: str
    data: Any
    """A Dask array, or one in memory."""
    dims: tuple[Any, ...]
    sample_axes: tuple[int | None, ...]
    """Its axis of each sample dim; None where it lacks one."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type, in the native byte order."""
        return np.dtype(self.data.dtype).newbyteorder("=")

    @property
    def rest(self) -> tuple[int, ...]:
        """Axes that are no samples: features, or several targets."""
        return tuple(axis for axis in range(len(self.dims)) if axis not in self.sample_axes)

    @property
    def ndim(self) -> int:
        """Dimensions of its rows: 1, or 2 with features or several targets."""
        return 1 + bool(self.rest)

    @property
    def shape(self) -> tuple[float, ...]:
        """Shape of its rows; NaN for a number that is not known."""
        rows = math.prod(self.data.shape[axis] for axis in self.sample_axes if axis is not None)
        return (rows, self.width) if self.rest else (rows,)

    @property
    def width(self) -> int:
        """Columns that it makes."""
        return math.prod(int(self.data.shape[axis]) for axis in self.rest)

    @property
    def is_lazy(self) -> bool:
        """Whether it is a Dask array."""
        return isinstance(self.data, da.Array)

    @property
    def n_reads(self) -> int:
        """Stored chunks of one block."""
        return math.prod(self.data.numblocks[axis] for axis in self.rest) if self.is_lazy else 1

    @cached_property
    def cells(self) -> Cells:
        """How its chunks become columns."""
        order = (*(axis for axis in self.sample_axes if axis is not None), *self.rest)
        absent = tuple(i for i, axis in enumerate(self.sample_axes) if axis is None)
        sizes = tuple(int(self.data.shape[axis]) for axis in self.rest)
        chunks = [self.data.chunks[axis] if self.is_lazy else (self.data.shape[axis],) for axis in self.rest]
        ends = [np.cumsum(sizes_of).tolist() for sizes_of in chunks]
        slices = [
            [slice(end - size, end) for end, size in zip(*pair, strict=True)]
            for pair in zip(ends, chunks, strict=True)
        ]
        return Cells(order, absent, sizes, tuple(product(*slices)))

    def keys(self, block: tuple[int, ...]) -> Iterator[Any]:
        """Name its chunks of one block, which is counted along each sample dim."""
        index = [0] * len(self.dims)
        for axis, i in zip(self.sample_axes, block, strict=True):
            if axis is not None:
                index[axis] = i
        for places in product(*(range(self.data.numblocks[axis]) for axis in self.rest)):
            for axis, i in zip(self.rest, places, strict=True):
                index[axis] = i
            yield (self.data.name, *index)

    def chunked(self, chunks: Sequence[tuple[Any, ...]]) -> "Variable":
        """Cut what is in memory as the others are chunked."""
        if self.is_lazy:
            return self
        cut: list[Any] = list(self.data.shape)
        for axis, sizes in zip(self.sample_axes, chunks, strict=True):
            if axis is not None:
                cut[axis] = sizes
        if any(isinstance(size, tuple) and any(map(math.isnan, size)) for size in cut):
            raise InputError(
                f"{self.name} is in memory, and X has chunks of unknown size: it cannot be cut as they are. Give both "
                "as Dask arrays."
            )
        return replace(self, data=da.from_array(np.asarray(self.data), chunks=tuple(cut)))


@dataclass(frozen=True, eq=False)
class Grid:
    """X, target and weights of labelled arrays, as blocks of rows."""

    X: tuple[Variable, ...]
    y: Variable | None
    w: Variable | None
    sample_dims: tuple[Any, ...]
    names: tuple[str, ...] | None
    """Columns of the variables of a data set; None for a DataArray, which gives a matrix without names."""
    missing: Missing
    labels: Mapping[Any, Any] = field(default_factory=dict)
    """Coordinates of the dims of features, where they have some."""

    def __dask_tokenize__(self) -> Any:
        """Stand for its arrays."""
        parts = [(v.data, v.dims, v.sample_axes) for v in self.parts]
        return "dpipe-grid", [tokenize(part) for part in parts], self.sample_dims, self.names, self.missing

    @property
    def parts(self) -> tuple[Variable, ...]:
        """All variables: of X, then the target and the weights."""
        return (*self.X, *(v for v in (self.y, self.w) if v is not None))

    @property
    def is_lazy(self) -> bool:
        """Whether there is anything to read."""
        return self.X[0].is_lazy

    @property
    def n_columns(self) -> int:
        """Columns of X."""
        return sum(v.width for v in self.X)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a matrix of X."""
        return np.result_type(*(v.dtype for v in self.X))

    @property
    def frame(self) -> pd.DataFrame | None:
        """An empty frame with the columns of a data set."""
        if self.names is None:
            return None
        dtypes = [v.dtype for v in self.X for _ in range(v.width)]
        return pd.DataFrame(
            {name: np.empty(0, dtype=dtype) for name, dtype in zip(self.names, dtypes, strict=True)}
        )

    def told(self, columns: Sequence[int]) -> str:
        """Say which features some positions are: their number, and where the first one lies."""
        v, place = self.X[0], int(columns[0])
        if self.names is not None:
            where = self.names[place]
        else:
            dims = [v.dims[axis] for axis in v.rest]
            index = np.unravel_index(place, [int(v.data.shape[axis]) for axis in v.rest])
            at = (
                self.labels[dim][i] if dim in self.labels else i for dim, i in zip(dims, index, strict=True)
            )
            where = ", ".join(f"{dim}={value}" for dim, value in zip(dims, at, strict=True))
        return (
            f"It is {len(columns):,} of {self.n_columns:,} features, the first at {where}. Features that are missing "
            "in every sample, as land in a field of the sea, are left out by a VarianceThreshold() before it."
        )

    @property
    def masks(self) -> bool:
        """Whether cells may be left out."""
        return self.missing != "keep" and any(v.dtype.kind in "fc" for v in self.parts)

    @property
    def row_nbytes(self) -> dict[str, int]:
        """Bytes of a row, a column each."""
        sizes = [size for v in self.X for size in [v.dtype.itemsize] * v.width]
        names = self.names or tuple(f"x{j}" for j in range(len(sizes)))
        return dict(zip(names, sizes, strict=True))

    @property
    def chunks(self) -> tuple[tuple[Any, ...], ...]:
        """Sizes of the chunks along each sample dim."""
        first = self.X[0]
        assert all(axis is not None for axis in first.sample_axes)
        axes = [axis for axis in first.sample_axes if axis is not None]
        if not first.is_lazy:
            return tuple((first.data.shape[axis],) for axis in axes)
        return tuple(first.data.chunks[axis] for axis in axes)

    @property
    def blocks(self) -> list[tuple[int, ...]]:
        """Number of each block along each sample dim, in the order of the blocks."""
        return list(product(*(range(len(sizes)) for sizes in self.chunks)))

    @property
    def cells(self) -> tuple[int | None, ...]:
        """Cells of each block; None where that is not known."""
        found = [math.prod(sizes) for sizes in product(*self.chunks)]
        return tuple(None if math.isnan(n) else int(n) for n in found)

    @property
    def rows(self) -> tuple[int | None, ...]:
        """Rows of each block, where no cell can be left out."""
        return (None,) * len(self.cells) if self.masks else self.cells

    @property
    def layout(self) -> GridLayout:
        """How a block is put together."""
        y, w = (None if v is None else v.cells for v in (self.y, self.w))
        return GridLayout(tuple(v.cells for v in self.X), self.names, y, w, self.missing)

    @property
    def says(self) -> str:
        """What it is, for a plan."""
        kind = "an xarray DataArray" if self.names is None else "an xarray Dataset"
        held = "" if self.is_lazy else " in memory"
        dims = " x ".join(map(str, self.sample_dims))
        sizes = " x ".join(
            "?" if any(map(math.isnan, each)) else f"{max(each, default=0):,}" for each in self.chunks
        )
        known = [n for n in self.cells if n is not None]
        total = sum(known) * sum(self.row_nbytes.values())
        size = f", {format_bytes(total)}" if len(known) == len(self.cells) else ""
        reads = sum(v.n_reads for v in self.X)
        several = f", {reads:,} stored chunks read for each" if reads > len(self.X) else ""
        left = {"all": "cells without data are left out", "any": "cells with a gap are left out"}
        masked = f"; {left[self.missing]}" if self.masks else ""
        cells = f"{sizes} cells a block{several}"
        return f"{kind}{held}{size}: samples {dims}, {cells}, {self.n_columns:,} features{masked}"

    def loads(self, columns: Sequence[int] | None, *, with_X: bool) -> tuple[Graph, list[WholeLoad]]:
        """Give what loads each block, and the tasks that several of them share."""
        layout, parts = self.reading(columns, with_X=with_X)
        packed = self.array_of(layout, parts, "dpipe-grid")
        return packed_loads(packed, (True, self.y is not None, self.w is not None))

    def reading(
        self, columns: Sequence[int] | None, *, with_X: bool = True
    ) -> tuple[GridLayout, tuple[Variable, ...]]:
        """Choose the variables that must be read for some columns; all of them tell which cells are left out."""
        layout = self.layout.with_columns(columns)
        reads_X = with_X or self.y is None
        if self.masks or (reads_X and (columns is None or self.names is None)):
            return layout, self.parts
        if not reads_X:
            return replace(layout, X=(), columns=None), self.parts[len(self.X) :]
        wanted = list(columns or (0,))
        kept: list[Variable] = []
        names: list[str] = []
        places: dict[int, int] = {}
        start = 0
        for v in self.X:
            own = range(start, start + v.width)
            if any(j in own for j in wanted):
                places |= {j: len(names) + j - start for j in own}
                names += [] if self.names is None else self.names[start : own.stop]
                kept.append(v)
            start = own.stop
        chosen = tuple(places[j] for j in wanted)
        layout = replace(layout, X=tuple(v.cells for v in kept), names=tuple(names), columns=chosen)
        return layout, (*kept, *self.parts[len(self.X) :])

    def array_of(self, read: Any, parts: Sequence[Variable], prefix: str) -> da.Array:
        """Give an array with an element of any kind for each block: what `read` makes of its chunks."""
        name = f"{prefix}-{tokenize(self, read, [v.name for v in parts])}"
        held = f"{name}-how"
        tasks: Graph = {held: DataNode(held, read)}
        for i, block in enumerate(self.blocks):
            chunks = List(*(List(*map(TaskRef, v.keys(block))) for v in parts))
            tasks[(name, i)] = Task((name, i), _read, TaskRef(held), chunks)
        graph = HighLevelGraph.from_collections(name, tasks, dependencies=[v.data for v in parts])
        sizes = ((1,) * len(self.blocks),)
        return da.Array(graph, name, sizes, dtype=object, meta=np.empty(0, dtype=object))

    def mapped(self, make: Any, dtype: np.dtype[Any], width: int | None, prefix: str) -> Any:
        """Give what is made of each block in its place: sample dims, then `width` columns if there are any.

        Lazy where X is; at once for what is in memory.
        """
        if not self.is_lazy:
            return make([[v.data] for v in self.X])
        name = f"{prefix}-{tokenize(self, make)}"
        held = f"{name}-how"
        last = () if width is None else (0,)
        tasks: Graph = {held: DataNode(held, make)}
        for block in self.blocks:
            chunks = List(*(List(*map(TaskRef, v.keys(block))) for v in self.X))
            key = (name, *block, *last)
            tasks[key] = Task(key, _read, TaskRef(held), chunks)
        graph = HighLevelGraph.from_collections(name, tasks, dependencies=[v.data for v in self.X])
        sizes = (*self.chunks, *(() if width is None else ((width,),)))
        return da.Array(graph, name, sizes, dtype=dtype, meta=np.empty((0,) * len(sizes), dtype=dtype))

    def held_rows(self) -> GridRows:
        """Give the rows of what is in memory."""
        return self.layout.rows([[v.data] for v in self.parts])


def _read(how: Any, chunks: Any) -> Any:
    return how(chunks)
