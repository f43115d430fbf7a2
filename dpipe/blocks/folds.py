"""The fold of each row, block by block: as scikit-learn's splitters deal them out, or as good."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import pandas as pd

from dpipe.blocks.rows import RowsAt
from dpipe.blocks.table import codes
from dpipe.errors import InputError


class Folds(Protocol):
    """Tells the folds of the rows of a block."""

    def of(self, y: np.ndarray, at: RowsAt | None) -> np.ndarray:
        """Give the number of its fold, from 0 on, for each row; `y` of shape (n_rows,)."""
        ...


@dataclass(frozen=True)
class KFolds:
    """The folds of scikit-learn's `KFold`.

    Notes
    -----
    Shuffling costs four bytes a row of the whole data for a moment, and two for as long as it is in use.
    """

    n_splits: int
    seed: int | None = None
    """None for rows in order."""

    def of(self, y: np.ndarray, at: RowsAt | None) -> np.ndarray:
        """Look up a stretch of rows.

        Examples
        --------
        >>> KFolds(2).of(np.zeros(3), RowsAt(1, 5)).tolist()
        [0, 0, 1]
        """
        assert at is not None
        if self.seed is not None:
            return _shuffled(self.n_splits, self.seed, at.total)[at.first : at.first + len(y)]
        rows = np.arange(at.first, at.first + len(y))
        return np.searchsorted(np.cumsum(_sizes(at.total, self.n_splits)), rows, side="right")


def _sizes(total: int, n_splits: int) -> np.ndarray:
    return np.full(n_splits, total // n_splits) + (np.arange(n_splits) < total % n_splits)


@lru_cache(maxsize=2)
def _shuffled(n_splits: int, seed: int, total: int) -> np.ndarray:
    order = np.arange(total, dtype=np.int32 if total < 2**31 else np.int64)
    np.random.RandomState(seed).shuffle(order)
    folds = np.empty(total, dtype=np.int16)
    folds[order] = np.repeat(np.arange(n_splits, dtype=np.int16), _sizes(total, n_splits))
    return folds


@dataclass(frozen=True)
class LabelPlaces:
    """How many rows of each label every block has: with it a row knows its place among those of its label."""

    of_y: ClassVar[bool] = True
    placed: ClassVar[bool] = True
    blocks: dict[int, dict[Any, int]]
    """For the first row of each block its labels, in order of appearance, and their rows."""
    continuous: bool = False
    """Whether there are numbers that are not whole, which are no labels; nothing else is remembered then."""

    @classmethod
    def of(cls, X: Any, y: Any, w: Any, at: RowsAt) -> Self:
        """Read one block; `y` of shape (n_rows,)."""
        if is_continuous(y):
            return cls({}, True)
        found = codes(np.asarray(y).reshape(-1, 1), 0)
        counts = np.bincount(found.codes[found.codes >= 0], minlength=len(found.values))
        return cls({at.first: dict(zip(found.values, counts.tolist(), strict=True))})

    def merge(self, other: Self) -> Self:
        """Join with those of later rows."""
        continuous = self.continuous or other.continuous
        return type(self)({} if continuous else {**self.blocks, **other.blocks}, continuous)


def is_continuous(y: np.ndarray) -> bool:
    """Tell whether some targets are numbers that are not whole."""
    return y.dtype.kind == "f" and bool((y[np.isfinite(y)] % 1 != 0).any())


class StratifiedFolds:
    """The folds of scikit-learn's `StratifiedKFold`; shuffling costs two bytes a row of the whole data."""

    def __init__(self, places: LabelPlaces, n_splits: int, seed: int | None) -> None:
        self.n_splits = n_splits
        self.seed = seed
        self.before: dict[int, dict[Any, int]] = {}
        """For the first row of each block how many rows of each label come before it."""
        self.counts: dict[Any, int] = {}
        """All rows of each label, in order of appearance."""
        for first in sorted(places.blocks):
            found = places.blocks[first]
            self.before[first] = {label: self.counts.get(label, 0) for label in found}
            self.counts.update({label: self.counts.get(label, 0) + n for label, n in found.items()})
        if max(self.counts.values(), default=0) < n_splits:
            raise InputError(f"cv={n_splits} is more than the rows of each class. Use fewer folds.")

    def of(self, y: np.ndarray, at: RowsAt | None) -> np.ndarray:
        """Look up the rows of a block."""
        assert at is not None
        folds = np.zeros(len(y), dtype=np.int16)
        found = codes(np.asarray(y).reshape(-1, 1), 0)
        by_label = dict(zip(self.counts, self._dealt(), strict=True))
        for code, label in enumerate(found.values):
            rows = np.flatnonzero(found.codes == code)
            if len(rows):
                first = self.before[at.first][label]
                folds[rows] = by_label[label][first : first + len(rows)]
        return folds

    def _dealt(self) -> tuple[np.ndarray, ...]:
        return _dealt(self.n_splits, self.seed, tuple(self.counts.values()))


@lru_cache(maxsize=2)
def _dealt(n_splits: int, seed: int | None, counts: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Deal out the rows of each label: round robin over all of them, sorted by label, as scikit-learn does."""
    ends = np.cumsum(counts)
    i = np.arange(n_splits)
    # how many of the numbers below `end` leave i as the rest of a division by n_splits
    below = [(end - i + n_splits - 1) // n_splits for end in (0, *ends)]
    rng = None if seed is None else np.random.RandomState(seed)
    dealt = []
    for k in range(len(counts)):
        folds = i.astype(np.int16).repeat(below[k + 1] - below[k])
        if rng is not None:
            rng.shuffle(folds)
        dealt.append(folds)
    return tuple(dealt)


@dataclass(frozen=True)
class DrawnFolds:
    """Folds at random, even in each block and in each of its labels: for who asks for no seed.

    A block's draw follows from its targets, so that a block is dealt out alike each time it is read, and
    nothing has to be known of the others.
    """

    n_splits: int
    stratified: bool

    def of(self, y: np.ndarray, at: RowsAt | None) -> np.ndarray:
        """Draw the folds of a block."""
        seed = int(pd.util.hash_array(np.asarray(y)).sum(dtype=np.uint64))
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(y))
        if self.stratified and not is_continuous(y):
            found = codes(np.asarray(y).reshape(-1, 1), 0)
            order = order[np.argsort(found.codes[order], kind="stable")]
        folds = np.empty(len(y), dtype=np.int16)
        folds[order] = (rng.integers(self.n_splits) + np.arange(len(y))) % self.n_splits
        return folds
