"""RidgeCV and RidgeClassifierCV without folds: two passes, the second of which sums the errors of rows left out.

The error of a row in a regression that was fitted without it follows from its residual in the one that was fitted with
it, and from its leverage, which the eigenvectors of X'X give. So every penalty is scored in one reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import scipy.linalg
from sklearn.base import clone
from sklearn.linear_model import RidgeClassifierCV

from dpipe.blocks.regression import CrossProducts, target_matrix
from dpipe.blocks.table import Block, numbers
from dpipe.blocks.threads import single_threaded_blas
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import stand_in
from dpipe.families.linear import centred, class_products, class_weights, put, wants_of_classes
from dpipe.families.registry import Estimator, Meta, Refinement, Rounds, add, refined


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


@dataclass(frozen=True, eq=False)
class LeftOutOfClasses:
    """Wants the same where y is 1 for a class and -1 for the others."""

    labels: np.ndarray
    """Sorted; shape (n_classes,)."""
    weights: np.ndarray | None
    """Of a row of each class; None if all are 1."""
    errors: LeftOut
    name: ClassVar[str] = LeftOut.name

    def of(self, X: Block, y: np.ndarray, w: np.ndarray | None = None) -> SquaredErrors:
        """Read one block."""
        place = np.searchsorted(self.labels, y)
        coded = np.where(place[:, None] == np.arange(len(self.labels)), 1.0, -1.0)
        if self.weights is not None:
            w = self.weights[place] if w is None else self.weights[place] * w
        return self.errors.of(X, coded[:, 1:] if len(self.labels) == 2 else coded, w)


def _check(estimator: Estimator) -> None:
    name = type(estimator).__name__
    if estimator.cv is not None:
        raise UnsupportedEstimatorError(
            f"{name}(cv={estimator.cv!r}) scores each fold by the labels that it gives. Use cv=None, which leaves out "
            "one row at a time."
        )
    if estimator.scoring is not None:
        raise UnsupportedEstimatorError(
            f"{name}(cv=None, scoring={estimator.scoring!r}) scores the predictions of all rows together. Use "
            "scoring=None, the squared error."
        )
    if estimator.store_cv_results:
        raise UnsupportedEstimatorError(
            f"{name}(store_cv_results=True) keeps an error for each row and penalty. Use store_cv_results=False."
        )


def _refine(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    products: CrossProducts = stats[0]
    width, n_targets = products.xy.shape
    X = stand_in.numeric(meta, width, products.dtype, rows=3, sparse=products.sparse)
    fitted = clone(estimator).fit(X, np.zeros(3 if products.y_is_1d else (3, n_targets)))
    problem = _Problem(estimator, products)
    (errors,) = yield (problem.errors(),)
    return put(fitted, problem.chosen(fitted, errors), products)


def _refine_classes(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    labels, products = class_products(estimator, stats)
    rows = 3 * len(labels)
    X = stand_in.numeric(meta, len(products.x_mean), products.dtype, rows=rows, sparse=products.sparse)
    fitted = clone(estimator).fit(X, np.tile(labels, 3))
    weights = None
    if estimator.class_weight:
        counts = [stats[0].by_group[label].n_rows for label in labels.tolist()]
        weights = class_weights(estimator, labels, np.array(counts))
    problem = _Problem(estimator, products)
    (errors,) = yield (LeftOutOfClasses(labels, weights, problem.errors()),)
    coef = problem.chosen(fitted, errors)
    intercept = products.y_mean - products.x_mean @ coef
    fitted.coef_ = coef.T.reshape(np.shape(fitted.coef_)).astype(products.dtype)
    if estimator.fit_intercept:
        fitted.intercept_ = intercept.reshape(np.shape(fitted.intercept_)).astype(products.dtype)
    return fitted


class _Problem:
    """The ridge regressions of all penalties, by the eigenvectors of X'X."""

    def __init__(self, estimator: Estimator, products: CrossProducts) -> None:
        xx, xy = centred(estimator, products)
        eigenvalues, self.vectors = scipy.linalg.eigh(xx)
        self.alphas = np.atleast_1d(np.asarray(estimator.alphas, dtype=np.float64))
        self.shrunk = 1 / (np.clip(eigenvalues, 0, None) + self.alphas[:, None])
        self.projected = self.vectors.T @ xy
        self.products = products
        self.intercept = bool(estimator.fit_intercept)

    def errors(self) -> LeftOut:
        """Give what sums the errors."""
        return LeftOut(
            self.products.x_mean * self.intercept,
            self.products.y_mean * self.intercept,
            self.vectors,
            self.shrunk,
            self.projected,
            1 / self.products.weight if self.intercept else 0.0,
        )

    def chosen(self, fitted: Estimator, errors: SquaredErrors) -> np.ndarray:
        """Choose the penalties and put them down; give the coefficients, of shape (n_features, n_targets)."""
        scores = -errors.sums / errors.n_rows
        if np.isnan(scores).any():
            raise InputError(
                f"{type(fitted).__name__}: X, y or the weights are too large to be squared. Scale them first."
            )
        targets = np.arange(scores.shape[1])
        if getattr(fitted, "alpha_per_target", False) and len(targets) > 1:
            best = scores.argmax(axis=0)
            fitted.alpha_, fitted.best_score_ = self.alphas[best], scores[best, targets]
        else:
            total = scores.mean(axis=1)
            best = np.full(len(targets), total.argmax())
            fitted.alpha_, fitted.best_score_ = float(self.alphas[best[0]]), total[best[0]]
        coef: np.ndarray = self.vectors @ (self.shrunk[best].T * self.projected)
        return coef


def _rounds(estimator: Estimator) -> Rounds:
    return Rounds(1, "errors of rows that are left out")


def _wants(estimator: Estimator) -> tuple[Any, ...]:
    return (CrossProducts,)


#: How RidgeCV(cv=None) is fitted.
LEAVE_ONE_OUT = refined(
    _refine, _rounds, _wants, check=_check, needs_y=True, exact="1e-9 relative, for well-conditioned X"
)
add(
    RidgeClassifierCV,
    refined(
        _refine_classes,
        _rounds,
        wants_of_classes,
        check=_check,
        needs_y=True,
        exact="1e-9 relative, for well-conditioned X",
    ),
)
