"""xarray objects as rows: some dims are samples, the others, or the variables of a data set, are features.

A block is a chunk of the array along the sample dims, as it is stored: nothing is stacked or rechunked in a graph.
Only metadata is looked at here; chunks are put together inside of the tasks that need them.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import DataNode, List, Task, TaskRef
from dask.tokenize import tokenize

from dpipe.blocks.grid import Cells, GridLayout, GridRows, Missing
from dpipe.collect.loads import Graph, WholeLoad, packed_loads
from dpipe.errors import BlockMismatchError, InputError
from dpipe.sizes import format_bytes

#: Blocks of a single row smaller than this, and more of them than that, are not worth a task each.
_SMALL_NBYTES, _MANY_BLOCKS = 65_536, 100
#: What a block is better read as.
_GOOD_NBYTES = 16 * 2**20


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
        return replace(
            self, data=da.from_array(np.asarray(self.data), chunks=tuple(cut), name=tokenize(self.data))
        )


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

    @property
    def masks(self) -> bool:
        """Whether cells may be left out."""
        return self.missing != "keep" and any(v.dtype.kind in "fc" for v in self.parts)

    @property
    def row_nbytes(self) -> dict[str, int]:
        """Bytes of a row, a column each."""
        sizes = [v.dtype.itemsize for v in self.X for _ in range(v.width)]
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
        return (
            f"{kind}{held}{size}: samples {dims}, {sizes} cells a block{several}, {self.n_columns:,} features{masked}"
        )

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
        if self.masks or (columns is None and with_X) or (with_X and self.names is None):
            return layout, self.parts
        if not with_X and self.y is not None:
            return replace(layout, X=(), columns=None), self.parts[len(self.X) :]
        wanted, kept, names, places = list(columns or (0,)), [], [], {}
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

    def held_rows(self) -> GridRows:
        """Give the rows of what is in memory."""
        return self.layout.rows([[v.data] for v in self.parts])


def _read(how: Any, chunks: Any) -> Any:
    return how(chunks)


def as_samples(
    X: Any, y: Any, sample_weight: Any, sample_dims: Any, missing: Any = "all"
) -> tuple[Any, Any, Any]:
    """Take labelled arrays as rows, and leave all other data as it is.

    Parameters
    ----------
    X : xarray.DataArray or Dataset, or other data
    y, sample_weight : xarray.DataArray or str, optional
    sample_dims : str or sequence of str, or None
        Which dims of X are samples; None for other data.
    missing : {"all", "any", "keep"}
        Which samples are left out.

    Returns
    -------
    tuple
        X, y and the weights; those of labelled arrays are one `Grid`, and None.

    Raises
    ------
    InputError
        If `sample_dims` is not given for labelled arrays, or given for other data.
    """
    if isinstance(X, Grid):
        return X, y, sample_weight
    if isinstance(X, xr.DataArray | xr.Dataset):
        return open_grid(X, y, sample_weight, sample_dims, missing), None, None
    if sample_dims is not None:
        raise InputError(
            f"sample_dims={sample_dims!r} is for xarray objects, but X is a {type(X).__name__}, whose rows are its "
            "samples. Leave it out."
        )
    return X, y, sample_weight


def open_grid(X: Any, y: Any, sample_weight: Any, sample_dims: Any, missing: Any = "all") -> Grid:
    """Take a labelled array, its target and weights, and check them by their metadata.

    Parameters
    ----------
    X : xarray.DataArray or Dataset
        Chunked (Dask) or in memory. All variables of a data set have the sample dims; what other dims there are, and
        the variables, are features.
    y : xarray.DataArray or str, optional
        With the sample dims, and one more for several targets; a str is the name of a variable of X, which is then
        taken out of X.
    sample_weight : xarray.DataArray or str, optional
        With some of the sample dims: a weight for each latitude holds for all cells of it.
    sample_dims : str or sequence of str
    missing : {"all", "any", "keep"}
        Leave out samples that lack all features, or any, or none; and, but for "keep", those without target.

    Raises
    ------
    InputError
        If dims, types or names do not do.
    BlockMismatchError
        If sizes, chunks or coordinates of X, y and the weights differ.
    """
    dims = _checked_dims(X, sample_dims)
    if missing not in ("all", "any", "keep"):
        raise InputError(
            f'missing={missing!r}: leave out samples that lack "all" features, "any" feature, or "keep" all samples.'
        )
    X, y = _taken_out(X, y, "y")
    X, w = _taken_out(X, sample_weight, "sample_weight")
    arrays = _arrays_of(X, dims)
    variables = [_variable(array, str(name), dims) for name, array in arrays.items()]
    names = None if isinstance(X, xr.DataArray) else tuple(_column_names(arrays, dims))
    target = None if y is None else _beside(X, y, "y", dims)
    weights = None if w is None else _beside(X, w, "sample_weight", dims)
    reference = next((v for v in variables if v.is_lazy), None)
    if reference is not None:
        chunks = _chunks_along(reference)
        variables = [_agreeing(v.chunked(chunks), chunks, dims, reference.name) for v in variables]
        target = target and _agreeing(target.chunked(chunks), chunks, dims, "X")
        weights = weights and _agreeing(weights.chunked(chunks), chunks, dims, "X")
    elif any(v is not None and v.is_lazy for v in (target, weights)):
        raise BlockMismatchError(
            "X is in memory, but y or sample_weight is chunked. Load those, too (.load()), or chunk X (.chunk())."
        )
    grid = Grid(tuple(variables), target, weights, dims, names, missing)
    _check_size(grid)
    return grid


def _checked_dims(X: Any, sample_dims: Any) -> tuple[Any, ...]:
    present = tuple(X.dims)
    listed = ", ".join(map(repr, present)) or "none"
    if sample_dims is None:
        example = tuple(present[:-1] if isinstance(X, xr.DataArray) and len(present) > 1 else present)
        raise InputError(
            f"X is an xarray {type(X).__name__} with the dims {listed}: say which of them are samples, as by "
            f"sample_dims={example!r}. The others, or the variables of a Dataset, are features."
        )
    dims = (sample_dims,) if isinstance(sample_dims, str) else tuple(sample_dims)
    unknown = [dim for dim in dims if dim not in present]
    if unknown:
        raise InputError(
            f"sample_dims: X has no dim {', '.join(map(repr, unknown))}. Its dims are: {listed}."
        )
    if not dims or len(set(dims)) < len(dims):
        raise InputError(f"sample_dims={sample_dims!r} must name at least one dim, each once: {listed}.")
    return dims


def _taken_out(X: Any, name: Any, role: str) -> tuple[Any, Any]:
    """Take the target or the weights out of a data set by their name."""
    if not isinstance(name, str):
        return X, name
    if not isinstance(X, xr.Dataset) or name not in X.data_vars:
        has = ", ".join(map(repr, X.data_vars)) if isinstance(X, xr.Dataset) else "no variables"
        raise InputError(f"{role}={name!r} is no variable of X, which has: {has}.")
    return X.drop_vars(name), X[name]


def _arrays_of(X: Any, dims: tuple[Any, ...]) -> dict[Any, xr.DataArray]:
    """Give the arrays of X, checked."""
    if isinstance(X, xr.DataArray):
        name = "X" if X.name is None else X.name
        if len(X.dims) == len(dims):
            raise InputError(
                f"All dims of X are samples ({', '.join(map(repr, dims))}), so that it has no features. Leave one out "
                f"of sample_dims, or make its values a feature: X.to_dataset(name={str(name)!r})."
            )
        return {name: X}
    if not X.data_vars:
        raise InputError("X has no data variables left. Choose at least one feature.")
    for name, array in X.data_vars.items():
        lacks = [dim for dim in dims if dim not in array.dims]
        if lacks:
            raise InputError(
                f"{name!r} lacks the dim {', '.join(map(repr, lacks))} of sample_dims; it has "
                f"{', '.join(map(repr, array.dims)) or 'none'}. Leave it out (X.drop_vars({name!r})), or repeat its "
                "values: X.assign({name}=X.{name}.broadcast_like(...)).".replace("{name}", str(name))
            )
    return dict(X.data_vars)


def _variable(
    array: xr.DataArray, name: str, dims: tuple[Any, ...], kinds: str = "biuf", what: str = "X"
) -> Variable:
    if array.dtype.kind not in kinds:
        raise InputError(
            f"{name!r} of {what} is of type {array.dtype}; it must hold numbers. Convert it first (.astype), or leave "
            "it out."
        )
    data = array.variable._data
    if not isinstance(data, da.Array):
        if not isinstance(data, np.ndarray):
            data = _in_memory(array, name)
        data = np.asarray(data)
    axes = tuple(array.dims.index(dim) if dim in array.dims else None for dim in dims)
    found = Variable(name, data, tuple(array.dims), axes)
    if any(math.isnan(array.shape[axis]) for axis in found.rest):
        raise InputError(f"{name!r} of {what} has features of unknown number. Build it with a known one.")
    return found


def _in_memory(array: xr.DataArray, name: str) -> Any:
    """Refuse an array that is neither in memory nor chunked: looking at it would load it whole."""
    if not array.variable._in_memory:
        raise InputError(
            f"{name!r} is opened lazily but is not chunked: any look at it would load it whole. Open it with chunks={{}}, "
            "for the chunks that are stored, or call .chunk()."
        )
    return array.data


def _column_names(arrays: dict[Any, xr.DataArray], dims: tuple[Any, ...]) -> Iterator[str]:
    """Name the columns of a data set: the variable, and where along its other dims."""
    seen: set[str] = set()
    for name, array in arrays.items():
        rest = [dim for dim in array.dims if dim not in dims]
        labels = [_labels(array, dim) for dim in rest]
        for place in product(*labels):
            where = ", ".join(f"{dim}={label}" for dim, label in zip(rest, place, strict=True))
            column = f"{name}[{where}]" if rest else str(name)
            if column in seen:
                raise InputError(
                    f"Two features would be named {column!r}: the coordinates {', '.join(map(repr, rest))} hold "
                    "values twice. Make them unique, as by X.drop_duplicates(...)."
                )
            seen.add(column)
            yield column


def _labels(array: xr.DataArray, dim: Any) -> list[str]:
    if dim not in array.indexes:
        return [str(i) for i in range(array.sizes[dim])]
    return [str(label) for label in array.indexes[dim]]


def _beside(X: Any, values: Any, role: str, dims: tuple[Any, ...]) -> Variable:
    """Check what stands beside X: its dims, sizes and coordinates."""
    if not isinstance(values, xr.DataArray):
        raise InputError(
            f"X is an xarray object, but {role} is a {type(values).__name__}. Give {role} as a DataArray with dims of X, "
            "or as the name of a variable of a Dataset."
        )
    lacks = [dim for dim in dims if dim not in values.dims]
    rest = [dim for dim in values.dims if dim not in dims]
    if role == "y" and (lacks or len(rest) > 1):
        said = f"lacks {', '.join(map(repr, lacks))}" if lacks else "has several others"
        raise InputError(
            f"y has the dims {_listed(values.dims)}, which {said}. It must have those of sample_dims, {_listed(dims)}, in "
            "any order, and at most one more, for several targets."
        )
    if role != "y" and (rest or len(lacks) == len(dims)):
        raise InputError(
            f"{role} has the dims {_listed(values.dims)}; it must have some of sample_dims, {_listed(dims)}, and no "
            "others."
        )
    for dim in values.dims:
        if dim in dims:
            _check_coordinate(X, values, dim, role)
    # labels may be texts, but weights are numbers
    return _variable(values, role, dims, kinds="biufOUS" if role == "y" else "biuf", what="the arguments")


def _listed(dims: Sequence[Any]) -> str:
    return ", ".join(map(repr, dims)) or "none"


def _check_coordinate(X: Any, values: xr.DataArray, dim: Any, role: str) -> None:
    ours, theirs = X.sizes[dim], values.sizes[dim]
    if ours != theirs and not (math.isnan(ours) or math.isnan(theirs)):
        raise BlockMismatchError(
            f"X has {ours:,} cells along {dim!r}, but {role} has {theirs:,}. Take those that both have: "
            f'xarray.align(X, {role}, join="inner").'
        )
    if dim not in X.indexes or dim not in values.indexes or X.indexes[dim].equals(values.indexes[dim]):
        return
    mine, other = X.indexes[dim], values.indexes[dim]
    i = next((i for i, pair in enumerate(zip(mine, other, strict=True)) if pair[0] != pair[1]), 0)
    raise BlockMismatchError(
        f"The coordinate {dim!r} of X and of {role} differ: at place {i}, {mine[i]} and {other[i]}. Take the cells "
        f'that both have, xarray.align(X, {role}, join="inner"), or, if they are the same cells, '
        f"{role}.assign_coords({dim}=X[{dim!r}])."
    )


def _chunks_along(reference: Variable) -> list[tuple[Any, ...]]:
    return [reference.data.chunks[axis] for axis in reference.sample_axes if axis is not None]


def _agreeing(v: Variable, chunks: Sequence[tuple[Any, ...]], dims: tuple[Any, ...], like: str) -> Variable:
    """Check that a variable has the chunks of the others along the sample dims."""
    for axis, dim, sizes in zip(v.sample_axes, dims, chunks, strict=True):
        if axis is None:
            continue
        own = v.data.chunks[axis]
        known = not any(map(math.isnan, (*own, *sizes)))
        if len(own) != len(sizes) or (known and own != sizes):
            raise BlockMismatchError(
                f"{v.name} has other chunks along {dim!r} than {like}: {_few(own)} instead of {_few(sizes)}. Chunk it "
                f"alike, as by {v.name}.chunk({{{dim!r}: {like}.chunksizes[{dim!r}]}}), or open both with the same chunks."
            )
    return v


def _few(chunks: Sequence[Any]) -> str:
    return (
        str(tuple(chunks))
        if len(chunks) <= 6
        else f"({', '.join(map(str, chunks[:5]))}, ... {len(chunks)} chunks)"
    )


def _check_size(grid: Grid) -> None:
    """Warn of chunks so small that the work of a block is lost in what surrounds it."""
    if not grid.is_lazy:
        return
    per_row = sum(grid.row_nbytes.values())
    cells = [n for n in grid.cells if n is not None]
    small = max(cells, default=0) == 1 and per_row < _SMALL_NBYTES
    if not small or len(grid.blocks) < _MANY_BLOCKS:
        return
    wanted, sizes = max(_GOOD_NBYTES // per_row, 1), {}
    for dim, chunks in zip(reversed(grid.sample_dims), reversed(grid.chunks), strict=True):
        sizes[dim] = min(int(sum(chunks)), wanted)
        wanted = max(wanted // max(sizes[dim], 1), 1)
    warnings.warn(
        f"X has {len(grid.blocks):,} chunks of one sample and {format_bytes(per_row)} each: reading them takes far "
        f"longer than the work on them. X.chunk({sizes}) reads many at a time; to have it for good, write the store "
        "anew with these chunks.",
        stacklevel=6,
    )
