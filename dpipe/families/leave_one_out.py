"""RidgeCV without folds: two passes, the second of which sums the error of each row that is left out.

The error of a row in a regression that was fitted without it follows from its residual in the one that was fitted with
it, and from its leverage, which the eigenvectors of X'X give. So every penalty is scored in one reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import scipy.linalg
from sklearn.base import clone

from dpipe.blocks.regression import CrossProducts, target_matrix
from dpipe.blocks.table import Block, numbers
from dpipe.blocks.threads import single_threaded_blas
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import stand_in
from dpipe.families.linear import centred, put
from dpipe.families.registry import Estimator, Meta, Refinement, Rounds, refined


@dataclass(frozen=True)
class SquaredErrors:
    """Squared errors of rows that were left out, added up."""

    n_rows: int
    sums: np.ndarray
    """Of shape (n_alphas, n_targets)."""

    def merge(self, other: Self) -> Self:
        """Join with those of later rows."""
        return type(self)(self.n_rows + other.n_rows, self.sums + other.sums)


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Wants the squared errors of leave-one-out ridge regressions, for every penalty.

    References
    ----------
    Rifkin, Lippert (2007), Notes on regularized least squares, MIT-CSAIL-TR-2007-025: the error of a row that was left
    out is its residual, divided by one minus its leverage.
    """

    x_mean: np.ndarray
    """Zeros without an intercept, as `y_mean`."""
    y_mean: np.ndarray
    vectors: np.ndarray
    """Eigenvectors of X'X; shape (n_features, n_features)."""
    shrunk: np.ndarray
    """1 / (eigenvalue + alpha); shape (n_alphas, n_features)."""
    projected: np.ndarray
    """vectors' X'y; shape (n_features, n_targets)."""
    mean_share: float
    """What the intercept adds to the leverage of a row of weight one."""
    name: ClassVar[str] = "errors of rows that are left out"

    def of(self, X: Block, y: np.ndarray, w: np.ndarray | None = None) -> SquaredErrors:
        """Read one block."""
        matrix, target = numbers(X), target_matrix(y)
        weights = np.ones(len(target)) if w is None else np.asarray(w, dtype=np.float64)
        with single_threaded_blas():
            turned = np.asarray(matrix.astype(np.float64) @ self.vectors) - self.x_mean @ self.vectors
            leverage = turned**2 @ self.shrunk.T
            sums = np.empty((len(self.shrunk), target.shape[1]))
            for i, shrunk in enumerate(self.shrunk):
                residual = target - self.y_mean - turned @ (shrunk[:, None] * self.projected)
                kept = 1 - weights * (leverage[:, i] + self.mean_share)
                sums[i] = ((residual / kept[:, None]) ** 2 * weights[:, None]).sum(axis=0)
        return SquaredErrors(len(target), sums)


def _check(estimator: Estimator) -> None:
    if estimator.scoring is not None:
        raise UnsupportedEstimatorError(
            f"RidgeCV(cv=None, scoring={estimator.scoring!r}) scores the predictions of all rows together. Use "
            "scoring=None, the squared error, or cv=5."
        )
    if estimator.store_cv_results:
        raise UnsupportedEstimatorError(
            "RidgeCV(store_cv_results=True) keeps an error for each row and penalty. Use store_cv_results=False."
        )


def _refine(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    products: CrossProducts = stats[0]
    width, n_targets = products.xy.shape
    X = stand_in.numeric(meta, width, products.dtype, rows=3, sparse=products.sparse)
    fitted = clone(estimator).fit(X, np.zeros(3 if products.y_is_1d else (3, n_targets)))
    xx, xy = centred(estimator, products)
    eigenvalues, vectors = scipy.linalg.eigh(xx)
    eigenvalues = np.clip(eigenvalues, 0, None)
    alphas = np.atleast_1d(np.asarray(estimator.alphas, dtype=np.float64))
    shrunk = 1 / (eigenvalues + alphas[:, None])
    projected = vectors.T @ xy
    intercept = bool(estimator.fit_intercept)
    (errors,) = yield (
        LeftOut(
            products.x_mean * intercept,
            products.y_mean * intercept,
            vectors,
            shrunk,
            projected,
            1 / products.weight if intercept else 0.0,
        ),
    )
    scores = -errors.sums / errors.n_rows
    if np.isnan(scores).any():
        raise InputError("RidgeCV: X, y or the weights are too large to be squared. Scale them first.")
    if estimator.alpha_per_target and n_targets > 1:
        best = scores.argmax(axis=0)
        fitted.alpha_, fitted.best_score_ = alphas[best], scores[best, np.arange(n_targets)]
    else:
        total = scores.mean(axis=1)
        best = np.full(n_targets, total.argmax())
        fitted.alpha_, fitted.best_score_ = float(alphas[best[0]]), total[best[0]]
        if estimator.alpha_per_target:
            fitted.best_score_ = scores[best, np.arange(n_targets)][0]
    coef = vectors @ (shrunk[best].T * projected)
    return put(fitted, coef, products)


def _rounds(estimator: Estimator) -> Rounds:
    return Rounds(1, "errors of rows that are left out")


def _wants(estimator: Estimator) -> tuple[Any, ...]:
    return (CrossProducts,)


#: How RidgeCV(cv=None) is fitted.
LEAVE_ONE_OUT = refined(
    _refine, _rounds, _wants, check=_check, needs_y=True, exact="1e-9 relative, for well-conditioned X"
)
