"""What a method of a fitted estimator gives for a block: its kind, its names, its types.

The empty result, Dask's `meta`, is found by applying the estimator to a made-up row or two, in this
process: no data is read for it.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from dask.dataframe.utils import meta_nonempty
from dask.delayed import Delayed
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.utils.validation import check_is_fitted

from dpipe.blocks.table import Block, n_rows
from dpipe.errors import DpipeError, InputError
from dpipe.families.fitted import final_estimator, predict_block
from dpipe.families.registry import Estimator

#: Methods that take rows and give as many.
METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function", "score_samples", "transform")


def check_applicable(fitted: Estimator, method: str) -> None:
    """Check that an estimator is fitted and has a method.

    Raises
    ------
    InputError
        If it is not; the message names the methods that it has.
    """
    name = type(fitted).__name__
    if isinstance(fitted, Delayed):
        raise InputError("The estimator is a Delayed: what it will give is unknown. Pass fitted.compute().")
    if isinstance(fitted, type) or not any(hasattr(fitted, other) for other in METHODS):
        raise InputError(f"{fitted!r} is not a fitted estimator. Pass what dpipe.fit or estimator.fit gave.")
    try:
        check_is_fitted(fitted)
    except NotFittedError as err:
        raise InputError(
            f"This {name} is not fitted. Fit it first, as by dpipe.fit(estimator, X, y)."
        ) from err
    except TypeError:
        pass  # not a scikit-learn estimator: nothing tells whether it is fitted
    has = [other for other in METHODS if hasattr(fitted, other)]
    if method not in has:
        raise InputError(f"This {name} has no method {method!r}. It has: {', '.join(has)}.")


def apply_block(fitted: Estimator, block: Block, method: str) -> Any:
    """Apply a fitted estimator to a block that has rows; give as many rows.

    Raises
    ------
    DpipeError
        If it gives another number of rows.
    """
    values = predict_block(fitted, block, method)
    if isinstance(values, list):
        raise InputError(
            f"{type(fitted).__name__}.{method} gives a list of {len(values)} arrays, one for each target. "
            "Apply an estimator of one target."
        )
    n, given = n_rows(block), values.shape[0]
    if given != n:
        raise DpipeError(
            f"{type(fitted).__name__}.{method} gave {given:,} rows for {n:,}. Rows must be kept: drop them "
            "from the data beforehand, not in a transformer."
        )
    return values


def column_names(fitted: Estimator, method: str, width: int) -> list[str]:
    """Name the columns of a two-dimensional result: classes, or scikit-learn's names of features."""
    if method == "transform":
        try:
            names = [str(name) for name in fitted.get_feature_names_out()]
        except (AttributeError, ValueError, NotFittedError):
            names = []
        return names if len(names) == width else [f"x{j}" for j in range(width)]
    classes = getattr(fitted, "classes_", ())
    if method != "predict" and len(classes) == width:
        return [str(label) for label in classes]
    return [str(j) for j in range(width)]


def shaped(values: Any, fitted: Estimator, method: str, index: pd.Index | None) -> Any:
    """Give values the kind of their input.

    Parameters
    ----------
    values : array, sparse matrix or frame of n rows
    index : pandas.Index of length n, optional
        Of the frame that the values were made from; None for an array.

    Returns
    -------
    pandas.Series, pandas.DataFrame, numpy.ndarray or scipy.sparse.csr_matrix
    """
    if sp.issparse(values):
        return values.tocsr()
    if index is None:
        return np.asarray(values)
    if isinstance(values, pd.DataFrame):
        return values.set_axis(index, axis="index")
    values = np.asarray(values)
    if values.ndim == 1:
        return pd.Series(values, index=index, name="prediction" if method == "predict" else method)
    names = column_names(fitted, method, values.shape[1])
    return pd.DataFrame(values, index=index, columns=names, copy=False)


def conformed(result: Any, meta: Any) -> Any:
    """Give a block's result the types of the meta, where no value can change by more than rounding."""
    if isinstance(result, pd.DataFrame):
        wanted = {
            name: dtype
            for name, dtype in meta.dtypes.items()
            if name in result and _casts(result[name].dtype, dtype)
        }
        return result.astype(wanted) if wanted else result
    return result.astype(meta.dtype) if _casts(result.dtype, meta.dtype) else result


def _casts(found: Any, wanted: Any) -> bool:
    plain = isinstance(found, np.dtype) and isinstance(wanted, np.dtype)
    return plain and found != wanted and np.can_cast(found, wanted, "same_kind")


def empty_result(fitted: Estimator, method: str, X: Any) -> Any:
    """Find what a method gives for no rows.

    Parameters
    ----------
    fitted : estimator
    method : str
    X : pandas.DataFrame or numpy.ndarray of shape (0, n_features)

    Returns
    -------
    pandas.Series, pandas.DataFrame, numpy.ndarray or scipy.sparse.csr_matrix
        Of no rows.

    Raises
    ------
    InputError
        If neither the estimator nor its last step can be applied to made-up rows.
    """
    rows = _made_up(fitted, X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            values = apply_block(fitted, rows, method)
        except DpipeError:
            raise
        except Exception as err:
            values = _without_rows(fitted, method, rows, err)
    index = rows.index if isinstance(rows, pd.DataFrame) else None
    result = shaped(values, fitted, method, index)
    return result.iloc[:0] if index is not None and not sp.issparse(result) else result[:0]


def _without_rows(fitted: Estimator, method: str, rows: Any, err: Exception) -> Any:
    """Made-up values do not do (a category is unknown, say): ask the last step, which takes numbers."""
    n = len(rows)
    try:
        if method == "transform":
            return np.zeros((n, len(fitted.get_feature_names_out())))
        last = final_estimator(fitted)
        return apply_block(last, np.zeros((n, last.n_features_in_)), method)
    except Exception:
        raise InputError(
            f"What {type(fitted).__name__}.{method} gives for X cannot be found, as made-up rows fail: "
            f"{type(err).__name__}: {err} Check that X has the columns and types of the training data."
        ) from err


def _made_up(fitted: Estimator, X: Any) -> Any:
    """Make up some rows; where the estimator knows the categories of a column, one of those."""
    if not isinstance(X, pd.DataFrame):
        return np.zeros((1, X.shape[1]), dtype=X.dtype)
    rows = meta_nonempty(X).iloc[:1]  # the next one holds missing values
    known = known_categories(fitted, list(X.columns))
    for name, value in known.items():
        if name in rows and not isinstance(rows[name].dtype, pd.CategoricalDtype):
            rows[name] = pd.Series([value] * len(rows), index=rows.index).astype(rows[name].dtype)
    return rows


def known_categories(fitted: Estimator, names: Sequence[Any]) -> Mapping[Any, Any]:
    """Find a category of each encoded column that the estimator has seen."""
    if isinstance(fitted, Pipeline):
        parts = [(step, names) for _, step in fitted.steps]
    elif isinstance(fitted, FeatureUnion):
        parts = [(part, names) for _, part in fitted.transformer_list]
    elif isinstance(fitted, ColumnTransformer):
        parts = [(part, [cols] if isinstance(cols, str) else cols) for _, part, cols in fitted.transformers_]
    else:
        categories = getattr(fitted, "categories_", ())
        if not isinstance(names, list) or len(categories) != len(names):
            return {}
        return {name: values[0] for name, values in zip(names, categories, strict=True) if len(values)}
    found: dict[Any, Any] = {}
    for part, part_names in parts:
        found = {**known_categories(part, part_names), **found}
    return found
