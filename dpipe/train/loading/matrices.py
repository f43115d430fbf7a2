"""One block as row-major numbers in memory that is there already."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from dpipe.blocks.matrix import learner_matrix
from dpipe.blocks.rows import Rows, checked_weights
from dpipe.blocks.table import Block, numbers
from dpipe.blocks.threads import single_threaded_blas
from dpipe.errors import InputError
from dpipe.families.fitted import transformed
from dpipe.families.registry import Estimator

#: Rows that are transposed at a time: their columns stay in the processor's cache.
_ROWS_AT_A_TIME = 4096
#: Rows whose columns are copied beside each other before that: few large steps, as other threads run between them.
_COPIED_ROWS = 65_536


@dataclass(frozen=True)
class Columns:
    """What a batch consists of: widths and types of X, y and weights.

    Examples
    --------
    >>> Columns(3, np.dtype("float32"), (), np.dtype("int64"), weighted=False).row_nbytes
    20
    """

    width: int
    dtype: np.dtype[Any]
    y_shape: tuple[int, ...] | None
    """Of one target: () or (n_targets,); None without targets."""
    y_dtype: np.dtype[Any]
    weighted: bool

    @property
    def shapes(self) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape of one row, and type, of each part of a batch."""
        parts: list[tuple[tuple[int, ...], np.dtype[Any]]] = [((self.width,), self.dtype)]
        if self.y_shape is not None:
            parts.append((self.y_shape, self.y_dtype))
        if self.weighted:
            parts.append(((), self.dtype))
        return parts

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row."""
        return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.shapes)

    def buffers(self, n: int) -> list[np.ndarray]:
        """Make room for some rows."""
        return [np.empty((n, *shape), dtype=dtype) for shape, dtype in self.shapes]

    @classmethod
    def of(cls, rows: Rows, transform: Estimator | None, dtype: np.dtype[Any]) -> "Columns":
        """Look at some rows that are as all the others.

        Raises
        ------
        InputError
            If there are no rows, or targets are no numbers.
        """
        width = prepared_matrix(rows.X, transform, dtype).shape[1]
        y = rows.y
        if y is None:
            return cls(width, dtype, None, np.dtype(np.int64), rows.w is not None)
        y_dtype = dtype if y.dtype.kind == "f" else np.dtype(np.int64)
        if y.dtype.kind not in "iufb":
            raise InputError(
                f"y is of type {y.dtype}; batches hold numbers. Encode labels first, as by y.map({{label: number}})."
            )
        return cls(width, dtype, y.shape[1:], y_dtype, rows.w is not None)

    def fill(self, out: Sequence[np.ndarray], rows: Rows, transform: Estimator | None, part: slice) -> None:
        """Write some rows of a block into buffers of as many rows.

        Raises
        ------
        InputError
            If a block is not as the first one was, or a weight is negative or missing.
        """
        X, *beside = out
        if transform is None and isinstance(rows.X, pa.Table):
            _transpose_table(X, rows.X.slice(part.start, part.stop - part.start))
        else:
            matrix = prepared_matrix(rows.X, transform, self.dtype)[part]
            if matrix.shape[1] != self.width:
                raise InputError(
                    f"A block has {matrix.shape[1]} columns where others have {self.width}. Fit the transform on all "
                    "of the data."
                )
            _transpose(X, matrix)
        given = [rows.y] if self.y_shape is not None else []
        given += [checked_weights(rows.w)] if self.weighted else []
        for into, values in zip(beside, given, strict=True):
            assert values is not None
            chosen = values[part]
            if chosen.dtype.kind not in "iufb" or (into.dtype.kind == "i" and chosen.dtype.kind == "f"):
                raise InputError(
                    f"y is of type {chosen.dtype} in a block, and of {into.dtype} in the first one. Give it one type, "
                    "without missing values."
                )
            into[:] = chosen


def prepared_matrix(block: Block, transform: Estimator | None, dtype: np.dtype[Any]) -> np.ndarray:
    """Transform a block; give its numbers."""
    if transform is None:
        made = block if isinstance(block, np.ndarray) and block.dtype.kind in "iufb" else numbers(block)
    else:
        with single_threaded_blas():
            made = learner_matrix(transformed(transform, block))
        if not isinstance(made, np.ndarray) or made.dtype.kind not in "iufb":
            made = numbers(made)
    return made.astype(dtype).toarray() if sp.issparse(made) else made  # type: ignore[union-attr]


def _transpose_table(out: np.ndarray, table: pa.Table) -> None:
    """Write the columns of a table into a row-major matrix, nulls as NaN."""
    columns = [column.to_numpy() for column in table.columns if _is_plain(column)]
    if len(columns) < table.num_columns:
        _transpose(out, numbers(table))
        return
    held = np.empty((len(columns), min(_COPIED_ROWS, len(out))), dtype=out.dtype)
    for start in range(0, len(out), _COPIED_ROWS):
        part = slice(start, min(start + _COPIED_ROWS, len(out)))
        some = held[:, : part.stop - start]
        for own, column in zip(some, columns, strict=True):
            own[:] = column[part]
        out[part] = some.T


def _is_plain(column: pa.ChunkedArray) -> bool:
    """Tell whether a column holds numbers without nulls, which are in memory as NumPy has them."""
    kind = column.type
    return not column.null_count and (pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _transpose(out: np.ndarray, matrix: np.ndarray) -> None:
    """Copy a matrix of any layout into a row-major one, so that what is read stays in the processor's cache."""
    for start in range(0, len(out), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        out[part] = matrix[part]
