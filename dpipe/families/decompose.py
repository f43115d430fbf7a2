"""PCA and TruncatedSVD: one pass, from the cross products of X.

The eigenvectors of X'X are found whole, whatever solver was asked for: they are what the approximate
solvers approach. Squaring halves the digits of the smallest singular values.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
from sklearn.base import clone
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.decomposition._pca import _infer_dimension  # Minka's rule stands nowhere else
from sklearn.utils.extmath import svd_flip

from dpipe.blocks.regression import Scatter
from dpipe.errors import InputError
from dpipe.families import refuse, stand_in
from dpipe.families.registry import Estimator, Meta, Way, add


def _eigen(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give eigenvalues from the largest on, and the eigenvectors as rows, signed as scikit-learn does."""
    values, vectors = scipy.linalg.eigh(matrix)
    _, rows = svd_flip(None, vectors[:, ::-1].T, u_based_decision=False)
    return np.clip(values[::-1], 0.0, None), rows


def _finish_pca(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    scatter: Scatter = stats[0]
    refuse.gaps(estimator, finite=refuse.is_finite(scatter.xx))
    n, width = scatter.n_rows, len(scatter.x_mean)
    values, rows = _eigen(scatter.xx)
    variance = values / (n - 1)
    ratio = variance / variance.sum()
    solver = _solver(estimator, n, width, scatter.sparse)
    kept = _n_components(estimator, variance, ratio, n, solver)
    X = stand_in.numeric(meta, width, scatter.dtype, rows=2, sparse=scatter.sparse)
    # on rows of zeros every share is 0 / 0
    with np.errstate(divide="ignore", invalid="ignore"):
        fitted = clone(estimator).set_params(n_components=1, svd_solver="covariance_eigh").fit(X)
    fitted.set_params(n_components=estimator.n_components, svd_solver=estimator.svd_solver)
    dtype = scatter.dtype
    fitted._fit_svd_solver = solver
    fitted.n_samples_, fitted.n_components_ = n, kept
    fitted.mean_ = scatter.x_mean.astype(dtype)
    fitted.components_ = np.ascontiguousarray(rows[:kept], dtype=dtype)
    fitted.explained_variance_ = variance[:kept].astype(dtype)
    fitted.explained_variance_ratio_ = ratio[:kept].astype(dtype)
    fitted.singular_values_ = np.sqrt(values[:kept]).astype(dtype)
    rest = variance[kept : min(n, width)]
    fitted.noise_variance_ = dtype.type(rest.mean()) if len(rest) else 0.0
    return fitted


def _n_components(estimator: Estimator, variance: np.ndarray, ratio: np.ndarray, n: int, solver: str) -> Any:
    """Work out how many components are kept, in any of the forms that PCA takes."""
    wanted, most = estimator.n_components, min(n, len(variance))
    if wanted is None:
        return most - (solver == "arpack")
    if wanted == "mle":
        return _infer_dimension(variance, n)
    if 0 < wanted < 1:
        return np.searchsorted(np.cumsum(ratio), wanted, side="right") + 1
    if wanted > most:
        raise InputError(
            f"PCA(n_components={wanted}): there are {n:,} rows of {len(variance)} features. Ask for at most {most}."
        )
    return wanted


def _solver(estimator: Estimator, n: int, width: int, sparse: bool) -> str:
    """Name the solver that scikit-learn would have chosen."""
    if estimator.svd_solver != "auto":
        return str(estimator.svd_solver)
    if sparse:
        return "arpack"
    if width <= 1000 and n >= 10 * width:
        return "covariance_eigh"
    wanted = estimator.n_components
    if max(n, width) > 500 and wanted is not None and wanted != "mle" and 1 <= wanted < 0.8 * min(n, width):
        return "randomized"
    return "full"


def _finish_svd(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    scatter: Scatter = stats[0]
    refuse.gaps(estimator, finite=refuse.is_finite(scatter.xx))
    width, kept = len(scatter.x_mean), estimator.n_components
    if kept > width:
        raise InputError(
            f"TruncatedSVD(n_components={kept}): there are {width} features. Ask for at most {width}."
        )
    values, rows = _eigen(scatter.xx + scatter.n_rows * np.outer(scatter.x_mean, scatter.x_mean))
    fitted = clone(estimator).set_params(n_components=1, algorithm="randomized")
    with np.errstate(divide="ignore", invalid="ignore"):
        fitted.fit(stand_in.numeric(meta, width, scatter.dtype, rows=2, sparse=scatter.sparse))
    fitted.set_params(n_components=kept, algorithm=estimator.algorithm)
    covariance = scatter.xx / scatter.n_rows
    variance = np.einsum("ki,ij,kj->k", rows[:kept], covariance, rows[:kept])
    dtype = scatter.dtype
    fitted.components_ = np.ascontiguousarray(rows[:kept], dtype=dtype)
    fitted.explained_variance_ = variance.astype(dtype)
    fitted.explained_variance_ratio_ = (variance / np.trace(covariance)).astype(dtype)
    fitted.singular_values_ = np.sqrt(values[:kept]).astype(dtype)
    return fitted


def _output_pca(estimator: Estimator, meta: Meta) -> Meta:
    wanted = estimator.n_components
    known = int(wanted) if isinstance(wanted, int | np.integer) else None
    return Meta(n_columns=known, dtype=meta.dtype)


def _output_svd(estimator: Estimator, meta: Meta) -> Meta:
    return Meta(n_columns=estimator.n_components, dtype=meta.dtype)


add(PCA, Way("merge", _finish_pca, lambda est: (Scatter,), output=_output_pca, exact="1e-7 relative"))
add(
    TruncatedSVD,
    Way(
        "merge",
        _finish_svd,
        lambda est: (Scatter,),
        output=_output_svd,
        exact="1e-7 relative of the exact one",
    ),
)
