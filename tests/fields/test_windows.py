"""Windows, lags and coarse cells, against xarray on one block; exact at the edges of blocks."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from dpipe import fields
from dpipe.blocks.windows import STATISTICS
from dpipe.errors import InputError, MemoryLimitError
from tests.fields.made import field
from tests.fields.test_climate import chunkings
from tests.helpers import raise_if_computes

WINDOWS = [{"time": 3}, {"time": 8, "lat": 2}, {"time": 40}]


def wanted(x, windows, statistic, center, min_count):
    rolled = x.rolling(windows, center=center, min_periods=min_count)
    if statistic != "count":
        return getattr(rolled, statistic)()
    boxes = {dim: f"{dim}_window" for dim in windows}
    n = rolled.construct(boxes).notnull().sum(list(boxes.values()))
    return n.where(n >= (min_count or np.prod(list(windows.values()))))


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_rolling_is_that_of_xarray(windows, statistic):
    x = field()
    for center, min_count in ((False, None), (True, 1)):
        with raise_if_computes():
            found = fields.rolling(
                x.chunk(time=(3, 1, 36), lat=4), windows, statistic, center=center, min_count=min_count
            )
        np.testing.assert_allclose(found, wanted(x, windows, statistic, center, min_count), atol=1e-8)


@settings(max_examples=15, deadline=None)
@given(chunkings(), st.sampled_from(WINDOWS), st.booleans())
def test_rolling_has_the_same_bits_in_any_chunks(chunks, windows, center):
    x = field()
    whole, found = (
        fields.rolling(each, windows, "std", center=center, min_count=2)
        for each in (x.chunk(), x.chunk(chunks))
    )
    assert found.values.tobytes() == whole.values.tobytes()
    assert found.chunks == x.chunk(chunks).chunks


@settings(max_examples=15, deadline=None)
@given(chunkings(), st.sets(st.integers(-39, 39), min_size=1, max_size=3))
def test_lags_are_those_of_xarray(chunks, steps):
    x = field()
    found = fields.lags(x.chunk(chunks), sorted(steps))
    assert found.dims == ("time", "lat", "lon", "lag")
    for step in steps:
        np.testing.assert_array_equal(found.sel(lag=step), x.shift(time=step))


@settings(max_examples=15, deadline=None)
@given(chunkings(), st.sampled_from([{"lat": 2}, {"time": 7, "lon": 2}]), st.sampled_from(["trim", "pad"]))
def test_coarse_cells_are_those_of_xarray(chunks, factors, boundary):
    x = field()
    for statistic in ("mean", "sum", "max", "std"):
        found = fields.coarsen(x.chunk(chunks), factors, statistic, boundary=boundary)
        usual = getattr(x.coarsen(factors, boundary=boundary), statistic)()
        np.testing.assert_allclose(found, usual, atol=1e-9)
        xr.testing.assert_equal(found.coords.to_dataset(), usual.coords.to_dataset())


def test_bad_input():
    x = field().chunk(time=10)
    with pytest.raises(InputError, match="a window of 41 is longer than 'time', which has 40"):
        fields.rolling(x, {"time": 41})
    with pytest.raises(InputError, match="no dim 'depth'"):
        fields.rolling(x, {"depth": 2})
    with pytest.raises(InputError, match="is not monotonic"):
        fields.rolling(x.isel(time=[0, 2, 1]), {"time": 2})
    with pytest.raises(InputError, match="windows along 'time' must be an integer of at least 1, got 2.5"):
        fields.rolling(x, {"time": 2.5})
    with pytest.raises(InputError, match="statistic must be one of mean"):
        fields.rolling(x, {"time": 2}, "mode")
    with pytest.raises(InputError, match=r"no multiple of 7. Say boundary='trim'"):
        fields.coarsen(x, {"time": 7})
    with pytest.raises(InputError, match="each once"):
        fields.lags(x, [1, 1])
    with pytest.raises(InputError, match="a lag of -40 reaches beyond 'time'"):
        fields.lags(x, [1, -40])
    with pytest.raises(MemoryLimitError, match="rolling: a region of shape"):
        fields.rolling(x, {"time": 2}, memory=1000)


def test_windows_over_very_many_blocks_are_warned_of():
    x = field(40, 2, 2).chunk(time=1)
    with pytest.warns(
        UserWarning, match=r"needs 30 elements, and the chunks hold 1.*x.chunk\(\{'time': 40\}\)"
    ):
        fields.rolling(x, {"time": 30})
