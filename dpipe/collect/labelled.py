"""Labelled arrays, their target and weights, checked by their metadata: dims, types, coordinates, chunks."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from dpipe.collect.grids import Grid, Variable
from dpipe.errors import BlockMismatchError, InputError
from dpipe.sizes import format_bytes

#: Blocks of a single row smaller than this, and more of them than that, are not worth a task each.
_SMALL_NBYTES, _MANY_BLOCKS = 65_536, 100
#: What a block is better read as.
_GOOD_NBYTES = 16 * 2**20


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
        With the sample dims; each place along other dims is a target, in their order. A str is the name of a variable
        of X, which is then taken out of X.
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
    if not any(v.width for v in variables):
        empty = sorted({str(v.dims[axis]) for v in variables for axis in v.rest if not v.data.shape[axis]})
        raise InputError(
            f"X has no features: there is nothing along {', '.join(map(repr, empty))}. Select at least one."
        )
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
    labels = {dim: index for dim, index in X.indexes.items() if dim not in dims}
    grid = Grid(tuple(variables), target, weights, dims, names, missing, labels)
    _check_size(grid)
    return grid


def beside_grid(grid: Grid, values: xr.DataArray) -> Grid:
    """Put values of some sample dims, and of any others, in the place of the weights.

    Raises
    ------
    BlockMismatchError
        If they are chunked otherwise than X.
    """
    axes = tuple(values.dims.index(dim) if dim in values.dims else None for dim in grid.sample_dims)
    found = Variable("sample_weight", values.data, tuple(values.dims), axes)
    if grid.is_lazy:
        chunks = list(grid.chunks)
        found = _agreeing(found.chunked(chunks), chunks, grid.sample_dims, "X")
    return replace(grid, w=found)


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
            f"{name!r} is opened lazily but is not chunked: any look at it would load it whole. Open it "
            "with chunks={}, for the chunks that are stored, or call .chunk()."
        )
    return array.data


def needed_variables(X: Any, names: Iterable[str] | None, beside: Iterable[Any] = ()) -> Any:
    """Choose the variables of a data set that make some features, and others by name; the rest may be unusable.

    Parameters
    ----------
    X : xarray.Dataset or other data
        What is no data set is given back as it is.
    names : iterable of str, optional
        Of features; None for all.
    beside : iterable
        Names of a target and of weights; what is no text is left out.
    """
    if names is None or not isinstance(X, xr.Dataset):
        return X
    names = set(names)
    wanted = names | {name.partition("[")[0] for name in names}
    wanted |= {name for name in beside if isinstance(name, str)}
    chosen = [name for name in X.data_vars if str(name) in wanted]
    return X[chosen] if chosen else X


def feature_names(X: Any, sample_dims: tuple[Any, ...]) -> list[str]:
    """Name the features of an array ("x0" and so on), or of the variables of a data set; reads nothing."""
    if isinstance(X, xr.DataArray):
        return [f"x{j}" for j in range(math.prod(X.sizes[d] for d in X.dims if d not in sample_dims))]
    return list(_column_names(dict(X.data_vars), sample_dims))


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
            f"X is an xarray object, but {role} is a {type(values).__name__}. Give {role} as a DataArray with dims "
            "of X, or as the name of a variable of a Dataset."
        )
    lacks = [dim for dim in dims if dim not in values.dims]
    rest = [dim for dim in values.dims if dim not in dims]
    if role == "y" and lacks:
        raise InputError(
            f"y has the dims {_listed(values.dims)}, which lacks {_listed(lacks)}. It must have those of sample_dims, "
            f"{_listed(dims)}, in any order; others are for several targets."
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
                f"alike, as by {v.name}.chunk({{{dim!r}: {like}.chunksizes[{dim!r}]}}), or open both with the same "
                "chunks."
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
    n_chunks = len(grid.blocks) * sum(v.n_reads for v in grid.X)
    several = max(v.n_reads for v in grid.X) > 1
    small = max(cells, default=0) == 1 and per_row < _SMALL_NBYTES
    if not small or n_chunks < _MANY_BLOCKS:
        return
    wanted = max(_GOOD_NBYTES // per_row, 1)
    sizes = {v.dims[axis]: int(v.data.shape[axis]) for v in grid.X for axis in v.rest} if several else {}
    for dim, chunks in zip(reversed(grid.sample_dims), reversed(grid.chunks), strict=True):
        sizes[dim] = min(int(sum(chunks)), wanted)
        wanted = max(wanted // max(sizes[dim], 1), 1)
    warnings.warn(
        f"X has {n_chunks:,} chunks of {'part of ' if several else ''}one sample and "
        f"{format_bytes(per_row * len(grid.blocks) / n_chunks)} each: reading them takes far longer than the work on "
        f"them. X.chunk({sizes}) reads many at a time; to have it for good, write it anew: "
        f"dpipe.rechunk(X, 'new.zarr', chunks={sizes}).",
        stacklevel=6,
    )
