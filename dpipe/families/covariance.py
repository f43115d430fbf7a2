"""EmpiricalCovariance, ShrunkCovariance, OAS, LedoitWolf and GraphicalLasso: one pass, from the products of X."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
from sklearn.base import clone
from sklearn.covariance import (
    OAS,
    EmpiricalCovariance,
    GraphicalLasso,
    LedoitWolf,
    ShrunkCovariance,
    shrunk_covariance,
)

from dpipe.blocks.quartic import Quartic
from dpipe.blocks.regression import Scatter
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import refuse, stand_in
from dpipe.families.registry import Estimator, Meta, Way, add


def _refuse(estimator: Estimator, scatter: Scatter | Quartic) -> None:
    refuse.gaps(estimator, finite=refuse.is_finite(scatter.xx))
    if scatter.sparse:
        raise InputError(
            f"{type(estimator).__name__} does not take sparse input. Use a dense array or TruncatedSVD."
        )


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    scatter: Scatter | Quartic = stats[0]
    _refuse(estimator, scatter)
    width = len(scatter.x_mean)
    fitted = clone(estimator).fit(stand_in.numeric(meta, width, scatter.dtype, rows=2))
    covariance = scatter.xx / scatter.n_rows
    if estimator.assume_centered:
        covariance = covariance + np.outer(scatter.x_mean, scatter.x_mean)
    else:
        fitted.location_ = scatter.x_mean.astype(scatter.dtype)
    if isinstance(estimator, OAS):
        fitted.shrinkage_ = _oas_shrinkage(covariance, scatter.n_rows) if width > 1 else 0.0
        covariance = shrunk_covariance(covariance, fitted.shrinkage_)
    elif isinstance(estimator, LedoitWolf):
        assert isinstance(scatter, Quartic)
        fitted.shrinkage_ = _ledoit_wolf_share(estimator, scatter)
        covariance = shrunk_covariance(covariance, fitted.shrinkage_)
    elif isinstance(estimator, ShrunkCovariance):
        covariance = shrunk_covariance(covariance, estimator.shrinkage)
    fitted.covariance_ = covariance.astype(fitted.covariance_.dtype)
    fitted.precision_ = (
        scipy.linalg.pinvh(fitted.covariance_, check_finite=False) if estimator.store_precision else None
    )
    return fitted


def _oas_shrinkage(covariance: np.ndarray, n_rows: int) -> float:
    """Give the share of the target, after Chen, Wiesel, Eldar and Hero (2010), as scikit-learn writes it."""
    width = len(covariance)
    alpha = np.mean(covariance**2)
    mu_squared = (np.trace(covariance) / width) ** 2
    below = (n_rows + 1) * (alpha - mu_squared / width)
    return 1.0 if below == 0 else min((alpha + mu_squared) / below, 1.0)


def _ledoit_wolf_share(estimator: Estimator, sums: Quartic) -> Any:
    if len(sums.x_mean) == 1:
        return 0.0
    if estimator.assume_centered:
        sums = sums.about(np.zeros_like(sums.x_mean))
    return sums.dtype.type(ledoit_wolf_shrinkage(sums.xx, sums.xxyy, sums.n_rows))


def ledoit_wolf_shrinkage(xx: np.ndarray, xxyy: np.ndarray, n_rows: int) -> float:
    """Give the share of the target, after Ledoit and Wolf (2004), as scikit-learn writes it.

    Parameters
    ----------
    xx, xxyy : ndarray of shape (n_features, n_features)
        Sums over rows of products of two deviations, and of their squares.
    n_rows : int
        How many rows were added up.

    Returns
    -------
    float
        From 0 (the covariance as it is) to 1 (a multiple of the identity).

    References
    ----------
    Ledoit and Wolf (2004), A well-conditioned estimator for large-dimensional covariance matrices.

    Examples
    --------
    >>> X = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    >>> round(ledoit_wolf_shrinkage(X.T @ X, (X**2).T @ X**2, 4), 3)
    0.944
    """
    width = len(xx)
    squared = np.sum(xx**2) / n_rows**2
    trace = np.trace(xx) / n_rows
    beta = (xxyy.sum() / n_rows - squared) / (width * n_rows)
    delta = (squared - trace**2 / width) / width
    beta = min(beta, delta)
    return 0.0 if beta == 0 else float(beta / delta)


def _check_graphical(estimator: Estimator) -> None:
    if estimator.covariance is not None:
        raise UnsupportedEstimatorError(
            f"GraphicalLasso(covariance={estimator.covariance!r}) takes a covariance in the place of rows. Use "
            "covariance=None, or fit it in memory: the covariance is small."
        )


def _finish_graphical(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    scatter: Scatter = stats[0]
    _refuse(estimator, scatter)
    rows = stand_in.rows_with_moments(scatter.x_mean, scatter.xx / scatter.n_rows)
    return clone(estimator).fit(stand_in.filled(meta, rows.astype(scatter.dtype)))


for _cls in (EmpiricalCovariance, ShrunkCovariance, OAS):
    add(_cls, Way("merge", _finish, lambda est: (Scatter,), exact="1e-9 relative, for well-conditioned X"))
add(LedoitWolf, Way("merge", _finish, lambda est: (Quartic,), exact="1e-9 relative, for well-conditioned X"))
add(
    GraphicalLasso,
    Way("merge", _finish_graphical, lambda est: (Scatter,), check=_check_graphical, exact="within its tol"),
)
