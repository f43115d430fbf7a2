"""Open NetCDF and HDF5 files as one lazy dataset of xarray, by reading their headers and coordinates only."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise, product
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.task_spec import Task
from dask.tokenize import tokenize

from dpipe.blocks.chunking import joined_chunks
from dpipe.collect.array_files import PACKING, ArrayPart, ArrayReader, Header, find_array_files, read_headers
from dpipe.collect.array_join import Joined, groups_of, joined
from dpipe.collect.parquet import block_limit
from dpipe.errors import InputError, SourceError


def open_netcdf(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    concat_dim: str | None = None,
    group: str = "",
    drop_variables: str | Sequence[str] = (),
    block_nbytes: int | str | None = None,
    memory: int | str | None = None,
    storage_options: dict[str, Any] | None = None,
) -> xr.Dataset:
    """Open NetCDF-3, NetCDF-4 and HDF5 files as one lazy dataset, by reading headers and coordinates only.

    Files are put in the order of the coordinate in which they differ, whatever their names. Files of other variables
    on the same grid are merged. Values are decoded as CF says (scale, offset, missing values, times), those of each
    file by its own attributes.

    Parameters
    ----------
    paths : path, glob, folder, URL, or a sequence of them
    concat_dim : str, optional
        The dimension along which files follow each other; default the one whose coordinate differs.
    group : str, optional
        A group of HDF5; default the root.
    drop_variables : sequence of str, optional
        Variables or coordinates that are passed over.
    block_nbytes : int or str, default "32 MiB"
        Decoded size of a block. Stored chunks and small files are joined up to it, never cut; files that store an array
        as one piece are cut along their first dimensions.
    memory : int or str, optional
        Choose `block_nbytes` for this memory budget instead.
    storage_options : dict, optional
        For fsspec: credentials and the like.

    Returns
    -------
    xarray.Dataset
        Of lazy Dask arrays; coordinates of dimensions and texts are in memory. Attributes are those of the first file.

    Raises
    ------
    SourceError
        If no file matches, one cannot be read, or they do not fit together: coordinates that are not monotonic, overlap
        or differ, other calendars, units or variables. The message names the file and the coordinate.
    InputError
        If an argument cannot be used.

    Notes
    -----
    Of variables without the dimension that files follow each other along, the first file's values are taken.

    Headers are read eight at a time, but inside of HDF5 one at a time. A thousand small files on a local disk take a
    second or so as NetCDF-3, and several as NetCDF-4. Collect them to a store once, where they are opened often.

    Examples
    --------
    >>> import tempfile, pandas as pd, dpipe
    >>> folder = tempfile.mkdtemp()
    >>> for year in (2001, 2000):
    ...     days = pd.date_range(f"{year}-01-01", periods=3)
    ...     made = xr.Dataset({"t": ("time", np.arange(3.0) + year)}, {"time": days})
    ...     made.to_netcdf(f"{folder}/{year}.nc", engine="scipy")
    >>> dpipe.open_netcdf(folder)["t"].compute().values
    array([2000., 2001., 2002., 2001., 2002., 2003.])
    """
    options = storage_options or {}
    files = find_array_files(paths, options)
    drop = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables)
    headers = read_headers(files, group, options, drop)
    return dataset_of(headers, concat_dim, options, block_limit(block_nbytes, memory))


def dataset_of(
    headers: Sequence[Header], concat_dim: str | None, options: dict[str, Any], limit: int
) -> xr.Dataset:
    """Make one lazy dataset of files whose headers are known; see `open_netcdf`.

    Raises
    ------
    SourceError
        If they do not fit together.
    InputError
        If none of them has `concat_dim`.
    """
    parts = []
    for members in groups_of(headers):
        here = concat_dim if concat_dim is None or concat_dim in members[0].sizes else None
        parts.append((members[0].path, _joined(joined(members, here), options, limit)))
    if concat_dim is not None and all(concat_dim not in part.sizes for _, part in parts):
        found = ", ".join(map(repr, headers[0].sizes))
        raise InputError(f"concat_dim={concat_dim!r} is no dimension of the files. They have: {found}.")
    return _merged(parts)


def _merged(parts: Sequence[tuple[str, xr.Dataset]]) -> xr.Dataset:
    """Merge datasets of other variables on the same grid."""
    (where, whole), *others = parts
    for path, part in others:
        for name in part.indexes.keys() & whole.indexes.keys():
            if not part.indexes[name].equals(whole.indexes[name]):
                raise SourceError(
                    f"{path} does not align with {where} along {name!r}: it has {_range(part[name])} instead of "
                    f"{_range(whole[name])}. Open them apart, or bring them to one grid first."
                )
        for name in part.sizes.keys() & whole.sizes.keys():
            if part.sizes[name] != whole.sizes[name]:
                raise SourceError(
                    f"{path} does not align with {where} along {name!r}: it has {part.sizes[name]:,} values instead "
                    f"of {whole.sizes[name]:,}. Open them apart."
                )
        whole = whole.assign_coords({n: c for n, c in part.coords.items() if n not in whole.coords})
        whole = whole.assign({str(n): v.variable for n, v in part.data_vars.items()})
    return whole


def _range(values: Any) -> str:
    n = values.size
    return f"{n:,} values" + (f" from {values.values[0]} to {values.values[-1]}" if n else "")


def _joined(files: Joined, options: dict[str, Any], limit: int) -> xr.Dataset:
    first = files.first
    coords = {name: first.variables[name].held(values) for name, values in files.coords.items()}
    made: dict[str, xr.Variable] = {}
    for name, variable in first.variables.items():
        if name in coords:
            continue
        made[name] = _text(files, name) if variable.is_text else _lazy(files, name, options, limit)
    auxiliary = first.auxiliary & made.keys()
    data = {name: v for name, v in made.items() if name not in auxiliary}
    return xr.Dataset(data, {**coords, **{name: made[name] for name in auxiliary}}, dict(first.attrs))


def _text(files: Joined, name: str) -> xr.Variable:
    variable = files.first.variables[name]
    along = files.dim in variable.dims
    parts = [
        file.variables[name].decoded(file.held[name]) for file in (files.files if along else files.files[:1])
    ]
    dims = variable.dims[: parts[0].ndim]
    whole = np.concatenate(parts, axis=dims.index(files.dim)) if along and files.dim in dims else parts[0]
    return xr.Variable(dims, whole, dict(variable.attrs))


def _lazy(files: Joined, name: str, options: dict[str, Any], limit: int) -> xr.Variable:
    """Give a variable of all files as one lazy array, each block of whole stored chunks."""
    variable = files.first.variables[name]
    axis = variable.dims.index(files.dim) if files.dim in variable.dims else None
    used = files.files if axis is not None else files.files[:1]
    dtype = _common_type(used, name)
    cuts = _Cuts.of(used, name, axis, dtype.itemsize, limit)
    token = tokenize(name, [(file.path, file.stamp) for file in used], variable.at, cuts)
    key = f"open-netcdf-{name}-{token}"
    reader = ArrayReader(axis or 0, dtype, dict(options))
    graph = {}
    for place in product(*(range(len(each)) for each in cuts.chunks)):
        graph[(key, *place)] = Task((key, *place), reader, cuts.parts(used, name, place))
    array = da.Array(graph, key, cuts.chunks, meta=np.empty((0,) * len(variable.dims), dtype))
    attrs, encoding = _attributes(used, name)
    if dtype.kind == "O":
        # times of other calendars, such as bounds, are Python objects: in memory, as the coordinates are
        encoding = {key: value for key, value in encoding.items() if key not in ("dtype", "_FillValue")}
        return xr.Variable(variable.dims, array.compute(scheduler="synchronous"), attrs, encoding)
    return xr.Variable(variable.dims, array, attrs, encoding)


@dataclass(frozen=True)
class _Cuts:
    """Where the blocks of an array begin and end, and which parts of which files they are."""

    chunks: tuple[tuple[int, ...], ...]
    axis: int | None
    members: tuple[tuple[tuple[int, int, int], ...], ...]
    """For each block along the axis: files with the first and last position in each."""

    @classmethod
    def of(cls, files: Sequence[Header], name: str, axis: int | None, itemsize: int, limit: int) -> "_Cuts":
        found = [file.variables[name] for file in files]
        sizes = [joined_chunks(v.shape, v.chunks, itemsize, limit) for v in found]
        # other axes have the same blocks in all files: those that fit the stored chunks of the most
        common = [max(set(each), key=each.count) for each in zip(*sizes, strict=True)]
        shape = found[0].shape
        chunks = [_cut(n, size) for n, size in zip(shape, common, strict=True)]
        if axis is None:
            return cls(tuple(chunks), None, ())
        row = itemsize * int(np.prod([size for j, size in enumerate(common) if j != axis]))
        blocks: list[list[tuple[int, int, int]]] = []
        filled = 0
        for i, (v, size) in enumerate(zip(found, sizes, strict=True)):
            n = v.shape[axis]
            if blocks and n and (filled + n) * row <= limit:
                blocks[-1].append((i, 0, n))
                filled += n
                continue
            ends = list(accumulate(_cut(n, size[axis]), initial=0))
            blocks += [[(i, start, stop)] for start, stop in pairwise(ends) if stop > start]
            filled = ends[-1] - ends[-2] if len(ends) > 1 else 0
        blocks = blocks or [[(0, 0, 0)]]
        chunks[axis] = tuple(sum(stop - start for _, start, stop in block) for block in blocks)
        return cls(tuple(chunks), axis, tuple(map(tuple, blocks)))

    @cached_property
    def begins(self) -> tuple[tuple[int, ...], ...]:
        """Where each block begins along each axis."""
        return tuple(tuple(accumulate(sizes, initial=0)) for sizes in self.chunks)

    def parts(self, files: Sequence[Header], name: str, place: Sequence[int]) -> list[ArrayPart]:
        """Give what a block is read from."""
        where = [
            slice(begin[j], begin[j] + sizes[j])
            for sizes, begin, j in zip(self.chunks, self.begins, place, strict=True)
        ]
        members = ((0, 0, 0),) if self.axis is None else self.members[place[self.axis]]
        found = []
        for i, start, stop in members:
            here = list(where)
            if self.axis is not None:
                here[self.axis] = slice(start, stop)
            file = files[i]
            found.append(ArrayPart(file.path, file.stamp, file.kind, file.variables[name], tuple(here)))
        return found


def _cut(n: int, size: int) -> tuple[int, ...]:
    return tuple(min(size, n - start) for start in range(0, n, size)) or (0,)


def _common_type(files: Sequence[Header], name: str) -> np.dtype[Any]:
    """Give the type that holds the decoded values of all files exactly."""
    kinds: dict[str, tuple[str, np.dtype[Any]]] = {}
    for file in files:
        variable = file.variables[name]
        about = f"{variable.dtype} {sorted((k, str(v)) for k, v in variable.attrs.items() if k in (*PACKING, 'units'))}"
        if about not in kinds:
            kinds[about] = file.path, variable.decoded_dtype
    (where, first), *others = kinds.values()
    whole = first
    for path, dtype in others:
        made = np.result_type(whole, dtype) if {whole.kind, dtype.kind} <= set("biuf") else None
        if dtype != whole and (made is None or not _holds(made, whole) or not _holds(made, dtype)):
            raise SourceError(
                f"{path}: {name!r} is of type {dtype}, but {first} in {where}, and no type holds both exactly. "
                f"Convert one of them, or open them apart."
            )
        whole = whole if made is None else made
    return whole.newbyteorder("=")


def _holds(wide: np.dtype[Any], narrow: np.dtype[Any]) -> bool:
    # NumPy calls 64-bit integers safe as floats, which have 53 bits for them
    exact = not (wide.kind == "f" and narrow.kind in "iu" and narrow.itemsize > 4)
    return exact and (wide.kind == "b") == (narrow.kind == "b")


def _attributes(files: Sequence[Header], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give what a variable's attributes say beside its packing, and the packing, if it is that of all files."""
    attrs, encoding = files[0].variables[name].told()
    packed = [_packing(file, name) for file in files]
    if any(each != packed[0] for each in packed[1:]):
        # what is written later would else be packed as the first file is, and overflow
        encoding = {key: value for key, value in encoding.items() if key not in PACKING}
    return attrs, encoding


def _packing(file: Header, name: str) -> tuple[str, ...]:
    variable = file.variables[name]
    return str(variable.dtype.newbyteorder("=")), *(str(variable.attrs.get(key)) for key in PACKING)
