"""What was predicted for patches, back on their grid."""

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import List, Task, TaskRef
from dask.tokenize import tokenize

from dpipe.blocks.patches import Overlaps, tapered
from dpipe.errors import InputError
from dpipe.fields.checks import refuse_beyond, room, sizes_of
from dpipe.fields.costs import Step, steps_of, told
from dpipe.fields.passes import starts_of


def unpatch(
    patches: Any,
    like: xr.DataArray | xr.Dataset,
    *,
    size: Mapping[Hashable, int] | None = None,
    weights: str = "uniform",
    combine: str | None = None,
    memory: int | str | None = None,
) -> Any:
    """Put patches, or what was predicted for them, back on their grid, lazily.

    Parameters
    ----------
    patches : xarray.DataArray or Dataset
        With the dim ``patch`` and the origins that `patches` gave: all of them or some, in any order. What has one
        value for each patch holds for all of its cells; a dim ``output``, as of an estimator with a target for each
        cell of a patch, is taken apart.
    like : xarray.DataArray or Dataset
        The field that was cut, or another one with its coordinates: coordinates and chunks are taken of it, no values.
    size : mapping of str to int, optional
        Cells of a patch along dims that `patches` no longer has; by default what the origins remember.
    weights : {"uniform", "tapered"}, default "uniform"
        What a patch counts where several overlap: the same in all of its cells, or, by squared sines, most in its
        middle.
    combine : {"mean", "vote"}, optional
        Take the mean where patches overlap, or the value that has most of the weight, of several such the smallest;
        by default a vote for integers, texts and maps of classes, else the mean.
    memory : int or str, optional
        As in `patches`.

    Returns
    -------
    xarray.DataArray or Dataset
        In the chunks of `like`, lazy. Missing values have no weight, and cells that no patch covers are missing: NaN,
        or an empty text. Where all patches agree the value is theirs, bit by bit; else the last bits of a mean depend
        on the weights, but never on the order or the blocks of the patches.

    Raises
    ------
    InputError
        If origins or sizes are missing, or patches do not lie on the grid.
    MemoryLimitError
        If a block of the grid, with its patches, does not fit.

    Examples
    --------
    >>> import dpipe
    >>> x = xr.DataArray(np.arange(7.0), dims="lat", coords={"lat": np.arange(10, 17)}).chunk(lat=4)
    >>> windows = dpipe.fields.patches(x, {"lat": 3}, overlap=1)
    >>> unpatch(windows, x).equals(x)
    True
    >>> unpatch(windows.mean("lat"), x).values.tolist()
    [1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0]
    """
    if weights not in ("uniform", "tapered"):
        raise InputError(f"unpatch: weights must be uniform or tapered, got {weights!r}.")
    if combine not in (None, "mean", "vote"):
        raise InputError(f"unpatch: combine must be mean or vote, got {combine!r}.")
    if not isinstance(like, xr.DataArray | xr.Dataset):
        raise InputError(f"unpatch: like must be the field that was cut, got a {type(like).__name__}.")
    back = partial(_unpatch, like=like, size=size, weights=weights, combine=combine, memory=memory)
    if isinstance(patches, xr.DataArray):
        return back(patches)
    if not isinstance(patches, xr.Dataset) or "patch" not in patches.dims:
        raise InputError(
            f"unpatch takes an xarray.DataArray or Dataset with the dim 'patch', got a {type(patches).__name__}."
        )
    cut_ones = {name: values for name, values in patches.data_vars.items() if "patch" in values.dims}
    rest = {name: values for name, values in patches.data_vars.items() if name not in cut_ones}
    return xr.Dataset({**{name: back(each) for name, each in cut_ones.items()}, **rest}, attrs=patches.attrs)


def _unpatch(
    given: xr.DataArray, *, like: Any, size: Any, weights: str, combine: str | None, memory: Any
) -> xr.DataArray:
    if "patch" not in given.dims:
        raise InputError(
            f"unpatch: there is no dim 'patch'. The array has: {', '.join(map(repr, given.dims))}."
        )
    if given.dtype.kind not in "fiubU" or (combine == "mean" and given.dtype.kind == "U"):
        raise InputError(
            f"unpatch: values of type {given.dtype} cannot be put together. Give numbers, such as probabilities, or "
            "texts of fixed width for a vote."
        )
    sizes = _sizes(given, like, size)
    starts = np.stack([_starts(given, like, dim, n) for dim, n in sizes.items()], axis=1)
    rest = [dim for dim in given.dims if dim != "patch" and dim not in sizes]
    values = _windowed(given, sizes, rest)
    rest = [dim for dim in rest if not _is_flat(given, sizes, dim)]
    vote = combine == "vote" or (
        combine is None and (given.dtype.kind != "f" or "flag_values" in given.attrs)
    )
    text = given.dtype.kind == "U"
    how = Overlaps(
        tuple(sizes.values()),
        vote,
        tuple(map(tapered, sizes.values())) if weights == "tapered" else None,
        given.dtype if text else np.result_type(given.dtype, np.float32),
        "" if text else np.nan,
    )
    known = _known_chunks(like)
    chunks = tuple(known.get(dim, (like.sizes[dim],)) for dim in sizes)
    made = _put_back(given, values, starts, chunks, how, memory)
    coords = {name: coord for name, coord in like.coords.items() if set(coord.dims) <= set(sizes)}
    coords |= {name: coord for name, coord in given.coords.items() if set(coord.dims) <= set(rest)}
    found = xr.DataArray(made, dims=(*sizes, *rest), coords=coords, name=given.name, attrs=given.attrs)
    found.encoding = given.encoding if vote else {}
    order = [dim for dim in like.dims if dim in found.dims]
    return found.transpose(*order, *(dim for dim in rest if dim not in order))


def _known_chunks(like: Any) -> Mapping[Any, tuple[int, ...]]:
    try:
        return like.chunksizes
    except ValueError as err:
        raise InputError(f"unpatch: like has variables in different chunks: {err} Pass one of them.") from err


def _sizes(given: xr.DataArray, like: Any, size: Any) -> dict[Hashable, int]:
    """Find the dims that were cut, in the order of the grid, and the size of a patch along each."""
    dims = [dim for dim in like.dims if f"{dim}_origin" in given.coords]
    if not dims:
        raise InputError(
            "unpatch: the patches have no origins on the dims of like, such as the coordinate "
            f"'{next(iter(like.dims), 'lat')}_origin'. Take them from dpipe.fields.patches: "
            "predictions.assign_coords(lat_origin=patches.lat_origin)."
        )
    asked = {} if size is None else sizes_of(size, dims, "size", "unpatch")
    found = {}
    for dim in dims:
        origin = given[f"{dim}_origin"]
        if origin.dims != ("patch",):
            raise InputError(
                f"unpatch: {dim}_origin must be along 'patch' only, it has the dims {origin.dims}."
            )
        known = given.sizes.get(dim, asked.get(dim, origin.attrs.get("patch_size")))
        if known is None:
            raise InputError(
                f"unpatch: the patches have no dim {dim!r}, and the size is not known. Say size={{{str(dim)!r}: ...}}."
            )
        if asked.get(dim, known) != known:
            raise InputError(
                f"unpatch: size says {asked[dim]} cells along {dim!r}, but the patches have {known}."
            )
        found[dim] = int(known)
    return found


def _starts(given: xr.DataArray, like: Any, dim: Hashable, size: int) -> np.ndarray:
    """Find the position of each patch on the grid."""
    origin = given[f"{dim}_origin"].values
    if dim in like.indexes:
        index = like.indexes[dim]
        if not index.is_unique:
            raise InputError(
                f"unpatch: the coordinate {dim!r} of like has values more than once. Keep one of each: "
                f"like.drop_duplicates({str(dim)!r})."
            )
        places = np.asarray(index.get_indexer(origin))
    else:
        places = origin.astype(np.int64)
    wrong = np.flatnonzero((places < 0) | (places + size > like.sizes[dim]))
    if len(wrong):
        first = wrong[0]
        why = "is not on it" if places[first] < 0 else f"with {size} cells reaches beyond it"
        raise InputError(
            f"unpatch: a patch that begins at {dim}={origin[first]} does not fit on the grid of like, which has "
            f"{like.sizes[dim]} cells along {dim!r}: it {why}. Pass the field that was cut."
        )
    return places


def _is_flat(given: xr.DataArray, sizes: Mapping[Hashable, int], dim: Hashable) -> bool:
    """Tell whether a dim holds a target for each cell of a patch."""
    return (
        dim == "output" and not set(sizes) & set(given.dims) and given.sizes[dim] == math.prod(sizes.values())
    )


def _windowed(given: xr.DataArray, sizes: Mapping[Hashable, int], rest: Sequence[Hashable]) -> da.Array:
    """Give the patches as an array of shape (n_patches, *sizes, ...), with 1 for dims along which they are the same."""
    whole = {dim: -1 for dim in given.dims if dim in sizes or _is_flat(given, sizes, dim)}
    chunked = given.chunk(whole) if given.chunks is not None else given.chunk()
    flat = [dim for dim in rest if _is_flat(given, sizes, dim)]
    if flat:
        others = [dim for dim in rest if dim not in flat]
        data = chunked.transpose("patch", *flat, *others).data
        return data.reshape((data.shape[0], *sizes.values(), *data.shape[2:]))
    present = [dim for dim in sizes if dim in given.dims]
    data = chunked.transpose("patch", *present, *rest).data
    index = tuple(slice(None) if dim in given.dims else None for dim in sizes)
    return data[(slice(None), *index)]


def _put_back(
    given: xr.DataArray, values: da.Array, starts: np.ndarray, chunks: Any, how: Overlaps, memory: Any
) -> da.Array:
    """Make each block of the grid of the patches that touch it."""
    if any(map(math.isnan, values.chunks[0])):
        raise InputError(
            "unpatch: the number of patches in each block is not known. Call .compute_chunk_sizes() of the array first."
        )
    n = len(how.sizes)
    name = f"unpatch-{tokenize(values.name, starts, chunks, how)}"
    block_of = np.repeat(np.arange(values.numblocks[0]), values.chunks[0])
    row_of = np.arange(len(starts)) - np.asarray(starts_of(values.chunks[0]))[block_of]
    begins = [starts_of(sizes) for sizes in chunks]
    order = np.argsort(starts[:, 0], kind="stable")
    rest = values.chunks[1 + n :]
    tasks: dict[Any, Any] = {}
    most = 0
    for place in np.ndindex(*map(len, chunks)):
        corner = np.array([begins[i][j] for i, j in enumerate(place)])
        shape = tuple(chunks[i][j] for i, j in enumerate(place))
        mine = _touching(starts, order, corner, how.sizes, shape)
        most = max(most, len(mine))
        relative = starts[mine] - corner
        spans = _spans(relative, how.sizes, shape)
        for more in np.ndindex(*map(len, rest)):
            pieces = []
            for b in np.unique(block_of[mine]).tolist():
                of, key = (values.name, b, *(0,) * n, *more), (f"{name}-of", b, *place, *more)
                tasks[key] = Task(key, _cropped, TaskRef(of), row_of[mine[block_of[mine] == b]], spans)
                pieces.append(TaskRef(key))
            key = (name, *place, *more)
            whole = (*shape, *(sizes[j] for sizes, j in zip(rest, more, strict=True)))
            tasks[key] = Task(key, _joined, how, whole, relative, spans, List(*pieces))
    need = _check_memory(given, values, chunks, most, how, memory)
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=list[Any]([values]))
    step = Step(
        token=name,
        what="unpatch",
        n_blocks=values.npartitions,
        nbytes=int(values.nbytes),
        n_read=values.npartitions,
        read_nbytes=int(values.nbytes),
        task_nbytes=int(need),
        source="" if steps_of(values) else values.name,
    )
    return told(da.Array(graph, name, (*chunks, *rest), dtype=how.dtype), step)


def _touching(
    starts: np.ndarray, order: np.ndarray, corner: np.ndarray, sizes: Sequence[int], shape: Sequence[int]
) -> np.ndarray:
    """Find the patches that have cells in a block; `order` sorts their starts along the first dim."""
    ends = [corner[0] - sizes[0] + 1, corner[0] + shape[0]]
    first, last = np.searchsorted(starts[:, 0], ends, side="left", sorter=order)
    found = np.sort(order[first:last])
    for i in range(1, len(sizes)):
        along = starts[found, i]
        found = found[(along < corner[i] + shape[i]) & (along + sizes[i] > corner[i])]
    return found


def _spans(starts: np.ndarray, sizes: Sequence[int], shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Give which cells of the windows may lie in a block: from where to where, along each axis."""
    if not len(starts):
        return ((0, 0),) * len(sizes)
    first = np.maximum(-starts, 0).min(axis=0)
    last = np.minimum(np.array(shape) - starts, sizes).max(axis=0)
    return tuple(zip(first.tolist(), last.tolist(), strict=True))


def _check_memory(
    given: xr.DataArray, values: da.Array, chunks: Any, most: int, how: Overlaps, memory: Any
) -> float:
    """Refuse a block of the grid that does not fit with the patches that touch it."""
    each, threads = room(memory, given.chunk() if given.chunks is None else given)
    beside = math.prod(map(max, values.chunks[1 + len(how.sizes) :]))
    cells = math.prod(map(max, chunks)) * beside
    patch = math.prod(values.shape[1 : 1 + len(how.sizes)]) * beside * values.dtype.itemsize
    need = cells * (32 + how.dtype.itemsize) + 2 * most * patch
    refuse_beyond(
        need,
        each,
        threads,
        f"a block of {cells:,} cells with the {most:,} patches that touch it",
        "Give like smaller chunks, or give more memory.",
        who="unpatch",
    )
    return need


def _cropped(block: np.ndarray, rows: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    inside = [
        slice(None) if n == 1 else slice(a, b) for n, (a, b) in zip(block.shape[1:], spans, strict=False)
    ]
    return block[(slice(None), *inside)][rows]


def _joined(
    how: Overlaps,
    shape: tuple[int, ...],
    starts: np.ndarray,
    spans: Sequence[tuple[int, int]],
    pieces: Sequence[np.ndarray],
) -> np.ndarray:
    if not pieces:
        return np.full(shape, how.fill, dtype=how.dtype)
    return how(shape, pieces[0] if len(pieces) == 1 else np.concatenate(pieces), starts, spans)
