"""Regressions that cross-validate themselves, varied."""

from sklearn.linear_model import (
    ElasticNetCV,
    LassoCV,
    MultiTaskElasticNetCV,
    MultiTaskLassoCV,
    RidgeClassifierCV,
    RidgeCV,
)
from sklearn.model_selection import KFold

from tests.families.conformance import CSR, REGULAR, Case, each

#: Kinds of input whose blocks tell how many rows they have.
PLACED = ("pandas", "array", "numpy")


def paths():
    variants = [
        LassoCV(),
        LassoCV(cv=3, alphas=[0.01, 1.0, 0.1], fit_intercept=False),
        LassoCV(cv=KFold(7), alphas=20, eps=1e-2, positive=True),
        ElasticNetCV(l1_ratio=[0.2, 0.9], alphas=10),
        ElasticNetCV(l1_ratio=0.5, alphas=10, precompute=False, selection="random", random_state=0),
    ]
    yield from each(variants, (REGULAR, PLACED), y="number", rtol=1e-6)
    yield from each(variants, (REGULAR, ("array",)), y="number", weighted=True, rtol=1e-6)
    yield Case(LassoCV(tol=1e-10, alphas=10), REGULAR, CSR, y="number", rtol=1e-6)
    variants = [MultiTaskLassoCV(alphas=10), MultiTaskElasticNetCV(alphas=5, l1_ratio=[0.3, 0.8], cv=3)]
    yield from each(variants, (REGULAR, PLACED), y="two", rtol=1e-6)
    yield from each(variants[:1], (REGULAR, ("array",)), y="two", weighted=True, rtol=1e-6)


def ridges():
    variants = [
        RidgeCV(cv=5),
        RidgeCV(alphas=[0.1, 100.0], cv=KFold(3), fit_intercept=False),
        RidgeCV(cv=4, scoring="neg_root_mean_squared_error"),
        RidgeCV(cv=4, scoring="explained_variance"),
    ]
    yield from each(variants, (REGULAR, PLACED), y="number")
    yield from each(variants, (REGULAR, ("array",)), y="number", weighted=True)
    yield from each(variants, (REGULAR, ("array",)), y="two")
    variants = [
        RidgeCV(),
        RidgeCV(alphas=[1e-3, 10.0, 1e4], fit_intercept=False),
        RidgeCV(alphas=2.5),
        RidgeCV(alphas=[30.0, 0.1], alpha_per_target=True, gcv_mode="svd"),
    ]
    yield from each(variants, (REGULAR, PLACED), y="number")
    yield from each(variants, (REGULAR, ("array", "pandas")), y="number", weighted=True)
    yield from each(variants, (REGULAR, ("array",)), y="two")
    yield from each(variants[:2], (REGULAR, CSR), y="number")
    yield Case(RidgeCV(cv=2), ("single", "single_more"), ("array", "pandas"), y="number", rtol=1e-3)


def ridge_classifiers():
    variants = [
        RidgeClassifierCV(),
        RidgeClassifierCV(alphas=[1e-3, 10.0, 1e4], fit_intercept=False),
        RidgeClassifierCV(class_weight="balanced"),
        RidgeClassifierCV(alphas=[3.0], class_weight={0: 1.0, 1: 0.5, 2: 4.0}),
    ]
    yield from each(variants, (REGULAR, PLACED), y="label")
    yield from each(variants, (REGULAR, ("array", "pandas")), y="label", weighted=True)
    yield from each(variants[:3], (REGULAR, ("array", "frame")), y="flag")
    yield from each(variants[:1], (REGULAR, ("frame", *CSR)), y="text")
    yield Case(RidgeClassifierCV(), ("single", "single_more"), ("array", "pandas"), y="text", rtol=1e-3)


TRANSFORMERS = ()
PREDICTORS = (
    paths,
    ridges,
    ridge_classifiers,
)
