"""What is known of the targets for each value of each column: counts of labels, or moments of numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from dpipe.blocks.folds import is_continuous
from dpipe.blocks.statistics import ValueCounts
from dpipe.blocks.table import Block, Categories, codes, n_columns
from dpipe.errors import InputError

#: Stands for a missing value: NaN is no key of a dictionary.
MISSING = ("missing",)
#: scikit-learn gives a column for each class; a target of more is a number that happens to be whole.
MOST_LABELS = 1_000

Kind = Literal["auto", "continuous", "labels"]


@dataclass(frozen=True)
class TargetSums:
    """Sums of y for each value of each column, in each fold; the last column is made up and has one value."""

    seen: ValueCounts
    places: tuple[dict[Any, int], ...]
    """For each column its values, and where they stand in its table."""
    tables: tuple[np.ndarray, ...]
    """For each column an array of shape (n_folds, n_values, n_labels), or (n_folds, n_values, 3): count, mean, m2."""
    labels: dict[Any, int] | None
    """The labels and their places; None for numbers."""
    dtype: np.dtype[Any]
    n_unlabelled: int

    @classmethod
    def of(
        cls, X: Block, y: np.ndarray, kind: Kind, folds: np.ndarray | None = None, n_folds: int = 1
    ) -> Self:
        """Read one block; `y` and `folds` of shape (n_rows,). "auto" takes whole numbers for labels."""
        columns = [codes(X, j) for j in range(n_columns(X))]
        seen = ValueCounts.of(Categories(tuple(columns)))
        found = [(column.codes, column.values) for column in columns]
        found.append((np.zeros(len(y), dtype=np.intp), [None]))
        places = tuple({value: i for i, value in enumerate([*values, MISSING])} for _, values in found)
        of_row = np.zeros(len(y), dtype=np.intp) if folds is None else folds.astype(np.intp)
        # a missing value is -1, and stands last
        rows = [
            of_row * len(at) + np.where(index < 0, len(at) - 1, index)
            for (index, _), at in zip(found, places, strict=True)
        ]
        if kind == "continuous" or (kind == "auto" and is_continuous(y)):
            numbers = np.asarray(y, dtype=np.float64)
            tables = [_moments(row, numbers, n_folds, len(at)) for row, at in zip(rows, places, strict=True)]
            return cls(seen, places, tuple(tables), None, y.dtype, 0)
        labels = codes(y.reshape(-1, 1), 0)
        known = labels.codes >= 0
        tables = [
            _counts(row[known], labels.codes[known], (n_folds, len(at), len(labels.values)))
            for row, at in zip(rows, places, strict=True)
        ]
        at_labels = {label: i for i, label in enumerate(labels.values)}
        return cls(seen, places, tuple(tables), at_labels, labels.dtype, int((~known).sum()))._checked()

    def merge(self, other: Self) -> Self:
        """Join with the sums of later rows."""
        if (self.labels is None) != (other.labels is None):
            return self._as_numbers().merge(other._as_numbers())
        labels = None if self.labels is None else _union(self.labels, other.labels or {})
        places, tables = [], []
        for j, (mine, theirs) in enumerate(zip(self.places, other.places, strict=True)):
            both = _union(mine, theirs)
            width = 3 if labels is None else len(labels)
            parts = []
            for part, at in ((self, mine), (other, theirs)):
                rows = np.array([both[value] for value in at], dtype=np.intp)
                columns = np.arange(3) if labels is None else _where(labels, part.labels)
                table = np.zeros((len(part.tables[j]), len(both), width), part.tables[j].dtype)
                table[:, rows[:, None], columns] = part.tables[j]
                parts.append(table)
            places.append(both)
            tables.append(_merged_moments(*parts) if labels is None else parts[0] + parts[1])
        return type(self)(
            self.seen.merge(other.seen),
            tuple(places),
            tuple(tables),
            labels,
            np.result_type(self.dtype, other.dtype),
            self.n_unlabelled + other.n_unlabelled,
        )._checked()

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return len(self.tables[0])

    @property
    def n_rows(self) -> np.ndarray:
        """Rows of each fold."""
        whole = self.tables[-1]
        return whole[:, :, 0].sum(axis=1) if self.labels is None else whole.sum(axis=(1, 2))

    def of_folds(self, folds: Sequence[int]) -> Self:
        """Join some folds to one; those left out are never subtracted, so that nothing cancels."""
        tables = []
        for table in self.tables:
            found = table[folds[0]]
            for i in folds[1:]:
                found = found + table[i] if self.labels is not None else _merged_moments(found, table[i])
            tables.append(found[None])
        return replace(self, tables=tuple(tables))

    def _checked(self) -> Self:
        if self.labels is not None and len(self.labels) > MOST_LABELS:
            raise InputError(
                f"y has more than {MOST_LABELS:,} different labels. If they are numbers, say so by "
                "target_type='continuous'."
            )
        return self

    def _as_numbers(self) -> Self:
        """Take whole numbers for numbers, as others of them are not whole."""
        if self.labels is None:
            return self
        values = np.array(list(self.labels), dtype=np.float64)
        return replace(self, tables=tuple(weighed(table, values) for table in self.tables), labels=None)


def weighed(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Give count, mean and m2 for each row of a table of counts of values.

    Examples
    --------
    >>> weighed(np.array([[1, 3]]), np.array([0.0, 1.0])).tolist()
    [[4.0, 0.75, 0.75]]
    """
    count = counts.sum(axis=-1).astype(np.float64)
    mean = (counts * values).sum(axis=-1) / np.where(count > 0, count, 1.0)
    m2 = (counts * (values - mean[..., None]) ** 2).sum(axis=-1)
    return np.stack([count, mean, m2], axis=-1)


def _counts(rows: np.ndarray, labels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    return np.bincount(rows * shape[2] + labels, minlength=math.prod(shape)).reshape(shape)


def _moments(rows: np.ndarray, y: np.ndarray, n_folds: int, n_values: int) -> np.ndarray:
    n = n_folds * n_values
    count = np.bincount(rows, minlength=n).astype(np.float64)
    mean = np.bincount(rows, y, minlength=n) / np.where(count > 0, count, 1.0)
    with np.errstate(invalid="ignore"):  # infinity is refused when all blocks are joined
        m2 = np.bincount(rows, (y - mean[rows]) ** 2, minlength=n)
    return np.stack([count, mean, m2], axis=-1).reshape(n_folds, n_values, 3)


@np.errstate(invalid="ignore")
def _merged_moments(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    count = a[..., 0] + b[..., 0]
    safe = np.where(count > 0, count, 1.0)
    delta = b[..., 1] - a[..., 1]
    mean = a[..., 1] + delta * (b[..., 0] / safe)
    m2 = a[..., 2] + b[..., 2] + delta**2 * (a[..., 0] * b[..., 0] / safe)
    return np.stack([count, mean, m2], axis=-1)


def _union(mine: dict[Any, int], theirs: dict[Any, int]) -> dict[Any, int]:
    both = dict(mine)
    for value in theirs:
        both.setdefault(value, len(both))
    return both


def _where(labels: dict[Any, int], found: dict[Any, int] | None) -> np.ndarray:
    return np.array([labels[label] for label in found or {}], dtype=np.intp)


@dataclass(frozen=True)
class SumsByValue:
    """Asks for the sums of y for each value of each column."""

    kind: Kind
    name = "TargetSums"

    def of(self, X: Block, y: np.ndarray, w: Any = None) -> TargetSums:
        """Read one block."""
        return TargetSums.of(X, y, self.kind)


@dataclass(frozen=True)
class SumsByFold:
    """Asks for the sums of y in each fold; its X is a pair, of a block and the fold of each of its rows."""

    kind: Kind
    n_splits: int
    placed: bool
    """Whether it must be known where the rows stand in the data."""
    name = "TargetSums by fold"

    def of(self, X: tuple[Block, np.ndarray], y: np.ndarray, w: Any = None, at: Any = None) -> TargetSums:
        """Read one block."""
        block, folds = X
        return TargetSums.of(block, y, self.kind, folds, self.n_splits)
