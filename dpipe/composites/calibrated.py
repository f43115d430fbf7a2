"""CalibratedClassifierCV: classifiers on each fold's rows, then the readings that its calibrators ask for."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV, _CalibratedClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.svm import LinearSVC
from sklearn.utils.validation import has_fit_parameter

from dpipe.blocks.statistics import LabelCounts
from dpipe.composites.folds import check_folds, folds_of, outside
from dpipe.composites.inside import check_parts, fit_inside, rounds_of
from dpipe.composites.isotonic import fit_isotonics
from dpipe.composites.platt import fit_sigmoids
from dpipe.composites.scores import Scores, ScoresOf
from dpipe.composites.several import classes_of, with_names
from dpipe.composites.temperature import fit_temperature
from dpipe.composites.views import Encoded, InFold
from dpipe.families.asking import Asking, together
from dpipe.families.registry import Estimator, Meta, Refinement, Rounds, add, refined


def _classifier(estimator: Estimator) -> Estimator:
    return LinearSVC(random_state=0) if estimator.estimator is None else clone(estimator.estimator)


def _refine(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    classes = classes_of(estimator, stats[0])
    own = classes[1:] if len(classes) == 2 else classes
    folds, n_splits = yield from folds_of(estimator, classifies=True)
    part = _classifier(estimator)
    ensemble = estimator.ensemble
    if ensemble == "auto":  # all folds of what is fitted already would give the same estimator
        ensemble = not isinstance(part, FrozenEstimator)
    # for temperatures scikit-learn gives texts to the classifiers as numbers
    texts = all(isinstance(label, str) for label in classes)
    then = Encoded(classes) if estimator.method == "temperature" and texts else None
    training = [*outside(folds, n_splits, then), *([] if ensemble else [then])]
    fits = yield from together([fit_inside(part, meta, view) for view in training])
    tests = tuple(InFold(folds, fold, inside=True) for fold in range(n_splits))
    if ensemble:
        scores = [ScoresOf((fit,), (view,)) for fit, view in zip(fits, tests, strict=True)]
    else:
        scores = [ScoresOf(tuple(fits[:-1]), tests)]
        fits = fits[-1:]
    fit_one = partial(_fit_calibrators, estimator.method, own=own, classes=classes)
    found = yield from together([fit_one(fit, each) for fit, each in zip(fits, scores, strict=True)])
    fitted = clone(estimator)
    fitted.classes_ = classes
    fitted.calibrated_classifiers_ = [
        _CalibratedClassifier(fit, calibrators, method=estimator.method, classes=classes)
        for fit, calibrators in zip(fits, found, strict=True)
    ]
    return with_names(fitted, fits[0])


def _fit_calibrators(
    method: str, fit: Estimator, scores: Scores, *, own: np.ndarray, classes: np.ndarray
) -> Asking:
    if method == "isotonic":
        return (yield from fit_isotonics(scores, own))
    if method == "sigmoid":
        return (yield from fit_sigmoids(scores, own))
    complement = not hasattr(fit, "decision_function")
    return [(yield from fit_temperature(scores, classes, complement=complement))]


def _check(estimator: Estimator) -> None:
    check_folds(estimator, classifies=True)
    check_parts(estimator, [_classifier(estimator)])


def _rounds(estimator: Estimator) -> Rounds:
    return rounds_of(estimator, [_classifier(estimator)], more=50)


add(
    CalibratedClassifierCV,
    refined(
        _refine,
        _rounds,
        lambda est: (LabelCounts,),
        check=_check,
        needs_y=True,
        exact="that of its parts; calibrators within 1e-6",
        takes_weights=lambda est: has_fit_parameter(_classifier(est), "sample_weight"),
    ),
)
