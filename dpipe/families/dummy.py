"""DummyClassifier and DummyRegressor: one pass, over y alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.dummy import DummyClassifier, DummyRegressor

from dpipe.blocks.statistics import LabelWeights, TargetMoments
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import refuse, stand_in
from dpipe.families.registry import Estimator, Meta, Way, add


def _finish_classifier(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    """Fit on one row a label, with the weight of all rows that have it."""
    labels: LabelWeights = stats[0]
    refuse.unlabelled(estimator, labels.n_missing)
    X = stand_in.numeric(meta, meta.width or 1, np.float64, rows=len(labels.classes))
    weights = np.array([labels.counts[label] for label in labels.classes.tolist()], dtype=np.float64)
    return clone(estimator).fit(X, labels.classes, sample_weight=weights)


def _check_regressor(estimator: Estimator) -> None:
    if estimator.strategy in ("median", "quantile"):
        raise UnsupportedEstimatorError(
            f"DummyRegressor(strategy={estimator.strategy!r}) cannot be fitted block by block. "
            "Use strategy='mean' or 'constant'."
        )


def _finish_regressor(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    moments: TargetMoments = stats[0]
    if not np.isfinite(moments.mean).all():
        raise InputError("DummyRegressor: y holds NaN or infinity. Drop those rows first.")
    X = stand_in.numeric(meta, meta.width or 1, np.float64)
    return clone(estimator).fit(X, moments.mean if moments.y_is_1d else moments.mean[None, :])


add(DummyClassifier, Way("merge", _finish_classifier, lambda est: (LabelWeights,), needs_y=True))
add(
    DummyRegressor,
    Way(
        "merge",
        _finish_regressor,
        lambda est: (TargetMoments,),
        check=_check_regressor,
        needs_y=True,
        exact="1e-9 relative",
    ),
)
