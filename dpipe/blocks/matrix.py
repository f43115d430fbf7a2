"""Put the parts of a design matrix together: dense columns and one-hot columns.

A one-hot part stays as integer codes until it is needed, and a dense part may be worked out a slice of
rows at a time, so that both are written straight into one matrix; the usual way (a CSR matrix a part,
then a horizontal stack) writes every entry three times.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from dpipe.blocks.table import Block, Categories, numbers, to_pandas

#: Rows that are worked on at a time: some columns of them stay in the processor's cache.
_ROWS_AT_A_TIME = 32_768


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


class RowWise:
    """A dense part that is worked out a slice of rows at a time."""

    def __init__(self, rows: Callable[[slice], np.ndarray], n_rows: int) -> None:
        self.rows = rows
        """Gives floats of shape (rows of the slice, n_columns)."""
        first = rows(slice(0, 1))
        self.shape = n_rows, first.shape[1]
        self.dtype = first.dtype

    def whole(self) -> np.ndarray:
        """Work out all rows."""
        return self.rows(slice(0, self.shape[0]))


class RowOrder:
    """A permutation of the rows of a block, known from both sides.

    Examples
    --------
    >>> RowOrder(places=np.array([2, 0, 1])).rows.tolist()
    [1, 2, 0]
    """

    def __init__(self, places: np.ndarray) -> None:
        self.places = places
        """Where each row goes."""
        self.rows = np.empty_like(places)
        """Which row stands at each place."""
        self.rows[places] = np.arange(len(places))


def learner_matrix(value: Block, order: RowOrder | None = None) -> Block:
    """Write out what an ordered learner takes: a row-major array, or CSR; its rows in a given order."""
    if isinstance(value, RowWise):
        return _dense_rows([value], value.dtype, order)
    matrix = to_matrix(value)
    if isinstance(matrix, np.ndarray) and matrix.dtype != object:
        return np.ascontiguousarray(matrix) if order is None else _dense_rows([matrix], matrix.dtype, order)
    if order is None:
        return matrix
    return matrix.iloc[order.rows] if hasattr(matrix, "iloc") else matrix[order.rows]


def is_sparse(value: Block) -> bool:
    """Tell whether scikit-learn would see a sparse matrix."""
    return value.sparse if isinstance(value, OneHot) else bool(sp.issparse(value))


def hstack(parts: Sequence[Block], *, sparse: bool) -> Block:
    """Put parts side by side, as ColumnTransformer and FeatureUnion do.

    Parameters
    ----------
    parts : sequence of blocks of the same number of rows
        Dense or CSR matrices, frames and `OneHot`.
    sparse : bool
        Whether to give a CSR matrix or a dense array, which is column-major.

    Returns
    -------
    numpy.ndarray or scipy.sparse.csr_matrix of shape (n_rows, sum of the widths)
    """
    parts = [part if isinstance(part, OneHot) or sp.issparse(part) else _dense(part) for part in parts]
    dtype = np.result_type(*(part.dtype for part in parts))
    if not sparse:
        return _dense_stack(parts, dtype)
    if any(sp.issparse(part) for part in parts):
        return sp.hstack([_as_csr(part) for part in parts], format="csr", dtype=dtype)
    return _csr_rows(parts, dtype)


def stack_rows(parts: Sequence[Block], *, sparse: bool, order: RowOrder | None = None) -> Block:
    """Put parts side by side for an ordered learner: CSR or row-major, the rows in a given order.

    Writing rows where they belong costs less than moving them afterwards.

    Parameters
    ----------
    parts : sequence of blocks of the same number of rows
        Those of `hstack`, and `RowWise`.
    sparse : bool
        Whether to give a CSR matrix or a dense array.
    order : RowOrder, optional
        Without it, rows stay where they are.

    Returns
    -------
    numpy.ndarray or scipy.sparse.csr_matrix of shape (n_rows, sum of the widths)
    """
    kept = [
        part if isinstance(part, OneHot | RowWise) or sp.issparse(part) else _dense(part) for part in parts
    ]
    dtype = np.result_type(*(part.dtype for part in kept))
    if dtype.kind == "O" or any(sp.issparse(part) for part in kept):
        whole = [part.whole() if isinstance(part, RowWise) else part for part in kept]
        return learner_matrix(hstack(whole, sparse=sparse), order)
    return _csr_rows(kept, dtype, order) if sparse else _dense_rows(kept, dtype, order)


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
    return part if sp.issparse(part) else _csr_rows([part], part.dtype)


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


def _dense_rows(parts: Sequence[Any], dtype: np.dtype[Any], order: RowOrder | None) -> np.ndarray:
    """Put dense and one-hot parts into one row-major matrix."""
    slots = list(_slots([part.shape[1] for part in parts]))
    out = np.empty((parts[0].shape[0], slots[-1].stop), dtype=dtype)
    for rows in _slices(len(out)):
        into = out[rows] if order is None else np.empty_like(out[rows])
        for part, mine in zip(parts, slots, strict=True):
            cut = _cut(part, rows)
            into[:, mine] = _dense_stack([cut], dtype) if isinstance(cut, OneHot) else cut
        if order is not None:
            _put_rows(out, order.places[rows], into)
    return out


def _csr_rows(parts: Sequence[Any], dtype: np.dtype[Any], order: RowOrder | None = None) -> Any:
    """Put dense and one-hot parts into one CSR matrix."""
    n, n_columns = parts[0].shape[0], sum(part.shape[1] for part in parts)
    data = _entries(parts, dtype, order)
    width = data.shape[1]
    indices = _column_numbers(
        parts, np.dtype(np.int32 if max(n * width, n_columns) < 2**31 else np.int64), order
    )
    index_dtype = indices.dtype
    if all(not isinstance(part, OneHot) or not (part.codes < 0).any() for part in parts):
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


def _entries(parts: Sequence[Any], dtype: np.dtype[Any], order: RowOrder | None) -> np.ndarray:
    """The values of a CSR matrix, row by row; of a one-hot part a one for each code, missing or not."""
    slots = list(_slots([_row_width(part) for part in parts]))
    out = np.empty((parts[0].shape[0], slots[-1].stop), dtype=dtype)
    for rows in _slices(len(out)):
        into = out[rows] if order is None else np.empty_like(out[rows])
        for part, mine in zip(parts, slots, strict=True):
            into[:, mine] = 1 if isinstance(part, OneHot) else _cut(part, rows)
        if order is not None:
            _put_rows(out, order.places[rows], into)
    return out


def _column_numbers(parts: Sequence[Any], dtype: np.dtype[Any], order: RowOrder | None) -> np.ndarray:
    """The column numbers of a CSR matrix, row by row; -1 where a one-hot part has no entry."""
    slots = list(_slots([_row_width(part) for part in parts]))
    out = np.empty((parts[0].shape[0], slots[-1].stop), dtype=dtype)
    columns = list(_slots([part.shape[1] for part in parts]))
    out[:] = np.concatenate(
        [
            np.arange(mine.start, mine.start + _row_width(part))
            for part, mine in zip(parts, columns, strict=True)
        ]
    )
    for part, mine, first in zip(parts, slots, columns, strict=True):
        if not isinstance(part, OneHot):
            continue
        codes, offsets = (
            np.ascontiguousarray(part.codes, dtype=dtype),
            (first.start + part.offsets).astype(dtype),
        )
        for rows in _slices(len(out)):
            mine_here = codes[rows] if order is None else codes.take(order.rows[rows], axis=0)
            np.add(mine_here, offsets, out=out[rows, mine])
            if mine_here.size and mine_here.min() < 0:
                out[rows, mine][mine_here < 0] = -1
    return out


def _slices(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS_AT_A_TIME, n)) for start in range(0, n, _ROWS_AT_A_TIME))


def _slots(widths: Sequence[int]) -> Iterator[slice]:
    """Where each of several parts stands side by side."""
    start = 0
    for width in widths:
        yield slice(start, start + width)
        start += width


def _row_width(part: Any) -> int:
    """Entries of one row of a part in a CSR matrix."""
    return int(part.codes.shape[1] if isinstance(part, OneHot) else part.shape[1])


def _cut(part: Any, rows: slice) -> Any:
    """Give some rows of a part."""
    if isinstance(part, RowWise):
        return part.rows(rows)
    return replace(part, codes=part.codes[rows]) if isinstance(part, OneHot) else part[rows]


def _put_rows(out: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
    """Write whole rows of a row-major matrix; as one opaque value a row, NumPy moves them fastest."""
    if rows.shape[1]:
        row = np.dtype((np.void, rows.shape[1] * rows.itemsize))
        np.put(out.view(row), places, rows.view(row))
