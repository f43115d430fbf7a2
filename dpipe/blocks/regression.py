"""Statistics of a block about X and y together: cross products, and moments by class."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import scipy.sparse as sp

from dpipe.blocks.statistics import Moments
from dpipe.blocks.table import Block, codes, n_rows, numbers
from dpipe.blocks.threads import single_threaded_blas
from dpipe.errors import InputError


def target_matrix(y: Any) -> np.ndarray:
    """Give y as float64 of shape (n_rows, n_targets)."""
    values = np.asarray(y, dtype=np.float64)
    return values.reshape(-1, 1) if values.ndim == 1 else values


def settle_constants(mean: np.ndarray, values: np.ndarray) -> None:
    """Make the mean of a column that holds one value that value, in place.

    Its deviations are zero then. What the rounding of a sum would leave of them, a solver could take for a
    direction in which the rows differ, and scale up to a coefficient.

    Parameters
    ----------
    mean : ndarray of shape (n_columns,)
        Changed where a column is constant.
    values : ndarray of shape (n_rows, n_columns)

    Examples
    --------
    >>> mean = np.array([3.6999999999999997, 0.5])
    >>> settle_constants(mean, np.array([[3.7, 0.0], [3.7, 1.0]]))
    >>> mean.tolist()
    [3.7, 0.5]
    """
    if len(values):
        first = values[0]
        likely = (first == values[-1]) & (first == values[len(values) // 2])
        for column in np.flatnonzero(likely):
            if (values[:, column] == first[column]).all():
                mean[column] = first[column]


@dataclass(frozen=True)
class CrossProducts:
    """Centred cross products of X and y, weighted: all that least squares needs.

    References
    ----------
    Chan, Golub, LeVeque (1979), the update formula for covariances.
    """

    n_rows: int
    weight: float
    x_mean: np.ndarray
    y_mean: np.ndarray
    xx: np.ndarray
    """Sum over rows of w (x - mean)(x - mean)'; shape (n_features, n_features)."""
    xy: np.ndarray
    """Of shape (n_features, n_targets)."""
    yy: np.ndarray
    """Of shape (n_targets, n_targets)."""
    dtype: np.dtype[Any]
    sparse: bool
    y_is_1d: bool

    @classmethod
    @np.errstate(invalid="ignore", over="ignore")  # infinity is refused when all blocks are joined
    def of(cls, X: Block, y: Any, w: np.ndarray | None = None) -> Self:
        """Read one block; `y` of shape (n_rows,) or (n_rows, n_targets)."""
        matrix, target = numbers(X), target_matrix(y)
        is_sparse = bool(sp.issparse(matrix))
        values = matrix.astype(np.float64)
        weights = np.ones(len(target)) if w is None else np.asarray(w, dtype=np.float64)
        total = float(weights.sum())
        safe = total or 1.0
        with single_threaded_blas():
            x_mean = np.asarray(values.T @ weights).reshape(-1) / safe
            y_mean = (target.T @ weights) / safe
            settle_constants(y_mean, target)
            dy = (target - y_mean) * weights[:, None]
            yy = (target - y_mean).T @ dy
            if is_sparse:
                # centring would fill the matrix: subtract the means from the products instead
                weighted = sp.diags_array(weights) @ values
                xx = (values.T @ weighted).toarray() - total * np.outer(x_mean, x_mean)
                xy = np.asarray(values.T @ dy)
            else:
                settle_constants(x_mean, values)
                dx = values - x_mean
                xx = dx.T @ (dx * weights[:, None] if w is not None else dx)
                xy = dx.T @ dy
        return cls(len(target), total, x_mean, y_mean, xx, xy, yy, matrix.dtype, is_sparse, np.ndim(y) == 1)

    @np.errstate(invalid="ignore", over="ignore")
    def merge(self, other: Self) -> Self:
        """Join with the cross products of later rows."""
        weight = self.weight + other.weight
        share = other.weight / (weight or 1.0)
        dx, dy = other.x_mean - self.x_mean, other.y_mean - self.y_mean
        both = self.weight * share
        return type(self)(
            self.n_rows + other.n_rows,
            weight,
            self.x_mean + dx * share,
            self.y_mean + dy * share,
            self.xx + other.xx + both * np.outer(dx, dx),
            self.xy + other.xy + both * np.outer(dx, dy),
            self.yy + other.yy + both * np.outer(dy, dy),
            np.result_type(self.dtype, other.dtype),
            self.sparse or other.sparse,
            self.y_is_1d,
        )


class Scatter(CrossProducts):
    """Centred cross products of X with itself: all that a covariance needs."""

    @classmethod
    def of(cls, X: Block, y: Any = None, w: np.ndarray | None = None) -> Self:
        """Read one block; `y` is not looked at."""
        return super().of(X, np.empty((n_rows(X), 0)), w)


@dataclass(frozen=True)
class ClassMoments:
    """Moments of X for each label of y."""

    by_class: dict[Any, Moments]
    label_dtype: np.dtype[Any]
    n_unlabelled: int

    @classmethod
    def of(cls, X: Block, y: Any, w: np.ndarray | None = None) -> Self:
        """Read one block; `y` is of shape (n_rows,)."""
        matrix = numbers(X)
        labels = codes(np.asarray(y).reshape(-1, 1), 0)
        found = {}
        for code, label in enumerate(labels.values):
            rows = np.flatnonzero(labels.codes == code)
            found[label] = Moments.of(matrix[rows], None, None if w is None else np.asarray(w)[rows])
        return cls(found, labels.dtype, int((labels.codes < 0).sum()))

    def merge(self, other: Self) -> Self:
        """Join with the moments of later rows."""
        both = dict(self.by_class)
        for label, moments in other.by_class.items():
            both[label] = both[label].merge(moments) if label in both else moments
        dtype = np.result_type(self.label_dtype, other.label_dtype)
        return type(self)(both, dtype, self.n_unlabelled + other.n_unlabelled)


@dataclass(frozen=True)
class ClassSums:
    """Sums of X for each label of y, weighted; whole numbers add up exactly."""

    n_rows: int
    by_class: dict[Any, tuple[float, np.ndarray]]
    """For each label its weight, and the sum of its rows: float64 of shape (n_features,)."""
    label_dtype: np.dtype[Any]
    dtype: np.dtype[Any]
    low: float
    """The smallest value of X."""
    finite: bool
    """Whether X is free of NaN and infinity; what is above a threshold does not show it."""
    n_unlabelled: int
    sparse: bool

    def merge(self, other: Self) -> Self:
        """Join with the sums of later rows."""
        both = dict(self.by_class)
        for label, (weight, sums) in other.by_class.items():
            mine, found = both.get(label, (0.0, 0.0))
            both[label] = (mine + weight, found + sums)
        return type(self)(
            self.n_rows + other.n_rows,
            both,
            np.result_type(self.label_dtype, other.label_dtype),
            np.result_type(self.dtype, other.dtype),
            min(self.low, other.low),
            self.finite and other.finite,
            self.n_unlabelled + other.n_unlabelled,
            self.sparse or other.sparse,
        )


@dataclass(frozen=True)
class SumsByClass:
    """Wants `ClassSums`, of X or of whether it is above a threshold."""

    threshold: float | None = None
    name: ClassVar[str] = "ClassSums"

    def of(self, X: Block, y: Any, w: np.ndarray | None = None) -> ClassSums:
        """Read one block; `y` is of shape (n_rows,)."""
        matrix = numbers(X)
        dtype, is_sparse = matrix.dtype, bool(sp.issparse(matrix))
        labels = codes(np.asarray(y).reshape(-1, 1), 0)
        low = float(matrix.min()) if matrix.shape[0] * matrix.shape[1] else np.inf
        finite = bool(np.isfinite(matrix.data if is_sparse else matrix).all())
        if self.threshold is not None:
            matrix = matrix > self.threshold
        weights = np.ones(len(labels.codes)) if w is None else np.asarray(w, dtype=np.float64)
        known = np.flatnonzero(labels.codes >= 0)
        chosen = sp.csr_array(
            (weights[known], (labels.codes[known], known)), shape=(len(labels.values), len(weights))
        )
        values = matrix.astype(np.float64)
        sums = chosen @ values
        sums = sums.toarray() if sp.issparse(sums) else np.asarray(sums)
        totals = np.bincount(labels.codes[known], weights[known], minlength=len(labels.values))
        found = {
            label: (float(total), mine)
            for label, total, mine in zip(labels.values, totals, sums, strict=True)
        }
        n_unlabelled = len(weights) - len(known)
        return ClassSums(len(weights), found, labels.dtype, dtype, low, finite, n_unlabelled, is_sparse)


@dataclass(frozen=True)
class CategorySums:
    """How much the rows of each label weigh, for each code 0, 1, ... of each column."""

    n_rows: int
    by_class: dict[Any, tuple[float, tuple[np.ndarray, ...]]]
    """For each label its weight, and for each column the weights of its codes."""
    label_dtype: np.dtype[Any]
    n_unlabelled: int

    @classmethod
    def of(cls, X: Block, y: Any, w: np.ndarray | None = None) -> Self:
        """Read one block; `y` is of shape (n_rows,).

        Raises
        ------
        InputError
            If X holds what is no code.
        """
        matrix = numbers(X)
        if sp.issparse(matrix):
            raise InputError(
                "Codes of categories cannot be sparse: zero is a code. Pass a dense array or a frame."
            )
        if not np.isfinite(matrix).all() or (matrix.size and matrix.min() < 0):
            raise InputError(
                "X must hold codes 0, 1, ...; it has missing or negative values. Use an OrdinalEncoder."
            )
        categories = matrix.astype(np.int64)
        labels = codes(np.asarray(y).reshape(-1, 1), 0)
        weights = np.ones(len(labels.codes)) if w is None else np.asarray(w, dtype=np.float64)
        found = {}
        for code, label in enumerate(labels.values):
            rows = np.flatnonzero(labels.codes == code)
            counts = tuple(np.bincount(column[rows], weights[rows]) for column in categories.T)
            found[label] = (float(weights[rows].sum()), counts)
        return cls(len(weights), found, labels.dtype, int((labels.codes < 0).sum()))

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        both = dict(self.by_class)
        for label, (weight, counts) in other.by_class.items():
            if label in both:
                mine, known = both[label]
                weight += mine
                counts = tuple(_sum_padded(a, b) for a, b in zip(known, counts, strict=True))
            both[label] = (weight, counts)
        return type(self)(
            self.n_rows + other.n_rows,
            both,
            np.result_type(self.label_dtype, other.label_dtype),
            self.n_unlabelled + other.n_unlabelled,
        )


def _sum_padded(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Add two lists of counts, the shorter one filled up with zeros."""
    total = np.zeros(max(len(a), len(b)))
    total[: len(a)] += a
    total[: len(b)] += b
    return total
