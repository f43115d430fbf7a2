"""Least squares, plain and penalised: one pass, from the cross products of X and y.

LinearRegression, Ridge and RidgeClassifier solve the normal equations. What has no closed form, such as
Lasso and ElasticNet, or coefficients that must be positive, is solved by scikit-learn on made-up rows.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import scipy.linalg
from sklearn.base import clone
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    MultiTaskElasticNet,
    MultiTaskLasso,
    Ridge,
    RidgeClassifier,
)
from sklearn.utils.class_weight import compute_class_weight

from dpipe.blocks.groups import ByClass, Grouped
from dpipe.blocks.regression import ClassSums, CrossProducts, Scatter, SumsByClass
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import refuse, stand_in
from dpipe.families.made_rows import fitted_on_rows, made_rows, refuse_targets
from dpipe.families.registry import Estimator, Meta, Way, add


def _check_ridge(estimator: Estimator) -> None:
    name, solver = type(estimator).__name__, estimator.solver
    if estimator.positive and solver not in ("auto", "lbfgs"):
        raise InputError(
            f"{name}(positive=True, solver={solver!r}): this solver knows no bounds. Use solver='auto'."
        )
    if solver == "lbfgs" and not estimator.positive:
        raise InputError(
            f"{name}(solver='lbfgs'): this solver is for positive=True alone. Use solver='auto'."
        )


def _stand_in(estimator: Estimator, products: CrossProducts, meta: Meta) -> Estimator:
    width, targets = products.xy.shape
    X = stand_in.numeric(meta, width, products.dtype, rows=2, sparse=products.sparse)
    y = np.zeros(2 if products.y_is_1d else (2, targets))
    return clone(estimator).fit(X, y)


def centred(estimator: Estimator, products: CrossProducts) -> tuple[np.ndarray, np.ndarray]:
    """Give the normal equations, about the mean if an intercept is fitted, else about zero."""
    refuse.gaps(estimator, finite=refuse.is_finite(products.xx, products.xy), what="X or y")
    if estimator.fit_intercept:
        return products.xx, products.xy
    both = products.weight
    xx = products.xx + both * np.outer(products.x_mean, products.x_mean)
    return xx, products.xy + both * np.outer(products.x_mean, products.y_mean)


def put(fitted: Estimator, coef: np.ndarray, products: CrossProducts) -> Estimator:
    """Store coefficients of shape (n_features, n_targets) and the intercept that goes with them."""
    dtype = products.dtype
    intercept = products.y_mean - products.x_mean @ coef
    shaped = coef[:, 0] if products.y_is_1d else coef.T
    fitted.coef_ = np.ascontiguousarray(shaped, dtype=dtype)
    if fitted.fit_intercept:
        fitted.intercept_ = dtype.type(intercept[0]) if products.y_is_1d else intercept.astype(dtype)
    else:
        fitted.intercept_ = 0.0
    return fitted


def _finish_least_squares(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    """Solve by the eigenvectors of X'X, which gives the least-norm solution of a deficient problem."""
    products: CrossProducts = stats[0]
    if estimator.positive:
        if products.sparse:
            raise InputError(
                "LinearRegression(positive=True) does not take sparse input. Use a dense array, or "
                "Ridge(positive=True)."
            )
        return fitted_on_rows(estimator, products, meta)
    xx, xy = centred(estimator, products)
    eigenvalues, vectors = scipy.linalg.eigh(xx)
    singular = np.sqrt(np.clip(eigenvalues[::-1], 0, None))
    # squaring halves the digits: below 1e-7 of the largest, a singular value of X is rounding noise
    floor = max(estimator.tol, 1e-7) * (singular[0] if len(singular) else 0.0)
    kept = singular > floor
    basis = vectors[:, ::-1][:, kept]
    coef = basis @ ((basis.T @ xy) / singular[kept, None] ** 2)
    fitted = _stand_in(estimator, products, meta)
    if not products.sparse:
        fitted.rank_ = int(kept.sum())
        fitted.singular_ = singular[: min(products.n_rows, len(singular))].astype(products.dtype)
    return put(fitted, coef, products)


def _solve_ridge(estimator: Estimator, products: CrossProducts) -> np.ndarray:
    if estimator.positive:
        X, y, w = made_rows(estimator, products)
        names = Ridge().get_params()
        bound = Ridge(**{name: getattr(estimator, name) for name in names}).fit(X, y, sample_weight=w)
        return np.atleast_2d(bound.coef_).T
    xx, xy = centred(estimator, products)
    alphas = np.broadcast_to(np.asarray(estimator.alpha, dtype=np.float64).reshape(-1), (xy.shape[1],))
    coef = np.empty_like(xy)
    for target, alpha in enumerate(alphas):
        penalised = xx + alpha * np.eye(len(xx))
        try:
            coef[:, target] = scipy.linalg.solve(penalised, xy[:, target], assume_a="pos")
        except np.linalg.LinAlgError:
            coef[:, target] = scipy.linalg.lstsq(penalised, xy[:, target])[0]
    return coef


def _finish_ridge(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    products: CrossProducts = stats[0]
    return put(_stand_in(estimator, products, meta), _solve_ridge(estimator, products), products)


def wants_of_classes(estimator: Estimator) -> tuple[Any, ...]:
    """Give the statistics from which `class_products` follow."""
    return (ByClass(Scatter),) if estimator.class_weight else (Scatter, SumsByClass())


def _finish_ridge_classifier(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    labels, products = class_products(estimator, stats)
    X = stand_in.numeric(meta, len(products.x_mean), products.dtype, rows=len(labels), sparse=products.sparse)
    fitted = put(clone(estimator).fit(X, labels), _solve_ridge(estimator, products), products)
    if estimator.fit_intercept:
        fitted.intercept_ = np.atleast_1d(fitted.intercept_)
    return fitted


def class_products(estimator: Estimator, stats: Sequence[Any]) -> tuple[np.ndarray, CrossProducts]:
    """Regress on 1 for a class and -1 for the others: give the labels, and the cross products, from sums by class.

    Raises
    ------
    InputError
        If there are fewer than two labels, or some have no class weight.
    """
    labels, scatter, weights, totals = (_weighted_classes if estimator.class_weight else _plain_classes)(
        estimator, stats
    )
    if len(labels) < 2:
        raise InputError(
            f"{type(estimator).__name__} needs at least two classes, but every label of y is {labels.tolist()[0]!r}."
        )
    if len(labels) == 2:
        weights, totals = weights[1:], totals[1:]
    mean = 2 * weights / scatter.weight - 1
    apart = scatter.weight - 2 * weights - 2 * weights[:, None]
    np.fill_diagonal(apart, scatter.weight)
    return labels, replace(
        scatter,
        y_mean=mean,
        xy=2 * (totals - np.outer(weights, scatter.x_mean)).T,
        yy=apart - scatter.weight * np.outer(mean, mean),
        y_is_1d=len(weights) == 1,
    )


_Classes = tuple[np.ndarray, Scatter, np.ndarray, np.ndarray]


def _plain_classes(estimator: Estimator, stats: Sequence[Any]) -> _Classes:
    """Give the labels, the scatter of all rows, and for each label its weight and the sum of its rows."""
    sums: ClassSums = stats[1]
    refuse.unlabelled(estimator, sums.n_unlabelled)
    labels = np.array(sorted(sums.by_class), dtype=sums.label_dtype)
    weights = np.array([sums.by_class[label][0] for label in labels.tolist()])
    totals = np.array([sums.by_class[label][1] for label in labels.tolist()])
    return labels, stats[0], weights, totals


def _weighted_classes(estimator: Estimator, stats: Sequence[Any]) -> _Classes:
    """Give the same, every class weighed as `class_weight` says."""
    groups: Grouped = stats[0]
    refuse.unlabelled(estimator, groups.n_unlabelled)
    labels = np.array(sorted(groups.by_group), dtype=groups.label_dtype)
    parts: list[Scatter] = [groups.by_group[label] for label in labels.tolist()]
    factors = class_weights(estimator, labels, np.array([part.n_rows for part in parts]))
    scaled = [
        replace(part, weight=part.weight * factor, xx=part.xx * factor)
        for part, factor in zip(parts, factors.tolist(), strict=True)
    ]
    weights = np.array([part.weight for part in scaled])
    totals = weights[:, None] * np.array([part.x_mean for part in scaled])
    return labels, reduce(lambda one, other: one.merge(other), scaled), weights, totals


def class_weights(estimator: Estimator, labels: np.ndarray, n_rows: np.ndarray) -> np.ndarray:
    """Give the weight of a row of each class."""
    class_weight = estimator.class_weight
    if class_weight == "balanced":
        return n_rows.sum() / (len(labels) * n_rows)
    try:
        return compute_class_weight(class_weight, classes=labels, y=labels)
    except ValueError as err:
        raise InputError(f"{type(estimator).__name__}: {err} Give a weight to every label of y.") from err


def _check_lasso(estimator: Estimator) -> None:
    if estimator.warm_start:
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__}(warm_start=True) cannot be fitted block by block. Use warm_start=False."
        )


def _finish_lasso(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    refuse_targets(estimator, stats[0])
    return fitted_on_rows(estimator, stats[0], meta)


def _finish_multi_task(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    products: CrossProducts = stats[0]
    if products.y_is_1d:
        raise InputError(
            f"{type(estimator).__name__} learns several targets together, but y has one. Use "
            f"{type(estimator).__name__.removeprefix('MultiTask')}."
        )
    fitted = fitted_on_rows(estimator, products, meta)
    n_made = sum(products.xy.shape) + 1
    fitted.eps_ *= products.n_rows / n_made  # the tolerance, which grows with the squares of y
    return fitted


def _wants(estimator: Estimator) -> tuple[Any, ...]:
    return (CrossProducts,)


_EXACT = "1e-9 relative, for well-conditioned X"
add(LinearRegression, Way("merge", _finish_least_squares, _wants, needs_y=True, exact=_EXACT))
add(Ridge, Way("merge", _finish_ridge, _wants, check=_check_ridge, needs_y=True, exact=_EXACT))
add(
    RidgeClassifier,
    Way(
        "merge",
        _finish_ridge_classifier,
        wants_of_classes,
        check=_check_ridge,
        needs_y=True,
        exact=_EXACT,
    ),
)
for _cls in (Lasso, ElasticNet):
    add(
        _cls,
        Way("merge", _finish_lasso, _wants, check=_check_lasso, needs_y=True, exact="within its tol"),
    )
for _cls in (MultiTaskLasso, MultiTaskElasticNet):
    add(
        _cls,
        Way("merge", _finish_multi_task, _wants, check=_check_lasso, needs_y=True, exact="within its tol"),
    )
