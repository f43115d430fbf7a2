"""Fields that cannot be used are refused by their metadata, with what is wrong, where, and what to do."""

import re

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe import fields
from dpipe.errors import BlockMismatchError, InputError
from tests.fields.made import field
from tests.helpers import raise_if_computes

Z = field().chunk(time=10)
WHOLE = Z.fillna(0.0)
SERIES = WHOLE.isel(lat=0, lon=0, drop=True)
NAMED = WHOLE.to_dataset()
UNKNOWN = xr.DataArray(da.ones(10, chunks=5)[da.ones(10, chunks=5) > 0], dims="time", name="u")
MOVED = SERIES.assign_coords(time=SERIES["time"] + pd.Timedelta(days=1))
DAYS = Z["time"].values

IN_ORDER = {
    "lags": lambda x: fields.lags(x, [1]),
    "rolling": lambda x: fields.rolling(x, {"time": 2}),
    "coarsen": lambda x: fields.coarsen(x, {"time": 2}, boundary="trim"),
    "patches": lambda x: fields.patches(x, {"time": 2}),
    "trend": fields.trend,
    "climatology": lambda x: fields.climatology(x, "month"),
    "split": fields.split,
}


@pytest.mark.parametrize("who", IN_ORDER)
def test_coordinates_out_of_order_or_doubled(who):
    with raise_if_computes():
        with pytest.raises(
            InputError,
            match=rf"{who}: the coordinate 'time' is not monotonic: 2000-01-25.* at 1 comes after 2000-01-27.*"
            r"Sort it: x.sortby\('time'\)",
        ):
            IN_ORDER[who](Z.isel(time=[2, 0, 1]))
        with pytest.raises(
            InputError,
            match=rf"{who}: the coordinate 'time' has 2000-01-25.* twice, at 0 and 1.*x.drop_duplicates\('time'\)",
        ):
            IN_ORDER[who](Z.isel(time=[0, 0, 1]))
        with pytest.raises(InputError, match=f"{who}: the coordinate 'time' has missing values"):
            IN_ORDER[who](Z.assign_coords(time=[*DAYS[:-1], np.datetime64("NaT")]))


@pytest.mark.parametrize("who", IN_ORDER)
def test_dims_that_are_not_there(who):
    with (
        raise_if_computes(),
        pytest.raises(InputError, match=f"{who}: there is no dim 'time'.*'t', 'lat', 'lon'"),
    ):
        IN_ORDER[who](Z.rename(time="t"))


CELLS = {
    "a month too few": (
        lambda: fields.anomalies(Z, fields.climatology(Z.isel(time=slice(4)), "month")),
        "has no month 2, 3. It has 1, from 1 to 1",
    ),
    "other cells": (
        lambda: fields.anomalies(Z, fields.climatology(Z.isel(lat=slice(3)), "month")),
        "different cells along 'lat', 6 and 3. Select the same ones, or regrid",
    ),
    "other values of a coordinate": (
        lambda: fields.detrend(Z, line=fields.trend(Z.assign_coords(lon=Z["lon"] + 1))),
        "different cells along 'lon', 5 and 5",
    ),
    "another calendar": (
        lambda: fields.anomalies(field(calendar="noleap").chunk(time=10), fields.climatology(Z, "month")),
        r"x has the calendar 'noleap', but .* of 'proleptic_gregorian'.*x.convert_calendar\('proleptic",
    ),
    "a target beyond": (
        lambda: fields.regrid(Z, {"lat": [-80.0, 0.0]}),
        "along 'lat' the centres of the new cells go from -80 to 0, but the source cells from -60 to 60",
    ),
    "edges beyond": (
        lambda: fields.regrid(Z, {"lon": [-20.0, 0.0]}, "conservative"),
        "along 'lon' the edges of the new cells go from -30 to 10, but the source cells from -5 to 45",
    ),
    "a target of texts": (
        lambda: fields.regrid(Z, {"lat": ["a"]}),
        "must be a list of numbers: could not convert",
    ),
    "a target of nothing": (lambda: fields.regrid(Z, {"lat": []}), "must be a list of numbers, got array"),
    "times to regrid": (
        lambda: fields.regrid(Z, {"time": [1, 2]}),
        "'time' is of type datetime64.*must hold numbers",
    ),
    "a window of all": (
        lambda: fields.rolling(Z, {"lat": 7}),
        "a window of 7 is longer than 'lat', which has 6",
    ),
    "nothing selected": (
        lambda: fields.rolling(Z.isel(time=slice(0)), {"time": 2}),
        r"the array has no elements, its shape is \(0, 6, 5\). Select at least one",
    ),
    "texts": (
        lambda: fields.rolling(NAMED.assign(s=("time", ["a"] * 40)), {"time": 2}),
        "'s' holds values of type <U1, which cannot be computed with",
    ),
    "other dims": (
        lambda: fields.rolling(NAMED.assign(h=("lat", np.arange(6.0))), {"time": 2, "lat": 2}),
        r"the variables h have some of the dims time, lat, but not all.*x.drop_vars\(\['h'\]\)",
    ),
    "unknown sizes": (lambda: fields.rolling(UNKNOWN, {"time": 2}), "'u' holds blocks of unknown size"),
    "no array": (lambda: fields.rolling(np.ones(3), {"time": 2}), "got a numpy.ndarray. Name its dims first"),
    "all dims are samples": (
        lambda: dpipe.fit(PCA(1), WHOLE, sample_dims=WHOLE.dims),
        r"so that it has no features.*X.to_dataset\(name='z'\)",
    ),
    "features of nothing": (
        lambda: dpipe.fit(PCA(1), WHOLE.isel(lat=slice(0)), sample_dims="time"),
        "X has no features: there is nothing along 'lat'",
    ),
    "features of texts": (
        lambda: dpipe.fit(PCA(1), NAMED.assign(s=("time", ["a"] * 40)), sample_dims="time"),
        "'s' of X is of type <U1; it must hold numbers",
    ),
    "variables of other dims": (
        lambda: dpipe.fit(PCA(1), NAMED.assign(h=("lat", np.arange(6.0))), sample_dims=("time", "lat")),
        "'h' lacks the dim 'time' of sample_dims; it has 'lat'",
    ),
    "y of other days": (
        lambda: dpipe.fit(Ridge(), WHOLE, MOVED, sample_dims="time"),
        "The coordinate 'time' of X and of y differ: at place 0, 2000-01-25.* and 2000-01-26",
    ),
}


@pytest.mark.parametrize("case", CELLS)
def test_metadata_tells_before_anything_is_computed(case):
    call, said = CELLS[case]
    with raise_if_computes(), pytest.raises((InputError, BlockMismatchError), match=said):
        call()


@pytest.mark.parametrize(
    "X", [WHOLE.isel(time=slice(0)), Z * np.nan], ids=["no samples", "all cells missing"]
)
def test_nothing_to_learn_from(X):
    with pytest.raises(
        InputError, match="the data has no rows.*samples of an xarray object without any data"
    ):
        dpipe.fit(StandardScaler(), X, sample_dims="time")


def test_a_field_that_is_missing_everywhere_stays_missing():
    gone = Z * np.nan
    usual = fields.climatology(gone, "month")
    for made in (
        usual,
        fields.anomalies(gone, usual),
        fields.detrend(gone),
        fields.rolling(gone, {"time": 2}),
    ):
        assert made.isnull().all()


def test_blocks_of_one_element_are_warned_of_at_the_line_of_the_caller():
    tiny = field().chunk(time=1, lat=1, lon=1)
    chunks = "{'time': 40, 'lat': 6, 'lon': 5}"
    said = re.escape(
        f"in 1,200 blocks of one element; each costs the scheduler about a millisecond. Read it in larger "
        f"ones: x.chunk({chunks}); if it is stored like this, write it anew once: dpipe.rechunk(x, "
        f"'new.zarr', chunks={chunks})"
    )
    for x in (tiny, tiny.to_dataset()):
        with pytest.warns(UserWarning, match=said) as caught:
            fields.rolling(x, {"lat": 2})
        assert {each.filename for each in caught} == {__file__}
    with pytest.warns(
        UserWarning, match=r"1,200 chunks of part of one sample and 8 B each.*'lat': 6, 'lon': 5, 'time'"
    ):
        dpipe.plan(StandardScaler(), tiny, sample_dims="time")


def test_the_rewrite_that_is_named_helps(tmp_path):
    tiny = field().chunk(time=1, lat=1, lon=1)
    dpipe.rechunk(tiny, tmp_path / "new.zarr", chunks={"time": 40, "lat": 6, "lon": 5})
    found = dpipe.open_zarr(tmp_path / "new.zarr")["z"]
    assert found.data.npartitions == 1
    np.testing.assert_array_equal(found, tiny)
