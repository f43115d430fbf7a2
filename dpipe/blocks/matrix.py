"""Put the parts of a design matrix together: dense columns and one-hot columns.

A one-hot part stays as integer codes until it is needed, so that dense and one-hot parts
are written straight into one CSR matrix; the usual way (a CSR matrix a part, then a
horizontal stack) writes every entry three times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from dpipe.blocks.table import Block, Categories, numbers, to_pandas

#: Rows that are transposed at a time: their slice of every column stays in the processor's cache.
_ROWS_AT_A_TIME = 2048


@dataclass(frozen=True)
class OneHot:
    """The output of a one-hot encoder, not yet written out."""

    codes: np.ndarray
    """Of shape (n_rows, n_columns), column-major integers; -1 for no entry."""
    widths: tuple[int, ...]
    """How many output columns each column takes."""
    dtype: np.dtype[Any]
    sparse: bool
    """Whether the encoder was asked for a sparse result."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and output columns."""
        return self.codes.shape[0], sum(self.widths)

    @property
    def offsets(self) -> np.ndarray:
        """The first output column of each column."""
        return np.concatenate([[0], np.cumsum(self.widths)[:-1]]).astype(np.int64)


def to_matrix(value: Block) -> Block:
    """Write out what a scikit-learn estimator takes: an array, a CSR matrix, or a frame."""
    if isinstance(value, OneHot):
        return hstack([value], sparse=value.sparse)
    return to_pandas(value)


def learner_matrix(value: Block, order: np.ndarray | None = None) -> Block:
    """Write out what an ordered learner takes: a row-major array, or CSR; its rows in a given order."""
    matrix = to_matrix(value)
    if isinstance(matrix, np.ndarray) and matrix.dtype != object:
        return row_major(matrix, order)
    if order is None:
        return matrix
    return matrix.iloc[order] if hasattr(matrix, "iloc") else matrix[order]


def row_major(matrix: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
    """Give a matrix in row-major layout, its rows in a given order."""
    rows = np.ascontiguousarray(matrix)
    # scattered reads are of whole rows then, not of single entries in every column
    return rows if order is None else rows.take(order, axis=0)


def is_sparse(value: Block) -> bool:
    """Tell whether scikit-learn would see a sparse matrix."""
    return value.sparse if isinstance(value, OneHot) else bool(sp.issparse(value))


def hstack(parts: Sequence[Block], *, sparse: bool, order: np.ndarray | None = None) -> Block:
    """Put parts side by side, as ColumnTransformer and FeatureUnion do.

    Parameters
    ----------
    parts : sequence of blocks of the same number of rows
        Dense or CSR matrices, frames and `OneHot`.
    sparse : bool
        Whether to give a CSR matrix or a dense array.
    order : numpy.ndarray of shape (n_rows,), optional
        Give the rows in this order; putting them in order here costs less than moving them afterwards.

    Returns
    -------
    numpy.ndarray or scipy.sparse.csr_matrix of shape (n_rows, sum of the widths)
    """
    parts = [part if isinstance(part, OneHot) or sp.issparse(part) else _dense(part) for part in parts]
    dtype = np.result_type(*(part.dtype for part in parts))
    if not sparse:
        dense = _dense_stack(parts, dtype)
        return dense if order is None else row_major(dense, order)
    if any(sp.issparse(part) for part in parts):
        stacked = sp.hstack([_as_csr(part) for part in parts], format="csr", dtype=dtype)
        return stacked if order is None else stacked[order]
    return _csr_stack(parts, dtype, order)


def _dense(part: Block) -> np.ndarray:
    if isinstance(part, np.ndarray):
        return part
    if isinstance(part, Categories):
        return part.to_numpy()
    frame = to_pandas(part)
    if all(getattr(dtype, "kind", "O") in "iufb" for dtype in frame.dtypes):
        matrix: np.ndarray = numbers(frame)
        return matrix
    return np.asarray(frame, dtype=object)


def _as_csr(part: Block) -> Any:
    return part if sp.issparse(part) else _csr_stack([part], part.dtype)


def _dense_stack(parts: Sequence[Block], dtype: np.dtype[Any]) -> np.ndarray:
    n = parts[0].shape[0]
    out = np.zeros((n, sum(part.shape[1] for part in parts)), dtype=dtype, order="F")
    start = 0
    for part in parts:
        end = start + part.shape[1]
        if isinstance(part, OneHot):
            for j, offset in enumerate(part.offsets):
                rows = np.flatnonzero(part.codes[:, j] >= 0)
                out[rows, start + offset + part.codes[rows, j]] = 1
        else:
            out[:, start:end] = part.toarray() if sp.issparse(part) else part
        start = end
    return out


def _csr_stack(parts: Sequence[Any], dtype: np.dtype[Any], order: np.ndarray | None = None) -> Any:
    """Interleave dense and one-hot parts into one CSR matrix."""
    n = parts[0].shape[0]
    width = sum(part.shape[1] if isinstance(part, np.ndarray) else part.codes.shape[1] for part in parts)
    n_columns = sum(part.shape[1] for part in parts)
    index_dtype = np.int32 if max(n * width, n_columns) < 2**31 else np.int64
    indices = np.empty((n, width), dtype=index_dtype)
    data = np.empty((n, width), dtype=dtype)
    by_row = _by_row(parts, np.dtype(index_dtype))
    for start in range(0, n, _ROWS_AT_A_TIME):
        rows = slice(start, min(start + _ROWS_AT_A_TIME, n))
        _fill_rows(by_row, rows if order is None else order[rows], indices[rows], data[rows])
    whole = all(isinstance(part, np.ndarray) or not (part.codes < 0).any() for part in parts)
    if whole:
        indptr = np.arange(0, n * width + 1, max(width, 1), dtype=index_dtype)[: n + 1]
        flat = (data.reshape(-1), indices.reshape(-1), indptr)
    else:
        kept = indices >= 0
        indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(index_dtype)
        flat = (data[kept], indices[kept], indptr)
    matrix = sp.csr_matrix(flat, shape=(n, n_columns))
    matrix.has_sorted_indices = True
    matrix.has_canonical_format = True
    return matrix


@dataclass(frozen=True)
class _ByRow:
    """A part in row-major layout."""

    entries: np.ndarray
    """Values of a dense part, codes of a one-hot part."""
    columns: np.ndarray
    """Output column of each dense entry; the first output column of each code."""
    is_dense: bool


def _by_row(parts: Sequence[Any], index_dtype: np.dtype[Any]) -> list[_ByRow]:
    made, start = [], 0
    for part in parts:
        if isinstance(part, np.ndarray):
            columns = np.arange(start, start + part.shape[1], dtype=index_dtype)
            made.append(_ByRow(np.ascontiguousarray(part), columns, True))
        else:
            codes = np.ascontiguousarray(part.codes, dtype=index_dtype)
            made.append(_ByRow(codes, (start + part.offsets).astype(index_dtype), False))
        start += part.shape[1]
    return made


def _fill_rows(
    parts: Sequence[_ByRow], rows: slice | np.ndarray, indices: np.ndarray, data: np.ndarray
) -> None:
    """Write some rows of all parts side by side: column numbers and values."""
    slot = 0
    for part in parts:
        entries = part.entries[rows] if isinstance(rows, slice) else part.entries.take(rows, axis=0)
        slots = slice(slot, slot + entries.shape[1])
        slot = slots.stop
        if part.is_dense:
            indices[:, slots] = part.columns
            data[:, slots] = entries
            continue
        np.add(entries, part.columns, out=indices[:, slots])
        if entries.size and entries.min() < 0:
            indices[:, slots][entries < 0] = -1
        data[:, slots] = 1
