"""Which columns of a source are read."""

from collections.abc import Iterable, Sequence
from typing import Any

from dpipe.errors import InputError


def refuse_one_name(columns: Any) -> None:
    """Refuse a text in place of a list of names: it would be taken for its letters."""
    if isinstance(columns, str):
        raise InputError(f"columns is {columns!r}; it must be a list of names, such as [{columns!r}].")


def check_columns(columns: Sequence[Any], present: Iterable[Any]) -> None:
    """Refuse columns that a source does not have."""
    names = list(present)
    missing = [name for name in columns if name not in names]
    if missing:
        raise InputError(
            f"There is no column {', '.join(map(repr, missing))} in the source. "
            f"It has: {', '.join(map(repr, names))}."
        )
