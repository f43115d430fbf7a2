"""Order statistics in bounded memory: which value stands at a rank, exactly, in a few readings.

The first reading samples each block and gives for every wanted rank an interval that holds it, all but certainly.
The next one counts what lies below the interval and keeps what lies inside. What would take too much memory is
thinned out, and gives narrower intervals for one more reading.

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

from dpipe.blocks.rows import RowsAt
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
    """By how many ranks a point may be off."""

    @classmethod
    def of(cls, values: np.ndarray, weight: float = 1.0) -> Self:
        """Count distinct values."""
        found, n = np.unique(values, return_counts=True)
        return cls(((found, n * weight),) if len(found) else ())

    @cached_property
    def _joined(self) -> tuple[np.ndarray, np.ndarray]:
        if len(self.pieces) == 1:
            return self.pieces[0]
        values = np.concatenate([np.empty(0), *(values for values, _ in self.pieces)])
        weights = np.concatenate([np.empty(0), *(weights for _, weights in self.pieces)])
        order = np.argsort(values, kind="stable")  # takes advantage of sorted runs
        values, weights = values[order], weights[order]
        first = np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else order
        if len(first) < len(values):
            values, weights = values[first], np.add.reduceat(weights, first)
        return values, weights

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
        group = np.floor(self.ends * (most / self.total))
        last = np.flatnonzero(np.append(np.diff(group) > 0, True))
        weights = np.diff(np.concatenate([[0.0], self.ends[last]]))
        return type(self)(((self.values[last], weights),), self.error + self.total / most)

    def around(self, rank: float, margin: float) -> tuple[float, float] | None:
        """Give the points that enclose a rank, with a margin on both sides; None where there are none."""
        if not self.pieces:
            return None
        reach = margin + self.error + 1
        low = int(np.searchsorted(self.ends, rank - reach, side="right")) - 1
        high = int(np.searchsorted(self.ends, rank + reach, side="right"))
        below = -np.inf if low < 0 else float(self.values[low])
        return below, np.inf if high >= len(self.values) else float(self.values[high])


@dataclass(frozen=True)
class Sample:
    """A sample of each column, with exact counts and extremes of the rows that were read; NaN is left out."""

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
    n_total: int
    """Rows of all blocks, whether they have been read or not."""

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
            max(self.n_total, self.n_rows + other.n_rows),
        )

    @property
    def is_complete(self) -> bool:
        """Whether all blocks were read, so that the counts and extremes are those of the data."""
        return self.n_rows == self.n_total

    def interval(self, j: int, share: float) -> tuple[float, float]:
        """Give an interval that holds a quantile of column `j`, all but certainly."""
        n, drawn = float(self.observed[j]), float(self.n_sampled[j])
        found = None
        if drawn:
            spread = 3.6 * np.sqrt(max(share * (1 - share), 1 / drawn) / drawn)
            found = self.points[j].around(share * n, n * (spread + 2 / drawn))
        below, above = found or (-np.inf, np.inf)
        if not self.is_complete:
            return below, above
        return max(below, float(self.low[j])), min(above, float(self.high[j]))

    def is_exact(self, j: int) -> bool:
        """Tell whether all values of a column are in the sample."""
        whole = self.n_sampled[j] == self.observed[j] and self.points[j].error == 0
        return bool(whole and self.is_complete)


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
        found = [_sample_column(values, gaps, chosen) for values, gaps in columns]
        return self.joined(X, found, dtype, at)

    def chosen(self, n: int, at: RowsAt | None) -> np.ndarray | None:
        """Choose rows of a block: one of each of many equal ranges, others in each block; None for all."""
        seed = (n, 0 if at is None else at.first)
        strata = np.arange(self.rows) + np.random.default_rng(seed).random(self.rows)
        return None if n <= self.rows else (strata * (n / self.rows)).astype(np.int64)

    def joined(
        self, X: Block, found: Sequence[tuple[int, float, float, Points, int]], dtype: Any, at: RowsAt | None
    ) -> Sample:
        """Put the columns of a block together."""
        n = n_rows(X)
        return Sample(
            n,
            n - np.array([n_gaps for n_gaps, *_ in found], dtype=np.int64),
            np.array([low for _, low, _, _, _ in found], dtype=np.float64),
            np.array([high for _, _, high, _, _ in found], dtype=np.float64),
            tuple(points for _, _, _, points, _ in found),
            np.array([drawn for *_, drawn in found], dtype=np.int64),
            dtype,
            bool(sp.issparse(X)),
            n if at is None else at.total,
        )


def _sample_column(
    values: np.ndarray, gaps: np.ndarray, rows: np.ndarray | None
) -> tuple[int, float, float, Points, int]:
    """Gaps, extremes, sampled points and their number; `values` may be changed."""
    n_observed = len(values) - len(gaps)
    if not n_observed:
        return len(gaps), np.nan, np.nan, Points.of(values[:0]), 0
    values[gaps] = np.nan
    drawn = values if rows is None else values[rows]
    if len(gaps):
        drawn = drawn[~np.isnan(drawn)]
        # NaN would hide the extremes, and fmin is many times slower than min
        values[gaps] = values[first_not_in(gaps)]
    points = Points.of(drawn, n_observed / max(len(drawn), 1))
    return len(gaps), float(values.min()), float(values.max()), points, len(drawn)


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
        for (values, gaps), intervals in zip(columns, self.intervals, strict=True):
            if self.sampling is not None:
                sampled.append(_sample_column(values, gaps, chosen))
            values[gaps] = np.nan
            found.append(_inside(values, intervals))
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
    sample: Sample, ranks: Sequence[Sequence[int]], looked: tuple[Within, Found] | None = None
) -> Generator[tuple[Any, ...], Sequence[Any], list[dict[int, float]]]:
    """Find the values at some ranks of each column, counted from 0; a refinement, see `registry.Way`.

    Parameters
    ----------
    sample : Sample
        Of all blocks.
    ranks : for each column, ranks below its number of observed values
    looked : (Within, Found), optional
        What a `first_look` has found.

    Returns
    -------
    list of dict
        For each column, its ranks and what stands there.
    """
    known: list[dict[int, float]] = [{} for _ in ranks]
    places: list[dict[int, tuple[float, float]]] = []
    for j, wanted in enumerate(ranks):
        ends = float(sample.low[j]), float(sample.high[j])
        places.append(dict.fromkeys(wanted, ends))
        if sample.is_exact(j):
            known[j] = {rank: _value_at(sample.points[j], rank) for rank in wanted}
            places[j] = {}
        elif looked is not None:
            places[j] = _looked_up(places[j], looked[0].intervals[j], looked[1].inside[j], known[j], ends)
        n = max(int(sample.observed[j]), 1)
        for rank, place in places[j].items():
            low, high = sample.interval(j, (rank + 0.5) / n)
            if place[0] <= low <= high <= place[1]:
                places[j][rank] = low, high
    while any(places):
        intervals = tuple(_joined(list(wanted.values())) for wanted in places)
        (found,) = yield (Within(intervals),)
        for j, column in enumerate(places):
            ends = float(sample.low[j]), float(sample.high[j])
            places[j] = _looked_up(column, intervals[j], found.inside[j], known[j], ends)
    return known


def _looked_up(
    places: dict[int, tuple[float, float]],
    intervals: Intervals,
    inside: Sequence[Inside],
    known: dict[int, float],
    ends: tuple[float, float],
) -> dict[int, tuple[float, float]]:
    """Enter the values that a reading has found, and give narrower intervals for the ranks that are left."""
    left = {}
    starts = np.array([each.n_below for each in inside])
    for rank in places:
        # the last interval that begins at or below the rank, so that what is missed lies to its right
        at = max(int(np.searchsorted(starts, rank, side="right")) - 1, 0)
        value, narrower = _look_up(rank, intervals[at], inside[at], ends)
        if narrower is None:
            known[rank] = value
        else:
            left[rank] = narrower
    return left


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
