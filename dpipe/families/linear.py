"""LinearRegression and Ridge: one pass, from the cross products of X and y."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, Ridge

from dpipe.blocks.regression import CrossProducts
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import stand_in
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
    if not (np.isfinite(products.xx).all() and np.isfinite(products.xy).all()):
        raise InputError(
            f"{type(estimator).__name__}: X or y holds NaN or infinity. Put a SimpleImputer before it, "
            "or drop those rows."
        )
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


def _finish_ridge(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    products: CrossProducts = stats[0]
    xx, xy = _centred(estimator, products)
    alphas = np.broadcast_to(np.asarray(estimator.alpha, dtype=np.float64).reshape(-1), (xy.shape[1],))
    coef = np.empty_like(xy)
    for target, alpha in enumerate(alphas):
        penalised = xx + alpha * np.eye(len(xx))
        try:
            coef[:, target] = scipy.linalg.solve(penalised, xy[:, target], assume_a="pos")
        except np.linalg.LinAlgError:
            coef[:, target] = scipy.linalg.lstsq(penalised, xy[:, target])[0]
    return _put(_stand_in(estimator, products, meta), coef, products)


def _wants(estimator: Estimator) -> tuple[Any, ...]:
    return (CrossProducts,)


_EXACT = "1e-9 relative, for well-conditioned X"
add(LinearRegression, Way("merge", _finish_least_squares, _wants, check=_check, needs_y=True, exact=_EXACT))
add(Ridge, Way("merge", _finish_ridge, _wants, check=_check, needs_y=True, exact=_EXACT))
