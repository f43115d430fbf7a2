"""Open Zarr stores as lazy datasets of xarray: of format 2 or 3, sharded, consolidated or neither."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask.task_spec import Task
from dask.tokenize import tokenize
from xarray.backends.zarr import FillValueCoder

from dpipe.blocks.chunking import joined_chunks
from dpipe.collect.array_files import Stored, auxiliary_of
from dpipe.collect.array_join import not_monotonic
from dpipe.collect.files import is_remote, retried, scrubbed
from dpipe.errors import InputError, SourceError
from dpipe.sizes import DEFAULT_BLOCK_NBYTES, counted, parse_bytes


def open_zarr(
    path: str | os.PathLike[str],
    *,
    group: str = "",
    drop_variables: str | Sequence[str] = (),
    block_nbytes: int | str | None = None,
    storage_options: dict[str, Any] | None = None,
) -> xr.Dataset:
    """Open a Zarr store as a lazy dataset, whose blocks are the stored chunks.

    Parameters
    ----------
    path : path or URL
        A folder, or what fsspec knows (``s3://``, ``https://`` ...): of format 2 or 3, with consolidated metadata or
        without. A store that is one array becomes a dataset with this one.
    group : str, optional
        A group inside of the store.
    drop_variables : sequence of str, optional
        Variables or coordinates that are passed over.
    block_nbytes : int or str, optional
        Join stored chunks to blocks of this decoded size; default: one block a chunk, or a shard where there are any.
    storage_options : dict, optional
        For fsspec: credentials and the like.

    Returns
    -------
    xarray.Dataset
        Of lazy Dask arrays, decoded as CF says; coordinates of dimensions and texts are in memory.

    Raises
    ------
    SourceError
        If there is no store that can be read, or a coordinate of it is not monotonic; the message names it.
    InputError
        If an argument cannot be used.

    Warns
    -----
    UserWarning
        If an array is stored in chunks of one value: these are joined to blocks, but each is a file to be read.

    Examples
    --------
    >>> import tempfile, dpipe
    >>> folder = tempfile.mkdtemp()
    >>> made = xr.Dataset({"t": (("time", "x"), np.ones((4, 3)))}, {"time": np.arange(4)})
    >>> _ = made.to_zarr(folder, encoding={"t": {"chunks": (2, 3)}}, zarr_format=3, consolidated=False)
    >>> dpipe.open_zarr(folder)["t"].chunks
    ((2, 2), (3,))
    """
    place = check_store(path)
    options = dict(storage_options or {})
    limit = None if block_nbytes is None else parse_bytes(block_nbytes)
    drop = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables)
    arrays, attrs = _found(place, group, options)
    stored = {name: _stored(name, array) for name, array in arrays.items() if name not in drop}
    whole = {name for name, v in stored.items() if v.dims == (name,) or v.is_text or v.is_calendar}
    made: dict[str, xr.Variable] = {}
    for name, variable in stored.items():
        if name not in whole:
            made[name] = _lazy(place, arrays[name], variable, options, limit)
            continue
        raw = retried(lambda name=name: np.asarray(arrays[name][...]), path=place)
        values = variable.decoded(raw.astype(object) if raw.dtype.kind == "T" else raw)
        said = not_monotonic(values) if variable.dims == (name,) else ""
        if said:
            raise SourceError(
                f"{place}: the coordinate {name!r} {said}. Write it in order, or leave the coordinate out, and count "
                f"positions: drop_variables=[{name!r}]."
            )
        made[name] = variable.held(values)
    apart = {name for name, v in stored.items() if v.dims == (name,)} | auxiliary_of(stored)
    apart |= set(str(attrs.pop("coordinates", "")).split()) & made.keys()
    data = {name: v for name, v in made.items() if name not in apart}
    return xr.Dataset(data, {name: made[name] for name in made if name in apart}, attrs)


def _found(place: str, group: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the arrays of a store and its attributes."""
    try:
        node = retried(lambda: _opened(place, group, options), path=place)
        if isinstance(node, zarr.Array):
            name = os.path.basename(place.rstrip("/")).split(".")[0] or "values"
            return {name: node}, {}
        # some arrays of a store may be of groups inside of it
        return dict(node.arrays()), dict(node.attrs)
    except ImportError as err:
        raise SourceError(
            f"{place} cannot be opened: {err}. Install what reads it, such as pip install 'dpipe[s3]' for s3://."
        ) from err
    except (OSError, KeyError, ValueError, TypeError) as err:
        inside = f" at {group!r}" if group else ""
        raise SourceError(
            f"{place} is no Zarr store{inside} that can be read: {type(err).__name__}: {scrubbed(err, options)}. "
            f"Check the address; a store that is being written opens when it is finished."
        ) from err


def _opened(place: str, inside: str, options: Mapping[str, Any]) -> Any:
    return zarr.open(
        place,
        mode="r",
        path=inside or None,
        storage_options=dict(options) if options and is_remote(place) else None,
    )


def stored_array(place: str, name: str) -> Stored:
    """Give what one array of a store is, without its values."""
    return _stored(name, zarr.open_array(os.path.join(place, name), mode="r"))


def _stored(name: str, array: Any) -> Stored:
    attrs = dict(array.attrs)
    dims = getattr(array.metadata, "dimension_names", None) or attrs.pop("_ARRAY_DIMENSIONS", None)
    if dims is None or any(dim is None for dim in dims):
        dims = [f"{name}_dim_{j}" if dims is None or dims[j] is None else dims[j] for j in range(array.ndim)]
    if array.metadata.zarr_format == 2:
        if array.fill_value is not None:
            attrs["_FillValue"] = array.fill_value  # of format 2 it marks what is missing
    elif "_FillValue" in attrs:
        attrs["_FillValue"] = FillValueCoder.decode(attrs["_FillValue"], array.dtype)
    return Stored(
        name, tuple(dims), array.shape, array.dtype, attrs, array.shards or array.chunks, array.path
    )


@dataclass(frozen=True)
class ZarrPart:
    """A part of an array of a store, as a task reads it."""

    store: str
    files: tuple[str, ...]
    """The chunks of a store on this machine: what they are now tells what the part is."""
    where: tuple[slice, ...]


@dataclass(frozen=True)
class ZarrReader:
    """Reads and decodes parts of one array."""

    variable: Stored
    about: str
    """A fingerprint of its metadata, but for how long it is."""
    dtype: np.dtype[Any]
    storage_options: Mapping[str, Any] = field(compare=False, repr=False)

    def __call__(self, part: ZarrPart) -> np.ndarray:
        """Read one part.

        Raises
        ------
        SourceError
            If it cannot be read; the message names the store and the array.
        """
        try:
            values = retried(lambda: self._raw(part), path=part.store)
            return self.variable.decoded(values).astype(self.dtype, copy=False)
        except (OSError, KeyError, ValueError, RuntimeError, TypeError) as err:
            at = ", ".join(f"{each.start}:{each.stop}" for each in part.where)
            raise SourceError(
                f"{part.store}: {self.variable.name!r}[{at}] cannot be read: {type(err).__name__}: "
                f"{scrubbed(err, self.storage_options)}. A chunk is damaged, or the store was replaced; repair it, "
                f"and run again: the others are not affected."
            ) from err

    def _raw(self, part: ZarrPart) -> np.ndarray:
        return np.asarray(_opened(part.store, self.variable.at, self.storage_options)[part.where])


def _lazy(
    place: str, array: Any, variable: Stored, options: Mapping[str, Any], limit: int | None
) -> xr.Variable:
    dtype = variable.decoded_dtype.newbyteorder("=")
    stored = variable.chunks or variable.shape
    sizes = tuple(min(size, max(n, 1)) for size, n in zip(stored, variable.shape, strict=True))
    if _warned(place, variable, sizes) and limit is None:
        limit = DEFAULT_BLOCK_NBYTES
    if limit is not None:
        sizes = joined_chunks(variable.shape, stored, dtype.itemsize, limit)
    chunks = tuple(
        tuple(min(size, n - start) for start in range(0, n, size)) or (0,)
        for n, size in zip(variable.shape, sizes, strict=True)
    )
    # a part stays what it is when its store becomes longer
    said = {name: value for name, value in array.metadata.to_dict().items() if name != "shape"}
    about = tokenize(place, said)
    key = f"open-zarr-{variable.name}-{tokenize(about, variable.shape, chunks)}"
    reader = ZarrReader(replace(variable, shape=()), about, dtype, dict(options))
    files = _ChunkFiles.of(place, array, stored)
    graph = {}
    for index in product(*(range(len(each)) for each in chunks)):
        where = tuple(
            slice(j * size, j * size + each[j]) for j, size, each in zip(index, sizes, chunks, strict=True)
        )
        graph[(key, *index)] = Task((key, *index), reader, ZarrPart(place, files.of_part(where), where))
    lazy = da.Array(graph, key, chunks, meta=np.empty((0,) * len(chunks), dtype))
    return xr.Variable(variable.dims, lazy, *variable.told())


def _warned(place: str, variable: Stored, sizes: Sequence[int]) -> bool:
    n = int(np.prod(variable.shape))
    if n <= 1 or any(size > 1 for size in sizes):
        return False
    warnings.warn(
        f"{place}: {variable.name!r} is stored in {counted(n, 'chunk')} of one value: reading it takes as many files. "
        f"Rewrite it once: dpipe.rechunk({place!r}, 'new.zarr', access='maps'), or access='time series'.",
        stacklevel=4,
    )
    return True


@dataclass(frozen=True)
class _ChunkFiles:
    """Where the chunks of an array lie, if that is on this machine."""

    folder: str
    metadata: Any
    stored: tuple[int, ...]

    @classmethod
    def of(cls, place: str, array: Any, stored: Sequence[int]) -> "_ChunkFiles":
        return cls("" if is_remote(place) else os.path.join(place, array.path), array.metadata, tuple(stored))

    def of_part(self, where: Sequence[slice]) -> tuple[str, ...]:
        """Name the files behind a part."""
        if not self.folder:
            return ()
        ranges = [
            range(each.start // size, -(-each.stop // size))
            for each, size in zip(where, self.stored, strict=True)
        ]
        return tuple(
            os.path.join(self.folder, self.metadata.encode_chunk_key(index)) for index in product(*ranges)
        )


def check_store(path: Any) -> str:
    """Give the path of a store as text.

    Raises
    ------
    InputError
        If it is none.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"{path!r} is no path of a Zarr store. Give a folder or a URL.")
    text = os.path.expanduser(os.fspath(path))
    return text if is_remote(text) else os.path.abspath(text)
