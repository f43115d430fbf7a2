"""SimpleImputer (mean, most frequent, constant) and MissingIndicator: one pass."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.impute import MissingIndicator, SimpleImputer

from dpipe.blocks.ranks import Sample, Sampling
from dpipe.blocks.statistics import Extremes, Moments, Nonzeros, Observed, ValueCounts
from dpipe.blocks.table import Block, Categories, Codes, codes, n_columns, owned_numbers, to_pandas
from dpipe.errors import UnsupportedEstimatorError
from dpipe.families import quantile, stand_in
from dpipe.families.registry import (
    INFINITE,
    Derivation,
    Estimator,
    Meta,
    Refinement,
    Rounds,
    Way,
    add,
    unchanged,
)

#: Strategies that fill numbers into numbers.
_NUMERIC = ("mean", "median")


def _check(estimator: Estimator) -> None:
    if callable(estimator.strategy):
        raise UnsupportedEstimatorError(
            "SimpleImputer(strategy=<function>) cannot be fitted block by block: the function wants all values at "
            "once. Use strategy='mean', 'median', 'most_frequent' or 'constant'."
        )
    _check_marker(estimator)


def _check_marker(estimator: Estimator) -> None:
    if not (pd.api.types.is_scalar(estimator.missing_values) and pd.isna(estimator.missing_values)):
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__}(missing_values={estimator.missing_values!r}) is not supported: only missing "
            "values (NaN, None, nulls) are found. Replace the marker with NaN before the fit."
        )


def _wants(estimator: Estimator) -> tuple[Any, ...]:
    if estimator.strategy == "mean":
        return (Moments,)
    if estimator.strategy == "most_frequent":
        return (ValueCounts,)
    # scikit-learn drops a column in which nothing was observed, so that must be known
    return () if estimator.keep_empty_features and not estimator.add_indicator else (Observed,)


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    if estimator.strategy == "mean":
        moments: Moments = stats[0]
        meta.refuse(~np.isfinite(moments.mean), INFINITE)
        return _filling(estimator, meta, moments, moments.mean)
    if estimator.strategy == "most_frequent":
        return _finish_most_frequent(estimator, stats[0], meta)
    if stats:
        _refuse_empty(estimator, meta, stats[0].observed)
    width = len(stats[0].observed) if stats else meta.width or 1
    X = stand_in.one_row(meta, width)
    if stats and estimator.add_indicator:
        both = pd.concat([X, X], ignore_index=True) if meta.frame is not None else _twice(X)
        return clone(estimator).fit(_with_gaps(both, estimator, stats[0]))
    return clone(estimator).fit(X)


def _filling(estimator: Estimator, meta: Meta, seen: Moments | Sample, fill: np.ndarray) -> Estimator:
    """Give an imputer that fills numbers of its own choice into each column."""
    _refuse_empty(estimator, meta, seen.observed)
    X = stand_in.numeric(meta, len(fill), seen.dtype, rows=2, sparse=seen.sparse)
    fitted = clone(estimator).fit(_with_gaps(X, estimator, seen))
    fitted.statistics_ = np.where(seen.observed > 0, fill, 0.0).astype(fitted.statistics_.dtype)
    return fitted


def _refine_median(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    found, sample = yield from quantile.quantiles(stats[0], [quantile.MEDIAN])
    quantile.check_sample(estimator, sample, meta)
    return _filling(estimator, meta, sample, found[0])


def _twice(X: Any) -> Any:
    return sp.vstack([X, X], format="csr") if sp.issparse(X) else np.repeat(X, 2, axis=0)


def _with_gaps(X: Any, estimator: Estimator, seen: Moments | Observed | Sample) -> Any:
    """Take a value out of each column in which one was missing, if the estimator marks such columns."""
    if isinstance(estimator, SimpleImputer) and not estimator.add_indicator:
        return X
    missing = np.flatnonzero(np.asarray(seen.observed) < seen.n_rows)
    if not len(missing):
        return X
    if sp.issparse(X):
        dense = X.toarray().astype(np.float64)
        dense[0, missing] = np.nan
        return sp.csr_matrix(dense)
    if isinstance(X, pd.DataFrame):
        gaps = np.zeros(X.shape, dtype=bool)
        gaps[0, missing] = True
        return X.mask(gaps)
    X = X.astype(np.float64) if X.dtype.kind in "iub" else X.copy()
    X[0, missing] = np.nan
    return X


def _finish_indicator(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    seen: Observed = stats[0]
    # what is not stored in a sparse matrix is not missing
    X = stand_in.numeric(meta, len(seen.observed), np.float64, rows=2, sparse=meta.sparse)
    return clone(estimator).fit(_with_gaps(X, estimator, seen))


def _finish_most_frequent(estimator: Estimator, counts: ValueCounts, meta: Meta) -> Estimator:
    counts = _marked_only(estimator, counts)
    _refuse_empty(estimator, meta, np.array([sum(column.values()) for column in counts.counts]))
    modes = [_mode(column) for column in counts.counts]
    gaps = tuple(min(n, 1) if estimator.add_indicator else 0 for n in counts.n_missing)
    only = replace(counts, counts=tuple({mode: 1} for mode in modes), n_missing=gaps)
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
    if fitted.add_indicator:
        return _transform_indicator(fitted, block)
    if sp.issparse(block):
        return fitted.transform(block).tocsr()
    if fitted.statistics_.dtype.kind == "O" and not _numeric(block):
        return _filled_categories(fitted, block)
    if fitted.strategy not in _NUMERIC and _whole(block):
        return np.asarray(to_pandas(block), order="F")
    out = owned_numbers(block)
    for j in range(out.shape[1]):
        column = out[:, j]
        column[np.flatnonzero(np.isnan(column))] = fitted.statistics_[j]
    return out


def _transform_indicator(fitted: Estimator, block: Block) -> Block:
    found = fitted.transform(to_pandas(block))
    return found.tocsr() if sp.issparse(found) else found


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
    if estimator.add_indicator:
        return Meta(n_columns=None, dtype=meta.dtype, sparse=meta.sparse)
    if meta.frame is None:
        return Meta(n_columns=meta.n_columns, dtype=meta.dtype, sparse=meta.sparse)
    text = estimator.strategy not in _NUMERIC and not all(
        pd.api.types.is_numeric_dtype(dtype) for dtype in meta.frame.dtypes
    )
    return Meta(n_columns=meta.width, dtype=np.dtype(object) if text else np.dtype("float64"))


def _moments_rule(estimator: Estimator) -> Derivation | None:
    if estimator.add_indicator:
        return None
    return Derivation(Moments, _imputed_moments, "imputed values add a known count at a known value")


def _extremes_rule(estimator: Estimator) -> Derivation | None:
    if estimator.add_indicator:
        return None
    return Derivation(Extremes, _imputed_extremes, "imputed values add one known value")


def _counts_rule(estimator: Estimator) -> Derivation | None:
    if estimator.add_indicator:
        return None
    return Derivation(ValueCounts, _imputed_counts, "imputed values add a known count at a known value")


def _nonzeros_rule(estimator: Estimator) -> Derivation | None:
    if estimator.add_indicator:
        return None
    return Derivation(Nonzeros, unchanged, "imputing keeps what is stored")


_IN_ONE_PASS = Way(
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
    # the other strategies may give integers or categories
    by_rows=lambda est: est.strategy in _NUMERIC and not est.add_indicator,
)
_MEDIAN = replace(
    _IN_ONE_PASS,
    kind="refine",
    wants=lambda est: (Sampling(),),
    refine=_refine_median,
    rounds=lambda est: Rounds(1, "values near the medians", least=0),
)
add(
    SimpleImputer,
    replace(_IN_ONE_PASS, variant=lambda est: _MEDIAN if est.strategy == "median" else None),
)
add(
    MissingIndicator,
    Way(
        "merge",
        _finish_indicator,
        lambda est: (Observed,),
        _transform_indicator,
        check=_check_marker,
        output=lambda est, meta: Meta(n_columns=None, dtype=np.dtype(bool), sparse=est.sparse is True),
    ),
)
