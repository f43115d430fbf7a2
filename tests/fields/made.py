"""Made fields that the tests of this folder read."""

import numpy as np
import xarray as xr


def field(n_time=40, n_lat=6, n_lon=5, *, dtype="float64", calendar="standard", freq="D", seed=0):
    """A field with missing values, some of them everywhere in a cell."""
    rng = np.random.default_rng(seed)
    values = rng.normal(280.0, 5.0, (n_time, n_lat, n_lon)).astype(dtype)
    values[rng.random(values.shape) < 0.1] = np.nan
    values[:, 0, 0] = np.nan
    time = xr.date_range(
        "2000-01-25", periods=n_time, freq=freq, calendar=calendar, use_cftime=calendar != "standard"
    )
    coords = {"time": time, "lat": np.linspace(-50.0, 50.0, n_lat), "lon": 10.0 * np.arange(n_lon)}
    return xr.DataArray(values, dims=("time", "lat", "lon"), coords=coords, name="z", attrs={"units": "K"})
