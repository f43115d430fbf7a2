"""KMeans: Lloyd's iterations, one reading each, from a start that is chosen on a sample of the rows.

With as few rows as the sample takes, or with given centers, the iterations are scikit-learn's own.

References
----------
Lloyd (1982), Least squares quantization in PCM. Arthur, Vassilvitskii (2007), k-means++.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from dpipe.blocks.picked import Pick, Picked
from dpipe.blocks.statistics import Moments
from dpipe.blocks.table import Block, numbers
from dpipe.blocks.threads import single_threaded_blas
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import refuse, stand_in
from dpipe.families.asking import Asking, together
from dpipe.families.registry import Estimator, Meta, Refinement, Rounds, Unweighted, add, refined

#: Rows on which a start is chosen: of as many or fewer, all of them.
SAMPLED_ROWS = 20_000
#: Bytes of these in float64, and how many there are of very wide rows all the same.
_SAMPLED_NBYTES, _FEWEST_SAMPLED = 2**27, 256
#: Rows that are worked on at a time: their distances stay in the processor's cache.
_ROWS_AT_A_TIME = 4096


def slices(X: Block, mean: np.ndarray | None) -> Iterator[tuple[slice, Any]]:
    """Give the rows of a block, some at a time, as float64 less the mean; sparse rows are not shifted."""
    matrix = numbers(X)
    for start in range(0, matrix.shape[0], _ROWS_AT_A_TIME):
        rows = slice(start, min(start + _ROWS_AT_A_TIME, matrix.shape[0]))
        part = matrix[rows].astype(np.float64)
        yield rows, part if mean is None or sp.issparse(part) else np.ascontiguousarray(part) - mean


@dataclass(frozen=True)
class Assigned:
    """Sums over the rows nearest to each center."""

    weight: np.ndarray
    """Of shape (n_clusters,)."""
    sums: np.ndarray
    """Of shape (n_clusters, n_features)."""
    inertia: np.ndarray
    """Squared distances of its rows, where they were asked for; of shape (n_clusters,)."""
    labels: np.ndarray | None
    """int32 of shape (n_rows,), where they were asked for."""

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        labels = (
            None
            if self.labels is None or other.labels is None
            else np.concatenate([self.labels, other.labels])
        )
        return type(self)(
            self.weight + other.weight, self.sums + other.sums, self.inertia + other.inertia, labels
        )


@dataclass(frozen=True, eq=False)
class Nearest:
    """Wants the rows nearest to each center added up; or, at the end, who they are."""

    centers: np.ndarray
    """Of shape (n_clusters, n_features), less the mean."""
    mean: np.ndarray | None
    final: bool = False
    name: ClassVar[str] = "sums of clusters"

    def of(self, X: Block, y: Any = None, w: np.ndarray | None = None) -> Assigned:
        """Read one block."""
        n, k = X.shape[0] if not hasattr(X, "num_rows") else X.num_rows, len(self.centers)
        weights = np.ones(n) if w is None else np.asarray(w, dtype=np.float64)
        labels = np.empty(n, dtype=np.int32)
        sums = np.zeros_like(self.centers)
        inertia = np.zeros(k)
        with single_threaded_blas():
            for rows, part in slices(X, self.mean):
                mine = labels[rows] = nearest(part, self.centers)
                if self.final:
                    far = weights[rows] * squared_distances(part, self.centers, mine)
                    inertia += np.bincount(mine, far, minlength=k)
                else:
                    each = np.arange(len(mine))
                    chosen = sp.csr_array((weights[rows], (mine, each)), shape=(k, len(mine)))
                    found = chosen @ part
                    sums += found.toarray() if sp.issparse(found) else found
        total = np.bincount(labels, weights, minlength=k)
        return Assigned(total, sums, inertia, labels if self.final else None)


def nearest(part: Any, centers: np.ndarray) -> np.ndarray:
    """Give the nearest center of each row; of several, the first."""
    distances = (centers**2).sum(axis=1) - 2 * np.asarray(part @ centers.T)
    return distances.argmin(axis=1)


def squared_distances(part: Any, centers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Squared distance of each row from its center."""
    rows = part.toarray() if sp.issparse(part) else part
    return ((rows - centers[labels]) ** 2).sum(axis=1)


@dataclass(frozen=True)
class FarRows:
    """The rows that are farthest from their centers, the farthest first."""

    most: int
    distances: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        both = [
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("distances", "rows", "labels", "weights")
        ]
        kept = np.argsort(-both[0], kind="stable")[: self.most]
        return type(self)(self.most, *(values[kept] for values in both))


@dataclass(frozen=True, eq=False)
class Farthest:
    """Wants the rows that are farthest from their centers: they take the place of empty clusters."""

    centers: np.ndarray
    mean: np.ndarray | None
    most: int
    name: ClassVar[str] = "farthest rows"

    def of(self, X: Block, y: Any = None, w: np.ndarray | None = None) -> FarRows:
        """Read one block."""
        k = self.centers.shape[1]
        found = FarRows(self.most, np.empty(0), np.empty((0, k)), np.empty(0, int), np.empty(0))
        for rows, part in slices(X, self.mean):
            labels = nearest(part, self.centers)
            dense = part.toarray() if sp.issparse(part) else part
            weights = np.ones(len(labels)) if w is None else np.asarray(w, dtype=np.float64)[rows]
            far = squared_distances(part, self.centers, labels)
            found = found.merge(FarRows(self.most, far, dense, labels, weights))
        return found


@dataclass(frozen=True)
class Clustering:
    """Where the iterations have ended."""

    centers: np.ndarray
    """Less the mean."""
    labels: np.ndarray
    inertias: np.ndarray
    """Of each cluster."""
    n_iter: int

    @property
    def inertia(self) -> float:
        """Of all clusters."""
        return float(self.inertias.sum())


def lloyd(start: np.ndarray, mean: np.ndarray | None, *, tol: float, max_iter: int) -> Asking:
    """Move centers to the mean of the rows nearest to them until they stay; gives `Clustering`."""
    centers = start
    n_iter = 0
    shift = np.inf
    while n_iter < max_iter and shift > tol:
        (found,) = yield (Nearest(centers, mean),)
        sums, weight = found.sums.copy(), found.weight.copy()
        empty = np.flatnonzero(weight == 0)
        if len(empty):
            (far,) = yield (Farthest(centers, mean, len(empty)),)
            for cluster, row, label, w in zip(empty, far.rows, far.labels, far.weights, strict=False):
                sums[label] -= row * w
                weight[label] -= w
                sums[cluster], weight[cluster] = row * w, w
        moved = np.where(weight[:, None] > 0, sums / np.where(weight, weight, 1.0)[:, None], sums)
        shift = float(((moved - centers) ** 2).sum())
        centers = moved
        n_iter += 1
    (last,) = yield (Nearest(centers, mean, final=True),)
    return Clustering(centers, last.labels, last.inertia, n_iter)


def sampled(moments: Moments, n_clusters: int, random_state: Any) -> np.ndarray:
    """Choose the rows on which a start is found; all of a few rows, and fewer of those that are very wide."""
    n_rows, row_nbytes = moments.n_rows, 0 if moments.sparse else 8 * len(moments.mean)
    most = max(_SAMPLED_NBYTES // max(row_nbytes, 1), _FEWEST_SAMPLED, 10 * n_clusters)
    most = min(most, SAMPLED_ROWS)
    if n_rows <= most:
        return np.arange(n_rows)
    seed = random_state if isinstance(random_state, int | np.integer) else 0
    return np.sort(np.random.default_rng(int(seed)).choice(n_rows, most, replace=False, shuffle=False))


def sample_matrix(picked: Picked) -> Any:
    """Give the sampled rows as a float64 matrix."""
    X = picked.X
    matrix = numbers(X) if isinstance(X, pd.DataFrame) or sp.issparse(X) else numbers(np.asarray(X))
    return (
        matrix.astype(np.float64) if sp.issparse(matrix) else np.ascontiguousarray(matrix, dtype=np.float64)
    )


def check_moments(estimator: Estimator, moments: Moments, at_least: int) -> None:
    """Refuse missing and infinite values, and too few rows."""
    complete = bool((moments.observed == moments.n_rows).all())
    refuse.gaps(estimator, finite=complete and refuse.is_finite(moments.mean, moments.m2), what="X")
    if moments.n_rows < at_least:
        raise InputError(
            f"{type(estimator).__name__} looks for {at_least} clusters, but there are only {moments.n_rows} rows. "
            "Ask for fewer."
        )


def _n_init(estimator: Estimator) -> int:
    if not isinstance(estimator.init, str):
        return 1
    automatic = 1 if estimator.init == "k-means++" else 10
    return automatic if estimator.n_init == "auto" else int(estimator.n_init)


def _starts(estimator: Estimator, picked: Picked, mean: np.ndarray | None) -> list[np.ndarray]:
    rows = sample_matrix(picked)
    rows = rows if mean is None else rows - mean
    weights = np.ones(rows.shape[0]) if picked.w is None else np.asarray(picked.w, dtype=np.float64)
    seeds = check_random_state(0 if estimator.random_state is None else estimator.random_state)
    starts = []
    for _ in range(_n_init(estimator)):
        if estimator.init == "k-means++":
            found, _ = kmeans_plusplus(rows, estimator.n_clusters, sample_weight=weights, random_state=seeds)
        else:
            chosen = seeds.choice(
                len(weights), size=estimator.n_clusters, replace=False, p=weights / weights.sum()
            )
            found = rows[chosen]
        starts.append(found.toarray() if sp.issparse(found) else found)
    return starts


def refine_kmeans(estimator: Estimator, moments: Moments) -> Asking:
    """Cluster; gives the best `Clustering`, and what was taken off the rows."""
    check_moments(estimator, moments, estimator.n_clusters)
    mean = None if moments.sparse else moments.mean
    if isinstance(estimator.init, str):
        (picked,) = yield (Pick(sampled(moments, estimator.n_clusters, estimator.random_state)),)
        starts = _starts(estimator, picked, mean)
    else:
        starts = [np.array(estimator.init, dtype=np.float64) - (0.0 if mean is None else mean)]
    tol = estimator.tol * float(moments.variance.mean())
    runs = yield from together([lloyd(start, mean, tol=tol, max_iter=estimator.max_iter) for start in starts])
    best = runs[0]
    for run in runs[1:]:
        # a difference of rounding makes no better clustering
        best = run if run.inertia < best.inertia * (1 - 1e-12) else best
    return best, mean, tol


def _refine(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    moments: Moments = stats[0]
    best, mean, tol = yield from refine_kmeans(estimator, moments)
    n_distinct = len(np.unique(best.labels))
    if n_distinct < estimator.n_clusters:
        warnings.warn(
            f"Number of distinct clusters ({n_distinct}) found smaller than n_clusters ({estimator.n_clusters}). "
            "Possibly due to duplicate points in X.",
            ConvergenceWarning,
            stacklevel=2,
        )
    rows = stand_in.numeric(meta, len(moments.mean), moments.dtype, rows=estimator.n_clusters)
    rows = stand_in.spread(rows)
    fitted = clone(estimator).fit(sp.csr_matrix(rows) if moments.sparse else rows)
    centers = best.centers + (0.0 if mean is None else mean)
    fitted.cluster_centers_ = centers.astype(fitted.cluster_centers_.dtype)
    fitted.labels_, fitted.n_iter_ = best.labels, best.n_iter
    fitted.inertia_ = type(fitted.inertia_)(best.inertia)
    fitted._tol = type(fitted._tol)(tol)
    return fitted


def _check(estimator: Estimator) -> None:
    if callable(estimator.init):
        raise UnsupportedEstimatorError(
            "KMeans(init=<function>) cannot be fitted block by block. Use 'k-means++', 'random' or an array of centers."
        )


def _rounds(estimator: Estimator) -> Rounds:
    return Rounds(int(estimator.max_iter) + 2, "sums of clusters", least=2)


add(
    KMeans,
    refined(
        _refine,
        _rounds,
        lambda est: (Unweighted(Moments),),
        check=_check,
        output=lambda est, meta: Meta(n_columns=est.n_clusters, dtype=meta.dtype),
        exact="the same iterations, from a start on at most 20,000 rows",
    ),
)
