"""Fingerprints: what a value is, whatever process looks at it, and what it would compute.

A function is its code, with all that it refers to; a text that names a file stands for the file as it is now.
Equal fingerprints mean equal results; what cannot be looked into has none.
"""

import dis
import functools
import hashlib
import inspect
import os
import re
import struct
import sys
import sysconfig
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from dask._task_spec import _execute_subgraph
from dask.task_spec import Alias, DataNode, GraphNode, Task, TaskRef
from xarray.backends import BackendArray

from dpipe.ledger.stored import stored_as

#: Code below these folders belongs to a release: its version says what it is.
_INSTALLED = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


class Unknowable(TypeError):
    """A value that has no fingerprint: nothing tells what it will do."""


class Fingerprinter:
    """Takes fingerprints, and remembers what it met on the way.

    Attributes
    ----------
    functions : dict of str to str
        The fingerprint of each function and class of the user's own that it met, by name.

    Examples
    --------
    >>> taker = Fingerprinter()
    >>> taker.of([1, "a"]) == Fingerprinter().of([1, "a"]), taker.of(1) == taker.of(1.0)
    (True, False)
    """

    def __init__(self) -> None:
        self.functions: dict[str, str] = {}
        self._known: dict[int, tuple[Any, str]] = {}
        self._inside: dict[int, int] = {}

    def of(self, value: Any) -> str:
        """Give the fingerprint of a value: 32 hexadecimal digits.

        Raises
        ------
        Unknowable
            If a part of it is of a kind that cannot be looked into.
        """
        if isinstance(value, _PLAIN):
            return _digest(type(value).__name__, self._plain(value))
        found = self._known.get(id(value))
        if found is not None:
            return found[1]
        if id(value) in self._inside:  # a circle: named by how far up it closes
            return _digest("circle", str(len(self._inside) - self._inside[id(value)]))
        self._inside[id(value)] = len(self._inside)
        try:
            digest = _digest(_full_name(type(value)), *self._parts(value))
        finally:
            del self._inside[id(value)]
        if not self._inside:  # inside of a circle it depends on where the circle was entered
            self._known[id(value)] = value, digest
        return digest

    def _plain(self, value: Any) -> str | bytes:
        if isinstance(value, str) and 0 < len(value) < 4096 and os.sep in value:
            return f"{value}{_file_stamp(value)}"
        return value if isinstance(value, bytes) else repr(value)

    def _parts(self, value: Any) -> list[str | bytes]:
        """Give what makes a value what it is, beside its type."""
        if is_dataclass(value) and not isinstance(value, type):
            return self._record(value)
        for kinds, method in _KINDS:
            if isinstance(value, kinds):
                parts: list[str | bytes] = method(self, value)
                return parts
        return self._state(value)

    def _each(self, values: Any) -> list[str | bytes]:
        return [self.of(item) for item in values]

    def _pairs(self, mapping: Any) -> list[str | bytes]:
        return sorted(f"{self.of(key)}{self.of(value)}" for key, value in mapping.items())

    def _array(self, array: np.ndarray) -> list[str | bytes]:
        about = f"{array.dtype.str}{array.shape}"
        if array.dtype.kind == "O":
            return [about, *self._each(array.ravel().tolist())]
        return [about, np.ascontiguousarray(array).tobytes()]

    def _frame(self, frame: Any) -> list[str | bytes]:
        table = pa.Table.from_pandas(frame.to_frame() if isinstance(frame, pd.Series) else frame)
        return [_arrow_bytes(table), str(getattr(frame, "dtypes", ""))]

    def _sparse(self, matrix: Any) -> list[str | bytes]:
        rows = matrix.tocsr()
        return [matrix.format, str(matrix.shape), *self._each([rows.data, rows.indices, rows.indptr])]

    def _record(self, value: Any) -> list[str | bytes]:
        # what is not compared is no part of what it is: credentials, for one
        held = [self.of(getattr(value, item.name)) for item in fields(value) if item.compare]
        return [*held, self.of(type(value))]

    def _function(self, function: types.FunctionType) -> list[str | bytes]:
        name = _full_name(function)
        if _is_installed(function):
            return [name]
        held = [_content(cell) for cell in function.__closure__ or ()]
        parts: list[str | bytes] = [
            self._code(function.__code__),
            *self._each([function.__defaults__, function.__kwdefaults__]),
            *self._each(held),
        ]
        for used in sorted(_global_names(function.__code__)):
            if used in function.__globals__:
                parts.append(f"{used}={self._used(function.__globals__[used])}")
        self.functions[name] = _digest(*parts)
        return parts

    def _used(self, value: Any) -> str:
        """What a function refers to; a module stands for its version, as its parts are not known."""
        if isinstance(value, types.ModuleType):
            return f"{value.__name__} {getattr(value, '__version__', '')}"
        return self.of(value)

    def _code(self, code: types.CodeType) -> str:
        parts: list[str | bytes] = [
            code.co_code,
            repr(code.co_names),
            repr(code.co_varnames),
            str(code.co_flags),
        ]
        constants = [self._code(c) if isinstance(c, types.CodeType) else self.of(c) for c in code.co_consts]
        return _digest(*parts, *constants)

    def _class(self, kind: type) -> list[str | bytes]:
        """Name a class; one of the user's own is what its methods do."""
        name = _full_name(kind)
        if kind.__module__ == "builtins" or _is_installed(kind):
            return [name]
        parts: list[str | bytes] = [name, *(_full_name(base) for base in kind.__mro__[1:])]
        for key, member in sorted(vars(kind).items()):
            member = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(member, types.FunctionType):
                parts.append(f"{key}={self.of(member)}")
        self.functions[name] = _digest(*parts)
        return parts

    def _partial(self, value: Any) -> list[str | bytes]:
        return self._each([value.func, value.args, value.keywords])

    def _method(self, value: Any) -> list[str | bytes]:
        if isinstance(value.__self__, types.ModuleType | type(None)):
            return [_full_name(value)]
        return [value.__name__, self.of(value.__self__)]

    def _task(self, node: Any) -> list[str | bytes]:
        return [self.of_task(node, {})]

    def of_task(self, node: Any, known: Mapping[Any, str]) -> str:
        """Give the fingerprint of a task of Dask: names of keys do not count, what they stand for does.

        Parameters
        ----------
        node
            A graph node, or an argument of one.
        known : mapping of keys to str
            The fingerprints of what it depends on.
        """
        if isinstance(node, Alias):
            return known.get(node.target, f"key {node.target}")
        if isinstance(node, TaskRef):
            return known.get(node.key, f"key {node.key}")
        if isinstance(node, DataNode):
            return self.of(node.value)
        if isinstance(node, Task):
            if node.func is _execute_subgraph:
                return self._fused(node, known)
            arguments = [self.of_task(item, known) for item in node.args]
            named = [f"{name}={self.of_task(item, known)}" for name, item in sorted(node.kwargs.items())]
            return _digest("task", self.of(node.func), *arguments, *named)
        if isinstance(node, list | tuple) and any(isinstance(i, GraphNode | TaskRef) for i in node):
            return _digest(type(node).__name__, *(self.of_task(item, known) for item in node))
        if isinstance(node, dict) and any(isinstance(i, GraphNode | TaskRef) for i in node.values()):
            return _digest("dict", *(f"{self.of(k)}{self.of_task(v, known)}" for k, v in node.items()))
        return self.of(node)

    def _fused(self, node: Any, known: Mapping[Any, str]) -> str:
        """Several tasks in one: a graph of its own, the key it gives, and what it takes from outside."""
        inner, output, taken, *given = (_plain_argument(item) for item in node.args)
        found = {key: self.of_task(item, known) for key, item in zip(taken, given, strict=True)}

        def follow(key: Any) -> str:
            if key not in found and key in inner:
                for other in inner[key].dependencies:
                    follow(other)
                found[key] = self.of_task(inner[key], {**known, **found})
            return found.get(key, known.get(key, f"key {key}"))

        return follow(output)

    def _state(self, value: Any) -> list[str | bytes]:
        """What an object of any other class would be copied from."""
        kind = [self.of(type(value))]
        if hasattr(value, "__dict__") and "__reduce__" not in vars(type(value)):
            held = {name: item for name, item in vars(value).items() if not name.startswith("__")}
            return [*kind, *self._pairs(held)]
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as err:
            raise Unknowable(f"a {_full_name(type(value))} cannot be looked into") from err
        return [*kind, *([reduced] if isinstance(reduced, str) else self._each(reduced[:3]))]

    def _stored(self, array: Any) -> list[str | bytes]:
        found = stored_as(array)
        if found is None:
            raise Unknowable(f"the files behind a {_full_name(type(array))} cannot be seen")
        return [found, str(array.dtype)]

    def _unknowable(self, value: Any) -> list[str | bytes]:
        raise Unknowable(f"a {_full_name(type(value))} cannot be looked into")


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def _plain_argument(item: Any) -> Any:
    return item.value if isinstance(item, DataNode) else item


def _arrow_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
        writer.write_table(table.replace_schema_metadata(None))
    return bytes(sink.getvalue())


def _arrow_type(self: Fingerprinter, value: Any) -> list[str | bytes]:
    return [str(value)]


def _reduced(self: Fingerprinter, value: Any) -> list[str | bytes]:
    return [repr(value)]


#: In this order; the first that fits.
_KINDS: tuple[tuple[Any, Any], ...] = (
    (Enum | np.dtype | range | slice | Decimal | date | time | timedelta | tzinfo | re.Pattern, _reduced),
    (PurePath, lambda self, value: [self._plain(os.fspath(value))]),
    (np.ndarray, Fingerprinter._array),
    (np.generic, lambda self, value: self._array(np.asarray(value))),
    (np.random.RandomState, lambda self, value: self._each(value.get_state(legacy=True))),
    (np.random.Generator, lambda self, value: self._pairs(value.bit_generator.state)),
    (np.ufunc, lambda self, value: [value.__name__]),
    (pd.DataFrame | pd.Series, Fingerprinter._frame),
    (pd.Index, lambda self, value: self._frame(value.to_frame(index=False))),
    (pd.api.extensions.ExtensionDtype | type(pd.NA), _reduced),
    (pa.Table, lambda self, value: [_arrow_bytes(value)]),
    (pa.Schema | pa.DataType | pa.Field, _arrow_type),
    (BackendArray, Fingerprinter._stored),
    (GraphNode | TaskRef, Fingerprinter._task),
    (type, Fingerprinter._class),
    (types.FunctionType, Fingerprinter._function),
    (types.MethodType | types.BuiltinMethodType | types.BuiltinFunctionType, Fingerprinter._method),
    (functools.partial, Fingerprinter._partial),
    (types.ModuleType, lambda self, value: [value.__name__, str(getattr(value, "__version__", ""))]),
    (types.GeneratorType | types.CoroutineType | types.FrameType, Fingerprinter._unknowable),
    (dict | types.MappingProxyType, Fingerprinter._pairs),
    (set | frozenset, lambda self, value: sorted(self._each(value))),
    (list | tuple, Fingerprinter._each),
)


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(struct.pack("<Q", len(content)))
        digest.update(content)
    return digest.hexdigest()


def joined(*parts: str) -> str:
    """Make one fingerprint of several, in their order."""
    return _digest(*parts)


def _full_name(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", type(value).__name__)
    return f"{getattr(value, '__module__', '')}.{name}"


@functools.lru_cache(maxsize=4096)
def _is_installed(value: Any) -> bool:
    """Tell whether code belongs to an installed package, or to this one, whose versions are known."""
    module = getattr(value, "__module__", None) or ""
    if module.partition(".")[0] in ("dpipe", "builtins"):
        return True
    if module == "__main__":
        return False
    loaded = sys.modules.get(module)
    where = getattr(loaded, "__file__", None)
    if loaded is not None and where is None:
        return True  # built in, or compiled in
    try:
        where = where or inspect.getfile(value)
    except (TypeError, OSError):
        return False
    return os.path.abspath(where).startswith(_INSTALLED)


@functools.lru_cache(maxsize=4096)
def _global_names(code: types.CodeType) -> frozenset[str]:
    """Names of globals that a piece of code reads, also from functions inside of it."""
    own = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(own.union(*map(_global_names, inner)))


def _file_stamp(path: str) -> str:
    """Size and time of a file that a text names; nothing if it names none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f" {status.st_size} {status.st_mtime_ns}" if os.path.isfile(path) else ""
