"""Statistics of a block that can be merged: what a fit remembers of the rows it has seen.

Each has `of`, which reads one block, and `merge`, which joins two results: a monoid, so any
tree over the blocks gives a fit. A fixed tree gives the same bits every time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import scipy.sparse as sp

from dpipe.blocks.table import (
    MIXED_MARKERS,
    Block,
    NumericColumn,
    codes,
    columns_of_numbers,
    missing_values,
    n_columns,
    n_rows,
    numbers,
)
from dpipe.blocks.threads import single_threaded_blas
from dpipe.errors import InputError


class Statistic(Protocol):
    """What can be computed from a block and merged."""

    def merge(self, other: Self) -> Self:
        """Join with the statistic of later rows."""
        ...


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of each column; NaN is left out.

    References
    ----------
    Chan, Golub, LeVeque (1979), Updating formulae and a pairwise algorithm for computing
    sample variances.
    """

    n_rows: int
    count: np.ndarray
    """Observed values, or the sum of their weights; float64 of shape (n_columns,)."""
    observed: np.ndarray
    """Observed values, never weighted; int64 of shape (n_columns,)."""
    mean: np.ndarray
    m2: np.ndarray
    dtype: np.dtype[Any]
    weighted: bool = False
    sparse: bool = False

    @classmethod
    def of(cls, X: Block, y: Any = None, w: np.ndarray | None = None) -> Self:
        """Read one block."""
        if sp.issparse(X):
            return cls._of_sparse(numbers(X), w)
        dtype, columns = columns_of_numbers(X)
        with single_threaded_blas():
            if (
                w is None
                and isinstance(X, np.ndarray)
                and X.dtype in (np.float32, np.float64)
                and _is_wide(X)
            ):
                found = _moments_of_wide(X)
            else:
                found = np.array([_column_moments(column, w) for column in columns], dtype=np.float64)
        observed, count, mean, m2 = found.reshape(-1, 4).T.copy()
        return cls(n_rows(X), count, observed.astype(np.int64), mean, m2, dtype, w is not None)

    @classmethod
    def _of_sparse(cls, matrix: Any, w: np.ndarray | None) -> Self:
        n, k = matrix.shape
        weights = np.ones(n) if w is None else np.asarray(w, dtype=np.float64)
        of_entry = np.repeat(weights, np.diff(matrix.indptr))
        values = matrix.data.astype(np.float64)
        missing = np.isnan(values)
        lost = np.bincount(matrix.indices[missing], of_entry[missing], minlength=k)
        absent = np.bincount(matrix.indices[missing], minlength=k)
        values, of_entry, at = values[~missing], of_entry[~missing], matrix.indices[~missing]
        count = weights.sum() - lost
        safe = np.where(count > 0, count, 1.0)
        mean = np.bincount(at, values * of_entry, minlength=k) / safe
        # the weight of the zeros that are not stored, none to the bit where everything is stored
        zeros = np.where(
            np.bincount(at, minlength=k) == n - absent, 0.0, count - np.bincount(at, of_entry, minlength=k)
        )
        m2 = np.bincount(at, of_entry * (values - mean[at]) ** 2, minlength=k) + zeros * mean**2
        return cls(n, count, n - absent, mean, m2, matrix.dtype, w is not None, sparse=True)

    @np.errstate(invalid="ignore", over="ignore")
    def merge(self, other: Self) -> Self:
        """Join with the moments of later rows."""
        count = self.count + other.count
        safe = np.where(count > 0, count, 1.0)
        delta = other.mean - self.mean
        return type(self)(
            self.n_rows + other.n_rows,
            count,
            self.observed + other.observed,
            self.mean + delta * (other.count / safe),
            self.m2 + other.m2 + delta**2 * (self.count * other.count / safe),
            np.result_type(self.dtype, other.dtype),
            self.weighted,
            self.sparse,
        )

    @property
    def variance(self) -> np.ndarray:
        """Population variance of each column; NaN where nothing was observed."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.m2 / self.count


@np.errstate(invalid="ignore", over="ignore")  # infinity is refused when all blocks are joined
def _column_moments(column: NumericColumn, w: np.ndarray | None) -> tuple[int, float, float, float]:
    """Observed, count, mean and m2 of a column."""
    if w is None:
        observed, mean, m2 = _plain_moments(column)
        return observed, float(observed), mean, m2
    values, gaps, _ = column.minus(0.0)
    observed = len(values) - len(gaps)
    if observed == 0:
        return 0, 0.0, 0.0, 0.0
    weights, values = np.delete(np.asarray(w, dtype=np.float64), gaps), np.delete(values, gaps)
    total = float(weights.sum())
    if total == 0:
        return observed, 0.0, 0.0, 0.0
    if (values == values[0]).all():
        return observed, total, float(values[0]), 0.0
    mean = float((values * weights).sum()) / total
    return observed, total, mean, float((weights * (values - mean) ** 2).sum())


def _plain_moments(column: NumericColumn) -> tuple[int, float, float]:
    """Observed, mean and m2: one sweep over the values minus one of them, a second where that cancels.

    A column that is constant has no spread to the bit: what the rounding of a sum would give it, one more
    scaler would blow up to one.
    """
    head = np.sort(column.head(9))
    shift = float(head[len(head) // 2]) if len(head) else 0.0
    values, gaps, total = column.minus(shift)
    observed = len(values) - len(gaps)
    if observed == 0:
        return 0, 0.0, 0.0
    if not len(head) and np.isfinite(total):
        shift = float(values[first_not_in(gaps)])
        values, gaps, total = column.minus(shift)
    squares, beside = float(np.vdot(values, values)), total / observed
    m2 = squares - total * beside
    if np.isfinite(squares) and squares > 100 * m2:
        shift += beside
        values, gaps, total = column.minus(shift)
        beside = total / observed
        m2 = max(float(np.vdot(values, values)) - total * beside, 0.0)
    return observed, shift + beside, m2


#: From so many columns on, some are worked on at a time: one by one, rows that are short would cost a call each.
_WIDE = 512


def _is_wide(X: np.ndarray) -> bool:
    return X.ndim == 2 and X.shape[1] > _WIDE and len(X) > 0


@np.errstate(invalid="ignore", over="ignore")
def _moments_of_wide(X: np.ndarray) -> np.ndarray:
    """Do as `_column_moments` does, for many columns at a time; those with gaps or infinity still by themselves."""
    n = len(X)
    found = np.empty((X.shape[1], 4))
    for first in range(0, X.shape[1], _WIDE):
        panel = X[:, first : first + _WIDE].astype(np.float64)
        head = np.sort(panel[:9], axis=0)
        mean, m2 = head[len(head) // 2].copy(), np.empty(panel.shape[1])
        again = np.ones(len(mean), dtype=bool)
        for _ in range(2):
            values = panel[:, again] - mean[again]
            total, squares = values.sum(axis=0), np.einsum("ij,ij->j", values, values)
            mean[again] += total / n
            m2[again] = np.maximum(squares - total * (total / n), 0.0)
            again[again] = squares > 100 * m2[again]
            if not again.any():
                break
        here = found[first : first + _WIDE]
        here[:] = np.column_stack([np.full_like(mean, n), np.full_like(mean, n), mean, m2])
        for j in np.flatnonzero(~np.isfinite(m2)):
            here[j] = _column_moments(NumericColumn(first + j, X[:, first + j], np.empty(n)), None)
    return found


def first_not_in(gaps: np.ndarray) -> int:
    """Find the first position that is not in a sorted list of some."""
    beside = np.flatnonzero(gaps != np.arange(len(gaps)))
    return int(beside[0]) if len(beside) else len(gaps)


@dataclass(frozen=True)
class Extremes:
    """Smallest and largest value of each column; NaN is left out, and stands for "nothing observed"."""

    n_rows: int
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, X: Block, y: Any = None, w: np.ndarray | None = None) -> Self:
        """Read one block."""
        matrix = numbers(X)
        if sp.issparse(matrix):
            matrix = matrix.toarray(order="F")
        observed = (~np.isnan(matrix)).sum(axis=0)
        if len(matrix) == 0:
            nothing = np.full(matrix.shape[1], np.nan, dtype=matrix.dtype)
            return cls(0, observed, nothing, nothing)
        # fmin and fmax prefer a number to NaN, without the warning of nanmin
        return cls(len(matrix), observed, np.fmin.reduce(matrix, axis=0), np.fmax.reduce(matrix, axis=0))

    def merge(self, other: Self) -> Self:
        """Join with the extremes of later rows."""
        return type(self)(
            self.n_rows + other.n_rows,
            self.observed + other.observed,
            np.fmin(self.low, other.low),
            np.fmax(self.high, other.high),
        )


@dataclass(frozen=True)
class Observed:
    """How many values of each column are not missing."""

    n_rows: int
    observed: np.ndarray

    @classmethod
    def of(cls, X: Block, y: Any = None, w: np.ndarray | None = None) -> Self:
        """Read one block."""
        if sp.issparse(X):
            # as scikit-learn's imputer: what is not stored counts for nothing
            stored = X.indices if X.dtype.kind != "f" else X.indices[~np.isnan(X.data)]
            return cls(n_rows(X), np.bincount(stored, minlength=n_columns(X)))
        return cls(n_rows(X), n_rows(X) - missing_values(X))

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        return type(self)(self.n_rows + other.n_rows, self.observed + other.observed)


@dataclass(frozen=True)
class ValueCounts:
    """How often each distinct value stands in each column."""

    n_rows: int
    counts: tuple[dict[Any, int], ...]
    """For each column, its values and their counts, in order of appearance."""
    n_missing: tuple[int, ...]
    missing: tuple[Any, ...]
    """What stands for missing in each column: NaN or None."""
    dtypes: tuple[np.dtype[Any], ...]

    @classmethod
    def of(cls, X: Block, y: Any = None, w: np.ndarray | None = None) -> Self:
        """Read one block."""
        counts, n_missing, missing, dtypes = [], [], [], []
        for j in range(n_columns(X)):
            column = codes(X, j)
            # the codes begin with -1: one sweep counts what is missing, too
            absent, *n = np.bincount(
                np.add(column.codes, 1, dtype=np.intp), minlength=len(column.values) + 1
            ).tolist()
            counts.append({v: c for v, c in zip(column.values, n, strict=True) if c})
            n_missing.append(absent)
            missing.append(column.missing)
            dtypes.append(column.dtype)
        return cls(n_rows(X), tuple(counts), tuple(n_missing), tuple(missing), tuple(dtypes))

    def merge(self, other: Self) -> Self:
        """Join with the counts of later rows."""
        joined = []
        for mine, theirs in zip(self.counts, other.counts, strict=True):
            both = dict(mine)
            for value, count in theirs.items():
                both[value] = both.get(value, 0) + count
            joined.append(both)
        return type(self)(
            self.n_rows + other.n_rows,
            tuple(joined),
            tuple(a + b for a, b in zip(self.n_missing, other.n_missing, strict=True)),
            self._joined_markers(other),
            tuple(np.result_type(a, b) for a, b in zip(self.dtypes, other.dtypes, strict=True)),
        )

    def _joined_markers(self, other: Self) -> tuple[Any, ...]:
        mine = zip(self.n_missing, self.missing, strict=True)
        theirs = zip(other.n_missing, other.missing, strict=True)
        joined = []
        for (n, marker), (m, its) in zip(mine, theirs, strict=True):
            if n and m and (marker is None) != (its is None):
                raise InputError(MIXED_MARKERS)
            joined.append(marker if n else its)
        return tuple(joined)


@dataclass(frozen=True)
class LabelCounts:
    """How often each label stands in y."""

    of_y: ClassVar[bool] = True
    """Needs no X: a pass that collects nothing else reads y alone."""
    counts: dict[Any, int]
    dtype: np.dtype[Any]
    n_missing: int

    @classmethod
    def of(cls, X: Block, y: Any, w: np.ndarray | None = None) -> Self:
        """Read one block; `y` is of shape (n_rows,)."""
        found = codes(np.asarray(y).reshape(-1, 1), 0)
        n = np.bincount(found.codes[found.codes >= 0], minlength=len(found.values))
        counts = {v: int(c) for v, c in zip(found.values, n, strict=True) if c}
        return cls(counts, found.dtype, int((found.codes < 0).sum()))

    def merge(self, other: Self) -> Self:
        """Join with the labels of later rows."""
        both = dict(self.counts)
        for value, count in other.counts.items():
            both[value] = both.get(value, 0) + count
        return type(self)(both, np.result_type(self.dtype, other.dtype), self.n_missing + other.n_missing)

    @property
    def classes(self) -> np.ndarray:
        """The distinct labels, sorted, as scikit-learn's `classes_`."""
        return np.array(sorted(self.counts), dtype=self.dtype)


class LabelWeights(LabelCounts):
    """How much the rows of each label weigh; without weights, how many there are."""

    takes_weights: ClassVar[bool] = True

    @classmethod
    def of(cls, X: Block, y: Any, w: np.ndarray | None = None) -> Self:
        """Read one block; `y` and `w` are of shape (n_rows,)."""
        if w is None:
            return super().of(X, y)
        found = codes(np.asarray(y).reshape(-1, 1), 0)
        known = found.codes >= 0
        n = np.bincount(found.codes[known], np.asarray(w)[known], minlength=len(found.values))
        return cls(dict(zip(found.values, n.tolist(), strict=True)), found.dtype, int((~known).sum()))


@dataclass(frozen=True)
class TargetMoments:
    """Weight and mean of y; float64 of shape (n_targets,)."""

    of_y: ClassVar[bool] = True
    takes_weights: ClassVar[bool] = True
    n_rows: int
    weight: float
    mean: np.ndarray
    y_is_1d: bool

    @classmethod
    def of(cls, X: Block, y: Any, w: np.ndarray | None = None) -> Self:
        """Read one block; `y` of shape (n_rows,) or (n_rows, n_targets)."""
        values = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        weights = np.ones(len(values)) if w is None else np.asarray(w, dtype=np.float64)
        total = float(weights.sum())
        mean = (values * weights[:, None]).sum(axis=0) / (total or 1.0)
        return cls(len(values), total, mean, np.ndim(y) == 1)

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        weight = self.weight + other.weight
        mean = self.mean + (other.mean - self.mean) * (other.weight / (weight or 1.0))
        return type(self)(self.n_rows + other.n_rows, weight, mean, self.y_is_1d)


@dataclass(frozen=True)
class Present:
    """In how many rows each column has an entry that is not zero."""

    n_rows: int
    rows: np.ndarray
    """int64 of shape (n_columns,)."""
    dtype: np.dtype[Any]
    sparse: bool

    @classmethod
    def of(cls, X: Block, y: Any = None, w: np.ndarray | None = None) -> Self:
        """Read one block; of a sparse matrix all stored entries count, as in scikit-learn."""
        matrix = numbers(X)
        if sp.issparse(matrix):
            found = np.bincount(matrix.indices, minlength=matrix.shape[1])
            return cls(matrix.shape[0], found.astype(np.int64), matrix.dtype, True)
        return cls(len(matrix), np.count_nonzero(matrix, axis=0).astype(np.int64), matrix.dtype, False)

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        dtype = np.result_type(self.dtype, other.dtype)
        return type(self)(self.n_rows + other.n_rows, self.rows + other.rows, dtype, self.sparse)


@dataclass(frozen=True)
class RowCount:
    """How many rows there are."""

    n_rows: int

    @classmethod
    def of(cls, X: Block, y: Any = None, w: np.ndarray | None = None) -> Self:
        """Read one block."""
        return cls(n_rows(X))

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        return type(self)(self.n_rows + other.n_rows)


@dataclass(frozen=True)
class Nonzeros:
    """How many entries of a matrix are stored: its density."""

    n_rows: int
    stored: int

    @classmethod
    def of(cls, X: Block, y: Any = None, w: np.ndarray | None = None) -> Self:
        """Read one block."""
        return cls(n_rows(X), int(X.nnz) if sp.issparse(X) else n_rows(X) * n_columns(X))

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        return type(self)(self.n_rows + other.n_rows, self.stored + other.stored)


@dataclass(frozen=True)
class Custom:
    """The state of an estimator that a third party has registered, with its own merge."""

    state: Any
    join: Callable[[Any, Any], Any]

    def merge(self, other: Self) -> Self:
        """Join with the state of later rows."""
        return type(self)(self.join(self.state, other.state), self.join)
