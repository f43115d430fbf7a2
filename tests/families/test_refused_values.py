"""Columns, labels and values that cannot be fitted, and those that only look so."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.covariance import OAS, LedoitWolf
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.feature_selection import SelectKBest, chi2, f_classif, f_regression, r_regression
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    ARDRegression,
    BayesianRidge,
    Lars,
    Lasso,
    LinearRegression,
    RidgeClassifier,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, GaussianNB, MultinomialNB
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from dpipe.errors import InputError
from dpipe.train.fit import fit
from tests.kernel_cases import array_blocks, assert_same, awkward_frame, in_blocks


@pytest.mark.filterwarnings(
    "ignore:(All-NaN slice|invalid value|Degrees of freedom|Mean of empty):RuntimeWarning"
)
@pytest.mark.parametrize("estimator", [StandardScaler(), StandardScaler(with_std=False), MinMaxScaler()])
def test_a_column_without_any_value(estimator):
    matrix = np.array([[1.0, np.nan], [2.0, np.nan], [4.0, np.nan]])
    assert_same(fit(estimator, array_blocks(matrix, (1, 2))), clone(estimator).fit(matrix))


@pytest.mark.parametrize("strategy", ["mean", "most_frequent", "constant"])
def test_an_imputer_keeps_a_column_without_any_value(strategy):
    matrix = np.array([[1.0, np.nan], [2.0, np.nan], [4.0, np.nan]])
    estimator = SimpleImputer(strategy=strategy, keep_empty_features=True)
    result = fit(estimator, array_blocks(matrix, (1, 2)))
    assert_same(result, clone(estimator).fit(matrix))
    with pytest.raises(InputError, match="'x1': nothing was observed.*keep_empty_features=True"):
        fit(clone(estimator).set_params(keep_empty_features=False), array_blocks(matrix, (1, 2)))


@pytest.mark.parametrize(
    "estimator", [StandardScaler(), MinMaxScaler(), SimpleImputer(), LinearRegression(), GaussianNB()]
)
@pytest.mark.parametrize("kind", ["frame", "pandas", "array"])
def test_times_are_refused(estimator, kind):
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "when": pd.date_range("2024", periods=3)})
    y = np.arange(3)
    X = {
        "frame": in_blocks(frame, (1, 2)),
        "pandas": frame,
        "array": array_blocks(frame[["when"]].to_numpy(), (1, 2)),
    }
    target = {"frame": in_blocks(pd.Series(y), (1, 2)), "pandas": y, "array": array_blocks(y, (1, 2))}
    with pytest.raises(InputError, match=r"Column 'when' is not numeric|The array is not numeric"):
        fit(estimator, X[kind], target[kind])


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("estimator", [StandardScaler(), MinMaxScaler(), SimpleImputer()])
def test_infinity_is_refused(estimator, value):
    with pytest.raises(InputError, match="'x1': there is an infinite value"):
        fit(estimator, array_blocks(np.array([[1.0, 0.0], [2.0, value], [3.0, value]]), (1, 1, 1)))


CLASSIFYING = [
    BernoulliNB(),
    CategoricalNB(),
    DummyClassifier(),
    GaussianNB(),
    LinearDiscriminantAnalysis(),
    LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto"),
    MultinomialNB(),
    NearestCentroid(),
    QuadraticDiscriminantAnalysis(),
    RidgeClassifier(),
    RidgeClassifier(class_weight="balanced"),
    SGDClassifier(),
    SelectKBest(chi2, k=1),
    SelectKBest(f_classif, k=1),
]
REGRESSING = [
    ARDRegression(),
    BayesianRidge(),
    Lars(),
    Lasso(),
    LinearRegression(),
    SelectKBest(f_regression, k=1),
    SelectKBest(r_regression, k=1),
]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "estimator", [*CLASSIFYING, *REGRESSING, PCA(1), TruncatedSVD(1), OAS(), LedoitWolf()]
)
def test_gaps_and_infinity_in_a_later_block_are_refused(estimator, value):
    matrix = np.tile(np.arange(10.0), (2, 1)).T
    matrix[7, 1] = value
    if isinstance(estimator, DummyClassifier):
        assert fit(estimator, array_blocks(matrix, (4, 4, 2)), array_blocks(np.arange(10) % 2, (4, 4, 2)))
        return  # it does not look at X
    with pytest.raises(InputError):
        fit(estimator, array_blocks(matrix, (4, 4, 2)), array_blocks(np.arange(10) % 2, (4, 4, 2)))


@pytest.mark.parametrize("estimator", CLASSIFYING)
def test_missing_labels_in_a_later_block_are_refused(estimator):
    labels = np.array(["a", "b"] * 5, dtype=object)
    labels[7] = None
    with pytest.raises(InputError, match="1 labels are missing in y"):
        fit(estimator, array_blocks(np.arange(10.0)[:, None], (4, 4, 2)), array_blocks(labels, (4, 4, 2)))


def test_infinities_of_both_signs_are_refused_without_a_warning():
    frame = pd.DataFrame({"a": [np.inf, -np.inf, 1.0]})
    with pytest.raises(InputError, match="'a': there is an infinite value"):
        fit(StandardScaler(), in_blocks(frame, (3,)))


@pytest.mark.parametrize("estimator", [GaussianNB(), SGDClassifier()])
def test_missing_labels_are_refused(estimator):
    frame = awkward_frame()[["plain", "text_holes"]]
    with pytest.raises(InputError, match="12 labels are missing in y"):
        fit(estimator, in_blocks(frame), "text_holes")


def test_nullable_targets_are_floats_as_in_scikit_learn():
    y = awkward_frame()["Whole"].fillna(0)
    X = awkward_frame()[["plain"]]
    assert_same(fit(GaussianNB(), in_blocks(X), in_blocks(y.to_frame())["Whole"]), GaussianNB().fit(X, y))
    with pytest.raises(InputError, match="NaN or infinity"):
        fit(LinearRegression(), in_blocks(awkward_frame()[["plain", "Whole"]]), "Whole")


def test_gaps_in_front_of_a_learner_name_the_block():
    X = array_blocks(awkward_frame()[["holes"]].to_numpy())
    with pytest.raises(InputError, match="SGDRegressor, epoch 1, block 1: Input X contains NaN"):
        fit(SGDRegressor(), X, array_blocks(awkward_frame()["plain"].to_numpy()))
