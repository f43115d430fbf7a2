"""Solvers on made-up rows: awkward columns, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import (
    ARDRegression,
    BayesianRidge,
    Lars,
    Lasso,
    LassoCV,
    LassoLars,
    LinearRegression,
    MultiTaskLasso,
    OrthogonalMatchingPursuit,
    Ridge,
    RidgeClassifier,
    RidgeCV,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families.stand_in import rows_with_moments
from dpipe.train.fit import fit, plan
from tests.kernel_cases import array_blocks, csr_blocks

BLOCKS = (4, 4, 0, 12)
X = np.random.default_rng(0).normal(size=(20, 3))
Y = X @ [1.0, -2.0, 0.1] + np.random.default_rng(1).normal(size=20)
LABELS = np.array([0, 1, 2, 1] * 5)
REGRESSIONS = [
    ARDRegression(),
    BayesianRidge(),
    Lars(),
    Lasso(0.01),
    LassoCV(cv=4),
    LassoLars(0.01),
    LinearRegression(positive=True),
    OrthogonalMatchingPursuit(n_nonzero_coefs=2),
    Ridge(positive=True),
    RidgeCV(cv=4),
]


def fit_blocks(estimator, values=X, target=Y):
    return fit(estimator, array_blocks(values, BLOCKS), array_blocks(np.asarray(target), BLOCKS))


@given(seed=st.integers(0, 1000), n=st.integers(1, 6))
def test_made_rows_have_the_moments_asked_for(seed, n):
    rng = np.random.default_rng(seed)
    mean, half = rng.normal(size=n), rng.normal(size=(rng.integers(1, 8), n)) * 10.0 ** rng.integers(-4, 4, n)
    rows = rows_with_moments(mean, half.T @ half)
    scale = 1 + np.sqrt((half**2).sum(axis=0))
    np.testing.assert_allclose(rows.mean(axis=0), mean, atol=1e-12 * scale.max())
    deviations = (rows - mean) / scale
    wanted = (half / scale).T @ (half / scale)
    np.testing.assert_allclose(deviations.T @ deviations / len(rows), wanted, atol=1e-12)


AWKWARD = {
    "one column": X[:, :1],
    "constant": np.column_stack([X, np.full(20, 3.7)]),
    "twice": X[:, [0, 1, 2, 0]],
    "far from zero": X + 1e4,
    "few rows": np.column_stack(
        [X] + [X**k for k in (2, 3, 4)] + [np.roll(X, k, axis=0) for k in range(1, 5)]
    ),
}
#: Where the last steps of a path, or the noise that is left, are what rounding makes of them.
UNDETERMINED = {("twice", Lars), ("few rows", Lars), ("few rows", ARDRegression)}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("estimator", "awkward"),
    [(e, kind) for e in REGRESSIONS for kind in AWKWARD if (kind, type(e)) not in UNDETERMINED],
)
def test_awkward_columns(estimator, awkward):
    values = AWKWARD[awkward]
    if isinstance(estimator, OrthogonalMatchingPursuit):
        estimator = OrthogonalMatchingPursuit(n_nonzero_coefs=min(2, values.shape[1]))
    result = fit_blocks(estimator, values)
    expected = estimator.fit(values, Y)
    np.testing.assert_allclose(result.predict(values), expected.predict(values), rtol=1e-5, atol=1e-5)


def test_a_discriminant_leaves_a_constant_column_out():
    # 3.7 has no exact mean: what rounding leaves of it would be scaled to one
    values = np.column_stack([X, np.full(20, 3.7)])
    expected = LinearDiscriminantAnalysis().fit(X, LABELS).decision_function(X)
    result = fit_blocks(LinearDiscriminantAnalysis(), values, LABELS)
    np.testing.assert_allclose(result.decision_function(values), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("estimator", "target"),
    [(estimator, Y) for estimator in REGRESSIONS]
    + [
        (LinearDiscriminantAnalysis(), LABELS),
        (LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"), LABELS),
        (RidgeClassifier(class_weight="balanced"), LABELS),
        (LedoitWolf(), None),
    ],
)
@pytest.mark.parametrize("scaler", [StandardScaler(), MinMaxScaler((-1, 3))])
def test_behind_a_scaler_no_pass_is_added(estimator, target, scaler):
    values = np.column_stack([X * [1.0, 100.0, 0.01] + 50.0, np.full(20, 3.7)])
    chain = make_pipeline(scaler, estimator)
    y = None if target is None else array_blocks(target, BLOCKS)
    assert plan(chain, array_blocks(values, BLOCKS), y).n_passes == 1
    result, expected = fit(chain, array_blocks(values, BLOCKS), y), chain.fit(values, target)
    if target is None:
        np.testing.assert_allclose(result[-1].covariance_, expected[-1].covariance_, rtol=1e-7, atol=1e-12)
        assert result[-1].shrinkage_ == pytest.approx(expected[-1].shrinkage_, rel=1e-7)
        return
    method = "decision_function" if hasattr(expected, "decision_function") else "predict"
    found, wanted = (getattr(fitted, method)(values) for fitted in (result, expected))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shrinkage", [None, 0.2, "auto"])
def test_least_squares_of_columns_that_add_up_to_one(shrinkage):
    values = np.eye(4)[np.random.default_rng(2).integers(0, 4, 20)]
    estimator = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    result = fit_blocks(estimator, values, LABELS).decision_function(values)
    np.testing.assert_allclose(result, estimator.fit(values, LABELS).decision_function(values), atol=1e-9)


@pytest.mark.parametrize("estimator", [LinearRegression(positive=True), Lars(), OrthogonalMatchingPursuit()])
def test_sparse_input_is_refused_as_in_scikit_learn(estimator):
    with pytest.raises(InputError, match="does not take sparse input"):
        fit(estimator, csr_blocks(X, BLOCKS), array_blocks(Y, BLOCKS))
    with pytest.raises(TypeError, match="[Ss]parse"):
        estimator.fit(csr_blocks(X, BLOCKS).compute(scheduler="sync"), Y)


@pytest.mark.parametrize(
    ("estimator", "target", "message"),
    [
        (Ridge(positive=True, solver="svd"), Y, "solver='svd'.* knows no bounds"),
        (Ridge(solver="lbfgs"), Y, "solver='lbfgs'.* positive=True alone"),
        (RidgeClassifier(positive=True, solver="svd"), LABELS, "solver='svd'.* knows no bounds"),
        (RidgeClassifier(class_weight="balanced"), [3] * 20, "at least two classes.*3"),
        (RidgeClassifier(class_weight={0: 1.0, 7: 2.0}), LABELS, "Give a weight to every label"),
        (MultiTaskLasso(), Y, "MultiTaskLasso learns several targets.*y has one. Use Lasso"),
        (Lasso(), X, "Lasso: y has 3 columns"),
        (BayesianRidge(), X, "BayesianRidge: y has 3 columns"),
        (ARDRegression(), X, "ARDRegression: y has 3 columns"),
    ],
)
def test_what_cannot_be_solved_is_refused(estimator, target, message):
    with pytest.raises(InputError, match=message):
        fit_blocks(estimator, X, target)


def test_noise_for_each_row_is_refused():
    with pytest.raises(UnsupportedEstimatorError, match="jitter=0.1.*Use jitter=None"):
        fit_blocks(Lars(jitter=0.1))


def test_one_row_is_no_regression_of_relevance():
    with pytest.raises(InputError, match="at least two rows"):
        fit(ARDRegression(), array_blocks(X[:1], (1,)), array_blocks(Y[:1], (1,)))


@pytest.mark.parametrize("estimator", [Lasso(0.01), Lars()])
def test_a_gram_matrix_of_the_rows_is_not_asked_for(estimator):
    centred = X - X.mean(axis=0)
    result = fit_blocks(
        type(estimator)(**{**estimator.get_params(), "precompute": centred.T @ centred}), centred
    )
    np.testing.assert_allclose(result.coef_, estimator.fit(centred, Y).coef_, rtol=1e-6, atol=1e-9)
    assert isinstance(result.precompute, np.ndarray)
