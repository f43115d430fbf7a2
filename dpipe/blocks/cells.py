"""Sums over time, a cell each: what means, spreads and straight lines are finished from.

A block has the steps first, `(n_steps, *cells)`. Missing values are left out, cell by cell. States are added to in
place by `add`, one block after the other, and joined by `merged`, which leaves its parts as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def steps_first(block: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Give a block with the given axes as one, the first; the others keep their order.

    Examples
    --------
    >>> steps_first(np.zeros((2, 3, 4)), (0, 2)).shape
    (8, 3)
    """
    rest = [axis for axis in range(block.ndim) if axis not in axes]
    moved = np.transpose(block, [*axes, *rest])
    return moved.reshape(-1, *(block.shape[axis] for axis in rest))


@dataclass
class GroupSums:
    """How many, their sum, and the squares around their mean, for each group and cell.

    Attributes
    ----------
    groups : ndarray of shape (n_groups,)
        Numbers of the groups that it holds, ascending.
    count : ndarray of shape (n_groups, *cells), or of one cell where nothing was missing so far
    total : ndarray of shape (n_groups, *cells)
    squares : ndarray or None
        None if spreads are not asked for.
    """

    groups: np.ndarray
    count: np.ndarray
    total: np.ndarray
    squares: np.ndarray | None

    @classmethod
    def empty(cls, groups: np.ndarray, cells: tuple[int, ...], spread: bool) -> "GroupSums":
        """Begin with nothing."""
        shape = (len(groups), *cells)
        count = np.zeros((len(groups), *(1 for _ in cells)), dtype=np.int64)
        return cls(groups, count, np.zeros(shape), np.zeros(shape) if spread else None)

    def add(self, block: np.ndarray, labels: np.ndarray | None) -> None:
        """Add the steps whose label is one of the groups; without labels, all of them to the one group."""
        if labels is None:
            where, starts, values = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), block
        else:
            wanted = np.flatnonzero(np.isin(labels, self.groups))
            order = wanted[np.argsort(labels[wanted], kind="stable")]
            present, starts = np.unique(labels[order], return_index=True)
            where, values = np.searchsorted(self.groups, present), _taken(block, order)
        if not len(values):
            return
        count, total = _sums(values, starts)
        squares = None
        if self.squares is not None:
            means = np.repeat(total / np.maximum(count, 1), np.diff([*starts, len(values)]), axis=0)
            squares = _sums((values - means) ** 2, starts)[1]
        self._join(where, count, total, squares)

    def _join(
        self, where: np.ndarray, count: np.ndarray, total: np.ndarray, squares: np.ndarray | None
    ) -> None:
        if (
            count.size > len(where) and self.count.size < self.total.size
        ):  # something is missing for the first time
            self.count = np.broadcast_to(self.count, self.total.shape).copy()
        if self.squares is not None and squares is not None:
            mine, n = self.total[where], self.count[where]
            with np.errstate(divide="ignore", invalid="ignore"):
                # the squares around a common mean: Chan, Golub, LeVeque (1979), from sums
                shift = (count / n * mine - total) ** 2 * (n / (count * (n + count)))
            both = (n > 0) & (count > 0)
            self.squares[where] += squares + np.where(both, shift, 0.0)
        self.total[where] += total
        self.count[where] += count

    @classmethod
    def merged(cls, parts: Sequence["GroupSums"]) -> "GroupSums":
        """Join several into a new one."""
        groups = parts[0].groups
        for part in parts[1:]:
            groups = np.union1d(groups, part.groups)
        found = cls.empty(groups, parts[0].total.shape[1:], parts[0].squares is not None)
        for part in parts:
            found._join(np.searchsorted(groups, part.groups), part.count, part.total, part.squares)
        return found

    def finished(self, what: str) -> np.ndarray:
        """Give "mean", "std" or "count", float64 of shape (n_groups, *cells); NaN where there is nothing."""
        count = np.broadcast_to(self.count, self.total.shape).astype(np.float64)
        if what == "count":
            return count
        values = self.total if what == "mean" else self.squares
        assert values is not None
        with np.errstate(divide="ignore", invalid="ignore"):
            found = values / count
        return np.sqrt(found) if what == "std" else found


def _taken(block: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Take steps in an order, without a copy where they lie so already."""
    if len(order) == len(block) and np.array_equal(order, np.arange(len(block))):
        return block
    return block[order]


def _sums(values: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count and add up runs of steps, leaving out what is missing."""
    n = len(values)
    missing = np.isnan(values) if values.dtype.kind == "f" else None
    if missing is None or not missing.any():
        lengths = np.diff([*starts, n]).reshape(-1, *(1 for _ in values.shape[1:]))
        count = lengths.astype(np.int64)
    else:
        values = np.where(missing, values.dtype.type(0), values)
        count = np.add.reduceat(~missing, starts, axis=0, dtype=np.int32)
    if len(starts) == n:
        return count, values.astype(np.float64)
    return count, np.add.reduceat(values, starts, axis=0, dtype=np.float64)


def less_groups(
    block: np.ndarray, places: np.ndarray, groups: np.ndarray, scale: np.ndarray | None
) -> np.ndarray:
    """Subtract from each step the values of its group, and divide by their scale.

    Parameters
    ----------
    block : ndarray of shape (n_steps, *cells)
    places : ndarray of shape (n_steps,)
        Where the group of a step stands in `groups`.
    groups : ndarray of shape (n_groups, *cells)
    scale : ndarray of that shape, optional

    Examples
    --------
    >>> less_groups(np.array([[3.0], [5.0]]), np.array([0, 0]), np.array([[1.0]]), None).ravel().tolist()
    [2.0, 4.0]
    """
    kinds = [block, groups] if scale is None else [block, groups, scale]
    found = np.empty(block.shape, dtype=np.result_type(*kinds))
    for i, place in enumerate(places):  # step by step: the groups need not be repeated
        np.subtract(block[i], groups[place], out=found[i, ...])
        if scale is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                np.divide(found[i], scale[place], out=found[i, ...])
    return found


@dataclass
class TrendSums:
    """What a straight line through the steps of each cell is found from.

    Attributes
    ----------
    times : ndarray of shape (3, *cells), or of one cell where nothing was missing so far
        The sums of 1, t and t squared over the steps that are there.
    values : ndarray of shape (2, *cells)
        The sums of x and t x.
    """

    times: np.ndarray
    values: np.ndarray

    @classmethod
    def empty(cls, cells: tuple[int, ...]) -> "TrendSums":
        """Begin with nothing."""
        return cls(np.zeros((3, *(1 for _ in cells))), np.zeros((2, *cells)))

    def add(self, block: np.ndarray, t: np.ndarray) -> None:
        """Add the steps of a block at the times `t`, which had best lie between -1 and 1."""
        powers = np.stack([np.ones_like(t), t, t * t])
        missing = np.isnan(block) if block.dtype.kind == "f" else None
        if missing is None or not missing.any():
            times = powers.sum(axis=1).reshape(3, *(1 for _ in block.shape[1:]))
        else:
            times = np.tensordot(powers, (~missing).astype(np.float64), axes=1)
            block = np.where(missing, 0, block)
        self._join(times, np.tensordot(powers[:2], block.astype(np.float64, copy=False), axes=1))

    def _join(self, times: np.ndarray, values: np.ndarray) -> None:
        self.times = self.times + times
        self.values += values

    @classmethod
    def merged(cls, parts: Sequence["TrendSums"]) -> "TrendSums":
        """Join several into a new one."""
        found = cls.empty(parts[0].values.shape[1:])
        for part in parts:
            found._join(part.times, part.values)
        return found

    def finished(self, what: str) -> np.ndarray:
        """Give "slope" or "intercept"; NaN with nothing, a slope of 0 with one step."""
        n, t, tt = np.broadcast_to(self.times, (3, *self.values.shape[1:]))
        x, tx = self.values
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = tt - t * t / n
            slope = np.where(spread > 1e-14 * np.maximum(tt, 1e-300), (tx - t * x / n) / spread, 0.0)
            slope = np.where(n > 0, slope, np.nan)
            return slope if what == "slope" else (x - slope * t) / n


def less_line(
    block: np.ndarray, t: np.ndarray, slope: np.ndarray, intercept: np.ndarray, dtype: np.dtype
) -> np.ndarray:
    """Subtract a straight line from the steps of each cell.

    Examples
    --------
    >>> block, t = np.array([[1.0], [3.0]]), np.array([0.0, 1.0])
    >>> less_line(block, t, np.array([2.0]), np.array([1.0]), block.dtype).ravel().tolist()
    [0.0, 0.0]
    """
    found = np.empty(block.shape, dtype=dtype)
    for i, when in enumerate(t):
        found[i, ...] = block[i] - (intercept + when * slope)
    return found


def standardised(
    block: np.ndarray, axes: tuple[int, ...], dtype: np.dtype, mean: np.ndarray, std: np.ndarray
) -> np.ndarray:
    """Subtract the mean and divide by the standard deviation, of the cells along `axes`; by 1 where it is 0.

    Examples
    --------
    >>> standardised(np.array([[1.0, 5.0]]), (0,), np.dtype(float), np.array([3.0]), np.array([2.0])).tolist()
    [[-1.0, 1.0]]
    """
    other = tuple(axis for axis in range(block.ndim) if axis not in axes)
    scale = np.where(std == 0, 1.0, std)
    found = block - np.expand_dims(mean, other)
    found /= np.expand_dims(scale, other)
    return found.astype(dtype, copy=False)
