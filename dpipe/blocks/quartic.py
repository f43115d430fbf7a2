"""Products of up to four deviations: what the spread of a covariance itself is measured by."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import scipy.sparse as sp

from dpipe.blocks.regression import settle_constants
from dpipe.blocks.table import Block, numbers
from dpipe.blocks.threads import single_threaded_blas


@dataclass(frozen=True)
class Quartic:
    """Sums over rows of products of two, three and four deviations from the mean, for all pairs of columns.

    Notes
    -----
    Three matrices of shape (n_features, n_features), and three products of matrices for a block. Joining
    two of them moves both to the common mean: the binomial formula, no difference of large sums.

    References
    ----------
    Pébay (2008), Formulas for robust, one-pass parallel computation of covariances and arbitrary-order
    statistical moments.
    """

    n_rows: int
    x_mean: np.ndarray
    xx: np.ndarray
    """Sum of d_j d_k, d being a row less the mean."""
    xxy: np.ndarray
    """Sum of d_j^2 d_k, at [j, k]."""
    xxyy: np.ndarray
    """Sum of d_j^2 d_k^2."""
    dtype: np.dtype[Any]
    sparse: bool

    @classmethod
    @np.errstate(invalid="ignore", over="ignore")  # infinity is refused when all blocks are joined
    def of(cls, X: Block, y: Any = None, w: np.ndarray | None = None) -> Self:
        """Read one block, without weights; `y` is not looked at."""
        matrix = numbers(X)
        is_sparse = bool(sp.issparse(matrix))
        values = (matrix.toarray() if is_sparse else matrix).astype(np.float64)
        with single_threaded_blas():
            mean = values.sum(axis=0) / max(len(values), 1)
            settle_constants(mean, values)
            deviations = values - mean
            squares = deviations**2
            xx, xxy, xxyy = deviations.T @ deviations, squares.T @ deviations, squares.T @ squares
        return cls(len(values), mean, xx, xxy, xxyy, matrix.dtype, is_sparse)

    @np.errstate(invalid="ignore", over="ignore")
    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        n = self.n_rows + other.n_rows
        mean = self.x_mean + (other.x_mean - self.x_mean) * (other.n_rows / (n or 1))
        mine, theirs = self.about(mean), other.about(mean)
        return type(self)(
            n,
            mean,
            mine.xx + theirs.xx,
            mine.xxy + theirs.xxy,
            mine.xxyy + theirs.xxyy,
            np.result_type(self.dtype, other.dtype),
            self.sparse or other.sparse,
        )

    def about(self, point: np.ndarray) -> Self:
        """Give the same sums of deviations from another point than the mean."""
        d = self.x_mean - point
        squares, own = d**2, np.diag(self.xx)
        both = self.n_rows * np.outer(squares, squares)
        xxy = self.xxy + np.outer(own, d) + 2 * d[:, None] * self.xx + self.n_rows * np.outer(squares, d)
        crossed = 2 * d * self.xxy
        xxyy = self.xxyy + crossed + crossed.T + 4 * np.outer(d, d) * self.xx + both
        xxyy = xxyy + np.outer(own, squares) + np.outer(squares, own)
        return replace(self, x_mean=point, xx=self.xx + self.n_rows * np.outer(d, d), xxy=xxy, xxyy=xxyy)
