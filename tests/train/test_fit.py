"""`fit` reads each block once a pass, gives the same answer whatever the blocks, and stays lazy until told."""

import time
from dataclasses import dataclass

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask.delayed import Delayed
from distributed import Client, LocalCluster, wait
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

from dpipe.collect.parquet import ParquetReader, read_parquet
from dpipe.train.fit import fit, plan, prepare, run_fit
from tests.helpers import raise_if_computes
from tests.kernel_cases import array_blocks, assert_same, in_blocks

N_BLOCKS = 12
FRAME = pd.DataFrame(
    {
        "a": np.random.default_rng(0).normal(1e3, 1.0, 600),
        "b": np.where(np.arange(600) % 7, np.random.default_rng(1).lognormal(size=600), np.nan),
        "t": pd.Series(np.random.default_rng(2).choice(["u", "v", "w"], 600), dtype="str"),
        "y": np.random.default_rng(3).integers(0, 2, 600),
    }
)


def model():
    """Two passes: one of merges, one in order."""
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), ["a", "b"]), (OneHotEncoder(), ["t"])
    )
    return make_pipeline(columns, SGDClassifier(random_state=0))


@dataclass
class CountingReader:
    """Reads blocks of `FRAME`, and remembers which."""

    reads: list

    def __call__(self, i):
        self.reads.append(i)
        return FRAME.iloc[i * 50 : (i + 1) * 50]

    def __dask_tokenize__(self):
        return id(self.reads)


def counted():
    reader = CountingReader([])
    return reader, dd.from_map(reader, range(N_BLOCKS), meta=FRAME.iloc[:0])


def test_same_bits_whatever_block_is_ready_first():
    def slowly(block, seed):
        time.sleep(np.random.default_rng([seed, int(block.index[0])]).random() / 100)
        return block

    X = dd.from_pandas(FRAME, npartitions=N_BLOCKS)
    expected = fit(model(), X, "y")
    for seed, threads in enumerate((1, 2, 4)):
        slow = X.map_partitions(slowly, seed, meta=FRAME.iloc[:0])
        with dask.config.set(scheduler="threads", num_workers=threads):
            assert_same(fit(model(), slow, "y"), expected, rtol=0)


@pytest.mark.parametrize(
    ("estimator", "passes"),
    [
        (
            make_column_transformer(
                (StandardScaler(), ["a"]), (MinMaxScaler(), ["a", "b"]), (OneHotEncoder(), ["t"])
            ),
            1,
        ),
        (make_pipeline(make_column_transformer((SimpleImputer(), ["b"])), StandardScaler()), 2),
        (model(), 2),
        (make_column_transformer(("passthrough", ["a"])), 0),
    ],
    ids=["three at once", "dependent", "learner", "nothing to learn"],
)
def test_each_pass_reads_each_block_once(estimator, passes):
    reader, X = counted()
    assert plan(estimator, X, "y").n_passes == passes
    fit(estimator, X, "y")
    assert sorted(reader.reads) == sorted(list(range(N_BLOCKS)) * passes)


def test_x_y_and_weights_of_one_frame_are_read_once():
    reader, X = counted()
    fit(LinearRegression(), X[["a"]], X["y"], sample_weight=X["a"].abs())
    assert sorted(reader.reads) == list(range(N_BLOCKS))


def test_arrays_of_one_frame_are_read_once():
    reader, X = counted()
    values = X[["a", "y"]].to_dask_array()
    fit(LinearRegression(), values[:, :1], values[:, 1])
    assert sorted(reader.reads) == list(range(N_BLOCKS))


@pytest.mark.parametrize(("epochs", "readings"), [(1, 2), (2, 3), (3, 2), (7, 2)])
def test_a_few_epochs_read_the_blocks_again_and_many_keep_them_in_scratch(epochs, readings):
    reader, X = counted()
    fit(SGDClassifier(random_state=0), X[["a"]], X["y"], epochs=epochs)
    assert sorted(reader.reads) == sorted(list(range(N_BLOCKS)) * readings)


def test_an_intermediate_that_blocks_share_is_computed_once():
    calls = []
    shift = dask.delayed(lambda: calls.append(1) or 5.0)()
    X = dd.from_pandas(FRAME[["a"]], npartitions=4).map_partitions(np.add, shift, meta=FRAME[["a"]].iloc[:0])
    result = fit(StandardScaler(), X)
    assert len(calls) == 1
    np.testing.assert_allclose(result.mean_, FRAME["a"].mean() + 5.0)


def test_parquet_is_read_once_for_x_and_y(tmp_path, monkeypatch):
    for i in range(3):
        FRAME.iloc[i * 200 : (i + 1) * 200].to_parquet(tmp_path / f"{i}.parquet")
    reads, read = [], ParquetReader.read

    def counting(self, block, columns=None):
        reads.append(columns)
        return read(self, block, columns)

    monkeypatch.setattr(ParquetReader, "read", counting)
    X = read_parquet(tmp_path)
    fit(LinearRegression(), X[["a"]], X["y"])
    assert reads == [["a", "y"]] * 3


def test_the_tally_counts_rows_once_a_pass():
    prepared = prepare(model(), in_blocks(FRAME, (0, 100, 1, 499)), "y", epochs=2)
    _, tallies = run_fit(prepared, lambda event: None, lambda client: None)
    assert [tally.rows for tally in tallies] == [600, 1200]
    assert [tally.n_blocks for tally in tallies] == [4, 8]


@st.composite
def sizes(draw):
    """Lengths of blocks: uneven, one row, none; three rows at least."""
    lengths = st.lists(st.sampled_from([0, 0, 1, 2, 3, 17]), min_size=1, max_size=20)
    return tuple(draw(lengths.filter(lambda found: sum(found) > 2)))


@pytest.mark.parametrize("known", [True, False])
@settings(max_examples=15, deadline=None)
@given(sizes=sizes())
def test_any_blocks_give_the_answer_of_one(known, sizes):
    values = np.random.default_rng(sum(sizes)).normal(size=(sum(sizes), 2))
    y = values @ [1.0, -2.0] + 3
    X, target = array_blocks(values, sizes), array_blocks(y, sizes)
    if not known:
        kept = da.ones_like(target, dtype=bool)
        X, target = X[kept], target[kept]
        assert np.isnan(X.shape[0])
    estimator = make_pipeline(StandardScaler(), LinearRegression())
    result, expected = fit(estimator, X, target), clone(estimator).fit(values, y)
    assert_same(result[0], expected[0])
    np.testing.assert_allclose(result.predict(values), expected.predict(values), rtol=1e-6, atol=1e-6)


@settings(max_examples=5, deadline=None)
@given(sizes=sizes())
def test_any_blocks_of_a_frame(sizes):
    frame = FRAME.iloc[: sum(sizes)].drop(columns="y")
    columns = model()[0]
    assert_same(fit(columns, in_blocks(frame, sizes)), clone(columns).fit(frame))


def test_planning_and_building_compute_nothing():
    X = in_blocks(FRAME, (100, 500))
    values = X[["a", "y"]].to_dask_array()
    with raise_if_computes():
        assert plan(model(), X, "y").n_passes == 2
        for lazy in (
            fit(model(), X, "y", compute=False),
            fit(StandardScaler(), values, compute=False),
            fit(LinearRegression(), values[:, :1], values[:, 1], compute=False),
        ):
            assert isinstance(lazy, Delayed)


def test_the_delayed_result_goes_into_the_user_s_own_graph():
    X = da.from_array(FRAME[["a"]].to_numpy(), chunks=(100, 1))
    lazy = fit(StandardScaler(), X, compute=False)
    fitted, total = dask.compute(lazy, X.sum())
    np.testing.assert_allclose(total / 600, fitted.mean_[0])
    assert lazy.mean_.compute() == fitted.mean_
    scaled = da.from_delayed(dask.delayed(lambda f, x: f.transform(x))(lazy, X), (600, 1), float)
    np.testing.assert_allclose(scaled.std().compute(), 1.0)


def test_fits_that_differ_do_not_share_results():
    """Keys are named after the estimator with all of its parameters, the data, and the weights."""
    X = dd.from_pandas(FRAME, npartitions=3)
    fits = [
        fit(LinearRegression(), X[["a"]], X["y"], weights, compute=False)
        for weights in (None, X["a"] - 990, X["b"].fillna(1.0))
    ]
    for high in (1, 2):
        parts = [StandardScaler()] * 40 + [MinMaxScaler(feature_range=(0, high))]
        columns = make_column_transformer(*[(clone(part), ["a"]) for part in parts])
        fits.append(fit(columns, X, compute=False))
    *weighted, one, two = dask.compute(*fits)
    assert len({float(fitted.coef_[0]) for fitted in weighted}) == 3
    assert one.transformers_[-2][1].scale_ * 2 == two.transformers_[-2][1].scale_


def test_a_fit_does_not_change_the_data():
    values = np.arange(20.0).reshape(10, 2)
    for X in (values.copy(), pd.DataFrame(values, columns=list("ab"))):
        fit(
            make_pipeline(StandardScaler(), MinMaxScaler(), SGDClassifier(random_state=0)),
            X,
            np.arange(10) % 2,
        )
        np.testing.assert_array_equal(np.asarray(X), np.arange(20.0).reshape(10, 2))


def test_the_graph_has_one_task_a_block_and_pass():
    X = dd.from_pandas(FRAME, npartitions=N_BLOCKS)
    graph = dict(fit(StandardScaler(), X[["a"]], compute=False).__dask_graph__())
    assert sum(isinstance(key, tuple) for key in graph) == N_BLOCKS
    assert len(graph) < 2 * N_BLOCKS


@pytest.mark.cluster
def test_what_a_cluster_holds_is_not_read_again():
    reader, X = counted()
    with (
        LocalCluster(processes=False, threads_per_worker=2, n_workers=1, dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        held = X.persist()
        array = da.from_array(FRAME[["a"]].to_numpy(), chunks=(100, 1)).persist()
        wait([held, array])
        reader.reads.clear()
        results = [
            fit(StandardScaler(), held[["a"]]),
            fit(StandardScaler(), held[["a"]].to_dask_array()),
            fit(StandardScaler(), array),
            fit(StandardScaler(), held[["a"]], compute=False).compute(),
        ]
        fit(LinearRegression(), held[["a"]], held["y"])
    assert reader.reads == []
    for result in results:
        np.testing.assert_allclose(result.mean_, FRAME["a"].mean())
