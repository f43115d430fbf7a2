"""Dense columns and one-hot codes side by side, multiplied without ever being written out.

In one sparse matrix each dense value would carry the number of its column, and be looked up by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from dpipe.blocks.matrix import OneHot
from dpipe.blocks.table import Block


@dataclass(frozen=True)
class SideBySide:
    """A matrix of shape (n_rows, n_columns), in parts."""

    dense: np.ndarray
    """Of shape (n_rows, n_dense)."""
    places: np.ndarray
    """Which columns the dense part takes."""
    codes: np.ndarray
    """int32 of shape (n_rows, n_codes): the columns in which each row has a one; `n_columns` for none."""
    n_columns: int
    sparse: bool
    """Whether scikit-learn would be given a sparse matrix."""

    __array_ufunc__ = None  # an array on the left leaves the product to `__rmatmul__`
    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.dense), self.n_columns

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the dense part."""
        return self.dense.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.dense.nbytes + self.codes.nbytes

    @property
    def T(self) -> "Transposed":
        """The transposed matrix, for products."""
        return Transposed(self)

    def taken(self, rows: np.ndarray) -> "SideBySide":
        """Take some rows, by a mask or by position."""
        return replace(self, dense=self.dense[rows], codes=self.codes[rows])

    def __matmul__(self, right: np.ndarray) -> np.ndarray:
        none = np.zeros((1, *right.shape[1:]), dtype=right.dtype)
        out: np.ndarray = self.dense @ right[self.places]
        out += self.one_hot @ np.concatenate([right, none])
        return out

    @cached_property
    def one_hot(self) -> Any:
        """The codes as a CSR matrix, with one more column for no code."""
        n, k = self.codes.shape
        ones = np.ones(n * k, dtype=self.dtype)
        ends = np.arange(0, n * k + 1, k, dtype=np.int32)
        return sp.csr_matrix((ones, self.codes.reshape(-1), ends), shape=(n, self.n_columns + 1), copy=False)

    def __rmatmul__(self, left: np.ndarray) -> np.ndarray:
        return (self.T @ left.T).T

    def written_out(self) -> Block:
        """Give a CSR matrix, or a dense array which is column-major."""
        n = len(self.dense)
        if not self.sparse:
            out = np.zeros((n, self.n_columns + 1), dtype=self.dtype, order="F")
            out[:, self.places] = self.dense
            for j in range(self.codes.shape[1]):
                out[np.arange(n), self.codes[:, j]] = 1
            return out[:, :-1]
        indices = np.hstack([np.broadcast_to(self.places, self.dense.shape), self.codes]).astype(np.int32)
        data = np.hstack([self.dense, np.ones(self.codes.shape, dtype=self.dtype)])
        kept = indices < self.n_columns
        indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
        matrix = sp.csr_matrix((data[kept], indices[kept], indptr), shape=self.shape)
        matrix.sort_indices()
        return matrix


@dataclass(frozen=True)
class Transposed:
    """The transpose of a matrix in parts."""

    of: SideBySide
    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, int]:
        """Columns and rows."""
        return self.of.shape[::-1]

    def __matmul__(self, right: np.ndarray) -> np.ndarray:
        matrix = self.of
        out: np.ndarray = (matrix.one_hot.T @ right)[:-1]
        out[matrix.places] += matrix.dense.T @ right
        return out


def side_by_side(parts: Sequence[Block], *, sparse: bool) -> SideBySide | None:
    """Put dense arrays and one-hot parts side by side; None if there is another part, or no one-hot one."""
    dense = [part for part in parts if isinstance(part, np.ndarray) and part.dtype.kind == "f"]
    one_hot = [part for part in parts if isinstance(part, OneHot)]
    if not one_hot or len(dense) + len(one_hot) < len(parts):
        return None
    n, width = parts[0].shape[0], sum(part.shape[1] for part in parts)
    kind = np.result_type(*(part.dtype for part in parts))
    codes = np.empty((n, sum(part.codes.shape[1] for part in one_hot)), dtype=np.int32)
    values = np.empty((n, sum(part.shape[1] for part in dense)), dtype=kind)
    places: list[int] = []
    start, n_codes = 0, 0
    for part in parts:
        if isinstance(part, OneHot):
            for j, offset in enumerate(part.offsets):
                mine = part.codes[:, j]
                codes[:, n_codes] = np.where(mine < 0, width, start + offset + mine)
                n_codes += 1
        else:
            values[:, len(places) : len(places) + part.shape[1]] = part
            places += range(start, start + part.shape[1])
        start += part.shape[1]
    return SideBySide(values, np.array(places, dtype=np.intp), codes, width, sparse)
