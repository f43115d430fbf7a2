"""Isotonic calibration of scores, exact and in bounded memory: a few readings, each of finer ranges of the scores.

The cumulated targets against the cumulated weights, in the order of the scores, are a curve; isotonic regression is the
slope of its greatest convex minorant. Counts over ranges of scores give points of the curve. Inside of a range it can
be no lower than its left end, and rise by one target for each weight at most: where even such a curve stays above the
minorant of the points, the range holds no corner of it, and is never looked into again. The others are cut finer,
until they hold one score each.

References
----------
Barlow, Bartholomew, Bremner, Brunk (1972), Statistical inference under order restrictions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import scipy.optimize
from sklearn.isotonic import IsotonicRegression

from dpipe.blocks.rows import Rows, RowsAt
from dpipe.blocks.table import Block, n_rows
from dpipe.blocks.threads import single_threaded_blas
from dpipe.composites.scores import Scores
from dpipe.families.asking import Asking

#: Ranges that are counted in one reading, for each score.
_N_RANGES = 8192


@dataclass(frozen=True)
class RangeSums:
    """What the rows give to each range of one score."""

    weight: np.ndarray
    positive: np.ndarray
    """Weights of all rows, and of those of the class."""
    first: np.ndarray
    last: np.ndarray
    """Smallest and largest score; infinite without rows."""

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        return type(self)(
            self.weight + other.weight,
            self.positive + other.positive,
            np.minimum(self.first, other.first),
            np.maximum(self.last, other.last),
        )


@dataclass(frozen=True)
class IsotonicSums:
    """What the rows give to the ranges of every score."""

    scores: tuple[RangeSums, ...]
    resolution: float
    """Scores that are nearer to each other are one to scikit-learn; it depends on their type."""

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        merged = tuple(mine.merge(theirs) for mine, theirs in zip(self.scores, other.scores, strict=True))
        return type(self)(merged, max(self.resolution, other.resolution))


@dataclass(frozen=True, eq=False)
class Isotonic:
    """Wants the sums of ranges of the scores: from each start on, up to the stop, both as `_ordered` gives them."""

    scores: Scores
    own: np.ndarray
    """The class that each score stands for."""
    starts: tuple[np.ndarray, ...]
    stops: tuple[np.ndarray, ...]
    placed: ClassVar[bool] = True
    name: ClassVar[str] = "sums of ranges of the scores"

    def of(self, X: Block, y: Any, w: Any = None, at: RowsAt | None = None) -> IsotonicSums:
        """Read one block."""
        with single_threaded_blas():
            found, seen = self.scores(Rows(X, y, w, at=at))
        if not n_rows(seen.X):
            return IsotonicSums(
                tuple(_sums(np.empty(0), np.empty(0), np.empty(0), s, s) for s in self.starts), 0.0
            )
        weights = np.ones(len(found)) if seen.w is None else np.asarray(seen.w, dtype=np.float64)
        positive = np.asarray(seen.y)[:, None] == self.own
        return IsotonicSums(
            tuple(
                _sums(found[:, j].astype(np.float64), positive[:, j] * weights, weights, starts, stops)
                for j, (starts, stops) in enumerate(zip(self.starts, self.stops, strict=True))
            ),
            float(np.finfo(found.dtype).resolution) if found.dtype.kind == "f" else 0.0,
        )


def _sums(
    scores: np.ndarray, positive: np.ndarray, weights: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> RangeSums:
    n = len(starts)
    first, last = np.full(n, np.inf), np.full(n, -np.inf)
    if not n or not len(scores):
        return RangeSums(np.zeros(n), np.zeros(n), first, last)
    keys = _ordered(scores)
    place = np.searchsorted(starts, keys, side="right") - 1
    inside = (place >= 0) & (keys <= stops[place]) & (weights > 0)
    place, scores = place[inside], scores[inside]
    np.minimum.at(first, place, scores)
    np.maximum.at(last, place, scores)
    return RangeSums(
        np.bincount(place, weights[inside], minlength=n),
        np.bincount(place, positive[inside], minlength=n),
        first,
        last,
    )


def _ordered(values: np.ndarray) -> np.ndarray:
    """Give doubles as integers that are ordered as they are; uint64 of the same shape."""
    bits = (values + 0.0).view(np.uint64)  # one zero, not two
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)


@dataclass(frozen=True)
class _Ranges:
    """What is known of one score: ranges that follow each other, and which of them must be cut."""

    sums: RangeSums
    active: np.ndarray

    @classmethod
    def refined(cls, before: "_Ranges | None", found: RangeSums, resolution: float) -> "_Ranges":
        """Put what a reading has found in the place of the ranges that were cut."""
        parts = [found] if before is None else [_chosen(before.sums, ~before.active), found]
        joined = RangeSums(*(np.concatenate(each) for each in zip(*map(_arrays, parts), strict=True)))
        order = np.argsort(joined.first, kind="stable")
        known = _chosen(joined, order[joined.weight[order] > 0])
        return cls(known, _may_hold_corners(known, resolution))

    def cut(self) -> tuple[np.ndarray, np.ndarray]:
        """Give the ranges of the next reading: more of them where there are more rows."""
        asked = _chosen(self.sums, self.active)
        if not len(asked.weight):
            return np.empty(0, np.uint64), np.empty(0, np.uint64)
        low, high = _ordered(asked.first), _ordered(asked.last)
        share = np.ceil(_N_RANGES * asked.weight / asked.weight.sum()).clip(2, _N_RANGES)
        starts: list[int] = []
        stops: list[int] = []
        for a, b, n in zip(low.tolist(), high.tolist(), share.astype(int).tolist(), strict=True):
            step = -(-(b - a + 1) // n)
            own = range(a, b + 1, step)
            starts += own
            stops += [min(start + step - 1, b) for start in own]
        return np.array(starts, dtype=np.uint64), np.array(stops, dtype=np.uint64)


def _arrays(sums: RangeSums) -> tuple[np.ndarray, ...]:
    return sums.weight, sums.positive, sums.first, sums.last


def _chosen(sums: RangeSums, which: np.ndarray) -> RangeSums:
    return RangeSums(*(array[which] for array in _arrays(sums)))


def _points(sums: RangeSums, resolution: float) -> np.ndarray:
    """Give where each new point begins: scores that are nearer to its first one than the resolution belong to it."""
    begins = np.ones(len(sums.first), dtype=bool)
    if (np.diff(sums.first) < resolution).any():
        start = -np.inf
        for i, first in enumerate(sums.first.tolist()):
            begins[i] = first - start >= resolution
            start = first if begins[i] else start
    return np.flatnonzero(begins)


def _pools(sums: RangeSums, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pool adjacent violators; give the point at which each pool begins, the weights and the means of the points."""
    weight, positive = (np.add.reduceat(values, begins) for values in (sums.weight, sums.positive))
    found = scipy.optimize.isotonic_regression(positive / weight, weights=weight)
    return found.blocks[:-1], weight, positive


def _may_hold_corners(sums: RangeSums, resolution: float) -> np.ndarray:
    """Tell which ranges of several scores must be looked into."""
    several = sums.last - sums.first >= max(resolution, np.finfo(float).tiny)
    if len(sums.weight) < 2:
        return several
    begins = _points(sums, resolution)
    pools, weight, positive = _pools(sums, begins)
    sizes = np.diff(np.append(pools, len(begins)))
    before = np.cumsum(weight) - weight, np.cumsum(positive) - positive
    pool_weight, pool_positive = np.add.reduceat(weight, pools), np.add.reduceat(positive, pools)
    slope = np.repeat(pool_positive / pool_weight, sizes)
    left = [np.repeat(each[pools], sizes) for each in before]
    # the lowest that the curve can be: no target of the point comes before all rows without one
    lowest_at = before[0] + weight - positive
    minorant = left[1] + slope * (lowest_at - left[0])
    # what is lower by rounding only is no corner
    low = before[1] < minorant - 1e-12 * max(1.0, float(positive.sum()))
    return several & np.repeat(low, np.diff(np.append(begins, len(sums.weight))))


def _calibrator(sums: RangeSums, resolution: float, dtype: Any) -> IsotonicRegression:
    """Finish: scikit-learn's own fit on the ends of the pools.

    Where scores stand closer than the resolution in long rows, scikit-learn's choice of those it keeps depends on
    each of them; here it is made among the ranges.
    """
    begins = _points(sums, resolution)
    pools, weight, positive = _pools(sums, begins)
    means = np.add.reduceat(positive, pools) / np.add.reduceat(weight, pools)
    last_points = np.append(pools[1:], len(begins)) - 1
    alone = np.diff(np.append(begins, len(sums.weight))) == 1
    # of scores that are one to scikit-learn it keeps the first
    last = np.where(alone, sums.last[begins], sums.first[begins])
    last = np.where(last - sums.first[begins] >= resolution, last, sums.first[begins])
    ends = np.stack([sums.first[begins[pools]], last[last_points]], axis=1)
    chosen = np.stack([np.ones(len(pools), dtype=bool), ends[:, 1] > ends[:, 0]], axis=1)
    X, y = ends[chosen], np.repeat(means[:, None], 2, axis=1)[chosen]
    return IsotonicRegression(out_of_bounds="clip").fit(X.astype(dtype), y)


def fit_isotonics(scores: Scores, own: np.ndarray) -> Asking:
    """Fit one isotonic regression for each score; gives scikit-learn's calibrators."""
    whole = np.array([0], dtype=np.uint64), np.array([2**64 - 1], dtype=np.uint64)
    known: Sequence[_Ranges | None] = [None] * len(own)
    cuts = [whole] * len(own)
    resolution = 0.0
    while any(len(starts) for starts, _ in cuts):
        (sums,) = yield (Isotonic(scores, own, *zip(*cuts, strict=True)),)
        resolution = max(resolution, sums.resolution)
        ranges = [
            _Ranges.refined(before, found, resolution)
            for before, found in zip(known, sums.scores, strict=True)
        ]
        cuts = [each.cut() for each in ranges]
        known = ranges
    dtype = np.float32 if resolution > np.finfo(np.float64).resolution else np.float64
    return [_calibrator(each.sums, resolution, dtype) for each in known if each is not None]
