"""Split rows by a hash of a key: the same key falls on the same side, always and everywhere."""

from collections.abc import Sequence
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd

from dpipe.errors import InputError


def split(
    frame: dd.DataFrame,
    *,
    test_size: float = 0.2,
    by: str | Sequence[str] | None = None,
    random_state: int = 0,
) -> tuple[dd.DataFrame, dd.DataFrame]:
    """Split a frame into train and test, lazily.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
    test_size : float, default 0.2
        Share of the keys on the test side, between 0 and 1.
    by : str or sequence of str, optional
        Columns of the key; default all columns. Rows of equal keys never stand on both sides.
    random_state : int, default 0
        Another number draws another split.

    Returns
    -------
    train, test : dask.dataframe.DataFrame
        Lazy. The side of a row does not depend on the blocks, nor on other rows: appending data moves none.

    Raises
    ------
    InputError
        If `test_size` is out of range, or a key column does not exist.
    """
    if not isinstance(frame, dd.DataFrame):
        raise InputError(f"split takes a Dask DataFrame, got a {type(frame).__name__}.")
    if isinstance(test_size, bool) or not isinstance(test_size, int | float) or not 0 < test_size < 1:
        raise InputError(f"test_size must lie between 0 and 1, got {test_size!r}.")
    keys = list(frame.columns) if by is None else [by] if isinstance(by, str) else list(by)
    missing = [key for key in keys if key not in frame.columns]
    if missing:
        raise InputError(
            f"split: there is no column {', '.join(map(repr, missing))} to split by. "
            f"The frame has: {', '.join(map(repr, frame.columns))}."
        )
    sides = [
        frame.map_partitions(
            _side, keys, test_size, random_state, test, meta=frame._meta, enforce_metadata=False
        )
        for test in (False, True)
    ]
    return sides[0], sides[1]


def _side(frame: pd.DataFrame, keys: list[str], test_size: float, random_state: int, test: bool) -> Any:
    return frame[is_test(frame[keys], test_size, random_state) == test]


def is_test(keys: pd.DataFrame, test_size: float, random_state: int) -> np.ndarray:
    """Tell for each key whether it falls on the test side."""
    if not len(keys):
        return np.zeros(0, dtype=bool)
    hashed = pd.util.hash_pandas_object(keys, index=False, hash_key=f"{random_state % 10**16:016d}")
    sides: np.ndarray = hashed.to_numpy() < np.uint64(test_size * 2.0**64)
    return sides
