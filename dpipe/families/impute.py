"""SimpleImputer: mean, most frequent and constant, in one pass."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.impute import SimpleImputer

from dpipe.blocks.statistics import Extremes, Moments, Nonzeros, Observed, ValueCounts
from dpipe.blocks.table import Block, Categories, Codes, codes, n_columns, owned_numbers, to_pandas
from dpipe.errors import UnsupportedEstimatorError
from dpipe.families import stand_in
from dpipe.families.registry import INFINITE, Derivation, Estimator, Meta, Way, add, unchanged


def _check(estimator: Estimator) -> None:
    if estimator.strategy not in ("mean", "most_frequent", "constant"):
        raise UnsupportedEstimatorError(
            f"SimpleImputer(strategy={estimator.strategy!r}) cannot be fitted block by block. "
            "Use strategy='mean', 'most_frequent' or 'constant'."
        )
    if estimator.add_indicator:
        raise UnsupportedEstimatorError(
            "SimpleImputer(add_indicator=True) cannot be fitted block by block. Use add_indicator=False."
        )
    if not (pd.api.types.is_scalar(estimator.missing_values) and pd.isna(estimator.missing_values)):
        raise UnsupportedEstimatorError(
            f"SimpleImputer(missing_values={estimator.missing_values!r}) is not supported: only missing "
            "values (NaN, None, nulls) are imputed. Replace the marker with NaN before the fit."
        )


def _wants(estimator: Estimator) -> tuple[Any, ...]:
    if estimator.strategy == "mean":
        return (Moments,)
    if estimator.strategy == "most_frequent":
        return (ValueCounts,)
    # scikit-learn drops a column in which nothing was observed, so that must be known
    return () if estimator.keep_empty_features else (Observed,)


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    if estimator.strategy == "mean":
        moments: Moments = stats[0]
        _refuse_empty(estimator, meta, moments.observed)
        meta.refuse(~np.isfinite(moments.mean), INFINITE)
        width = len(moments.mean)
        fitted = stand_in.fitted_on_zeros(estimator, meta, width, moments.dtype, sparse=moments.sparse)
        fitted.statistics_ = moments.mean.astype(fitted.statistics_.dtype)
        return fitted
    if estimator.strategy == "most_frequent":
        return _finish_most_frequent(estimator, stats[0], meta)
    if stats:
        _refuse_empty(estimator, meta, stats[0].observed)
    width = len(stats[0].observed) if stats else meta.width or 1
    return clone(estimator).fit(stand_in.one_row(meta, width))


def _finish_most_frequent(estimator: Estimator, counts: ValueCounts, meta: Meta) -> Estimator:
    counts = _marked_only(estimator, counts)
    _refuse_empty(estimator, meta, np.array([sum(column.values()) for column in counts.counts]))
    modes = [_mode(column) for column in counts.counts]
    only = replace(counts, counts=tuple({mode: 1} for mode in modes), n_missing=(0,) * len(modes))
    return clone(estimator).fit(stand_in.of_values(only, meta))


def _mode(counts: dict[Any, int]) -> Any:
    """Give the most frequent value; of several the smallest, in scikit-learn's order."""
    most = max(counts.values(), default=0)
    tied = [value for value, count in counts.items() if count == most]
    try:
        return min(tied, default=0)
    except TypeError:
        return min(tied, key=lambda value: (str(type(value)), str(value)))


def _is_marker(estimator: Estimator, missing: Any) -> bool:
    """Tell whether an imputer fills what a column marks as missing: None is a value unless it is asked for."""
    return missing is not None or estimator.missing_values is None or estimator.missing_values is pd.NA


def _marked_only(estimator: Estimator, counts: ValueCounts) -> ValueCounts:
    """Count None as any other value if the imputer does not fill it."""
    filled = [_is_marker(estimator, missing) for missing in counts.missing]
    pairs = list(zip(counts.counts, counts.n_missing, filled, strict=True))
    return replace(
        counts,
        counts=tuple(found if fills or not n else {**found, None: n} for found, n, fills in pairs),
        n_missing=tuple(n if fills else 0 for _, n, fills in pairs),
    )


def _refuse_empty(estimator: Estimator, meta: Meta, observed: np.ndarray) -> None:
    if not estimator.keep_empty_features:
        meta.refuse(
            np.asarray(observed) == 0,
            f"nothing was observed there, and SimpleImputer(strategy={estimator.strategy!r}) has nothing to fill it "
            "with. Leave the column out, or keep it as a constant with keep_empty_features=True.",
        )


def _transform(fitted: Estimator, block: Block) -> Block:
    if sp.issparse(block):
        return fitted.transform(block).tocsr()
    if fitted.statistics_.dtype.kind == "O" and not _numeric(block):
        return _filled_categories(fitted, block)
    if fitted.strategy != "mean" and _whole(block):
        return np.asarray(to_pandas(block), order="F")
    out = owned_numbers(block)
    for j in range(out.shape[1]):
        column = out[:, j]
        column[np.flatnonzero(np.isnan(column))] = fitted.statistics_[j]
    return out


def _numeric(block: Block) -> bool:
    if isinstance(block, pa.Table):
        return all(pa.types.is_primitive(kind) for kind in block.schema.types)
    if isinstance(block, pd.DataFrame):
        return all(pd.api.types.is_numeric_dtype(dtype) for dtype in block.dtypes)
    dtypes = [column.dtype for column in block.columns] if isinstance(block, Categories) else [block.dtype]
    return all(dtype.kind != "O" for dtype in dtypes)


def _whole(block: Block) -> bool:
    """Tell whether all columns are of integers that cannot be missing: those keep their type."""
    if isinstance(block, pa.Table):
        return all(pa.types.is_integer(column.type) and not column.null_count for column in block.columns)
    if isinstance(block, pd.DataFrame):
        return all(isinstance(dtype, np.dtype) and dtype.kind in "iu" for dtype in block.dtypes)
    return isinstance(block, np.ndarray) and block.dtype.kind in "iu"


def _filled_categories(fitted: Estimator, block: Block) -> Categories:
    filled = []
    for j in range(n_columns(block)):
        column = codes(block, j)
        found, values = column.codes, column.values
        missing = found < 0
        if missing.any() and _is_marker(fitted, column.missing):
            fill = fitted.statistics_[j]
            if fill not in values:
                values = [*values, fill]
            found = np.where(missing, np.int32(values.index(fill)), found.astype(np.int32))
        filled.append(Codes(found, values, np.dtype(object), column.missing))
    return Categories(tuple(filled))


def _imputed_moments(fitted: Estimator, moments: Moments) -> Moments:
    """Join the observed values with as many copies of the fill value as there were gaps."""
    gaps = (moments.n_rows - moments.observed).astype(np.float64)
    k = len(gaps)
    fill = Moments(
        0,
        gaps,
        gaps.astype(np.int64),
        np.asarray(fitted.statistics_, dtype=np.float64),
        np.zeros(k),
        moments.dtype,
    )
    return moments.merge(fill)


def _imputed_extremes(fitted: Estimator, extremes: Extremes) -> Extremes:
    fill = np.asarray(fitted.statistics_, dtype=extremes.low.dtype)
    fill = np.where(extremes.observed < extremes.n_rows, fill, np.nan).astype(extremes.low.dtype)
    gaps = extremes.n_rows - extremes.observed
    return extremes.merge(Extremes(0, gaps, fill, fill))


def _imputed_counts(fitted: Estimator, counts: ValueCounts) -> ValueCounts:
    counts = _marked_only(fitted, counts)
    filled = []
    for column, gaps, fill in zip(counts.counts, counts.n_missing, fitted.statistics_, strict=True):
        value = fill.item() if isinstance(fill, np.generic) else fill
        filled.append({**column, value: column.get(value, 0) + gaps} if gaps else column)
    dtype = np.result_type(*counts.dtypes)
    return ValueCounts(
        counts.n_rows, tuple(filled), (0,) * len(filled), counts.missing, (dtype,) * len(filled)
    )


def _output(estimator: Estimator, meta: Meta) -> Meta:
    if meta.frame is None:
        return Meta(n_columns=meta.n_columns, dtype=meta.dtype, sparse=meta.sparse)
    text = estimator.strategy != "mean" and not all(
        pd.api.types.is_numeric_dtype(dtype) for dtype in meta.frame.dtypes
    )
    return Meta(n_columns=meta.width, dtype=np.dtype(object) if text else np.dtype("float64"))


def _moments_rule(estimator: Estimator) -> Derivation | None:
    return Derivation(Moments, _imputed_moments, "imputed values add a known count at a known value")


def _extremes_rule(estimator: Estimator) -> Derivation | None:
    return Derivation(Extremes, _imputed_extremes, "imputed values add one known value")


def _counts_rule(estimator: Estimator) -> Derivation | None:
    return Derivation(ValueCounts, _imputed_counts, "imputed values add a known count at a known value")


def _nonzeros_rule(estimator: Estimator) -> Derivation | None:
    return Derivation(Nonzeros, unchanged, "imputing keeps what is stored")


add(
    SimpleImputer,
    Way(
        "merge",
        _finish,
        _wants,
        _transform,
        {
            Moments: _moments_rule,
            Extremes: _extremes_rule,
            ValueCounts: _counts_rule,
            Nonzeros: _nonzeros_rule,
        },
        _check,
        _output,
        exact="1e-9 relative (mean), exact (others)",
        by_rows=lambda est: est.strategy == "mean",  # the others may give integers or categories
    ),
)
