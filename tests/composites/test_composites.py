"""Estimators around estimators: what their parts share, how they see the rows, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import StackingClassifier, StackingRegressor, VotingClassifier, VotingRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import LeaveOneOut, ShuffleSplit
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import MultiOutputRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, RobustScaler, StandardScaler

import dpipe
from dpipe.errors import InputError, UnsupportedEstimatorError
from tests.helpers import raise_if_computes
from tests.kernel_cases import array_blocks, assert_same, awkward_frame, in_blocks

FRAME = awkward_frame()
X, Y = FRAME[["plain", "holes", "text", "whole"]], FRAME["flag"]
NUMBERS = FRAME[["plain", "whole"]]
LABELS = pd.Series(np.random.default_rng(0).choice(["a", "b", "c"], len(FRAME)))


def n_readings(estimator, y):
    """How often `fit` reads the longest block."""
    reads = []

    def seen(block):
        reads.append(len(block))
        return block

    lazy = array_blocks(NUMBERS.to_numpy(dtype=float)).map_blocks(seen, dtype=float, meta=np.empty((0, 2)))
    dpipe.fit(estimator, lazy, array_blocks(y.to_numpy()))
    return reads.count(42)


@pytest.mark.parametrize(
    ("estimator", "y", "readings"),
    [
        (VotingRegressor([(f"r{i}", Ridge(i)) for i in range(5)]), NUMBERS["plain"], 1),
        (VotingClassifier([("a", GaussianNB()), ("b", GaussianNB(var_smoothing=0.1))]), LABELS, 2),
        (OneVsOneClassifier(GaussianNB()), LABELS, 2),
        (OneVsRestClassifier(make_pipeline(RobustScaler(), LogisticRegression())), LABELS, 2),
        (StackingRegressor([("a", Ridge())], final_estimator=Ridge(), cv=4), NUMBERS["plain"], 3),
        (StackingRegressor([("a", Ridge())], cv=4), NUMBERS["plain"], 2),
    ],
    ids=["voting", "classes", "pairs", "scratch", "folds", "scratch of folds"],
)
def test_parts_share_their_readings(estimator, y, readings):
    """All but the first take one pass over y alone beforehand, which an array cannot be read without X for."""
    assert n_readings(estimator, y) == readings


def test_parts_of_text_and_numbers():
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), ["plain", "holes"]), (OneHotEncoder(), ["text"])
    )
    model = VotingClassifier(
        [
            ("all", make_pipeline(columns, LogisticRegression())),
            ("few", make_pipeline(clone(columns), GaussianNB())),
        ]
    )
    model.set_params(estimators=model.estimators[:1])
    found, expected = dpipe.fit(model, in_blocks(X), in_blocks(Y)), clone(model).fit(X, Y)
    np.testing.assert_allclose(found.estimators_[0][-1].coef_, expected.estimators_[0][-1].coef_, rtol=1e-6)
    np.testing.assert_array_equal(found.predict(X), expected.predict(X))


def test_composites_in_composites():
    model = OneVsRestClassifier(
        CalibratedClassifierCV(make_pipeline(StandardScaler(), LogisticRegression()), cv=3)
    )
    found, expected = dpipe.fit(model, in_blocks(NUMBERS), in_blocks(LABELS)), model.fit(NUMBERS, LABELS)
    np.testing.assert_allclose(found.predict_proba(NUMBERS), expected.predict_proba(NUMBERS), rtol=1e-4)


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_output_as_frames(kind):
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["plain", "holes"]),
            ("texts", OneHotEncoder(sparse_output=False), ["text"]),
        ],
        remainder="passthrough",
    )
    model = make_pipeline(columns, LogisticRegression()).set_output(transform=kind)
    found = dpipe.fit(model, in_blocks(X), in_blocks(Y))
    expected = clone(model).fit(X, Y)
    assert_same(found, expected, 1e-6)
    assert found[-1].feature_names_in_.tolist() == expected[:-1].get_feature_names_out().tolist()
    made, wanted = found[:-1].transform(X), expected[:-1].transform(X)
    assert type(made) is type(wanted)
    np.testing.assert_allclose(made.to_numpy().astype(float), wanted.to_numpy().astype(float), atol=1e-9)
    lazy = dpipe.transform(found[:-1], in_blocks(X)).compute()
    np.testing.assert_allclose(np.asarray(lazy, dtype=float), wanted.to_numpy().astype(float), atol=1e-9)


def test_the_output_of_all_estimators_may_be_set():
    model = make_pipeline(StandardScaler(), PCA(2))
    with sklearn.config_context(transform_output="pandas"):
        found = dpipe.fit(model, in_blocks(NUMBERS))
    assert_same(found[0], clone(model).fit(NUMBERS)[0])


def test_weights_of_parts():
    columns = ColumnTransformer(
        [
            ("a", StandardScaler(), ["plain"]),
            ("b", OneHotEncoder(), ["text"]),
            ("c", "passthrough", ["whole"]),
        ],
        transformer_weights={"a": 2.0, "b": 0.5, "c": 3.0},
    )
    model = make_pipeline(columns, Ridge())
    assert_same(dpipe.fit(model, in_blocks(X), in_blocks(Y)), clone(model).fit(X, Y), 1e-8)
    union = FeatureUnion([("s", StandardScaler()), ("m", MinMaxScaler())], transformer_weights={"s": 3.0})
    model = make_pipeline(union, Ridge())
    assert_same(dpipe.fit(model, in_blocks(NUMBERS), in_blocks(Y)), clone(model).fit(NUMBERS, Y), 1e-8)


def test_cached_steps_and_frozen_ones(tmp_path):
    model = make_pipeline(StandardScaler(), Ridge(), memory=str(tmp_path))
    found = dpipe.fit(model, in_blocks(NUMBERS), in_blocks(Y))
    assert found.memory == str(tmp_path)
    assert_same(found[-1], clone(model).fit(NUMBERS, Y)[-1])
    frozen = make_pipeline(FrozenEstimator(StandardScaler().fit(NUMBERS * 2)), Ridge())
    found = dpipe.fit(frozen, in_blocks(NUMBERS), in_blocks(Y))
    assert_same(found[-1], clone(frozen).fit(NUMBERS, Y)[-1])


def test_weights_are_routed_to_those_that_request_them():
    w = pd.Series(np.random.default_rng(0).random(len(FRAME)))
    with sklearn.config_context(enable_metadata_routing=True):
        asks = {"sample_weight": True}
        model = make_pipeline(StandardScaler().set_fit_request(**asks), Ridge().set_fit_request(**asks))
        found = dpipe.fit(model, in_blocks(NUMBERS), in_blocks(Y), in_blocks(w))
        expected = clone(model).fit(NUMBERS, Y, sample_weight=w)
        np.testing.assert_allclose(found[0].mean_, expected[0].mean_)
        np.testing.assert_allclose(found[1].coef_, expected[1].coef_)
        unsaid = make_pipeline(StandardScaler().set_fit_request(**asks), Ridge())
        with pytest.raises(InputError, match="Ridge has not said whether it wants it"):
            dpipe.fit(unsaid, in_blocks(NUMBERS), in_blocks(Y), in_blocks(w))


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (OneVsRestClassifier(SGDClassifier()), "SGDClassifier learns in order.*LogisticRegression"),
        (VotingClassifier([("a", "drop")]), "all estimators are dropped"),
        (VotingRegressor([("a", Ridge())], weights=[1, 2]), "2 weights for 1 estimators"),
        (TransformedTargetRegressor(func=np.log), "go together"),
        (TransformedTargetRegressor(func=np.log, transformer=StandardScaler()), "not both"),
        (CalibratedClassifierCV(GaussianNB(), cv=LeaveOneOut()), "number of folds"),
        (StackingClassifier([("a", GaussianNB())], cv=ShuffleSplit()), "number of folds"),
        (StackingClassifier([("a", GaussianNB())], final_estimator=Ridge()), "no classifier"),
    ],
)
def test_what_has_no_way_is_refused_before_anything_is_read(estimator, message):
    with raise_if_computes(), pytest.raises((UnsupportedEstimatorError, InputError), match=message):
        dpipe.plan(estimator, in_blocks(NUMBERS), in_blocks(Y))


def test_one_target_and_one_class_are_named():
    with pytest.raises(InputError, match="at least two dimensions"):
        dpipe.fit(MultiOutputRegressor(Ridge()), in_blocks(NUMBERS), in_blocks(Y))
    with pytest.raises(InputError, match="at least two classes"):
        dpipe.fit(OneVsRestClassifier(GaussianNB()), in_blocks(NUMBERS), in_blocks(Y * 0))


def test_functions_that_are_no_inverse_of_each_other_are_told():
    model = TransformedTargetRegressor(LinearRegression(), func=np.abs, inverse_func=np.negative)
    with pytest.warns(UserWarning, match="not strictly inverse"):
        dpipe.fit(model, in_blocks(NUMBERS), in_blocks(FRAME["plain"]))
