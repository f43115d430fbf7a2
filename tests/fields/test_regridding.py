"""Regridding, against cases by hand, integrals, and xarray's interpolation."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings

from dpipe import fields
from dpipe.errors import InputError
from tests.fields.made import field
from tests.fields.test_climate import chunkings
from tests.helpers import raise_if_computes


def line(values, dim="y", **coords):
    return xr.DataArray(
        np.array(values, dtype=float), dims=dim, coords=coords or {dim: np.arange(len(values)) + 0.5}
    )


def globe(n_lat=18, n_lon=36):
    lat, lon = (np.arange(n_lat) + 0.5) * 180 / n_lat - 90, (np.arange(n_lon) + 0.5) * 360 / n_lon
    values = np.random.default_rng(0).normal(size=(n_lat, n_lon))
    return xr.DataArray(values, dims=("lat", "lon"), coords={"lat": lat, "lon": lon})


def integral(x):
    """Over the sphere, the cells even in degrees."""
    step = abs(float(x["lat"][1] - x["lat"][0])) / 2
    bands = np.sin(np.deg2rad(x["lat"] + step)) - np.sin(np.deg2rad(x["lat"] - step))
    return float((x * bands).sum() * 2 * np.pi / x.sizes["lon"])


def test_conservative_cases_by_hand():
    x = line([1, 2, 4, 8]).chunk(y=3)
    with raise_if_computes():
        found = fields.regrid(x, {"y": [2 / 3, 2, 10 / 3]}, "conservative")
    # each new cell is one and a third old ones wide
    np.testing.assert_allclose(
        found, [(1 + 2 / 3) / (4 / 3), (2 * 2 / 3 + 4 * 2 / 3) / (4 / 3), (4 / 3 + 8) / (4 / 3)]
    )
    holes = fields.regrid(line([1, np.nan, np.nan, np.nan]).chunk(y=3), {"y": [1, 3]}, "conservative")
    assert holes.values.tolist()[0] == 1.0
    assert np.isnan(holes.values[1])
    strict = fields.regrid(line([1, np.nan, 3, 5]), {"y": [1, 3]}, "conservative", min_cover=0.75)
    np.testing.assert_array_equal(strict, [np.nan, 4.0])


def test_bilinear_cases_by_hand():
    x = line([0, 10, 40]).chunk(y=2)
    np.testing.assert_allclose(fields.regrid(x, {"y": [0.1, 1.0, 2.25, 3.0]}), [0, 5, 32.5, 40])
    down = x.isel(y=slice(None, None, -1))
    np.testing.assert_allclose(fields.regrid(down, {"y": [2.25, 1.0]}), [32.5, 5])


@pytest.mark.parametrize("chunks", [{}, {"lat": 5, "lon": 7}, {"lat": (1, 17), "lon": 36}])
@pytest.mark.parametrize("target", [(9, 18), (7, 11), (24, 50)])
def test_the_integral_over_the_globe_is_kept(chunks, target):
    x, like = globe(), globe(*target)
    for source in (x, x.isel(lat=slice(None, None, -1))):
        found = fields.regrid(source.chunk(chunks), like, "conservative")
        assert integral(found.compute()) == pytest.approx(integral(x), abs=1e-12)
    west = like.assign_coords(lon=like["lon"] - 180)
    assert integral(fields.regrid(x.chunk(chunks), west, "conservative")) == pytest.approx(
        integral(x), abs=1e-12
    )


def test_longitudes_go_around():
    x = globe()
    target = [-180.0, -1.0, 0.0, 359.0]
    around = xr.concat([x.isel(lon=[-1]).assign_coords(lon=[-5.0]), x], "lon")
    wanted = around.interp(lon=[180.0, -1.0, 0.0, -1.0])
    found = fields.regrid(x.chunk(lat=5, lon=10), {"lon": target})
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    part = x.sel(lon=slice(180, 360)).chunk(lon=5)
    np.testing.assert_allclose(fields.regrid(part, {"lon": [-95.0]}), part.sel(lon=[265.0]))
    west, east = (
        fields.regrid(part, {"lon": np.arange(first, first + 100, 20.0)}, "conservative")
        for first in (-150, 210)
    )
    np.testing.assert_allclose(west, east)
    with pytest.raises(InputError, match="the centres of the new cells go from -200 to 190, but the source"):
        fields.regrid(part, {"lon": [-200.0, -170.0]})


@settings(max_examples=10, deadline=None)
@given(chunkings())
def test_any_chunks_give_the_same(chunks):
    x = field()
    target = {"lat": np.linspace(-45, 45, 7), "lon": np.linspace(1, 39, 8)}
    whole, found = (fields.regrid(each, target) for each in (x.chunk(), x.chunk(chunks)))
    np.testing.assert_allclose(found, whole, rtol=1e-12)
    filled = x.fillna(0)
    np.testing.assert_allclose(fields.regrid(filled.chunk(chunks), target), filled.interp(target), rtol=1e-9)
    assert found.attrs == x.attrs


def test_bad_input():
    x = field()
    with pytest.raises(
        InputError, match="along 'lat' the centres of the new cells go from 0 to 80, but the source"
    ):
        fields.regrid(x, {"lat": [0, 80]})
    with pytest.raises(InputError, match="the edges of the new cells go from"):
        fields.regrid(x.rename(lat="y"), {"y": [-55, -45, 90]}, "conservative")
    with pytest.raises(InputError, match="no dim 'depth'"):
        fields.regrid(x, {"depth": [1, 2]})
    with pytest.raises(InputError, match="method must be bilinear or conservative, got 'nearest'"):
        fields.regrid(x, {"lat": [0]}, "nearest")
    with pytest.raises(InputError, match="of type datetime64"):
        fields.regrid(x, {"time": [0]})
    with pytest.raises(InputError, match="must be in order, each once"):
        fields.regrid(x, {"lat": [0, 20, 10]}, "conservative")
    with pytest.raises(InputError, match="target must name dims"):
        fields.regrid(x, {})
