"""Learners that nobody has registered: by `partial_fit`, by `train_on_batch`; and what they must not do."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.cluster import Birch
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.feature_selection import SelectFromModel
from sklearn.linear_model import SGDClassifier, SGDOneClassSVM, SGDRegressor
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.blocks.threads import single_threaded_blas
from dpipe.errors import InputError, UnsupportedEstimatorError
from tests.kernel_cases import array_blocks, assert_same, csr_blocks
from tests.train.test_resume import recorded_fit

SIZES = (0, 30, 1, 20, 0, 29)
X = np.random.default_rng(0).normal(size=(80, 3))
Y = X @ [1.0, -2.0, 0.5] + 3
LABELS = np.where(Y > 3, "high", "low").astype(object)


def blocks(values):
    ends = np.cumsum(SIZES)
    return [values[end - n : end] for n, end in zip(SIZES, ends, strict=True) if n]


class LeastMeanSquares(RegressorMixin, BaseEstimator):
    """A third party's: one step for each row; keeps lists and an object of its own."""

    def __init__(self, step=0.1):
        self.step = step

    def partial_fit(self, X, y, sample_weight=None):
        if not hasattr(self, "weights_"):
            self.weights_, self.bias_, self.seen_ = np.zeros(X.shape[1]), 0.0, []
        weights = np.ones(len(X)) if sample_weight is None else sample_weight
        for row, target, weight in zip(X, y, weights, strict=True):
            error = weight * (target - row @ self.weights_ - self.bias_)
            self.weights_ = self.weights_ + self.step * error * row
            self.bias_ += self.step * error
        self.seen_.append(len(X))
        return self

    def fit(self, X, y):
        return self.partial_fit(X, y)

    def predict(self, X):
        return X @ self.weights_ + self.bias_


class Counting(ClassifierMixin, BaseEstimator):
    """Learns how often each class comes; is told the classes."""

    def fit(self, X, y):
        return self.partial_fit(X, y, np.unique(y))

    def partial_fit(self, X, y, classes):
        self.classes_ = np.asarray(classes)
        counts = np.array([np.sum(y == label) for label in self.classes_])
        self.counts_ = getattr(self, "counts_", 0) + counts
        return self


class Network:
    """What Keras' models look like: no parameters, no `partial_fit`; one step of the gradient a batch."""

    def __init__(self, n_features, step=0.05):
        self.weights, self.step, self.sizes = np.zeros(n_features + 1), step, []

    def train_on_batch(self, x, y=None, sample_weight=None):
        ones = np.column_stack([x, np.ones(len(x))])
        weights = np.ones(len(x)) if sample_weight is None else sample_weight
        with np.errstate(over="ignore", invalid="ignore"):
            errors = ones @ self.weights - y
            self.weights = self.weights - self.step * 2 * ones.T @ (weights * errors) / len(x)
            self.sizes.append(len(x))
            return float(np.mean(weights * errors**2))

    def predict(self, x):
        return np.column_stack([x, np.ones(len(x))]) @ self.weights


def test_a_third_party_s_learner_by_hand():
    w = np.random.default_rng(1).random(80)
    expected = LeastMeanSquares()
    for _ in range(2):
        for rows, y, weights in zip(blocks(X), blocks(Y), blocks(w), strict=True):
            expected.partial_fit(rows, y, weights)
    unfitted = LeastMeanSquares()
    given = [array_blocks(values, SIZES) for values in (X, Y, w)]
    assert_same(dpipe.fit(unfitted, *given, epochs=2), expected, rtol=0)
    assert vars(unfitted) == {"step": 0.1}


def test_a_third_party_s_learner_goes_on_from_its_record(tmp_path):
    given = [array_blocks(values, SIZES) for values in (X, Y)]
    first, read, _, _ = recorded_fit(tmp_path, LeastMeanSquares(), *given)
    second, again, found, notes = recorded_fit(tmp_path, LeastMeanSquares(), *given)
    assert (again, found) == (0, read), notes
    assert_same(second, first, rtol=0)


class Secretive(LeastMeanSquares):
    """Keeps something that no file may bring back."""

    def partial_fit(self, X, y, sample_weight=None):
        self.helper_ = Network(3)
        return super().partial_fit(X, y, sample_weight)


def test_a_learner_that_cannot_be_read_back_is_not_recorded(tmp_path):
    given = [array_blocks(values, SIZES) for values in (X, Y)]
    model = dpipe.fit(Secretive(), *given, workdir=tmp_path / "run")
    np.testing.assert_array_equal(model.weights_, dpipe.fit(LeastMeanSquares(), *given).weights_)
    assert "cannot be kept: it holds" in (tmp_path / "run" / "run.json").read_text()
    _, read, found, _ = recorded_fit(tmp_path / "run", Secretive(), *given)
    assert (read, found) == (len(SIZES) - 1, 1)  # before its first row it holds nothing yet


def test_classes_are_found_for_whoever_takes_them():
    given = array_blocks(X, SIZES), array_blocks(LABELS, SIZES)
    assert dpipe.plan(Counting(), *given).n_passes == 2
    found = dpipe.fit(Counting(), *given)
    assert found.classes_.tolist() == ["high", "low"]
    assert found.counts_.sum() == 80
    with pytest.raises(InputError, match=r"Counting takes no sample_weight"):
        dpipe.fit(Counting(), *given, array_blocks(Y, SIZES))


def test_a_model_that_trains_on_batches():
    w = np.random.default_rng(1).random(80)
    expected = Network(3)
    for _ in range(3):
        for rows, y, weights in zip(blocks(X), blocks(Y), blocks(w), strict=True):
            for first in range(0, len(rows), 8):
                some = slice(first, first + 8)
                expected.train_on_batch(rows[some], y[some], sample_weight=weights[some])
    given = [array_blocks(values, SIZES) for values in (X, Y, w)]
    unfitted = Network(3)
    result = dpipe.fit(unfitted, *given, epochs=dpipe.Epochs(3, batch_size=8))
    np.testing.assert_array_equal(result.weights, expected.weights)
    assert result.sizes == expected.sizes
    assert not unfitted.sizes


def test_a_model_that_trains_on_batches_stands_behind_transformers():
    frame = pd.DataFrame(X * 100 + 7, columns=list("abc"))
    epochs = dpipe.Epochs(40, shuffle="rows", batch_size=8)
    pipeline = dpipe.fit(make_pipeline(StandardScaler(), Network(3)), frame, Y, epochs=epochs)
    predicted = pipeline[-1].predict(pipeline[:-1].transform(frame))
    np.testing.assert_allclose(predicted, Y, atol=1e-6)


@pytest.mark.parametrize(
    "estimator",
    [LatentDirichletAllocation(2, random_state=0), SGDOneClassSVM(random_state=0)],
    ids=lambda estimator: type(estimator).__name__,
)
def test_what_scikit_learn_has_beside(estimator):
    values = np.abs(X)
    sizes = (40, 0, 40)
    expected = clone(estimator)
    with single_threaded_blas():
        expected.partial_fit(values[:40])
        expected.partial_fit(values[40:])
    result = dpipe.fit(estimator, array_blocks(values, sizes))
    for name in ("components_", "coef_", "offset_"):
        if hasattr(expected, name):
            assert_same(getattr(result, name), getattr(expected, name), rtol=0)


@pytest.mark.parametrize("estimator", [KNeighborsClassifier(), SelectFromModel(SGDClassifier()), Birch()])
def test_an_estimator_without_partial_fit_is_named(estimator):
    with pytest.raises(
        UnsupportedEstimatorError, match=f"{type(estimator).__name__} cannot be fitted block by"
    ):
        dpipe.fit(estimator, array_blocks(X, SIZES), array_blocks(LABELS, SIZES))


def test_classes_that_are_given_need_no_pass(tmp_path):
    given = array_blocks(X, SIZES), array_blocks(LABELS, SIZES)
    epochs = dpipe.Epochs(2, classes=np.array(["low", "high"]))
    learner = SGDClassifier(random_state=0)
    plan = dpipe.plan(learner, *given, epochs=epochs)
    assert plan.n_passes == 2
    assert len(plan.passes) == 1
    assert_same(dpipe.fit(learner, *given, epochs=epochs), dpipe.fit(learner, *given, epochs=2), rtol=0)
    assert_same(
        recorded_fit(tmp_path, learner, *given, epochs=epochs)[0],
        dpipe.fit(learner, *given, epochs=2),
        rtol=0,
    )


@pytest.mark.parametrize("learner", [SGDClassifier(), MLPClassifier((2,)), Counting()])
@pytest.mark.parametrize("labels", [[0, 1], ["low", "high"], [True, False]])
def test_a_class_first_seen_in_a_late_block_is_named(learner, labels):
    y = np.array([labels[i % 2] for i in range(80)], dtype=object if isinstance(labels[0], str) else None)
    late = y.astype(object)
    late[79] = "rare" if isinstance(labels[0], str) else 7
    given = array_blocks(X, SIZES), array_blocks(late if late[79] == "rare" else late.astype(int), SIZES)
    with pytest.raises(InputError, match=r"block 5: y holds ('rare'|7), but classes=.* does not. Name all"):
        dpipe.fit(learner, *given, epochs=dpipe.Epochs(classes=labels))


def test_classes_need_a_taker():
    with pytest.raises(
        InputError, match=r"classes=\[0, 1\] are given, but no classifier of SGDRegressor learns"
    ):
        dpipe.fit(
            SGDRegressor(),
            array_blocks(X, SIZES),
            array_blocks(Y, SIZES),
            epochs=dpipe.Epochs(classes=[0, 1]),
        )


DIVERGING = {
    "steps": SGDRegressor(learning_rate="constant", eta0=1e300),
    "a third party's": LeastMeanSquares(1e200),
    "batches": Network(3, 1e200),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", DIVERGING)
def test_divergence_is_told(name):
    given = array_blocks(X * 1e4, SIZES), array_blocks(Y, SIZES)
    with pytest.raises(InputError, match=r"epoch 1, block \d.*It has diverged: standardise"):
        dpipe.fit(DIVERGING[name], *given, epochs=3)


def test_empty_blocks_only():
    with pytest.raises(InputError, match="the data has no rows"):
        dpipe.fit(LeastMeanSquares(), array_blocks(X[:0], (0, 0)), array_blocks(Y[:0], (0, 0)))


def test_sparse_blocks_reach_a_third_party_as_they_are():
    class Width(BaseEstimator):
        def fit(self, X, y=None):
            return self.partial_fit(X)

        def partial_fit(self, X, y=None):
            self.formats_ = [*getattr(self, "formats_", []), X.format]
            return self

    assert dpipe.fit(Width(), csr_blocks(X, SIZES)).formats_ == ["csr"] * 4
