"""Learning in order: in the order that `Epochs` tells, bit for bit, for any number of workers."""

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from distributed import Client, LocalCluster
from sklearn.base import clone, is_classifier
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.blocks.threads import single_threaded_blas
from dpipe.collect.parquet import read_parquet
from dpipe.errors import InputError, MemoryLimitError
from tests.families.test_gradient import COLUMNS, cut, made
from tests.kernel_cases import array_blocks, assert_same, csr_blocks, parquet_blocks
from tests.train.test_resume import recorded_fit, write_files

SIZES = (7, 0, 9, 7, 1, 7, 11, 7, 0, 11)
ORDERS = [
    dpipe.Epochs(2, shuffle="blocks", random_state=3),
    dpipe.Epochs(2, shuffle="rows", mix=3, random_state=1),
    dpipe.Epochs(4, shuffle="rows", mix=20),
]
LEARNERS = {
    "classifier": SGDClassifier(random_state=3),
    "without a seed of its own": SGDClassifier(shuffle=False),
    "regressor": SGDRegressor(average=True, random_state=1),
    "network": MLPClassifier((4,), random_state=0),
    "components": MiniBatchDictionaryLearning(2, random_state=0),
}


def data(estimator):
    frame = made("three" if is_classifier(estimator) else "number")
    y = None if isinstance(estimator, MiniBatchDictionaryLearning) else frame["y"].to_numpy()
    return np.ascontiguousarray(frame[COLUMNS[:3]].to_numpy()), y, frame["w"].to_numpy()


def by_hand(estimator, X, y, epochs, lengths=SIZES, w=None):
    """The loop that `Epochs.order` is for."""
    learner = clone(estimator)
    arguments = {"classes": np.unique(y)} if is_classifier(learner) else {}
    for epoch in range(epochs.n):
        for rows in epochs.order(lengths, epoch):
            given = [] if y is None else [y[rows]]
            weights = {} if w is None else {"sample_weight": w[rows]}
            with single_threaded_blas():
                learner.partial_fit(X[rows], *given, **arguments, **weights)
    return learner


def assert_same_learner(result, expected):
    for name in ("coef_", "coefs_", "intercept_", "t_", "components_"):
        if hasattr(expected, name):
            assert_same(getattr(result, name), getattr(expected, name), rtol=0)


@pytest.mark.parametrize("epochs", ORDERS, ids=lambda epochs: f"{epochs.shuffle} {epochs.mix}")
@pytest.mark.parametrize("name", LEARNERS)
def test_the_order_that_is_told_is_the_order_of_learning(name, epochs):
    estimator = LEARNERS[name]
    X, y, _ = data(estimator)
    expected = by_hand(estimator, X, y, epochs)
    blocks = None if y is None else array_blocks(y, SIZES)
    result = dpipe.fit(estimator, array_blocks(X, SIZES), blocks, epochs=epochs)
    assert_same_learner(result, expected)
    with dask.config.set(scheduler="threads", num_workers=4):
        assert_same_learner(dpipe.fit(estimator, array_blocks(X, SIZES), blocks, epochs=epochs), expected)


def test_weights_and_sparse_blocks_are_mixed_too():
    epochs = dpipe.Epochs(2, shuffle="rows", mix=4)
    estimator = SGDClassifier(random_state=0)
    X, y, w = data(estimator)
    X = np.where(X > 0, X, 0.0)
    expected = by_hand(estimator, sp.csr_matrix(X), y, epochs, w=w)
    result = dpipe.fit(
        estimator, csr_blocks(X, SIZES), array_blocks(y, SIZES), array_blocks(w, SIZES), epochs=epochs
    )
    assert_same_learner(result, expected)


def test_rows_are_mixed_behind_transformers_and_in_scratch(tmp_path):
    frame = made("two")[[*COLUMNS[:3], "y"]]
    epochs = dpipe.Epochs(3, shuffle="rows", mix=4)  # from three readings on, blocks are kept in scratch
    model = make_pipeline(StandardScaler(), SGDClassifier(random_state=2))
    frames = parquet_blocks(frame, tmp_path, SIZES)
    plan = dpipe.plan(model, frames, "y", epochs=epochs)
    assert "scratch: transformed blocks are kept" in str(plan)
    result = dpipe.fit(model, frames, "y", epochs=epochs)
    X = np.vstack([result[0].transform(block) for block in cut(frame[COLUMNS[:3]], SIZES) if len(block)])
    assert_same_learner(result[-1], by_hand(model[-1], X, frame["y"].to_numpy(), epochs))


@pytest.mark.cluster
def test_processes_give_the_same_bits():
    epochs = dpipe.Epochs(2, shuffle="rows", mix=3, random_state=1)
    estimator = LEARNERS["classifier"]
    X, y, _ = data(estimator)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        result = dpipe.fit(
            estimator, array_blocks(X, SIZES), array_blocks(y, SIZES), epochs=epochs, client=client
        )
    assert_same_learner(result, by_hand(estimator, X, y, epochs))


def test_a_plan_tells_the_order_its_quality_and_its_cost():
    X, y = da.ones((4000, 3), chunks=(100, 3)), da.arange(4000, chunks=100) % 2
    plan = dpipe.plan(SGDClassifier(), X, y, epochs=dpipe.Epochs(2, shuffle="rows", mix=5, random_state=7))
    text = str(plan)
    assert "all rows of 5 of them at a time (seed 7): 80.2% of the rows follow one of another block" in text
    assert "(97.5% if all were shuffled), 17.9% of the variance between blocks is left" in text
    assert "mixing takes no more readings, but holds up to" in text
    assert "blocks in random order" in plan._repr_html_()
    stored = dpipe.plan(SGDClassifier(), X, y, epochs=2)
    assert "random order" not in str(stored)
    assert plan.passes[1].rows == stored.passes[1].rows == 8000
    assert plan.passes[1].projected_nbytes > stored.passes[1].projected_nbytes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"n": True}, "epochs must be an integer of at least 1, got True"),
        ({"shuffle": "all"}, "shuffle must be None, 'blocks' or 'rows', got 'all'"),
        ({"mix": 0}, "mix must be an integer of at least 1"),
        ({"random_state": None}, "random_state must be an integer of at least 0, got None"),
        ({"classes": [1]}, "classes must name at least two labels"),
        ({"batch_size": 1.5}, "batch_size must be an integer"),
    ],
)
def test_settings_that_do_not_do(settings, message):
    with pytest.raises(InputError, match=message):
        dpipe.Epochs(**settings)


def test_a_budget_smaller_than_one_block_and_one_model():
    X, y = da.ones((1000, 2000), chunks=(10, 2000)), da.arange(1000, chunks=10) % 2
    with pytest.raises(MemoryLimitError, match="the budget is .* Give at least memory="):
        dpipe.plan(MLPClassifier((20_000,)), X, y, memory="2 GiB")
    assert dpipe.plan(MLPClassifier((20,)), X, y, memory="2 GiB").n_passes == 2


@pytest.mark.parametrize("epochs", ORDERS[:2], ids=lambda epochs: epochs.shuffle)
def test_a_shuffled_stream_goes_on_from_its_last_record(epochs, tmp_path, monkeypatch):
    write_files(tmp_path, range(7))
    frame = read_parquet(tmp_path)
    X, y = frame[["a", "b"]], frame["label"]
    learner = SGDClassifier(random_state=0)
    whole = dpipe.fit(learner, X, y, epochs=epochs)

    from dpipe.families import program

    learn, seen = program.learn, []

    def failing(held, rows, position, **how):
        seen.append(position)
        if len(seen) == 10:
            raise RuntimeError("the power is gone")
        return learn(held, rows, position, **how)

    monkeypatch.setattr("dpipe.train.stream.learn", failing)
    workdir = tmp_path / "run"
    with pytest.raises(RuntimeError, match="power"):
        recorded_fit(workdir, learner, X, y, epochs=epochs)
    monkeypatch.setattr("dpipe.train.stream.learn", learn)
    resumed, read, found, notes = recorded_fit(workdir, learner, X, y, epochs=epochs)
    assert found >= 9 - 1, notes
    assert read < 14 + 7
    assert_same(resumed, whole, rtol=0)
    other, read, _, notes = recorded_fit(
        workdir, learner, X, y, epochs=dpipe.Epochs(2, shuffle="rows", mix=2)
    )
    assert read >= 14, notes
    assert (other.coef_ != whole.coef_).any()
