"""Predict one block with a fitted tree: its transformers by their kernels, the rest by their own methods.

The tree is plain scikit-learn, fitted by dpipe or by anyone else. What comes out is what its own
method would give for the same rows as a frame; it only takes less time on Arrow blocks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion, Pipeline

from dpipe.blocks.matrix import OneHot, hstack, is_sparse, learner_matrix, to_matrix
from dpipe.blocks.table import Block, n_columns, n_rows, one_column, select
from dpipe.blocks.threads import single_threaded_blas
from dpipe.errors import DpipeError, InputError
from dpipe.families import catalog
from dpipe.families.registry import Estimator, Meta, registered
from dpipe.families.selectors import resolve_columns

assert catalog.FAMILIES, "the families register themselves when they are imported"


def predict_block(fitted: Estimator, block: Block, method: str) -> Any:
    """Call a method of a fitted estimator on one block.

    Parameters
    ----------
    fitted : scikit-learn estimator or pipeline
        It is not changed.
    block : table, frame, array or CSR matrix of shape (n_rows, n_features)
        With at least one row.
    method : str
        "predict", "predict_proba", "decision_function", "transform" ...

    Returns
    -------
    numpy.ndarray
        As ``getattr(fitted, method)(frame)`` would give; for "transform" also a CSR matrix or a frame.

    Raises
    ------
    InputError
        If the block lacks a column.
    ValueError
        As the estimator's own method does.

    Examples
    --------
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> frame = pd.DataFrame({"a": [1.0, 2.0, 3.0]})
    >>> model = make_pipeline(StandardScaler(), LinearRegression()).fit(frame, [2.0, 4.0, 6.0])
    >>> predict_block(model, pa.table({"a": [5.0]}), "predict").round(6).tolist()
    [10.0]
    """
    return predictions(fitted, block, [method])[method]


def predictions(fitted: Estimator, block: Block, methods: Sequence[str]) -> dict[str, Any]:
    """Call several methods of a fitted estimator on one block, which is transformed once."""
    if "transform" in methods:
        return {method: to_matrix(transformed(fitted, block)) for method in methods}
    last, value = fitted, _in_its_dimensions(fitted, block)
    while type(last) is Pipeline and _is_plain(last):
        for _, step in last.steps[:-1]:
            value = transformed(step, value)
        last = last.steps[-1][1]
    matrix = _accepted(last, learner_matrix(value))
    # were each block's product spread over several threads, its last bits would depend on their number
    with single_threaded_blas():
        return {method: getattr(last, method)(matrix) for method in methods}


def input_names(fitted: Estimator) -> tuple[str, ...] | None:
    """Name the columns that a fitted estimator reads, in its own order.

    Columns that a ColumnTransformer at its entrance drops are left out.

    Returns
    -------
    tuple of str or None
        None if it was not fitted on a frame.
    """
    names = getattr(fitted, "feature_names_in_", None)
    if names is None:
        return None
    first = fitted
    while type(first) is Pipeline:
        first = first.steps[0][1]
    if type(first) is not ColumnTransformer:
        return tuple(names)
    seen = Meta(frame=pd.DataFrame(columns=first.feature_names_in_))
    parts = [columns for _, part, columns in first.transformers_ if not _is(part, "drop")]
    used = {j for columns in parts for j in resolve_columns(columns, seen, "ColumnTransformer")}
    return tuple(first.feature_names_in_[sorted(used)])


def final_estimator(fitted: Estimator) -> Estimator:
    """Give the last estimator of nested pipelines."""
    while isinstance(fitted, Pipeline):
        fitted = fitted.steps[-1][1]
    return fitted


def transformed(fitted: Estimator, value: Block) -> Block:
    """Transform one block with a fitted tree."""
    if fitted is None or _is(fitted, "passthrough"):
        return value
    value = _in_its_dimensions(fitted, value)
    if not _is_plain(fitted):
        return fitted.transform(_accepted(fitted, to_matrix(value)))
    if type(fitted) is Pipeline:
        for _, step in fitted.steps:
            value = transformed(step, value)
        return value
    if type(fitted) is ColumnTransformer and not fitted.transformer_weights:
        return _transformed_columns(fitted, value)
    if type(fitted) is FeatureUnion and not fitted.transformer_weights:
        kept = [part for _, part in fitted.transformer_list if not _is(part, "drop")]
        return _stacked([transformed(part, value) for part in kept], value, None)
    kernel = _kernel(fitted)
    if kernel is not None:
        try:
            return kernel(fitted, value)
        except (ValueError, TypeError):
            if _takes_one_dimension(fitted):
                raise  # it is scikit-learn that has read the documents
            # a kernel may refuse more than scikit-learn, such as an unknown category that a categorical
            # column lists but no row has: scikit-learn has the last word, or gives its own error
            pass
    return fitted.transform(_accepted(fitted, to_matrix(value)))


def _in_its_dimensions(fitted: Estimator, value: Block) -> Block:
    """Give one column as one dimension to what takes documents or records: it would read a table's names."""
    if getattr(value, "ndim", 2) == 1 or not _takes_one_dimension(fitted):
        return value
    if n_columns(value) != 1:
        raise InputError(
            f"{type(fitted).__name__} takes one column, but X has {n_columns(value)}. Select the one it was fitted on."
        )
    return one_column(value)


def _takes_one_dimension(fitted: Estimator) -> bool:
    if isinstance(fitted, Pipeline | FeatureUnion):
        parts = _parts(fitted)
        return any(map(_takes_one_dimension, parts[:1] if isinstance(fitted, Pipeline) else parts))
    way = registered().get(type(fitted))
    return way is not None and way.one_dimensional


def _transformed_columns(fitted: ColumnTransformer, value: Block) -> Block:
    value = to_matrix(value) if isinstance(value, OneHot) else value
    parts = []
    for name, part, columns in fitted.transformers_:
        if _is(part, "drop"):
            continue
        positions = _positions(fitted, columns, value, name)
        if not positions:
            continue
        chosen = select(value, positions)
        parts.append(transformed(part, one_column(chosen) if np.isscalar(columns) else chosen))
    return _stacked(parts, value, getattr(fitted, "sparse_output_", None))


def _stacked(parts: Sequence[Block], value: Block, sparse: bool | None) -> Block:
    if not parts:
        return np.zeros((n_rows(value), 0))
    return hstack(parts, sparse=any(map(is_sparse, parts)) if sparse is None else sparse)


def _positions(fitted: ColumnTransformer, columns: Any, value: Block, where: str) -> tuple[int, ...]:
    """Find the columns of one part in a block, by their names where both sides have names."""
    seen = getattr(fitted, "feature_names_in_", None)
    if seen is None:
        return resolve_columns(columns, Meta(n_columns=fitted.n_features_in_), where)
    positions = resolve_columns(columns, Meta(frame=pd.DataFrame(columns=seen)), where)
    names = _names(value)
    if names is None:
        return positions
    missing = [seen[j] for j in positions if seen[j] not in names]
    if missing:
        raise InputError(
            f"{where}: there is no column {', '.join(map(repr, missing))} in the block. "
            f"It has: {', '.join(map(repr, names))}. Give the columns that the model was fitted on."
        )
    return tuple(names.index(seen[j]) for j in positions)


def _names(value: Block) -> list[Any] | None:
    if isinstance(value, pa.Table):
        return list(value.column_names)
    return list(value.columns) if isinstance(value, pd.DataFrame) else None


def _kernel(fitted: Estimator) -> Callable[[Estimator, Block], Block] | None:
    """Give the registered kernel of a transformer, if it knows all of the transformer's parameters."""
    way = registered().get(type(fitted))
    if way is None or way.transform is None:
        return None
    try:
        way.check(fitted)
    except DpipeError:
        return None
    if isinstance(fitted, SimpleImputer) and pd.isna(fitted.statistics_).any():
        return None  # it drops the columns in which it has observed nothing
    return way.transform


def _accepted(fitted: Estimator, matrix: Any) -> Any:
    """Take the names off a frame where an estimator was fitted without names, and would warn of them."""
    named = isinstance(matrix, pd.DataFrame) and all(isinstance(name, str) for name in matrix.columns)
    # other estimators than scikit-learn's may take frames and not record that they do
    validated = hasattr(fitted, "n_features_in_") and not hasattr(fitted, "feature_names_in_")
    return matrix.to_numpy() if named and validated else matrix


def _is(part: Any, word: str) -> bool:
    return isinstance(part, str) and part == word


def _is_plain(fitted: Estimator) -> bool:
    """Tell whether a tree gives arrays throughout: no part of it was told to give frames."""
    config = getattr(fitted, "_sklearn_output_config", {}).get("transform", "default")
    return config in (None, "default") and all(map(_is_plain, _parts(fitted)))


def _parts(fitted: Estimator) -> list[Any]:
    if isinstance(fitted, Pipeline):
        return [step for _, step in fitted.steps]
    if isinstance(fitted, ColumnTransformer):
        return [part for _, part, _ in fitted.transformers_]
    return [part for _, part in fitted.transformer_list] if isinstance(fitted, FeatureUnion) else []
