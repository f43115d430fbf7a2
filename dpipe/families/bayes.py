"""GaussianNB: one pass, from moments by class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.naive_bayes import GaussianNB

from dpipe.blocks.regression import ClassMoments
from dpipe.blocks.statistics import Moments
from dpipe.errors import InputError
from dpipe.families import stand_in
from dpipe.families.registry import Estimator, Meta, Way, add


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    classes: ClassMoments = stats[0]
    everything: Moments = stats[1]
    if (everything.observed < everything.n_rows).any():
        raise InputError("GaussianNB: X holds NaN. Put a SimpleImputer before it, or drop those rows.")
    n_labels = sum(moments.n_rows for moments in classes.by_class.values())
    if n_labels < everything.n_rows:
        raise InputError(
            f"GaussianNB: {everything.n_rows - n_labels:,} labels are missing in y. Drop those rows first."
        )
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
