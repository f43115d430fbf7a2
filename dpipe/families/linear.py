"""Least squares, plain and penalised: one pass, from the cross products of X and y.

LinearRegression, Ridge and RidgeClassifier solve the normal equations. Lasso and ElasticNet descend by
coordinates in scikit-learn, on a few made-up rows that have the same cross products as all the real ones.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.linalg
from sklearn.base import clone
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, Ridge, RidgeClassifier

from dpipe.blocks.regression import ClassSums, CrossProducts, Scatter, SumsByClass
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import refuse, stand_in
from dpipe.families.registry import Estimator, Meta, Way, add


def _check(estimator: Estimator) -> None:
    if estimator.positive:
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__}(positive=True) cannot be fitted block by block. Use positive=False."
        )


def _stand_in(estimator: Estimator, products: CrossProducts, meta: Meta) -> Estimator:
    width, targets = products.xy.shape
    X = stand_in.numeric(meta, width, products.dtype, rows=2, sparse=products.sparse)
    y = np.zeros(2 if products.y_is_1d else (2, targets))
    return clone(estimator).fit(X, y)


def _centred(estimator: Estimator, products: CrossProducts) -> tuple[np.ndarray, np.ndarray]:
    """The normal equations, about the mean if an intercept is fitted, else about zero."""
    refuse.gaps(estimator, finite=refuse.is_finite(products.xx, products.xy), what="X or y")
    if estimator.fit_intercept:
        return products.xx, products.xy
    both = products.weight
    xx = products.xx + both * np.outer(products.x_mean, products.x_mean)
    return xx, products.xy + both * np.outer(products.x_mean, products.y_mean)


def _put(fitted: Estimator, coef: np.ndarray, products: CrossProducts) -> Estimator:
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
    xx, xy = _centred(estimator, products)
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
    return _put(fitted, coef, products)


def _solve_ridge(estimator: Estimator, products: CrossProducts) -> np.ndarray:
    xx, xy = _centred(estimator, products)
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
    return _put(_stand_in(estimator, products, meta), _solve_ridge(estimator, products), products)


def _check_ridge_classifier(estimator: Estimator) -> None:
    _check(estimator)
    if estimator.class_weight is not None:
        raise UnsupportedEstimatorError(
            f"RidgeClassifier(class_weight={estimator.class_weight!r}) cannot be fitted block by block. "
            "Use class_weight=None, and pass sample_weight."
        )


def _finish_ridge_classifier(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    """Regress on 1 for a class and -1 for the others: their cross products follow from sums by class."""
    scatter: Scatter = stats[0]
    sums: ClassSums = stats[1]
    refuse.unlabelled(estimator, sums.n_unlabelled)
    labels = np.array(sorted(sums.by_class), dtype=sums.label_dtype)
    if len(labels) < 2:
        raise InputError(
            f"RidgeClassifier needs at least two classes, but every label of y is {labels[0]!r}."
        )
    positive = labels[1:] if len(labels) == 2 else labels
    weights = np.array([sums.by_class[label][0] for label in positive.tolist()])
    totals = np.array([sums.by_class[label][1] for label in positive.tolist()])
    products = replace(
        scatter,
        y_mean=2 * weights / scatter.weight - 1,
        xy=2 * (totals - np.outer(weights, scatter.x_mean)).T,
        y_is_1d=len(positive) == 1,
    )
    X = stand_in.numeric(meta, len(scatter.x_mean), scatter.dtype, rows=len(labels), sparse=scatter.sparse)
    fitted = _put(clone(estimator).fit(X, labels), _solve_ridge(estimator, products), products)
    if estimator.fit_intercept:
        fitted.intercept_ = np.atleast_1d(fitted.intercept_)
    return fitted


def _check_lasso(estimator: Estimator) -> None:
    if estimator.warm_start:
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__}(warm_start=True) cannot be fitted block by block. Use warm_start=False."
        )


def _finish_lasso(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    products: CrossProducts = stats[0]
    if products.xy.shape[1] > 1:
        raise InputError(
            f"{type(estimator).__name__}: y has {products.xy.shape[1]} columns, and one is supported. "
            "Fit one estimator for each."
        )
    X, y = _compressed(estimator, products)
    scale = products.weight / len(X)  # the penalty is weighed against the mean over the rows
    descended = clone(estimator).set_params(
        alpha=estimator.alpha * scale, fit_intercept=False, precompute=False, copy_X=True
    )
    descended.fit(X, y)
    fitted = _stand_in(estimator, products, meta)
    fitted.n_iter_ = descended.n_iter_
    fitted.dual_gap_ = products.dtype.type(descended.dual_gap_ / scale)
    return _put(fitted, descended.coef_[:, None], products)


def _compressed(estimator: Estimator, products: CrossProducts) -> tuple[np.ndarray, np.ndarray]:
    """Give as few rows of X and y as there are columns, with the cross products of all rows."""
    xx, xy = _centred(estimator, products)
    yy = products.yy
    if not estimator.fit_intercept:
        yy = yy + products.weight * np.outer(products.y_mean, products.y_mean)
    values, vectors = scipy.linalg.eigh(np.block([[xx, xy], [xy.T, yy]]))
    root = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T
    return np.asfortranarray(root[:, :-1]), np.ascontiguousarray(root[:, -1])


def _wants(estimator: Estimator) -> tuple[Any, ...]:
    return (CrossProducts,)


_EXACT = "1e-9 relative, for well-conditioned X"
add(LinearRegression, Way("merge", _finish_least_squares, _wants, check=_check, needs_y=True, exact=_EXACT))
add(Ridge, Way("merge", _finish_ridge, _wants, check=_check, needs_y=True, exact=_EXACT))
add(
    RidgeClassifier,
    Way(
        "merge",
        _finish_ridge_classifier,
        lambda est: (Scatter, SumsByClass()),
        check=_check_ridge_classifier,
        needs_y=True,
        exact=_EXACT,
    ),
)
for _cls in (Lasso, ElasticNet):
    add(
        _cls,
        Way("merge", _finish_lasso, _wants, check=_check_lasso, needs_y=True, exact="within its tol"),
    )
