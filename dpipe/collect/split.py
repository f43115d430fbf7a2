"""Split rows so that nothing leaks: by a hash of a key, by group, in equal shares of each class, by time.

The side of a row is found in the task that reads its block, from the row alone: it does not depend on the blocks,
on other rows, nor on how a key is stored (as text, category or object; as integer or float).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.delayed import delayed

from dpipe.blocks.flows import tell
from dpipe.blocks.hashes import hashes
from dpipe.errors import InputError

#: Gives the side of each row of a block, and the hash of its key.
Side = Callable[..., tuple[np.ndarray, np.ndarray]]

#: How finely the shares of a class are told apart: to a row in so many.
STRATA_BINS = 1 << 16


def split(
    frame: dd.DataFrame,
    *,
    test_size: float = 0.2,
    by: str | Sequence[str] | None = None,
    stratify: str | None = None,
    time: str | None = None,
    test_from: Any = None,
    gap: Any = None,
    random_state: int = 0,
    name: str = "split",
) -> tuple[dd.DataFrame, dd.DataFrame]:
    """Split a frame into train and test, lazily.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
    test_size : float, default 0.2
        Share of the keys on the test side, between 0 and 1.
    by : str or sequence of str, optional
        Columns of the key, or of the group; default all columns. Rows of equal keys never stand on both sides, and a
        key stays on its side when data is appended.
    stratify : str, optional
        A column of classes: `test_size` is kept within each, to a row in 65,536. That takes one more reading of
        the columns, and when data is appended, keys at the border may change sides. All rows of a key must be of
        one class, or it may stand on both sides; `check_leaks` tells.
    time : str, optional
        A column of times or numbers: rows from `test_from` on are the test side. Takes no `by`, `stratify`.
    test_from : timestamp or number
        Where the test side begins, for `time`.
    gap : timedelta or number, optional
        Rows so shortly before `test_from` are on neither side: what they tell may reach into the test side.
    random_state : int, default 0
        Another number draws another split, independent of this one.
    name : str, default "split"
        What its rows are counted under, to tell several splits apart.

    Returns
    -------
    train, test : dask.dataframe.DataFrame
        Lazy.

    Raises
    ------
    InputError
        If `test_size` is out of range, a column does not exist, or the ways are mixed.

    Examples
    --------
    >>> rides = dd.from_pandas(pd.DataFrame({"day": [1, 2, 3, 4], "fare": [5, 6, 7, 8]}), npartitions=2)
    >>> train, test = split(rides, time="day", test_from=4, gap=1)
    >>> len(train), len(test)
    (2, 1)
    """
    _check_frame(frame, "split")
    if time is not None:
        _check_alone("split", by, stratify)
        side = _by_time(frame, "split", time, [test_from, None], gap)
        return _chosen(frame, side, 0, name=name), _chosen(frame, side, 1, name=name)
    if isinstance(test_size, bool) or not isinstance(test_size, int | float) or not 0 < test_size < 1:
        raise InputError(f"test_size must lie between 0 and 1, got {test_size!r}.")
    if test_from is not None or gap is not None:
        raise InputError(
            "split: test_from and gap go with time=..., the column of times. Give it, or leave them out."
        )
    side = _by_hash(frame, "split", by, stratify, [test_size], random_state)
    return _chosen(frame, side, 1, name=name), _chosen(frame, side, 0, name=name)


def folds(
    frame: dd.DataFrame,
    n_splits: int = 5,
    *,
    by: str | Sequence[str] | None = None,
    stratify: str | None = None,
    time: str | None = None,
    cuts: Sequence[Any] | None = None,
    gap: Any = None,
    random_state: int = 0,
) -> list[tuple[dd.DataFrame, dd.DataFrame]]:
    """Give k folds, lazily: each row is once on the test side.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
    n_splits : int, default 5
        At least 2. With `time` there are as many folds as `cuts`.
    by, stratify, random_state
        As in `split`.
    time : str, optional
        A column of times: each fold trains on what is before a cut, and tests on what is between it and the next.
    cuts : sequence of timestamps or numbers
        In ascending order, for `time`; the last fold goes to the end.
    gap : timedelta or number, optional
        As in `split`.

    Returns
    -------
    list of (train, test)
        Lazy frames.

    Raises
    ------
    InputError
        As `split` does.

    Examples
    --------
    >>> rides = dd.from_pandas(pd.DataFrame({"day": range(6)}), npartitions=2)
    >>> [(len(train), len(test)) for train, test in folds(rides, time="day", cuts=[2, 4])]
    [(2, 2), (4, 2)]
    """
    _check_frame(frame, "folds")
    if time is not None:
        _check_alone("folds", by, stratify)
        ends = [*(cuts or ()), None]
        if len(ends) < 2:
            raise InputError("folds: time needs cuts=[...], the times at which the test sides begin.")
        pairs = (_by_time(frame, "folds", time, list(ends[i : i + 2]), gap) for i in range(len(ends) - 1))
        return [(_chosen(frame, side, 0), _chosen(frame, side, 1)) for side in pairs]
    if isinstance(n_splits, bool) or not isinstance(n_splits, int) or n_splits < 2:
        raise InputError(f"n_splits must be an integer of at least 2, got {n_splits!r}.")
    if cuts is not None or gap is not None:
        raise InputError(
            "folds: cuts and gap go with time=..., the column of times. Give it, or leave them out."
        )
    shares = [i / n_splits for i in range(1, n_splits)]
    side = _by_hash(frame, "folds", by, stratify, shares, random_state)
    return [(_chosen(frame, side, i, others=True), _chosen(frame, side, i)) for i in range(n_splits)]


@dataclass(frozen=True)
class HashSide:
    """Which of several ranges of its hash a row's key falls into, counted from 0."""

    keys: tuple[str, ...]
    shares: tuple[float, ...]
    """Where the ranges end, but the last."""
    random_state: int
    stratify: str | None = None

    def __call__(self, frame: pd.DataFrame, strata: "Strata | None" = None) -> tuple[np.ndarray, np.ndarray]:
        """Give the range of each row, int64 of shape (n_rows,), and the hash of its key."""
        hashed = hashes(frame[list(self.keys)], self.random_state)
        return self._sides(frame, hashed, strata), hashed

    def _sides(self, frame: pd.DataFrame, hashed: np.ndarray, strata: "Strata | None") -> np.ndarray:
        if strata is None or self.stratify is None:
            ends = np.array([int(share * 2.0**64) for share in self.shares], dtype=np.uint64)
            return np.searchsorted(ends, hashed, side="right")
        return strata.sides(hashed, frame[self.stratify], self.shares)


@dataclass(frozen=True)
class TimeSide:
    """0 before the first end, 1 from there to the second one, -1 elsewhere."""

    column: str
    start: Any
    stop: Any
    gap: Any

    def __call__(self, frame: pd.DataFrame, strata: None = None) -> tuple[np.ndarray, np.ndarray]:
        """Give the side of each row, and a hash of its time; a missing time has no side."""
        times = frame[self.column]
        before = times < (self.start if self.gap is None else self.start - self.gap)
        inside = times >= self.start if self.stop is None else (times >= self.start) & (times < self.stop)
        before, inside = (np.asarray(found.fillna(False), dtype=bool) for found in (before, inside))
        return np.where(inside, 1, np.where(before, 0, -1)), hashes(frame[[self.column]])


@dataclass(frozen=True)
class Strata:
    """How many rows of each class fall into each of many equal ranges of the hash."""

    counts: dict[Any, np.ndarray]

    @classmethod
    def of(cls, frame: pd.DataFrame, side: HashSide) -> "Strata":
        """Count one block."""
        bins = (hashes(frame[list(side.keys)], side.random_state) >> np.uint64(48)).astype(np.int64)
        labels, classes = pd.factorize(frame[side.stratify], use_na_sentinel=False)
        found = {}
        for i, label in enumerate(classes):
            found[_plain(label)] = np.bincount(bins[labels == i], minlength=STRATA_BINS)
        return cls(found)

    @classmethod
    def merged(cls, parts: Sequence["Strata"]) -> "Strata":
        """Add the counts of several blocks."""
        total: dict[Any, np.ndarray] = {}
        for part in parts:
            for label, counts in part.counts.items():
                total[label] = total[label] + counts if label in total else counts
        return cls(total)

    def sides(self, hashed: np.ndarray, classes: pd.Series, shares: Sequence[float]) -> np.ndarray:
        """Give the side of each row: ranges of the hash that hold the shares of its class."""
        labels, values = pd.factorize(classes, use_na_sentinel=False)
        out = np.zeros(len(hashed), dtype=np.int64)
        for i, label in enumerate(values):
            rows = labels == i
            cumulated = np.cumsum(self.counts[_plain(label)])
            ends = np.searchsorted(cumulated, np.multiply(shares, cumulated[-1]), side="left") + 1
            bins = (hashed[rows] >> np.uint64(48)).astype(np.int64)
            out[rows] = np.searchsorted(ends, bins, side="right")
        return out


def _plain(label: Any) -> Any:
    return None if pd.isna(label) else label


def _by_hash(
    frame: dd.DataFrame,
    name: str,
    by: str | Sequence[str] | None,
    stratify: str | None,
    shares: Sequence[float],
    random_state: int,
) -> tuple[Side, Any]:
    keys = list(frame.columns) if by is None else [by] if isinstance(by, str) else list(by)
    _check_columns(frame, name, keys if stratify is None else [*keys, stratify])
    if isinstance(random_state, bool) or not isinstance(random_state, int | np.integer):
        raise InputError(f"{name}: random_state must be an integer, got {random_state!r}.")
    side = HashSide(tuple(keys), tuple(shares), int(random_state), stratify)
    if stratify is None:
        return side, None
    counted = [
        delayed(Strata.of)(part, side) for part in frame[list(dict.fromkeys([*keys, stratify]))].to_delayed()
    ]
    while len(counted) > 1:
        counted = [delayed(Strata.merged)(counted[i : i + 8]) for i in range(0, len(counted), 8)]
    return side, counted[0]


def _by_time(frame: dd.DataFrame, name: str, column: str, ends: list[Any], gap: Any) -> tuple[Side, Any]:
    _check_columns(frame, name, [column])
    dtype = frame.dtypes[column]
    if ends[0] is None:
        raise InputError(f"{name}: time={column!r} needs test_from=..., where the test side begins.")
    times = pd.api.types.is_datetime64_any_dtype(dtype)
    if not times and not pd.api.types.is_numeric_dtype(dtype):
        raise InputError(
            f"{name}: time={column!r} is of type {dtype}; it must hold times or numbers. "
            "Convert it, with dd.to_datetime."
        )
    try:
        start, stop = (_moment(end, times) for end in ends)
        distance = None if gap is None else pd.Timedelta(gap) if times else float(gap)
        _ = start if distance is None else start - distance
        if distance is not None and distance < type(distance)(0):
            raise ValueError("a gap is not negative")
    except (ValueError, TypeError) as err:
        raise InputError(
            f"{name}: {ends[0]!r} and gap={gap!r} do not go with {column!r}, a {dtype}: {err}."
        ) from err
    return TimeSide(column, start, stop, distance), None


def _moment(end: Any, times: bool) -> Any:
    return end if end is None else pd.Timestamp(end) if times else float(end)


def _chosen(
    frame: dd.DataFrame, side: tuple[Side, Any], number: int, *, others: bool = False, name: str = ""
) -> dd.DataFrame:
    find, strata = side
    arguments = find, number, others, strata, name
    return frame.map_partitions(
        _rows, *arguments, meta=frame._meta, enforce_metadata=False, align_dataframes=False
    )


def _rows(
    frame: pd.DataFrame, find: Side, number: int, others: bool, strata: "Strata | None", name: str
) -> pd.DataFrame:
    if not len(frame):
        sides, hashed = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    else:
        sides, hashed = find(frame, strata)
    chosen = (sides == number) != others
    if name:
        nowhere = sides < 0
        tell(name, {**_counted(len(frame), hashed), **_counted(nowhere.sum(), hashed[nowhere], "on no side")})
        kept = frame[chosen]
        tell(f"{name}: side {number}", _counted(len(kept), hashed[chosen]))
        return kept
    return frame[chosen]


def _counted(n: int, hashed: np.ndarray, where: str = "") -> dict[str, int]:
    """Count rows, and add up the hashes of their keys: a sum that no order changes."""
    return {
        f"rows {where}".strip(): int(n),
        f"keys {where}".strip(): int(np.add.reduce(hashed, dtype=np.uint64)),
    }


def _check_frame(frame: Any, name: str) -> None:
    if not isinstance(frame, dd.DataFrame):
        raise InputError(f"{name} takes a Dask DataFrame, got a {type(frame).__name__}.")


def _check_alone(name: str, by: Any, stratify: Any) -> None:
    if by is not None or stratify is not None:
        raise InputError(f"{name}: time takes no by and no stratify. Choose one way.")


def _check_columns(frame: dd.DataFrame, name: str, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise InputError(
            f"{name}: there is no column {', '.join(map(repr, missing))} to split by. "
            f"The frame has: {', '.join(map(repr, frame.columns))}."
        )
