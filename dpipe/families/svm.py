"""LinearSVC and LinearSVR with a smooth loss: Newton's method on the primal problem, one reading a step.

References
----------
Keerthi, DeCoste (2005), A modified finite Newton method for fast solution of large scale linear SVMs.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.svm import LinearSVC, LinearSVR

from dpipe.blocks.statistics import LabelWeights, TargetMoments
from dpipe.errors import UnsupportedEstimatorError
from dpipe.families import refuse, stand_in
from dpipe.families.asking import together
from dpipe.families.logistic import checked_classes, class_weights, refuse_many, with_constant
from dpipe.families.objective import Penalty, Sums, newton
from dpipe.families.registry import Estimator, Meta, Refinement, Rounds, add, refined

#: Solved beyond scikit-learn's default: one more reading gains many digits.
_TOL = 1e-8


def _squared(
    X: Any, excess: np.ndarray, slope: np.ndarray, w: np.ndarray, second: bool
) -> tuple[float, np.ndarray, Any]:
    """Sum squared excesses; `slope` is how each grows with the prediction, 0 where there is none."""
    gradient = X.T @ (2 * w * excess * slope)
    if not second:
        return float(w @ excess**2), gradient, None
    reached = np.flatnonzero(slope)
    rows = X[reached]
    curvature = 2 * w[reached]
    scaled = rows.multiply(curvature[:, None]).tocsr() if sp.issparse(rows) else rows * curvature[:, None]
    hessian = rows.T @ scaled
    return float(w @ excess**2), gradient, hessian.toarray() if sp.issparse(hessian) else hessian


def _hinge_terms(
    positive: Any,
    weights: tuple[float, float],
    scaling: float | None,
    X: Any,
    y: np.ndarray,
    w: np.ndarray | None,
    coef: np.ndarray,
    second: bool,
) -> tuple[float, float, np.ndarray, Any]:
    """Sum the squared hinge loss of one class against the others."""
    sign = np.where(y == positive, 1.0, -1.0)
    w = np.where(sign > 0, weights[1], weights[0]) * (1.0 if w is None else w)
    X = (X if scaling is None else with_constant(X, scaling)).astype(np.float64)
    excess = np.maximum(1 - sign * (X @ coef), 0.0)
    return float(w.sum()), *_squared(X, excess, np.where(excess > 0, -sign, 0.0), w, second)


def _tube_terms(
    epsilon: float,
    scaling: float | None,
    X: Any,
    y: np.ndarray,
    w: np.ndarray | None,
    coef: np.ndarray,
    second: bool,
) -> tuple[float, float, np.ndarray, Any]:
    """Sum the squared epsilon-insensitive loss."""
    X = (X if scaling is None else with_constant(X, scaling)).astype(np.float64)
    w = np.ones(len(y)) if w is None else w
    residual = X @ coef - np.asarray(y, dtype=np.float64)
    excess = np.maximum(np.abs(residual) - epsilon, 0.0)
    return float(w.sum()), *_squared(X, excess, np.where(excess > 0, np.sign(residual), 0.0), w, second)


def _check(estimator: Estimator) -> None:
    smooth = "squared_hinge" if isinstance(estimator, LinearSVC) else "squared_epsilon_insensitive"
    name = type(estimator).__name__
    if estimator.loss != smooth:
        instead = "SGDClassifier(loss='hinge')" if isinstance(estimator, LinearSVC) else "SGDRegressor"
        raise UnsupportedEstimatorError(
            f"{name}(loss={estimator.loss!r}) cannot be fitted block by block: its objective has corners. "
            f"Use loss={smooth!r}, or {instead}."
        )
    if getattr(estimator, "multi_class", "ovr") != "ovr":
        raise UnsupportedEstimatorError(
            f"{name}(multi_class={estimator.multi_class!r}) cannot be fitted block by block. Use multi_class='ovr'."
        )


def _penalty(estimator: Estimator, n_parameters: int) -> Penalty:
    """The objective is divided by C; LIBLINEAR penalises the intercept, too."""
    refuse_many(estimator, n_parameters)
    kind = getattr(estimator, "penalty", "l2")
    strength = 1.0 / estimator.C
    everywhere = np.ones(n_parameters, dtype=bool)
    return Penalty(strength * (kind == "l1"), strength * (kind == "l2"), everywhere)


def _scaling(estimator: Estimator) -> float | None:
    return estimator.intercept_scaling if estimator.fit_intercept else None


def _check_finite(estimator: Estimator, sums: Sums) -> None:
    refuse.gaps(estimator, finite=sums.is_finite, what="X or y")


def _refine_classifier(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    labels: LabelWeights = stats[0]
    classes = checked_classes(estimator, labels)
    given = class_weights(estimator, labels)
    weights = np.ones(len(classes)) if given is None else given
    n_parameters = (meta.width or 0) + estimator.fit_intercept
    # LIBLINEAR weighs the rest of several classes by one
    tasks = (
        [(classes[1], (weights[0], weights[1]))]
        if len(classes) == 2
        else [(label, (1.0, weight)) for label, weight in zip(classes, weights, strict=True)]
    )
    solved = yield from together(
        [
            newton(
                partial(_hinge_terms, label, pair, _scaling(estimator)),
                np.zeros(n_parameters),
                _penalty(estimator, n_parameters),
                tol=min(estimator.tol, _TOL),
                max_iter=estimator.max_iter,
                check=partial(_check_finite, estimator),
            )
            for label, pair in tasks
        ]
    )
    sparse = solved[0].sums.sparse
    X = stand_in.numeric(meta, meta.width or 0, solved[0].sums.dtype, rows=len(classes), sparse=sparse)
    tried = clone(estimator)
    if isinstance(estimator.class_weight, dict):
        tried.set_params(class_weight=None)
    fitted = tried.fit(X, classes).set_params(class_weight=estimator.class_weight)
    return _put(fitted, np.array([each.parameters for each in solved]), max(each.n_iter for each in solved))


def _refine_regressor(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    n_parameters = (meta.width or 0) + estimator.fit_intercept
    solved = yield from newton(
        partial(_tube_terms, estimator.epsilon, _scaling(estimator)),
        np.zeros(n_parameters),
        _penalty(estimator, n_parameters),
        tol=min(estimator.tol, _TOL),
        max_iter=estimator.max_iter,
        check=partial(_check_finite, estimator),
    )
    X = stand_in.numeric(meta, meta.width or 0, solved.sums.dtype, rows=2, sparse=solved.sums.sparse)
    fitted = clone(estimator).fit(X, np.array([0.0, 1.0]))
    return _put(fitted, solved.parameters, solved.n_iter)


def _put(fitted: Estimator, parameters: np.ndarray, n_iter: int) -> Estimator:
    intercept = np.zeros(parameters.shape[:-1])
    coef = parameters
    if fitted.fit_intercept:
        coef, intercept = parameters[..., :-1], parameters[..., -1] * fitted.intercept_scaling
    fitted.coef_ = np.ascontiguousarray(coef)
    fitted.intercept_ = np.atleast_1d(intercept) if fitted.fit_intercept else fitted.intercept_
    fitted.n_iter_ = n_iter
    return fitted


def _rounds(estimator: Estimator) -> Rounds:
    return Rounds(int(estimator.max_iter) + 1, "loss, gradient and curvature")


add(
    LinearSVC,
    refined(
        _refine_classifier,
        _rounds,
        lambda est: (LabelWeights,),
        check=_check,
        needs_y=True,
        exact="within its tol",
    ),
)
add(
    LinearSVR,
    refined(
        _refine_regressor,
        _rounds,
        lambda est: (TargetMoments,),
        check=_check,
        needs_y=True,
        exact="within its tol",
    ),
)
