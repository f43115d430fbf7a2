"""Discriminant analysis and covariances: what they refuse, and moments joined in any order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import GraphicalLasso, LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis

from dpipe.blocks.quartic import Quartic
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.train.fit import fit
from tests.kernel_cases import array_blocks, awkward_frame, csr_blocks

BLOCKS = (4, 4, 2)
X = np.random.default_rng(0).normal(size=(10, 2))
BOTH = [LinearDiscriminantAnalysis(), QuadraticDiscriminantAnalysis()]


def fit_blocks(estimator, values, labels):
    return fit(estimator, array_blocks(values, BLOCKS), array_blocks(np.asarray(labels), BLOCKS))


@pytest.mark.parametrize(
    ("estimator", "labels", "message"),
    [
        (LinearDiscriminantAnalysis(), range(10), "10 rows have 10 labels"),
        (LinearDiscriminantAnalysis(n_components=2), [0, 1] * 5, "at most 1 components"),
        (QuadraticDiscriminantAnalysis(), [3] * 10, "at least two classes.* 3"),
        (QuadraticDiscriminantAnalysis(), [0] * 8 + [1] * 2, "class 1 has 2 rows of 2 features.*at least 3"),
        (QuadraticDiscriminantAnalysis(solver="eigen"), [0] * 9 + [1], "class 1 has 1 rows.*at least 2"),
    ],
)
def test_classes_that_do_not_suffice_are_refused(estimator, labels, message):
    with pytest.raises(InputError, match=message):
        fit_blocks(estimator, X, list(labels))


@pytest.mark.parametrize("estimator", BOTH)
def test_measurements_as_labels_are_refused(estimator):
    with pytest.raises(InputError, match="no label of a class but a measurement"):
        fit_blocks(estimator, X, X[:, 0])


def test_a_class_without_spread_says_what_to_change():
    values = np.column_stack([X[:, 0], np.ones(10)])
    with pytest.raises(InputError, match="not full rank.*reg_param"):
        fit_blocks(QuadraticDiscriminantAnalysis(), values, [0, 1] * 5)


@pytest.mark.parametrize("estimator", [*BOTH, LedoitWolf(), GraphicalLasso()])
def test_sparse_input_is_refused(estimator):
    with pytest.raises(InputError, match="does not take sparse input"):
        fit(estimator, csr_blocks(X, BLOCKS), array_blocks(np.array([0, 1] * 5), BLOCKS))


@pytest.mark.parametrize("cls", [LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis])
def test_parameters_that_need_the_rows_are_refused_before_reading(cls):
    with pytest.raises(UnsupportedEstimatorError, match="covariance_estimator.*shrinkage='auto'"):
        fit_blocks(cls(solver="eigen", covariance_estimator=LedoitWolf()), X, [0, 1] * 5)
    with pytest.raises(InputError, match="this solver knows no shrinkage"):
        fit_blocks(cls(shrinkage="auto"), X, [0, 1] * 5)


def test_a_covariance_in_the_place_of_rows_is_refused():
    with pytest.raises(UnsupportedEstimatorError, match="takes a covariance in the place of rows"):
        fit(GraphicalLasso(covariance="precomputed"), array_blocks(X, BLOCKS))


@given(cuts=st.lists(st.integers(0, 60), max_size=5))
def test_quartic_sums_join_wherever_the_rows_are_cut(cuts):
    values = awkward_frame()[["plain", "offset", "whole"]].to_numpy(dtype=float)
    whole = Quartic.of(values)
    parts = [Quartic.of(part) for part in np.split(values, sorted(cuts))]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.merge(part)
    assert joined.n_rows == whole.n_rows
    for name in ("x_mean", "xx", "xxy", "xxyy"):
        found, wanted = getattr(joined, name), getattr(whole, name)
        np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-9 * np.abs(wanted).max())
