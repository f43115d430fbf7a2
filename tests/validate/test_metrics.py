"""Metrics from merged states equal scikit-learn's scorers on all rows at once."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.calibration import calibration_curve as sklearn_calibration
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.metrics import get_scorer

from dpipe.errors import InputError
from dpipe.validate.curves import ScoreRuns, calibration_curve, ranking
from dpipe.validate.metrics import METRICS, check_scoring, want_of
from dpipe.validate.states import Calibration, Confusion, Residuals, ScoredBlock, Want

OF_LABELS = [name for name, metric in METRICS.items() if metric.state is Confusion]
OF_RANKS = [name for name, metric in METRICS.items() if metric.state is ScoreRuns]
OF_VALUES = [name for name, metric in METRICS.items() if metric.state is Residuals]
OF_PROBABILITIES = ["neg_log_loss", "neg_brier_score"]


class Said(ClassifierMixin, BaseEstimator):
    """A classifier whose answers are its input: a probability, or one a label."""

    def __init__(self, labels=(0, 1)):
        self.labels = labels
        self.classes_ = np.array(labels)

    def predict_proba(self, X):
        return np.column_stack([1 - X, X]) if X.shape[1] == 1 else X

    def predict(self, X):
        return self.classes_[np.argmax(self.predict_proba(X), axis=1)]


class Value(RegressorMixin, BaseEstimator):
    """A regressor whose answer is its input."""

    def __sklearn_is_fitted__(self):
        return True

    def predict(self, X):
        return X


def merged(name, model, X, y, w, cuts):
    """Score block after block, as a pass does."""
    labels = tuple(getattr(model, "classes_", np.array([])).tolist())
    want = want_of(name, model, labels)
    state = None
    for rows in np.split(np.arange(len(y)), sorted(cuts)):
        if len(rows):
            answers = {want.method: getattr(model, want.method)(X[rows])}
            found = want.state.of(ScoredBlock(y[rows], None if w is None else w[rows], answers, labels), want)
            state = found if state is None else state.merge(found)
    return METRICS[name].value(ranking(state, name) if want.state is ScoreRuns else state)


def scored(name, model, X, y, w=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_scorer(name)(model, X, y, **({} if w is None else {"sample_weight": w}))


@st.composite
def label_rows(draw, most_labels):
    n, k = draw(st.integers(1, 40)), draw(st.integers(2, most_labels))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    said = rng.choice(8, size=(n, k)) / 8 + 1e-3 if draw(st.booleans()) else rng.random((n, k)) + 1e-3
    X = said / said.sum(axis=1, keepdims=True)
    cuts = draw(st.lists(st.integers(0, n), max_size=5))
    w = rng.choice([0.0, 0.5, 1.0, 3.0], n) + 1e-3 if draw(st.booleans()) else None
    return X, rng.integers(0, k, n), w, cuts


@pytest.mark.parametrize("name", OF_LABELS)
@given(label_rows(4))
@settings(max_examples=12, deadline=None)
def test_label_metrics_equal_scikit_learns(name, rows):
    X, y, w, cuts = rows
    if name in ("precision", "recall", "f1"):
        X, y = X[:, :2], y % 2
    model = Said(tuple(range(X.shape[1])))
    expected = scored(name, model, X, y, w)
    assert merged(name, model, X, y, w, cuts) == pytest.approx(
        expected, abs=0 if w is None else 1e-12, rel=1e-15
    )


@pytest.mark.parametrize("name", OF_PROBABILITIES)
@given(label_rows(3))
@settings(max_examples=15, deadline=None)
def test_losses_equal_scikit_learns(name, rows):
    X, y, w, cuts = rows
    k = X.shape[1]
    # scikit-learn finds out the labels from y, so all must be there
    X, y = np.vstack([X, np.eye(k)]), np.append(y, np.arange(k))
    w = None if w is None else np.append(w, np.ones(k))
    model = Said(tuple(range(k)))
    assert merged(name, model, X, y, w, cuts) == pytest.approx(scored(name, model, X, y, w), rel=1e-12)


@pytest.mark.parametrize("labels", [(0, 1), (1, 2), (-1, 1), (False, True)])
@pytest.mark.parametrize("name", OF_RANKS)
@given(label_rows(2))
@settings(max_examples=15, deadline=None)
def test_ranking_metrics_equal_scikit_learns(name, labels, rows):
    X, y, _, cuts = rows
    X, y = np.vstack([X, [[0.25, 0.75], [0.25, 0.75]]]), np.append(y, [0, 1])
    model, y = Said(labels), np.array(labels)[y]
    assert merged(name, model, X, y, None, cuts) == pytest.approx(scored(name, model, X, y), abs=1e-12)


@st.composite
def value_rows(draw):
    n, k = draw(st.integers(2, 40)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = rng.integers(-3, 4, (n, k)).astype(float) if draw(st.booleans()) else rng.normal(1e3, 2, (n, k))
    said = y.copy() if draw(st.booleans()) else y + rng.integers(-2, 3, (n, k))
    w = rng.choice([0.5, 1.0, 3.0], n) if draw(st.booleans()) else None
    return said, y, w, draw(st.lists(st.integers(0, n), max_size=5))


@pytest.mark.parametrize("name", OF_VALUES)
@given(value_rows())
@settings(max_examples=15, deadline=None)
def test_metrics_of_regression_equal_scikit_learns(name, rows):
    said, y, w, cuts = rows
    if name == "neg_max_error":
        said, y, w = said[:, 0], y[:, 0], None
    expected = scored(name, Value(), said, y, w)
    assert merged(name, Value(), said, y, w, cuts) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_large_values_far_from_zero_keep_their_digits():
    rng = np.random.default_rng(0)
    y = 1e9 + rng.normal(size=4000)
    said = y + rng.normal(0, 0.1, 4000)
    assert merged("r2", Value(), said, y, None, range(0, 4000, 7)) == pytest.approx(
        scored("r2", Value(), said, y), rel=1e-9
    )


@pytest.mark.parametrize("cut", [[], [1], [2]])
def test_constant_targets_follow_scikit_learns_conventions(cut):
    y = np.full(5, 0.1)
    for said in (y, y + 1):
        for name in ("r2", "explained_variance"):
            perfect = said is y or name == "explained_variance"
            assert merged(name, Value(), said, y, None, cut) == float(perfect)


def test_r2_of_one_row_is_not_defined():
    assert np.isnan(merged("r2", Value(), np.ones(1), np.ones(1), None, []))


def test_labels_of_text_and_one_column_frames_of_labels():
    model = Said(("no", "yes"))
    X, y = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array(["no", "yes", "yes"], dtype=object)
    for name in ("accuracy", "f1_macro", "roc_auc", "neg_log_loss"):
        expected = scored(name, model, X, y)
        assert merged(name, model, X, y, None, [1]) == pytest.approx(expected)
        assert merged(name, model, X, y.reshape(-1, 1), None, [2]) == pytest.approx(expected)


def test_single_precision_is_clipped_as_in_scikit_learn():
    X = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]], dtype="float32")
    y = np.array([0, 0, 1])
    found = merged("neg_log_loss", Said(), X, y, None, [1])
    assert found == pytest.approx(scored("neg_log_loss", Said(), X, y), rel=1e-6)


def test_calibration_equals_scikit_learns():
    rng = np.random.default_rng(0)
    X = rng.random((500, 1))
    y = (rng.random(500) < X[:, 0]).astype(int)
    state, want = None, Want(Calibration, "predict_proba")
    for rows in np.split(np.arange(500), [3, 100, 250]):
        block = ScoredBlock(y[rows], None, {"predict_proba": Said().predict_proba(X[rows])}, (0, 1))
        found = Calibration.of(block, want)
        state = found if state is None else state.merge(found)
    curve = calibration_curve(state, 1)
    true, said = sklearn_calibration(y, X[:, 0], n_bins=20)
    np.testing.assert_allclose(curve.x, said, rtol=1e-12)
    np.testing.assert_allclose(curve.y, true, rtol=1e-12)


@pytest.mark.parametrize(
    ("y", "name", "said"),
    [
        (np.array([0.0, np.nan]), "accuracy", "1 labels are missing"),
        (np.array(["a", None], dtype=object), "accuracy", "1 labels are missing"),
        (np.array([0.0, 0.37]), "accuracy", "holds 0.37, which is no label"),
        (np.array(["a", "b"], dtype=object), "accuracy", "different kinds: int and str"),
        (np.array([0, 7]), "neg_log_loss", "y holds 7, but the model knows only 0, 1"),
        (np.eye(2), "accuracy", "y has 2 columns"),
        (np.array([1, 1]), "roc_auc", "roc_auc needs both classes, but all 2 rows are of the positive one"),
        (np.array([0, 0]), "average_precision", "average_precision needs both classes"),
    ],
)
def test_labels_that_cannot_be_scored_are_refused(y, name, said):
    with pytest.raises(InputError, match=said):
        merged(name, Said(), np.array([[0.25, 0.75], [0.5, 0.5]]), y, None, [])


@pytest.mark.parametrize(
    ("answers", "y", "name", "said"),
    [
        (np.ones(2), np.array([1.0, np.nan]), "r2", "1 targets of a block of y are NaN"),
        (np.array([np.inf, 1.0]), np.ones(2), "r2", "predicts NaN or infinity"),
        (np.ones(2), np.array(["a", "b"], dtype=object), "r2", "not numeric"),
        (np.ones((2, 3)), np.ones(2), "r2", "y has 1 columns, but the model predicts 3"),
        (np.ones((2, 2)), np.ones((2, 2)), "neg_max_error", "takes one target, but y has 2 columns"),
    ],
)
def test_targets_that_cannot_be_scored_are_refused(answers, y, name, said):
    with pytest.raises(InputError, match=said):
        merged(name, Value(), answers, y, None, [])


@pytest.mark.parametrize("name", ["accuracy", "neg_log_loss", "balanced_accuracy"])
def test_weights_of_nothing_but_zeros_are_refused(name):
    with pytest.raises(InputError, match="add up to 0"):
        merged(name, Said(), np.full((2, 2), 0.5), np.array([0, 1]), np.zeros(2), [1])


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(InputError, match="predict_proba gives NaN"):
        merged("roc_auc", Said(), np.array([[np.nan, np.nan]]), np.array([0]), None, [])


def test_the_default_is_that_of_scikit_learns_score():
    assert check_scoring(None, LogisticRegression()) == ["accuracy"]
    assert check_scoring(None, LinearRegression()) == ["r2"]
    assert check_scoring(["r2", "r2"], LinearRegression(), ["neg_max_error", "r2"]) == ["r2", "neg_max_error"]


@pytest.mark.parametrize(
    ("scoring", "estimator", "said"),
    [
        (
            "roc_acu",
            LogisticRegression(),
            r"no metric 'roc_acu'\. Did you mean 'roc_auc'\? Known: accuracy, ",
        ),
        ("max_error", LinearRegression(), "Did you mean 'neg_max_error'"),
        (["r2", 3], LinearRegression(), "must be a name or a list of names"),
        (len, LinearRegression(), "must be a name or a list of names"),
        ([], LinearRegression(), "names no metric"),
        (None, BaseEstimator(), "BaseEstimator is neither a classifier nor a regressor"),
        ("accuracy", LinearRegression(), "for classifiers, but LinearRegression is a regressor"),
        (
            "neg_log_loss",
            SGDClassifier(loss="hinge"),
            "needs predict_proba, which SGDClassifier does not have",
        ),
    ],
)
def test_unsuitable_scoring_is_refused(scoring, estimator, said):
    with pytest.raises(InputError, match=said):
        check_scoring(scoring, estimator)


@pytest.mark.parametrize(
    ("name", "labels", "said"),
    [
        ("f1", (0, 1, 2), "f1 is for two labels, but the model knows 3: 0, 1, 2. Use f1_macro"),
        ("roc_auc", (0, 1, 2), "Use neg_log_loss"),
        (
            "precision",
            ("no", "yes"),
            "takes 1 for the positive label.*Use precision_macro, or a target of 0 and 1",
        ),
        ("average_precision", ("no", "yes"), "Use roc_auc"),
    ],
)
def test_metrics_of_two_labels_say_what_else_to_use(name, labels, said):
    with pytest.raises(InputError, match=said):
        want_of(name, Said(labels), labels)
