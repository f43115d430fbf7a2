"""Tiny data on which scikit-learn's own `fit` does the bookkeeping.

A fitted estimator has more attributes than those it learned: feature names, types, flags, and
in other releases other ones. So each family fits a clone on a stand-in of the same columns and
types, and then puts in what was learned from the blocks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.linalg
import scipy.sparse as sp
from sklearn.base import clone

from dpipe.blocks.statistics import ValueCounts
from dpipe.families.registry import Estimator, Meta


def numeric(meta: Meta, width: int, dtype: Any, rows: int = 1, *, sparse: bool = False) -> Any:
    """Give `rows` rows of zeros, as a frame or a CSR matrix where the real input is one."""
    zeros = np.zeros((rows, width), dtype=dtype)
    if sparse:
        return sp.csr_matrix(zeros)
    return zeros if meta.frame is None else pd.DataFrame(zeros, columns=meta.frame.columns)


def spread(X: Any) -> Any:
    """Let the rows of zeros that `numeric` gives count from 0, so that no column is constant."""
    dtype = X.dtypes.iloc[0] if isinstance(X, pd.DataFrame) else X.dtype
    rise = np.arange(X.shape[0], dtype=dtype)[:, None]
    return sp.csr_matrix(X.toarray() + rise) if sp.issparse(X) else X + rise


def fitted_on_zeros(
    estimator: Estimator, meta: Meta, width: int, dtype: Any, *, sparse: bool = False, weighted: bool = False
) -> Estimator:
    """Fit a clone on one row of zeros."""
    weights = {"sample_weight": np.ones(1)} if weighted else {}
    return clone(estimator).fit(numeric(meta, width, dtype, sparse=sparse), **weights)


def one_row(meta: Meta, width: int) -> Any:
    """Give one row in which nothing is missing, with the types of the real input."""
    if meta.frame is None:
        row = np.full((1, width), "a" if meta.dtype.kind == "O" else 0).astype(meta.dtype)
        return sp.csr_matrix(row) if meta.sparse else row
    return pd.concat([_one_value(dtype) for dtype in meta.frame.dtypes], axis=1).set_axis(
        meta.frame.columns, axis=1
    )


def _one_value(dtype: Any) -> pd.Series:
    if isinstance(dtype, pd.CategoricalDtype):
        numeric = pd.api.types.is_numeric_dtype(dtype.categories.dtype)
        return pd.Series(pd.Categorical([0 if numeric else "a"]))
    return pd.Series([0 if pd.api.types.is_numeric_dtype(dtype) else "a"], dtype=dtype)


def of_values(counts: ValueCounts, meta: Meta) -> Any:
    """Give rows that hold every distinct value of every column, missing ones included."""
    columns = [
        list(found) + ([missing] if n else [])
        for found, n, missing in zip(counts.counts, counts.n_missing, counts.missing, strict=True)
    ]
    if meta.frame is None:
        return padded(columns, counts.dtypes, None)
    series = []
    rows = max(map(len, columns))
    for values, dtype in zip(columns, meta.frame.dtypes, strict=True):
        full = values + values[:1] * (rows - len(values))
        if isinstance(dtype, pd.CategoricalDtype):
            series.append(pd.Series(pd.Categorical(full)))
        else:
            series.append(pd.Series(full, dtype=dtype))
    frame = pd.concat(series, axis=1)
    frame.columns = meta.frame.columns
    return frame


def padded(columns: Sequence[list[Any]], dtypes: Sequence[np.dtype[Any]], names: Any) -> Any:
    """Put lists of different lengths side by side, the first value of each filling up the rest."""
    rows = max(map(len, columns))
    full = [values + values[:1] * (rows - len(values)) for values in columns]
    if names is not None:
        data = {name: pd.Series(v, dtype=d) for name, v, d in zip(names, full, dtypes, strict=True)}
        return pd.DataFrame(data)
    out = np.empty((rows, len(full)), dtype=np.result_type(*dtypes))
    for j, values in enumerate(full):
        out[:, j] = values
    return out


def filled(meta: Meta, values: np.ndarray) -> Any:
    """Give made-up rows as a frame where the real input is one."""
    return values if meta.frame is None else pd.DataFrame(values, columns=meta.frame.columns)


def rows_with_moments(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Make up one row more than there are columns, with the given mean and population covariance.

    Parameters
    ----------
    mean : ndarray of shape (n_columns,)
    covariance : ndarray of shape (n_columns, n_columns)

    Returns
    -------
    ndarray of shape (n_columns + 1, n_columns)
        A column without variance is constant to the bit.

    Notes
    -----
    Whatever looks at the rows through their first two moments alone cannot tell these rows from the real
    ones.

    Examples
    --------
    >>> rows = rows_with_moments(np.array([1.0, 2.0]), np.array([[4.0, 0.0], [0.0, 9.0]]))
    >>> bool(np.allclose(rows.mean(axis=0), [1, 2])), bool(np.allclose(rows.var(axis=0), [4, 9]))
    (True, True)
    """
    n = len(mean) + 1
    # its rows are orthonormal and add up to zero
    contrasts = scipy.linalg.helmert(n)
    return mean + np.sqrt(n) * (contrasts.T @ root(covariance))


def root(products: np.ndarray) -> np.ndarray:
    """Give a square matrix whose columns have these products with each other; its last rows weigh most.

    Parameters
    ----------
    products : ndarray of shape (n_columns, n_columns)
        Positive semidefinite, up to rounding.

    Returns
    -------
    ndarray of shape (n_columns, n_columns)
        A column whose product with itself is zero is zero to the bit.

    Notes
    -----
    The products are scaled to correlations before the root is taken, so that columns of very different
    sizes keep their digits.

    Examples
    --------
    >>> made = root(np.array([[4.0, 2.0], [2.0, 9.0]]))
    >>> (made.T @ made).round(9).tolist()
    [[4.0, 2.0], [2.0, 9.0]]
    """
    scale = np.sqrt(np.diag(products))
    safe = np.where(scale > 0, scale, 1.0)
    values, vectors = scipy.linalg.eigh(products / np.outer(safe, safe))
    return np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T * scale
