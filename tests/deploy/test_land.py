"""EOFs of fields with land: features without any value are left out in a pass, and put back in what is drawn."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from sklearn.decomposition import PCA
from sklearn.feature_selection import VarianceThreshold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.errors import InputError, MemoryLimitError
from tests.helpers import raise_if_computes

LATS, LONS, DAYS = 9, 11, 60
LAND = np.zeros((LATS, LONS), dtype=bool)
LAND[2:5, 3:8] = True
MODES = np.random.default_rng(1).normal(size=(4, LATS, LONS)) * np.array([9, 5, 3, 1.0]).reshape(-1, 1, 1)


@pytest.fixture(params=["exact", "wide"])
def way(request, monkeypatch):
    """Take the cross products of all features, and then a few directions at a time."""
    if request.param == "wide":
        monkeypatch.setattr("dpipe.families.decompose._NARROW", 50)
        monkeypatch.setattr("dpipe.families.decompose._EIGEN", 10**9)


def field(gaps=(), chunks=(16, 5, 11)):
    """Days of a field of the sea; `gaps` are further cells that are missing."""
    rng = np.random.default_rng(0)
    values = np.einsum("tk,kij->tij", rng.normal(size=(DAYS, 4)), MODES)
    values = (values + 0.1 * rng.normal(size=values.shape)).astype("f4")
    values[:, LAND] = np.nan
    values[3] = np.nan  # a day without data is left out
    for gap in gaps:
        values[gap] = np.nan
    coords = {"time": np.arange(DAYS), "lat": np.linspace(-40.0, 40.0, LATS), "lon": 30.0 * np.arange(LONS)}
    return xr.DataArray(da.from_array(values, chunks=chunks), coords, ("time", "lat", "lon"), "z")


def by_hand(x):
    """The cells that have data, on the days that have some."""
    return np.delete(x.values.reshape(DAYS, -1)[:, ~LAND.ravel()], 3, axis=0)


def test_eofs_leave_land_out_and_put_it_back(way):
    x = field()
    fitted = dpipe.fit(make_pipeline(VarianceThreshold(), PCA(3)), x, sample_dims="time")
    expected = PCA(3, svd_solver="full").fit(by_hand(x))
    assert fitted[-1].n_features_in_ == (~LAND).sum()
    np.testing.assert_allclose(fitted[-1].singular_values_, expected.singular_values_, rtol=1e-5)
    eofs = dpipe.patterns(fitted, x, sample_dims="time")
    np.testing.assert_array_equal(eofs.isnull().values, np.broadcast_to(LAND, (3, LATS, LONS)))
    np.testing.assert_allclose(np.abs(eofs.values[:, ~LAND]), np.abs(expected.components_), atol=1e-5)

    series = dpipe.transform(fitted, x, sample_dims="time")
    assert series.isnull().any("component").values.nonzero()[0].tolist() == [3]
    back = dpipe.inverse_transform(fitted, series, x, sample_dims="time")
    assert back.chunks == x.chunks
    np.testing.assert_array_equal(back.isnull().values, x.isnull().values)
    wanted = expected.inverse_transform(expected.transform(by_hand(x)))
    np.testing.assert_allclose(np.delete(back.values, 3, axis=0)[:, ~LAND], wanted, atol=1e-3)


def test_variables_of_a_dataset_have_land_of_their_own():
    x = field().to_dataset()
    few = x.z.isel(lon=slice(0, 3)).fillna(0.0).where(x.time != 3)
    x["u"] = few.rename(lon="few") ** 2
    fitted = dpipe.fit(make_pipeline(VarianceThreshold(), PCA(2)), x, sample_dims="time")
    eofs = dpipe.patterns(fitted, x, sample_dims="time")
    assert eofs.z.isnull().sum() == 2 * LAND.sum()
    assert not eofs.u.isnull().any()
    series = dpipe.transform(fitted, x, sample_dims="time")
    back = dpipe.inverse_transform(fitted, series, x, sample_dims="time").compute()
    assert back.z.isel(time=0).isnull().sum() == LAND.sum()
    assert not back.u.isel(time=0).isnull().any()


@pytest.mark.parametrize(
    "model",
    [
        make_pipeline(VarianceThreshold(), PCA(2)),
        make_pipeline(VarianceThreshold(), StandardScaler(), PCA(2)),
    ],
)
def test_a_cell_that_is_missing_on_some_days_is_named(model, way):
    x = field(gaps=[(7, 6, 4), (8, 6, 4), (8, 8, 1)])
    with pytest.raises(InputError, match=r"It is 2 of 99 features, the first at lat=20\.0, lon=120\.0"):
        dpipe.fit(model, x, sample_dims="time")
    with pytest.raises(
        InputError, match=r"PCA: X holds NaN .* left out by a VarianceThreshold\(\) before it"
    ):
        dpipe.fit(PCA(2), x, sample_dims="time")
    with pytest.raises(InputError, match=r"the first at z\[lat=20\.0, lon=120\.0\]"):
        dpipe.fit(model, x.to_dataset(), sample_dims="time")


def test_samples_are_left_out_instead_where_that_is_asked_for(way):
    sea = field(gaps=[(7, 6, 4)]).isel(lat=slice(5, None))
    fitted = dpipe.fit(PCA(2), sea, sample_dims="time", missing="any")
    whole = np.delete(sea.values.reshape(DAYS, -1), [3, 7], axis=0)
    expected = PCA(2, svd_solver="full").fit(whole)
    np.testing.assert_allclose(fitted.singular_values_, expected.singular_values_, rtol=1e-5)


def test_many_features_behind_the_threshold_take_the_way_of_wide_data():
    wide = xr.DataArray(da.zeros((5_000, 60_000), chunks=(100, 60_000), dtype="f4"), dims=("time", "cell"))
    with raise_if_computes():
        plan = str(dpipe.plan(make_pipeline(VarianceThreshold(), PCA(5)), wide, sample_dims="time"))
        assert "the cross products of 60,000 features" in plan
        with pytest.raises(MemoryLimitError, match=r"PCA\(n_components=None\) needs all components"):
            dpipe.plan(make_pipeline(VarianceThreshold(), PCA()), wide, sample_dims="time", memory="2 GiB")
