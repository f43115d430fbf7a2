"""What is wrong with labelled arrays is told from their metadata, before anything is read."""

import warnings

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import dpipe
from dpipe.collect.labelled import needed_variables, open_grid
from dpipe.errors import BlockMismatchError, InputError
from tests.helpers import raise_if_computes

DIMS = ("time", "lat")


def field(**chunks):
    values = xr.DataArray(
        np.arange(60.0).reshape(4, 5, 3),
        dims=("time", "lat", "band"),
        coords={"time": pd.date_range("2020-01-01", periods=4), "lat": np.arange(5.0)},
        name="t",
    )
    return values.chunk(chunks) if chunks else values


X = field(time=2)
DATA = field(time=2).to_dataset("band").rename({0: "a", 1: "b", 2: "c"})
Y = X.isel(band=0)

WRONG = {
    "no sample_dims": (X, None, None, None, r"say which of them are samples, as by sample_dims=\('time', 'lat'\)"),
    "no such dim": (X, None, None, ("time", "lon"), r"X has no dim 'lon'. Its dims are: 'time', 'lat', 'band'"),
    "no dims": (X, None, None, (), "must name at least one dim"),
    "a dim twice": (X, None, None, ("time", "time"), "each once"),
    "no features": (Y, None, None, DIMS, r"it has no features.*X.to_dataset\(name='t'\)"),
    "no variables": (DATA[[]], None, None, "time", "has no dim|no data variables"),
    "texts": (DATA.assign(c=DATA.c.astype(str)), None, None, DIMS, "'c' of X is of type <U.*it must hold numbers"),
    "times": (DATA.assign(c=DATA.time), None, None, "time", "'c' of X is of type datetime64"),
    "other dims": (DATA.assign(h=DATA.a.isel(time=0)), None, None, DIMS, "'h' lacks the dim 'time'"),
    "y is no array": (X, np.ones(20), None, DIMS, "y is a ndarray. Give y as a DataArray"),
    "y lacks a dim": (X, Y.isel(lat=0), None, DIMS, "y has the dims 'time', which lacks 'lat'"),
    "no such variable": (DATA, "d", None, DIMS, "y='d' is no variable of X, which has: 'a', 'b', 'c'"),
    "a name beside an array": (X, "d", None, DIMS, "which has: no variables"),
    "weights of the features": (X, None, X.isel(time=0, lat=0), DIMS, "it must have some of sample_dims"),
    "weights are texts": (X, None, Y.astype(str), DIMS, "it must hold numbers"),
    "sizes": (X, Y.isel(lat=slice(3)), None, DIMS, "X has 5 cells along 'lat', but y has 3"),
    "coordinates": (X, Y.assign_coords(lat=[0, 1, 2, 9, 4]), None, DIMS, "'lat' of X and of y differ: at place 3, "),
    "chunks": (X, Y.chunk(time=3), None, DIMS, r"y has other chunks along 'time' than X: \(3, 1\) instead of \(2, 2\)"),
    "chunks of variables": (DATA.assign(c=DATA.c.chunk(time=1)), None, None, DIMS, "c has other chunks along 'time'"),
    "y is lazy alone": (field(), Y, None, DIMS, r"X is in memory, but y or sample_weight is chunked"),
    "missing": (X, None, None, DIMS, r'missing=\'some\'.*"keep"'),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    given, y, w, dims, said = WRONG[case]
    missing = "some" if case == "missing" else "all"
    with raise_if_computes(), pytest.raises((InputError, BlockMismatchError), match=said):
        open_grid(given, y, w, dims, missing)


def test_names_of_features_must_differ():
    doubled = DATA.expand_dims(level=[1, 1]).chunk()
    with pytest.raises(
        InputError, match=r"would be named 'a\[level=1\]': the coordinates 'level' hold values twice"
    ):
        open_grid(doubled, None, None, DIMS)


def test_what_is_opened_without_chunks_is_not_loaded(tmp_path):
    DATA.compute().to_zarr(tmp_path / "store.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "store.zarr", chunks=None, consolidated=False)
    with pytest.raises(InputError, match=r"'[abc]' is opened lazily but is not chunked.*chunks=\{\}"):
        open_grid(opened, None, None, DIMS)


def test_sample_dims_are_for_labelled_arrays():
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    from sklearn.preprocessing import StandardScaler

    fitted = StandardScaler().fit(frame)
    for call in (
        lambda: dpipe.fit(StandardScaler(), frame, sample_dims="time"),
        lambda: dpipe.plan(StandardScaler(), da.ones((4, 2)), sample_dims="time"),
        lambda: dpipe.transform(fitted, frame, sample_dims="time"),
    ):
        with pytest.raises(InputError, match="sample_dims='time' is for xarray objects"):
            call()
    with pytest.raises(InputError, match="say which of them are samples"):
        dpipe.fit(StandardScaler(), X)


def test_dims_of_y_may_stand_in_any_order():
    grid = open_grid(X, Y.transpose("lat", "time"), None, DIMS)
    assert grid.y.sample_axes == (1, 0)


def test_chunks_of_one_sample_are_warned_of_with_what_would_help():
    tiny = xr.DataArray(da.ones((120, 2), chunks=(1, 2)), dims=("time", "band"))
    with pytest.warns(
        UserWarning, match=r"120 chunks of one sample and 16 B each.*X.chunk\(\{'time': 120\}\)"
    ):
        open_grid(tiny, None, None, "time")


def test_large_chunks_of_one_sample_are_as_they_should_be():
    large = xr.DataArray(da.ones((120, 10_000), chunks=(1, -1)), dims=("time", "cell"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_grid(large, None, None, "time")


def test_only_variables_that_are_needed_must_do():
    data = DATA.assign(h=DATA.a.isel(time=0), when=DATA.time)
    assert list(needed_variables(data, ["a", "c"], ("b", None))) == ["a", "b", "c"]
    assert list(needed_variables(data, ["a[level=3]"])) == ["a"]
    assert list(needed_variables(data, None)) == ["a", "b", "c", "h", "when"]
