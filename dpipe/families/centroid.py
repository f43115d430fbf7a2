"""NearestCentroid: one pass, from moments by class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.neighbors import NearestCentroid

from dpipe.blocks.regression import ClassMoments
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import refuse, stand_in
from dpipe.families.registry import Estimator, Meta, Way, add


def _check(estimator: Estimator) -> None:
    if estimator.metric != "euclidean":
        raise UnsupportedEstimatorError(
            f"NearestCentroid(metric={estimator.metric!r}) needs medians, and cannot be fitted block by block. "
            "Use metric='euclidean'."
        )


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    classes: ClassMoments = stats[0]
    labels = np.array(sorted(classes.by_class), dtype=classes.label_dtype)
    refuse.unlabelled(estimator, classes.n_unlabelled)
    if len(labels) < 2:
        raise InputError(f"NearestCentroid needs at least two classes, but y holds only {labels.tolist()}.")
    parts = [classes.by_class[label] for label in labels.tolist()]
    gaps = np.any([part.observed < part.n_rows for part in parts], axis=0)
    meta.refuse(gaps, "it holds NaN. Put a SimpleImputer before it, or drop those rows.")
    refuse.gaps(estimator, finite=refuse.is_finite(*(part.m2 for part in parts)))
    rows = np.array([part.n_rows for part in parts], dtype=np.float64)
    n, width = rows.sum(), len(parts[0].mean)
    X = stand_in.numeric(meta, width, parts[0].dtype, rows=2 * len(labels), sparse=parts[0].sparse)
    fitted = clone(estimator).fit(stand_in.spread(X), np.repeat(labels, 2))
    if estimator.priors == "empirical":
        fitted.class_prior_ = rows / n
    centroids = np.array([part.mean for part in parts])
    within = np.sqrt(sum(part.m2 for part in parts) / (n - len(labels)))
    middle = rows @ centroids / n
    spread = np.sqrt(1 / rows - 1 / n)[:, None] * (within + np.median(within))
    deviations = (centroids - middle) / spread
    if estimator.shrink_threshold:
        shrunk = np.clip(np.abs(deviations) - estimator.shrink_threshold, 0, None)
        deviations = np.sign(deviations) * shrunk
        centroids = middle + spread * deviations
    fitted.centroids_, fitted.deviations_, fitted.within_class_std_dev_ = centroids, deviations, within
    return fitted


add(
    NearestCentroid,
    Way("merge", _finish, lambda est: (ClassMoments,), check=_check, needs_y=True, exact="1e-9 relative"),
)
