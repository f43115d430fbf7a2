"""Exact ROC AUC and average precision of any number of rows, in bounded memory.

Each block gives its scores, sorted, as two *runs*: those of the positive rows and those of the
negative ones. Merging only lists the runs. In the end all runs are walked together from the lowest
score to the highest, a bounded number of rows at a time, and the pairs are counted in integers.
"""

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from dpipe.errors import InputError, LedgerError
from dpipe.monitor.record import CurveRecord
from dpipe.validate.states import Calibration, ScoredBlock, Want

#: Rows that are held while runs are walked, of all runs together.
WALK_ROWS = 1 << 20
#: Points of a curve in the report.
CURVE_POINTS = 200


@dataclass(frozen=True, eq=False)
class Run:
    """Scores of one block and kind in ascending order: held, or in a file."""

    n_rows: int
    first: float
    dtype: np.dtype[Any]
    held: np.ndarray | None
    path: str | None = None
    offset: int = 0
    """Where the scores begin in the file, in bytes."""

    @classmethod
    def of(cls, scores: np.ndarray, scratch: str | None) -> Self:
        """Sort scores, of which there is at least one, and write them to `scratch` if it is given."""
        ordered = np.sort(scores)
        first = float(ordered[0])
        if scratch is None:
            return cls(len(ordered), first, ordered.dtype, ordered)
        path = _write_whole(ordered, Path(scratch))
        offset = path.stat().st_size - ordered.nbytes
        return cls(len(ordered), first, ordered.dtype, None, str(path), offset)

    def read(self, start: int, n_rows: int) -> np.ndarray:
        """Give some scores from position `start` on."""
        if self.path is None:
            assert self.held is not None
            return self.held[start : start + n_rows]
        # not a memory map: thousands of runs would be thousands of open files
        begin = self.offset + start * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, min(n_rows, self.n_rows - start), offset=begin)


def _write_whole(ordered: np.ndarray, folder: Path) -> Path:
    """Write scores as .npy; named by their content, so that a task that is run again writes the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.blake2b(ordered.data, digest_size=16, key=ordered.dtype.str.encode()).hexdigest()
    path = folder / f"scores-{digest}.npy"
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        with temporary.open("wb") as file:
            np.save(file, ordered, allow_pickle=False)
        os.replace(temporary, path)
    return path


@dataclass(frozen=True, eq=False)
class ScoreRuns:
    """The scores of all rows, as runs."""

    positives: tuple[Run, ...]
    negatives: tuple[Run, ...]

    @classmethod
    def of(cls, block: ScoredBlock, want: Want) -> Self:
        """Read one block.

        Raises
        ------
        InputError
            If there are weights: pairs of rows are counted, each once.
        """
        if block.w is not None:
            raise InputError(
                "roc_auc and average_precision do not take sample_weight. Leave the weights out, or use "
                "neg_log_loss."
            )
        scores, positive = block.scores(want), block.class_index == want.positive
        parts = scores[positive], scores[~positive]
        return cls(*((Run.of(part, block.scratch),) if len(part) else () for part in parts))

    def merge(self, other: Self) -> Self:
        """List the runs of later rows after these."""
        return type(self)(self.positives + other.positives, self.negatives + other.negatives)

    def check(self) -> None:
        """Check that the scores can be read.

        Raises
        ------
        LedgerError
            If a file is gone or too short.
        """
        for run in self.positives + self.negatives:
            wanted = run.offset + run.n_rows * run.dtype.itemsize
            if run.path is not None and not (
                os.path.exists(run.path) and os.path.getsize(run.path) == wanted
            ):
                raise LedgerError(f"{run.path} is gone or damaged. Run again: it is done anew.")

    @property
    def n_positive(self) -> int:
        """Rows of the positive label."""
        return sum(run.n_rows for run in self.positives)

    @property
    def n_negative(self) -> int:
        """Rows of the other label."""
        return sum(run.n_rows for run in self.negatives)


class _Cursor:
    """A place in a run, and the next scores from there."""

    def __init__(self, run: Run, positive: bool) -> None:
        self.run = run
        self.positive = positive
        self.buffer = np.empty(0, dtype=run.dtype)
        self._end = 0

    def hold(self, n_rows: int) -> None:
        """Hold the next `n_rows` scores, or as many as are left."""
        self._end -= max(len(self.buffer) - n_rows, 0)
        self.buffer = self.buffer[:n_rows]
        if len(self.buffer) < n_rows and self._end < self.run.n_rows:
            more = self.run.read(self._end, n_rows - len(self.buffer))
            self._end += len(more)
            self.buffer = np.concatenate([self.buffer, more]) if len(self.buffer) else more

    @property
    def left(self) -> int:
        """Scores that were not taken yet."""
        return self.run.n_rows - self._end + len(self.buffer)

    @property
    def whole(self) -> bool:
        """Whether all that is left is held."""
        return self._end == self.run.n_rows

    def take(self, bound: float) -> np.ndarray:
        """Take the scores up to a bound."""
        n = int(np.searchsorted(self.buffer, bound, side="right"))
        taken, self.buffer = self.buffer[:n], self.buffer[n:]
        return taken


def walk_ties(runs: ScoreRuns, rows: int = WALK_ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Count the positive and the negative rows of each distinct score, from the lowest on.

    Parameters
    ----------
    runs : ScoreRuns
    rows : int, default 1 << 20
        Rows that are held at a time; at least one of each run that overlaps others.

    Yields
    ------
    positives, negatives : numpy.ndarray of int64, of shape (n_scores,)
        For the next distinct scores.

    Notes
    -----
    Each round takes all rows up to the score up to which every run is held. A run is opened when
    that score reaches its first one, so runs that do not overlap get all the room one after another. The
    last score of a round waits for the next round, which may bring more rows that tie with it.
    """
    waiting = [_Cursor(run, True) for run in runs.positives] + [_Cursor(run, False) for run in runs.negatives]
    waiting.sort(key=lambda cursor: cursor.run.first, reverse=True)
    active: list[_Cursor] = []
    carried: tuple[Any, int, int] | None = None
    while active or waiting:
        bound = _open_up_to_bound(active, waiting, rows)
        scores, positives, negatives = _ties([(c.positive, c.take(bound)) for c in active])
        active = [cursor for cursor in active if cursor.left]
        if carried is not None and carried[0] == scores[0]:
            positives[0] += carried[1]
            negatives[0] += carried[2]
        elif carried is not None:
            yield np.array([carried[1]]), np.array([carried[2]])
        yield positives[:-1], negatives[:-1]
        carried = (scores[-1], int(positives[-1]), int(negatives[-1]))
    if carried is not None:
        yield np.array([carried[1]]), np.array([carried[2]])


def _open_up_to_bound(active: list[_Cursor], waiting: list[_Cursor], rows: int) -> float:
    """Fill all buffers, open the runs that begin below what is held, and give the bound of what is held."""
    if not active:
        active.append(waiting.pop())
    while True:
        left = sum(cursor.left for cursor in active)
        for cursor in active:
            cursor.hold(max(rows * cursor.left // left, 1))
        ends = [float(cursor.buffer[-1]) for cursor in active]
        # a run that is held to its end says nothing about scores beyond it
        bound = min(
            (end for end, cursor in zip(ends, active, strict=True) if not cursor.whole), default=max(ends)
        )
        if not waiting or waiting[-1].run.first > bound:
            return bound
        while waiting and waiting[-1].run.first <= bound:
            active.append(waiting.pop())


def _ties(parts: list[tuple[bool, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge sorted parts; give the distinct scores, and how many rows of either kind have each."""
    scores = np.concatenate([part for _, part in parts])
    kinds = np.repeat([kind for kind, _ in parts], [len(part) for _, part in parts])
    order = np.argsort(scores, kind="stable")
    scores = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))
    positives = np.add.reduceat(kinds[order].astype(np.int64), starts)
    return scores[starts], positives, np.diff(np.append(starts, len(scores))) - positives


@dataclass(frozen=True)
class Ranking:
    """How well scores put the positive rows above the negative ones."""

    n_positive: int
    n_negative: int
    roc_auc: float
    average_precision: float
    hits: tuple[int, ...]
    """Positive rows at or above each of some thresholds, from the lowest on."""
    false_alarms: tuple[int, ...]
    """Negative rows at or above them."""


def ranking(runs: ScoreRuns, what: str = "roc_auc", rows: int = WALK_ROWS) -> Ranking:
    """Walk the runs once: the area under the ROC curve, average precision, and points of the curves.

    Parameters
    ----------
    runs : ScoreRuns
    what : str
        What is asked for, for the error.
    rows : int
        Rows that are held at a time.

    Raises
    ------
    InputError
        If all rows are of one class.

    Notes
    -----
    The area is the share of pairs of a positive and a negative row that are in order, ties counting
    half: a quotient of two integers, exact up to its last rounding.
    """
    n_positive, n_negative = runs.n_positive, runs.n_negative
    if not n_positive or not n_negative:
        which = "positive" if n_positive else "negative"
        raise InputError(
            f"{what} needs both classes, but all {n_positive + n_negative:,} rows are of the {which} one. "
            "Take test rows that have both, or use accuracy."
        )
    below = np.zeros(2, dtype=np.int64)
    pairs, precision = 0, 0.0
    marks = np.linspace(0.0, 2.0, CURVE_POINTS + 1)[1:-1]
    points = [(n_positive, n_negative)]
    for positives, negatives in walk_ties(runs, rows):
        up = np.stack([below[0] + np.cumsum(positives), below[1] + np.cumsum(negatives)])
        hits, alarms = n_positive - up[0] + positives, n_negative - up[1] + negatives
        pairs += int((positives * (2 * up[1] - negatives)).sum())
        precision += float((positives * (hits / (hits + alarms))).sum())
        passed = up[0] / n_positive + up[1] / n_negative
        near = marks[: np.searchsorted(marks, passed[-1], side="right")] if len(passed) else marks[:0]
        marks = marks[len(near) :]
        for at in np.unique(np.searchsorted(passed, near)):
            points.append((n_positive - int(up[0, at]), n_negative - int(up[1, at])))
        below = up[:, -1] if len(passed) else below
    hits_at, alarms_at = zip(*points, (0, 0), strict=True)
    area = pairs / (2 * n_positive * n_negative)
    return Ranking(n_positive, n_negative, area, precision / n_positive, hits_at, alarms_at)


def ranking_curves(found: Ranking, positive: Any) -> tuple[CurveRecord, CurveRecord]:
    """Draw the ROC curve, and precision over recall."""
    hits, alarms = np.array(found.hits[::-1]), np.array(found.false_alarms[::-1])
    said = f"positive: {positive!r}, {found.n_positive:,} of {found.n_positive + found.n_negative:,} rows"
    roc = CurveRecord(
        "ROC",
        tuple((alarms / found.n_negative).tolist()),
        tuple((hits / found.n_positive).tolist()),
        "false positive rate",
        "true positive rate",
        f"area {found.roc_auc:.4f}; {said}",
    )
    some = hits + alarms > 0
    hits, alarms = hits[some], alarms[some]
    precision = CurveRecord(
        "Precision and recall",
        tuple((hits / found.n_positive).tolist()),
        tuple((hits / (hits + alarms)).tolist()),
        "recall",
        "precision",
        f"average precision {found.average_precision:.4f}; {said}",
    )
    return roc, precision


def calibration_curve(found: Calibration, positive: Any) -> CurveRecord:
    """Draw the share of positive rows over the predicted probability, in equal bins."""
    rows, proba, true = found.sums[:, found.sums[0] > 0]
    return CurveRecord(
        "Calibration",
        tuple((proba / rows).tolist()),
        tuple((true / rows).tolist()),
        "predicted probability",
        "share of positive rows",
        f"positive: {positive!r}",
    )
