"""GaussianMixture: one reading for each step of expectation and maximisation.

References
----------
Dempster, Laird, Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import clone
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.mixture._gaussian_mixture import (  # scikit-learn's own factorisations, which its E-step needs
    _compute_precision_cholesky,
    _compute_precision_cholesky_from_precisions,
)
from sklearn.utils import check_random_state

from dpipe.blocks.picked import Pick
from dpipe.blocks.statistics import Moments
from dpipe.blocks.table import Block
from dpipe.blocks.threads import single_threaded_blas
from dpipe.errors import UnsupportedEstimatorError
from dpipe.families import stand_in
from dpipe.families.asking import Asking
from dpipe.families.cluster import check_moments, nearest, refine_kmeans, sample_matrix, sampled, slices
from dpipe.families.registry import Estimator, Meta, Refinement, Rounds, add, refined


@dataclass(frozen=True)
class Expected:
    """What the rows give to each component, about a reference point of its own."""

    n_rows: int
    log_likelihood: float
    weight: np.ndarray
    """Of shape (n_components,)."""
    first: np.ndarray
    """Sums of deviations; of shape (n_components, n_features)."""
    second: np.ndarray
    """Sums of their products (n_components, n_features, n_features), or squares (n_components, n_features)."""

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        return type(self)(
            self.n_rows + other.n_rows,
            self.log_likelihood + other.log_likelihood,
            self.weight + other.weight,
            self.first + other.first,
            self.second + other.second,
        )


def _soft(mixture: GaussianMixture, part: np.ndarray) -> tuple[float, np.ndarray]:
    """scikit-learn's E-step: the log-likelihood, and how much of each row belongs to each component."""
    norms, log_shares = mixture._estimate_log_prob_resp(part)
    return float(norms.sum()), np.exp(log_shares)


def _hard(centers: np.ndarray, part: np.ndarray) -> tuple[float, np.ndarray]:
    return 0.0, np.eye(len(centers))[nearest(part, centers)]


@dataclass(frozen=True, eq=False)
class Expectation:
    """Wants what the rows give to each component."""

    share: Callable[[np.ndarray], tuple[float, np.ndarray]]
    about: np.ndarray
    """A reference point of each component, near its mean so that nothing cancels."""
    full: bool
    """Whether products of different columns are needed."""
    name: ClassVar[str] = "expected sums of the components"

    def of(self, X: Block, y: Any = None, w: np.ndarray | None = None) -> Expected:
        """Read one block."""
        k, width = self.about.shape
        weight, first = np.zeros(k), np.zeros((k, width))
        second = np.zeros((k, width, width) if self.full else (k, width))
        total, n = 0.0, 0
        with single_threaded_blas():
            for _, part in slices(X, None):
                found, shares = self.share(part)
                total, n, weight = total + found, n + len(part), weight + shares.sum(axis=0)
                for j in range(k):
                    deviations = part - self.about[j]
                    weighed = deviations * shares[:, j : j + 1]
                    first[j] += weighed.sum(axis=0)
                    second[j] += (
                        weighed.T @ deviations if self.full else np.einsum("ij,ij->j", weighed, deviations)
                    )
        return Expected(n, total, weight, first, second)


def _maximised(mixture: GaussianMixture, found: Expected, about: np.ndarray) -> None:
    """Set the parameters that the rows make most likely, as scikit-learn's M-step does."""
    weight = found.weight + 10 * np.finfo(np.float64).eps
    means = (found.weight[:, None] * about + found.first) / weight[:, None]
    shift = means - about
    kind = mixture.covariance_type
    if kind in ("full", "tied"):
        cross = found.first[:, :, None] * shift[:, None, :]
        spread = found.second - cross - cross.transpose(0, 2, 1)
        spread += found.weight[:, None, None] * shift[:, :, None] * shift[:, None, :]
        covariances = spread / weight[:, None, None] if kind == "full" else spread.sum(axis=0) / weight.sum()
        covariances = covariances + mixture.reg_covar * np.eye(means.shape[1])
    else:
        spread = found.second - 2 * found.first * shift + found.weight[:, None] * shift**2
        covariances = spread / weight[:, None] + mixture.reg_covar
        covariances = covariances.mean(axis=1) if kind == "spherical" else covariances
    mixture.weights_, mixture.means_, mixture.covariances_ = weight, means, covariances
    mixture.precisions_cholesky_ = _compute_precision_cholesky(covariances, kind)


def _start(mixture: GaussianMixture, moments: Moments, seeds: np.random.RandomState) -> Asking:
    """Set the first parameters: from k-means, or from some rows of a sample."""
    full = mixture.covariance_type in ("full", "tied")
    n = moments.n_rows
    if mixture.init_params == "kmeans":
        clusters = KMeans(n_clusters=mixture.n_components, n_init=1, random_state=seeds)
        best, mean, _ = yield from refine_kmeans(clusters, moments)
        centers = best.centers + mean
        (found,) = yield (Expectation(partial(_hard, centers), centers, full),)
        _maximised(mixture, found, centers)
    else:
        (picked,) = yield (Pick(sampled(moments, mixture.n_components, mixture.random_state)),)
        rows = sample_matrix(picked)
        if mixture.init_params == "k-means++":
            _, chosen = kmeans_plusplus(rows, mixture.n_components, random_state=seeds)
        else:
            chosen = seeds.choice(len(rows), size=mixture.n_components, replace=False)
        means = rows[chosen]
        k, width = means.shape
        second = np.zeros((k, width, width) if full else (k, width))
        _maximised(mixture, Expected(k, 0.0, np.ones(k), np.zeros((k, width)), second), means)
    mixture.weights_ = mixture.weights_ / n
    if mixture.weights_init is not None:
        mixture.weights_ = np.asarray(mixture.weights_init, dtype=np.float64)
    if mixture.means_init is not None:
        mixture.means_ = np.asarray(mixture.means_init, dtype=np.float64)
    if mixture.precisions_init is not None:
        mixture.precisions_cholesky_ = _compute_precision_cholesky_from_precisions(
            np.asarray(mixture.precisions_init, dtype=np.float64), mixture.covariance_type
        )


@dataclass(frozen=True)
class _Run:
    mixture: GaussianMixture
    bounds: list[float]
    converged: bool


def _climb(estimator: Estimator, moments: Moments, seeds: np.random.RandomState) -> Asking:
    """Run the steps of one start until the likelihood stays; gives a `_Run`."""
    mixture = clone(estimator)
    yield from _start(mixture, moments, seeds)
    full = mixture.covariance_type in ("full", "tied")
    bounds: list[float] = []
    bound = -np.inf
    for _ in range(estimator.max_iter):
        about = mixture.means_
        (found,) = yield (Expectation(partial(_soft, mixture), about, full),)
        mixture, before = clone(estimator), bound
        _maximised(mixture, found, about)
        mixture.weights_ = mixture.weights_ / mixture.weights_.sum()
        bound = np.float64(found.log_likelihood / found.n_rows)
        bounds.append(bound)
        if abs(bound - before) < estimator.tol:
            return _Run(mixture, bounds, True)
    return _Run(mixture, bounds, False)


def _refine(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    moments: Moments = stats[0]
    check_moments(estimator, moments, estimator.n_components)
    seeds = check_random_state(0 if estimator.random_state is None else estimator.random_state)
    best: _Run | None = None
    for _ in range(estimator.n_init):
        run = yield from _climb(estimator, moments, seeds)
        if best is None or (run.bounds and run.bounds[-1] > best.bounds[-1]):
            best = run
    assert best is not None
    if not best.converged and estimator.max_iter > 0:
        warnings.warn(
            "Best performing initialization did not converge. Try different init parameters, or increase max_iter, "
            "tol, or check for degenerate data.",
            ConvergenceWarning,
            stacklevel=2,
        )
    rows = max(2, estimator.n_components)
    X = stand_in.spread(stand_in.numeric(meta, len(moments.mean), moments.dtype, rows=rows))
    given = {name: getattr(estimator, name) for name in ("n_init", "max_iter", "init_params")}
    # a step on the stand-in may find nothing to divide by; only its names are wanted
    fitted = clone(estimator).set_params(n_init=1, max_iter=0, init_params="random_from_data").fit(X)
    fitted.set_params(**given)
    dtype = fitted.means_.dtype
    names = ("weights_", "means_", "covariances_", "precisions_cholesky_")
    fitted._set_parameters(tuple(getattr(best.mixture, name).astype(dtype) for name in names))
    fitted.converged_, fitted.n_iter_ = best.converged, len(best.bounds)
    fitted.lower_bounds_ = best.bounds
    fitted.lower_bound_ = best.bounds[-1] if best.bounds else -np.inf
    return fitted


def _check(estimator: Estimator) -> None:
    if estimator.init_params == "random":
        raise UnsupportedEstimatorError(
            "GaussianMixture(init_params='random') cannot be fitted block by block: it draws numbers for every row. "
            "Use 'kmeans', 'k-means++' or 'random_from_data'."
        )
    if estimator.warm_start:
        raise UnsupportedEstimatorError(
            "GaussianMixture(warm_start=True) cannot be fitted block by block. Use warm_start=False."
        )


def _rounds(estimator: Estimator) -> Rounds:
    clustering = 302 if estimator.init_params == "kmeans" else 1
    return Rounds(
        estimator.n_init * (int(estimator.max_iter) + clustering), "expected sums of the components", least=3
    )


add(
    GaussianMixture,
    refined(
        _refine,
        _rounds,
        lambda est: (Moments,),
        check=_check,
        exact="the same iterations, from a start on at most 20,000 rows",
    ),
)
