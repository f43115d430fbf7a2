"""Poisson-, Gamma-, TweedieRegressor and HuberRegressor: one reading for each evaluation of the objective."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import GammaRegressor, HuberRegressor, PoissonRegressor, TweedieRegressor
from sklearn.linear_model._huber import _huber_loss_and_gradient  # scikit-learn's objective, a sum over rows
from sklearn.linear_model._linear_loss import LinearModelLoss

from dpipe.blocks.statistics import TargetMoments
from dpipe.blocks.table import Block, numbers
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import refuse, stand_in
from dpipe.families.logistic import linear_terms, refuse_many
from dpipe.families.objective import Penalty, Solved, Sums, lbfgs, newton
from dpipe.families.registry import Estimator, Meta, Refinement, Rounds, add, refined


def _check(estimator: Estimator) -> None:
    if estimator.warm_start:
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__}(warm_start=True) cannot be fitted block by block. Use warm_start=False."
        )


def _one_target(estimator: Estimator, moments: TargetMoments) -> None:
    if len(moments.mean) > 1:
        raise InputError(
            f"{type(estimator).__name__}: y has {len(moments.mean)} columns, and one is supported. "
            "Fit one estimator for each."
        )
    refuse.gaps(estimator, finite=refuse.is_finite(moments.mean), what="y")


def _ranged_terms(
    name: str,
    loss: LinearModelLoss,
    X: Any,
    y: np.ndarray,
    w: np.ndarray | None,
    coef: np.ndarray,
    second: bool,
) -> tuple[float, float, np.ndarray, Any]:
    target = np.ascontiguousarray(y, dtype=X.dtype)
    if not loss.base_loss.in_y_true_range(target):
        raise InputError(
            f"{name}: some values of y are out of the range of its loss; the smallest is {target.min():g}. "
            "Leave these rows out, or use another estimator."
        )
    return linear_terms(loss, X, target, w, coef, second)


def _refine_glm(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    moments: TargetMoments = stats[0]
    _one_target(estimator, moments)
    base = estimator._get_loss()
    loss = LinearModelLoss(base_loss=base, fit_intercept=estimator.fit_intercept)
    n_parameters = (meta.width or 0) + estimator.fit_intercept
    start = np.zeros(n_parameters)
    penalised = np.ones(n_parameters, dtype=bool)
    if estimator.fit_intercept:
        if not base.in_y_true_range(moments.mean):
            raise InputError(
                f"{type(estimator).__name__}: the mean of y is {moments.mean[0]:g}, out of the range of its loss. "
                "Check the target column, or use another estimator."
            )
        start[-1], penalised[-1] = base.link.link(moments.mean)[0], False
    # scikit-learn weighs the penalty against the mean of the loss
    penalty = Penalty(0.0, estimator.alpha * moments.weight, penalised)
    if estimator.solver != "lbfgs":
        refuse_many(estimator, n_parameters)
    solver = partial(lbfgs, in_parts=True) if estimator.solver == "lbfgs" else newton
    terms = partial(_ranged_terms, type(estimator).__name__, loss)
    solved: Solved = yield from solver(
        terms,
        start,
        penalty,
        tol=estimator.tol,
        max_iter=estimator.max_iter,
        check=partial(_check_finite, estimator),
    )
    sums = solved.sums
    y = np.ones(2)
    X = stand_in.numeric(meta, meta.width or 0, sums.dtype, rows=2, sparse=sums.sparse)
    fitted = clone(estimator).set_params(alpha=1.0).fit(X, y).set_params(alpha=estimator.alpha)
    return _put(fitted, solved.parameters, solved.n_iter, sums.dtype)


def _check_finite(estimator: Estimator, sums: Sums) -> None:
    refuse.gaps(estimator, finite=sums.is_finite, what="X or y")


def _put(fitted: Estimator, parameters: np.ndarray, n_iter: int, dtype: np.dtype[Any]) -> Estimator:
    coef = parameters.astype(dtype)
    fitted.coef_ = coef[:-1] if fitted.fit_intercept else coef
    fitted.intercept_ = coef[-1] if fitted.fit_intercept else 0.0
    fitted.n_iter_ = n_iter
    return fitted


def _huber_terms(
    epsilon: float, X: Any, y: np.ndarray, w: np.ndarray | None, parameters: np.ndarray, second: bool
) -> tuple[float, float, np.ndarray, Any]:
    weights = np.ones(len(y), dtype=X.dtype) if w is None else w.astype(X.dtype)
    loss, gradient = _huber_loss_and_gradient(
        parameters, X, np.asarray(y, dtype=X.dtype), epsilon, 0.0, weights
    )
    return float(weights.sum()), loss, gradient, None


@dataclass(frozen=True)
class Outliers:
    """Which rows are far from what was predicted."""

    mask: np.ndarray
    """Boolean, of shape (n_rows,)."""

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        return type(self)(np.concatenate([self.mask, other.mask]))


@dataclass(frozen=True, eq=False)
class Far:
    """Wants the rows whose residuals exceed a bound."""

    coef: np.ndarray
    intercept: float
    bound: float
    name: ClassVar[str] = "outliers"

    def of(self, X: Block, y: np.ndarray, w: np.ndarray | None = None) -> Outliers:
        """Read one block."""
        residual = np.abs(np.asarray(y, dtype=np.float64) - numbers(X) @ self.coef - self.intercept)
        return Outliers(residual > self.bound)


def _refine_huber(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    _one_target(estimator, stats[0])
    width = meta.width or 0
    start = np.zeros(width + 1 + estimator.fit_intercept)
    start[-1] = 1.0  # the scale
    bounds = np.tile([-np.inf, np.inf], (len(start), 1))
    bounds[-1][0] = np.finfo(np.float64).eps * 10
    penalty = Penalty(0.0, 2 * estimator.alpha, np.arange(len(start)) < width)
    solved: Solved = yield from lbfgs(
        partial(_huber_terms, estimator.epsilon),
        start,
        penalty,
        tol=estimator.tol,
        max_iter=estimator.max_iter,
        check=partial(_check_finite, estimator),
        mean=False,
        bounds=bounds,
    )
    found, sums = solved.parameters, solved.sums
    X = stand_in.numeric(meta, width, sums.dtype, rows=2, sparse=sums.sparse)
    fitted = clone(estimator).set_params(max_iter=100).fit(X, np.array([0.0, 1.0]))
    fitted.set_params(max_iter=estimator.max_iter)
    fitted.scale_, fitted.coef_, fitted.n_iter_ = found[-1], found[:width], solved.n_iter
    fitted.intercept_ = found[-2] if estimator.fit_intercept else 0.0
    (far,) = yield (Far(fitted.coef_, float(fitted.intercept_), float(found[-1] * estimator.epsilon)),)
    fitted.outliers_ = far.mask
    return fitted


def _rounds(estimator: Estimator) -> Rounds:
    return Rounds(int(estimator.max_iter) + 2, "loss and gradient")


def _wants(estimator: Estimator) -> tuple[Any, ...]:
    return (TargetMoments,)


for _cls in (PoissonRegressor, GammaRegressor, TweedieRegressor):
    add(_cls, refined(_refine_glm, _rounds, _wants, check=_check, needs_y=True, exact="within its tol"))
add(
    HuberRegressor,
    refined(_refine_huber, _rounds, _wants, check=_check, needs_y=True, exact="within its tol"),
)
