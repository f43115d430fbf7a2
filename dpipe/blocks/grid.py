"""Rows of labelled arrays: the chunks of a block as one matrix, and results back in their places.

A block is one chunk along every sample dim, with all chunks of the features. Its rows are its cells, in the
order of the sample dims; a cell without data, such as land in a field of the sea, may be left out of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from dpipe.blocks.table import Block

#: Which samples are left out: those that lack all features, those that lack any, or none.
Missing = Literal["all", "any", "keep"]


@dataclass(frozen=True)
class Cells:
    """How the chunks of one variable become columns.

    Examples
    --------
    >>> cells = Cells(order=(1, 0), absent=(), shape=(2,), places=((slice(0, 2),),))
    >>> cells.columns([np.array([[1, 2, 3], [4, 5, 6]])], (3,)).tolist()
    [[1, 4], [2, 5], [3, 6]]
    """

    order: tuple[int, ...]
    """Axes of the variable: those of the samples, then those of the features."""
    absent: tuple[int, ...]
    """Which of the sample dims the variable lacks; its values hold for all of their cells."""
    shape: tuple[int, ...]
    """Sizes of the features."""
    places: tuple[tuple[slice, ...], ...]
    """Where each chunk lies among the features."""

    @property
    def width(self) -> int:
        """Number of columns."""
        return math.prod(self.shape)

    def n_cells(self, chunk: np.ndarray) -> tuple[int, ...]:
        """Count the cells along each sample dim, of a variable that lacks none."""
        return tuple(chunk.shape[axis] for axis in self.order[: len(self.order) - len(self.shape)])

    def columns(self, chunks: Sequence[np.ndarray], n_cells: tuple[int, ...]) -> np.ndarray:
        """Give a matrix of shape (n_rows, width) in the native byte order; a view where it can be one."""
        dtype = np.result_type(*chunks).newbyteorder("=")
        if len(chunks) == 1 and not self.absent and chunks[0].dtype == dtype:
            return np.asarray(chunks[0]).transpose(self.order).reshape(math.prod(n_cells), self.width)
        out = np.empty((math.prod(n_cells), self.width), dtype=dtype)
        self.fill(out, chunks, n_cells)
        return out

    def fill(self, out: np.ndarray, chunks: Sequence[np.ndarray], n_cells: tuple[int, ...]) -> None:
        """Write the chunks into columns of a matrix of shape (n_rows, width)."""
        cells = out.reshape((*n_cells, *self.shape), copy=False)
        for chunk, place in zip(chunks, self.places, strict=True):
            where: Any = (..., *place)
            cells[where] = np.expand_dims(np.asarray(chunk).transpose(self.order), self.absent)


class GridRows(NamedTuple):
    """The rows of one block, and which of its cells they are."""

    X: Block
    y: np.ndarray | None
    w: np.ndarray | None
    kept: np.ndarray | None
    """Of shape (n_cells,); None if every cell is a row."""
    n_cells: tuple[int, ...]
    """Cells along each sample dim."""


@dataclass(frozen=True)
class GridLayout:
    """How the chunks of a block become its rows."""

    X: tuple[Cells, ...]
    names: tuple[str, ...] | None
    """Columns of the variables of a data set; None gives a matrix."""
    y: Cells | None = None
    w: Cells | None = None
    missing: Missing = "keep"
    columns: tuple[int, ...] | None = None
    """Positions of the columns that are wanted; None for all."""

    def __call__(self, chunks: Sequence[Sequence[np.ndarray]]) -> tuple[Any, ...]:
        """Give X, and y and the weights if there are any."""
        rows = self.rows(chunks)
        return tuple(part for part in rows[:3] if part is not None)

    def rows(self, chunks: Sequence[Sequence[np.ndarray]]) -> GridRows:
        """Put a block together; `chunks` holds those of each variable of X, of y and of the weights."""
        own, beside = chunks[: len(self.X)], iter(chunks[len(self.X) :])
        y_chunks = next(beside) if self.y is not None else None
        w_chunks = next(beside) if self.w is not None else None
        whole, of_it = (self.X[0], own[0]) if self.X else (self.y, y_chunks)
        assert whole is not None
        assert of_it is not None
        n_cells = whole.n_cells(of_it[0])
        y = None if y_chunks is None or self.y is None else _target(self.y, y_chunks, n_cells)
        w = None if w_chunks is None or self.w is None else _weights(self.w, w_chunks, n_cells)
        X = self._block(own, n_cells)
        kept = _kept(X, y, w, self.missing)
        if kept is not None:
            X, y, w = X[kept], None if y is None else y[kept], None if w is None else w[kept]
        if self.columns is not None and self.X:
            chosen = list(self.columns)
            X = X.iloc[:, chosen] if isinstance(X, pd.DataFrame) else X[:, chosen]
        return GridRows(X, y, w, kept, n_cells)

    def _block(self, chunks: Sequence[Sequence[np.ndarray]], n_cells: tuple[int, ...]) -> Any:
        if not self.X:
            return np.empty((math.prod(n_cells), 0))
        if self.names is None:
            return self.X[0].columns(chunks[0], n_cells)
        parts = [cells.columns(held, n_cells) for cells, held in zip(self.X, chunks, strict=True)]
        frames = {
            name: part[:, j]
            for part, names in zip(parts, self._names_of_each(), strict=True)
            for j, name in enumerate(names)
        }
        return pd.DataFrame(frames, copy=False)

    def _names_of_each(self) -> list[tuple[str, ...]]:
        assert self.names is not None
        ends = np.cumsum([cells.width for cells in self.X])
        return [self.names[end - cells.width : end] for end, cells in zip(ends.tolist(), self.X, strict=True)]

    def with_columns(self, columns: Sequence[int] | None) -> "GridLayout":
        """Give a layout that keeps some of the columns, in a given order."""
        return replace(self, columns=None if columns is None else tuple(columns))


def _target(cells: Cells, chunks: Sequence[np.ndarray], n_cells: tuple[int, ...]) -> np.ndarray:
    values = cells.columns(chunks, n_cells)
    return values if cells.shape else values[:, 0]


def _weights(cells: Cells, chunks: Sequence[np.ndarray], n_cells: tuple[int, ...]) -> np.ndarray:
    # what else stands beside the weights comes along, as further columns
    values = cells.columns(chunks, n_cells)
    return values if cells.shape else values[:, 0]


def _kept(X: Any, y: np.ndarray | None, w: np.ndarray | None, missing: Missing) -> np.ndarray | None:
    """Tell which cells are rows; None if all are."""
    if missing == "keep":
        return None
    gone = lacking(X, missing)
    for beside in (y, w):
        if beside is not None and beside.dtype.kind in "fc":
            absent = np.isnan(beside)
            gone |= absent.any(axis=1) if beside.ndim == 2 else absent
    return ~gone if gone.any() else None


def lacking(X: Any, missing: Missing) -> np.ndarray:
    """Tell which rows lack all features, or any; of shape (n_rows,).

    Examples
    --------
    >>> X = np.array([[1.0, 2.0], [np.nan, 3.0], [np.nan, np.nan]])
    >>> lacking(X, "all").tolist(), lacking(X, "any").tolist()
    ([False, False, True], [False, True, True])
    """
    columns = [X[name].to_numpy() for name in X] if isinstance(X, pd.DataFrame) else None
    if columns is not None:
        gone = np.full(len(X), missing == "all")
        for column in columns:
            absent = np.isnan(column) if column.dtype.kind in "fc" else np.zeros(len(X), dtype=bool)
            gone = gone & absent if missing == "all" else gone | absent
        return gone
    if X.dtype.kind not in "fc" or not X.shape[1]:
        return np.zeros(len(X), dtype=bool)
    # few rows have a gap at all: only those are looked at cell by cell
    with np.errstate(invalid="ignore", over="ignore"):
        suspects = np.flatnonzero(np.isnan(X[:, 0] if missing == "all" else X.sum(axis=1)))
    absent = np.isnan(X[suspects])
    gone = np.zeros(len(X), dtype=bool)
    gone[suspects] = absent.all(axis=1) if missing == "all" else absent.any(axis=1)
    return gone


def put_back(values: np.ndarray, rows: GridRows, dtype: np.dtype[Any], fill: Any) -> np.ndarray:
    """Put a result of each row where its cell is, and a fill value where there was no row.

    Parameters
    ----------
    values : ndarray of shape (n_rows,) or (n_rows, width)
    rows : GridRows
        The block that they were made of.
    dtype : dtype
        Of the result.
    fill : object
        For the cells that were left out.

    Returns
    -------
    ndarray of shape (*n_cells,) or (*n_cells, width)

    Examples
    --------
    >>> rows = GridRows(np.ones((2, 1)), None, None, np.array([True, False, True]), (3, 1))
    >>> put_back(np.array([5, 6]), rows, np.dtype(float), np.nan).tolist()
    [[5.0], [nan], [6.0]]
    """
    if rows.kept is None:
        return values.astype(dtype, copy=False).reshape((*rows.n_cells, *values.shape[1:]))
    out = np.full((len(rows.kept), *values.shape[1:]), fill, dtype=dtype)
    out[rows.kept] = values
    return out.reshape((*rows.n_cells, *values.shape[1:]))
