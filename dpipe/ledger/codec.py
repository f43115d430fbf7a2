"""States as bytes, without pickle: a tree of JSON, and the arrays behind it as they lie in memory.

What is read back can only be numbers, texts, arrays and containers of them, and the frozen records of this
package: nothing that stands in the bytes is imported from elsewhere, and nothing of it is called.
"""

import base64
import datetime
import importlib
import json
import struct
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from dpipe.errors import LedgerError

#: Records are of this package, or of those that a test names.
_OURS = ("dpipe.",)
_ALIGNED = 8


def encode(value: Any) -> bytes:
    """Give a state as bytes.

    Parameters
    ----------
    value
        None, numbers, texts, bytes, dates, arrays, sparse matrices, dtypes; lists, tuples, sets and dicts of
        them; and frozen dataclasses of dpipe.

    Raises
    ------
    TypeError
        If it holds anything else.

    Examples
    --------
    >>> decode(encode({"mean": np.arange(3.0), "names": ("a", None)}))
    {'mean': array([0., 1., 2.]), 'names': ('a', None)}
    """
    buffers = bytearray()
    tree = json.dumps(_packed(value, buffers), separators=(",", ":")).encode()
    tree += b" " * (-(len(tree) + 8) % _ALIGNED)
    return b"".join([struct.pack("<Q", len(tree)), tree, buffers])


def decode(content: bytes) -> Any:
    """Build what `encode` was given.

    Raises
    ------
    LedgerError
        If the bytes are not of `encode`.
    """
    try:
        (length,) = struct.unpack_from("<Q", content)
        if len(content) < 8 + length:
            raise ValueError("it ends too early")
        tree = json.loads(content[8 : 8 + length])
        return _unpacked(tree, memoryview(content)[8 + length :])
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError, struct.error) as err:
        raise LedgerError(f"A state cannot be read back: {type(err).__name__}: {err}.") from err


def _packed(value: Any, buffers: bytearray) -> Any:
    if value is None or type(value) in (bool, int, str, float):
        return value
    if type(value) is list:
        return [_packed(item, buffers) for item in value]
    kind, packed = _tagged(value, buffers)
    return {kind: packed}


def _tagged(value: Any, buffers: bytearray) -> tuple[str, Any]:
    if isinstance(value, np.ndarray):
        return _packed_array(value, buffers)
    if isinstance(value, np.generic):
        return "scalar", _packed_array(np.asarray(value), buffers)[1]
    if isinstance(value, np.dtype):
        return "dtype", value.str
    if is_dataclass(value) and not isinstance(value, type):
        held = {item.name: _packed(getattr(value, item.name), buffers) for item in fields(value)}
        return "record", [_name_of(type(value)), held]
    if isinstance(value, tuple):
        items = [_packed(item, buffers) for item in value]
        return ("tuple", items) if type(value) is tuple else ("named", [_name_of(type(value)), items])
    if isinstance(value, dict):
        return "dict", [[_packed(k, buffers), _packed(v, buffers)] for k, v in value.items()]
    if isinstance(value, set | frozenset):
        return type(value).__name__, [_packed(item, buffers) for item in value]
    if isinstance(value, bytes):
        return "bytes", base64.b64encode(value).decode()
    if sp.issparse(value) and value.format in ("csr", "csc"):
        parts = [_packed(part, buffers) for part in (value.data, value.indices, value.indptr)]
        return value.format, [list(value.shape), isinstance(value, sp.sparray), parts]
    return _tagged_scalar(value)


def _tagged_scalar(value: Any) -> tuple[str, Any]:
    if isinstance(value, slice):
        return "slice", [value.start, value.stop, value.step]
    if isinstance(value, complex):
        return "complex", [value.real, value.imag]
    if value is pd.NaT or value is pd.NA:
        return "missing", str(value)
    if isinstance(value, pd.Timestamp):
        return "timestamp", [value.isoformat(), None if value.tzinfo is None else str(value.tzinfo)]
    if isinstance(value, datetime.datetime):
        return "datetime", [value.isoformat(), value.fold]
    if isinstance(value, datetime.date):
        return "date", value.isoformat()
    raise TypeError(
        f"a {type(value).__module__}.{type(value).__qualname__} cannot be kept; numbers, texts, dates, arrays and "
        "containers of them can"
    )


def _packed_array(array: np.ndarray, buffers: bytearray) -> tuple[str, Any]:
    if array.dtype.kind == "O":
        return "objects", [list(array.shape), [_packed(item, buffers) for item in array.ravel().tolist()]]
    if array.dtype.kind == "V":
        raise TypeError(f"an array of {array.dtype} cannot be kept")
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    start = len(buffers)
    buffers += array.tobytes(order=order)  # type: ignore[arg-type]
    buffers += bytes(-len(buffers) % _ALIGNED)
    return "array", [array.dtype.str, list(array.shape), order, start, array.nbytes]


def _name_of(kind: type) -> str:
    if not kind.__module__.startswith(_OURS) or "<" in kind.__qualname__:
        raise TypeError(
            f"a {kind.__module__}.{kind.__qualname__} cannot be kept; use tuples, dicts or arrays"
        )
    return f"{kind.__module__}:{kind.__qualname__}"


def _kind_of(name: str) -> type:
    module, _, qualified = name.partition(":")
    if not module.startswith(_OURS):
        raise TypeError(f"{name} is not of this package")
    kind = getattr(importlib.import_module(module), qualified)
    if not isinstance(kind, type) or not (is_dataclass(kind) or issubclass(kind, tuple)):
        raise TypeError(f"{name} is not a record")
    return kind


def _unpacked(tree: Any, buffers: memoryview) -> Any:
    if isinstance(tree, list):
        return [_unpacked(item, buffers) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, packed),) = tree.items()
    return _READERS[kind](packed, buffers)


def _read_array(packed: Any, buffers: memoryview) -> np.ndarray:
    dtype, shape, order, start, length = packed
    flat = np.frombuffer(buffers[start : start + length], dtype=np.dtype(dtype))
    return flat.reshape(shape, order=order).copy(order=order)


def _read_objects(packed: Any, buffers: memoryview) -> np.ndarray:
    shape, items = packed
    flat = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        flat[i] = _unpacked(item, buffers)
    return flat.reshape(shape)


def _read_record(packed: Any, buffers: memoryview) -> Any:
    name, held = packed
    kind = _kind_of(name)
    record: Any = object.__new__(kind)
    for item in fields(kind):
        object.__setattr__(record, item.name, _unpacked(held[item.name], buffers))
    return record


def _read_sparse(packed: Any, buffers: memoryview, kind: str) -> Any:
    shape, is_array, parts = packed
    make = getattr(sp, f"{kind}_{'array' if is_array else 'matrix'}")
    return make(tuple(_unpacked(part, buffers) for part in parts), shape=tuple(shape))


def _read_timestamp(text: str, zone: str | None) -> pd.Timestamp:
    found = pd.Timestamp(text)
    return found if zone is None else found.tz_convert(zone)


_READERS: dict[str, Callable[[Any, memoryview], Any]] = {
    "array": _read_array,
    "objects": _read_objects,
    "scalar": lambda packed, buffers: _read_array(packed, buffers)[()],
    "dtype": lambda packed, _: np.dtype(packed),
    "record": _read_record,
    "tuple": lambda packed, buffers: tuple(_unpacked(packed, buffers)),
    "named": lambda packed, buffers: _kind_of(packed[0])(*_unpacked(packed[1], buffers)),
    "dict": lambda packed, buffers: {_unpacked(k, buffers): _unpacked(v, buffers) for k, v in packed},
    "set": lambda packed, buffers: set(_unpacked(packed, buffers)),
    "frozenset": lambda packed, buffers: frozenset(_unpacked(packed, buffers)),
    "bytes": lambda packed, _: base64.b64decode(packed),
    "csr": lambda packed, buffers: _read_sparse(packed, buffers, "csr"),
    "csc": lambda packed, buffers: _read_sparse(packed, buffers, "csc"),
    "slice": lambda packed, _: slice(*packed),
    "complex": lambda packed, _: complex(*packed),
    "missing": lambda packed, _: pd.NaT if packed == "NaT" else pd.NA,
    "timestamp": lambda packed, _: _read_timestamp(*packed),
    "datetime": lambda packed, _: datetime.datetime.fromisoformat(packed[0]).replace(fold=packed[1]),
    "date": lambda packed, _: datetime.date.fromisoformat(packed),
}
