"""Transformed blocks on local disk, for passes that read them many times: memory-mapped, and gone by themselves.

The file has no name from the moment it is made: the system frees its space when the last block is dropped, and also
when the process is killed. Blocks that travel to another process are written again there.
"""

import contextlib
import mmap
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from dpipe.blocks.flows import Flow
from dpipe.blocks.rows import Rows
from dpipe.blocks.side_by_side import SideBySide
from dpipe.blocks.table import Block, codes, numbers
from dpipe.errors import DpipeError
from dpipe.sizes import format_bytes

_ALIGNMENT = 64


class _File:
    """One nameless file of a process, to which many blocks are appended."""

    def __init__(self, folder: str) -> None:
        # it stays open as long as a block of it is needed
        self._file = tempfile.TemporaryFile(prefix="dpipe-scratch-", dir=folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self._end = 0
        self.folder = folder

    def append(self, arrays: Sequence[np.ndarray]) -> tuple[int, ...]:
        """Write arrays, and give where each begins."""
        starts: list[int] = []
        with self._lock:
            start = self._end
            for array in arrays:
                starts.append(start)
                start += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
            self._end = start
        try:
            for begin, array in zip(starts, arrays, strict=True):
                self._write(begin, array)
        except OSError as err:
            raise DpipeError(
                f"Scratch cannot be written in {self.folder}: {err}. {format_bytes(free_nbytes(self.folder))} are free "
                "there. Make room, or name another folder in the environment variable TMPDIR."
            ) from err
        return tuple(starts)

    def _write(self, begin: int, array: np.ndarray) -> None:
        data = array.reshape(-1, order=_order(array)).view(np.uint8)
        while len(data):
            written = os.pwrite(self._file.fileno(), data.data, begin)
            data, begin = data[written:], begin + written

    def view(self, start: int, end: int) -> tuple[mmap.mmap, int]:
        """Map a range of the file; give the mapping, and where the range begins in it."""
        first = start - start % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(self._file.fileno(), max(end - first, 1), access=mmap.ACCESS_COPY, offset=first)
        return mapped, start - first


_files: "weakref.WeakValueDictionary[tuple[str, str], _File]" = weakref.WeakValueDictionary()
_files_lock = threading.Lock()


def _file_of(folder: str, token: str) -> _File:
    with _files_lock:
        found = _files.get((folder, token))
        if found is None:
            found = _files[folder, token] = _File(folder)
        return found


@dataclass(frozen=True)
class _Stored:
    """One array in the file."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]


@dataclass(frozen=True)
class ScratchBlock:
    """The values of one block in scratch, with its targets and weights."""

    file: _File
    token: str
    values: Mapping[Any, tuple[_Stored, ...]]
    """For each value the arrays that it is made of."""
    makers: Mapping[Any, Callable[..., Block]]
    """What makes each value of its arrays."""
    y: _Stored | None
    labels: np.ndarray | None
    """What the codes stand for that are kept in place of labels which are no numbers."""
    w: _Stored | None
    flows: Mapping[str, Flow] = field(default_factory=dict)
    """What was counted when the block was read."""

    @classmethod
    def write(
        cls,
        folder: str,
        token: str,
        values: Mapping[Any, Block],
        rows: Rows,
        flows: Mapping[str, Flow] | None = None,
    ) -> "ScratchBlock":
        """Write matrices, and the targets and weights of `rows`.

        Raises
        ------
        DpipeError
            If there is no room.
        """
        if not values:  # a block without rows
            return cls(_file_of(folder, token), token, {}, {}, None, None, None, flows or {})
        y, labels = _target_numbers(rows.y)
        parts = {key: _taken_apart(value) for key, value in values.items()}
        arrays = [array for own, _ in parts.values() for array in own]
        arrays += [np.ascontiguousarray(array) for array in (y, rows.w) if array is not None]
        file = _file_of(folder, token)
        stored = iter(
            [
                _Stored(start, array.shape, array.dtype, _order(array))
                for start, array in zip(file.append(arrays), arrays, strict=True)
            ]
        )
        kept = {key: tuple(next(stored) for _ in own) for key, (own, _) in parts.items()}
        makers = {key: maker for key, (_, maker) in parts.items()}
        y_kept = None if y is None else next(stored)
        w_kept = None if rows.w is None else next(stored)
        return cls(file, token, kept, makers, y_kept, labels, w_kept, flows or {})

    def rows(self) -> Rows:
        """Map the block: arrays that are read from disk as they are used, and may be written to by the caller."""
        if not self.values:
            return Rows(np.empty((0, 0)), None, None, values={})
        values = {
            key: self.makers[key](*(self._array(stored) for stored in own))
            for key, own in self.values.items()
        }
        y = None if self.y is None else self._array(self.y)
        if y is not None and self.labels is not None:
            y = self.labels[y]
        w = None if self.w is None else self._array(self.w)
        return Rows(next(iter(values.values())), y, w, values=values)

    def _array(self, stored: _Stored) -> np.ndarray:
        n = int(np.prod(stored.shape))
        if not n:
            return np.empty(stored.shape, dtype=stored.dtype)
        mapped, offset = self.file.view(stored.start, stored.start + n * stored.dtype.itemsize)
        flat = np.frombuffer(mapped, stored.dtype, n, offset)
        return flat.reshape(stored.shape, order=stored.order)

    def __reduce__(self) -> Any:
        rows = self.rows()
        return ScratchBlock.write, (self.file.folder, self.token, dict(rows.values or {}), rows)


@dataclass(frozen=True)
class HeldBlock:
    """The values of one block in memory, where there is room for all of them: under the methods of `ScratchBlock`."""

    values: Mapping[Any, Block]
    y: np.ndarray | None
    w: np.ndarray | None
    flows: Mapping[str, Flow] = field(default_factory=dict)

    @classmethod
    def of(
        cls, values: Mapping[Any, Block], rows: Rows, flows: Mapping[str, Flow] | None = None
    ) -> "HeldBlock":
        """Hold values as the matrices that scratch would give, which nobody may write to."""
        held: dict[Any, Block] = {}
        for key, value in values.items():
            arrays, maker = _taken_apart(value)
            views = [array.view() for array in arrays]  # the arrays themselves may be the caller's
            for view in views:
                view.flags.writeable = False
            held[key] = maker(*views)
        return cls(held, rows.y, rows.w, flows or {})

    def rows(self) -> Rows:
        """Give the block, for reading only."""
        X = next(iter(self.values.values()), np.empty((0, 0)))
        return Rows(X, self.y, self.w, values=self.values)


def _taken_apart(value: Block) -> tuple[list[np.ndarray], Callable[..., Block]]:
    """Give the arrays that a value is made of, and what makes it of them again."""
    if isinstance(value, SideBySide):
        return [value.dense, value.codes], partial(_put_together, value.places, value.n_columns, value.sparse)
    matrix = numbers(value)
    if not sp.issparse(matrix):
        return [np.ascontiguousarray(matrix)], _as_it_is
    matrix = matrix.tocsr()
    matrix.sort_indices()
    return [matrix.data, matrix.indices, matrix.indptr], partial(_csr, matrix.shape)


def _as_it_is(array: np.ndarray) -> np.ndarray:
    return array


def _csr(shape: tuple[int, int], *arrays: np.ndarray) -> Any:
    matrix = sp.csr_matrix(arrays, shape=shape, copy=False)
    matrix.has_sorted_indices = True
    return matrix


def _put_together(
    places: np.ndarray, n_columns: int, sparse: bool, dense: np.ndarray, codes: np.ndarray
) -> SideBySide:
    return SideBySide(dense, places, codes, n_columns, sparse)


def _order(array: np.ndarray) -> Literal["C", "F"]:
    return "C" if array.flags.c_contiguous else "F"


def _target_numbers(y: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Give y itself, or codes and what they stand for where it holds texts."""
    if y is None or y.dtype.kind in "iufb":
        return y, None
    found = codes(y.reshape(-1, 1), 0)
    labels = np.empty(len(found.values) + 1, dtype=object)
    labels[:-1] = found.values
    labels[-1] = found.missing
    return np.asarray(found.codes), labels.astype(y.dtype)


def free_nbytes(folder: str) -> int:
    """Give the bytes that may still be written to a folder; 0 if it cannot be looked at."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free
    return 0
