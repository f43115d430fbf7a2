"""Files of arrays are joined by their headers alone, equal what xarray reads, and are refused by name."""

import pickle
import warnings

import fsspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import dpipe
from dpipe.blocks.chunking import chosen_chunks, joined_chunks
from dpipe.blocks.netcdf3 import read_header
from dpipe.errors import InputError, SourceError
from dpipe.ledger.fingerprint import Fingerprinter
from tests.helpers import raise_if_computes

h5py = pytest.importorskip("h5py")
FORMATS = ["NETCDF3_CLASSIC", "NETCDF3_64BIT", "NETCDF4"]


def field(start="2000-01-01", n=4, **attrs):
    """Some days of a field, with two dimensions of space."""
    values = np.arange(n * 6.0).reshape(n, 2, 3) + pd.Timestamp(start).day_of_year
    coords = {
        "time": pd.date_range(start, periods=n),
        "lat": [10.0, 20.0],
        "lon": [0.0, 1.0, 2.0],
    }
    return xr.Dataset(
        {"t": (("time", "lat", "lon"), values, {"units": "K", **attrs})}, coords, {"title": "made"}
    )


def write(dataset, path, kind="NETCDF4", **encoding):
    """Write a file; how times are encoded is the file's own."""
    engine = "netcdf4" if kind == "NETCDF4" else "scipy"
    unlimited = ["time"] if "time" in dataset.dims else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # writers warn of what readers must bear
        dataset.to_netcdf(path, format=kind, engine=engine, unlimited_dims=unlimited, encoding=encoding)


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_opened_is_what_xarray_reads(tmp_path, kind):
    dataset = field().assign(
        many=(("time", "lat"), np.arange(8, dtype="int16").reshape(4, 2)),
        fixed=(("lat", "lon"), np.full((2, 3), 7, "float32")),
        bounds=(("time", "two"), pd.date_range("2000-01-01", periods=8).values.reshape(4, 2)),
        scalar=((), 5),
    )
    dataset = dataset.assign_coords(name=("lat", ["south", "north"]), area=(("lat", "lon"), np.ones((2, 3))))
    dataset["time"].attrs["bounds"] = "bounds"
    write(dataset, tmp_path / "a.nc", kind)
    with raise_if_computes():
        found = dpipe.open_netcdf(tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc", engine="netcdf4" if kind == "NETCDF4" else "scipy") as wanted:
        xr.testing.assert_equal(found.compute().reset_coords(), wanted.load().reset_coords())
        assert found["t"].attrs == wanted["t"].attrs
        assert found.attrs == wanted.attrs
        assert found["time"].encoding["units"] == wanted["time"].encoding["units"]
        assert {name: v.dtype for name, v in found.data_vars.items() if v.dtype.kind != "O"} == {
            name: wanted[name].dtype for name, v in found.data_vars.items() if v.dtype.kind != "O"
        }


@pytest.mark.parametrize("kind", FORMATS)
def test_files_are_put_in_order_and_joined(tmp_path, kind):
    starts = ["2000-01-09", "2000-01-01", "2000-01-05"]
    for i, start in enumerate(starts):
        write(field(start), tmp_path / f"{i}.nc", kind)
    with raise_if_computes():
        found = dpipe.open_netcdf(tmp_path)
    wanted = xr.concat([field(start) for start in sorted(starts)], "time")
    xr.testing.assert_identical(found.compute(), wanted)
    assert found["t"].chunks == ((12,), (2,), (3,)), "small files are one block"
    small = dpipe.open_netcdf(tmp_path, block_nbytes=4 * 48)
    assert small["t"].chunks[0] == (4, 4, 4)
    xr.testing.assert_identical(small.compute(), wanted)


def test_falling_coordinates_stay_falling(tmp_path):
    for i, lats in enumerate([[4.0, 3.0], [8.0, 7.0, 6.0]]):
        write(xr.Dataset({"t": ("lat", np.array(lats))}, {"lat": lats}), tmp_path / f"{i}.nc")
    found = dpipe.open_netcdf(tmp_path)
    assert found["lat"].values.tolist() == [8.0, 7.0, 6.0, 4.0, 3.0]
    assert found["t"].values.tolist() == [8.0, 7.0, 6.0, 4.0, 3.0]


def test_files_of_other_variables_are_merged(tmp_path):
    for start in ("2000-01-01", "2000-01-05"):
        write(field(start), tmp_path / f"t{start}.nc")
        write(field(start).rename(t="u"), tmp_path / f"u{start}.nc")
    found = dpipe.open_netcdf(tmp_path)
    assert sorted(found.data_vars) == ["t", "u"]
    np.testing.assert_array_equal(found["t"], found["u"])


def test_each_file_is_decoded_by_its_own_packing(tmp_path):
    packings = [{"scale_factor": 0.5, "add_offset": 0.0}, {"scale_factor": 0.1, "add_offset": 500.0}]
    for i, packing in enumerate(packings):
        packing = {"dtype": "int16", "_FillValue": -999, **packing}
        dataset = field(f"2000-01-{1 + 4 * i:02d}")
        write(dataset.where(dataset["t"] != 3), tmp_path / f"{i}.nc", t=packing)
    found = dpipe.open_netcdf(tmp_path)
    wanted = xr.concat([field("2000-01-01"), field("2000-01-05")], "time")
    np.testing.assert_allclose(found["t"], wanted["t"].where(wanted["t"] != 3), atol=0.06)
    assert "scale_factor" not in found["t"].encoding, "the first file's packing would overflow"
    assert dpipe.open_netcdf(tmp_path / "0.nc")["t"].encoding["scale_factor"] == 0.5


def test_stored_chunks_are_joined_and_never_cut(tmp_path):
    write(field(n=10), tmp_path / "a.nc", t={"chunksizes": (3, 2, 3), "zlib": True})
    chunks = dpipe.open_netcdf(tmp_path / "a.nc", block_nbytes=7 * 48)["t"].chunks
    assert chunks == ((6, 4), (2,), (3,))
    assert dpipe.open_netcdf(tmp_path / "a.nc", block_nbytes=1)["t"].chunks[0] == (3, 3, 3, 1)
    write(field(n=10), tmp_path / "b.nc", "NETCDF3_CLASSIC")
    assert dpipe.open_netcdf(tmp_path / "b.nc", block_nbytes=7 * 48)["t"].chunks[0] == (7, 3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 70)), min_size=1, max_size=4),
    st.sampled_from([1, 4, 8]),
    st.integers(1, 5000),
)
def test_blocks_are_whole_chunks_and_small_enough(axes, itemsize, limit):
    shape, stored = zip(*axes, strict=True)
    block = joined_chunks(shape, stored, itemsize, limit)
    one = [min(s, n) for s, n in zip(stored, shape, strict=True)]
    for size, unit, n in zip(block, one, shape, strict=True):
        assert size == n or size % unit == 0
    assert np.prod(block) * itemsize <= max(limit, np.prod(one) * itemsize)
    target = chosen_chunks(shape, {0}, itemsize, limit)
    assert target[0] == shape[0]
    assert np.prod(target) * itemsize <= max(limit, shape[0] * itemsize)


def test_groups_and_plain_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(12.0).reshape(3, 4)
        file["square"] = np.arange(9).reshape(3, 3)
        file["inside/z"] = np.ones(5)
        file["inside"].attrs["about"] = np.bytes_("here")
        file["records"] = np.zeros(3, dtype=[("a", "i4")])
    found = dpipe.open_netcdf(tmp_path / "a.h5")
    assert (
        dict(found.sizes) == {"dim_0": 3, "dim_1": 4, "dim_2": 3}
        or found["square"].dims[0] != found["square"].dims[1]
    )
    np.testing.assert_array_equal(found["square"], np.arange(9).reshape(3, 3))
    inside = dpipe.open_netcdf(tmp_path / "a.h5", group="inside")
    assert inside["z"].sum() == 5
    assert inside.attrs == {"about": "here"}
    with pytest.raises(SourceError, match=r"a\.h5 cannot be read.*nowhere"):
        dpipe.open_netcdf(tmp_path / "a.h5", group="nowhere")


@pytest.mark.parametrize("kind", FORMATS)
def test_files_of_an_object_store(tmp_path, kind):
    write(field(), tmp_path / "a.nc", kind)
    with fsspec.open("memory://arrays/a.nc", "wb") as file:
        file.write((tmp_path / "a.nc").read_bytes())
    found = dpipe.open_netcdf("memory://arrays/a.nc")
    xr.testing.assert_identical(found.compute(), field())


def test_other_calendars_and_times_of_their_own_units(tmp_path):
    for i in range(2):
        times = xr.date_range("2000-02-28", periods=2, calendar="noleap", use_cftime=True)
        times = times + pd.Timedelta(days=365 * i)
        dataset = xr.Dataset({"t": ("time", [1.0, 2.0])}, {"time": times})
        write(
            dataset,
            tmp_path / f"{i}.nc",
            time={"units": f"days since {2000 + i}-01-01", "calendar": "noleap"},
        )
    found = dpipe.open_netcdf(tmp_path)
    assert [str(value)[:10] for value in found["time"].values] == [
        "2000-02-28",
        "2000-03-01",
        "2001-02-28",
        "2001-03-01",
    ]
    write(field("2003-01-01").drop_vars(["lat", "lon"]), tmp_path / "2.nc")
    with pytest.raises(
        SourceError, match=r"2\.nc: the calendar of 'time' is .*, but that of .*0\.nc is 'noleap'"
    ):
        dpipe.open_netcdf(tmp_path)


def _several(change):
    first, second = field("2000-01-01"), field("2000-01-05")
    return [first, change(second)]


def _swapped(dataset):
    return dataset.isel(time=[0, 2, 1, 3])


@pytest.mark.parametrize(
    ("datasets", "says"),
    [
        (
            _several(_swapped),
            r"1\.nc: the coordinate 'time' is not monotonic: 2000-01-06.* at 2 comes after 2000-01-07",
        ),
        (
            _several(lambda d: d.isel(time=[0, 0, 1])),
            r"1\.nc: the coordinate 'time' has 2000-01-05.* twice, at 0 and 1",
        ),
        (
            _several(lambda d: d.assign_coords(lat=[10.0, 20.5])),
            r"1\.nc does not align with .*0\.nc along 'lat': 20\.5 instead",
        ),
        (
            _several(lambda d: d.isel(lon=[0, 1])),
            r"1\.nc does not align with .*0\.nc along 'lon': it has 2 values instead of 3",
        ),
        (_several(lambda d: d.assign(u=d["t"])), r"0\.nc has no variable 'u', which .*1\.nc has"),
        (
            _several(lambda d: d.assign(t=d["t"].assign_attrs(units="degC"))),
            r"1\.nc: 't' is in 'degC', but in 'K' in .*0\.nc",
        ),
        (
            _several(lambda d: d.assign_coords(time=d["time"] - pd.Timedelta(days=2))),
            r"1\.nc overlaps with .*0\.nc along 'time'",
        ),
        (_several(lambda d: field("2000-01-01")), r"1\.nc holds the same coordinates as .*0\.nc"),
        (
            _several(lambda d: d.transpose("lat", "time", "lon")),
            r"1\.nc: 't' has the dimensions \('lat', 'time', 'lon'\)",
        ),
        (_several(lambda d: d.drop_vars("lat")), r"1\.nc has no coordinate 'lat', which .*0\.nc has"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, datasets, says):
    for i, dataset in enumerate(datasets):
        write(dataset, tmp_path / f"{i}.nc")
    with pytest.raises(SourceError, match=says):
        dpipe.open_netcdf(tmp_path)


def test_types_that_no_type_holds(tmp_path):
    write(field().astype("float64"), tmp_path / "0.nc")
    write(field("2000-01-05").astype("int64"), tmp_path / "1.nc")
    with pytest.raises(SourceError, match=r"1\.nc: 't' is of type int64, but float64 in .*0\.nc"):
        dpipe.open_netcdf(tmp_path)
    write(field("2000-01-05").astype("float32"), tmp_path / "1.nc")
    assert dpipe.open_netcdf(tmp_path)["t"].dtype == np.float64


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"CDF\x01 cut")
    with pytest.raises(SourceError, match=r"a\.nc cannot be read as NetCDF or HDF5: its header is cut short"):
        dpipe.open_netcdf(tmp_path)
    (tmp_path / "a.nc").write_bytes(b"something else")
    with pytest.raises(SourceError, match=r"a\.nc is neither NetCDF nor HDF5: it begins with b'some"):
        dpipe.open_netcdf(tmp_path)
    with pytest.raises(SourceError, match="No NetCDF or HDF5 file"):
        dpipe.open_netcdf([])
    with pytest.raises(InputError, match="paths is 5; it must be a path"):
        dpipe.open_netcdf(5)
    write(field(), tmp_path / "a.nc")
    with pytest.raises(InputError, match="concat_dim='day' is no dimension.*'time', 'lat', 'lon'"):
        dpipe.open_netcdf(tmp_path, concat_dim="day")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_changes_or_is_cut_is_named(tmp_path, kind):
    path = tmp_path / "a.nc"
    write(field(n=2000), path, kind)
    found = dpipe.open_netcdf(path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(SourceError, match=r"a\.nc has changed since it was listed"):
        found["t"].compute()
    with pytest.raises(SourceError, match=r"a\.nc"):
        dpipe.open_netcdf(path)["t"].compute()


def test_tasks_travel_and_have_fingerprints(tmp_path):
    write(field(), tmp_path / "a.nc")
    lazy = dpipe.open_netcdf(tmp_path)["t"].data
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy)).compute(), field()["t"])
    (task,) = dict(lazy.__dask_graph__()).values()
    again = dpipe.open_netcdf(tmp_path)["t"].data
    (same,) = dict(again.__dask_graph__()).values()
    assert Fingerprinter().of(task) == Fingerprinter().of(same)
    write(field() + 1, tmp_path / "a.nc")
    (other,) = dict(dpipe.open_netcdf(tmp_path)["t"].data.__dask_graph__()).values()
    assert Fingerprinter().of(task) != Fingerprinter().of(other)


def test_a_header_that_is_longer_than_what_is_read_first(tmp_path):
    write(field().assign_attrs(history="x" * 200_000), tmp_path / "a.nc", "NETCDF3_CLASSIC")
    content = (tmp_path / "a.nc").read_bytes()
    found, attrs = read_header(lambda start, stop: content[start:stop])
    assert len(attrs["history"]) == 200_000
    assert {variable.name for variable in found} == {"t", "time", "lat", "lon"}


def test_the_real_file(shared_data):
    path = shared_data / "eraint_uvz.nc"
    found = dpipe.open_netcdf(path, block_nbytes="1 MiB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # xarray warns of a mark of missing values that no integer can be
        with xr.open_dataset(path, engine="scipy") as wanted:
            xr.testing.assert_equal(found.compute(), wanted.load())
