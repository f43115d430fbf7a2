"""Find what stands on both sides of a split: groups, and times."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.delayed import delayed
from distributed import Client

from dpipe.blocks.hashes import hashes
from dpipe.cluster.cluster import Cluster, takes_cluster
from dpipe.cluster.local import compute, find_place, running
from dpipe.errors import InputError
from dpipe.sizes import counted, parse_bytes

#: Examples that are named.
_MOST = 10


@dataclass(frozen=True)
class Leaks:
    """What stands on both sides.

    Attributes
    ----------
    n_groups : int or None
        Groups with rows on both sides; None if no group was asked for.
    groups : tuple
        Up to ten of them.
    n_late : int or None
        Training rows at or after the first time of the test side; None if no time was asked for.
    test_begins, train_ends
        The first time of the test side, and the last one of the training side.
    """

    n_groups: int | None = None
    groups: tuple[Any, ...] = ()
    n_late: int | None = None
    test_begins: Any = None
    train_ends: Any = None

    @property
    def found(self) -> bool:
        """Whether anything leaks."""
        return bool(self.n_groups or self.n_late)

    def __str__(self) -> str:
        """Say it."""
        said = []
        if self.n_groups is not None:
            which = f": {', '.join(map(repr, self.groups))}" if self.groups else ""
            more = ", ..." if self.n_groups > len(self.groups) else ""
            said.append(f"{counted(self.n_groups, 'group')} on both sides{which}{more}")
        if self.n_late is not None:
            said.append(
                f"{counted(self.n_late, 'training row')} at or after {self.test_begins}, where the test side begins"
            )
        return "; ".join(said)


@takes_cluster
def check_leaks(
    train: dd.DataFrame,
    test: dd.DataFrame,
    *,
    by: str | Sequence[str] | None = None,
    time: str | None = None,
    memory: int | str | None = None,
    client: Client | Cluster | None = None,
) -> Leaks:
    """Look for groups and times that stand on both sides of a split.

    Parameters
    ----------
    train, test : dask.dataframe.DataFrame
    by : str or sequence of str, optional
        Columns of the group.
    time : str, optional
        A column of times or numbers: all training rows must lie before the first test row.
    memory, client
        As for `dpipe.fit`.

    Returns
    -------
    Leaks
        Exact: groups are compared by 64 bits of a hash, 8 bytes for each distinct group of a side, and what seems to be
        on both sides is then compared by its values, in a second reading.

    Raises
    ------
    InputError
        If a column does not exist, or nothing is asked for.

    Examples
    --------
    >>> rides = dd.from_pandas(pd.DataFrame({"car": [1, 1, 2], "day": [1, 2, 3]}), npartitions=1)
    >>> print(check_leaks(rides[rides["day"] < 2], rides[rides["day"] >= 2], by="car", time="day"))
    1 group on both sides: 1; 0 training rows at or after 2, where the test side begins
    """
    keys = [] if by is None else [by] if isinstance(by, str) else list(by)
    columns = list(dict.fromkeys([*keys, *([] if time is None else [time])]))
    if not columns:
        raise InputError("check_leaks: give by=..., the columns of a group, or time=..., a column of times.")
    for name, side in (("train", train), ("test", test)):
        if not isinstance(side, dd.DataFrame):
            raise InputError(f"check_leaks: {name} must be a Dask DataFrame, got a {type(side).__name__}.")
        if missing := [column for column in columns if column not in side.columns]:
            raise InputError(
                f"check_leaks: {name} has no column {', '.join(map(repr, missing))}. "
                f"It has: {', '.join(map(repr, side.columns))}."
            )
    budget = None if memory is None else parse_bytes(memory)
    place = find_place(client, budget, train.npartitions + test.npartitions, os.cpu_count())
    with running(place, watched=False) as chosen:

        def computed(function: Any, *arguments: Any) -> list[Any]:
            sides = [_over_blocks(side[columns], function, *arguments) for side in (train, test)]
            found: list[Any] = compute(delayed(list)(sides), chosen, place.threads)
            return found

        groups = _groups(computed, keys) if keys else {}
        times = _times(computed, time) if time is not None else {}
    return Leaks(**groups, **times)


def _over_blocks(frame: dd.DataFrame, function: Any, *arguments: Any) -> Any:
    """Apply a function to each block, and join what they give, eight at a time."""
    parts = [delayed(function)(part, *arguments) for part in frame.to_delayed()]
    while len(parts) > 1:
        parts = [delayed(_MERGES[function])(parts[i : i + 8]) for i in range(0, len(parts), 8)]
    return parts[0]


def _groups(computed: Any, keys: list[str]) -> dict[str, Any]:
    train, test = computed(_distinct_hashes, keys)
    both = np.intersect1d(train, test, assume_unique=True)
    if not len(both):
        return {"n_groups": 0}
    train, test = computed(_values_of, keys, both)
    shared = sorted(train & test, key=repr)
    found = tuple(value[0] if len(keys) == 1 else value for value in shared[:_MOST])
    return {"n_groups": len(shared), "groups": found}


def _distinct_hashes(frame: pd.DataFrame, keys: list[str]) -> np.ndarray:
    return np.unique(hashes(frame[keys]))


def _joined_hashes(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(parts))


def _values_of(frame: pd.DataFrame, keys: list[str], wanted: np.ndarray) -> set[tuple[Any, ...]]:
    """Give the distinct groups whose hash is wanted."""
    chosen = frame[keys][np.isin(hashes(frame[keys]), wanted)].drop_duplicates()
    return {
        tuple(None if pd.isna(v) else v for v in row) for row in chosen.itertuples(index=False, name=None)
    }


def _joined_values(parts: Sequence[set[tuple[Any, ...]]]) -> set[tuple[Any, ...]]:
    return set().union(*parts)


def _times(computed: Any, time: str) -> dict[str, Any]:
    (_, train_ends), (test_begins, _) = computed(_span, time)
    if train_ends is None or test_begins is None:
        return {"n_late": 0, "test_begins": test_begins, "train_ends": train_ends}
    late, _ = computed(_count_from, time, test_begins)
    return {"n_late": late, "test_begins": test_begins, "train_ends": train_ends}


def _span(frame: pd.DataFrame, time: str) -> tuple[Any, Any]:
    known = frame[time].dropna()
    return (known.min(), known.max()) if len(known) else (None, None)


def _joined_spans(parts: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    known = [part for part in parts if part[0] is not None]
    return (min(first for first, _ in known), max(last for _, last in known)) if known else (None, None)


def _count_from(frame: pd.DataFrame, time: str, start: Any) -> int:
    return int((frame[time] >= start).sum())


_MERGES: dict[Any, Any] = {
    _distinct_hashes: _joined_hashes,
    _values_of: _joined_values,
    _span: _joined_spans,
    _count_from: sum,
}
