"""Averaged learners: what is dealt to whom decides the answer, and who works on it does not."""

import copy

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from sklearn.base import clone, is_classifier
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import Perceptron, SGDClassifier, SGDOneClassSVM, SGDRegressor
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier, MLPRegressor

import dpipe
from dpipe.blocks.threads import single_threaded_blas
from dpipe.collect.parquet import read_parquet
from dpipe.errors import UnsupportedEstimatorError
from dpipe.families.averaged import averaged
from tests.kernel_cases import array_blocks, assert_same
from tests.train.test_resume import recorded_fit, write_files
from tests.train.test_stream import SIZES, data

LEARNERS = {
    "classifier": SGDClassifier(loss="log_loss", random_state=0),
    "classifier, averaged over steps": SGDClassifier(loss="log_loss", average=12, random_state=0),
    "perceptron": Perceptron(random_state=0),
    "regressor": SGDRegressor(average=True, random_state=1),
    "one class": SGDOneClassSVM(average=True, random_state=1),
    "network": MLPClassifier((4,), random_state=0),
    "network with momentum": MLPRegressor(hidden_layer_sizes=(3,), solver="sgd", random_state=0),
}
DEALS = [
    dpipe.Epochs(2, average=3, average_every=1),
    dpipe.Epochs(2, average=2, average_every=3, shuffle="blocks"),
    dpipe.Epochs(1, average=2, average_every=99, shuffle="rows", mix=4),
]


def by_hand(estimator, X, y, epochs, lengths=SIZES):
    """Deal, learn, average: in a loop."""
    common = clone(estimator)
    arguments = {"classes": np.unique(y)} if is_classifier(common) else {}
    ends = np.cumsum(lengths)
    visits = epochs.visits(len(lengths))
    numbers = {}
    for epoch in range(epochs.n):
        steps = iter(epochs.order(lengths, epoch))
        for i, visit in enumerate(visits):
            if visit.epoch == epoch:
                block = visit.blocks[visit.part or 0]
                numbers[i] = next(steps) if lengths[block] else ends[:0]
    for each in epochs.rounds(visits):
        learners, rows_of = [], []
        for dealt in each:
            learner = copy.deepcopy(common)
            for i in dealt:
                if len(numbers[i]):
                    with single_threaded_blas():
                        learner.partial_fit(
                            X[numbers[i]], *([] if y is None else [y[numbers[i]]]), **arguments
                        )
            learners.append(learner)
            rows_of.append(sum(len(numbers[i]) for i in dealt))
        common = averaged(common, learners, rows_of)
    return common


def fitted(estimator, epochs, **options):
    X, y, _ = data(estimator)
    y = None if isinstance(estimator, SGDOneClassSVM) else array_blocks(y, SIZES)
    return dpipe.fit(estimator, array_blocks(X, SIZES), y, epochs=epochs, **options)


def assert_same_weights(result, expected):
    for name in ("coef_", "coefs_", "intercept_", "intercepts_", "offset_", "t_", "_average_coef"):
        if hasattr(expected, name):
            assert_same(getattr(result, name), getattr(expected, name), rtol=0)


@pytest.mark.parametrize("epochs", DEALS, ids=lambda epochs: f"{epochs.average} {epochs.shuffle}")
@pytest.mark.parametrize("name", LEARNERS)
def test_the_same_as_by_hand_for_any_number_of_threads(name, epochs):
    estimator = LEARNERS[name]
    X, y, _ = data(estimator)
    expected = by_hand(estimator, X, None if isinstance(estimator, SGDOneClassSVM) else y, epochs)
    assert_same_weights(fitted(estimator, epochs), expected)
    with dask.config.set(scheduler="threads", num_workers=4):
        assert_same_weights(fitted(estimator, epochs), expected)


@pytest.mark.cluster
def test_processes_give_the_same_bits():
    estimator = LEARNERS["classifier"]
    expected = fitted(estimator, DEALS[0])
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        assert_same_weights(fitted(estimator, DEALS[0], client=client), expected)


def test_one_learner_is_the_stream():
    for name in ("classifier", "network"):
        estimator = LEARNERS[name]
        assert_same_weights(fitted(estimator, dpipe.Epochs(2, average=1)), fitted(estimator, 2))


def test_without_a_seed_all_networks_begin_with_the_same_weights():
    """Else the mean of their weights would mean nothing."""
    estimator = MLPClassifier((4,), learning_rate_init=1e-9)
    found = fitted(estimator, dpipe.Epochs(average=3))
    assert_same_weights(found, fitted(estimator, dpipe.Epochs(average=3)))
    alone = fitted(estimator, 1)
    for mine, theirs in zip(found.coefs_, alone.coefs_, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_the_mean_over_steps_counts_each_step_of_each_learner_once():
    rng = np.random.default_rng(0)
    before = SGDRegressor(average=True, random_state=0).partial_fit(
        rng.normal(size=(30, 2)), rng.normal(size=30)
    )
    parts = [(rng.normal(size=(n, 2)), rng.normal(size=n)) for n in (10, 20)]
    learners = [copy.deepcopy(before).partial_fit(*part) for part in parts]
    found = averaged(before, learners, [10, 20])
    sums = [
        30 * before._average_coef,
        *(
            (30 + n) * each._average_coef - 30 * before._average_coef
            for n, each in zip((10, 20), learners, strict=True)
        ),
    ]
    np.testing.assert_allclose(found.coef_, sum(sums) / 60, rtol=1e-12)
    assert found.t_ == 61.0
    np.testing.assert_array_equal(
        found._standard_coef, (10 * learners[0]._standard_coef + 20 * learners[1]._standard_coef) / 30
    )


def test_averaging_leaves_the_learners_as_they_are():
    X, y, _ = data(LEARNERS["classifier"])
    learners = [
        clone(LEARNERS["classifier"]).partial_fit(X[i::2], y[i::2], classes=np.unique(y)) for i in (0, 1)
    ]
    kept = copy.deepcopy(learners)
    found = averaged(clone(learners[0]), learners, [1, 1])
    found.partial_fit(X, y)
    assert_same_weights(learners[0], kept[0])
    assert_same_weights(learners[1], kept[1])


def test_learners_without_rows_do_not_count():
    X, y, _ = data(LEARNERS["regressor"])
    learner = clone(LEARNERS["regressor"]).partial_fit(X, y)
    before = clone(learner)
    assert averaged(before, [learner, before], [9, 0]) is learner
    assert averaged(before, [before, before], [0, 0]) is before


def test_held_out_loss_at_equal_epochs():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80_000, 12))
    y = (X @ rng.normal(size=12) + rng.normal(size=len(X)) > 0).astype(int)
    given = array_blocks(X[:64_000], (2000,) * 32), array_blocks(y[:64_000], (2000,) * 32)
    for epochs in (1, 3):
        losses = [
            log_loss(
                y[64_000:], dpipe.fit(LEARNERS["classifier"], *given, epochs=each).predict_proba(X[64_000:])
            )
            for each in (epochs, dpipe.Epochs(epochs, average=2), dpipe.Epochs(epochs, average=4))
        ]
        assert max(losses) <= 1.005 * losses[0]


def test_what_cannot_be_averaged_is_named():
    with pytest.raises(UnsupportedEstimatorError, match="MiniBatchKMeans cannot be averaged"):
        fitted(MiniBatchKMeans(2), dpipe.Epochs(average=2))


def test_a_plan_tells_how_blocks_are_dealt():
    X, y, _ = data(LEARNERS["classifier"])
    given = array_blocks(X, SIZES), array_blocks(y, SIZES)
    plan = dpipe.plan(LEARNERS["classifier"], *given, epochs=dpipe.Epochs(average=3, average_every=2))
    assert "blocks are dealt to 3 learners, which are averaged after every 2 blocks of each" in str(plan)


def test_averaged_learners_go_on_from_their_last_record(tmp_path, monkeypatch):
    write_files(tmp_path, range(9))
    frame = read_parquet(tmp_path)
    X, y = frame[["a", "b"]], frame["label"]
    learner, epochs = SGDClassifier(average=True, random_state=0), dpipe.Epochs(2, average=2)
    whole = dpipe.fit(learner, X, y, epochs=epochs)

    from dpipe.families import program

    learn, seen = program.learn, []

    def failing(held, rows, position, **how):
        seen.append(position)
        if len(seen) == 14:
            raise RuntimeError("the power is gone")
        return learn(held, rows, position, **how)

    monkeypatch.setattr("dpipe.train.stream.learn", failing)
    with pytest.raises(RuntimeError, match="power"):
        recorded_fit(tmp_path / "run", learner, X, y, epochs=epochs)
    monkeypatch.setattr("dpipe.train.stream.learn", learn)
    resumed, _, found, notes = recorded_fit(tmp_path / "run", learner, X, y, epochs=epochs)
    assert found > 9, notes  # the classes, and what was learned until the last record
    assert any("of 18 blocks of pass 2 on record" in note for note in notes)
    assert_same(resumed, whole, rtol=0)
