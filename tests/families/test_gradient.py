"""What learns in order equals `partial_fit` by hand on the same blocks, bit for bit."""

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.cluster import MiniBatchKMeans
from sklearn.compose import make_column_transformer
from sklearn.decomposition import IncrementalPCA, MiniBatchDictionaryLearning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Perceptron, SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from dpipe.blocks.rows import Rows
from dpipe.blocks.threads import single_threaded_blas
from dpipe.errors import UnsupportedEstimatorError
from dpipe.families.gradient import foreseen_order, learn
from dpipe.train.fit import fit
from tests.kernel_cases import array_blocks, assert_same, awkward_frame, csr_blocks, in_blocks, parquet_blocks

SIZES = (0, 20, 1, 20, 0, 19)
COLUMNS = ["plain", "more", "small", "text_holes"]


def made(kind):
    frame = awkward_frame()[COLUMNS]
    rng = np.random.default_rng(1)
    labels = {
        "two": rng.integers(0, 2, len(frame)),
        "three": rng.choice(["low", "mid", "high"], len(frame)),
        "number": frame["plain"].to_numpy() + rng.normal(size=len(frame)),
    }
    return frame.assign(y=labels[kind], w=rng.random(len(frame)) + 0.1)


def by_hand(estimator, blocks, epochs, classes):
    learner = clone(estimator)
    for _ in range(epochs):
        for X, y, w in blocks:
            if len(y):
                learner.partial_fit(
                    X, y, **({} if classes is None else {"classes": classes}), sample_weight=w
                )
    return learner


OTHERS = {
    "perceptron": (Perceptron(random_state=0), "two"),
    "perceptron, three classes": (Perceptron(random_state=0, penalty="l2"), "three"),
    "network": (MLPClassifier((5,), random_state=0), "three"),
    "network, regression": (MLPRegressor(hidden_layer_sizes=(4,), solver="sgd", random_state=0), "number"),
    "means": (MiniBatchKMeans(3, random_state=0, n_init=1), None),
    "components": (IncrementalPCA(1), None),
    "dictionary": (MiniBatchDictionaryLearning(2, random_state=0), None),
}


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("name", OTHERS)
def test_other_learners_are_left_to_themselves(name, epochs):
    estimator, target = OTHERS[name]
    frame = made(target or "number")
    X = np.ascontiguousarray(frame[COLUMNS[:3]].to_numpy())  # the layout that a learner is given
    y = None if target is None else frame["y"].to_numpy()
    expected = clone(estimator)
    classes = {"classes": np.unique(y)} if is_classifier(estimator) else {}
    for _ in range(epochs):
        for i, block in enumerate(cut(X)):
            if len(block):
                with single_threaded_blas():
                    expected.partial_fit(block, *([] if y is None else [cut(y)[i]]), **classes)
    result = fit(
        estimator, array_blocks(X, SIZES), None if y is None else array_blocks(y, SIZES), epochs=epochs
    )
    for attribute in (
        "coef_",
        "coefs_",
        "intercept_",
        "cluster_centers_",
        "components_",
        "explained_variance_",
    ):
        if hasattr(expected, attribute):
            assert_same(getattr(result, attribute), getattr(expected, attribute), rtol=0)
    assert result.get_params() == estimator.get_params()


def test_networks_without_mini_batches_are_refused():
    with pytest.raises(UnsupportedEstimatorError, match="solver='lbfgs'.*Use solver='adam'"):
        fit(MLPRegressor(solver="lbfgs"), np.ones((4, 1)), np.ones(4))


def cut(values, sizes=SIZES):
    ends = np.cumsum(sizes)
    return [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]


LEARNERS = {
    "binary": (SGDClassifier(random_state=3), "two"),
    "not shuffled": (SGDClassifier(shuffle=False), "two"),
    "log loss": (SGDClassifier(loss="log_loss", penalty="elasticnet", random_state=0), "two"),
    "adaptive steps": (SGDClassifier(learning_rate="invscaling", eta0=0.1, random_state=0), "two"),
    "weights of classes": (SGDClassifier(class_weight={0: 1.0, 1: 3.0}, random_state=0), "two"),
    "averaged": (SGDClassifier(average=True, random_state=0), "two"),
    "averaged late": (SGDClassifier(average=25, random_state=0), "two"),
    "three classes": (SGDClassifier(loss="modified_huber", random_state=5), "three"),
    "regression": (SGDRegressor(random_state=1), "number"),
    "regression, averaged": (SGDRegressor(average=True, random_state=1), "number"),
    "huber": (SGDRegressor(loss="huber", penalty="l1", random_state=1), "number"),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("name", LEARNERS)
def test_same_bits_as_partial_fit_on_arrays(name, epochs, weighted):
    estimator, target = LEARNERS[name]
    frame = made(target)
    X, y = frame[COLUMNS[:3]].to_numpy(), frame["y"].to_numpy()
    w = frame["w"].to_numpy() if weighted else None
    classes = np.unique(y) if is_classifier(estimator) else None
    blocks = list(zip(cut(X), cut(y), cut(w) if weighted else [None] * len(SIZES), strict=True))
    expected = by_hand(estimator, blocks, epochs, classes)
    weights = array_blocks(w, SIZES) if weighted else None
    result = fit(estimator, array_blocks(X, SIZES), array_blocks(y, SIZES), weights, epochs=epochs)
    assert_same(result, expected, rtol=0)


@pytest.mark.parametrize("kind", ["frame", "parquet"])
def test_same_bits_behind_a_column_transformer(kind, tmp_path):
    frame = made("three")
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), COLUMNS[:3]),
        (make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()), ["text_holes"]),
        sparse_threshold=1.0,
    )
    learner = SGDClassifier(random_state=2)
    used = frame.drop(columns="w")
    X = in_blocks(used, SIZES) if kind == "frame" else parquet_blocks(used, tmp_path, SIZES)
    result = fit(make_pipeline(columns, learner), X, "y", epochs=2)
    transformed = [result[0].transform(block[COLUMNS]) for block in cut(frame) if len(block)]
    blocks = [
        (M, b["y"].to_numpy(), None)
        for M, b in zip(transformed, (b for b in cut(frame) if len(b)), strict=True)
    ]
    expected = by_hand(learner, blocks, 2, np.unique(frame["y"].to_numpy()))
    assert_same(result[-1], expected, rtol=0)


def test_sparse_blocks():
    frame = made("two")
    values = np.where(frame[COLUMNS[:3]].to_numpy() > 0, frame[COLUMNS[:3]].to_numpy(), 0.0)
    estimator, y = SGDClassifier(random_state=0), frame["y"].to_numpy()
    X = csr_blocks(values, SIZES)
    blocks = [(X.blocks[i].compute(), part, None) for i, part in enumerate(cut(y)) if len(part)]
    expected = by_hand(estimator, blocks, 1, np.unique(y))
    assert_same(fit(estimator, X, array_blocks(y, SIZES)), expected, rtol=0)


def test_without_a_seed_a_run_can_be_repeated():
    frame = made("two")
    X, y = array_blocks(frame[COLUMNS[:3]].to_numpy(), SIZES), array_blocks(frame["y"].to_numpy(), SIZES)
    first, second = (fit(SGDClassifier(), X, y) for _ in range(2))
    assert_same(first, second, rtol=0)
    assert first.random_state is None
    assert first.shuffle


@pytest.mark.parametrize("estimator", [SGDClassifier(random_state=9), SGDRegressor(random_state=9)])
@pytest.mark.parametrize("n", [2, 3, 100, 5000])
def test_an_order_found_beforehand_is_the_order_of_partial_fit(estimator, n):
    rng = np.random.default_rng(n)
    X, y = rng.normal(size=(n, 3)), rng.integers(0, 2, n)
    classes = np.array([0, 1]) if is_classifier(estimator) else None
    order = foreseen_order(estimator, n).rows
    assert sorted(order) == list(range(n))
    ordered = learn(clone(estimator), classes, Rows(X[order], y[order], None, ordered=True), (0, 0))
    expected = by_hand(estimator, [(X, y, None)], 1, classes)
    assert_same(ordered, expected, rtol=0)


def test_learning_leaves_the_learner_it_was_given():
    frame = made("two")
    X, y = frame[COLUMNS[:3]].to_numpy(), frame["y"].to_numpy()
    first = learn(SGDClassifier(random_state=0), np.array([0, 1]), Rows(X, y, None), (0, 0))
    before = first.coef_.copy()
    learn(first, np.array([0, 1]), Rows(X, y, None), (0, 1))
    np.testing.assert_array_equal(first.coef_, before)


def test_a_class_that_most_blocks_lack():
    frame = made("two")
    y = np.zeros(len(frame), dtype=int)
    y[-1] = 1
    X = frame[COLUMNS[:3]].to_numpy()
    expected = by_hand(
        SGDClassifier(random_state=0), [(a, b, None) for a, b in zip(cut(X), cut(y), strict=True)], 1, [0, 1]
    )
    result = fit(SGDClassifier(random_state=0), array_blocks(X, SIZES), array_blocks(y, SIZES))
    assert_same(result, expected, rtol=0)
