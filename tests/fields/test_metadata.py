"""What files say of their values goes along: units, calendars, packing, cell methods, bounds and grid mappings."""

import numpy as np
import pytest
import xarray as xr
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

import dpipe
from dpipe import fields

ABOUT = {
    "units": "K",
    "long_name": "temperature",
    "standard_name": "air_temperature",
    "cell_methods": "time: mean",
    "grid_mapping": "crs",
}
PACKED = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32768}


def write(path, first, calendar):
    """A file of two years as models write them."""
    time = xr.date_range(first, periods=25, freq="MS", calendar=calendar, use_cftime=True)
    lat, lon = np.linspace(-60, 60, 5), np.arange(0, 360, 60.0)
    z = np.random.default_rng(0).normal(280, 5, (24, 5, 6)).round(2)
    z[:, 0, 0] = np.nan
    made = xr.Dataset(
        {
            "z": (("time", "lat", "lon"), z, ABOUT),
            "time_bnds": (("time", "nv"), np.stack([time[:-1].values, time[1:].values], 1)),
            "lat_bnds": (("lat", "nv"), np.stack([lat - 15, lat + 15], 1)),
            "crs": ((), np.int32(0), {"grid_mapping_name": "latitude_longitude"}),
        },
        coords={
            "time": ("time", time[:-1].values, {"standard_name": "time", "bounds": "time_bnds", "axis": "T"}),
            "lat": ("lat", lat, {"units": "degrees_north", "bounds": "lat_bnds"}),
            "lon": ("lon", lon, {"units": "degrees_east"}),
            "height": ((), 2.0, {"units": "m", "positive": "up"}),
        },
        attrs={"Conventions": "CF-1.10", "title": "made"},
    )
    told = {"units": "days since 1850-01-01", "calendar": calendar, "dtype": "float64"}
    made.to_netcdf(path, encoding={"z": PACKED, "time": told})


@pytest.fixture(params=["noleap", "standard"])
def opened(request, tmp_path):
    """Two files, opened as one."""
    (tmp_path / "files").mkdir()
    for first in (2000, 2002):
        write(tmp_path / "files" / f"{first}.nc", f"{first}-01-01", request.param)
    return dpipe.open_netcdf(tmp_path / "files")


def said(variable):
    """What a variable says of itself."""
    plain = {name: np.asarray(value).tolist() for name, value in variable.attrs.items()}
    # bounds have the units of what they bound, by the conventions, and need not repeat them
    return {name: value for name, value in plain.items() if name != "units" or variable.dims[-1:] != ("nv",)}


def assert_agree(found, wanted):
    """Compare values, what is said of them, and their calendar."""
    assert set(found.variables) == set(wanted.variables)
    assert set(found.coords) == set(wanted.coords) or set(found.coords) < set(wanted.coords)
    for name in wanted.variables:
        assert said(found[name].variable) == said(wanted[name].variable), name
        if wanted[name].dtype.kind == "f":
            np.testing.assert_allclose(found[name], wanted[name], atol=1e-9, err_msg=str(name))
        else:
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=str(name))
    assert found["time"].dt.calendar == wanted["time"].dt.calendar


def every_way(dataset, folder):
    """Write a dataset in each way, and open what was written."""
    dataset.to_netcdf(folder / "out.nc")
    yield dpipe.open_netcdf(folder / "out.nc")
    with xr.open_dataset(folder / "out.nc") as found:
        yield found
    dataset.to_zarr(folder / "plain.zarr", consolidated=False, mode="w")
    yield dpipe.open_zarr(folder / "plain.zarr")
    dpipe.rechunk(dataset, folder / "chunked.zarr", chunks={"time": 12})
    yield dpipe.open_zarr(folder / "chunked.zarr")


def test_files_to_stores_and_back(opened, tmp_path):
    assert opened["z"].attrs == ABOUT
    assert {name: opened["z"].encoding[name] for name in PACKED} == PACKED
    for found in every_way(opened, tmp_path):
        assert_agree(found, opened)
        assert {name: found["z"].encoding[name] for name in PACKED} == PACKED


def test_a_store_that_grows(opened, tmp_path):
    dpipe.rechunk(opened.isel(time=slice(30)), tmp_path / "grown.zarr", chunks={"time": 12})
    dpipe.append_zarr(opened.isel(time=slice(30, None)), tmp_path / "grown.zarr")
    assert_agree(dpipe.open_zarr(tmp_path / "grown.zarr"), opened)


def test_transformed_and_back(opened, tmp_path):
    z = opened["z"].isel(lat=slice(1, None))
    pca = dpipe.fit(PCA(24), z, sample_dims="time")
    series = dpipe.transform(pca, z, sample_dims="time")
    assert said(series["time"].variable) == said(z["time"].variable)
    back = dpipe.inverse_transform(pca, series, z, sample_dims="time")
    assert back.attrs == ABOUT
    assert dpipe.patterns(pca, z, sample_dims="time")["lat"].attrs == z["lat"].attrs
    for found in every_way(back.to_dataset(name="z"), tmp_path):
        assert_agree(found, back.to_dataset(name="z"))
        np.testing.assert_allclose(found["z"], z, atol=1e-9)


def test_a_map_of_clusters(opened, tmp_path):
    z = opened[["z"]].assign_coords(crs=opened["crs"])
    model = dpipe.fit(KMeans(2, n_init=1, random_state=0), z, sample_dims=("time", "lat", "lon"))
    labels = dpipe.predict(model, z, sample_dims=("time", "lat", "lon")).to_dataset(name="cluster")
    assert labels["cluster"].attrs["grid_mapping"] == "crs"
    for found in every_way(labels, tmp_path):
        assert_agree(found, labels)
        assert found["cluster"].encoding["dtype"] == np.int32


def test_what_is_computed_is_not_packed_as_what_it_was_computed_of(opened, tmp_path):
    z = opened["z"]
    usual, spread = (fields.climatology(z, "month", statistic=what) for what in ("mean", "std"))
    made = {
        "anomalies": fields.anomalies(z, usual),
        "detrended": fields.detrend(z),
        "smooth": fields.rolling(z, {"time": 3}),
        "back": fields.unpatch(fields.patches(z, {"lat": 2, "lon": 3}), z),
    }
    for found in every_way(xr.Dataset(made), tmp_path):
        assert_agree(found, xr.Dataset(made))
    assert all(each.attrs == ABOUT for each in made.values())
    pure = [
        fields.climatology(z, "month", statistic="count"),
        fields.anomalies(z, usual, scale=spread),
        fields.standardise(z, "time"),
        fields.rolling(z, {"time": 2}, "count"),
        fields.coarsen(z, {"lon": 2}, "count"),
    ]
    for each in pure:
        assert each.attrs["units"] == "1"
        assert "standard_name" not in each.attrs
    assert z.attrs == ABOUT


def test_units_of_lines_and_moments(opened):
    z = opened["z"]
    line, found = fields.trend(z), fields.moments(z, "time")
    assert line["slope"].attrs["units"] == "K day-1"
    assert line["intercept"].attrs == found["mean"].attrs == ABOUT
    assert fields.trend(z, "lat")["slope"].attrs["units"] == "K degrees_north-1"
    assert fields.trend(z.drop_vars("lat"), "lat")["slope"].attrs["units"] == "K"
    assert found["count"].attrs["units"] == "1"
