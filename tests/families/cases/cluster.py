"""Clusters and mixtures, varied."""

import numpy as np
from sklearn.cluster import BisectingKMeans, KMeans
from sklearn.mixture import GaussianMixture

from tests.families.conformance import ARRAYS, CSR, FRAMES, Case, each

TWO = ("plain", "positive_more")


def clusters():
    given = np.array([[0.0, 0.0], [1.0, 1.0], [-1.0, 3.0]])
    variants = [
        KMeans(3, random_state=0),
        KMeans(2, init="random", random_state=1),
        KMeans(3, init=given),
        KMeans(4, n_init=3, random_state=2, algorithm="elkan"),
        KMeans(3, init=given, max_iter=2, tol=0.0),
        # centers so far away that their clusters are empty at first
        KMeans(3, init=np.array([[0.0, 0.0], [90.0, 90.0], [-90.0, 90.0]])),
    ]
    yield from each(variants, (TWO, FRAMES + ARRAYS), (TWO, CSR))
    yield from each(variants, (TWO, ("frame", "array")), weighted=True)
    yield Case(KMeans(2, random_state=0), ("single", "single_more"), ("array",), rtol=1e-4)


def near_zero_at_the_root(ours, theirs):
    """The mean of what is centred is rounding; of sparse rows, scikit-learn keeps it as a matrix."""
    mine, root = ours._bisecting_tree.center, theirs._bisecting_tree.center
    np.testing.assert_allclose(mine, np.ravel(root), rtol=1e-9, atol=1e-12)
    theirs._bisecting_tree.center = mine


def splits():
    variants = [
        BisectingKMeans(4, random_state=0),
        BisectingKMeans(3, init="k-means++", n_init=3, random_state=1),
        BisectingKMeans(5, bisecting_strategy="largest_cluster", random_state=2),
    ]
    yield from each(variants, (TWO, FRAMES + ARRAYS), (TWO, CSR), align=near_zero_at_the_root)
    yield from each(variants, (TWO, ("frame", "array")), weighted=True, align=near_zero_at_the_root)


def mixtures():
    variants = [
        GaussianMixture(2, random_state=0),
        *(GaussianMixture(2, covariance_type=kind, random_state=0) for kind in ("tied", "diag", "spherical")),
        GaussianMixture(2, init_params="k-means++", random_state=1, n_init=2),
        GaussianMixture(2, init_params="random_from_data", random_state=1, max_iter=200),
        GaussianMixture(
            2, means_init=np.array([[0.0, 1.0], [1.0, 5.0]]), weights_init=[0.3, 0.7], random_state=0
        ),
    ]
    yield from each(variants, (TWO, FRAMES + ARRAYS), rtol=1e-6)


TRANSFORMERS = (clusters, splits)
PREDICTORS = (mixtures,)
