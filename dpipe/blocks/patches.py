"""Windows cut out of a block, and put back where they overlap."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


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
    >>> Overlaps((2,), False, None, np.dtype(float), np.nan)((4,), windows, np.array([[0], [1]])).tolist()
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

    def __call__(self, shape: tuple[int, ...], windows: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Join windows.

        Parameters
        ----------
        shape : tuple of int
            Of the block: cells along the axes of windows, then the other axes.
        windows : ndarray of shape (n_windows, *sizes or 1, ...)
            Missing values have no weight; a length of 1 holds for all cells of the window along that axis.
        starts : ndarray of int, of shape (n_windows, n_axes)
            Where each begins, from the beginning of the block, maybe before it.
        """
        parts = list(self._parts(shape, windows, starts))
        return self._voted(shape, windows, parts) if self.vote else self._mean(shape, windows, parts)

    def _parts(
        self, shape: tuple[int, ...], windows: np.ndarray, starts: np.ndarray
    ) -> Iterator[tuple[tuple[slice, ...], Any, Any]]:
        """Give for each window its place in the block, which part of it that is, and the weights of its cells."""
        n = len(self.sizes)
        # what begins at other places adds in the same order, however the windows are chunked
        for i in np.lexsort(starts.T[::-1]).tolist():
            into, of, weight = [], [], np.ones((1,) * (len(shape)))
            for axis, (start, size) in enumerate(zip(starts[i].tolist(), self.sizes, strict=True)):
                first, last = max(start, 0), min(start + size, shape[axis])
                inside = slice(first - start, last - start)
                into.append(slice(first, last))
                of.append(slice(None) if windows.shape[1 + axis] == 1 else inside)
                if self.weights is not None:
                    along = self.weights[axis][inside]
                    weight = weight * along.reshape([-1 if j == axis else 1 for j in range(len(shape))])
            yield tuple(into), (i, *of, *(slice(None),) * (len(shape) - n)), weight

    def _mean(self, shape: tuple[int, ...], windows: np.ndarray, parts: Any) -> np.ndarray:
        # the mean is the first value and the mean of what differs from it: equal values stay what they are
        first = np.full(shape, np.nan)
        more, total = np.zeros(shape), np.zeros(shape)
        for into, of, weight in parts:
            begun = first[into]  # a view
            values = np.broadcast_to(windows[of].astype(np.float64), begun.shape)
            there = ~np.isnan(values)
            np.copyto(begun, values, where=there & np.isnan(begun))
            with np.errstate(invalid="ignore"):  # infinities
                more[into] += weight * np.where(there & (values != begun), values - begun, 0)
            total[into] += weight * there
        with np.errstate(invalid="ignore", divide="ignore"):
            return (first + more / total).astype(self.dtype, copy=False)

    def _voted(self, shape: tuple[int, ...], windows: np.ndarray, parts: Any) -> np.ndarray:
        found = np.full(shape, self.fill, dtype=self.dtype)
        most = np.zeros(shape)
        labels = np.unique(windows)
        for label in labels[labels == labels]:  # NaN is no label
            if label == self.fill:
                continue
            votes = np.zeros(shape)
            for into, of, weight in parts:
                votes[into] += weight * (windows[of] == label)
            # of labels with as many votes the first one stays
            better = votes > most * (1 + 1e-12)
            found[better], most[better] = label, votes[better]
        return found
