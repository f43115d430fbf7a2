"""Batches of a loader against the rows that its order names, from every kind of source."""

import shutil
import threading

import cloudpickle
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import dpipe
from dpipe.errors import InputError, MemoryLimitError, SourceError
from tests.helpers import raise_if_computes

N = 700


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    values = {f"x{j}": rng.normal(size=N).astype("float32") for j in range(5)}
    values["n"] = rng.integers(0, 9, size=N)
    return pd.DataFrame(values | {"y": np.arange(N)})


@pytest.fixture(scope="module")
def files(frame, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for i, (start, stop) in enumerate([(0, 150), (150, 500), (500, N)]):
        table = pa.Table.from_pandas(frame[start:stop], preserve_index=False)
        pq.write_table(table, folder / f"{i}.parquet", row_group_size=70)
    return folder


def read(folder):
    return dpipe.read_parquet(f"{folder}/*.parquet", block_nbytes=70 * 36)


def numpy_loader(X, y="y", **given):
    how = {"batch_size": 64, "mix": 4, "shares": 2, "tensors": False}
    return dpipe.Loader(X, y, **(how | given))


def gathered(batches):
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def assert_rows(loader, frame):
    """Compare an epoch, batch by batch, with the rows that the order names."""
    epoch = loader.state_dict()["epoch"]
    values = frame.drop(columns="y").to_numpy(dtype="float32")
    n_batches = 0
    for step, (X, y) in enumerate(loader):
        rows = loader.order.numbers(epoch, step)
        np.testing.assert_array_equal(X, values[rows])
        np.testing.assert_array_equal(y, frame["y"].to_numpy()[rows])
        n_batches += 1
    assert n_batches == len(loader) == -(-len(frame) // 64)


@pytest.mark.parametrize("shuffle", [None, "blocks", "rows"])
@pytest.mark.parametrize("shares", [1, 3])
def test_batches_of_files_are_the_rows_of_the_order(frame, files, shuffle, shares):
    with raise_if_computes():
        loader = numpy_loader(read(files), shuffle=shuffle, shares=shares)
    for _ in range(2):
        assert_rows(loader, frame)
    assert loader.state_dict()["epoch"] == 2
    assert len(loader.order.lengths) == 11


def test_batches_are_contiguous_and_the_callers_own(files):
    batches = list(numpy_loader(read(files)))
    X, y = batches[0]
    assert X.dtype == np.float32
    assert y.dtype == np.int64
    assert X.flags.c_contiguous
    before = batches[1][0].copy()
    X[:] = -1
    np.testing.assert_array_equal(batches[1][0], before)


@pytest.mark.parametrize("kind", ["dask array", "numpy", "pandas", "derived frame", "from_pandas"])
def test_other_sources_give_the_same_kind_of_batches(frame, kind):
    X, y = frame.drop(columns="y"), frame["y"]
    if kind == "dask array":
        given = (
            da.from_array(X.to_numpy(dtype="float64"), chunks=(90, -1)),
            da.from_array(y.to_numpy(), chunks=90),
        )
    elif kind == "numpy":
        given = X.to_numpy(dtype="float64"), y.to_numpy()
    elif kind == "pandas":
        given = X, y
    elif kind == "derived frame":
        given = dd.from_pandas(frame, npartitions=6).query("n >= 0"), "y"
    else:
        given = dd.from_pandas(frame, npartitions=6), "y"
    assert_rows(numpy_loader(*given), frame)


def test_zarr_stores_and_fields_with_gaps(frame, tmp_path):
    field = np.random.default_rng(1).normal(size=(60, 4, 3)).astype("float32")
    field[:, 0, 0] = np.nan
    field[7] = np.nan
    stored = xr.DataArray(field, dims=("time", "lat", "lon"), name="z").chunk(time=13)
    stored.to_dataset().to_zarr(tmp_path / "store.zarr", consolidated=False)
    z = dpipe.open_zarr(tmp_path / "store.zarr")["z"]
    given = {"sample_dims": "time", "batch_size": 8}
    X = gathered(numpy_loader(z, None, **given))[0]
    rows = np.delete(field.reshape(60, 12), 7, axis=0)
    assert X.shape == (59, 12)
    np.testing.assert_array_equal(np.sort(X[:, 5]), np.sort(rows[:, 5]))


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4])
def test_ranks_read_their_shares_of_the_same_batches(frame, files, n_ranks):
    whole = list(numpy_loader(read(files), shares=4))
    parts = [list(numpy_loader(read(files), shares=4, rank=rank, n_ranks=n_ranks)) for rank in range(n_ranks)]
    assert {len(own) for own in parts} == {len(whole)}
    for step, (X, y) in enumerate(whole):
        found = gathered([own[step] for own in parts])
        np.testing.assert_array_equal(found[0], X)
        np.testing.assert_array_equal(found[1], y)


@pytest.mark.parametrize("stop", [0, 1, 6, 10])
def test_a_position_goes_on_in_the_middle_of_an_epoch(files, stop):
    expected = [batch for loader in [numpy_loader(read(files))] for _ in range(2) for batch in loader]
    first = numpy_loader(read(files))
    for i, _ in enumerate(first, start=1):
        if i >= stop:
            break
    state = first.state_dict()
    again = numpy_loader(read(files))
    again.load_state_dict(state)
    left = [*again, *again]
    begun = len(expected) - len(left)
    assert begun == max(stop, 1)
    for (X, y), (X_first, y_first) in zip(left, expected[begun:], strict=True):
        np.testing.assert_array_equal(X, X_first)
        np.testing.assert_array_equal(y, y_first)


def test_a_position_goes_on_with_other_ranks(files):
    loader = numpy_loader(read(files), shares=4)
    whole = [*loader, *loader]
    halves = [numpy_loader(read(files), shares=4, rank=rank, n_ranks=2) for rank in range(2)]
    for half in halves:
        half.load_state_dict(loader.state_dict() | {"epoch": 1, "step": 5})
    found = [gathered(parts)[1] for parts in zip(*halves, strict=True)]
    expected = [y for _, y in whole[len(loader) + 5 :]]
    assert [y.tolist() for y in found] == [y.tolist() for y in expected]


def test_a_loader_travels_to_another_process_with_its_position(files):
    loader = numpy_loader(read(files))
    next(iter(loader))
    left = cloudpickle.loads(cloudpickle.dumps(loader))
    assert left.state_dict() == loader.state_dict()
    assert [y.tolist() for _, y in left] == [y.tolist() for _, y in loader]


def test_a_position_of_another_order_is_refused(files):
    state = numpy_loader(read(files)).state_dict()
    with pytest.raises(InputError, match="loader with another order"):
        numpy_loader(read(files), batch_size=32).load_state_dict(state)
    with pytest.raises(InputError, match="no position of a loader"):
        numpy_loader(read(files)).load_state_dict({"step": 1})
    with pytest.raises(InputError, match="step must be less than 11"):
        numpy_loader(read(files)).seek(0, 11)


def test_a_fitted_pipeline_transforms_on_the_way(files, frame):
    X = read(files).drop(columns="y")
    numbers = [f"x{j}" for j in range(5)]
    model = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), numbers), (OneHotEncoder(), ["n"])
    )
    fitted = dpipe.fit(model, X)
    loader = numpy_loader(read(files), transform=fitted)
    found, y = gathered(loader)
    expected = fitted.transform(frame.drop(columns="y"))
    expected = expected.toarray() if hasattr(expected, "toarray") else expected
    np.testing.assert_allclose(found, expected[y], rtol=1e-6, atol=1e-6)


def test_weights_and_nulls_and_several_chunks(tmp_path):
    n = 90
    a = pa.array([None if i % 7 == 0 else float(i) for i in range(n)], pa.float32())
    w = pa.array(np.linspace(0, 1, n))
    table = pa.table({"a": a, "b": pa.array(range(n)), "t": pa.array(np.arange(n) / 2), "w": w})
    pq.write_table(table, tmp_path / "0.parquet", row_group_size=20)
    X, y, weights = gathered(
        numpy_loader(dpipe.read_parquet(tmp_path), "t", sample_weight="w", batch_size=10)
    )
    i = (y * 2).astype(int)
    assert sorted(i.tolist()) == list(range(n))
    np.testing.assert_array_equal(np.isnan(X[:, 0]), i % 7 == 0)
    np.testing.assert_array_equal(X[:, 1], i.astype("float32"))
    np.testing.assert_allclose(weights, w.to_numpy()[i], rtol=1e-6)


def test_blocks_of_no_rows_and_of_unknown_length():
    values = np.arange(60.0).reshape(30, 2)
    X = da.from_array(values, chunks=(10, 2))
    X = X[da.from_array(values[:, 0], chunks=10) >= 20]  # the first block is left without rows
    loader = numpy_loader(X, None, batch_size=4)
    assert loader.order.lengths == (0, 10, 10)
    assert np.sort(gathered(loader)[0][:, 0]).tolist() == list(range(20, 60, 2))


def test_readers_end_with_the_epoch_and_with_a_loop_that_is_left(files):
    def readers():
        return [thread for thread in threading.enumerate() if thread.name.startswith("dpipe-loader")]

    loader = numpy_loader(read(files))
    list(loader)
    assert not readers()
    for _ in loader:
        assert readers() or len(loader) < 2
        break
    assert not readers()


def test_what_a_reader_raises_is_raised_where_batches_are_taken(files, tmp_path):
    folder = tmp_path / "rows"
    shutil.copytree(files, folder)
    loader = numpy_loader(read(folder))
    (folder / "1.parquet").unlink()
    with pytest.raises(SourceError, match=r"1\.parquet"):
        list(loader)


def test_buffers_that_do_not_fit_are_refused_before_anything_is_read(files):
    with (
        raise_if_computes(),
        pytest.raises(MemoryLimitError, match=r"6 buffers of 70 rows, .* and may take 1\.00 kiB"),
    ):
        numpy_loader(read(files), memory="1 KiB")
    assert len(list(numpy_loader(read(files), memory="64 KiB"))) == 11


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"shares": 1.5}, r"shares must be an integer of at least 1, got 1\.5"),
        ({"shuffle": "all"}, "shuffle must be None, 'blocks' or 'rows', got 'all'"),
        ({"mix": 0}, "mix must be"),
        ({"threads": 0}, "threads must be"),
        ({"dtype": "int8"}, "dtype must be 'float32' or 'float64', got 'int8'"),
        ({"rank": 1}, "go together"),
        ({"rank": 2, "n_ranks": 2}, "0 <= rank < n_ranks"),
        ({"transform": StandardScaler()}, "StandardScaler is not fitted"),
        ({"transform": np.sqrt}, "has no method transform"),
        ({"batch_size": 5000, "drop_last": True}, "too few for a batch of 5,000"),
    ],
)
def test_arguments_that_cannot_be_are_refused_at_once(files, given, match):
    with raise_if_computes(), pytest.raises(InputError, match=match):
        numpy_loader(read(files), **given)


def test_more_ranks_than_shares_and_texts_are_refused(files, frame):
    with pytest.raises(InputError, match="3 ranks cannot read 2 shares"):
        numpy_loader(read(files), rank=0, n_ranks=3)
    texts = frame.assign(y="a")
    with pytest.raises(InputError, match="Encode labels first"):
        list(numpy_loader(texts.drop(columns="y"), texts["y"]))
    with pytest.raises(InputError, match="not numeric"):
        list(numpy_loader(texts.rename(columns={"y": "text", "n": "y"})))
