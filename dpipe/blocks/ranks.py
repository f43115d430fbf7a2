"""Order statistics in bounded memory: which value stands at a rank, exactly, in a few readings.

The first reading samples each block and gives for every wanted rank an interval that holds it, all but certainly.
The next one counts what lies below the interval and keeps what lies inside. What would take too much memory is
thinned out, and gives narrower intervals for one more reading.

References
----------
Munro, Paterson (1980), Selection and sorting with limited storage.
"""

from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import scipy.sparse as sp

from dpipe.blocks.table import Block, double_columns, n_rows, numbers

#: Rows of a block that are sampled.
SAMPLED = 16_384
#: Points that a summary of one column keeps.
KEPT = 32_768
#: Points that all intervals of all columns keep together.
MOST_INSIDE = 2**21
#: Up to as many intervals, a column is swept once for each; for more, it is sorted.
_FEW = 8


@dataclass(frozen=True)
class Points:
    """Some values of a column, each standing for several."""

    values: np.ndarray
    """Sorted and distinct; float64."""
    weights: np.ndarray
    """How many values each stands for; float64, whole numbers where they are exact."""
    error: float = 0.0
    """By how many ranks a point may be off."""

    @classmethod
    def of(cls, values: np.ndarray, weight: float = 1.0, error: float = 0.0) -> Self:
        """Count distinct values."""
        found, n = np.unique(values, return_counts=True)
        return cls(found, n * weight, error)

    @cached_property
    def ends(self) -> np.ndarray:
        """How many values lie up to each point."""
        return np.cumsum(self.weights)

    @property
    def total(self) -> float:
        """How many values all of them stand for."""
        return float(self.ends[-1]) if len(self.ends) else 0.0

    def merge(self, other: Self) -> Self:
        """Join with the points of later rows."""
        if not len(other.values):
            return self
        values, place = np.unique(np.concatenate([self.values, other.values]), return_inverse=True)
        weights = np.bincount(place, np.concatenate([self.weights, other.weights]), minlength=len(values))
        return type(self)(values, weights, self.error + other.error)

    def thinned(self, most: int) -> Self:
        """Keep at most about so many points, evenly by rank; a heavy value is never moved."""
        if len(self.values) <= most:
            return self
        group = np.floor(self.ends * (most / self.total))
        last = np.flatnonzero(np.append(np.diff(group) > 0, True))
        weights = np.diff(np.concatenate([[0.0], self.ends[last]]))
        return type(self)(self.values[last], weights, self.error + self.total / most)

    def around(self, rank: float, margin: float) -> tuple[float, float] | None:
        """Give the points that enclose a rank, with a margin on both sides; None where there are none."""
        if not len(self.values):
            return None
        reach = margin + self.error + 1
        low = int(np.searchsorted(self.ends, rank - reach, side="right")) - 1
        high = int(np.searchsorted(self.ends, rank + reach, side="right"))
        below = -np.inf if low < 0 else float(self.values[low])
        return below, np.inf if high >= len(self.values) else float(self.values[high])


@dataclass(frozen=True)
class Sample:
    """A sample of each column, with exact counts and extremes; NaN is left out."""

    n_rows: int
    observed: np.ndarray
    """Values that are not missing; int64 of shape (n_columns,)."""
    low: np.ndarray
    high: np.ndarray
    """Extremes, exact; NaN where nothing was observed."""
    points: tuple[Points, ...]
    n_sampled: np.ndarray
    dtype: np.dtype[Any]
    sparse: bool

    @classmethod
    def of(cls, X: Block, y: Any = None, w: np.ndarray | None = None) -> Self:
        """Read one block."""
        n = n_rows(X)
        # one random row of each of many equal ranges: more even than rows drawn at random
        strata = np.arange(SAMPLED) + np.random.default_rng(n).random(SAMPLED)
        rows = None if n <= SAMPLED else (strata * (n / SAMPLED)).astype(np.int64)
        dtype, columns = _columns(X)
        observed, low, high, points, sampled = [], [], [], [], []
        for values, gaps in columns:
            values[gaps] = np.nan
            n_observed = n - len(gaps)
            drawn = values if rows is None else values[rows]
            drawn = drawn[~np.isnan(drawn)]
            observed.append(n_observed)
            low.append(np.fmin.reduce(values) if n_observed else np.nan)
            high.append(np.fmax.reduce(values) if n_observed else np.nan)
            points.append(Points.of(drawn, n_observed / max(len(drawn), 1)).thinned(KEPT))
            sampled.append(len(drawn))
        return cls(
            n,
            np.array(observed, dtype=np.int64),
            np.array(low, dtype=np.float64),
            np.array(high, dtype=np.float64),
            tuple(points),
            np.array(sampled, dtype=np.int64),
            dtype,
            bool(sp.issparse(X)),
        )

    def merge(self, other: Self) -> Self:
        """Join with the sample of later rows."""
        joined = (a.merge(b).thinned(KEPT) for a, b in zip(self.points, other.points, strict=True))
        return type(self)(
            self.n_rows + other.n_rows,
            self.observed + other.observed,
            np.fmin(self.low, other.low),
            np.fmax(self.high, other.high),
            tuple(joined),
            self.n_sampled + other.n_sampled,
            np.result_type(self.dtype, other.dtype),
            self.sparse,
        )

    def interval(self, j: int, rank: int) -> tuple[float, float]:
        """Give an interval that holds a rank of column `j`, all but certainly."""
        n, drawn = float(self.observed[j]), float(self.n_sampled[j])
        if self.is_exact(j):
            found = self.points[j].around(rank, -1.0)
        else:
            share = (rank + 0.5) / n
            spread = 4.5 * np.sqrt(max(share * (1 - share), 1 / drawn) / drawn)
            found = self.points[j].around(rank, n * (spread + 2 / drawn))
        below, above = found or (-np.inf, np.inf)
        return max(below, float(self.low[j])), min(above, float(self.high[j]))

    def is_exact(self, j: int) -> bool:
        """Tell whether all values of a column are in the sample."""
        return bool(self.n_sampled[j] == self.observed[j] and self.points[j].error == 0)


Intervals = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Inside:
    """What lies in an interval of a column: exact counts, and the values if they are few."""

    n_below: int
    n_low: int
    """Values that equal the lower end."""
    n_high: int
    """Values that equal the upper end, if that is another."""
    points: Points
    """What lies strictly between the ends."""

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        return type(self)(
            self.n_below + other.n_below,
            self.n_low + other.n_low,
            self.n_high + other.n_high,
            self.points.merge(other.points),
        )


@dataclass(frozen=True)
class Found:
    """What lies in the intervals of each column."""

    inside: tuple[tuple[Inside, ...], ...]

    def merge(self, other: Self) -> Self:
        """Join with later rows; what has become too much is thinned out."""
        joined = [
            [a.merge(b) for a, b in zip(mine, theirs, strict=True)]
            for mine, theirs in zip(self.inside, other.inside, strict=True)
        ]
        return type(self)(_thinned(joined))


def _thinned(columns: Sequence[Sequence[Inside]]) -> tuple[tuple[Inside, ...], ...]:
    held = sum(len(each.points.values) for column in columns for each in column)
    if held <= MOST_INSIDE:
        return tuple(map(tuple, columns))
    share = MOST_INSIDE / held / 2
    return tuple(
        tuple(
            Inside(i.n_below, i.n_low, i.n_high, i.points.thinned(max(int(len(i.points.values) * share), 64)))
            for i in column
        )
        for column in columns
    )


@dataclass(frozen=True)
class Within:
    """Wants what lies within some intervals of each column."""

    name: ClassVar[str] = "values near the quantiles"
    intervals: tuple[Intervals, ...]
    """For each column closed intervals, sorted, that do not overlap."""

    def of(self, X: Block, y: Any = None, w: np.ndarray | None = None) -> Found:
        """Read one block."""
        found = []
        _, columns = _columns(X)
        for (values, gaps), intervals in zip(columns, self.intervals, strict=True):
            values[gaps] = np.nan
            found.append(_inside(values, intervals))
        return Found(_thinned(found))


def _inside(values: np.ndarray, intervals: Intervals) -> list[Inside]:
    if len(intervals) > _FEW:
        values = np.sort(values)
        known = values[: len(values) - int(np.isnan(values).sum())]
        return [_slice(known, low, high) for low, high in intervals]
    found = []
    for low, high in intervals:
        picked = values[(values >= low) & (values <= high)]
        picked.sort()
        n_below = int(np.count_nonzero(values < low))
        inner = _slice(picked, low, high)
        found.append(Inside(n_below, inner.n_low, inner.n_high, inner.points))
    return found


def _slice(ordered: np.ndarray, low: float, high: float) -> Inside:
    first, last = np.searchsorted(ordered, [low, high], side="left")
    after_low, after_high = np.searchsorted(ordered, [low, high], side="right")
    n_high = 0 if low == high else int(after_high - last)
    between = ordered[after_low : max(last, after_low)]
    return Inside(int(first), int(after_low - first), n_high, Points.of(between))


def _columns(X: Block) -> tuple[np.dtype[Any], Iterator[tuple[np.ndarray, np.ndarray]]]:
    """Give one column after another as float64 that may be changed, and where values are missing."""
    if not sp.issparse(X):
        return double_columns(X)
    matrix = numbers(X).tocsc()
    dense = (matrix[:, [j]].toarray()[:, 0].astype(np.float64) for j in range(matrix.shape[1]))
    return matrix.dtype, ((values, np.flatnonzero(np.isnan(values))) for values in dense)


def select(
    sample: Sample, ranks: Sequence[Sequence[int]]
) -> Generator[tuple[Any, ...], Sequence[Any], list[dict[int, float]]]:
    """Find the values at some ranks of each column, counted from 0; a refinement, see `registry.Way`.

    Parameters
    ----------
    sample : Sample
        Of the first reading.
    ranks : for each column, ranks below its number of observed values

    Returns
    -------
    list of dict
        For each column, its ranks and what stands there.
    """
    known: list[dict[int, float]] = [{} for _ in ranks]
    places = [{rank: sample.interval(j, rank) for rank in wanted} for j, wanted in enumerate(ranks)]
    for j, wanted in enumerate(places):
        if sample.is_exact(j):
            known[j] = {rank: _value_at(sample.points[j], rank) for rank in wanted}
            places[j] = {}
    while any(places):
        intervals = [_joined(list(wanted.values())) for wanted in places]
        (found,) = yield (Within(tuple(intervals)),)
        for j, wanted in enumerate(places):
            places[j] = {}
            lows = [low for low, _ in intervals[j]]
            for rank, place in wanted.items():
                at = bisect_right(lows, place[0]) - 1
                ends = float(sample.low[j]), float(sample.high[j])
                value, narrower = _look_up(rank, intervals[j][at], found.inside[j][at], ends)
                if narrower is None:
                    known[j][rank] = value
                else:
                    places[j][rank] = narrower
    return known


def _value_at(points: Points, rank: int) -> float:
    return float(points.values[np.searchsorted(points.ends, rank, side="right")])


def _joined(intervals: list[tuple[float, float]]) -> Intervals:
    """Unite intervals that overlap."""
    out: list[tuple[float, float]] = []
    for low, high in sorted(intervals):
        if out and low <= out[-1][1]:
            out[-1] = out[-1][0], max(out[-1][1], high)
        else:
            out.append((low, high))
    return tuple(out)


def _look_up(
    rank: int, interval: tuple[float, float], inside: Inside, ends: tuple[float, float]
) -> tuple[float, tuple[float, float] | None]:
    """Give the value at a rank; or, if it is not known yet, a narrower interval for it."""
    low, high = interval
    place = rank - inside.n_below
    if place < 0:
        return np.nan, (ends[0], low)
    if place < inside.n_low:
        return low, None
    place -= inside.n_low
    if place < inside.points.total:
        if not inside.points.error:
            return _value_at(inside.points, place), None
        below, above = inside.points.around(place, 0.0) or interval
        return np.nan, (max(below, low), min(above, high))
    if place - inside.points.total < inside.n_high:
        return high, None
    return np.nan, (high, ends[1])
