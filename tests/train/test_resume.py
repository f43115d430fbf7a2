"""What is on record is not done again, and gives the same bits; what has changed is, and is named."""

from dataclasses import replace

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.cluster import MiniBatchKMeans
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

import dpipe
from dpipe.collect.parquet import read_parquet
from dpipe.families import registry
from dpipe.ledger.book import Ledger
from dpipe.train.fit import run_fit
from dpipe.train.prepare import prepare
from tests.families.conformance import open_input, targets
from tests.families.test_conformance import one_case_each
from tests.kernel_cases import assert_same, awkward_frame, columns_of_one_dimension


def recorded_fit(workdir, estimator, X, y=None, w=None, epochs=1):
    """The fitted estimator, the blocks that were read and those that were on record, and what was said."""
    notes = []
    prepared = prepare(estimator, X, y, w, epochs=epochs)
    with Ledger(workdir) as ledger:
        fitted, tallies = run_fit(prepared, recorded=prepared.recorded(ledger, "fit", notes.append))
    read = sum(tally.n_blocks - tally.n_recalled for tally in tallies)
    return fitted, read, sum(tally.n_recalled for tally in tallies), notes


def rows_of(n, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {"a": rng.normal(size=n), "b": rng.normal(size=n), "kind": rng.choice(list("xyz"), n)}
    )
    return frame.assign(label=(frame["a"] + rng.normal(size=n) > 0).astype(int))


def write_files(folder, numbers, n=100):
    for i in numbers:
        rows_of(n, seed=i).to_parquet(folder / f"{i:03d}.parquet", index=False)


def model():
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    return make_column_transformer((numbers, ["a", "b"]), (OneHotEncoder(), ["kind"]))


@pytest.mark.parametrize("case", one_case_each())
def test_every_estimator_comes_back_from_its_record(case, tmp_path):
    kind = "parquet" if "parquet" in case.inputs else "frame" if "frame" in case.inputs else "array"
    frame = awkward_frame() if case.columns[0] in awkward_frame() else columns_of_one_dimension()
    (tmp_path / "data").mkdir()
    X, _ = open_input(kind, frame[list(case.columns)], tmp_path / "data")
    y = None if case.y is None else targets(case.y, kind)[0]
    w = None if not case.weighted else targets("weight", kind)[0]
    first, read, recalled, notes = recorded_fit(tmp_path, case.estimator, X, y, w)
    assert recalled == 0 or read == 0, notes
    second, again, found, notes = recorded_fit(tmp_path, case.estimator, X, y, w)
    assert (again, found) == (0, read), notes
    assert_same(second, first, rtol=0)


LEARNERS = (
    SGDClassifier(random_state=0),
    SGDClassifier(average=True),
    MLPClassifier((5,), random_state=0),
    MiniBatchKMeans(3, random_state=0, n_init=1),
)


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda est: type(est).__name__)
def test_a_stream_goes_on_from_its_last_record(learner, tmp_path, monkeypatch):
    write_files(tmp_path, range(6))
    frame = read_parquet(tmp_path)
    X, y = frame[["a", "b"]], frame["label"]
    whole = dpipe.fit(learner, X, y, epochs=2)
    workdir = tmp_path / "run"

    from dpipe.families import program

    learn, seen = program.learn, []

    def failing(held, rows, position, **how):
        seen.append(position)
        if position == (1, 1):
            raise RuntimeError("the power is gone")
        return learn(held, rows, position, **how)

    monkeypatch.setattr("dpipe.train.stream.learn", failing)
    with pytest.raises(RuntimeError, match="power"):
        recorded_fit(workdir, learner, X, y, epochs=2)
    monkeypatch.setattr("dpipe.train.stream.learn", learn)
    resumed, _, found, notes = recorded_fit(workdir, learner, X, y, epochs=2)
    assert found >= 1, notes
    if hasattr(whole, "_random_state"):
        # the same numbers come from it, though skops does not keep what it was first seeded with
        assert_same(resumed._random_state.get_state(), whole._random_state.get_state(), rtol=0)
        resumed._random_state = whole._random_state
    assert_same(resumed, whole, rtol=0)


def test_new_files_cost_only_themselves(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_files(data, range(9))
    merged = make_pipeline(
        make_column_transformer((StandardScaler(), ["a", "b"]), (OneHotEncoder(), ["kind"]))
    )
    _, read, _, _ = recorded_fit(tmp_path, merged, read_parquet(data, columns=["a", "b", "kind"]))
    assert read == 9
    write_files(data, [9, 10])
    X = read_parquet(data, columns=["a", "b", "kind"])
    fitted, read, found, notes = recorded_fit(tmp_path, merged, X)
    assert (read, found) == (2, 9), notes
    assert_same(fitted, dpipe.fit(merged, X), rtol=0)


def through_pandas(frame):
    return frame.map_partitions(add_speed, meta=frame._meta)


@pytest.mark.parametrize("read_as", [lambda frame: frame, through_pandas], ids=["direct", "through pandas"])
def test_a_file_that_changed_or_vanished_is_named_and_read_again(read_as, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_files(data, range(4))
    recorded_fit(tmp_path, StandardScaler(), read_as(read_parquet(data)[["a"]]))
    rows_of(100, seed=77).to_parquet(data / "002.parquet", index=False)
    X = read_as(read_parquet(data)[["a"]])
    fitted, read, found, notes = recorded_fit(tmp_path, StandardScaler(), X)
    assert (read, found) == (1, 3)
    assert any("002.parquet changed" in note for note in notes)
    assert_same(fitted, dpipe.fit(StandardScaler(), X), rtol=0)
    (data / "001.parquet").unlink()
    X = read_as(read_parquet(data)[["a"]])
    fitted, read, found, notes = recorded_fit(tmp_path, StandardScaler(), X)
    assert (read, found) == (0, 3)
    assert any("001.parquet is gone" in note for note in notes)
    assert_same(fitted, dpipe.fit(StandardScaler(), X), rtol=0)


def test_another_parameter_is_named(tmp_path):
    X = da.from_array(np.random.default_rng(0).normal(size=(100, 3)), chunks=(20, 3))
    y = X[:, 0] * 2
    recorded_fit(tmp_path, Ridge(1.0), X, y)
    fitted, read, found, notes = recorded_fit(tmp_path, Ridge(2.0), X, y)
    assert (read, found) == (5, 0)
    assert any("the parameters of Ridge changed" in note for note in notes)
    assert_same(fitted, dpipe.fit(Ridge(2.0), X, y), rtol=0)


SPEED = 1.0


def add_speed(block):
    return block.assign(a=block["a"] + SPEED)


def test_a_function_that_changed_is_named(tmp_path, monkeypatch):
    frame = dd.from_pandas(rows_of(200)[["a", "b"]], npartitions=4)

    def fitted():
        X = frame.map_partitions(add_speed, meta=frame._meta)
        return X, recorded_fit(tmp_path, StandardScaler(), X)

    fitted()
    _, (_, read, found, _) = fitted()
    assert (read, found) == (0, 4)
    monkeypatch.setattr(f"{__name__}.SPEED", 2.0)
    X, (scaler, read, found, notes) = fitted()
    assert (read, found) == (4, 0)
    assert any("the function tests.train.test_resume.add_speed changed" in note for note in notes)
    assert_same(scaler, dpipe.fit(StandardScaler(), X), rtol=0)


def test_a_function_inside_of_the_model_counts(tmp_path):
    X = da.from_array(np.random.default_rng(0).normal(size=(60, 2)), chunks=(20, 2))
    for function, wanted in ((np.abs, 3), (np.abs, 0), (np.square, 3)):
        estimator = make_pipeline(FunctionTransformer(function), StandardScaler())
        fitted, read, _, notes = recorded_fit(tmp_path, estimator, X)
        assert read == wanted, notes
        assert_same(fitted, dpipe.fit(estimator, X), rtol=0)


def test_what_a_cluster_holds_has_no_known_source(tmp_path):
    prepared = prepare(StandardScaler(), dd.from_pandas(rows_of(100)[["a"]], npartitions=2))
    notes = []
    with Ledger(tmp_path) as ledger:
        recorded = prepared.recorded(ledger, "fit", notes.append)
        recorded.keyed([], {"held": 7})
    assert not recorded.works
    assert "nothing is recorded" in notes[0]


class Widest(TransformerMixin, BaseEstimator):
    """A third party's: keeps a set and an array."""

    def fit(self, X, y=None):
        self.widest_ = float(np.max(X))
        return self

    def transform(self, X):
        return X / self.widest_


def test_a_registered_estimator_is_recorded(tmp_path):
    def finish(estimator, state):
        estimator.widest_ = max(state["seen"])
        return estimator

    before = registry.registered()
    try:
        dpipe.register(
            Widest,
            update=lambda est, X, y, w: {"seen": {float(np.max(X))}, "sum": np.sum(X, axis=0)},
            merge=lambda a, b: {"seen": a["seen"] | b["seen"], "sum": a["sum"] + b["sum"]},
            finish=finish,
        )
        X = da.from_array(np.arange(24.0).reshape(12, 2), chunks=(4, 2))
        first, read, _, _ = recorded_fit(tmp_path, Widest(), X)
        Y = da.concatenate([X, X[:4] * 10])
        second, again, found, notes = recorded_fit(tmp_path, Widest(), Y)
    finally:
        registry._ways.clear()
        registry._ways.update(before)
    assert (read, again, found) == (3, 1, 3), notes
    assert (first.widest_, second.widest_) == (23.0, 70.0)


def test_refining_fits_replay_their_readings(tmp_path, monkeypatch):
    write_files(tmp_path, range(5))
    frame = read_parquet(tmp_path)
    X, y = frame[["a", "b", "kind"]], frame["label"]
    estimator = make_pipeline(model(), LogisticRegression())
    whole = dpipe.fit(estimator, X, y)

    from dpipe.families.refinement import Refinements

    answer = Refinements.answer

    def failing(self, states, tally):
        if self.n_rounds == 3:
            raise RuntimeError("the power is gone")
        answer(self, states, tally)

    monkeypatch.setattr(Refinements, "answer", failing)
    workdir = tmp_path / "run"
    with pytest.raises(RuntimeError, match="power"):
        recorded_fit(workdir, estimator, X, y)
    monkeypatch.setattr(Refinements, "answer", answer)
    resumed, _, found, notes = recorded_fit(workdir, estimator, X, y)
    assert found >= 3 * 5, notes
    assert_same(resumed, whole, rtol=0)


def test_a_damaged_record_is_done_again(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_files(data, range(4))
    X = read_parquet(data)[["a", "b"]]
    whole, _, _, _ = recorded_fit(tmp_path, StandardScaler(), X)
    (log,) = (tmp_path / "ledger").glob("*.log")
    content = bytearray(log.read_bytes())
    for at in range(len(content) // 8, len(content), 97):
        content[at] ^= 0xFF
    log.write_bytes(content)
    again, read, _, _ = recorded_fit(tmp_path, StandardScaler(), X)
    assert read == 4
    assert_same(again, whole, rtol=0)


def test_large_states_are_recorded_where_they_are_merged(tmp_path):
    X = da.random.default_rng(0).normal(size=(20 * 40, 120), chunks=(40, 120))
    y = X[:, 0]
    whole, read, _, _ = recorded_fit(tmp_path, Ridge(), X, y)
    assert read == 20
    # a matrix of products is larger than the share of a block that is worth it, and than that of eight blocks
    size = sum(path.stat().st_size for path in (tmp_path / "ledger").glob("*.log"))
    assert size < 2 * 120 * 120 * 8
    again, read, found, _ = recorded_fit(tmp_path, Ridge(), X, y)
    assert (read, found) == (0, 20)
    assert_same(again, whole, rtol=0)


def test_the_tally_of_a_recalled_pass_takes_no_time(tmp_path):
    X = da.from_array(np.arange(20.0).reshape(10, 2), chunks=(5, 2))
    prepared = prepare(StandardScaler(), X)
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            _, tallies = run_fit(prepared, recorded=prepared.recorded(ledger, "fit", print))
    assert replace(tallies[0], peak_nbytes=0) == replace(tallies[0].recalled(), peak_nbytes=0)
    assert tallies[0].rows == 10
