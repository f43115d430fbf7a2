"""Discriminant analysis, varied."""

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis

from tests.families.conformance import ARRAYS, FRAMES, REGULAR, each
from tests.kernel_cases import assert_same_array


def turn_like(ours, theirs):
    """Give our vectors the signs of theirs, which are an accident of the solver."""
    signs = np.sign((ours * theirs).sum(axis=0))
    ours *= signs


def align_linear(ours, theirs):
    """Only the discriminants are determined, up to their signs; the eigen solver adds others that fit no data."""
    if theirs.solver == "lsqr":
        return
    kept = theirs._max_components
    turn_like(ours.scalings_[:, :kept], theirs.scalings_[:, :kept])
    if theirs.solver == "eigen":
        spheres = [found.scalings_.T @ found.covariance_ @ found.scalings_ for found in (ours, theirs)]
        assert_same_array(*spheres, rtol=1e-7, atol=1e-7)
        assert ours.scalings_.shape == theirs.scalings_.shape
        ours.scalings_[:, kept:] = theirs.scalings_[:, kept:]


def align_quadratic(ours, theirs):
    for mine, other in zip(ours.rotations_, theirs.rotations_, strict=True):
        turn_like(mine, other)


def linear():
    variants = [
        LinearDiscriminantAnalysis(),
        LinearDiscriminantAnalysis(n_components=1, store_covariance=True),
        LinearDiscriminantAnalysis(priors=[0.2, 0.3, 0.5], tol=1e-3),
        *(
            LinearDiscriminantAnalysis(solver=solver, shrinkage=shrinkage)
            for solver in ("lsqr", "eigen")
            for shrinkage in (None, 0.3, "auto")
        ),
        LinearDiscriminantAnalysis(solver="eigen", priors=[0.2, 0.3, 0.5]),
    ]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="label", rtol=1e-7, align=align_linear)
    two = [variant for variant in variants if variant.priors is None]
    yield from each(two, (REGULAR, ("frame", "array")), y="flag", rtol=1e-7, align=align_linear)
    yield from each(two[:1], (REGULAR, ("frame", "array")), y="text", rtol=1e-7, align=align_linear)
    single = (("single", "single_more"), ("frame", "array"))
    yield from each(variants[:1], single, y="label", rtol=1e-2, align=align_linear)


def quadratic():
    variants = [
        QuadraticDiscriminantAnalysis(),
        QuadraticDiscriminantAnalysis(store_covariance=True, reg_param=0.1),
        QuadraticDiscriminantAnalysis(priors=[0.2, 0.3, 0.5]),
        *(
            QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=shrinkage, store_covariance=True)
            for shrinkage in (None, 0.3, "auto")
        ),
    ]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="label", rtol=1e-7, align=align_quadratic)
    yield from each(variants[:1], (REGULAR, ("frame", "array")), y="text", rtol=1e-7, align=align_quadratic)
    single = (("single", "single_more"), ("frame", "array"))
    yield from each(variants[:1], single, y="label", rtol=1e-3, align=align_quadratic)


TRANSFORMERS = (linear,)
PREDICTORS = (quadratic,)
