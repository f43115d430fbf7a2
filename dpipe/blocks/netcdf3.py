"""NetCDF-3 files, of all three variants, from their bytes: what is where, and some of it.

The format is that of the NetCDF Classic Format Specification (Unidata): a header, then each variable as one piece, or,
if its first dimension grows, one slice of it in each record.
"""

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_TYPES = {
    1: "i1",
    2: "S1",
    3: ">i2",
    4: ">i4",
    5: ">f4",
    6: ">f8",
    7: "u1",
    8: ">u2",
    9: ">u4",
    10: ">i8",
    11: ">u8",
}
_DIMENSIONS, _VARIABLES, _ATTRIBUTES = 10, 11, 12


@dataclass(frozen=True)
class Stored3:
    """One variable: what it is, and where its values lie."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attrs: dict[str, Any]
    begin: int
    strides: tuple[int, ...]

    def values(self, read: Callable[[int, int], bytes | memoryview], where: Sequence[slice]) -> np.ndarray:
        """Give a part of it.

        Parameters
        ----------
        read : callable ``(start, stop) -> bytes``
        where : sequence of slice
            One for each dimension, with a start and a stop.
        """
        shape = tuple(part.stop - part.start for part in where)
        if 0 in shape:
            return np.empty(shape, self.dtype)
        first = self.begin + sum(part.start * step for part, step in zip(where, self.strides, strict=True))
        last = first + sum((n - 1) * step for n, step in zip(shape, self.strides, strict=True))
        found = read(first, last + self.dtype.itemsize)
        if len(found) < last + self.dtype.itemsize - first:
            raise OSError(f"it ends before the values of {self.name!r} do")
        return np.ndarray(shape, self.dtype, found, strides=self.strides).copy()


def read_header(read: Callable[[int, int], bytes | memoryview]) -> tuple[list[Stored3], dict[str, Any]]:
    """Read what variables a file has, and its own attributes.

    Raises
    ------
    OSError
        If it is not NetCDF-3, or its header is broken.
    """
    size = 1 << 16
    while True:
        content = bytes(read(0, size))
        try:
            return _Header(content).parsed()
        except (struct.error, IndexError) as err:
            if len(content) < size:
                raise OSError("its header is cut short") from err
            size *= 8
        except (ValueError, KeyError, UnicodeDecodeError) as err:
            raise OSError(f"its header is broken: {err}") from err


class _Header:
    """A header that is being read."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 4
        self.variant = content[3]
        if content[:3] != b"CDF" or self.variant not in (1, 2, 5):
            raise ValueError("it does not begin as NetCDF-3 does")

    def parsed(self) -> tuple[list[Stored3], dict[str, Any]]:
        n_records = self._count()
        dims = [(self._name(), self._count()) for _ in range(self._list(_DIMENSIONS))]
        attrs = self._attributes()
        found = [self._variable(dims) for _ in range(self._list(_VARIABLES))]
        growing = {i for i, (_, size) in enumerate(dims) if size == 0}
        in_records = [bool(ids) and ids[0] in growing for _, ids, *_ in found]
        sizes = [
            _nbytes(ids[is_record:], dims, kind)
            for (_, ids, _, kind, _), is_record in zip(found, in_records, strict=True)
        ]
        records = [size for size, is_record in zip(sizes, in_records, strict=True) if is_record]
        # a record variable that is alone is not padded
        step = records[0] if len(records) == 1 else sum(-(-size // 4) * 4 for size in records)
        made = []
        for (name, ids, about, kind, begin), is_record in zip(found, in_records, strict=True):
            shape = tuple(n_records if is_record and j == 0 else dims[i][1] for j, i in enumerate(ids))
            strides = _strides(shape, kind.itemsize)
            strides = (step, *strides[1:]) if is_record else strides
            made.append(Stored3(name, tuple(dims[i][0] for i in ids), shape, kind, about, begin, strides))
        return made, attrs

    def _variable(
        self, dims: Sequence[tuple[str, int]]
    ) -> tuple[str, list[int], dict[str, Any], np.dtype[Any], int]:
        name = self._name()
        ids = [self._count() for _ in range(self._count())]
        if any(i >= len(dims) for i in ids):
            raise ValueError(f"{name!r} has a dimension that is not there")
        attrs = self._attributes()
        kind = np.dtype(_TYPES[self._number(">i")])
        self._count()  # its size, which is known from its shape, and does not hold large ones
        return name, ids, attrs, kind, self._number(">i" if self.variant == 1 else ">q")

    def _attributes(self) -> dict[str, Any]:
        return dict(self._attribute() for _ in range(self._list(_ATTRIBUTES)))

    def _attribute(self) -> tuple[str, Any]:
        name = self._name()
        kind = np.dtype(_TYPES[self._number(">i")])
        n = self._count()
        content = self._bytes(n * kind.itemsize)
        if kind.kind == "S":
            return name, content.decode("utf-8", errors="replace").rstrip("\0")
        values = np.frombuffer(content, kind).astype(kind.newbyteorder("="))
        return name, values[0] if n == 1 else values

    def _list(self, tag: int) -> int:
        found, n = self._number(">i"), self._count()
        if found not in (0, tag):
            raise ValueError(f"a list has the tag {found} instead of {tag}")
        return n

    def _count(self) -> int:
        return self._number(">q" if self.variant == 5 else ">I")

    def _name(self) -> str:
        return self._bytes(self._count()).decode("utf-8")

    def _number(self, form: str) -> int:
        (number,) = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return int(number)

    def _bytes(self, n: int) -> bytes:
        found = self.content[self.at : self.at + n]
        if len(found) < n:
            raise IndexError
        self.at += -(-n // 4) * 4
        return found


def _nbytes(ids: Sequence[int], dims: Sequence[tuple[str, int]], kind: np.dtype[Any]) -> int:
    return math.prod(dims[i][1] for i in ids) * kind.itemsize


def _strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    return tuple(itemsize * math.prod(shape[j + 1 :]) for j in range(len(shape)))
