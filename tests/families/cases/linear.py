"""Linear models, varied."""

from sklearn.linear_model import (
    ARDRegression,
    BayesianRidge,
    ElasticNet,
    Lars,
    Lasso,
    LassoLars,
    LinearRegression,
    MultiTaskElasticNet,
    MultiTaskLasso,
    OrthogonalMatchingPursuit,
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


def several_penalised():
    variants = [
        MultiTaskLasso(0.1),
        MultiTaskElasticNet(0.1, l1_ratio=0.3, tol=1e-10),
        MultiTaskElasticNet(0.2, fit_intercept=False, selection="random", random_state=0),
    ]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="two", rtol=1e-6)
    yield from each(variants, (REGULAR, ("frame", "array")), y="two", weighted=True, rtol=1e-6)
    yield Case(MultiTaskLasso(0.1, tol=1e-10), REGULAR, CSR, y="two", rtol=1e-6)


def positive():
    variants = [LinearRegression(positive=True), LinearRegression(positive=True, fit_intercept=False)]
    variants += [Ridge(positive=True), Ridge(10.0, positive=True, fit_intercept=False, tol=1e-8)]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="number", rtol=1e-5)
    yield from each(variants, (REGULAR, ("frame", "array")), y="two", weighted=True, rtol=1e-5)
    yield Case(Ridge(positive=True, tol=1e-8), REGULAR, CSR, y="number", rtol=1e-5)


def bayesian():
    variants = [
        BayesianRidge(),
        BayesianRidge(compute_score=True, tol=1e-8, alpha_init=2.0, lambda_init=0.1),
        BayesianRidge(fit_intercept=False, compute_score=True),
    ]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="number", rtol=1e-7)
    yield from each(variants, (REGULAR, ("frame", "array")), y="number", weighted=True, rtol=1e-7)
    variants += [
        ARDRegression(),
        ARDRegression(compute_score=True, tol=1e-8),
        ARDRegression(fit_intercept=False, threshold_lambda=1e3),
    ]
    yield from each(variants[3:], (REGULAR, FRAMES + ARRAYS), y="number", rtol=1e-7)
    single = (("single", "single_more"), ("frame", "array"))
    yield from each([variants[0], variants[3]], single, y="number", rtol=1e-2)


def paths():
    variants = [
        Lars(),
        Lars(n_nonzero_coefs=2, fit_intercept=False),
        Lars(fit_path=False, precompute=False),
    ]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="number")
    yield from each(variants, (REGULAR, ("frame", "array")), y="two")
    variants = [LassoLars(0.1), LassoLars(0.01, positive=True), LassoLars(0.1, fit_intercept=False)]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="number")
    variants = [
        OrthogonalMatchingPursuit(),
        OrthogonalMatchingPursuit(n_nonzero_coefs=3, precompute=False),
        OrthogonalMatchingPursuit(tol=300.0),
        OrthogonalMatchingPursuit(tol=300.0, fit_intercept=False, precompute=True),
    ]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="number")
    yield from each(variants, (REGULAR, ("frame", "array")), y="two")
    single = (("single", "single_more"), ("frame", "array"))
    yield from each([Lars(), LassoLars(0.01)], single, y="number", rtol=1e-3)


TRANSFORMERS = ()
PREDICTORS = (
    regressors,
    penalised,
    several_penalised,
    positive,
    bayesian,
    paths,
)
