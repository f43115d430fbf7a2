"""Files of arrays, NetCDF-3, NetCDF-4 and HDF5: what each holds, read without its values, and parts of these.

HDF5 goes through h5py, without the C library of NetCDF, which must not be called from several threads. Files are opened
for each block and closed again: nothing is held, and a task can run in any process.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import fsspec
import numpy as np
import xarray as xr

from dpipe.blocks.netcdf3 import read_header
from dpipe.collect.files import Stamp, check_unchanged, is_remote, retried, scrubbed, stamp_of
from dpipe.errors import InputError, SourceError

#: Texts are read when a file is opened; larger ones than this are left out.
_MOST_TEXT_NBYTES = 1 << 20
#: How values are packed; of no use where files differ in it.
PACKING = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned", "dtype")
#: What HDF5 itself notes of dimensions.
_HIDDEN = {"CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST", "DIMENSION_LABELS"}
_HIDDEN |= {"_Netcdf4Dimid", "_Netcdf4Coordinates", "_NCProperties", "_nc3_strict"}
_ONLY_A_DIMENSION = "This is a netCDF dimension but not a netCDF variable"
_NOT_A_COORDINATE = "_nc4_non_coord_"


#: One thread at a time is inside of HDF5. h5py sees to it itself, but two threads that open and close files could wait
#: for each other for ever.
_HDF5 = threading.RLock()


@dataclass(frozen=True)
class Stored:
    """One variable of a file, without its values."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attrs: dict[str, Any]
    chunks: tuple[int, ...] | None
    """As stored; None if it is one piece."""
    at: Any
    """Where a reader of its format finds it."""

    @property
    def is_text(self) -> bool:
        """Whether it holds texts, which have no fixed size."""
        return self.dtype.kind in "OSUT"

    def decoded(self, values: np.ndarray) -> np.ndarray:
        """Apply the conventions of CF to raw values: scale and offset, missing values, times, texts.

        Raises
        ------
        SourceError
            If its attributes say what cannot be done.
        """
        if not values.size:  # not all times can be decoded where there are none
            return np.empty(values.shape, self.decoded_dtype)
        dims = self.dims if values.ndim == len(self.dims) else self.dims[: values.ndim]
        try:
            raw = xr.Variable(dims, values, dict(self.attrs))
            return np.asarray(
                xr.conventions.decode_cf_variable(self.name, raw, decode_timedelta=False).values
            )
        except (ValueError, OverflowError, TypeError, KeyError) as err:
            said = " ".join(str(err).split())[:300]
            raise SourceError(
                f"{self.name!r} cannot be decoded as its attributes say: {said} Correct them, or leave it out: "
                f"drop_variables=[{self.name!r}]."
            ) from err

    @property
    def is_calendar(self) -> bool:
        """Whether it holds times that are no numbers of NumPy's, but Python objects."""
        return " since " in str(self.attrs.get("units", "")) and self.decoded_dtype.kind == "O"

    @property
    def decoded_dtype(self) -> np.dtype[Any]:
        """The type of its values when they are decoded."""
        return self.decoded(self._any_value()).dtype

    def _any_value(self) -> np.ndarray:
        """Give a raw value of its type."""
        return np.full((1,) * len(self.dims), "" if self.dtype.kind in "OT" else 0, self.dtype)

    def told(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Give what its attributes say of its values, and how they are encoded, as xarray keeps these apart."""
        one = xr.Variable(self.dims, self._any_value(), dict(self.attrs))
        decoded = xr.conventions.decode_cf_variable(self.name, one, decode_timedelta=False)
        encoding = {
            key: value for key, value in decoded.encoding.items() if key in (*PACKING, "units", "calendar")
        }
        if self.is_text:
            encoding.pop("dtype", None)
        elif isinstance(encoding.get("dtype"), np.dtype):
            encoding["dtype"] = encoding["dtype"].newbyteorder("=")
        return {key: value for key, value in decoded.attrs.items() if key != "coordinates"}, encoding

    def held(self, values: np.ndarray) -> xr.Variable:
        """Give decoded values as a variable in memory."""
        attrs, encoding = self.told()
        # without its type, what marks missing values would be cast to another one
        left_out = ("dtype", "_FillValue") if "units" in encoding else ("dtype",)
        kept = {key: value for key, value in encoding.items() if key not in left_out}
        return xr.Variable(self.dims[: values.ndim], values, attrs, kept)


@dataclass(frozen=True)
class Header:
    """One file, without its values, but with those of its coordinates."""

    path: str
    stamp: Stamp
    kind: str
    """"netcdf3", "hdf5" or "grib"."""
    variables: dict[str, Stored]
    attrs: dict[str, Any]
    held: dict[str, np.ndarray] = field(default_factory=dict, compare=False)
    """Raw values of coordinates of one dimension, and of texts."""

    @property
    def coordinates(self) -> list[str]:
        """Names of the dimensions that have a coordinate."""
        return [name for name, v in self.variables.items() if v.dims == (name,)]

    @property
    def data_names(self) -> frozenset[str]:
        """What is no coordinate of a dimension, nor named as one by an attribute."""
        return frozenset(self.variables.keys() - set(self.coordinates) - self.auxiliary)

    @property
    def auxiliary(self) -> set[str]:
        """Other coordinates: those that attributes name, bounds, and texts."""
        return auxiliary_of(self.variables)

    @property
    def sizes(self) -> dict[str, int]:
        """Lengths of all dimensions."""
        return {dim: n for v in self.variables.values() for dim, n in zip(v.dims, v.shape, strict=True)}


def auxiliary_of(variables: Mapping[str, Stored]) -> set[str]:
    """Name the coordinates that belong to no dimension: those that attributes name, bounds, and texts."""
    found = {name for v in variables.values() for name in str(v.attrs.get("coordinates", "")).split()}
    found |= {
        str(v.attrs[key]) for v in variables.values() for key in ("bounds", "climatology") if key in v.attrs
    }
    found |= {name for name, v in variables.items() if v.is_text}
    return {name for name in found & variables.keys() if variables[name].dims != (name,)}


def read_headers(
    paths: Sequence[str], group: str, options: Mapping[str, Any], drop: Sequence[str]
) -> list[Header]:
    """Read the headers of many files, several at a time.

    Raises
    ------
    SourceError
        If one cannot be read, or is of another format; the message names it.
    """
    with ThreadPoolExecutor(max_workers=min(8, len(paths))) as pool:
        return list(pool.map(lambda path: _read_header(path, group, options, frozenset(drop)), paths))


def _read_header(path: str, group: str, options: Mapping[str, Any], drop: frozenset[str]) -> Header:
    try:
        stamp = stamp_of(path, options, anew=False)
        return retried(_header, path, stamp, group, options, drop, path=path)
    except SourceError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError) as err:
        raise SourceError(
            f"{path} cannot be read as NetCDF or HDF5: {scrubbed(err, options)}. Repair or leave out the file; the "
            "others are not affected."
        ) from err


def _header(path: str, stamp: Stamp, group: str, options: Mapping[str, Any], drop: frozenset[str]) -> Header:
    kind = _kind(path, options)
    with _opened(path, kind, options) as opened:
        found, attrs = _stored3(opened, group) if kind == "netcdf3" else _stored4(opened, group)
        found = _with_bounds([variable for variable in found if variable.name not in drop])
        held = {}
        for v in found:
            size = int(np.prod(v.shape)) * max(v.dtype.itemsize, 1)
            if v.dims == (v.name,) or (v.is_text and size <= _MOST_TEXT_NBYTES):
                held[v.name] = _values(opened, v, tuple(slice(0, n) for n in v.shape))
    kept = {v.name: v for v in found if not v.is_text or v.name in held}
    return Header(path, stamp, kind, kept, attrs, held)


def _with_bounds(found: Sequence[Stored]) -> list[Stored]:
    """Give the bounds of cells the units and the calendar of their coordinate, which CF leaves out."""
    about: dict[str, dict[str, Any]] = {}
    for v in found:
        inherited: dict[str, Any] = {key: v.attrs[key] for key in ("units", "calendar") if key in v.attrs}
        about |= {str(v.attrs[key]): inherited for key in ("bounds", "climatology") if key in v.attrs}
    return [replace(v, attrs={**about.get(v.name, {}), **_fitting(v)}) for v in found]


def _fitting(variable: Stored) -> dict[str, Any]:
    """Leave out marks of missing values that no value of the type can be: NaN among integers."""
    if variable.dtype.kind not in "iu":
        return variable.attrs
    marks = {key: variable.attrs[key] for key in ("_FillValue", "missing_value") if key in variable.attrs}
    wrong = {
        key for key, mark in marks.items() if np.asarray(mark).dtype.kind == "f" and np.isnan(mark).any()
    }
    return {key: value for key, value in variable.attrs.items() if key not in wrong}


def _kind(path: str, options: Mapping[str, Any]) -> str:
    if is_remote(path):
        fs, name = fsspec.core.url_to_fs(path, **options)
        magic = fs.cat_file(name, start=0, end=8)
    else:
        with open(path, "rb") as file:
            magic = file.read(8)
    if magic[:3] == b"CDF":
        return "netcdf3"
    if magic == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    raise SourceError(
        f"{path} is neither NetCDF nor HDF5: it begins with {magic!r}. Leave it out, or convert it to one of them."
    )


@contextlib.contextmanager
def _opened(path: str, kind: str, options: Mapping[str, Any]) -> Iterator[Any]:
    if kind == "netcdf3":
        yield _reader3(path, options)
        return
    if kind == "grib":
        with open(path, "rb") as messages:
            yield messages
        return
    try:
        import h5py
    except ImportError as err:
        raise SourceError(
            f"{path} is HDF5, and h5py is not installed: {err}. Install it with pip install 'dpipe[arrays]'."
        ) from err
    with _HDF5, contextlib.ExitStack() as stack:
        file: Any = path
        if is_remote(path):
            file = stack.enter_context(fsspec.open(path, "rb", **options))
        yield stack.enter_context(h5py.File(file, "r"))


def _reader3(path: str, options: Mapping[str, Any]) -> Any:
    if not is_remote(path):
        content = np.memmap(path, np.uint8, "r")
        return lambda start, stop: memoryview(content[start:stop])  # type: ignore[arg-type]
    fs, name = fsspec.core.url_to_fs(path, **options)
    return lambda start, stop: fs.cat_file(name, start=start, end=stop)


def _stored3(read: Any, group: str) -> tuple[list[Stored], dict[str, Any]]:
    if group.strip("/"):
        raise KeyError(f"a file of NetCDF-3 has no groups, and so no {group!r}")
    found, attrs = read_header(read)
    return [Stored(v.name, v.dims, v.shape, v.dtype, v.attrs, None, v) for v in found], attrs


def _stored4(file: Any, group: str) -> tuple[list[Stored], dict[str, Any]]:
    import h5py

    node = file[group or "/"]
    if not isinstance(node, h5py.Group):
        raise KeyError(f"{group!r} is no group")
    made_up: dict[tuple[int, int], str] = {}
    found = []
    for name, dataset in node.items():
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None or _is_only_a_dimension(dataset):
            continue
        kind = dataset.dtype
        if kind.kind in "VO" and h5py.check_string_dtype(kind) is None:
            continue  # records and references are no arrays of numbers
        dims = _dims4(file, name, dataset, made_up)
        attrs = {key: _attribute4(value) for key, value in _attributes4(dataset.attrs)}
        plain = name.removeprefix(_NOT_A_COORDINATE)
        found.append(Stored(plain, dims, dataset.shape, kind, attrs, dataset.chunks, dataset.name))
    return found, {key: _attribute4(value) for key, value in _attributes4(node.attrs)}


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def _is_only_a_dimension(dataset: Any) -> bool:
    return _text(dataset.attrs.get("NAME")).startswith(_ONLY_A_DIMENSION)


def _attributes4(attrs: Any) -> list[tuple[str, Any]]:
    return [(key, attrs[key]) for key in attrs if key not in _HIDDEN]


def _attribute4(value: Any) -> Any:
    if type(value).__name__ == "Empty":
        return ""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, np.ndarray) and value.dtype.kind in "OS":
        return [_text(item) for item in value.tolist()]
    return _text(value) if isinstance(value, bytes) else value


def _dims4(file: Any, name: str, dataset: Any, made_up: dict[tuple[int, int], str]) -> tuple[str, ...]:
    """Name the dimensions of a dataset: by its scales, or by their lengths if it has none."""
    named = dataset.attrs.get("DIMENSION_LIST")
    if named is not None and all(len(each) for each in named):
        return tuple(file[each[0]].name.rpartition("/")[2] for each in named)
    if _text(dataset.attrs.get("CLASS")) == "DIMENSION_SCALE":
        if dataset.ndim == 1:
            return (name,)
        # a coordinate of several dimensions names them by their numbers
        numbers = {
            int(one.attrs["_Netcdf4Dimid"]): key
            for key, one in dataset.parent.items()
            if "_Netcdf4Dimid" in one.attrs
        }
        return tuple(numbers[int(i)] for i in dataset.attrs["_Netcdf4Coordinates"])
    dims: list[str] = []
    for size in dataset.shape:
        nth = sum(made_up.get((size, k)) in dims for k in range(dataset.ndim))
        dims.append(made_up.setdefault((size, nth), f"dim_{len(made_up)}"))
    return tuple(dims)


def _values(opened: Any, variable: Stored, where: Sequence[slice]) -> np.ndarray:
    if not isinstance(variable.at, str):  # it reads its values itself
        return np.asarray(variable.at.values(opened, where))
    dataset = opened[variable.at]
    if variable.dtype.kind == "O":
        dataset = dataset.asstr()
    return np.asarray(dataset[tuple(where)])


@dataclass(frozen=True)
class ArrayPart:
    """A part of a variable of a file, as a task reads it."""

    path: str
    stamp: Stamp
    kind: str
    variable: Stored
    where: tuple[slice, ...]


@dataclass(frozen=True)
class ArrayReader:
    """Reads and decodes blocks, each of one or several parts of files that follow each other."""

    axis: int
    dtype: np.dtype[Any]
    storage_options: Mapping[str, Any] = field(compare=False, repr=False)

    def __call__(self, parts: Sequence[ArrayPart]) -> np.ndarray:
        """Read the parts of one block.

        Raises
        ------
        SourceError
            If a file has changed, is gone, or cannot be read; the message names it.
        """
        found = [self._read(part).astype(self.dtype, copy=False) for part in parts]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=self.axis)

    def _read(self, part: ArrayPart) -> np.ndarray:
        check_unchanged(part.path, part.stamp, self.storage_options)
        try:
            return part.variable.decoded(retried(self._raw, part, path=part.path))
        except SourceError as err:
            raise SourceError(f"{part.path}: {err}") from err
        except (OSError, KeyError, RuntimeError, ValueError) as err:
            raise SourceError(
                f"{part.path}: {part.variable.name!r} cannot be read: {scrubbed(err, self.storage_options)}. The file "
                "is corrupt or has changed since it was listed. Repair it, and run again; the others are not affected."
            ) from err

    def _raw(self, part: ArrayPart) -> np.ndarray:
        with _opened(part.path, part.kind, self.storage_options) as opened:
            values = _values(opened, part.variable, part.where)
        return values.astype(values.dtype.newbyteorder("="), copy=False)


def find_array_files(source: Any, options: dict[str, Any]) -> list[str]:
    """List the files that a source names, in order; a folder's are those that end as NetCDF and HDF5 do."""
    from dpipe.collect.files import find_files

    entries = [source] if isinstance(source, str | os.PathLike) else source
    if not isinstance(entries, Sequence | set | frozenset):
        raise InputError(
            f"paths is {source!r}; it must be a path, a folder, a glob or a URL, or a sequence of them."
        )
    found: list[str] = []
    for entry in entries:
        text = os.path.expanduser(os.fspath(entry))
        if not is_remote(text) and os.path.isdir(text):
            listed = [os.path.join(top, name) for top, _, names in os.walk(text) for name in names]
            found += sorted(
                name for name in listed if name.endswith((".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".he5"))
            )
        else:
            found += find_files(text, options, ".nc")
    if not found:
        raise SourceError(
            f"No NetCDF or HDF5 file in {source!r}. Give paths, a folder, or a glob such as 'data/*.nc'."
        )
    return list(dict.fromkeys(found))
