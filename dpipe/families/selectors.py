"""Column selectors of a ColumnTransformer, resolved to positions."""

from typing import Any

import numpy as np

from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families.registry import Meta


def width_of(meta: Meta, name: str) -> int:
    """Give the number of columns, which must be known before the fit."""
    if meta.width is None:
        raise UnsupportedEstimatorError(
            f"{name}: a ColumnTransformer after a step whose number of columns is not known before it is "
            "fitted cannot be planned. Select the columns first, and transform them after."
        )
    return meta.width


def columns_of(meta: Meta, positions: tuple[int, ...]) -> Meta:
    """Give the meta of some columns."""
    if meta.frame is not None:
        return Meta(frame=meta.frame.iloc[:, list(positions)])
    return Meta(n_columns=len(positions), dtype=meta.dtype, sparse=meta.sparse)


def is_one(columns: Any) -> bool:
    """Tell whether a selector names a column without a list, which selects a series."""
    return isinstance(columns, str | int | np.integer) and not isinstance(columns, bool)


def resolve_columns(columns: Any, meta: Meta, where: str) -> tuple[int, ...]:
    """Turn any column selector of a ColumnTransformer into positions.

    Names, positions, slices of either, boolean masks, and callables of the (empty) frame are
    accepted.

    Raises
    ------
    InputError
        If a column does not exist; the message lists those that do.
    """
    if callable(columns):
        if meta.frame is None:
            raise InputError(f"{where}: a callable column selector needs a frame, but X is an array.")
        columns = columns(meta.frame)
    width = width_of(meta, where)
    if isinstance(columns, slice):
        return _resolve_slice(columns, meta, where)
    columns = [columns] if is_one(columns) else list(columns)
    if columns and all(isinstance(column, bool | np.bool_) for column in columns):
        if len(columns) != width:
            raise InputError(f"{where}: the mask has {len(columns)} entries, but X has {width} columns.")
        return tuple(np.flatnonzero(columns).tolist())
    return tuple(_position(column, meta, where) for column in columns)


def _resolve_slice(columns: slice, meta: Meta, where: str) -> tuple[int, ...]:
    ends = [columns.start, columns.stop]
    if any(isinstance(end, str) for end in ends):
        first = 0 if ends[0] is None else _position(ends[0], meta, where)
        # a slice of names includes its end, as in pandas
        last = width_of(meta, where) if ends[1] is None else _position(ends[1], meta, where) + 1
        return tuple(range(first, last, columns.step or 1))
    return tuple(range(width_of(meta, where))[columns])


def _position(column: Any, meta: Meta, where: str) -> int:
    width = width_of(meta, where)
    if isinstance(column, int | np.integer):
        if not -width <= column < width:
            raise InputError(f"{where}: there is no column {column}; X has {width} columns.")
        return int(column) % width
    if meta.frame is None:
        raise InputError(f"{where}: column {column!r} is a name, but X is an array. Use positions.")
    names = list(meta.frame.columns)
    if column not in names:
        raise InputError(
            f"{where}: there is no column {column!r}. X has: {', '.join(map(repr, names))}. "
            "Correct the name in the transformer, or add the column to X."
        )
    return names.index(column)
