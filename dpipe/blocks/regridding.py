"""Weights from one regular grid to another, a dim at a time, and what they make of a block.

A weight matrix has a row for each target cell and a column for each source cell; that of several dims is the product of
theirs, so it is never made.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp


def bilinear_weights(source: np.ndarray, target: np.ndarray, period: float | None = None) -> sp.csr_matrix:
    """Give the weights of linear interpolation along one dim.

    Parameters
    ----------
    source : ndarray of shape (n,)
        Ascending.
    target : ndarray of shape (m,)
        Beyond the first and the last centre of the source, their values hold, unless there is a period.
    period : float, optional
        After which the source begins again.

    Returns
    -------
    csr_matrix of shape (m, n)
        Rows add up to 1.

    Examples
    --------
    >>> bilinear_weights(np.array([0.0, 10.0]), np.array([2.5])).toarray().tolist()
    [[0.75, 0.25]]
    """
    n = len(source)
    if period is not None:
        target = source[0] + np.mod(target - source[0], period)
        centres, columns = np.append(source, source[0] + period), np.append(np.arange(n), 0)
    else:
        target = np.clip(target, source[0], source[-1])
        centres, columns = source, np.arange(n)
    if len(centres) == 1:
        return sp.csr_matrix(np.ones((len(target), 1)))
    left = np.clip(np.searchsorted(centres, target, side="right") - 1, 0, len(centres) - 2)
    share = (target - centres[left]) / (centres[left + 1] - centres[left])
    rows = np.repeat(np.arange(len(target)), 2)
    values = np.stack([1 - share, share], axis=1).ravel()
    found = sp.csr_matrix(
        (values, (rows, columns[np.stack([left, left + 1], axis=1).ravel()])), shape=(len(target), n)
    )
    found.eliminate_zeros()
    return found


def overlap_weights(source: np.ndarray, target: np.ndarray, period: float | None = None) -> sp.csr_matrix:
    """Give the length that each source cell shares with each target cell.

    Parameters
    ----------
    source, target : ndarray of shape (n + 1,), (m + 1,)
        Edges, ascending.
    period : float, optional
        After which the source begins again.

    Returns
    -------
    csr_matrix of shape (m, n)

    Examples
    --------
    >>> overlap_weights(np.array([0.0, 1.0, 2.0]), np.array([0.5, 2.0])).toarray().tolist()
    [[0.5, 1.0]]
    """
    rows, columns, values = [], [], []
    turns = (
        [0]
        if period is None
        else range(
            int(np.floor((target[0] - source[-1]) / period)),
            int(np.ceil((target[-1] - source[0]) / period)) + 1,
        )
    )
    for turn in turns:
        edges = source + (turn * (period or 0))
        first = np.clip(np.searchsorted(edges, target[:-1], side="right") - 1, 0, len(edges) - 2)
        last = np.clip(np.searchsorted(edges, target[1:], side="left"), 1, len(edges) - 1)
        for row, (a, b) in enumerate(zip(first, last, strict=True)):
            shared = np.minimum(edges[a + 1 : b + 1], target[row + 1]) - np.maximum(edges[a:b], target[row])
            there = np.flatnonzero(shared > 0)
            rows += [row] * len(there)
            columns += (a + there).tolist()
            values += shared[there].tolist()
    return sp.csr_matrix((values, (rows, columns)), shape=(len(target) - 1, len(source) - 1))


def edges_between(centres: np.ndarray) -> np.ndarray:
    """Give the edges of cells: half-way between centres, and as far beyond the first and the last one.

    Examples
    --------
    >>> edges_between(np.array([0.0, 2.0, 6.0])).tolist()
    [-1.0, 1.0, 4.0, 8.0]
    """
    middle = (centres[:-1] + centres[1:]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def weighted(
    block: np.ndarray, weights: Sequence[sp.csr_matrix | None], least: float, dtype: np.dtype
) -> np.ndarray:
    """Give the weighted mean of the source cells of each target cell; missing ones are left out.

    Parameters
    ----------
    block : ndarray
    weights : sequence of csr_matrix or None
        For each axis; None leaves it as it is.
    least : float
        The share of a target cell that must not be missing, else the result is.
    dtype : dtype

    Examples
    --------
    >>> halves = sp.csr_matrix([[0.5, 0.5]])
    >>> weighted(np.array([1.0, np.nan]), [halves], 0.25, np.dtype(float)).tolist()
    [1.0]
    """
    missing = np.isnan(block)
    values = np.where(missing, 0, block).astype(np.float64)
    there = (~missing).astype(np.float64) if missing.any() else None
    whole = np.ones((1,) * block.ndim)
    for axis, matrix in enumerate(weights):
        if matrix is None:
            continue
        values = _product(matrix, values, axis)
        there = None if there is None else _product(matrix, there, axis)
        sums = np.asarray(matrix.sum(axis=1)).ravel()
        whole = whole * sums.reshape([-1 if i == axis else 1 for i in range(block.ndim)])
    covered = whole if there is None else there
    with np.errstate(divide="ignore", invalid="ignore"):
        # what rounding leaves of a weight is no cover
        enough = (covered > 1e-12 * whole) & (covered >= least * whole * (1 - 1e-9))
        return np.where(enough, values / covered, np.nan).astype(dtype, copy=False)


def _product(matrix: sp.csr_matrix, values: np.ndarray, axis: int) -> np.ndarray:
    moved = np.moveaxis(values, axis, 0)
    made = matrix @ moved.reshape(len(moved), -1)
    return np.moveaxis(made.reshape(matrix.shape[0], *moved.shape[1:]), 0, axis)
