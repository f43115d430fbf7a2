"""Lines and moments, against NumPy on one block."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings

from dpipe import fields
from dpipe.errors import InputError, MemoryLimitError
from tests.fields.made import field
from tests.fields.test_climate import chunkings
from tests.helpers import raise_if_computes


def lines(x):
    """Slope a day and value at the first step, a cell at a time."""
    t = ((x["time"] - x["time"][0]) / np.timedelta64(1, "D")).values
    found = np.full((2, *x.shape[1:]), np.nan)
    for cell in np.ndindex(x.shape[1:]):
        values = x.values[(slice(None), *cell)]
        there = ~np.isnan(values)
        if there.any():
            found[(slice(None), *cell)] = np.polyfit(t[there], values[there], 1)
    return found, t


@settings(max_examples=8, deadline=None)
@given(chunkings())
def test_lines_are_those_of_numpy_in_any_chunks(chunks):
    x = field()
    (slope, start), t = lines(x)
    with raise_if_computes():
        line, flat = fields.trend(x.chunk(chunks)), fields.detrend(x.chunk(chunks))
    np.testing.assert_allclose(line["slope"], slope, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(line["intercept"], start, rtol=1e-9)
    np.testing.assert_allclose(flat, x - (start + slope * t[:, None, None]), atol=1e-7)
    assert flat.chunks == x.chunk(chunks).chunks


def test_the_line_of_the_training_steps_goes_on():
    x = (field(40, 2, 2) * 0 + np.arange(40.0)[:, None, None]).chunk(time=7)
    line = fields.trend(x.isel(time=slice(0, 25)))
    rest = fields.detrend(x.isel(time=slice(25, None)), line=line).values
    assert np.nanmax(abs(rest)) < 1e-9


@settings(max_examples=8, deadline=None)
@given(chunkings())
def test_moments_along_any_dims(chunks):
    x = field()
    for dims in ("time", ["lat", "lon"], ["time", "lat", "lon"]):
        with raise_if_computes():
            found, made = fields.moments(x.chunk(chunks), dims), fields.standardise(x.chunk(chunks), dims)
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(found["mean"], x.mean(dims), rtol=1e-9)
            np.testing.assert_allclose(found["std"], x.std(dims), rtol=1e-9)
            np.testing.assert_array_equal(found["count"], x.count(dims))
            np.testing.assert_allclose(made, (x - x.mean(dims)) / x.std(dims), atol=1e-9)


def test_what_does_not_change_becomes_0_and_types_are_kept():
    x = xr.DataArray(np.full((4, 2), 7, dtype="float32"), dims=("time", "lat")).chunk(time=2)
    found = fields.standardise(x, "time")
    assert found.dtype == "float32"
    assert found.values.tolist() == [[0.0, 0.0]] * 4


def test_one_step_has_no_slope():
    line = fields.trend(field(1, 2, 2))
    assert np.nanmax(abs(line["slope"].values)) == 0


def test_bad_input():
    x = field()
    with pytest.raises(InputError, match="no dim 'depth'"):
        fields.detrend(x, "depth")
    with pytest.raises(InputError, match="is not monotonic"):
        fields.trend(x.isel(time=[0, 2, 1]))
    with pytest.raises(InputError, match="line has no origin, slope|line has no slope"):
        fields.detrend(x, line=xr.Dataset({"intercept": 1}))
    with pytest.raises(InputError, match="found has no std"):
        fields.standardise(x, "time", found=xr.Dataset({"mean": 1}))
    with pytest.raises(InputError, match="different cells along 'lat', 6 and 2"):
        fields.standardise(x, "time", found=fields.moments(x.isel(lat=slice(0, 2)), "time"))
    with pytest.raises(MemoryLimitError, match="Read smaller ones, such as"):
        fields.standardise(x, "time", memory=1000)
    with pytest.raises(MemoryLimitError, match="standardise: a block of shape"):
        fields.standardise(x, "time", found=fields.moments(x, "time"), memory=1000)
    with pytest.raises(MemoryLimitError, match="detrend: a block of shape"):
        fields.detrend(x, line=fields.trend(x), memory=1000)
