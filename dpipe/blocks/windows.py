"""Kernels on a region of an array that may reach beyond one block: assemble, roll, shift, coarsen."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

#: What moves along with a window, or is taken of a coarse cell.
STATISTICS = ("mean", "sum", "min", "max", "std", "count")


def assembled(
    shape: tuple[int, ...], where: Sequence[tuple[slice, ...]], pieces: Sequence[np.ndarray]
) -> np.ndarray:
    """Put pieces of several blocks together.

    Examples
    --------
    >>> assembled((3,), [(slice(0, 2),), (slice(2, 3),)], [np.array([1, 2]), np.array([3])]).tolist()
    [1, 2, 3]
    """
    if len(pieces) == 1 and pieces[0].shape == shape:
        return pieces[0]
    found = np.empty(shape, dtype=pieces[0].dtype)
    for place, piece in zip(where, pieces, strict=True):
        found[place] = piece
    return found


def padded(block: np.ndarray, widths: Sequence[tuple[int, int]], dtype: Any) -> np.ndarray:
    """Give a copy as floating point, with missing values around it; negative widths leave elements out.

    Examples
    --------
    >>> padded(np.array([1, 2]), [(1, -1)], np.float32).tolist()
    [nan, 1.0]
    """
    found = np.full(
        [n + sum(width) for n, width in zip(block.shape, widths, strict=True)], np.nan, dtype=dtype
    )
    into, of = [], []
    for n, length, (before, _) in zip(block.shape, found.shape, widths, strict=True):
        first, last = max(0, -before), max(min(n, length - before), 0)
        of.append(slice(first, max(last, first)))
        into.append(slice(first + before, max(last, first) + before))
    found[tuple(into)] = block[tuple(of)]
    return found


def rolled(block: np.ndarray, windows: Sequence[int], statistic: str, min_count: int) -> np.ndarray:
    """Give a statistic of each whole window of a block.

    Values are added up in the order of the window, wherever blocks end: the bits are those of one block.

    Parameters
    ----------
    block : ndarray
        Of floating point.
    windows : sequence of int
        Length along each axis, 1 where nothing moves.
    statistic : str
        One of `STATISTICS`; missing values are left out.
    min_count : int
        Windows with fewer values give NaN.

    Examples
    --------
    >>> rolled(np.array([1.0, np.nan, 3.0, 4.0]), [2], "mean", 1).tolist()
    [1.0, 3.0, 3.5]
    """
    there = ~np.isnan(block)
    count = _added(there.astype(np.int32), windows)
    if statistic == "count":
        found = count.astype(block.dtype)
    elif statistic in ("min", "max"):
        found = _along(block, windows, np.fmin if statistic == "min" else np.fmax)
    else:
        total = _added(np.where(there, block, 0).astype(np.float64), windows)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = total if statistic == "sum" else total / count
            if statistic == "std":
                found = np.sqrt(_squares(block, there, found, windows) / count)
    return np.where(count >= min_count, found, np.nan).astype(block.dtype, copy=False)


def _added(values: np.ndarray, windows: Sequence[int]) -> np.ndarray:
    return _along(values, windows, np.add)


def _along(values: np.ndarray, windows: Sequence[int], join: Callable[..., np.ndarray]) -> np.ndarray:
    """Join the values of each window, axis by axis."""
    for axis, window in enumerate(windows):
        if window == 1:
            continue
        n = values.shape[axis] - window + 1
        parts = (_cut(values, axis, i, i + n) for i in range(window))
        found = next(parts).copy()
        for part in parts:
            join(found, part, out=found)
        values = found
    return values


def _squares(block: np.ndarray, there: np.ndarray, means: np.ndarray, windows: Sequence[int]) -> np.ndarray:
    found = np.zeros(means.shape)
    for offsets in itertools.product(*map(range, windows)):
        place = tuple(slice(i, i + n) for i, n in zip(offsets, means.shape, strict=True))
        found += np.where(there[place], (block[place] - means) ** 2, 0.0)
    return found


def _cut(values: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
    return values[(*(slice(None) for _ in range(axis)), slice(start, stop))]


def shifted(block: np.ndarray, axis: int, starts: Sequence[int], length: int) -> np.ndarray:
    """Stack what begins at several places of an axis, along a new last axis.

    Examples
    --------
    >>> shifted(np.array([1.0, 2.0, 3.0]), 0, [1, 0], 2).tolist()
    [[2.0, 1.0], [3.0, 2.0]]
    """
    return np.stack([_cut(block, axis, start, start + length) for start in starts], axis=-1)


def coarsened(block: np.ndarray, factors: Sequence[int], statistic: str) -> np.ndarray:
    """Give a statistic of each coarse cell; missing values are left out.

    Parameters
    ----------
    block : ndarray
        Of floating point, its lengths multiples of the factors.
    factors : sequence of int
    statistic : str
        One of `STATISTICS`; the sum of nothing is 0, as in xarray.

    Examples
    --------
    >>> coarsened(np.array([1.0, 3.0, np.nan, 4.0]), [2], "mean").tolist()
    [2.0, 4.0]
    """
    shape = [part for n, factor in zip(block.shape, factors, strict=True) for part in (n // factor, factor)]
    axes = tuple(range(1, 2 * block.ndim, 2))
    values = block.reshape(shape)
    there = ~np.isnan(values)
    count = there.sum(axis=axes)
    if statistic == "count":
        return count.astype(block.dtype)
    if statistic in ("min", "max"):
        join = np.fmin if statistic == "min" else np.fmax
        return join.reduce(values, axis=axes)
    total = np.where(there, values, 0).sum(axis=axes, dtype=np.float64)
    if statistic != "sum":
        with np.errstate(divide="ignore", invalid="ignore"):
            total = total / count
            if statistic == "std":
                spread = np.where(there, values - np.expand_dims(total, axes), 0)
                total = np.sqrt((spread**2).sum(axis=axes) / count)
    return total.astype(block.dtype, copy=False)
