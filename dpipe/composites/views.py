"""Views: how a part of a composite sees the rows and their targets. They compare by value, and can be pickled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpipe.blocks.folds import Folds
from dpipe.blocks.held_out import kept
from dpipe.blocks.rows import Rows

View = Callable[[Rows], Rows]


@dataclass(frozen=True)
class Against:
    """One label against all others: y is 1 for it, else 0."""

    label: Any

    def __call__(self, rows: Rows) -> Rows:
        """See the rows."""
        return rows._replace(y=(_target(rows) == self.label).astype(np.int64))


@dataclass(frozen=True)
class Between:
    """The rows of two labels only: y is 0 for the first, 1 for the second."""

    first: Any
    second: Any

    def __call__(self, rows: Rows) -> Rows:
        """See the rows."""
        y = _target(rows)
        seen = kept(rows, (y == self.first) | (y == self.second))
        return seen._replace(y=(_target(seen) == self.second).astype(np.int64))


@dataclass(frozen=True)
class OneTarget:
    """One column of y."""

    column: int

    def __call__(self, rows: Rows) -> Rows:
        """See the rows."""
        return rows._replace(y=np.asarray(rows.y)[:, self.column])


@dataclass(frozen=True, eq=False)
class Encoded:
    """Labels as their places among the classes."""

    classes: np.ndarray

    def __call__(self, rows: Rows) -> Rows:
        """See the rows."""
        return rows._replace(y=np.searchsorted(self.classes, _target(rows)))


@dataclass(frozen=True)
class TargetAsX:
    """The targets as a matrix to be learned from."""

    def __call__(self, rows: Rows) -> Rows:
        """See the rows."""
        return rows._replace(X=two_dimensional(rows.y), y=None, w=None, values=None)


@dataclass(frozen=True, eq=False)
class TargetBy:
    """The targets, transformed."""

    transformer: Any

    def __call__(self, rows: Rows) -> Rows:
        """See the rows."""
        made = np.asarray(self.transformer.transform(two_dimensional(rows.y)))
        flat = made.ndim == 2 and made.shape[1] == 1 and _target(rows).ndim == 1
        return rows._replace(y=made[:, 0] if flat else made)


@dataclass(frozen=True, eq=False)
class InFold:
    """The rows of one fold, or all others."""

    folds: Folds
    fold: int
    inside: bool
    then: View | None = None
    """How the rows that are left are seen."""

    def __call__(self, rows: Rows) -> Rows:
        """See the rows."""
        mine = self.folds.of(_target(rows), rows.at) == self.fold
        seen = kept(rows, mine if self.inside else ~mine)
        return seen if self.then is None else self.then(seen)


def _target(rows: Rows) -> np.ndarray:
    return np.asarray(rows.y)


def two_dimensional(y: Any) -> np.ndarray:
    """Give targets as a matrix."""
    values = np.asarray(y)
    return values.reshape(-1, 1) if values.ndim == 1 else values
