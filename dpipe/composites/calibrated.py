"""CalibratedClassifierCV by Platt's sigmoid: classifiers on each fold's rows, then one reading for each step.

References
----------
Platt (1999), Probabilistic outputs for support vector machines and comparisons to regularized likelihood methods.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import scipy.optimize
from sklearn._loss import HalfBinomialLoss  # the loss that scikit-learn minimises
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV, _CalibratedClassifier, _SigmoidCalibration
from sklearn.frozen import FrozenEstimator
from sklearn.svm import LinearSVC
from sklearn.utils.validation import has_fit_parameter

from dpipe.blocks.rows import Rows, RowsAt
from dpipe.blocks.statistics import LabelCounts
from dpipe.blocks.table import Block, n_rows
from dpipe.blocks.threads import single_threaded_blas
from dpipe.composites.folds import check_folds, folds_of, outside
from dpipe.composites.inside import check_parts, fit_inside, rounds_of
from dpipe.composites.several import classes_of, with_names
from dpipe.composites.stacked import as_given
from dpipe.composites.views import InFold
from dpipe.errors import UnsupportedEstimatorError
from dpipe.families.asking import Asking, asking, together
from dpipe.families.registry import Estimator, Meta, Refinement, Rounds, add, refined

#: Scores beyond this are scaled down before the fit, as scikit-learn does.
_LARGE_SCORE = 30

Scores = Callable[[Rows], tuple[np.ndarray, Rows]]
"""Gives the scores of some rows, of shape (n_rows, n_scores), and these rows."""


@dataclass(frozen=True)
class PlattSums:
    """What the rows give to each sigmoid."""

    largest: np.ndarray
    """Largest absolute score of each; of shape (n_scores,)."""
    negative: np.ndarray
    positive: np.ndarray
    """Weights of the rows of other classes, and of its own."""
    loss: np.ndarray
    gradient: np.ndarray
    """Of shape (n_scores, 2)."""

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        return type(self)(
            np.maximum(self.largest, other.largest),
            self.negative + other.negative,
            self.positive + other.positive,
            self.loss + other.loss,
            self.gradient + other.gradient,
        )


@dataclass(frozen=True, eq=False)
class Platt:
    """Wants the loss of sigmoids of the scores; at first, without parameters, what they start from."""

    scores: Scores
    own: np.ndarray
    """The class that each score stands for."""
    sigmoids: tuple["_Sigmoid | None", ...]
    placed: ClassVar[bool] = True
    name: ClassVar[str] = "loss of the sigmoids"

    def of(self, X: Block, y: Any, w: Any = None, at: RowsAt | None = None) -> PlattSums:
        """Read one block."""
        n = len(self.own)
        nothing = np.zeros(n)
        with single_threaded_blas():
            found, seen = self.scores(Rows(X, y, w, at=at))
        if not n_rows(seen.X):
            return PlattSums(nothing, nothing, nothing, nothing, np.zeros((n, 2)))
        weights = np.ones(len(found)) if seen.w is None else np.asarray(seen.w, dtype=np.float64)
        positive = np.asarray(seen.y)[:, None] == self.own
        loss, gradient = np.zeros(n), np.zeros((n, 2))
        for j, sigmoid in enumerate(self.sigmoids):
            if sigmoid is not None:
                loss[j], gradient[j] = sigmoid.loss(found[:, j], positive[:, j], weights)
        return PlattSums(np.abs(found).max(axis=0), weights @ ~positive, weights @ positive, loss, gradient)


@dataclass(frozen=True)
class _Sigmoid:
    """A sigmoid in the making: its parameters, the scale of the scores, and the targets of both classes."""

    a: float
    b: float
    scale: float
    low: float
    high: float

    def loss(self, scores: np.ndarray, positive: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = scores.astype(np.float64) / self.scale
        wanted = np.where(positive, self.high, self.low)
        losses, slopes = HalfBinomialLoss().loss_gradient(
            y_true=wanted, raw_prediction=-(self.a * scaled + self.b), sample_weight=w
        )
        return float(losses.sum()), np.array([-slopes @ scaled, -slopes.sum()])


def _fit_sigmoids(scores: Scores, own: np.ndarray) -> Asking:
    """Fit one sigmoid for each score; gives scikit-learn's calibrators."""
    (start,) = yield (Platt(scores, own, (None,) * len(own)),)
    return (yield from together([asking(partial(_minimise, scores, own, j, start)) for j in range(len(own))]))


def _minimise(
    scores: Scores, own: np.ndarray, j: int, start: PlattSums, ask: Callable[..., Sequence[Any]]
) -> _SigmoidCalibration:
    negative, positive = float(start.negative[j]), float(start.positive[j])
    scale = float(start.largest[j]) if start.largest[j] >= _LARGE_SCORE else 1.0
    low, high = 1.0 / (negative + 2.0), (positive + 1.0) / (positive + 2.0)

    def value(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        sigmoid = _Sigmoid(float(parameters[0]), float(parameters[1]), scale, low, high)
        given = tuple(sigmoid if i == j else None for i in range(len(own)))
        (sums,) = ask(Platt(scores, own, given))
        return float(sums.loss[j]), sums.gradient[j]

    found = scipy.optimize.minimize(
        value,
        np.array([0.0, np.log((negative + 1.0) / (positive + 1.0))]),
        method="L-BFGS-B",
        jac=True,
        options={"gtol": 1e-6, "ftol": 64 * np.finfo(float).eps},
    )
    calibrator = _SigmoidCalibration()
    calibrator.a_, calibrator.b_ = found.x[0] / scale, found.x[1]
    return calibrator


@dataclass(frozen=True, eq=False)
class _ScoresOf:
    """Scores of the rows of a view by one classifier; or of each fold's by the one that has not seen them."""

    fits: tuple[Estimator, ...]
    views: tuple[InFold, ...]

    def __call__(self, rows: Rows) -> tuple[np.ndarray, Rows]:
        found, seen = [], []
        for fit, view in zip(self.fits, self.views, strict=True):
            mine = view(rows)
            if n_rows(mine.X):
                found.append(_scored(fit, mine.X))
                seen.append(mine)
        if not seen:
            return np.empty((0, 0)), self.views[0](rows)
        y = np.concatenate([np.asarray(mine.y) for mine in seen])
        w = None if rows.w is None else np.concatenate([mine.w for mine in seen if mine.w is not None])
        return np.concatenate(found), Rows(np.empty((len(y), 0)), y, w)


def _scored(fit: Estimator, X: Block) -> np.ndarray:
    if hasattr(fit, "decision_function"):
        said = fit.decision_function(as_given(fit, X))
        return said.reshape(-1, 1) if said.ndim == 1 else said
    said = fit.predict_proba(as_given(fit, X))
    return said[:, 1:] if said.shape[1] == 2 else said


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
    training = [*outside(folds, n_splits, None), *([] if ensemble else [None])]
    fits = yield from together([fit_inside(part, meta, view) for view in training])
    tests = tuple(InFold(folds, fold, inside=True) for fold in range(n_splits))
    if ensemble:
        scores = [_ScoresOf((fit,), (view,)) for fit, view in zip(fits, tests, strict=True)]
    else:
        scores = [_ScoresOf(tuple(fits[:-1]), tests)]
        fits = fits[-1:]
    found = yield from together([_fit_sigmoids(each, own) for each in scores])
    fitted = clone(estimator)
    fitted.classes_ = classes
    fitted.calibrated_classifiers_ = [
        _CalibratedClassifier(fit, calibrators, method="sigmoid", classes=classes)
        for fit, calibrators in zip(fits, found, strict=True)
    ]
    return with_names(fitted, fits[0])


def _check(estimator: Estimator) -> None:
    if estimator.method != "sigmoid":
        raise UnsupportedEstimatorError(
            f"CalibratedClassifierCV(method={estimator.method!r}) cannot be fitted block by block: it sorts all "
            "scores, or holds them. Use method='sigmoid'."
        )
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
        exact="that of its parts; sigmoids within 1e-6",
        takes_weights=lambda est: has_fit_parameter(_classifier(est), "sample_weight"),
    ),
)
