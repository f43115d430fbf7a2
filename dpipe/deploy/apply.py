"""Apply a fitted estimator to a collection: lazily, block by block."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import scipy.sparse as sp
import xarray as xr
from dask.delayed import Delayed
from dask.task_spec import DataNode
from dask.tokenize import tokenize

from dpipe.collect.labelled import needed_variables, open_grid
from dpipe.deploy.grids import apply_grid
from dpipe.deploy.results import apply_block, check_applicable, conformed, empty_result, shaped
from dpipe.errors import InputError
from dpipe.families.fitted import input_names
from dpipe.families.registry import Estimator


@dataclass(frozen=True, eq=False)
class Applier:
    """A fitted estimator, and how it is applied to a block: the one value that all tasks share."""

    fitted: Estimator
    method: str
    columns: tuple[str, ...] | None
    """The columns of a frame that it takes, in order; None for all of them."""
    meta: Any = None
    """The empty result; None while it is not known."""

    def __call__(self, block: Any) -> Any:
        """Apply it to a pandas frame, an array or a CSR matrix of any number of rows."""
        index = block.index if isinstance(block, pd.DataFrame) else None
        if block.shape[0] == 0:
            meta = self.empty(block) if self.meta is None else self.meta
            return meta if index is None or sp.issparse(meta) else meta.set_axis(index, axis="index")
        values = apply_block(self.fitted, self._taken(block), self.method)
        result = shaped(values, self.fitted, self.method, index)
        return result if self.meta is None else conformed(result, self.meta)

    def empty(self, X: Any) -> Any:
        """Find the empty result for X of no rows."""
        return empty_result(self.fitted, self.method, self._taken(X))

    def _taken(self, block: Any) -> Any:
        if self.columns is None or tuple(block.columns) == self.columns:
            return block
        return block[list(self.columns)]


def predict(
    fitted: Estimator,
    X: Any,
    *,
    method: str = "predict",
    sample_dims: Any = None,
    missing: str = "all",
) -> Any:
    """Predict, lazily, for a Dask collection, or at once for data in memory.

    Parameters
    ----------
    fitted : estimator
        A fitted scikit-learn estimator or pipeline, from `dpipe.fit` or from anywhere.
    X : dask DataFrame or Array, pandas.DataFrame, numpy.ndarray or CSR matrix
        Of shape (n_samples, n_features); arrays in any chunks, with known or unknown row counts. Columns
        of a frame are matched by name: others are ignored, their order does not matter. Or an xarray object,
        as for `dpipe.fit`.
    method : str, default "predict"
        Or "predict_proba", "predict_log_proba", "decision_function", "score_samples".
    sample_dims : str or sequence of str, optional
        For xarray objects: which dims are samples.
    missing : {"all", "any", "keep"}, default "all"
        Of an xarray object, which cells have no answer: those that lack all features, or any, or none.

    Returns
    -------
    collection of the same kind as X
        For a frame a series, with the frame's index and divisions, or a frame with a column for each class
        (named ``str(label)``) or target; for an array an array. Blocks without rows give no rows. For an
        xarray object a DataArray with the sample dims and their coordinates, in its chunks, and a dim "class"
        where there is an answer for each class. Where cells may lack data, integers are floats with NaN there,
        and are written to files as integers with a fill value.

    Raises
    ------
    InputError
        If the estimator is not fitted or lacks the method, or X lacks columns.

    Examples
    --------
    >>> import dask.array as da
    >>> from sklearn.linear_model import LinearRegression
    >>> fitted = LinearRegression().fit([[0.0], [1.0]], [1.0, 3.0])
    >>> X = da.from_array(np.arange(4.0).reshape(4, 1), chunks=(2, 1))
    >>> predict(fitted, X)
    dask.array<predict, shape=(4,), dtype=float64, chunksize=(2,), chunktype=numpy.ndarray>
    >>> predict(fitted, X).compute()
    array([1., 3., 5., 7.])
    """
    if method == "transform":
        raise InputError("predict does not transform. Call dpipe.transform(fitted, X).")
    return _apply(fitted, X, method, sample_dims, missing)


def transform(fitted: Estimator, X: Any, *, sample_dims: Any = None, missing: str = "all") -> Any:
    """Transform, lazily, a Dask collection, or at once what is in memory.

    Parameters
    ----------
    fitted : estimator
        A fitted scikit-learn transformer or pipeline.
    X : dask DataFrame or Array, pandas.DataFrame, numpy.ndarray or CSR matrix
        As for `predict`.
    sample_dims, missing
        For xarray objects: as for `predict`.

    Returns
    -------
    collection
        For a frame a frame, with the names of ``get_feature_names_out()``; for an array an array. Where
        the transformer gives sparse matrices, an array whose blocks are CSR matrices. For an xarray object
        one with the same dims, names and attributes, if its features are kept (scalers, imputers, selections);
        else a DataArray with the sample dims and a new one: "component", "cluster" or "feature".

    Raises
    ------
    InputError
        If the estimator is not fitted or no transformer, or X lacks columns.

    Examples
    --------
    >>> import dask.dataframe as dd
    >>> from sklearn.preprocessing import MinMaxScaler
    >>> frame = pd.DataFrame({"a": [0.0, 2.0, 4.0]})
    >>> transform(MinMaxScaler().fit(frame), dd.from_pandas(frame, npartitions=2)).compute()
         a
    0  0.0
    1  0.5
    2  1.0
    """
    return _apply(fitted, X, "transform", sample_dims, missing)


def _apply(fitted: Estimator, X: Any, method: str, sample_dims: Any, missing: str) -> Any:
    check_applicable(fitted, method)
    if isinstance(X, xr.DataArray | xr.Dataset):
        return _map_grid(fitted, X, method, sample_dims, missing)
    if sample_dims is not None:
        raise InputError(
            f"sample_dims={sample_dims!r} is for xarray objects, but X is a {type(X).__name__}. Leave it out."
        )
    if isinstance(X, dd.DataFrame | pd.DataFrame):
        columns = input_columns(fitted, list(X.columns))
        applier = Applier(fitted, method, columns)
        return applier(X) if isinstance(X, pd.DataFrame) else _map_frame(applier, X)
    if isinstance(X, np.ndarray | da.Array) or sp.issparse(X):
        _check_shape(fitted, X)
        applier = Applier(fitted, method, None)
        return _map_array(applier, X) if isinstance(X, da.Array) else applier(X)
    raise InputError(
        f"X is a {type(X).__module__}.{type(X).__name__}; it must be a Dask DataFrame or Array, a pandas "
        "DataFrame, a NumPy array or a CSR matrix. Make a frame of a series with X.to_frame()."
    )


def _map_grid(fitted: Estimator, X: Any, method: str, sample_dims: Any, missing: str) -> Any:
    X = needed_variables(X, input_names(fitted))
    grid = open_grid(X, None, None, sample_dims, missing)
    expected = input_names(fitted)
    if grid.names is None:
        if expected is not None:
            raise InputError(
                f"X is a DataArray, whose features have no names, but this {type(fitted).__name__} was fitted on "
                f"{_listed(expected[:5])}{', ...' * (len(expected) > 5)}. Give a Dataset with these variables, as "
                "by X.to_dataset(dim=...)."
            )
        _check_width(fitted, grid.n_columns)
        return apply_grid(fitted, X, grid, method, None)
    wanted = input_columns(fitted, grid.names)
    columns = None if wanted is None or wanted == grid.names else list(map(grid.names.index, wanted))
    return apply_grid(fitted, X, grid, method, columns)


def input_columns(fitted: Estimator, present: Sequence[Any]) -> tuple[str, ...] | None:
    """List the columns that an estimator takes, in order; None if it was not fitted on names.

    Raises
    ------
    InputError
        If some are not present.
    """
    expected = input_names(fitted)
    if expected is not None:
        check_present(expected, present)
        return expected
    width = getattr(fitted, "n_features_in_", len(present))
    if width != len(present):
        raise InputError(
            f"X has {len(present)} columns, but this {type(fitted).__name__} was fitted on {width}, without "
            f"names. X has: {_listed(present)}. Select those of the training data, in its order."
        )
    return None


def check_present(wanted: Sequence[str], present: Sequence[Any], what: str = "X") -> None:
    """Check that columns are there.

    Raises
    ------
    InputError
        If some are not; the message names them, and what is there.
    """
    missing = [name for name in wanted if name not in present]
    if missing:
        raise InputError(
            f"{what} lacks {_listed(missing)}. The model takes: {_listed(wanted)}. "
            f"{what} has: {_listed(present)}. Add or rename what is missing; others are ignored."
        )


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(map(repr, names)) or "no columns"


def _check_shape(fitted: Estimator, X: Any) -> None:
    if X.ndim != 2:
        raise InputError(f"X has {X.ndim} dimensions; it must have 2: rows and columns. Reshape it first.")
    if math.isnan(X.shape[1]):
        raise InputError("X has an unknown number of columns. Build it with a known one.")
    _check_width(fitted, X.shape[1])


def _check_width(fitted: Estimator, n_columns: int) -> None:
    width = getattr(fitted, "n_features_in_", n_columns)
    if width != n_columns:
        raise InputError(
            f"X has {n_columns} columns, but this {type(fitted).__name__} was fitted on {width}. "
            "Give it the columns of the training data, in its order."
        )


def _held(applier: Applier) -> Delayed:
    """Put the model into the graph as one value, which travels to each worker once."""
    key = f"model-{tokenize(applier.fitted, applier.method, applier.columns, applier.meta)}"
    return Delayed(key, {key: DataNode(key, applier)})


def _call(block: Any, applier: Applier) -> Any:
    return applier(block)


def _map_frame(applier: Applier, X: dd.DataFrame) -> Any:
    if applier.columns is not None and tuple(X.columns) != applier.columns:
        X = X[list(applier.columns)]
    applier = replace(applier, meta=applier.empty(X._meta))
    return X.map_partitions(
        _call, _held(applier), meta=applier.meta, enforce_metadata=False, token=applier.method
    )


def _map_array(applier: Applier, X: da.Array) -> da.Array:
    if X.numblocks[1] > 1:
        X = X.rechunk({1: -1})
    meta = applier.empty(np.empty((0, X.shape[1]), dtype=X.dtype))
    applier = replace(applier, meta=meta)
    one_column = {"drop_axis": 1} if meta.ndim == 1 else {"chunks": (X.chunks[0], (meta.shape[1],))}
    return da.map_blocks(
        _call, X, applier=_held(applier), dtype=meta.dtype, meta=meta, token=applier.method, **one_column
    )
