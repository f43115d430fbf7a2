"""Labelled arrays in any chunks give the rows of the stacked array, each stored chunk read once."""

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from dpipe.collect.labelled import open_grid
from dpipe.collect.source import open_source, source_name
from dpipe.train.prepare import prepare
from tests.collect.test_source import blocks
from tests.helpers import raise_if_computes

SIZES = {"band": 3, "time": 4, "lat": 3, "level": 2}
DIMS = ("time", "lat")


def field():
    values = np.arange(72.0).reshape(tuple(SIZES.values()))
    return xr.DataArray(values, dims=tuple(SIZES), coords={"level": [500, 850]}, name="t")


def cut(n):
    ends = st.lists(st.integers(1, n), max_size=n).map(lambda ends: sorted({0, *ends, n}))
    return ends.map(lambda ends: tuple(int(size) for size in np.diff(ends)))


def stacked(array):
    return array.stack(sample=DIMS).stack(feature=("band", "level")).transpose("sample", "feature").values


@settings(max_examples=40, deadline=None)
@given(chunks=st.fixed_dictionaries({dim: cut(n) for dim, n in SIZES.items()}), swap=st.booleans())
def test_any_chunks_give_the_rows_of_the_stacked_array(chunks, swap):
    X = field().chunk(chunks)
    y = X.isel(band=0, level=0).transpose(*(("lat", "time") if swap else DIMS))
    w = xr.DataArray(np.array([1.0, 2.0, 3.0]), dims="lat")
    with raise_if_computes():
        source = open_source(open_grid(X, y, w, DIMS, "keep"))
        assert source.n_rows == 12
        assert source.n_blocks == len(chunks["time"]) * len(chunks["lat"])
    found = blocks(source)
    assert tuple(len(rows.X) for rows in found) == source.rows
    rows = np.vstack([rows.X for rows in found])
    order = np.argsort(rows[:, 0])
    np.testing.assert_array_equal(rows[order], stacked(field()))
    np.testing.assert_array_equal(np.concatenate([rows.y for rows in found]), rows[:, 0])
    lat = rows[:, 0].astype(int) // 2 % 3
    np.testing.assert_array_equal(np.concatenate([rows.w for rows in found]), lat + 1.0)


def test_chunks_of_unknown_size():
    values = da.from_array(np.arange(24.0).reshape(8, 3), chunks=(4, 3))
    some = values[da.from_array(np.arange(8) % 3 > 0, chunks=4)]
    X = xr.DataArray(some, dims=("time", "band"))
    source = open_source(open_grid(X, X.isel(band=0), None, "time", "keep"))
    assert source.rows == (None, None)
    assert source.n_rows is None
    found = np.vstack([rows.X for rows in blocks(source)])
    np.testing.assert_array_equal(found, some.compute())


def test_variables_of_a_data_set_are_columns():
    data = field().to_dataset("band").rename({0: "a", 1: "b", 2: "c"}).chunk(time=3)
    source = open_source(open_grid(data, "c", None, DIMS))
    assert source.names == ("a[level=500]", "a[level=850]", "b[level=500]", "b[level=850]")
    flat = open_source(open_grid(data.isel(level=0), "c", None, DIMS))
    assert flat.names == ("a", "b")
    rows = blocks(flat)
    assert [list(block.X) for block in rows] == [["a", "b"]] * 2
    assert isinstance(rows[0].X, pd.DataFrame)


class Counted:
    """Counts how often each of its chunks is read."""

    def __init__(self, values):
        self.values, self.reads = values, []
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim

    def __getitem__(self, index):
        self.reads.append(str(index))
        return self.values[index]

    def __dask_tokenize__(self):
        return "counted", id(self)


def counted(values, chunks):
    counts = Counted(values)
    return counts, da.from_array(counts, chunks=chunks, asarray=False, fancy=False)


def test_each_stored_chunk_is_read_once_also_where_features_are_chunked():
    counts, data = counted(field().values, chunks=(2, 2, 3, 1))
    counts.reads.clear()
    source = open_source(open_grid(xr.DataArray(data, dims=tuple(SIZES)), None, None, DIMS))
    blocks(source)
    assert len(counts.reads) == len(set(counts.reads)) == data.npartitions == 8
    assert "4 stored chunks read for each" in source_name(source)


@pytest.mark.parametrize(("missing", "n"), [("keep", 0), ("any", 2)])
def test_variables_that_are_not_needed_are_not_read(missing, n):
    counts, data = counted(np.ones((4, 3)), chunks=(2, 3))
    counts.reads.clear()
    X = xr.Dataset({"a": (DIMS, da.zeros((4, 3), chunks=(2, 3))), "b": (DIMS, data)})
    source = open_source(open_grid(X, None, None, DIMS, missing))
    (found, *_) = blocks(source, columns=[0])
    assert list(found.X) == ["a"]
    assert len(counts.reads) == n  # whether a cell is left out may depend on all of them


@pytest.mark.parametrize(("missing", "n"), [("keep", 12), ("all", 11), ("any", 10)])
@pytest.mark.parametrize("chunked", [True, False])
def test_cells_without_data_are_no_rows(missing, n, chunked):
    X = field()
    X[{"time": 1, "lat": 2}] = np.nan
    X[{"time": 2, "lat": 0, "band": 1, "level": 0}] = np.nan
    source = open_source(open_grid(X.chunk(time=2) if chunked else X, None, None, DIMS, missing))
    assert source.n_rows == (n if missing == "keep" or not chunked else None)
    assert sum(len(rows.X) for rows in blocks(source)) == n


def test_the_plan_tells_chunks_and_bytes():
    from sklearn.decomposition import PCA

    X = field().chunk(time=2, level=1)
    with raise_if_computes():
        said = str(prepare(PCA(2), X, sample_dims=DIMS).plan)
    assert "2 blocks of an xarray DataArray, 576 B: samples time x lat, 2 x 3 cells a block" in said
    assert "2 stored chunks read for each, 6 features; cells without data are left out" in said


def test_blocks_are_the_same_in_memory():
    X = field()
    (held,) = blocks(open_source(open_grid(X, X.isel(band=0, level=0), None, DIMS)))
    np.testing.assert_array_equal(held.X, stacked(X))
    with dask.config.set(scheduler="synchronous"):
        (read,) = blocks(open_source(open_grid(X.chunk(), X.isel(band=0, level=0), None, DIMS)))
    np.testing.assert_array_equal(held.X, read.X)
    np.testing.assert_array_equal(held.y, read.y)
