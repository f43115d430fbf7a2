"""Checkpoints of boosted models: training that is stopped goes on, and ends with the bits of one that was not."""

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightgbm import LGBMClassifier, LGBMRanker, LGBMRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from xgboost import XGBClassifier, XGBRanker, XGBRegressor

import dpipe
from dpipe.ledger.book import Ledger, records
from dpipe.ledger.codec import decode, encode
from dpipe.monitor.record import RunRecord
from dpipe.train.boosting.lgbm import LightGBMModel
from dpipe.train.boosting.progress import Progress, Watched, best_round
from dpipe.train.boosting.xgb import XGBoostModel
from dpipe.train.fit import run_fit
from dpipe.train.prepare import prepare
from tests.train.boosting.rows import (
    frame,
    groups,
    lazy,
    numbers,
    partitions,
    three_classes,
    trees,
    two_classes,
    values,
)

QUIET = {"verbose": -1, "n_jobs": 1}


class Stopped(Exception):
    """Stands for what ends a process."""


@pytest.fixture
def stop_before(monkeypatch):
    """Have training end before a round, once."""

    def stopping(n):
        for cls in (XGBoostModel, LightGBMModel):
            update = cls.update

            def until(self, i, update=update):
                if i == n:
                    raise Stopped
                update(self, i)

            monkeypatch.setattr(cls, "update", until)

    with monkeypatch.context():
        yield stopping
    monkeypatch.undo()


def recorded_fit(workdir, estimator, *data, **beside):
    """The fitted estimator, the rounds that were learned, and what was said."""
    notes, rounds = [], []
    prepared = prepare(estimator, *data, **beside)
    with Ledger(workdir) as ledger:
        recorded = prepared.recorded(ledger, "fit", notes.append)
        fitted, _ = run_fit(
            prepared,
            lambda event: rounds.append(event["block"]) if "rounds" in event["pass"] else None,
            recorded=recorded,
        )
    return fitted, rounds, notes


CASES = {
    "plain": (XGBClassifier(n_jobs=1, n_estimators=33), two_classes),
    "classes": (XGBClassifier(n_jobs=1, n_estimators=22), three_classes),
    "rows-drawn": (XGBClassifier(n_jobs=1, n_estimators=33, subsample=0.5, random_state=4), two_classes),
    "columns-drawn": (
        XGBRegressor(n_jobs=1, n_estimators=33, colsample_bytree=0.5, colsample_bynode=0.7),
        numbers,
    ),
    "forests": (XGBRegressor(n_jobs=1, n_estimators=22, num_parallel_tree=3, subsample=0.4), numbers),
    "absolute": (XGBRegressor(n_jobs=1, n_estimators=22, objective="reg:absoluteerror"), numbers),
    "lgbm": (LGBMClassifier(n_estimators=33, **QUIET), two_classes),
    "lgbm-classes": (LGBMClassifier(n_estimators=22, **QUIET), three_classes),
    "lgbm-rows": (LGBMClassifier(n_estimators=33, subsample=0.5, subsample_freq=3, **QUIET), two_classes),
    "lgbm-columns": (LGBMRegressor(n_estimators=33, colsample_bytree=0.5, random_state=1, **QUIET), numbers),
    "lgbm-extra": (LGBMRegressor(n_estimators=22, extra_trees=True, **QUIET), numbers),
    "lgbm-quantized": (LGBMRegressor(n_estimators=22, use_quantized_grad=True, **QUIET), numbers),
    "lgbm-absolute": (LGBMRegressor(n_estimators=22, objective="l1", **QUIET), numbers),
}


@pytest.mark.parametrize("case", CASES)
def test_goes_on_from_the_last_record_with_the_same_bits(case, tmp_path, stop_before, monkeypatch):
    # as often as can be
    monkeypatch.setattr("dpipe.train.boosting.progress._WORTH_TIMES", 0)
    estimator, target = CASES[case]
    data = lazy(values()), lazy(target())
    undisturbed, rounds, _ = recorded_fit(tmp_path / "a", estimator, *data)
    n = estimator.n_estimators
    assert rounds == list(range(1, n + 1))
    stop_before(27 if n > 30 else 18)
    with pytest.raises(Stopped):
        recorded_fit(tmp_path / "b", estimator, *data)
    monkeypatch.undo()
    resumed, rounds, _ = recorded_fit(tmp_path / "b", estimator, *data)
    # training that draws begins its draws anew every ten rounds, and goes on from there
    assert rounds[0] > (20 if n > 30 else 10)
    assert rounds[-1] == n
    assert trees(resumed) == trees(undisturbed)
    np.testing.assert_array_equal(resumed.predict(values()), undisturbed.predict(values()))
    without = dpipe.fit(estimator, *data)
    assert trees(without) == trees(undisturbed)


def test_draws_go_on_between_stretches():
    """Other rows are drawn in each stretch, and the first ten rounds are those of XGBoost itself."""
    for estimator in (
        XGBClassifier(n_jobs=1, n_estimators=20, subsample=0.5, random_state=7),
        LGBMClassifier(
            n_estimators=20, subsample=0.5, subsample_freq=1, force_col_wise=True, deterministic=True, **QUIET
        ),
    ):
        X, y = values(), two_classes()
        found = dpipe.fit(estimator, lazy(X), lazy(y))
        expected = estimator.fit(X, y)
        if isinstance(estimator, XGBClassifier):
            ours, theirs = (model.get_booster().get_dump() for model in (found, expected))
        else:
            ours, theirs = (
                [str(tree["tree_structure"]) for tree in model.booster_.dump_model()["tree_info"]]
                for model in (found, expected)
            )
        assert ours[:10] == theirs[:10]
        assert len(set(ours)) == 20
        assert ours[10:] != theirs[10:]


@pytest.mark.parametrize(
    "estimator",
    [
        XGBClassifier(n_jobs=1, n_estimators=60, early_stopping_rounds=5, eval_metric=["logloss", "auc"]),
        XGBClassifier(n_jobs=1, n_estimators=60, early_stopping_rounds=5, subsample=0.7, learning_rate=0.1),
        LGBMClassifier(n_estimators=60, early_stopping_round=5, **QUIET),
        LGBMClassifier(n_estimators=60, early_stopping_round=5, subsample=0.5, subsample_freq=1, **QUIET),
    ],
)
def test_early_stopping_remembers_what_was_before(estimator, tmp_path, stop_before, monkeypatch):
    monkeypatch.setattr("dpipe.train.boosting.progress._WORTH_TIMES", 0)
    X, y = values(), two_classes()
    data = lazy(X), lazy(y)
    rng = np.random.default_rng(9)
    validation = X[:500] + rng.normal(size=(500, 6)), y[:500]
    undisturbed, rounds, _ = recorded_fit(tmp_path / "a", estimator, *data, validation=validation)
    assert 12 < len(rounds) < 60
    stop_before(12)
    with pytest.raises(Stopped):
        recorded_fit(tmp_path / "b", estimator, *data, validation=validation)
    monkeypatch.undo()
    resumed, again, _ = recorded_fit(tmp_path / "b", estimator, *data, validation=validation)
    assert again[0] > 10
    assert trees(resumed) == trees(undisturbed)
    if isinstance(estimator, XGBClassifier):
        assert resumed.best_iteration == undisturbed.best_iteration
        assert resumed.evals_result() == undisturbed.evals_result()
    else:
        assert resumed.best_iteration_ == undisturbed.best_iteration_
        assert resumed.evals_result_ == undisturbed.evals_result_


@pytest.mark.parametrize(
    "estimator", [XGBRanker(n_jobs=1, n_estimators=22), LGBMRanker(n_estimators=22, **QUIET)]
)
def test_rankers_go_on(estimator, tmp_path, stop_before, monkeypatch):
    monkeypatch.setattr("dpipe.train.boosting.progress._WORTH_TIMES", 0)
    data = lazy(values()), lazy(three_classes())
    undisturbed, _, _ = recorded_fit(tmp_path / "a", estimator, *data, qid=lazy(groups()))
    stop_before(18)
    with pytest.raises(Stopped):
        recorded_fit(tmp_path / "b", estimator, *data, qid=lazy(groups()))
    monkeypatch.undo()
    resumed, rounds, _ = recorded_fit(tmp_path / "b", estimator, *data, qid=lazy(groups()))
    assert rounds[0] > 10
    assert trees(resumed) == trees(undisturbed)


def test_categories_go_on(tmp_path, stop_before, monkeypatch):
    monkeypatch.setattr("dpipe.train.boosting.progress._WORTH_TIMES", 0)
    made = frame()
    X = made.drop(columns="y")
    for name, estimator in (
        ("x", XGBClassifier(n_jobs=1, n_estimators=22, enable_categorical=True)),
        ("l", LGBMClassifier(n_estimators=22, colsample_bytree=0.6, **QUIET)),
    ):
        undisturbed = dpipe.fit(estimator, partitions(made), "y")
        stop_before(18)
        with pytest.raises(Stopped):
            recorded_fit(tmp_path / name, estimator, partitions(made), "y")
        monkeypatch.undo()
        resumed, rounds, _ = recorded_fit(tmp_path / name, estimator, partitions(made), "y")
        assert rounds[0] > 1
        np.testing.assert_array_equal(resumed.predict_proba(X), undisturbed.predict_proba(X))


def test_sampling_by_gradients_begins_anew(tmp_path, stop_before, monkeypatch):
    monkeypatch.setattr("dpipe.train.boosting.progress._WORTH_TIMES", 0)
    estimator = LGBMRegressor(n_estimators=22, data_sample_strategy="goss", **QUIET)
    data = lazy(values()), lazy(numbers())
    undisturbed = dpipe.fit(estimator, *data)
    stop_before(18)
    with pytest.raises(Stopped):
        recorded_fit(tmp_path, estimator, *data)
    monkeypatch.undo()
    again, rounds, _ = recorded_fit(tmp_path, estimator, *data)
    assert rounds[0] == 1
    assert trees(again) == trees(undisturbed)


def test_a_finished_model_is_not_trained_again(tmp_path):
    made = frame().drop(columns="kind")
    made.to_parquet(tmp_path / "rows.parquet", index=False, row_group_size=1000)
    model = make_pipeline(StandardScaler(), XGBClassifier(n_jobs=1, n_estimators=5))
    rows = dpipe.read_parquet(tmp_path / "rows.parquet")
    first, rounds, _ = recorded_fit(tmp_path / "run", model, rows, "y")
    assert len(rounds) == 5
    again, rounds, notes = recorded_fit(tmp_path / "run", model, rows, "y")
    assert rounds == []
    assert any("pass 2 on record" in note for note in notes)
    assert trees(first[-1]) == trees(again[-1])
    model.set_params(xgbclassifier__max_depth=3)
    _, rounds, notes = recorded_fit(tmp_path / "run", model, rows, "y")
    assert len(rounds) == 5
    assert any("the parameters of Pipeline / xgbclassifier changed" in note for note in notes)
    # other rows to watch it on are another model
    model.set_params(xgbclassifier__early_stopping_rounds=5)
    for share in (0.2, 0.3):
        _, rounds, _ = recorded_fit(tmp_path / "run", model, rows, "y", validation=share)
        assert len(rounds) == 5


def test_fit_leaves_a_record_and_a_report(tmp_path):
    X, y = lazy(values()), lazy(two_classes())
    dpipe.fit(XGBClassifier(n_jobs=1, n_estimators=3), X, y, workdir=tmp_path)
    record = RunRecord.read(tmp_path / "run.json")
    assert [one.way for one in record.passes] == ["merge", "boost"]
    assert [one.rows for one in record.passes] == [4000, 4000]
    assert "3 boosting rounds over a binned copy" in (tmp_path / "report.html").read_text()


def test_a_damaged_record_is_passed_over(tmp_path, stop_before, monkeypatch):
    monkeypatch.setattr("dpipe.train.boosting.progress._WORTH_TIMES", 0)
    estimator = XGBClassifier(n_jobs=1, n_estimators=12)
    data = lazy(values()), lazy(two_classes())
    stop_before(9)
    with pytest.raises(Stopped):
        recorded_fit(tmp_path, estimator, *data)
    monkeypatch.undo()
    places = sorted(records(tmp_path / "ledger").values(), key=lambda place: (place.path, place.start))
    with open(places[-1].path, "r+b") as file:
        file.seek(places[-1].start + places[-1].length // 2)
        file.write(b"\x00\xff\x00\xff")
    resumed, rounds, _ = recorded_fit(tmp_path, estimator, *data)
    assert rounds[0] == 9
    assert trees(resumed) == trees(dpipe.fit(estimator, *data))


def test_progress_is_kept_without_pickle():
    progress = Progress(
        b"\x00\x01{", 3, ((Watched("auc", 0.5, True),), (Watched("auc", float("nan"), True),))
    )
    again = Progress.of(decode(encode(progress.tree)))
    assert (again.model, again.n_rounds, repr(again.history)) == (progress.model, 3, repr(progress.history))


@given(st.lists(st.integers(-5, 5), min_size=1), st.booleans())
def test_the_best_round_is_the_first_of_the_best(found, maximize):
    best = best_round(found, maximize=maximize)
    assert found[best] == (max(found) if maximize else min(found))
    assert found[best] not in found[:best]


def test_in_a_pipeline_object(tmp_path):
    made = frame().drop(columns="kind")
    pipe = dpipe.Pipeline("boosted", workdir=tmp_path / "run")
    rows = pipe.collect(partitions(made))
    train, test = pipe.split(rows, test_size=0.3)
    learn, watch = pipe.split(train, test_size=0.2, random_state=1)
    estimator = make_pipeline(
        StandardScaler(), XGBClassifier(n_jobs=1, n_estimators=30, early_stopping_rounds=3)
    )
    model = pipe.train(estimator, learn, target="y", validation=watch)
    report = pipe.validate(model, test, scoring=["roc_auc"], require={"roc_auc": 0.6})
    pipe.deploy(model, report)
    assert "30 boosting rounds" in str(pipe.plan())
    run = pipe.run(progress=False)
    opened = dpipe.load(run.bundle)
    X = made.drop(columns="y")
    np.testing.assert_array_equal(opened.predict(X), run.model.predict(X))
    assert opened.model[-1].best_iteration == run.model[-1].best_iteration
    assert "pass 2 on record" in str(pipe.plan())
    again = pipe.run(progress=False)
    assert again.metrics == run.metrics


def test_a_ranker_in_a_pipeline_object(tmp_path):
    made = pd.DataFrame(values(), columns=list("abcdef")).assign(y=three_classes(), query=groups())
    pipe = dpipe.Pipeline("ranked", workdir=tmp_path)
    rows = pipe.collect(partitions(made))
    model = pipe.train(LGBMRanker(n_estimators=3, **QUIET), rows, target="y", qid="query")
    pipe.deploy(model)
    run = pipe.run(progress=False)
    found = dpipe.predict(dpipe.load(run.bundle).model, dd.from_pandas(made[list("abcdef")], npartitions=3))
    np.testing.assert_array_equal(np.asarray(found.compute()), run.model.predict(made[list("abcdef")]))
