"""Naive Bayes, and other classifiers and regressors of one pass, varied."""

from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import (
    RidgeClassifier,
)
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neighbors import NearestCentroid

from tests.families.conformance import ARRAYS, CSR, FRAMES, REGULAR, Case, each


def bayes():
    variants = [GaussianNB(), GaussianNB(priors=[0.2, 0.3, 0.5]), GaussianNB(var_smoothing=1e-3)]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="label")
    yield from each(variants, (REGULAR, ("frame", "array")), y="text")
    yield from each(variants, (REGULAR, ("frame", "array")), y="text", weighted=True)


def counting_bayes():
    counts = ("small", "flag", "positive")
    variants = [
        MultinomialNB(),
        MultinomialNB(fit_prior=False, alpha=0.1),
        ComplementNB(),
        ComplementNB(norm=True),
        BernoulliNB(),
        BernoulliNB(binarize=1.0, class_prior=[0.2, 0.3, 0.5]),
    ]
    yield from each(variants, (counts, FRAMES + ARRAYS), (counts, CSR), y="label")
    yield from each(variants, (counts, ("frame", "array")), y="text", weighted=True)


def categorical_bayes():
    variants = [
        CategoricalNB(),
        CategoricalNB(alpha=0.1, fit_prior=False),
        CategoricalNB(min_categories=7),
    ]
    codes = ("small", "flag", "whole_positive")
    yield from each(variants, (codes, FRAMES + ARRAYS), y="label")
    yield from each(variants, (codes, ("frame", "array")), y="text", weighted=True)


def classifiers():
    variants = [RidgeClassifier(), RidgeClassifier(alpha=10.0, fit_intercept=False)]
    for y in ("label", "flag"):
        yield from each(variants, (REGULAR[:4], FRAMES + ARRAYS), y=y, rtol=1e-7)
        yield from each(variants, (REGULAR[:4], ("frame", "array")), y=y, weighted=True, rtol=1e-7)
    yield Case(RidgeClassifier(tol=1e-12), REGULAR[:4], CSR, y="text", rtol=1e-6)
    balanced = RidgeClassifier(class_weight="balanced", tol=1e-12)
    variants = [balanced, RidgeClassifier(positive=True, tol=1e-10)]
    for y, shares in (
        ("label", {0: 2.0, 2: 0.5}),
        ("text", {"no": 2.0, "yes": 0.5, "maybe": 3.0}),
        ("flag", {True: 3.0}),
    ):
        chosen = [*variants, RidgeClassifier(class_weight=shares, fit_intercept=False)]
        yield from each(chosen, (REGULAR[:4], ("frame", "array")), y=y, rtol=1e-5)
        yield from each(chosen, (REGULAR[:4], ("frame", "array")), y=y, weighted=True, rtol=1e-5)
    yield Case(balanced, REGULAR[:4], FRAMES + ARRAYS + CSR, y="text", rtol=1e-6)
    variants = [NearestCentroid(), NearestCentroid(shrink_threshold=0.1), NearestCentroid(priors="uniform")]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), (REGULAR, CSR[:1]), y="text", rtol=1e-7)


def dummies():
    variants = [
        DummyClassifier(strategy=strategy, random_state=0)
        for strategy in ("prior", "most_frequent", "stratified", "uniform")
    ]
    variants.append(DummyClassifier(strategy="constant", constant="yes"))
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="text")
    yield from each(variants, (REGULAR, ("frame", "array")), y="text", weighted=True)
    variants = [DummyRegressor(), DummyRegressor(strategy="constant", constant=3.0)]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="number")
    yield from each(variants, (REGULAR, ("frame", "array")), y="number", weighted=True)
    yield Case(DummyRegressor(), REGULAR, ("frame", "array"), y="two")


TRANSFORMERS = ()
PREDICTORS = (
    bayes,
    counting_bayes,
    categorical_bayes,
    classifiers,
    dummies,
)
