"""The conformance suite for estimators of your own passes what is right, and catches what is wrong."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.validation import validate_data

import dpipe
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families.registry import _ways
from dpipe.testing import check_estimator

RNG = np.random.default_rng(0)
ROWS = pd.DataFrame({"a": RNG.normal(size=60), "b": RNG.exponential(size=60), "c": RNG.integers(0, 5, 60)})
LABELS = RNG.choice(["no", "yes", "maybe"], 60)
WEIGHTS = RNG.random(60)


class RangeScaler(TransformerMixin, BaseEstimator):
    """Divides columns by the distance of their ends."""

    def fit(self, X, y=None):
        X = validate_data(self, X, dtype=np.float64)
        self.low_, self.high_ = X.min(axis=0), X.max(axis=0)
        return self

    def transform(self, X):
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return (X - self.low_) / (self.high_ - self.low_)

    def get_feature_names_out(self, input_features=None):
        return np.asarray(
            self.feature_names_in_ if hasattr(self, "feature_names_in_") else ["x0", "x1", "x2"], object
        )


class Ends:
    """A state of a class of its own."""

    def __init__(self, low, high, names):
        self.low, self.high, self.names = low, high, names


def ends_of(estimator, X, y, w):
    names = np.asarray(X.columns, dtype=object) if isinstance(X, pd.DataFrame) else None
    values = np.asarray(X, dtype=np.float64)
    return Ends(values.min(axis=0, initial=np.inf), values.max(axis=0, initial=-np.inf), names)


def joined_ends(one, other):
    return Ends(np.minimum(one.low, other.low), np.maximum(one.high, other.high), one.names)


def finish_ends(estimator, state):
    estimator.low_, estimator.high_, estimator.n_features_in_ = state.low, state.high, len(state.low)
    if state.names is not None:
        estimator.feature_names_in_ = state.names
    return estimator


class NearestMean(ClassifierMixin, BaseEstimator):
    """Gives the class whose weighted mean is nearest."""

    def fit(self, X, y, sample_weight=None):
        X = validate_data(self, X, dtype=np.float64)
        w = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight)
        self.classes_ = np.unique(y)
        self.means_ = np.array([np.average(X[y == c], axis=0, weights=w[y == c]) for c in self.classes_])
        return self

    def predict(self, X):
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self.classes_[((X[:, None] - self.means_) ** 2).sum(axis=2).argmin(axis=1)]


def sums_of(estimator, X, y, w):
    values = np.asarray(X, dtype=np.float64)
    w = np.ones(len(values)) if w is None else w
    names = np.asarray(X.columns, dtype=object) if isinstance(X, pd.DataFrame) else None
    return {c: (w[y == c].sum(), w[y == c] @ values[y == c]) for c in set(y)}, names, np.asarray(y).dtype


def joined_sums(one, other):
    both = dict(one[0])
    for label, (weight, total) in other[0].items():
        before = both.get(label, (0.0, 0.0))
        both[label] = before[0] + weight, before[1] + total
    return both, one[1], np.promote_types(one[2], other[2])


def finish_sums(estimator, state):
    sums, names, dtype = state
    estimator.classes_ = np.array(sorted(sums), dtype=dtype)
    estimator.means_ = np.array([sums[c][1] / sums[c][0] for c in estimator.classes_.tolist()])
    estimator.n_features_in_ = estimator.means_.shape[1]
    if names is not None:
        estimator.feature_names_in_ = names
    return estimator


@pytest.fixture
def registered():
    before = dict(_ways)
    yield dpipe.register
    _ways.clear()
    _ways.update(before)


SCALER = {"update": ends_of, "merge": joined_ends, "finish": finish_ends}
NEAREST = {"update": sums_of, "merge": joined_sums, "finish": finish_sums}


def test_a_transformer_that_is_right(registered):
    registered(RangeScaler, **SCALER)
    found = check_estimator(RangeScaler(), ROWS)
    assert len(found.cases) >= 9
    assert found.refused == ("CSR in blocks of (0, 20, 1, 0, 39, 0)",)
    assert "the same as in memory" in str(found)
    assert len(check_estimator(RangeScaler(), ROWS.to_numpy(), random_state=7).cases) == 4


def test_a_classifier_that_is_right_with_and_without_weights(registered):
    registered(NearestMean, **NEAREST)
    found = check_estimator(NearestMean(), ROWS, LABELS, WEIGHTS)
    assert sum("weighted" in case for case in found.cases) == len(found.cases) // 2
    assert found.worst < 1e-12


def test_it_works_in_pipelines_and_column_transformers(registered):
    registered(RangeScaler, **SCALER)
    frame = ROWS.assign(d=LABELS)
    steps = make_column_transformer((RangeScaler(), ["a", "b", "c"]), (OneHotEncoder(), ["d"]))
    found = check_estimator(
        make_pipeline(steps, StandardScaler(), Ridge()), frame, ROWS["a"] * 2 + 1, rtol=1e-7
    )
    assert len(found.cases) == 6


def without(name, finish):
    def forgets(estimator, state):
        fitted = finish(estimator, state)
        delattr(fitted, name)
        return fitted

    return forgets


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"finish": without("high_", finish_ends)}, r"RangeScaler lacks \['high_'\]"),
        ({"merge": lambda one, other: one}, r"blocks of .*RangeScaler\.low_"),
        ({"merge": lambda one, other: Ends(one.low, other.high, one.names)}, r"blocks of "),
        ({"update": lambda e, X, y, w: Ends(X.min(axis=0), X.max(axis=0), None)}, "RangeScaler, "),
    ],
)
def test_a_transformer_that_is_wrong(registered, changed, says):
    registered(RangeScaler, **{**SCALER, **changed})
    with pytest.raises(AssertionError, match="(?s)" + says):
        check_estimator(RangeScaler(), ROWS)


def test_a_classifier_that_forgets_the_weights(registered):
    registered(NearestMean, **{**NEAREST, "update": lambda e, X, y, w: sums_of(e, X, y, None)})
    with pytest.raises(AssertionError, match=r"(?s)weighted: .*NearestMean\.means_"):
        check_estimator(NearestMean(), ROWS, LABELS, WEIGHTS)
    check_estimator(NearestMean(), ROWS, LABELS)


def test_our_own_estimators_pass():
    assert check_estimator(StandardScaler(), ROWS, sample_weight=WEIGHTS).worst < 1e-12
    assert len(check_estimator(OneHotEncoder(), pd.DataFrame({"d": LABELS})).cases) == 6
    assert len(check_estimator(StandardScaler(with_mean=False), sp.csr_matrix(ROWS.to_numpy())).cases) == 3


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ((RangeScaler(), ROWS), UnsupportedEstimatorError, "RangeScaler cannot be fitted block by block"),
        ((StandardScaler(), [[1.0]]), InputError, "as a frame, an array or a CSR matrix; got a list"),
        ((StandardScaler(), ROWS[:3]), InputError, "at least 8 rows"),
        ((StandardScaler(), ROWS, LABELS[:5]), InputError, "X has 60 rows, but y has 5"),
        ((LogisticRegression(), ROWS, np.zeros(60)), InputError, "in memory either"),
    ],
)
def test_arguments_that_cannot_be(arguments, kind, says):
    with pytest.raises(kind, match=says):
        check_estimator(*arguments)
