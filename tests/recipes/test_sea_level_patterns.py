"""From many NetCDF files to maps, where the answer is known."""

import numpy as np
import pytest
import xarray as xr
from sklearn.metrics import adjusted_rand_score

import dpipe
from dpipe.cli import main
from recipes.made_sea_level import SeaLevelError, known_truth, made_sea_level
from recipes.sea_level_patterns import sea_level_patterns
from tests.helpers import raise_if_computes

DAYS = 720


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made_sea_level(DAYS)


def check(maps):
    """Compare maps with what the fields were made of."""
    truth = known_truth(DAYS)
    sea = truth.patterns.isel(mode=0).notnull().values
    weights = np.cos(np.deg2rad(truth.patterns.lat.values))[:, None].repeat(24, axis=1)[sea]
    for known, found in zip(truth.patterns.values, maps["pattern"].values, strict=True):
        a, b = known[sea], found[sea]
        alike = (weights * a * b).sum() / np.sqrt((weights * a * a).sum() * (weights * b * b).sum())
        assert abs(alike) > 0.99
    assert np.isnan(maps["pattern"].values[:, ~sea]).all(), "land has no pattern"
    assert adjusted_rand_score(truth.regimes.values, maps["regime_of_day"].values) > 0.9
    for i in range(4):  # the mean of a regime is that of its days
        own = truth.regimes.values[maps["regime_of_day"].values == i]
        assert (own == np.bincount(own).argmax()).mean() > 0.9


def test_known_patterns_and_regimes_are_found(files, tmp_path):
    with raise_if_computes():
        pipe = sea_level_patterns(days=DAYS, workdir=str(tmp_path / "work"))
        plan = str(pipe.plan())
    assert "train (Pipeline) takes lat and lon as features" in plan
    run = pipe.run(progress=False)
    maps = dpipe.open_zarr(tmp_path / "work" / "maps.zarr").compute()
    check(maps)
    assert dpipe.verify(tmp_path / "work" / "maps.zarr").ok
    assert maps.attrs["Conventions"].startswith("CF")
    assert maps["pattern"].attrs["units"] == "m"
    assert maps["lat"].attrs["standard_name"] == "latitude"
    assert maps["strength"].dims == ("time", "component")
    bundle = dpipe.load(run.bundle)
    anomalies = dpipe.open_zarr(tmp_path / "work" / "stores" / "preprocess.zarr")["anomaly"]
    days = bundle.predict(anomalies, sample_dims="time").compute()
    np.testing.assert_array_equal(days, maps["regime_of_day"])


def test_from_the_command_line_on_files_of_ones_own(files, tmp_path, capsys):
    work = tmp_path / "work"
    arguments = [f"source={files[0].parent}", f"workdir={work}"]
    assert main(["run", "recipes.sea_level_patterns", *arguments]) == 0
    check(dpipe.open_zarr(work / "maps.zarr").compute())
    assert "maps to" in (work / "report.html").read_text()


def test_what_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(SeaLevelError, match="days must be a whole number, 60 or more, but is 3"):
        made_sea_level(3, tmp_path)
    field = xr.DataArray(np.ones((60, 2, 2)), dims=("time", "y", "x"), name="sla").chunk()
    pipe_of = sea_level_patterns
    with pytest.raises(dpipe.DpipeError, match="of which none is a latitude"):
        pipe_of(field.assign_coords(time=known_truth(60).regimes.time).to_dataset(), workdir=str(tmp_path))
