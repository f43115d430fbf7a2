"""How the files of a source differ from each other, as far as their footers tell."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dpipe.collect.files import find_files
from dpipe.collect.footers import Footer, read_footers
from dpipe.collect.parquet import plain_type, read_column
from dpipe.errors import InputError
from dpipe.sizes import counted

#: Null shares that differ by more than this are told.
_NULL_SHARE = 0.1


@dataclass(frozen=True)
class FileDrift:
    """What one file has otherwise than the others.

    Attributes
    ----------
    path : str
    rows : int
    changes : tuple of str
        Empty if it is like the others.
    """

    path: str
    rows: int
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Drift:
    """How the files of a source differ.

    Attributes
    ----------
    files : tuple of FileDrift
    """

    files: tuple[FileDrift, ...]

    @property
    def found(self) -> bool:
        """Whether any file differs."""
        return any(file.changes for file in self.files)

    def to_pandas(self) -> pd.DataFrame:
        """Give a row for each file: its path, rows and changes."""
        return pd.DataFrame(
            {
                "path": [file.path for file in self.files],
                "rows": [file.rows for file in self.files],
                "changes": ["; ".join(file.changes) for file in self.files],
            }
        )

    def __str__(self) -> str:
        """Name the files that differ, and how."""
        drifted = [file for file in self.files if file.changes]
        if not drifted:
            return f"{counted(len(self.files), 'file')}, all alike"
        lines = [f"{len(drifted):,} of {counted(len(self.files), 'file')} differ from the others"]
        for file in drifted:
            lines += [f"  {file.path}", *(f"    {change}" for change in file.changes)]
        return "\n".join(lines)

    __repr__ = __str__


def drift(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    categories: Sequence[str] = (),
    factor: float = 10.0,
    storage_options: dict[str, Any] | None = None,
) -> Drift:
    """Compare the Parquet files of a source with each other, from their footers.

    Parameters
    ----------
    source : path, glob, folder, URL, or a sequence of them
        In the order in which the files came: "never seen" means in no file before.
    categories : sequence of str, optional
        Columns whose different values are compared, too; these columns are read whole, a file at a time.
    factor : float, default 10
        A column of numbers whose largest magnitude differs from the median of all files by this factor or more is
        told: cents instead of euros, metres instead of kilometres.
    storage_options : dict, optional
        As in `read_parquet`.

    Returns
    -------
    Drift
        For each file: columns that are missing, new, or of another type than in most files; shares of nulls that
        differ by more than 0.1 from the median; other magnitudes; values never seen before.

    Raises
    ------
    SourceError
        If there are no files, or one cannot be read.
    InputError
        If a column of `categories` is in no file, or `factor` is not above 1.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> for month, metres in enumerate([1, 1, 1000]):
    ...     rows = pd.DataFrame({"distance": np.arange(1.0, 9) * metres})
    ...     rows.to_parquet(f"{folder}/{month}.parquet")
    >>> drift(folder).files[2].changes
    ("column 'distance' reaches 8000, 1,000 times the median of the files: other units?",)
    """
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > 1:
        raise InputError(f"factor must be a number above 1, got {factor!r}.")
    options = dict(storage_options or {})
    paths, footers = read_footers(find_files(source, options, ".parquet"), options, "raise")
    described = [_described(footer) for footer in footers]
    known = {name for file in described for name in file}
    for name in categories:
        if name not in known:
            raise InputError(
                f"categories: no file has a column {name!r}. They have: {', '.join(map(repr, sorted(known)))}."
            )
    changes = [_column_changes(file, described, factor) for file in described]
    for name in categories:
        for said, unseen in zip(changes, _unseen(paths, described, name, options), strict=True):
            said += unseen
    rows = [footer.metadata.num_rows for footer in footers]
    return Drift(tuple(FileDrift(*each) for each in zip(paths, rows, map(tuple, changes), strict=True)))


@dataclass(frozen=True)
class _Column:
    """What a footer tells of one column."""

    kind: str
    null_share: float | None
    reach: float | None
    """The largest magnitude; None of what is no number, or without statistics."""


def _described(footer: Footer) -> dict[str, _Column]:
    kinds = {item.name: plain_type(item.type) for item in footer.schema}
    nulls: Counter[str] = Counter()
    reach: dict[str, float] = {}
    vague = set()
    metadata = footer.metadata
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for j in range(row_group.num_columns):
            column = row_group.column(j)
            name, told = column.path_in_schema, column.statistics
            if told is None or not told.has_null_count:
                vague.add(name)
                continue
            nulls[name] += told.null_count
            ends = (told.min, told.max) if told.has_min_max else ()
            sizes = [abs(float(end)) for end in ends if isinstance(end, int | float)]
            finite = [size for size in sizes if np.isfinite(size)]
            if finite:
                reach[name] = max(reach.get(name, 0.0), *finite)
    rows = metadata.num_rows
    return {
        name: _Column(
            str(kind),
            _null_share(kind, nulls[name], rows) if name not in vague or pa.types.is_null(kind) else None,
            None if pa.types.is_boolean(kind) else reach.get(name),
        )
        for name, kind in kinds.items()
    }


def _null_share(kind: pa.DataType, nulls: int, rows: int) -> float | None:
    # a column without a type has no statistics, and nothing but nulls
    return None if not rows else 1.0 if pa.types.is_null(kind) else nulls / rows


def _column_changes(
    file: Mapping[str, _Column], files: Sequence[Mapping[str, _Column]], factor: float
) -> list[str]:
    usual = Counter(name for each in files for name in each)
    said = [
        f"column {name!r} is missing" for name, n in usual.items() if name not in file and 2 * n > len(files)
    ]
    for name, column in file.items():
        same = [each[name] for each in files if name in each]
        if len(files) > 1 and 2 * len(same) <= len(files):
            said.append(f"column {name!r} is new: {counted(len(same), 'file')} of {len(files):,} have it")
        # a column that is all missing has no type of its own
        kinds = Counter(each.kind for each in same if each.kind != "null")
        most = kinds.most_common(1)[0][0] if kinds else column.kind
        if column.kind not in (most, "null"):
            said.append(f"column {name!r} is {column.kind}, in most files {most}")
        said += _number_changes(name, column, same, factor)
    return said


def _number_changes(name: str, column: _Column, same: Sequence[_Column], factor: float) -> list[str]:
    said = []
    shares = [each.null_share for each in same if each.null_share is not None]
    if column.null_share is not None and abs(column.null_share - median(shares)) > _NULL_SHARE:
        said.append(
            f"column {name!r} has {column.null_share:.0%} nulls, the median of the files {median(shares):.0%}"
        )
    reaches = [each.reach for each in same if each.reach]
    if column.reach and reaches:
        ratio = column.reach / median(reaches)
        if ratio >= factor or ratio <= 1 / factor:
            times = f"{ratio:,.4g} times" if ratio < 1 else f"{ratio:,.0f} times"
            said.append(
                f"column {name!r} reaches {column.reach:g}, {times} the median of the files: other units?"
            )
    return said


def _unseen(
    paths: Sequence[str], described: Sequence[Mapping[str, _Column]], name: str, options: dict[str, Any]
) -> list[list[str]]:
    """Find the values of a column that no file before has had."""

    def values(path: str, file: Mapping[str, _Column]) -> set[Any]:
        if name not in file:
            return set()
        return set(pc.unique(read_column(path, name, options)).drop_null().to_pylist())

    with ThreadPoolExecutor(min(8, len(paths))) as pool:
        found = list(pool.map(values, paths, described))
    said: list[list[str]] = []
    seen: set[Any] = set()
    for own in found:
        new = sorted(own - seen, key=str) if seen else []
        more = f" and {len(new) - 5:,} more" if len(new) > 5 else ""
        said.append(
            [f"column {name!r} has {', '.join(map(repr, new[:5]))}{more}, never seen before"] if new else []
        )
        seen |= own
    return said
