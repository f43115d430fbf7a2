"""Passes as graphs: the same bits whatever ran them, one read a block, bounded windows, laziness."""

import time

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask.delayed import Delayed
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import dpipe
from dpipe.blocks.rows import Rows
from dpipe.blocks.statistics import Moments
from dpipe.collect.source import open_source
from dpipe.errors import InputError
from dpipe.families.epochs import Epochs
from dpipe.run.average import add_average
from dpipe.run.graph import GraphBuilder, add_inputs
from dpipe.run.scan import add_scan
from dpipe.run.stream import Feed, add_stream
from tests.helpers import raise_if_computes

NUMBERS = ["a", "b"]


def table(n=1000):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(n, 2)), columns=NUMBERS)
    frame.loc[rng.random(n) < 0.1, "a"] = np.nan
    frame["s"] = rng.choice(["u", "v", "w"], size=n)
    frame["y"] = (frame["b"] + rng.normal(size=n) > 0).astype(int)
    return frame


def model():
    numeric = make_pipeline(SimpleImputer(), StandardScaler())
    columns = make_column_transformer((numeric, NUMBERS), (OneHotEncoder(handle_unknown="ignore"), ["s"]))
    return make_pipeline(columns, SGDClassifier(loss="log_loss", random_state=0))


def bits(fitted):
    columns, learner = fitted
    scaler = columns.named_transformers_["pipeline"][-1]
    return b"".join(
        values.tobytes() for values in (scaler.mean_, scaler.var_, learner.coef_, learner.intercept_)
    )


class CountingReader:
    """Reads made blocks, and counts how often."""

    def __init__(self, blocks, pause=0.0):
        self.blocks, self.pause, self.reads = blocks, pause, []

    def __call__(self, i, columns=None):
        self.reads.append(i)
        # an order of completion that differs from the order of the blocks
        time.sleep(self.pause * ((7 * i) % 5))
        return self.blocks[i] if columns is None else self.blocks[i][columns]

    def __dask_tokenize__(self):
        return "counting", id(self)


def counted(frame, n_blocks, pause=0.0):
    parts = np.array_split(np.arange(len(frame)), n_blocks)
    reader = CountingReader([frame.iloc[rows] for rows in parts], pause)
    return reader, dd.from_map(reader, range(n_blocks), meta=frame.iloc[:0])


@pytest.fixture(scope="module")
def expected():
    with dask.config.set(scheduler="synchronous"):
        _, frame = counted(table(), 12)
        return bits(dpipe.fit(model(), frame.drop(columns="y"), frame["y"]))


@pytest.mark.cluster
@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (1, 2), (1, 4), (2, 1)])
def test_threads_give_the_same_bits_in_any_order_of_completion(expected, workers, threads):
    _, frame = counted(table(), 12, pause=0.002)
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=threads, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        fitted = dpipe.fit(model(), frame.drop(columns="y"), frame["y"], client=client)
    assert bits(fitted) == expected


@pytest.mark.cluster
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_processes_give_the_same_bits(expected, workers):
    frame = dd.concat([dd.from_pandas(part, npartitions=1) for part in counted(table(), 12)[0].blocks])
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        fitted = dpipe.fit(model(), frame.drop(columns="y"), frame["y"], client=client)
    assert bits(fitted) == expected


@pytest.mark.cluster
def test_the_embedded_cluster_gives_the_same_bits(expected):
    _, frame = counted(table(), 12)
    assert bits(dpipe.fit(model(), frame.drop(columns="y"), frame["y"])) == expected


def test_each_pass_reads_each_block_once_for_x_and_y_together():
    reader, frame = counted(table(), 10)
    dpipe.fit(make_pipeline(SimpleImputer(), LinearRegression()), frame[NUMBERS], frame["y"])
    assert sorted(reader.reads) == sorted(list(range(10)) * 2)


def test_a_stream_keeps_its_window():
    ready, learned, ahead = [], [], []

    def prepare(rows, known, position, given):
        ready.append(position)
        ahead.append(len(ready) - len(learned))
        return rows

    def learn(learner, rows, position):
        learned.append(position)
        time.sleep(0.005)
        return learner

    source = open_source(da.ones((240, 2), chunks=(10, 2)))
    graph = GraphBuilder("window")
    known = graph.add("known", int)
    feed = Feed(graph, add_inputs(graph, source), known, "pass", Epochs(2).visits(24), 3, prepare)
    key = add_stream(feed, lambda known: 0, learn)
    Delayed(key, graph.tasks).compute(scheduler="threads", num_workers=8)
    assert learned == [(epoch, i) for epoch in range(2) for i in range(24)]
    # three in flight, and one more between the end of a step and the note that it has ended
    assert max(ahead) <= 4


@pytest.mark.parametrize(
    "epochs",
    [Epochs(2, shuffle="rows", mix=4), Epochs(2, average=3), Epochs(1, shuffle="rows", mix=5, average=2)],
)
def test_mixed_and_averaged_streams_hold_as_many_blocks_as_the_plan_says(epochs):
    window = epochs.ahead(3)
    ready, learned, ahead = [], [], []

    def prepare(rows, known, position, given):
        ready.append(position)
        ahead.append(len(ready) - len(learned))
        return rows

    def mix(parts, chosen, known, position, given):
        return Rows(parts[0].X[: len(chosen)], None, None)

    def learn(learner, rows, position):
        learned.append(position)
        time.sleep(0.005)
        return learner

    graph = GraphBuilder("mixed")
    inputs = add_inputs(graph, open_source(da.ones((240, 2), chunks=(10, 2))))
    visits = epochs.visits(24)
    feed = Feed(graph, inputs, graph.add("known", int), "pass", visits, window, prepare, mix)
    if epochs.average is None:
        key = add_stream(feed, lambda known: 0, learn)
    else:
        key = add_average(
            feed, epochs.rounds(visits), lambda known: 0, learn, lambda before, each, weights: 0
        )
    Delayed(key, graph.tasks).compute(scheduler="threads", num_workers=8)
    assert len(learned) == len(ready) == 24 * epochs.n
    # one more as above
    assert max(ahead) <= epochs.n_held(24, 3) + 1
    assert max(ahead) < 24


def test_building_a_fit_computes_nothing_and_its_delayed_can_be_used():
    _, frame = counted(table(), 4)
    with raise_if_computes():
        delayed = dpipe.fit(model(), frame.drop(columns="y"), frame["y"], compute=False)
        plan = dpipe.plan(model(), frame.drop(columns="y"), frame["y"])
    assert isinstance(delayed, Delayed)
    assert plan.n_passes == 2
    n_features = dask.delayed(lambda fitted: fitted[-1].n_features_in_)(delayed)
    assert n_features.compute() == 5


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12), known=st.booleans())
def test_blocks_of_any_lengths_give_the_same_answer(lengths, known):
    values = np.random.default_rng(sum(lengths)).normal(size=(sum(lengths), 3))
    X = da.from_array(values, chunks=(tuple(lengths), 3)) if sum(lengths) else da.zeros((0, 3), chunks=(1, 3))
    with dask.config.set(scheduler="synchronous"):
        if not known:
            X = dd.from_dask_array(X, columns=["a", "b", "c"]).to_dask_array()
        if not sum(lengths):
            with pytest.raises(InputError, match="the data has no rows"):
                dpipe.fit(StandardScaler(), X)
            return
        fitted = dpipe.fit(StandardScaler(), X)
    wanted = StandardScaler().fit(values)
    np.testing.assert_allclose(fitted.mean_, wanted.mean_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fitted.var_, wanted.var_, rtol=1e-9, atol=1e-12)
    assert fitted.n_samples_seen_ == wanted.n_samples_seen_


def test_the_estimator_that_is_passed_is_not_changed():
    _, frame = counted(table(), 3)
    unfitted = model()
    dpipe.fit(unfitted, frame.drop(columns="y"), frame["y"])
    assert not hasattr(unfitted[-1], "coef_")
    assert not hasattr(unfitted[0], "transformers_")


def test_many_blocks_for_each_slot_share_tasks_and_give_the_same_bits():
    values = np.random.default_rng(0).normal(1e3, 1.0, size=(1000, 2))
    source = open_source(da.from_array(values, chunks=(2, 2)))

    def moments(rows, known):
        return (Moments.of(rows.X),)

    found, n_tasks = [], []
    for slots in (None, 1, 2, 100):
        graph = GraphBuilder(f"slots{slots}")
        key = add_scan(
            graph, add_inputs(graph, source), moments, graph.add("known", int), name="pass", slots=slots
        )
        n_tasks.append(len(graph.tasks))
        found.append(Delayed(key, graph.tasks).compute(scheduler="threads").states[0])
    assert n_tasks[0] == n_tasks[3] > 500
    assert n_tasks[1] == n_tasks[2] < 100
    for other in found[1:]:
        np.testing.assert_array_equal(other.m2, found[0].m2)
        np.testing.assert_array_equal(other.mean, found[0].mean)
