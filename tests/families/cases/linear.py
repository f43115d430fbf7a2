"""Linear models, varied."""

from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    Ridge,
)

from tests.families.conformance import ARRAYS, CSR, FRAMES, REGULAR, Case, each


def regressors():
    variants = [
        LinearRegression(),
        LinearRegression(fit_intercept=False),
        Ridge(alpha=100.0, fit_intercept=False),
        Ridge(solver="cholesky"),
    ]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="number")
    yield from each(variants, (REGULAR, ("frame", "array")), y="number", weighted=True)
    yield from each(variants, (REGULAR, ("frame", "array")), y="two")
    yield from each(variants, (REGULAR, ("frame", "array")), y="two", weighted=True)
    # columns of single precision make scikit-learn solve in single precision
    yield from each(variants, (("single", "single_more"), ("frame", "array")), y="number", rtol=1e-3)
    yield Case(Ridge(alpha=[0.1, 10.0]), REGULAR, ("frame", "array"), y="two")
    yield Case(Ridge(tol=1e-12), REGULAR, CSR, y="number", rtol=1e-7)


def penalised():
    variants = [
        Lasso(0.1),
        ElasticNet(0.1),
        Lasso(0.1, fit_intercept=False),
        Lasso(0.1, positive=True, tol=1e-10),
        ElasticNet(0.1, selection="random", random_state=0),
        ElasticNet(0.5, l1_ratio=0.9, precompute=True),
    ]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="number", rtol=1e-6)
    yield from each(variants, (REGULAR, ("frame", "array")), y="number", weighted=True, rtol=1e-6)
    yield Case(Lasso(0.1), REGULAR, CSR, y="number", rtol=1e-6)


TRANSFORMERS = ()
PREDICTORS = (
    regressors,
    penalised,
)
