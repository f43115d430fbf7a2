"""Windows cut out of a block, and put back where they overlap."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

#: Cells of windows that are joined at a time.
_AT_ONCE = 2**17


def cut(block: np.ndarray, windows: Sequence[tuple[np.ndarray, int] | None]) -> np.ndarray:
    """Cut all windows out of a block.

    Parameters
    ----------
    block : ndarray
    windows : sequence of (ndarray of int, int) or None
        For each axis where windows begin, and their length; None takes all of an axis.

    Returns
    -------
    ndarray of shape (n_windows, *lengths)
        In the order of their beginnings, the last axis the fastest.

    Examples
    --------
    >>> cut(np.array([1, 2, 3, 4]), [(np.array([0, 2]), 2)]).tolist()
    [[1, 2], [3, 4]]
    """
    axes = [i for i, window in enumerate(windows) if window is not None]
    given = [window for window in windows if window is not None]
    view = sliding_window_view(block, [length for _, length in given], axis=tuple(axes))
    places = np.ix_(*(starts for starts, _ in given))
    found = np.moveaxis(view, axes, range(len(axes)))[places]
    found = found.reshape(-1, *found.shape[len(axes) :])
    # the lengths stand last: each goes to where its axis was
    return np.ascontiguousarray(np.moveaxis(found, range(-len(axes), 0), [1 + axis for axis in axes]))


def tapered(length: int) -> np.ndarray:
    """Give weights that fall from the middle of a window to its ends, none of them 0: the squares of sines.

    Examples
    --------
    >>> tapered(4).round(3).tolist()
    [0.146, 0.854, 0.854, 0.146]
    """
    return np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2


@dataclass(frozen=True)
class Overlaps:
    """How windows that overlap become one block.

    Examples
    --------
    >>> windows = np.array([[1.0, 2.0], [4.0, 5.0]])
    >>> how = Overlaps((2,), False, None, np.dtype(float), np.nan)
    >>> how((4,), windows, np.array([[0], [1]]), ((0, 2),)).tolist()
    [1.0, 3.0, 5.0, nan]
    """

    sizes: tuple[int, ...]
    """Cells of a window along each of the first axes of a block."""
    vote: bool
    """Whether the most frequent value is taken, not the mean."""
    weights: tuple[np.ndarray, ...] | None
    """Of the cells along each axis of a window; None for equal ones."""
    dtype: np.dtype[Any]
    fill: Any
    """What stands where there is no window."""

    def __call__(
        self,
        shape: tuple[int, ...],
        windows: np.ndarray,
        starts: np.ndarray,
        spans: Sequence[tuple[int, int]],
    ) -> np.ndarray:
        """Join windows.

        Parameters
        ----------
        shape : tuple of int
            Of the block: cells along the axes of windows, then the other axes.
        windows : ndarray of shape (n_windows, *cells, ...)
            Missing values have no weight; a length of 1 holds for all cells of the window along that axis.
        starts : ndarray of int, of shape (n_windows, n_axes)
            Where each window begins, from the beginning of the block, maybe before it.
        spans : sequence of (int, int)
            From which cell of the window to which one `windows` goes, along each axis.
        """
        # what is added in another order has other bits: the order is that of the grid, however the windows are chunked
        order = np.lexsort(starts.T[::-1])
        step = max(1, _AT_ONCE // max(math.prod(b - a for a, b in spans), 1))
        groups = [order[i : i + step] for i in range(0, len(order), step)]
        parts = partial(self._parts, shape, windows, starts, spans, groups)
        found = self._voted(parts, shape, np.unique(windows)) if self.vote else self._mean(parts, shape)
        return found.reshape(shape)

    def _parts(
        self,
        shape: tuple[int, ...],
        windows: np.ndarray,
        starts: np.ndarray,
        spans: Sequence[tuple[int, int]],
        groups: Sequence[np.ndarray],
    ) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
        """Give for some windows at a time the places of their cells in the flat block, the values, and the weights."""
        n = windows.ndim
        lengths = (*(b - a for a, b in spans), *windows.shape[1 + len(spans) :])
        for rows in groups:
            place, inside, weight = np.zeros((1,) * n, dtype=np.intp), np.True_, np.ones((1,) * n)
            for axis, length in enumerate(lengths):
                along = [-1 if i == axis + 1 else 1 for i in range(n)]
                at = np.arange(length).reshape(along)
                if axis < len(spans):
                    first, last = spans[axis]
                    at = at + (starts[rows, axis] + first).reshape([-1] + [1] * (n - 1))
                    inside = inside & (at >= 0) & (at < shape[axis])
                    if self.weights is not None:
                        weight = weight * self.weights[axis][first:last].reshape(along)
                place = place + at * math.prod(shape[axis + 1 :])
            values = np.broadcast_to(windows[rows], (len(rows), *lengths))
            kept = np.broadcast_to(inside, values.shape) & (values == values)  # NaN is no value
            weights = np.broadcast_to(weight, values.shape)[kept] if self.weights is not None else 1.0
            yield np.broadcast_to(place, values.shape)[kept], values[kept], weights

    def _mean(self, parts: Any, shape: tuple[int, ...]) -> np.ndarray:
        # the mean is the first value and the mean of what differs from it: equal values stay what they are
        n = math.prod(shape)
        first, more, total = np.full(n, np.nan), np.zeros(n), np.zeros(n)
        for places, values, weights in parts():
            begins = np.isnan(first[places])
            first[places[begins][::-1]] = values[begins][::-1]  # of several the last one written stays
            differs = values != first[places]
            where = places[differs]
            apart = values[differs].astype(np.float64) - first[where]
            np.add.at(more, where, apart * (weights if self.weights is None else weights[differs]))
            np.add.at(total, places, weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (first + more / total).astype(self.dtype, copy=False)

    def _voted(self, parts: Any, shape: tuple[int, ...], labels: np.ndarray) -> np.ndarray:
        n = math.prod(shape)
        found, most = np.full(n, self.fill, dtype=self.dtype), np.zeros(n)
        for label in labels[(labels == labels) & (labels != self.fill)].tolist():
            votes = np.zeros(n)
            for places, values, weights in parts():
                mine = values == label
                np.add.at(votes, places[mine], weights if self.weights is None else weights[mine])
            # of labels with as many votes the first one stays
            better = votes > most * (1 + 1e-12)
            found[better], most[better] = label, votes[better]
        return found
