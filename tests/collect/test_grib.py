"""GRIB files open lazily, and equal what cfgrib reads."""

import numpy as np
import pytest
import xarray as xr

import dpipe
from dpipe.errors import SourceError
from tests.helpers import raise_if_computes

eccodes = pytest.importorskip("eccodes", reason="install what reads GRIB: pip install 'dpipe[grib]'")
pytest.importorskip("cfgrib", reason="install what reads GRIB: pip install 'dpipe[grib]'")


def write(path, first, n, names=("2t",)):
    with path.open("wb") as file:
        for day, name in ((day, name) for day in range(n) for name in names):
            message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
            said = {
                **{
                    "Ni": 5,
                    "Nj": 3,
                    "iDirectionIncrementInDegrees": 10.0,
                    "jDirectionIncrementInDegrees": 10.0,
                },
                **{"latitudeOfFirstGridPointInDegrees": 60.0, "latitudeOfLastGridPointInDegrees": 40.0},
                **{"longitudeOfFirstGridPointInDegrees": 0.0, "longitudeOfLastGridPointInDegrees": 40.0},
                **{"dataDate": first + day, "shortName": name, "bitmapPresent": 1, "missingValue": 9999.0},
            }
            for key, value in said.items():
                eccodes.codes_set(message, key, value)
            values = np.arange(15.0) + 250 + day
            values[3] = 9999.0
            eccodes.codes_set_values(message, values)
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)


def test_files_are_joined_and_equal_what_cfgrib_reads(tmp_path):
    write(tmp_path / "b.grib", 20000101, 4)
    write(tmp_path / "a.grib", 20000105, 2)
    with raise_if_computes():
        found = dpipe.open_grib(tmp_path, block_nbytes=200)
    assert found["t2m"].chunks == ((3, 3), (3,), (5,))
    wanted = xr.concat(
        [xr.open_dataset(tmp_path / f"{name}.grib", engine="cfgrib", indexpath="") for name in "ba"], "time"
    )
    assert np.isnan(wanted["t2m"].values[:, 0, 3]).all()
    np.testing.assert_array_equal(found["t2m"], wanted["t2m"])
    np.testing.assert_array_equal(found["valid_time"], wanted["valid_time"])
    for name in ("time", "latitude", "longitude"):
        np.testing.assert_array_equal(found[name], wanted[name])
    assert found["t2m"].attrs["units"] == "K"
    assert found["t2m"].dims == ("time", "latitude", "longitude")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.grib", "b.grib"], "no index is left"
    pipe = dpipe.Pipeline("grib", workdir=tmp_path / "work")
    pipe.collect(str(tmp_path / "*.grib"), store=True)
    pipe.run(progress=False)
    stored = dpipe.open_zarr(tmp_path / "work" / "stores" / "collect.zarr")
    np.testing.assert_array_equal(stored["t2m"], wanted["t2m"])


def test_what_is_wrong_is_named(tmp_path):
    (tmp_path / "no.grib").write_bytes(b"none")
    with pytest.raises(SourceError, match=r"no\.grib cannot be read as GRIB"):
        dpipe.open_grib(tmp_path / "no.grib")
    write(tmp_path / "two.grib", 20000101, 2, names=("2t", "10u"))
    with pytest.raises(SourceError, match=r"two\.grib cannot be read as GRIB.*filter_by_keys"):
        dpipe.open_grib(tmp_path / "two.grib")
    assert list(dpipe.open_grib(tmp_path / "two.grib", filter_by_keys={"shortName": "2t"})) == ["t2m"]
    with pytest.raises(SourceError, match="is not on this machine"):
        dpipe.open_grib("memory://a.grib")
