"""Order statistics in bounded memory: up to which value so many lie, exactly, in a few readings.

Rows count once each, or by their weights. The first reading samples each block and gives for every wanted value an
interval that holds it, all but certainly. The next one counts what lies below the interval and keeps what lies
inside. What would take too much memory is thinned out, and gives narrower intervals for one more reading.

References
----------
Munro, Paterson (1980), Selection and sorting with limited storage.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import scipy.sparse as sp

from dpipe.blocks.rows import RowsAt, checked_weights
from dpipe.blocks.statistics import first_not_in
from dpipe.blocks.table import Block, double_columns, n_rows, numbers

#: Points that a summary of one column keeps.
KEPT = 32_768
#: Points that all intervals of all columns keep together.
MOST_INSIDE = 2**22
#: Up to as many intervals, a column is swept once for each; for more, it is sorted.
_FEW = 8


#: Pieces that points are held in before they are put in order: each time costs a sort of all of them.
_MOST_PIECES = 64


@dataclass(frozen=True)
class Points:
    """Some values of a column, each standing for several."""

    pieces: tuple[tuple[np.ndarray, np.ndarray], ...]
    """Values, sorted and distinct, and how many each stands for: whole numbers where they are exact. Both float64."""
    error: float = 0.0
    """How much more than the points say may lie up to one of them: what was thinned out lies before what was kept."""

    @classmethod
    def of(cls, values: np.ndarray, weight: float = 1.0) -> Self:
        """Count distinct values."""
        found, n = np.unique(values, return_counts=True)
        return cls(((found, n * weight),) if len(found) else ())

    @classmethod
    def weighing(cls, values: np.ndarray, weights: np.ndarray) -> Self:
        """Add up the weights of distinct values."""
        return cls((_distinct(values, weights),) if len(values) else ())

    @cached_property
    def _joined(self) -> tuple[np.ndarray, np.ndarray]:
        if len(self.pieces) == 1:
            return self.pieces[0]
        values = np.concatenate([np.empty(0), *(values for values, _ in self.pieces)])
        weights = np.concatenate([np.empty(0), *(weights for _, weights in self.pieces)])
        return _distinct(values, weights)

    @property
    def values(self) -> np.ndarray:
        """All values, sorted and distinct."""
        return self._joined[0]

    @property
    def weights(self) -> np.ndarray:
        """How many values each of them stands for."""
        return self._joined[1]

    @property
    def n_held(self) -> int:
        """Points in all pieces."""
        return sum(len(values) for values, _ in self.pieces)

    @cached_property
    def ends(self) -> np.ndarray:
        """How many values lie up to each point."""
        return np.cumsum(self.weights)

    @property
    def total(self) -> float:
        """How many values all of them stand for."""
        return float(sum(weights.sum() for _, weights in self.pieces))

    def merge(self, other: Self) -> Self:
        """Join with the points of later rows."""
        both = type(self)(self.pieces + other.pieces, self.error + other.error)
        return type(self)((both._joined,), both.error) if len(both.pieces) > _MOST_PIECES else both

    def thinned(self, most: int) -> Self:
        """Keep about so many points, evenly by rank, of more than four times as many."""
        if self.n_held <= 4 * most:
            return self
        width = self.total / most
        group = np.floor(self.ends / width)
        # who stands for much is kept, or what lies before it would be far off
        kept = np.append(np.diff(group) > 0, True) | (self.weights >= width)
        weights = np.diff(np.concatenate([[0.0], self.ends[kept]]))
        error = width + float(self.weights[~kept].max(initial=0.0))
        return type(self)(((self.values[kept], weights),), self.error + error)

    def around(self, amount: float, margin: float) -> tuple[float, float] | None:
        """Give the points that enclose where so much lies, with a margin on both sides; None where there are none."""
        if not self.pieces:
            return None
        low = int(np.searchsorted(self.ends, amount - margin - self.error, side="left")) - 1
        high = int(np.searchsorted(self.ends, amount + margin, side="left"))
        below = -np.inf if low < 0 else float(self.values[low])
        return below, np.inf if high >= len(self.values) else float(self.values[high])


def _distinct(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(values, kind="stable")  # takes advantage of sorted runs
    values, weights = values[order], weights[order]
    first = np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else order
    if len(first) < len(values):
        values, weights = values[first], np.add.reduceat(weights, first)
    return values, weights


@dataclass(frozen=True)
class SampledColumn:
    """What a sample tells of one column of a block."""

    n_gaps: int
    low: float = np.nan
    high: float = np.nan
    infinite: bool = False
    points: Points = Points(())
    n_drawn: float = 0.0
    whole: bool = True
    amount: float = 0.0


@dataclass(frozen=True)
class Sample:
    """A sample of each column, with exact counts and extremes of the rows that were read; NaN is left out."""

    n_rows: int
    observed: np.ndarray
    """Values that are not missing; int64 of shape (n_columns,)."""
    amount: np.ndarray
    """The same, or the sum of their weights; float64."""
    low: np.ndarray
    high: np.ndarray
    """Extremes of what has a weight, exact; NaN where nothing was observed."""
    infinite: np.ndarray
    """Whether a column holds infinity."""
    points: tuple[Points, ...]
    n_drawn: np.ndarray
    """How many values a sample of rows that count alike would need for the same precision."""
    whole: np.ndarray
    """Whether all values are in the sample."""
    dtype: np.dtype[Any]
    sparse: bool
    n_total: int
    """Rows of all blocks, whether they have been read or not."""

    def merge(self, other: Self) -> Self:
        """Join with the sample of later rows."""
        joined = (a.merge(b).thinned(KEPT) for a, b in zip(self.points, other.points, strict=True))
        return type(self)(
            self.n_rows + other.n_rows,
            self.observed + other.observed,
            self.amount + other.amount,
            np.fmin(self.low, other.low),
            np.fmax(self.high, other.high),
            self.infinite | other.infinite,
            tuple(joined),
            self.n_drawn + other.n_drawn,
            self.whole & other.whole,
            np.result_type(self.dtype, other.dtype),
            self.sparse,
            max(self.n_total, self.n_rows + other.n_rows),
        )

    @property
    def is_complete(self) -> bool:
        """Whether all blocks were read, so that the counts and extremes are those of the data."""
        return self.n_rows == self.n_total

    def interval(self, j: int, share: float) -> tuple[float, float]:
        """Give an interval that holds a quantile of column `j`, all but certainly."""
        n, drawn = float(self.amount[j]), float(self.n_drawn[j])
        found = None
        if drawn:
            spread = 3.6 * np.sqrt(max(share * (1 - share), 1 / drawn) / drawn)
            found = self.points[j].around(share * n, n * (spread + 3 / drawn))
        below, above = found or (-np.inf, np.inf)
        if not self.is_complete:
            return below, above
        return max(below, float(self.low[j])), min(above, float(self.high[j]))

    def is_exact(self, j: int) -> bool:
        """Tell whether all values of a column are in the sample."""
        return bool(self.whole[j] and self.points[j].error == 0 and self.is_complete)


@dataclass(frozen=True)
class Sampling:
    """Wants a `Sample`, of so many rows of each block."""

    rows: int = 12_288
    placed: ClassVar[bool] = True
    partial: ClassVar[bool] = True
    """A pass that collects nothing else reads some of the blocks only."""
    name: ClassVar[str] = "Sample"

    def of(self, X: Block, y: Any = None, w: np.ndarray | None = None, at: RowsAt | None = None) -> Sample:
        """Read one block."""
        chosen = self.chosen(n_rows(X), at)
        dtype, columns = _columns(X)
        w = checked_weights(w)
        found = [_sample_column(values, gaps, chosen, w) for values, gaps in columns]
        return self.joined(X, found, dtype, at)

    def chosen(self, n: int, at: RowsAt | None) -> np.ndarray | None:
        """Choose rows of a block: one of each of many equal ranges, others in each block; None for all."""
        seed = (n, 0 if at is None else at.first)
        strata = np.arange(self.rows) + np.random.default_rng(seed).random(self.rows)
        return None if n <= self.rows else (strata * (n / self.rows)).astype(np.int64)

    def joined(self, X: Block, found: Sequence[SampledColumn], dtype: Any, at: RowsAt | None) -> Sample:
        """Put the columns of a block together."""
        n = n_rows(X)
        return Sample(
            n,
            n - np.array([column.n_gaps for column in found], dtype=np.int64),
            np.array([column.amount for column in found], dtype=np.float64),
            np.array([column.low for column in found], dtype=np.float64),
            np.array([column.high for column in found], dtype=np.float64),
            np.array([column.infinite for column in found], dtype=bool),
            tuple(column.points for column in found),
            np.array([column.n_drawn for column in found], dtype=np.float64),
            np.array([column.whole for column in found], dtype=bool),
            dtype,
            bool(sp.issparse(X)),
            n if at is None else at.total,
        )


def _sample_column(
    values: np.ndarray, gaps: np.ndarray, rows: np.ndarray | None, w: np.ndarray | None
) -> SampledColumn:
    """Look at one column of a block; `values` may be changed."""
    n_observed = len(values) - len(gaps)
    if not n_observed:
        return SampledColumn(len(gaps))
    values[gaps] = np.nan
    if w is not None:
        return _sample_weighted(values, len(gaps), rows, w)
    drawn = values if rows is None else values[rows]
    if len(gaps):
        drawn = drawn[~np.isnan(drawn)]
        # NaN would hide the extremes, and fmin is many times slower than min
        values[gaps] = values[first_not_in(gaps)]
    points = Points.of(drawn, n_observed / max(len(drawn), 1))
    low, high = float(values.min()), float(values.max())
    infinite = bool(np.isinf([low, high]).any())
    # a row may be drawn twice: as many values as there are need not be all of them
    return SampledColumn(len(gaps), low, high, infinite, points, len(drawn), rows is None, n_observed)


def _sample_weighted(
    values: np.ndarray, n_gaps: int, rows: np.ndarray | None, w: np.ndarray
) -> SampledColumn:
    infinite = bool(np.isinf(values).any())
    counts = ~np.isnan(values) & (w > 0)
    if not counts.any():
        return SampledColumn(n_gaps, infinite=infinite)
    amount, held = float(w[counts].sum()), values[counts]
    drawn = counts if rows is None else rows[counts[rows]]
    some, weights = values[drawn], w[drawn]
    total = float(weights.sum())
    points = Points.weighing(some, weights if rows is None else weights * (amount / total if total else 1.0))
    # the size of a sample of equal weights, after Kish (1965)
    n_drawn = total**2 / float(np.square(weights).sum()) if total else 0.0
    low, high = float(held.min()), float(held.max())
    return SampledColumn(n_gaps, low, high, infinite, points, n_drawn, rows is None, amount)


Intervals = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Inside:
    """What lies in an interval of a column: exact counts, and the values if they are few."""

    n_below: float
    n_low: float
    """Values that equal the lower end, or their weight."""
    n_high: float
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
    sample: Sample | None = None
    """A sample of the same blocks, where one was asked for."""

    def merge(self, other: Self) -> Self:
        """Join with later rows; what has become too much is thinned out."""
        both = self.sample is not None and other.sample is not None
        joined = [
            [a.merge(b) for a, b in zip(mine, theirs, strict=True)]
            for mine, theirs in zip(self.inside, other.inside, strict=True)
        ]
        return type(self)(
            _thinned(joined),
            self.sample.merge(other.sample) if both and self.sample and other.sample else None,
        )


def _thinned(columns: Sequence[Sequence[Inside]]) -> tuple[tuple[Inside, ...], ...]:
    held = sum(each.points.n_held for column in columns for each in column)
    if held <= MOST_INSIDE:
        return tuple(map(tuple, columns))
    share = MOST_INSIDE / held / 8
    return tuple(
        tuple(
            Inside(i.n_below, i.n_low, i.n_high, i.points.thinned(max(int(i.points.n_held * share), 64)))
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
    sampling: Sampling | None = None
    """What to sample beside."""
    placed: ClassVar[bool] = True

    def of(self, X: Block, y: Any = None, w: np.ndarray | None = None, at: RowsAt | None = None) -> Found:
        """Read one block."""
        found, sampled = [], []
        dtype, columns = _columns(X)
        chosen = None if self.sampling is None else self.sampling.chosen(n_rows(X), at)
        w = checked_weights(w)
        for (values, gaps), intervals in zip(columns, self.intervals, strict=True):
            if self.sampling is not None:
                sampled.append(_sample_column(values, gaps, chosen, w))
            values[gaps] = np.nan
            found.append(_inside(values, intervals) if w is None else _weight_inside(values, w, intervals))
        sample = None if self.sampling is None else self.sampling.joined(X, sampled, dtype, at)
        return Found(_thinned(found), sample)


def _inside(values: np.ndarray, intervals: Intervals) -> list[Inside]:
    if len(intervals) > _FEW:
        values = np.sort(values)
        known = values[: len(values) - int(np.isnan(values).sum())]
        return [_slice(known, low, high) for low, high in intervals]
    found = []
    for low, high in intervals:
        below = values < low
        picked = values[(values <= high) ^ below]
        picked.sort()
        n_below = int(np.count_nonzero(below))
        inner = _slice(picked, low, high)
        found.append(Inside(n_below, inner.n_low, inner.n_high, inner.points))
    return found


def _weight_inside(values: np.ndarray, w: np.ndarray, intervals: Intervals) -> list[Inside]:
    counts = ~np.isnan(values) & (w > 0)
    values, w = values[counts], w[counts]
    order = np.argsort(values)
    values, w = values[order], w[order]
    ends = np.concatenate([[0.0], np.cumsum(w)])
    found = []
    for low, high in intervals:
        first, last = np.searchsorted(values, [low, high], side="left")
        after_low, after_high = np.searchsorted(values, [low, high], side="right")
        at_high = 0.0 if low == high else w[last:after_high].sum()
        between = slice(after_low, max(last, after_low))
        points = Points.weighing(values[between], w[between])
        found.append(Inside(float(ends[first]), float(w[first:after_low].sum()), float(at_high), points))
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


#: A sample in case that a first look has missed; it counts all rows, too.
_BESIDE = Sampling(512)


def first_look(sample: Sample, shares: Sequence[float]) -> Within:
    """Give what to look for while the blocks are counted that a first sample has left out."""
    columns = range(len(sample.points))
    intervals = (_joined([sample.interval(j, share) for share in shares]) for j in columns)
    return Within(tuple(intervals), _BESIDE)


def select(
    sample: Sample, amounts: Sequence[Sequence[float]], looked: tuple[Within, Found] | None = None
) -> Generator[tuple[Any, ...], Sequence[Any], list[dict[float, float]]]:
    """Find in each column the least values up to which so much lies; a refinement, see `registry.Way`.

    Parameters
    ----------
    sample : Sample
        Of all blocks.
    amounts : for each column, numbers of values, or their weights
        More than 0, up to all that the sample has counted. The value at rank r, counted from 0, is that of r + 1.
    looked : (Within, Found), optional
        What a `first_look` has found.

    Returns
    -------
    list of dict
        For each column, its amounts and the values.
    """
    known: list[dict[float, float]] = [{} for _ in amounts]
    places: list[dict[float, tuple[float, float]]] = []
    for j, wanted in enumerate(amounts):
        ends = float(sample.low[j]), float(sample.high[j])
        places.append(dict.fromkeys(wanted, ends))
        if sample.is_exact(j):
            known[j] = {amount: _value_at(sample.points[j], amount) for amount in wanted}
            places[j] = {}
        elif looked is not None:
            places[j] = _looked_up(places[j], looked[0].intervals[j], looked[1].inside[j], known[j], ends)
        for amount, place in places[j].items():
            low, high = sample.interval(j, min(amount / sample.amount[j], 1.0))
            if place[0] <= low <= high <= place[1]:
                places[j][amount] = low, high
    while any(places):
        intervals = tuple(_joined(list(wanted.values())) for wanted in places)
        (found,) = yield (Within(intervals),)
        for j, column in enumerate(places):
            ends = float(sample.low[j]), float(sample.high[j])
            places[j] = _looked_up(column, intervals[j], found.inside[j], known[j], ends)
    return known


def _looked_up(
    places: dict[float, tuple[float, float]],
    intervals: Intervals,
    inside: Sequence[Inside],
    known: dict[float, float],
    ends: tuple[float, float],
) -> dict[float, tuple[float, float]]:
    """Enter the values that a reading has found, and give narrower intervals for the amounts that are left."""
    left = {}
    starts = np.array([each.n_below for each in inside])
    for amount in places:
        # the last interval with less below it, so that what is missed lies to its right
        at = max(int(np.searchsorted(starts, amount, side="left")) - 1, 0)
        value, narrower = _look_up(amount, intervals[at], inside[at], ends)
        if narrower is None:
            known[amount] = value
        else:
            left[amount] = narrower
    return left


def _value_at(points: Points, amount: float) -> float:
    # weights that are added up in another order may fall short of all of them, in their last digits
    at = int(np.searchsorted(points.ends, amount, side="left"))
    return float(points.values[min(at, len(points.values) - 1)])


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
    amount: float, interval: tuple[float, float], inside: Inside, ends: tuple[float, float]
) -> tuple[float, tuple[float, float] | None]:
    """Give the value up to which so much lies; or, if it is not known yet, a narrower interval for it."""
    low, high = interval
    place = amount - inside.n_below
    if place <= 0:
        return np.nan, (ends[0], low)
    if place <= inside.n_low:
        return low, None
    place -= inside.n_low
    if place <= inside.points.total:
        if not inside.points.error:
            return _value_at(inside.points, place), None
        below, above = inside.points.around(place, 0.0) or interval
        return np.nan, (max(below, low), min(above, high))
    if place - inside.points.total <= inside.n_high or high >= ends[1]:
        return high, None
    return np.nan, (high, ends[1])
