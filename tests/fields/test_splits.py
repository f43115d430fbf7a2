"""Blocked splits: sides that do not touch, from coordinates alone."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from dpipe import fields
from dpipe.errors import InputError
from tests.fields.made import field
from tests.helpers import raise_if_computes


def test_time_is_cut_with_a_gap():
    x = field().chunk(time=7)
    with raise_if_computes():
        train, test = fields.split(x, test_from="2000-02-20", gap="3D")
        assert not fields.check_leaks(train, test, gap="3D").found
    assert test["time"].values[0] == np.datetime64("2000-02-20")
    assert train["time"].values[-1] == np.datetime64("2000-02-16")
    np.testing.assert_array_equal(train, x.sel(time=slice(None, "2000-02-16")))
    leaks = fields.check_leaks(train, test, gap="5D")
    assert str(leaks) == "0 places on both sides, 2 of 23 training places within the gap of 14 test places"


def test_stretches_of_time_are_drawn():
    x = xr.Dataset({"z": field(100), "fixed": ("lat", np.arange(6))}).chunk(time=9)
    with raise_if_computes():
        train, test = fields.split(x, test_size=0.3, block="10D", gap="2D", random_state=1)
    assert test.sizes["time"] == 30
    assert fields.check_leaks(train, test, gap="2D").n_near == 0
    assert train["fixed"].dims == ("lat",)
    np.testing.assert_array_equal(test["z"], x["z"].sel(time=test["time"]))
    again = fields.split(x, test_size=0.3, block="10D", gap="2D", random_state=1)[1]
    assert again["time"].equals(test["time"])
    assert not fields.split(x, test_size=0.3, block="10D", random_state=2)[1]["time"].equals(test["time"])


@pytest.mark.parametrize("options", [{}, {"block": "4D"}, {"gap": "2D"}])
def test_each_step_is_tested_once(options):
    x = field().chunk(time=6)
    pairs = fields.folds(x, n_splits=4, **options)
    tested = np.concatenate([test["time"].values for _, test in pairs])
    np.testing.assert_array_equal(np.sort(tested), x["time"].values)
    for train, test in pairs:
        assert not fields.check_leaks(train, test, gap=options.get("gap")).found


def test_boxes_of_space_and_the_seam_of_the_globe():
    lat, lon = np.arange(-85.0, 90, 10), np.arange(5.0, 360, 10)
    x = xr.DataArray(
        np.ones((2, 18, 36)), dims=("time", "lat", "lon"), coords={"lat": lat, "lon": lon}
    ).chunk(lat=5)
    with raise_if_computes():
        pairs = fields.folds(x, ["lat", "lon"], 3, block={"lat": 30, "lon": 40}, gap=15, random_state=3)
        for train, test in pairs:
            assert not fields.check_leaks(train, test, ["lat", "lon"], gap=15).found
    assert (sum(test["kept"].astype(int) for _, test in pairs) == 1).all()
    for train, test in pairs:
        inside = set(zip(*np.nonzero(test["kept"].values), strict=True))
        near = {(i + a, (j + b) % 36) for i, j in inside for a in (-1, 0, 1) for b in (-1, 0, 1)}
        assert not near & set(zip(*np.nonzero(train["kept"].values), strict=True))
        np.testing.assert_array_equal(test.notnull().all("time"), test["kept"])
    close = fields.split(x, ["lat", "lon"], block=30)
    assert fields.check_leaks(*close, ["lat", "lon"], gap=15).n_near > 0


def test_what_leaks_is_found():
    x = field().chunk(time=6)
    leaks = fields.check_leaks(x.isel(time=slice(0, 20)), x.isel(time=slice(15, None)))
    assert (leaks.n_shared, leaks.found) == (5, True)


def test_bad_input():
    x = field()
    with pytest.raises(InputError, match="no dim 'depth'"):
        fields.split(x, "depth")
    with pytest.raises(InputError, match="is not monotonic"):
        fields.split(x.isel(time=[0, 2, 1]))
    with pytest.raises(InputError, match="test_size must lie between 0 and 1, got 2"):
        fields.split(x, test_size=2)
    with pytest.raises(InputError, match="gap='soon' does not go with 'time'"):
        fields.split(x, gap="soon")
    with pytest.raises(InputError, match="gap=-1 does not go with 'lat'"):
        fields.split(x, "lat", gap=-1)
    with pytest.raises(InputError, match="the train side is empty, of 40 places"):
        fields.split(x, gap=pd.Timedelta(days=400))
    with pytest.raises(InputError, match="the test side is empty"):
        fields.split(x, test_from="2030-01-01")
    with pytest.raises(InputError, match="fewer than n_splits=9"):
        fields.folds(x, n_splits=9, block="10D")
    with pytest.raises(InputError, match="no coordinate 'kept'"):
        fields.check_leaks(x, x, ["lat", "lon"])
