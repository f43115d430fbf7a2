"""Early stopping: the scores of each epoch, the learner of the best one, and the same after a kill."""

import copy
from dataclasses import replace

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_classifier
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.linear_model import LinearRegression, SGDClassifier, SGDRegressor
from sklearn.metrics import get_scorer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.blocks.threads import single_threaded_blas
from dpipe.collect.parquet import read_parquet
from dpipe.errors import InputError, MemoryLimitError
from dpipe.monitor.record import RunRecord
from tests.families.test_other_learners import Network
from tests.helpers import raise_if_computes
from tests.kernel_cases import array_blocks, assert_same
from tests.train.test_resume import recorded_fit, write_files

SIZES = (60, 0, 90, 60, 1, 60, 110, 60, 0, 59)
N = sum(SIZES)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3))
NUMBERS = X @ [1.0, -2.0, 0.5] + RNG.normal(size=N)
LABELS = np.where(NUMBERS > 0, "yes", "no").astype(object)
W = RNG.random(N) + 0.1
X_OWN = RNG.normal(size=(150, 3))
NUMBERS_OWN = X_OWN @ [1.0, -2.0, 0.5] + RNG.normal(size=150)
LEARNERS = {
    "classifier": (SGDClassifier(loss="log_loss", random_state=0), LABELS, "neg_log_loss"),
    "regressor": (SGDRegressor(random_state=0, eta0=0.1), NUMBERS, None),
    "ranked": (SGDClassifier(random_state=0), LABELS, "roc_auc"),
}


def blocks(values, sizes=SIZES):
    return array_blocks(values, sizes)


def rows_of(epochs):
    """Rows that are learned from, and those that are held out."""
    firsts = np.concatenate([[0], np.cumsum(SIZES)])
    parts = [firsts[i] + epochs.learned(n, i) for i, n in enumerate(SIZES)]
    learned = np.concatenate(parts)
    return learned, np.setdiff1d(np.arange(N), learned)


def by_hand(estimator, y, epochs, metric, held=None, w=None):
    """Learn and score in a loop; give all scores and the learner of the best epoch."""
    learner, scores, best, waited = clone(estimator), [], None, 0
    scorer = get_scorer(metric or ("accuracy" if is_classifier(estimator) else "r2"))
    classes = {"classes": np.unique(y)} if is_classifier(estimator) else {}
    if held is None:
        _, chosen = rows_of(epochs)
        held = (X[chosen], y[chosen], *([] if w is None else [w[chosen]]))
    for epoch in range(epochs.n):
        for rows in epochs.order(SIZES, epoch):
            weights = {} if w is None else {"sample_weight": w[rows]}
            with single_threaded_blas():
                learner.partial_fit(X[rows], y[rows], **classes, **weights)
        scores.append(scorer(learner, *held[:2], **({} if w is None else {"sample_weight": held[2]})))
        if best is None or scores[-1] > best[0] + epochs.tol:
            best, waited = (scores[-1], copy.deepcopy(learner)), 0
        else:
            waited += 1
        if waited == epochs.patience:
            break
    return scores, best[1]


@pytest.mark.parametrize("shuffle", [None, "rows"])
@pytest.mark.parametrize("name", LEARNERS)
def test_scores_and_the_best_learner_are_those_of_a_loop_by_hand(name, shuffle):
    estimator, y, metric = LEARNERS[name]
    told = []
    epochs = dpipe.Epochs(
        9, shuffle=shuffle, mix=4, validation=0.3, patience=2, scoring=metric, on_epoch=told.append
    )
    scores, best = by_hand(estimator, y, epochs, metric)
    result = dpipe.fit(estimator, blocks(X), blocks(y), epochs=epochs)
    np.testing.assert_allclose([epoch.score for epoch in told], scores, rtol=1e-9)
    assert [epoch.number for epoch in told] == list(range(1, len(scores) + 1))
    for attribute in ("coef_", "intercept_", "t_"):
        assert_same(getattr(result, attribute), getattr(best, attribute), rtol=0)
    assert len(scores) < 9 or name != "ranked"


def test_rows_of_their_own_in_other_blocks():
    estimator, y, _ = LEARNERS["regressor"]
    told = []
    own = array_blocks(X_OWN, (0, 100, 50)), array_blocks(NUMBERS_OWN, (0, 100, 50))
    epochs = dpipe.Epochs(
        4, validation=own, patience=3, scoring="neg_mean_squared_error", on_epoch=told.append
    )
    scores, best = by_hand(estimator, y, epochs, "neg_mean_squared_error", (X_OWN, NUMBERS_OWN))
    result = dpipe.fit(estimator, blocks(X), blocks(y), epochs=epochs)
    np.testing.assert_allclose([epoch.score for epoch in told], scores, rtol=1e-9)
    assert_same(result.coef_, best.coef_, rtol=0)
    in_memory = replace(epochs, validation=(X_OWN, NUMBERS_OWN), on_epoch=None)
    assert_same(dpipe.fit(estimator, blocks(X), blocks(y), epochs=in_memory), result, rtol=0)


@pytest.mark.parametrize("n", [2, 5])  # from three readings on, blocks are kept in scratch
def test_weights_count_in_learning_and_in_scores(n):
    estimator, y, _ = LEARNERS["classifier"]
    told = []
    epochs = dpipe.Epochs(n, validation=0.3, scoring="accuracy", on_epoch=told.append)
    scores, best = by_hand(estimator, y, epochs, "accuracy", w=W)
    result = dpipe.fit(estimator, blocks(X), blocks(y), blocks(W), epochs=epochs)
    np.testing.assert_allclose([epoch.score for epoch in told], scores, rtol=1e-9)
    assert_same(result.coef_, best.coef_, rtol=0)


def test_the_last_step_of_a_pipeline_over_files(tmp_path):
    write_files(tmp_path, range(6))
    frame = read_parquet(tmp_path)
    model = make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0))
    told = []
    epochs = dpipe.Epochs(6, shuffle="blocks", average=2, validation=0.25, on_epoch=told.append)
    fitted = dpipe.fit(model, frame[["a", "b"]], frame["label"], epochs=epochs)
    rows = frame.compute().reset_index(drop=True)
    firsts = np.arange(0, 600, 100)
    held = np.setdiff1d(
        np.arange(600), np.concatenate([f + epochs.learned(100, i) for i, f in enumerate(firsts)])
    )
    assert max(epoch.score for epoch in told) == pytest.approx(
        fitted.score(rows.loc[held, ["a", "b"]], rows.loc[held, "label"]), abs=1e-3
    )
    assert len(told) >= 6 or not any(epoch.best for epoch in told[-5:])


def test_a_plan_tells_of_scores_and_of_stopping():
    given = blocks(X), blocks(LABELS)
    epochs = dpipe.Epochs(20, validation=0.1, patience=3, scoring="neg_log_loss")
    with raise_if_computes():
        plan = dpipe.plan(LEARNERS["classifier"][0], *given, epochs=epochs)
    text = str(plan)
    assert "stream, 4 to 20 epochs" in text
    assert "Pass 3  score, 4 to 20 times" in text
    assert "neg_log_loss of a share that SGDClassifier does not learn from" in text
    assert "stops after 3 epochs without a score that is better by 0.0001" in text
    assert (plan.n_passes, plan.most_passes) == (1 + 4 + 4, 1 + 20 + 20)


def test_the_report_draws_the_learning_curve(tmp_path):
    told = []
    epochs = dpipe.Epochs(6, validation=0.2, scoring="neg_log_loss", patience=2, on_epoch=told.append)
    for _ in range(2):  # the second time from the ledger
        told.clear()
        dpipe.fit(LEARNERS["classifier"][0], blocks(X), blocks(LABELS), epochs=epochs, workdir=tmp_path)
        record = RunRecord.read(tmp_path / "run.json")
        (curve,) = record.curves
        assert curve.name == "SGDClassifier: neg_log_loss after each epoch"
        assert curve.y == tuple(epoch.score for epoch in told)
        assert curve.x == tuple(range(1, len(told) + 1))
        assert [one.way for one in record.passes] == ["merge", "stream", "score"]
        assert sum(one.rows for one in record.passes[1:]) == N * len(told)
    assert all(one.read_share == 0 for one in record.passes)
    assert "after each epoch" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("average", [None, 2])
@pytest.mark.parametrize("own", [False, True])
def test_it_goes_on_after_a_kill(own, average, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    write_files(tmp_path / "data", range(6))
    frame = read_parquet(tmp_path / "data")
    features, y = frame[["a", "b"]], frame["label"]
    held = (features.partitions[:2], y.partitions[:2]) if own else 0.2
    told = []
    epochs = dpipe.Epochs(
        7,
        validation=held,
        patience=3,
        average=average,
        shuffle="blocks",
        scoring="neg_log_loss",
        on_epoch=told.append,
    )
    learner = SGDClassifier(loss="log_loss", random_state=0)
    whole = dpipe.fit(learner, features, y, epochs=epochs)
    expected = told.copy()

    from dpipe.families import program

    learn, seen = program.learn, []

    def failing(state, rows, position, **how):
        seen.append(position)
        if len(seen) == 16:
            raise RuntimeError("the power is gone")
        return learn(state, rows, position, **how)

    monkeypatch.setattr("dpipe.train.stream.learn", failing)
    with pytest.raises(RuntimeError, match="power"):
        recorded_fit(tmp_path / "run", learner, features, y, epochs=epochs)
    monkeypatch.setattr("dpipe.train.stream.learn", learn)
    told.clear()
    resumed, _, found, notes = recorded_fit(tmp_path / "run", learner, features, y, epochs=epochs)
    assert told == expected
    assert found >= 6 + 2 * 6 + 2 * (2 if own else 6), notes  # the classes, and two epochs with their scores
    assert_same(resumed, whole, rtol=0)
    told.clear()
    longer = replace(epochs, n=9, patience=9)
    _, read, _, notes = recorded_fit(tmp_path / "run", learner, features, y, epochs=longer)
    assert told[: len(expected)] == expected
    assert read == (9 - len(expected)) * (6 + (2 if own else 6)), notes
    assert not any("is gone" in note or "changed" in note for note in notes)


def test_in_a_pipeline_object(tmp_path):
    frame = pd.DataFrame(X, columns=list("abc")).assign(y=(NUMBERS > 0).astype(int))
    pipe = dpipe.Pipeline("stops", workdir=tmp_path)
    rows = pipe.collect(dd.from_pandas(frame, npartitions=5))
    model = pipe.train(
        SGDClassifier(random_state=0), rows, target="y", epochs=dpipe.Epochs(5, validation=0.2)
    )
    assert "score, 5 times" in str(pipe.plan()) or "score" in str(pipe.plan())
    done = pipe.run(progress=False)
    assert_same(model.compute(), done.model, rtol=0)
    assert len(RunRecord.read(tmp_path / "run.json").curves) == 1


def test_a_lazy_fit_stops_too():
    estimator, y, metric = LEARNERS["classifier"]
    epochs = dpipe.Epochs(5, validation=0.3, scoring=metric)
    with raise_if_computes():
        lazy = dpipe.fit(estimator, blocks(X), blocks(y), epochs=epochs, compute=False)
    assert_same(lazy.compute(), dpipe.fit(estimator, blocks(X), blocks(y), epochs=epochs), rtol=0)


def test_a_model_that_trains_on_batches_needs_a_metric_by_name():
    told = []
    given = blocks(X), blocks(NUMBERS)
    with pytest.raises(InputError, match="Network is no estimator of scikit-learn, so no metric is its own"):
        dpipe.plan(Network(3), *given, epochs=dpipe.Epochs(4, validation=0.2))
    epochs = dpipe.Epochs(9, validation=0.2, scoring="r2", patience=2, on_epoch=told.append)
    result = dpipe.fit(Network(3), *given, epochs=epochs)
    assert told[-1].score > 0.7
    np.testing.assert_allclose(result.weights[:3], [1.0, -2.0, 0.5], atol=0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 1.5}, "validation must be a share between 0 and 1, .*, got 1.5"),
        ({"validation": 1}, "validation must be a share between 0 and 1, .*, got 1"),
        ({"validation": (X,)}, "validation must be a share .*, got a tuple"),
        ({"patience": 0, "validation": 0.1}, "patience must be an integer of at least 1"),
        ({"tol": -1, "validation": 0.1}, "tol must be a number of at least 0, got -1"),
        ({"scoring": "r2"}, "scoring and on_epoch go with validation"),
        ({"on_epoch": 3, "validation": 0.1}, "on_epoch must be callable, got 3"),
    ],
)
def test_settings_that_do_not_do(settings, message):
    with pytest.raises(InputError, match=message):
        dpipe.Epochs(**settings)


@pytest.mark.parametrize("estimator", [LinearRegression(), KMeans(2), MiniBatchKMeans(2)])
def test_only_a_last_step_that_learns_in_order_can_stop(estimator):
    with pytest.raises(InputError, match=f"{type(estimator).__name__} does not. Leave it out"):
        dpipe.plan(estimator, blocks(X), blocks(NUMBERS), epochs=dpipe.Epochs(3, validation=0.2))


@pytest.mark.parametrize(
    ("validation", "scoring", "message"),
    [
        (0.2, "accurate", "There is no metric 'accurate'"),
        (0.2, "r2_score", "There is no metric"),
        (0.2, "neg_log_loss", "neg_log_loss needs predict_proba, which SGDClassifier does not have"),
        (0.2, ["accuracy"], "scoring must be one name"),
        (
            (X_OWN[:, :2], X_OWN[:, 0]),
            None,
            "X of validation has the columns 'x0', 'x1', but X has 'x0', 'x1', 'x2'",
        ),
    ],
)
def test_what_metadata_can_tell_is_told_first(validation, scoring, message):
    epochs = dpipe.Epochs(3, validation=validation, scoring=scoring)
    with raise_if_computes(), pytest.raises(InputError, match=message):
        dpipe.fit(SGDClassifier(), blocks(X), blocks(LABELS), epochs=epochs)


def test_nothing_held_out_is_told():
    given = array_blocks(X[:4], (2, 2)), array_blocks(NUMBERS[:4], (2, 2))
    with pytest.raises(InputError, match="none of the rows is held out"):
        dpipe.fit(SGDRegressor(), *given, epochs=dpipe.Epochs(3, validation=0.01))


def test_a_validation_block_larger_than_the_budget():
    wide = da.ones((10_000_000, 3), chunks=(10_000_000, 3)), da.ones(10_000_000, chunks=10_000_000)
    with pytest.raises(MemoryLimitError, match="Give at least"):
        dpipe.plan(
            SGDRegressor(), blocks(X), blocks(NUMBERS), memory="700 MiB", epochs=dpipe.Epochs(validation=wide)
        )
