"""Feature selection: VarianceThreshold, and the filters that score each feature against y, in one pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from sklearn.base import clone
from sklearn.feature_selection import (
    GenericUnivariateSelect,
    SelectFdr,
    SelectFpr,
    SelectFwe,
    SelectKBest,
    SelectPercentile,
    VarianceThreshold,
    chi2,
    f_classif,
    f_regression,
    r_regression,
)

from dpipe.blocks.regression import ClassMoments, ClassSums, CrossProducts, SumsByClass
from dpipe.blocks.statistics import Extremes, Moments
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import refuse, stand_in
from dpipe.families.registry import INFINITE, Estimator, Meta, Way, add

_NO_GAPS = "missing values cannot be scored. Put a SimpleImputer before it, or drop those rows."
Scores = tuple[np.ndarray, np.ndarray] | np.ndarray


def _finish_variance(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    moments: Moments = stats[0]
    meta.refuse(~np.isfinite(moments.mean), INFINITE)
    variances = np.where(moments.observed > 0, moments.variance, np.nan)
    if estimator.threshold == 0:
        # a constant column's variance can be a rounding error, its range cannot
        variances = np.fmin(variances, stats[1].high - stats[1].low)
    variances = variances.astype(moments.dtype)
    if np.all(~np.isfinite(variances) | (variances <= estimator.threshold)):
        raise InputError(
            f"VarianceThreshold(threshold={estimator.threshold}): no feature meets it; the largest variance is "
            f"{np.nanmax(variances):.3g}. Lower the threshold."
        )
    X = stand_in.numeric(meta, len(variances), moments.dtype, rows=2, sparse=moments.sparse)
    # on two rows a fit needs some variance to go through
    fitted = clone(estimator).set_params(threshold=0.0).fit(stand_in.spread(X))
    fitted.threshold = estimator.threshold
    fitted.variances_ = variances
    return fitted


def _score_classes(classes: ClassMoments) -> Scores:
    """One-way analysis of variance: F values and their p-values."""
    moments = list(classes.by_class.values())
    n_rows, n_classes = sum(part.n_rows for part in moments), len(moments)
    whole = moments[0]
    for part in moments[1:]:
        whole = whole.merge(part)
    within = sum(part.m2 for part in moments)
    between = sum(part.count * (part.mean - whole.mean) ** 2 for part in moments)
    with np.errstate(divide="ignore", invalid="ignore"):
        f = (between / (n_classes - 1)) / (within / (n_rows - n_classes))
    return f, scipy.stats.f.sf(f, n_classes - 1, n_rows - n_classes)


def _score_counts(sums: ClassSums) -> Scores:
    """Chi-squared statistics of observed sums against those expected of independent ones."""
    if sums.low < 0:
        raise InputError(
            f"chi2 needs values of at least 0, but the smallest is {sums.low:.6g}. Use f_classif, or a MinMaxScaler."
        )
    observed = np.array([total for _, total in sums.by_class.values()])
    weights = np.array([weight for weight, _ in sums.by_class.values()])
    expected = np.outer(weights / weights.sum(), observed.sum(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = ((observed - expected) ** 2 / expected).sum(axis=0)
    return statistic, scipy.stats.chi2.sf(statistic, len(weights) - 1)


def _correlations(products: CrossProducts) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = products.xy[:, 0] / np.sqrt(np.diag(products.xx) * products.yy[0, 0])
    return np.where(np.isfinite(found), found, 0.0)


def _score_regression(products: CrossProducts) -> Scores:
    """F values of the correlation with y, and their p-values."""
    squared = _correlations(products) ** 2
    freedom = products.n_rows - 2
    with np.errstate(divide="ignore"):
        f = squared / (1 - squared) * freedom
    f = np.where(np.isinf(f), np.finfo(f.dtype).max, f)
    return f, scipy.stats.f.sf(f, 1, freedom)


_SCORES: Mapping[Any, tuple[Any, Callable[[Any], Scores]]] = {
    f_classif: (ClassMoments, _score_classes),
    chi2: (SumsByClass(), _score_counts),
    f_regression: (CrossProducts, _score_regression),
    r_regression: (CrossProducts, _correlations),
}


def _check_scores(estimator: Estimator) -> None:
    if estimator.score_func not in _SCORES:
        name = getattr(estimator.score_func, "__name__", repr(estimator.score_func))
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__}(score_func={name}) cannot be fitted block by block. "
            "Use f_classif, chi2, f_regression or r_regression."
        )


def _finish_scores(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    dtype, width, sparse = _seen(stats[0])
    _refuse_gaps(estimator, stats[0], meta)
    scores = _SCORES[estimator.score_func][1](stats[0])
    X = stand_in.numeric(meta, width, dtype, rows=2, sparse=sparse)
    fitted = clone(estimator)
    fitted.score_func = lambda X, y: scores
    fitted.fit(X, [0, 1])
    fitted.score_func = estimator.score_func
    return fitted


def _refuse_gaps(estimator: Estimator, stat: Any, meta: Meta) -> None:
    if isinstance(stat, CrossProducts):
        refuse.gaps(estimator, finite=refuse.is_finite(stat.xx, stat.xy, stat.yy), what="X or y")
        return
    refuse.unlabelled(estimator, stat.n_unlabelled)
    if isinstance(stat, ClassSums):
        refuse.gaps(estimator, finite=stat.finite)
        return
    parts = stat.by_class.values()
    meta.refuse(np.any([part.observed < part.n_rows for part in parts], axis=0), _NO_GAPS)
    refuse.gaps(estimator, finite=refuse.is_finite(*(part.m2 for part in parts)))


def _seen(stat: Any) -> tuple[Any, int, bool]:
    if isinstance(stat, ClassMoments):
        first = next(iter(stat.by_class.values()))
        return first.dtype, len(first.mean), first.sparse
    if isinstance(stat, ClassSums):
        return stat.dtype, len(next(iter(stat.by_class.values()))[1]), stat.sparse
    return stat.dtype, len(stat.x_mean), stat.sparse


def _output(estimator: Estimator, meta: Meta) -> Meta:
    return Meta(n_columns=None, dtype=meta.dtype, sparse=meta.sparse, most_columns=meta.most_width)


add(
    VarianceThreshold,
    Way(
        "merge",
        _finish_variance,
        lambda est: (Moments, Extremes) if est.threshold == 0 else (Moments,),
        output=_output,
        exact="1e-9 relative",
    ),
)
for _filter in (SelectKBest, SelectPercentile, SelectFpr, SelectFdr, SelectFwe, GenericUnivariateSelect):
    add(
        _filter,
        Way(
            "merge",
            _finish_scores,
            lambda est: (_SCORES[est.score_func][0],),
            check=_check_scores,
            output=_output,
            needs_y=True,
            exact="1e-9 relative",
        ),
    )
