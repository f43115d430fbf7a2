"""Climatology and anomalies, against xarray in memory; chunks drawn by hypothesis."""

import itertools

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from dpipe import fields
from dpipe.errors import InputError, MemoryLimitError
from dpipe.outputs.zarr import write_zarr
from tests.fields.made import field
from tests.helpers import raise_if_computes

SIZES = {"time": 40, "lat": 6, "lon": 5}


@st.composite
def chunkings(draw, sizes=SIZES):
    """Uneven chunks of each dim, small ones among them."""
    found = {}
    for dim, n in sizes.items():
        cuts = draw(st.sets(st.integers(1, n - 1), max_size=3))
        edges = [0, *sorted(cuts), n]
        found[dim] = tuple(b - a for a, b in itertools.pairwise(edges))
    return found


@pytest.mark.parametrize("by", ["dayofyear", "month", "season"])
@pytest.mark.parametrize("statistic", ["mean", "std"])
def test_the_climatology_is_that_of_xarray(by, statistic):
    x = field(800, 3, 2, dtype="float32")
    with raise_if_computes():
        found = fields.climatology(x.chunk(time=90, lat=2), by, statistic=statistic)
    wanted = getattr(x.astype("float64").groupby(f"time.{by}"), statistic)()
    assert found.dims == wanted.dims
    assert found.dtype == "float32"
    assert found.attrs == x.attrs
    np.testing.assert_array_equal(found[by], wanted[by])
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(chunkings(), st.permutations(["time", "lat", "lon"]))
def test_anomalies_are_those_of_xarray_in_any_chunks(chunks, order):
    x = field().transpose(*order)
    with raise_if_computes():
        lazy = x.chunk(chunks)
        found = fields.anomalies(lazy, fields.climatology(lazy, "month"))
    assert found.chunks == lazy.chunks
    wanted = x.groupby("time.month") - x.groupby("time.month").mean()
    np.testing.assert_allclose(found, wanted.transpose(*order), rtol=1e-9, atol=1e-9)
    xr.testing.assert_identical(found.coords.to_dataset(), x.coords.to_dataset())


def test_bits_depend_on_the_blocks_alone():
    x = field(400, 3, 2).chunk(time=7)
    whole = fields.climatology(x, "month", memory="1 GiB").values
    # a budget for a few groups at a time
    few = fields.climatology(x, "month", memory=1500)
    assert few.data.numblocks[0] > 1
    assert few.values.tobytes() == whole.tobytes()
    with dask.config.set(scheduler="threads", num_workers=3):
        assert fields.climatology(x, "month").values.tobytes() == whole.tobytes()


def test_blocks_are_read_anew_for_the_anomalies_and_never_held():
    loads = []
    held = da.map_blocks(lambda block: loads.append(1) or block + 0, da.zeros((40, 2), chunks=(4, 2)))
    x = field(40, 2, 1).isel(lon=0, drop=True).copy(data=held)
    usual = fields.climatology(x, "month")
    loads.clear()
    found = fields.anomalies(x, usual)
    found.compute()
    assert len(loads) == 20
    # no task of the graph gives a block of x: each is loaded inside of the task that uses it
    graph = dict(found.data.__dask_graph__())
    assert not [key for key in graph if key in {*held.__dask_graph__()}]


def test_anomalies_divided_by_the_spread():
    x = field().chunk(time=9)
    mean, std = (fields.climatology(x, "month", statistic=what) for what in ("mean", "std"))
    found = fields.anomalies(x, mean, scale=std.compute())
    groups = field().groupby("time.month")
    wanted = (groups - groups.mean()).groupby("time.month") / groups.std()
    np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize("calendar", ["noleap", "360_day"])
def test_other_calendars(calendar):
    x = field(800, 2, 2, calendar=calendar)
    found = fields.anomalies(x.chunk(time=100), fields.climatology(x.chunk(time=100)))
    wanted = x.groupby("time.dayofyear") - x.groupby("time.dayofyear").mean()
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_labels_of_ones_own_and_integers_and_datasets():
    x = (field().fillna(0) * 10).astype("int32")
    halves = xr.DataArray(np.arange(40) % 2, dims="time", name="half")
    data = xr.Dataset({"a": x, "b": x * 2, "fixed": ("lat", np.arange(6))})
    usual = fields.climatology(data.chunk(time=7), halves)
    found = fields.anomalies(data.chunk(time=7), usual.drop_vars("fixed"), by=halves)
    wanted = x.values[::2] - x.values[::2].mean(axis=0)
    np.testing.assert_allclose(found["a"].values[::2], wanted, atol=1e-9)
    np.testing.assert_allclose(found["b"].values[::2], 2 * wanted, atol=1e-9)
    assert found["fixed"].values.tolist() == list(range(6))


def test_what_was_written_is_not_made_again(tmp_path):
    x = field(40, 2, 2).chunk(time=10)
    made = fields.anomalies(x, fields.climatology(x, "month")).data
    folder = write_zarr(made, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    # the same fields made again have the same fingerprints: nothing is written
    write_zarr(fields.anomalies(x, fields.climatology(x, "month")).data, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.rename(time="t"), "no dim 'time'. The array has: 't'"),
        (lambda x: x.isel(time=[0, 2, 1]), "is not monotonic: .*Sort it"),
        (lambda x: x.isel(time=[0, 1, 1]), "has 2000-01-26.* twice, at 1 and 2. Keep one of each"),
        (lambda x: x.drop_vars("time"), "'time' has no coordinate"),
        (lambda x: x.assign_coords(time=np.arange(40)), "no part 'month'"),
        (lambda x: x.isel(lat=slice(0, 0)), "no elements"),
        (lambda x: x.astype(str), "of type <U"),
        (lambda x: x.values, "takes an xarray.DataArray or Dataset, got a numpy.ndarray"),
    ],
)
def test_fields_that_cannot_be_used(change, message):
    with raise_if_computes(), pytest.raises(InputError, match=message):
        fields.climatology(change(field()), "month")


def test_climatologies_that_do_not_go_with_the_field():
    x = field().chunk(time=10)
    usual = fields.climatology(x, "month")
    with pytest.raises(InputError, match="has no month 2, 3"):
        fields.anomalies(x, usual.sel(month=[1]))
    with pytest.raises(InputError, match="calendar 'noleap', but the climatology was made of"):
        fields.anomalies(field(calendar="noleap").chunk(), usual)
    with pytest.raises(InputError, match="different cells along 'lat', 6 and 3"):
        fields.anomalies(x, usual.isel(lat=slice(0, 3)))
    with pytest.raises(InputError, match="one dim of groups in the place of 'time'"):
        fields.anomalies(x, x.mean("time"))
    with pytest.raises(InputError, match="statistic must be one of mean, std, count, got 'median'"):
        fields.climatology(x, "month", statistic="median")


def test_blocks_beyond_the_budget_are_refused_and_tiny_ones_warned_of():
    with (
        raise_if_computes(),
        pytest.raises(MemoryLimitError, match=r"Read smaller blocks, such as x.chunk\(\{'time': 10"),
    ):
        fields.climatology(field().chunk(), "month", memory=2000)
    one = field(4, 2, 2).chunk(time=1, lat=1, lon=1)
    with pytest.warns(
        UserWarning, match=r"in 16 blocks of one element.*x.chunk\(\{'time': 4, 'lat': 2, 'lon': 2\}\)"
    ):
        fields.climatology(one, "month")
