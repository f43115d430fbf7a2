"""Any statistic, for each group of rows apart: those of one label, or those of one fold."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from dpipe.blocks.rows import RowsAt
from dpipe.blocks.statistics import Statistic
from dpipe.blocks.table import Block, codes, n_rows, numbers
from dpipe.errors import InputError


@dataclass(frozen=True)
class Grouped:
    """One statistic for each group of rows that was met."""

    by_group: dict[Any, Any]
    label_dtype: np.dtype[Any]
    n_unlabelled: int = 0

    def merge(self, other: Self) -> Self:
        """Join with the groups of later rows."""
        both = dict(self.by_group)
        for group, found in other.by_group.items():
            both[group] = both[group].merge(found) if group in both else found
        dtype = np.result_type(self.label_dtype, other.label_dtype)
        return type(self)(both, dtype, self.n_unlabelled + other.n_unlabelled)


@dataclass(frozen=True)
class ByClass:
    """Wants a statistic of X for each label of y."""

    statistic: type[Statistic]

    @property
    def name(self) -> str:
        """What a plan calls it."""
        return f"{self.statistic.__name__} by class"

    def of(self, X: Block, y: Any, w: np.ndarray | None = None) -> Grouped:
        """Read one block; `y` is of shape (n_rows,).

        Raises
        ------
        InputError
            If the labels are fractions: each row would be a class of its own.
        """
        matrix = numbers(X)
        labels = codes(np.asarray(y).reshape(-1, 1), 0)
        _refuse_fractions(labels.values)
        found = {}
        for code, label in enumerate(labels.values):
            rows = np.flatnonzero(labels.codes == code)
            weights = None if w is None else np.asarray(w)[rows]
            found[label] = self.statistic.of(matrix[rows], None, weights)  # type: ignore[attr-defined]
        return Grouped(found, labels.dtype, int((labels.codes < 0).sum()))


def _refuse_fractions(labels: Any) -> None:
    for label in labels:
        if isinstance(label, float | np.floating) and not float(label).is_integer():
            raise InputError(
                f"y holds {label!r}, which is no label of a class but a measurement. Use a regressor, or give "
                "labels that are whole numbers or texts."
            )


@dataclass(frozen=True)
class ByFold:
    """Wants a statistic of X and y for each of the folds that `KFold(n_folds)` cuts the rows into."""

    statistic: type[Statistic]
    n_folds: int
    placed: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """What a plan calls it."""
        return f"{self.statistic.__name__} of {self.n_folds} folds"

    def of(self, X: Block, y: Any, w: np.ndarray | None, at: RowsAt) -> Grouped:
        """Read one block, which stands at `at` among all rows."""
        matrix, target = numbers(X), np.asarray(y)
        ends = fold_ends(at.total, self.n_folds)
        found = {}
        for fold, (start, end) in enumerate(zip(np.append(0, ends[:-1]), ends, strict=True)):
            rows = slice(max(int(start) - at.first, 0), min(int(end) - at.first, n_rows(X)))
            if rows.start < rows.stop:
                weights = None if w is None else np.asarray(w)[rows]
                found[fold] = self.statistic.of(matrix[rows], target[rows], weights)  # type: ignore[attr-defined]
        return Grouped(found, np.dtype(np.int64))


def fold_ends(n_rows: int, n_folds: int) -> np.ndarray:
    """Give the row after the last one of each fold, as scikit-learn's KFold cuts them without shuffling.

    Examples
    --------
    >>> fold_ends(10, 4).tolist()
    [3, 6, 8, 10]
    """
    sizes = np.full(n_folds, n_rows // n_folds)
    sizes[: n_rows % n_folds] += 1
    return np.cumsum(sizes)
