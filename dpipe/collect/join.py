"""Join two frames block by block, and prove that every row was counted."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dask.dataframe as dd
import numpy as np
import pandas as pd

from dpipe.blocks.flows import block_name, tell
from dpipe.blocks.hashes import checksum, hashes
from dpipe.collect.exchange import exchanged
from dpipe.collect.regroup import check_blocks, check_keys
from dpipe.errors import ConservationError, InputError

How = Literal["inner", "left", "right", "outer"]
_VALIDATE = ("1:1", "1:m", "m:1", "m:m")


def merge(
    left: dd.DataFrame,
    right: dd.DataFrame | pd.DataFrame,
    on: str | Sequence[str] | None = None,
    *,
    left_on: str | Sequence[str] | None = None,
    right_on: str | Sequence[str] | None = None,
    how: How = "inner",
    suffixes: tuple[str | None, str | None] = ("_x", "_y"),
    validate: str | None = None,
    blocks: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    name: str = "",
) -> dd.DataFrame:
    """Join two frames on their keys, lazily, as pandas joins them, and count every row.

    A pandas frame, or a Dask frame of one block, goes to each block of `left`, which stays in its order. Two large
    frames are brought together by `dpipe.shuffle`. For each block the rows that must come out are worked out from the
    keys alone, how many and a sum of their hashes, and compared with what the join gave. A run tells how many rows
    came in and went out, how many matched nothing, and how many are repeated.

    Parameters
    ----------
    left : dask.dataframe.DataFrame
    right : dask.dataframe.DataFrame or pandas.DataFrame
    on, left_on, right_on : str or sequence of str
        Columns of the keys: `on` if they have one name on both sides. Missing keys match each other, as in pandas.
    how : {"inner", "left", "right", "outer"}, default "inner"
    suffixes : tuple of str, default ("_x", "_y")
        Of columns that both sides have.
    validate : {"1:1", "1:m", "m:1", "m:m"}, optional
        What the keys must be on each side: "m:1" is a join that repeats no row of `left`.
    blocks : int, optional
        Blocks of the result of two large frames; default as many as the one with more has.
    folder : path, optional
        Where their pieces lie, as in `dpipe.shuffle`.
    name : str, optional
        What errors and reports put before its keys, to tell several joins apart.

    Returns
    -------
    dask.dataframe.DataFrame
        Lazy, without the indexes of `left` and `right`. All rows of one key are joined in one block of memory.

    Raises
    ------
    InputError
        If columns do not exist, or keys cannot be compared. While it is computed: if `validate` does not hold.
    ConservationError
        While it is computed: if a block has not the rows that its keys ask for.

    Examples
    --------
    >>> rides = dd.from_pandas(pd.DataFrame({"zone": [1, 2, 2, 9], "fare": [5, 6, 7, 8]}), npartitions=2)
    >>> zones = pd.DataFrame({"zone": [1, 2], "borough": ["Bronx", "Queens"]})
    >>> list(merge(rides, zones, on="zone", how="left", validate="m:1").compute()["borough"].fillna("none"))
    ['Bronx', 'Queens', 'Queens', 'none']
    """
    if how not in ("inner", "left", "right", "outer"):
        raise InputError(f"merge: how={how!r} is unknown. Use 'inner', 'left', 'right' or 'outer'.")
    if validate is not None and validate not in _VALIDATE:
        raise InputError(f"merge: validate={validate!r} is unknown. Use one of {_VALIDATE}.")
    in_memory = isinstance(right, pd.DataFrame)
    held = dd.from_pandas(right, npartitions=1) if isinstance(right, pd.DataFrame) else right
    keys = _keys(left, held, on, left_on, right_on)
    n = check_blocks("merge", blocks, max(left.npartitions, held.npartitions))
    join = Join(*keys, how, tuple(suffixes), validate, name)
    small = in_memory or held.npartitions == 1
    if small and how in ("inner", "left") and (validate or "m:m").startswith("m"):
        sides: list[dd.DataFrame] = [left, held]
    else:
        sides = [
            exchanged(side, by, n, folder, join.name)
            for side, by in zip((left, held), (join.left_on, join.right_on), strict=True)
        ]
    meta = join.meta(*(side._meta for side in sides))
    return dd.map_partitions(
        join, *sides, meta=meta, enforce_metadata=False, align_dataframes=False, clear_divisions=True
    )


def _keys(
    left: dd.DataFrame, right: dd.DataFrame, on: Any, left_on: Any, right_on: Any
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if (on is None) == (left_on is None or right_on is None):
        raise InputError("merge: name the keys by on=..., or by left_on=... and right_on=...")
    if on is not None and (left_on is not None or right_on is not None):
        raise InputError("merge: on=... goes without left_on and right_on. Choose one way.")
    mine = check_keys(left, "merge: left", on if left_on is None else left_on)
    other = check_keys(right, "merge: right", on if right_on is None else right_on)
    if len(mine) != len(other):
        raise InputError(f"merge: left_on names {len(mine)} columns, right_on {len(other)}. Name as many.")
    return mine, other


@dataclass(frozen=True)
class Join:
    """What joins two blocks, and checks the result."""

    left_on: tuple[str, ...]
    right_on: tuple[str, ...]
    how: How
    suffixes: tuple[str | None, ...]
    validate: str | None
    title: str = ""
    """What several joins are told apart by."""

    @property
    def name(self) -> str:
        """What errors and reports call it."""
        same = self.left_on == self.right_on
        names = [
            f"{a!r}" if same else f"{a!r} and {b!r}" for a, b in zip(self.left_on, self.right_on, strict=True)
        ]
        return f"{self.title}{': ' if self.title else ''}merge on {', '.join(names)}"

    def meta(self, left: pd.DataFrame, right: pd.DataFrame) -> pd.DataFrame:
        """Give an empty result whose types also hold where a row matches nothing."""
        row, other = _one_row(left), _one_row(right)
        try:
            matched = self._merged(row, other).iloc[:0]
            kinds: dict[Any, Any] = {}
            if self.how in ("left", "outer"):
                kinds |= _changed(matched, self._merged(row, right.iloc[:0], "left"))
            if self.how in ("right", "outer"):
                kinds |= _changed(matched, self._merged(left.iloc[:0], other, "right"))
        except (ValueError, TypeError, pd.errors.MergeError) as err:
            raise InputError(
                f"{self.name}: {err}. Convert the keys of one side, or name other columns."
            ) from err
        return matched.astype(kinds) if kinds else matched

    def _merged(self, left: pd.DataFrame, right: pd.DataFrame, how: How | None = None) -> pd.DataFrame:
        return left.merge(
            right,
            how=how or self.how,
            left_on=list(self.left_on),
            right_on=list(self.right_on),
            suffixes=self.suffixes,
            validate=self.validate,
        )

    def __call__(self, left: pd.DataFrame, right: pd.DataFrame) -> pd.DataFrame:
        """Join one block and check it."""
        try:
            merged = self._merged(left, right)
        except pd.errors.MergeError as err:
            raise InputError(
                f"{self.name}: validate={self.validate!r} does not hold in {block_name()}: {err}. Make the keys "
                "unique, or leave validate out."
            ) from err
        expected = Expected.of(left[list(self.left_on)], right[list(self.right_on)], self.how)
        self._check(merged, expected)
        tell(self.name, expected.told(len(left), len(merged), self.how))
        wanted = self.meta(left.iloc[:0], right.iloc[:0]).dtypes
        other = {name: kind for name, kind in wanted.items() if merged[name].dtype != kind}
        return merged.astype(other) if other else merged

    def _check(self, merged: pd.DataFrame, expected: "Expected") -> None:
        if len(merged) != expected.rows:
            raise ConservationError(
                f"{self.name}: {block_name()} has {len(merged):,} rows, but its keys ask for {expected.rows:,}. "
                "Nothing was handed on; report this, with the versions of dask and pandas."
            )
        on = self.right_on if self.how == "right" else self.left_on
        if self.how == "outer" and self.left_on != self.right_on:
            return
        if checksum(merged[list(on)]) != expected.checksum:
            raise ConservationError(
                f"{self.name}: {block_name()} has {len(merged):,} rows, as it should, but of other keys than came in. "
                "Nothing was handed on; report this, with the versions of dask and pandas."
            )


@dataclass(frozen=True)
class Expected:
    """What must come out of a join, from the keys alone."""

    rows: int
    checksum: int
    """The hashes of the keys that come out, added modulo 2**64."""
    unmatched: int
    """Rows of the left that match nothing."""
    repeated: int
    """Rows that come out beyond the first of each matching row of the left."""
    added: int
    """Rows of the right that match nothing and come out."""

    @classmethod
    def of(cls, left: pd.DataFrame, right: pd.DataFrame, how: How) -> "Expected":
        """Count the rows of each key on both sides."""
        both = pd.concat([left, right.set_axis(left.columns, axis=1)], ignore_index=True)
        number = _numbered(both)
        n = int(number.max(initial=-1)) + 1
        mine = np.bincount(number[: len(left)], minlength=n)
        other = np.bincount(number[len(left) :], minlength=n)
        out = mine * other
        if how in ("left", "outer"):
            out = np.where(other == 0, mine, out)
        if how in ("right", "outer"):
            out = np.where(mine == 0, other, out)
        first = np.empty(n, dtype=np.int64)  # a row that has each key
        first[number[::-1]] = np.arange(len(number))[::-1]
        keys = hashes(both.iloc[first])
        total = int(np.add.reduce(keys * out.astype(np.uint64), dtype=np.uint64))
        matched = (mine > 0) & (other > 0)
        return cls(
            int(out.sum()),
            total,
            int(mine[other == 0].sum()),
            int((mine * (other - 1))[matched].sum()),
            int(other[mine == 0].sum()) if how in ("right", "outer") else 0,
        )

    def told(self, n_left: int, n_out: int, how: How) -> dict[str, int]:
        """Give the way from the rows that came in to those that went out, for the report."""
        lost = self.unmatched if how in ("inner", "right") else 0
        return {
            "rows in": n_left,
            "left out, as they match nothing": -lost,
            "repeated, as they match several rows": self.repeated,
            "of the right alone": self.added,
            "rows out": n_out,
        }


def _numbered(keys: pd.DataFrame) -> np.ndarray:
    """Number the keys of rows from 0, missing ones, too."""
    if keys.shape[1] == 1:
        return pd.factorize(keys.iloc[:, 0], use_na_sentinel=False)[0]
    groups = keys.groupby(list(keys.columns), sort=False, dropna=False, observed=True)
    return np.asarray(groups.ngroup())


def _one_row(meta: pd.DataFrame) -> pd.DataFrame:
    """Make one row of missing or zero values, of the types of an empty frame."""
    columns = {i: _one_value(meta.iloc[:, i]) for i in range(meta.shape[1])}
    return pd.DataFrame(columns).set_axis(meta.columns, axis=1)


def _one_value(column: pd.Series) -> pd.Series:
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iub":
        return pd.Series(np.zeros(1, column.dtype))
    return column.reindex([0]).reset_index(drop=True)


def _changed(matched: pd.DataFrame, unmatched: pd.DataFrame) -> dict[Any, Any]:
    """Give the columns that have other types beside a row that matches nothing."""
    kinds = unmatched.dtypes
    return {name: kinds[name] for name, kind in matched.dtypes.items() if kind != kinds[name]}
