"""LogisticRegression: one reading of the blocks for each evaluation of its objective."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn._loss import HalfBinomialLoss, HalfMultinomialLoss  # the losses that scikit-learn minimises
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model._linear_loss import LinearModelLoss  # the same, of linear models

from dpipe.blocks.statistics import LabelWeights
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import refuse, stand_in
from dpipe.families.objective import Penalty, Solved, Sums, lbfgs, newton
from dpipe.families.registry import Estimator, Meta, Refinement, Rounds, add, refined


def linear_terms(
    loss: LinearModelLoss, X: Any, y: np.ndarray, w: np.ndarray | None, coef: np.ndarray, second: bool
) -> tuple[float, float, np.ndarray, Any]:
    """Sum one of scikit-learn's losses of linear models, which gives means, over a block."""
    coef = coef.astype(X.dtype)
    y = np.ascontiguousarray(y, dtype=X.dtype)
    w = None if w is None else w.astype(X.dtype)
    weight = float(len(y)) if w is None else float(w.sum(dtype=np.float64))
    if weight == 0:
        nothing = np.zeros(coef.size)
        return 0.0, 0.0, nothing, np.zeros((coef.size, coef.size)) if second else None
    if not second:
        value, gradient = loss.loss_gradient(coef, X, y, w)
        return weight, weight * float(value), weight * gradient.astype(np.float64), None
    value = loss.loss(coef, X, y, w)
    gradient, hessian, _ = loss.gradient_hessian(coef, X, y, w)
    shape = (coef.size, coef.size)
    return weight, weight * float(value), weight * gradient.ravel(order="F"), weight * hessian.reshape(shape)


def _class_terms(
    loss: LinearModelLoss,
    classes: np.ndarray,
    class_weight: np.ndarray | None,
    scaling: float | None,
    X: Any,
    y: np.ndarray,
    w: np.ndarray | None,
    coef: np.ndarray,
    second: bool,
) -> tuple[float, float, np.ndarray, Any]:
    """Look up what the labels stand for, and what their classes weigh."""
    codes = np.searchsorted(classes, y)
    if class_weight is not None:
        w = class_weight[codes] if w is None else w * class_weight[codes]
    return linear_terms(loss, X if scaling is None else with_constant(X, scaling), codes, w, coef, second)


def with_constant(X: Any, value: float) -> Any:
    """Append a column of one value: LIBLINEAR's intercept is a coefficient like any other."""
    column = np.full((X.shape[0], 1), value, dtype=X.dtype)
    if isinstance(X, np.ndarray):
        return np.hstack([X, column])
    return sp.hstack([X, sp.csr_matrix(column)], format="csr")


def _penalty_of(estimator: Estimator) -> tuple[str | None, float]:
    """Give the kind of penalty, of which scikit-learn knows an old and a new spelling, and its share of l1."""
    if estimator.penalty == "deprecated":
        ratio = estimator.l1_ratio or 0.0
        kind = "l2" if ratio == 0 else "l1" if ratio == 1 else "elasticnet"
        return (None if np.inf == estimator.C else kind), ratio
    return estimator.penalty, {"l1": 1.0, "l2": 0.0, None: 0.0}.get(estimator.penalty, estimator.l1_ratio)


def _check(estimator: Estimator) -> None:
    """Have scikit-learn refuse what does not go together, on two rows."""
    if estimator.warm_start:
        raise UnsupportedEstimatorError(
            "LogisticRegression(warm_start=True) cannot be fitted block by block. Use warm_start=False."
        )
    tried = clone(estimator)
    if isinstance(estimator.class_weight, dict):
        tried.set_params(class_weight=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tried.fit(np.array([[0.0], [1.0]]), [0, 1])
        except ValueError as err:
            raise InputError(f"{err} Change the parameter; nothing has been read yet.") from err


def class_weights(estimator: Estimator, labels: LabelWeights) -> np.ndarray | None:
    """Give the weight of each class, in their order."""
    classes = labels.classes
    if estimator.class_weight is None:
        return None
    if estimator.class_weight == "balanced":
        found = np.array([labels.counts[label] for label in classes.tolist()], dtype=np.float64)
        return found.sum() / (len(found) * found)
    unknown = [label for label in estimator.class_weight if label not in labels.counts]
    if unknown:
        raise InputError(
            f"{type(estimator).__name__}: class_weight names {', '.join(map(repr, unknown))}, but the labels of y are "
            f"{', '.join(map(repr, classes.tolist()))}. Correct the names."
        )
    return np.array([estimator.class_weight.get(label, 1.0) for label in classes.tolist()], dtype=np.float64)


def checked_classes(estimator: Estimator, labels: LabelWeights) -> np.ndarray:
    """Give the classes, at least two.

    Raises
    ------
    InputError
        If a row has no label, or all have the same.
    """
    refuse.unlabelled(estimator, labels.n_missing)
    classes = labels.classes
    if len(classes) < 2:
        raise InputError(
            f"{type(estimator).__name__} needs at least two classes, but every label of y is {classes[0]!r}. "
            "Check the target column, or how the rows were chosen."
        )
    return classes


#: Newton's method holds a square matrix of so many parameters at most.
MOST_PARAMETERS = 8192


def refuse_many(estimator: Estimator, n_parameters: int) -> None:
    """Refuse a Hessian that would not fit."""
    if n_parameters > MOST_PARAMETERS:
        raise InputError(
            f"{type(estimator).__name__}: {n_parameters:,} coefficients are too many for second derivatives; "
            f"up to {MOST_PARAMETERS:,} are supported. Use solver='lbfgs', or fewer columns."
        )


def _refine(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    labels: LabelWeights = stats[0]
    classes = checked_classes(estimator, labels)
    width, n_scores = meta.width or 0, 1 if len(classes) == 2 else len(classes)
    if estimator.solver == "liblinear" and n_scores > 1:
        raise InputError(
            f"LogisticRegression(solver='liblinear') takes two classes, and y has {len(classes)}. Use another solver."
        )
    kind, ratio = _penalty_of(estimator)
    strength = 0.0 if kind is None else 1.0 / estimator.C
    # LIBLINEAR penalises the intercept, the other solvers do not
    own_column = estimator.solver == "liblinear" and estimator.fit_intercept
    loss = LinearModelLoss(
        base_loss=HalfBinomialLoss() if n_scores == 1 else HalfMultinomialLoss(n_classes=n_scores),
        fit_intercept=estimator.fit_intercept and not own_column,
    )
    scaling = estimator.intercept_scaling if own_column else None
    n_parameters = n_scores * (width + estimator.fit_intercept)
    penalised = np.ones(n_parameters, dtype=bool)
    if loss.fit_intercept:
        penalised[-n_scores:] = False
    penalty = Penalty(strength * ratio, strength * (1 - ratio), penalised)
    terms = partial(_class_terms, loss, classes, class_weights(estimator, labels), scaling)
    solved = yield from _solver(estimator, n_parameters)(
        terms, np.zeros(n_parameters), penalty, max_iter=estimator.max_iter, check=_check_finite
    )
    return _fitted(estimator, solved, classes, n_scores, meta)


def _solver(estimator: Estimator, n_parameters: int) -> Any:
    if estimator.solver == "lbfgs":
        return partial(lbfgs, tol=estimator.tol, in_parts=True)
    refuse_many(estimator, n_parameters)
    # the solvers that visit single rows measure their steps, not the slope: be on the safe side
    exact = estimator.solver in ("newton-cg", "newton-cholesky")
    return partial(newton, tol=estimator.tol if exact else min(estimator.tol, 1e-4) * 1e-3)


def _check_finite(sums: Sums) -> None:
    refuse.gaps(LogisticRegression(), finite=sums.is_finite, what="X")


def _fitted(
    estimator: Estimator, solved: Solved, classes: np.ndarray, n_scores: int, meta: Meta
) -> Estimator:
    sums = solved.sums
    X = stand_in.numeric(meta, meta.width or 0, sums.dtype, rows=len(classes), sparse=sums.sparse)
    # on rows of zeros only this solver has nothing to divide by
    plain = LogisticRegression(fit_intercept=estimator.fit_intercept)
    given = estimator.get_params(deep=False)
    fitted = clone(estimator).set_params(**plain.get_params(deep=False)).fit(X, classes).set_params(**given)
    table = solved.parameters.reshape((n_scores, -1), order="F")
    intercept = np.zeros(n_scores)
    if estimator.fit_intercept:
        table, intercept = table[:, :-1], table[:, -1]
        if n_scores > 1 and estimator.solver != "lbfgs":
            # only differences between classes matter: of all solutions, the one with the mean at zero
            intercept = intercept - intercept.mean()
        if estimator.solver == "liblinear":
            intercept = intercept * estimator.intercept_scaling
    fitted.coef_ = np.ascontiguousarray(table, dtype=fitted.coef_.dtype)
    fitted.intercept_ = np.asarray(intercept, dtype=fitted.intercept_.dtype)
    fitted.n_iter_ = np.full_like(fitted.n_iter_, solved.n_iter)
    return fitted


def _rounds(estimator: Estimator) -> Rounds:
    return Rounds(max(int(estimator.max_iter), 1) + 1, "loss and gradient")


add(
    LogisticRegression,
    refined(
        _refine,
        _rounds,
        lambda est: (LabelWeights,),
        check=_check,
        needs_y=True,
        exact="within its tol",
    ),
)
