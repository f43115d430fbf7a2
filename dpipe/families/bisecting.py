"""BisectingKMeans: one cluster after another is split in two, each by Lloyd's iterations on its own rows.

References
----------
Steinbach, Karypis, Kumar (2000), A comparison of document clustering techniques.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.cluster import BisectingKMeans, kmeans_plusplus
from sklearn.cluster._bisect_k_means import _BisectingTree  # the fitted estimator predicts by it
from sklearn.utils import check_random_state

from dpipe.blocks.picked import Pick
from dpipe.blocks.statistics import Moments
from dpipe.blocks.table import Block, n_rows, numbers
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import stand_in
from dpipe.families.asking import Asking
from dpipe.families.cluster import (
    Assigned,
    Clustering,
    check_moments,
    lloyd,
    nearest,
    sample_matrix,
    sampled,
    slices,
    squared_distances,
)
from dpipe.families.registry import Estimator, Meta, Refinement, Rounds, Unweighted, add, refined

Path = tuple[tuple[np.ndarray, int], ...]
"""The splits that lead to a cluster: both centers of each, and which of them its rows are nearer to."""


def _on_path(X: Any, path: Path) -> np.ndarray:
    """Tell which rows of a matrix, less the mean, belong to a cluster."""
    mine = np.ones(X.shape[0], dtype=bool)
    for centers, side in path:
        mine &= nearest(X, centers) == side
    return mine


@dataclass(frozen=True, eq=False)
class OnPath:
    """Wants a statistic of the rows of one cluster."""

    want: Any
    path: Path
    mean: np.ndarray | None
    name: ClassVar[str] = "sums of clusters"

    def of(self, X: Block, y: Any = None, w: np.ndarray | None = None) -> Any:
        """Read one block."""
        mine = np.concatenate(
            [np.zeros(0, bool), *(_on_path(part, self.path) for _, part in slices(X, self.mean))]
        )
        return self.want.of(numbers(X)[mine], y, None if w is None else np.asarray(w)[mine])


@dataclass
class _Cluster:
    """A cluster of the tree in the making."""

    center: np.ndarray
    score: float
    path: Path = ()
    parts: "list[_Cluster]" = field(default_factory=list)

    def leaves(self) -> Iterator["_Cluster"]:
        if not self.parts:
            yield self
        for part in self.parts:
            yield from part.leaves()


@dataclass(frozen=True, eq=False)
class Leaves:
    """Wants the cluster of each row, and how far the rows are from their centers."""

    paths: tuple[Path, ...]
    centers: np.ndarray
    mean: np.ndarray | None
    name: ClassVar[str] = "clusters of the rows"

    def of(self, X: Block, y: Any = None, w: np.ndarray | None = None) -> Assigned:
        """Read one block."""
        labels = np.empty(n_rows(X), dtype=np.int32)
        inertia = np.zeros(len(self.paths))
        for rows, part in slices(X, self.mean):
            for i, path in enumerate(self.paths):
                labels[rows][_on_path(part, path)] = i
            weights = 1.0 if w is None else np.asarray(w, dtype=np.float64)[rows]
            far = weights * squared_distances(part, self.centers, labels[rows])
            inertia += np.bincount(labels[rows], far, minlength=len(inertia))
        nothing = np.zeros(len(inertia))
        return Assigned(nothing, nothing, inertia, labels)


def _split(
    estimator: Estimator, leaf: _Cluster, start: Callable[[], np.ndarray], mean: np.ndarray | None
) -> Asking:
    """Split a cluster in two, the best of several times; gives the `Clustering` of its rows."""
    best: Clustering | None = None
    for _ in range(estimator.n_init):
        run = lloyd(start(), mean, tol=estimator.tol, max_iter=estimator.max_iter)
        found = yield from _narrowed(run, leaf.path, mean)
        # a difference of rounding makes no better clustering
        if best is None or found.inertia < best.inertia * (1 - 1e-6):
            best = found
    return best


def _narrowed(run: Asking, path: Path, mean: np.ndarray | None) -> Asking:
    """Have a refinement read the rows of one cluster only."""
    wants = next(run)
    while True:
        stats = yield tuple(OnPath(want, path, mean) for want in wants)
        try:
            wants = run.send(stats)
        except StopIteration as stop:
            return stop.value


def _refine(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    moments: Moments = stats[0]
    check_moments(estimator, moments, estimator.n_clusters)
    mean = None if moments.sparse else moments.mean
    (picked,) = yield (Pick(sampled(moments, estimator.n_clusters, estimator.random_state)),)
    rows = sample_matrix(picked)
    rows = rows if mean is None else rows - mean
    weights = np.ones(rows.shape[0]) if picked.w is None else np.asarray(picked.w, dtype=np.float64)
    seeds = check_random_state(0 if estimator.random_state is None else estimator.random_state)
    root = _Cluster(moments.mean if mean is None else np.zeros(len(mean)), 0)
    for _ in range(estimator.n_clusters - 1):
        leaf = max(root.leaves(), key=lambda cluster: cluster.score)

        def start(path: Path = leaf.path) -> np.ndarray:
            mine = _on_path(rows, path)
            return _chosen(estimator, rows[mine], weights[mine], seeds)

        found = yield from _split(estimator, leaf, start, mean)
        by_inertia = estimator.bisecting_strategy == "biggest_inertia"
        scores = found.inertias if by_inertia else np.bincount(found.labels, minlength=2)
        leaf.parts = [
            _Cluster(found.centers[side], scores[side], (*leaf.path, (found.centers, side)))
            for side in (0, 1)
        ]
    leaves = list(root.leaves())
    centers = np.array([leaf.center for leaf in leaves])
    (last,) = yield (Leaves(tuple(leaf.path for leaf in leaves), centers, mean),)
    return _fitted(estimator, root, centers, last, moments, seeds, meta)


def _chosen(estimator: Estimator, rows: Any, weights: np.ndarray, seeds: np.random.RandomState) -> np.ndarray:
    """Choose two centers among the sampled rows of a cluster, as scikit-learn does."""
    if rows.shape[0] < 2:
        raise InputError(
            f"BisectingKMeans(n_clusters={estimator.n_clusters}): a cluster has too few rows in the sample to be "
            "split. Ask for fewer clusters."
        )
    if estimator.init == "k-means++":
        centers, _ = kmeans_plusplus(rows, 2, sample_weight=weights, random_state=seeds)
    else:
        centers = rows[seeds.choice(len(weights), size=2, replace=False, p=weights / weights.sum())]
    return centers.toarray() if sp.issparse(centers) else centers


def _fitted(
    estimator: Estimator,
    root: _Cluster,
    centers: np.ndarray,
    last: Assigned,
    moments: Moments,
    seeds: np.random.RandomState,
    meta: Meta,
) -> Estimator:
    made_up = stand_in.numeric(meta, len(moments.mean), moments.dtype, rows=estimator.n_clusters)
    made_up = stand_in.spread(made_up)
    fitted = clone(estimator).fit(sp.csr_matrix(made_up) if moments.sparse else made_up)
    dtype = fitted.cluster_centers_.dtype
    fitted._bisecting_tree = _as_tree(root, dtype, iter(range(len(centers))))
    fitted._random_state = seeds
    fitted._tol = type(fitted._tol)(estimator.tol * float(moments.variance.mean()))
    if not moments.sparse:
        fitted._X_mean = moments.mean.astype(dtype)
        centers = centers + moments.mean
    fitted.cluster_centers_, fitted.labels_ = centers.astype(dtype), last.labels
    fitted.inertia_ = type(fitted.inertia_)(last.inertia.sum())
    return fitted


def _as_tree(cluster: _Cluster, dtype: np.dtype[Any], labels: Iterator[int]) -> _BisectingTree:
    """Build the tree that the fitted estimator predicts by."""
    node = _BisectingTree(cluster.center.astype(dtype), None, cluster.score)
    if cluster.parts:
        node.left, node.right = (_as_tree(part, dtype, labels) for part in cluster.parts)
    else:
        node.label = next(labels)
    return node


def _check(estimator: Estimator) -> None:
    if callable(estimator.init):
        raise UnsupportedEstimatorError(
            "BisectingKMeans(init=<function>) cannot be fitted block by block. Use 'random' or 'k-means++'."
        )


add(
    BisectingKMeans,
    refined(
        _refine,
        lambda est: Rounds(
            (int(est.max_iter) + 1) * est.n_init * max(est.n_clusters - 1, 1) + 2, "sums of clusters", 2
        ),
        lambda est: (Unweighted(Moments),),
        check=_check,
        output=lambda est, meta: Meta(n_columns=est.n_clusters, dtype=meta.dtype),
        exact="the same iterations, from starts on at most 20,000 rows",
    ),
)
