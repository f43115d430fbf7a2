"""What minimises an objective over the rows, varied."""

import numpy as np
from sklearn.linear_model import (
    GammaRegressor,
    HuberRegressor,
    LogisticRegression,
    PoissonRegressor,
    TweedieRegressor,
)
from sklearn.svm import LinearSVC, LinearSVR

from tests.families.conformance import ARRAYS, CSR, FRAMES, Case, each

SCALED = ("plain", "small", "positive", "flag")


def logistic():
    variants = [
        LogisticRegression(),
        LogisticRegression(C=0.1, class_weight="balanced", fit_intercept=False),
        LogisticRegression(C=np.inf, max_iter=200),
    ]
    for y in ("text", "flag"):
        yield from each(variants, (SCALED, FRAMES + ARRAYS), y=y, rtol=1e-6)
        yield from each(variants, (SCALED, ("frame", "array")), y=y, weighted=True, rtol=1e-6)
    yield Case(LogisticRegression(), SCALED, CSR, y="label", rtol=1e-6)
    newton = LogisticRegression(solver="newton-cholesky")
    yield Case(newton, SCALED, FRAMES, y="flag", rtol=1e-6)
    yield Case(newton, SCALED, ("frame", "array"), y="flag", weighted=True, rtol=1e-6)
    yield Case(LogisticRegression(), ("single", "single_more"), ("frame", "array"), y="label", rtol=1e-3)
    yield Case(
        LogisticRegression(class_weight={"no": 2.0, "yes": 0.5}), SCALED, ("frame",), y="text", rtol=1e-6
    )


def other_solvers():
    """Solvers that visit single rows stop short of the minimum that is found here."""
    exact = {"tol": 1e-10, "max_iter": 20_000}
    variants = [
        LogisticRegression(solver="newton-cg", tol=1e-10),
        LogisticRegression(solver="saga", l1_ratio=1.0, C=0.5, **exact),
        LogisticRegression(solver="saga", l1_ratio=0.4, C=0.5, **exact),
        LogisticRegression(solver="liblinear", C=0.5, **exact),
        LogisticRegression(solver="liblinear", l1_ratio=1.0, C=0.5, intercept_scaling=2.0, **exact),
    ]
    yield from each(variants, (SCALED, ("frame", "array")), y="flag", rtol=1e-5, own_steps=True)
    # on sparse rows, SAGA finds the intercept to a few digits only
    plain = LogisticRegression(
        solver="saga", l1_ratio=1.0, C=0.5, fit_intercept=False, random_state=0, **exact
    )
    yield Case(plain, SCALED, CSR, y="flag", rtol=1e-5, own_steps=True)
    variants = [
        LinearSVC(**exact),
        LinearSVC(penalty="l1", dual=False, C=0.3, **exact),
        LinearSVC(fit_intercept=False, class_weight="balanced", dual=False, **exact),
    ]
    for y in ("flag", "text"):
        yield from each(variants, (SCALED, FRAMES + ARRAYS), y=y, rtol=1e-5, own_steps=True)
    yield Case(LinearSVC(dual=False, **exact), SCALED, CSR, y="label", rtol=1e-5, own_steps=True)
    variants = [
        LinearSVR(loss="squared_epsilon_insensitive", epsilon=0.2, dual=False, **exact),
        LinearSVR(loss="squared_epsilon_insensitive", dual=False, C=0.1, fit_intercept=False, **exact),
    ]
    yield from each(variants, (SCALED, FRAMES + ARRAYS), y="number", rtol=1e-5, own_steps=True)
    yield from each(variants, (SCALED, ("frame",)), y="number", weighted=True, rtol=1e-5, own_steps=True)


def generalised():
    variants = [PoissonRegressor(), PoissonRegressor(alpha=0.1, fit_intercept=False)]
    variants.append(PoissonRegressor(solver="newton-cholesky"))
    yield from each(variants, (SCALED, FRAMES + ARRAYS), y="label", rtol=1e-6)
    yield from each(variants, (SCALED, ("frame",)), y="label", weighted=True, rtol=1e-6)
    yield Case(PoissonRegressor(), SCALED, CSR, y="label", rtol=1e-6)
    variants = [GammaRegressor(), GammaRegressor(solver="newton-cholesky", alpha=0.01)]
    yield from each(variants, (SCALED, FRAMES + ARRAYS), y="weight", rtol=1e-6)
    variants = [
        TweedieRegressor(),
        TweedieRegressor(power=1.5),
        TweedieRegressor(power=1, link="identity", fit_intercept=True, alpha=0.3),
    ]
    yield from each(variants, (SCALED, ("frame", "array")), y="weight", rtol=1e-6)


def robust():
    variants = [HuberRegressor(), HuberRegressor(epsilon=1.1, alpha=0.1, fit_intercept=False)]
    yield from each(variants, (SCALED, FRAMES + ARRAYS), y="number", rtol=1e-5)
    yield from each(variants, (SCALED, ("frame", "array")), y="number", weighted=True, rtol=1e-5)
    yield Case(HuberRegressor(), SCALED, CSR, y="number", rtol=1e-5)


TRANSFORMERS = ()
PREDICTORS = (logistic, other_solvers, generalised, robust)
