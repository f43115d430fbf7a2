"""Bayesian linear regression: one pass, from the cross products of X and y.

scikit-learn maximises the evidence on made-up rows. BayesianRidge is told their weight. ARDRegression takes
no weights, so it is given the sums of the real rows, and their number through the prior of the noise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
from sklearn.base import clone
from sklearn.linear_model import ARDRegression, BayesianRidge

from dpipe.blocks.regression import CrossProducts
from dpipe.errors import InputError
from dpipe.families import refuse, stand_in
from dpipe.families.made_rows import fitted_on_rows, refuse_targets
from dpipe.families.registry import Estimator, Meta, Way, add


def _finish_ridge(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    refuse_targets(estimator, stats[0])
    return fitted_on_rows(estimator, stats[0], meta)


def _finish_relevance(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    """Fit on few rows as if they were many: the rows left out enter the update of the noise as its prior."""
    products: CrossProducts = stats[0]
    refuse_targets(estimator, products)
    if products.n_rows < 2:
        raise InputError("ARDRegression needs at least two rows, and there is 1. Give more rows.")
    X, y = _rows_with_sums(estimator, products)
    absent = products.n_rows - len(X)
    fitted = clone(estimator).set_params(fit_intercept=False, alpha_1=estimator.alpha_1 + absent / 2)
    fitted.fit(stand_in.filled(meta, X), y)
    fitted.set_params(fit_intercept=estimator.fit_intercept, alpha_1=estimator.alpha_1)
    if estimator.fit_intercept:
        fitted.X_offset_ = products.x_mean.astype(products.dtype)
        fitted.intercept_ = products.dtype.type(products.y_mean[0] - products.x_mean @ fitted.coef_)
    return fitted


def _rows_with_sums(estimator: Estimator, products: CrossProducts) -> tuple[np.ndarray, np.ndarray]:
    """Make up rows whose products add up to those of all rows, and whose y has their variance."""
    refuse.gaps(estimator, finite=refuse.is_finite(products.xx, products.xy, products.yy), what="X or y")
    n = products.n_rows
    sums = np.block([[products.xx, products.xy], [products.xy.T, products.yy]])
    if not estimator.fit_intercept:
        mean = np.concatenate([products.x_mean, products.y_mean])
        sums = sums + n * np.outer(mean, mean)
    root = stand_in.root(sums)[-n:]
    rows = _turned(root, products.yy[0, 0] / n)
    return np.asfortranarray(rows[:, :-1], dtype=products.dtype), np.ascontiguousarray(rows[:, -1])


def _turned(root: np.ndarray, variance: float) -> np.ndarray:
    """Reflect all columns alike, which leaves their products, so that the last one has this variance."""
    y, n = root[:, -1], len(root)
    middle = np.sqrt(max(y @ y / n - variance, 0.0))
    wanted = middle + np.sqrt(n * variance) * scipy.linalg.helmert(n)[0]
    normal = y - wanted
    square = normal @ normal
    return root - np.outer(normal, 2 / square * (normal @ root)) if square > 0 else root


def _wants(estimator: Estimator) -> tuple[Any, ...]:
    return (CrossProducts,)


_EXACT = "1e-7 relative, for well-conditioned X"
add(BayesianRidge, Way("merge", _finish_ridge, _wants, needs_y=True, exact=_EXACT))
add(ARDRegression, Way("merge", _finish_relevance, _wants, needs_y=True, exact=_EXACT))
