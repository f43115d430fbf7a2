"""Naive Bayes: one pass, from moments or sums by class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, ComplementNB, GaussianNB, MultinomialNB

from dpipe.blocks.regression import CategorySums, ClassMoments, ClassSums, SumsByClass
from dpipe.blocks.statistics import Moments
from dpipe.errors import InputError
from dpipe.families import refuse, stand_in
from dpipe.families.registry import Estimator, Meta, Way, add


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    classes: ClassMoments = stats[0]
    everything: Moments = stats[1]
    if (everything.observed < everything.n_rows).any():
        raise InputError("GaussianNB: X holds NaN. Put a SimpleImputer before it, or drop those rows.")
    refuse.unlabelled(estimator, classes.n_unlabelled)
    refuse.gaps(estimator, finite=refuse.is_finite(everything.m2))
    labels = np.array(sorted(classes.by_class), dtype=classes.label_dtype)
    by_class = [classes.by_class[label] for label in labels.tolist()]
    width = len(everything.mean)
    X = stand_in.numeric(meta, width, everything.dtype, rows=len(labels))
    fitted = clone(estimator).fit(X, labels)
    fitted.epsilon_ = fitted.var_smoothing * np.max(everything.variance)
    fitted.theta_ = np.array([moments.mean for moments in by_class])
    fitted.var_ = np.array([moments.variance for moments in by_class]) + fitted.epsilon_
    fitted.class_count_ = np.array([moments.count[0] for moments in by_class])
    if fitted.priors is None:
        fitted.class_prior_ = fitted.class_count_ / fitted.class_count_.sum()
    return fitted


# `epsilon_` is a share of the largest variance of X, which scikit-learn computes without weights
class _PlainMoments(Moments):
    @classmethod
    def of(cls, X: Any, y: Any = None, w: Any = None) -> "_PlainMoments":
        return super().of(X)


add(
    GaussianNB,
    Way("merge", _finish, lambda est: (ClassMoments, _PlainMoments), needs_y=True, exact="1e-9 relative"),
)


def _finish_counts(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    """Fit on one row a class, its mean, with the class's weight: the counts are the same."""
    sums: ClassSums = stats[0]
    refuse.unlabelled(estimator, sums.n_unlabelled)
    refuse.gaps(estimator, finite=sums.finite)
    if not isinstance(estimator, BernoulliNB) and sums.low < 0:
        raise InputError(
            f"{type(estimator).__name__} counts, but the smallest value of X is {sums.low:.6g}. Use GaussianNB, "
            "or a MinMaxScaler before it."
        )
    labels = np.array(sorted(sums.by_class), dtype=sums.label_dtype)
    weights = np.array([sums.by_class[label][0] for label in labels.tolist()])
    totals = np.array([sums.by_class[label][1] for label in labels.tolist()])
    means = totals / np.where(weights > 0, weights, 1.0)[:, None]
    X = stand_in.numeric(meta, means.shape[1], sums.dtype, rows=len(labels), sparse=sums.sparse)
    X = sp.csr_matrix(means) if sums.sparse else X + means if meta.frame is not None else means
    fitted = clone(estimator)
    if isinstance(estimator, BernoulliNB):
        fitted.binarize = None  # the means are of zeros and ones already
    fitted.fit(X, labels, sample_weight=weights)
    if isinstance(estimator, BernoulliNB):
        fitted.binarize = estimator.binarize
    fitted.feature_count_ = totals  # whole numbers, which the means may have lost in the last bit
    if isinstance(estimator, ComplementNB):
        fitted.feature_all_ = totals.sum(axis=0)
    return fitted


for _counting in (MultinomialNB, ComplementNB):
    add(_counting, Way("merge", _finish_counts, lambda est: (SumsByClass(),), needs_y=True))
add(
    BernoulliNB,
    Way("merge", _finish_counts, lambda est: (SumsByClass(est.binarize),), needs_y=True),
)


def _finish_categories(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    """Fit on one row a class, the first of them with the highest codes; then put the counts in."""
    sums: CategorySums = stats[0]
    refuse.unlabelled(estimator, sums.n_unlabelled)
    labels = np.array(sorted(sums.by_class), dtype=sums.label_dtype)
    parts = [sums.by_class[label] for label in labels.tolist()]
    highest = [max(map(len, columns)) - 1 for columns in zip(*(counts for _, counts in parts), strict=True)]
    X = stand_in.numeric(meta, len(highest), np.int64, rows=len(labels))
    X = X + np.where(np.arange(len(labels))[:, None] == 0, highest, 0)
    weights = np.array([weight for weight, _ in parts])
    fitted = clone(estimator).fit(X, labels, sample_weight=weights)
    fitted.category_count_ = [
        np.array([np.pad(counts[j], (0, n - len(counts[j]))) for _, counts in parts])
        for j, n in enumerate(fitted.n_categories_)
    ]
    alpha = estimator.alpha if estimator.force_alpha else np.maximum(estimator.alpha, 1e-10)
    smoothed = [counts + alpha for counts in fitted.category_count_]
    with np.errstate(divide="ignore"):
        fitted.feature_log_prob_ = [np.log(n) - np.log(n.sum(axis=1, keepdims=True)) for n in smoothed]
    return fitted


add(CategoricalNB, Way("merge", _finish_categories, lambda est: (CategorySums,), needs_y=True))
