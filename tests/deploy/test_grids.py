"""What comes out of labelled arrays has their dims, coordinates, attributes and chunks."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

import dpipe
from dpipe.errors import InputError
from tests.helpers import raise_if_computes

DIMS = ("time", "lat", "lon")
SAMPLES = (6, 4, 5)


def cube():
    """A field of three bands, whose first dim is a feature; two cells of it are land."""
    rng = np.random.default_rng(0)
    X = xr.DataArray(
        rng.normal(size=(3, *SAMPLES)) * np.array([1.0, 5.0, 0.2])[:, None, None, None],
        dims=("band", *DIMS),
        coords={
            "band": ["red", "green", "blue"],
            "time": pd.date_range("2020-01-01", periods=6),
            "lat": [60.0, 20.0, -20.0, -60.0],
            "lon": np.arange(5.0) * 72,
            "area": (("lat", "lon"), np.ones((4, 5))),
            "crs": 0,
        },
        name="reflectance",
        attrs={"units": "1", "grid_mapping": "crs"},
    )
    X.lat.attrs["units"] = "degrees_north"
    land = (X.lat == 20.0) & (X.lon < 100.0)
    return X.where(~land)


X = cube()
LAZY = X.chunk(band=2, time=4, lat=2)
DATA = xr.Dataset({str(b.band.values): b.drop_vars("band") for b in X}, attrs={"title": "a scene"})
LAZY_DATA = DATA.chunk(time=4, lat=2)
CHUNKS = ((4, 2), (2, 2), (5,))
HELD = X.stack(sample=DIMS).transpose("sample", "band").values
KEPT = ~np.isnan(HELD).all(axis=1)
ROWS = HELD[KEPT]
LABELS = (ROWS[:, 0] > 0).astype(np.int32)


def in_cells(values, fill=np.nan):
    """Results of the rows where their cells are."""
    out = np.full((len(HELD), *values.shape[1:]), fill, dtype=np.result_type(values, type(fill)))
    out[KEPT] = values
    return out.reshape(*SAMPLES, *values.shape[1:])


def check_samples(found):
    for name in ("time", "lat", "lon", "area", "crs"):
        assert found[name].variable.identical(X[name].variable)


@pytest.mark.parametrize("X", [LAZY, X], ids=["chunked", "in memory"])
def test_a_map_of_clusters(X):
    fitted = KMeans(3, random_state=0, n_init=1).fit(ROWS)
    with raise_if_computes():
        found = dpipe.predict(fitted, X, sample_dims=DIMS)
    assert (found.dims, found.name, found.dtype) == (DIMS, "prediction", np.float64)
    assert found.chunks == (None if X.chunks is None else CHUNKS)
    check_samples(found)
    np.testing.assert_array_equal(found, in_cells(fitted.predict(ROWS)))
    assert found.attrs["flag_values"].tolist() == [0, 1, 2]
    assert found.attrs["flag_meanings"] == "cluster_0 cluster_1 cluster_2"
    assert found.attrs["grid_mapping"] == "crs"


def test_written_to_a_file_clusters_are_integers(tmp_path):
    fitted = KMeans(3, random_state=0, n_init=1).fit(ROWS)
    found = dpipe.predict(fitted, LAZY, sample_dims=DIMS).compute()
    found.to_netcdf(tmp_path / "map.nc")
    with xr.open_dataset(tmp_path / "map.nc", mask_and_scale=False, decode_coords=False) as raw:
        assert raw["prediction"].dtype == np.int32
    with xr.open_dataset(tmp_path / "map.nc") as again:
        np.testing.assert_array_equal(again["prediction"], found)


def test_without_gaps_labels_stay_integers():
    full = LAZY.fillna(0.0)
    fitted = LogisticRegression().fit(ROWS, LABELS)
    found = dpipe.predict(fitted, full, sample_dims=DIMS, missing="keep")
    assert found.dtype == np.int32
    assert "_FillValue" not in found.encoding
    assert found.attrs["flag_values"].tolist() == [0, 1]


def test_labels_that_are_texts():
    words = np.array(["no", "yes"])[LABELS]
    fitted = LogisticRegression().fit(ROWS, words)
    found = dpipe.predict(fitted, LAZY, sample_dims=DIMS)
    np.testing.assert_array_equal(found, in_cells(fitted.predict(ROWS), ""))


@pytest.mark.parametrize("method", ["predict_proba", "predict_log_proba"])
def test_probabilities_have_a_dim_of_classes(method):
    fitted = LogisticRegression().fit(ROWS, np.array(["no", "yes"])[LABELS])
    with raise_if_computes():
        found = dpipe.predict(
            fitted, LAZY.transpose("lon", "time", "band", "lat"), method=method, sample_dims=DIMS
        )
    assert found.dims == ("lon", "time", "lat", "class")
    assert found["class"].values.tolist() == ["no", "yes"]
    wanted = in_cells(getattr(fitted, method)(ROWS))
    np.testing.assert_allclose(found.transpose(*DIMS, "class"), wanted, rtol=1e-12)


def test_several_targets_and_mixtures():
    fitted = LinearRegression().fit(ROWS, ROWS[:, :2])
    found = dpipe.predict(fitted, LAZY, sample_dims=DIMS)
    assert found.dims == (*DIMS, "output")
    np.testing.assert_allclose(found, in_cells(ROWS[:, :2]), atol=1e-12)
    mixture = GaussianMixture(2, random_state=0).fit(ROWS)
    assert dpipe.predict(mixture, LAZY, method="predict_proba", sample_dims=DIMS).dims == (*DIMS, "component")


def test_components_are_a_new_dim():
    fitted = PCA(2).fit(ROWS)
    with raise_if_computes():
        found = dpipe.transform(fitted, LAZY, sample_dims=DIMS)
    assert found.dims == (*DIMS, "component")
    assert found.chunks == (*CHUNKS, (2,))
    assert found.component.values.tolist() == ["pca0", "pca1"]
    check_samples(found)
    np.testing.assert_allclose(found, in_cells(fitted.transform(ROWS)), rtol=1e-12)


@pytest.mark.parametrize("kind", ["chunked", "in memory"])
def test_a_scaled_array_is_one_like_it(kind):
    given = LAZY if kind == "chunked" else X
    fitted = StandardScaler().fit(ROWS)
    with raise_if_computes():
        found = dpipe.transform(fitted, given, sample_dims=DIMS)
        back = dpipe.inverse_transform(fitted, found, given, sample_dims=DIMS)
    assert found.chunks == given.chunks
    assert back.chunks == given.chunks
    assert set(found.coords) == set(X.coords)
    wanted = ((X.transpose(*DIMS, "band") - fitted.mean_) / fitted.scale_).transpose("band", *DIMS)
    np.testing.assert_allclose(found, wanted)
    assert found.attrs == X.attrs
    check_samples(found)
    xr.testing.assert_allclose(back.compute(), X, rtol=1e-12)
    assert (back.attrs, back.name, back.lat.attrs) == (X.attrs, X.name, X.lat.attrs)


def test_a_scaled_data_set_is_one_like_it():
    fitted = StandardScaler().fit(pd.DataFrame(ROWS, columns=list(DATA)))
    with raise_if_computes():
        found = dpipe.transform(fitted, LAZY_DATA, sample_dims=DIMS)
        back = dpipe.inverse_transform(fitted, found, LAZY_DATA, sample_dims=DIMS)
    assert isinstance(found, xr.Dataset)
    assert list(found) == ["red", "green", "blue"]
    assert found.attrs == {"title": "a scene"}
    assert found.red.chunks == CHUNKS
    np.testing.assert_allclose(found.green, (DATA.green - fitted.mean_[1]) / fitted.scale_[1])
    xr.testing.assert_allclose(back.compute(), DATA, rtol=1e-12)
    assert back.red.attrs == DATA.red.attrs


def test_components_go_back_to_the_features():
    fitted = PCA().fit(ROWS)
    series = dpipe.transform(fitted, LAZY, sample_dims=DIMS)
    back = dpipe.inverse_transform(fitted, series, LAZY, sample_dims=DIMS)
    assert back.chunks == LAZY.chunks
    xr.testing.assert_allclose(back.compute(), X, atol=1e-12)
    assert back.attrs == X.attrs


@pytest.mark.parametrize("given", [LAZY, LAZY_DATA], ids=["array", "data set"])
def test_selected_features_keep_their_names(given):
    rows = pd.DataFrame(ROWS, columns=list(DATA)) if isinstance(given, xr.Dataset) else ROWS
    fitted = VarianceThreshold(0.5).fit(rows)
    found = dpipe.transform(fitted, given, sample_dims=DIMS)
    if isinstance(given, xr.Dataset):
        assert list(found) == ["red", "green"]
        np.testing.assert_array_equal(found.green, DATA.green)
    else:
        assert found.band.values.tolist() == ["red", "green"]
        xr.testing.assert_identical(found.compute(), X.isel(band=[0, 1]))


def test_variables_are_found_by_name():
    rows = pd.DataFrame(ROWS, columns=list(DATA))[["blue", "red"]]
    fitted = LinearRegression().fit(rows, ROWS[:, 1])
    more = LAZY_DATA.assign(when=LAZY_DATA.time, gaps=LAZY_DATA.red * np.nan)
    found = dpipe.predict(fitted, more, sample_dims=DIMS, missing="any")
    np.testing.assert_allclose(found, in_cells(fitted.predict(rows)))
    assert dpipe.score(fitted, more, "green", sample_dims=DIMS) == pytest.approx(
        fitted.score(rows, ROWS[:, 1])
    )
    with pytest.raises(InputError, match="X lacks 'blue'"):
        dpipe.predict(fitted, LAZY_DATA[["red"]], sample_dims=DIMS)
    with pytest.raises(InputError, match="whose features have no names.*fitted on 'blue', 'red'"):
        dpipe.predict(fitted, LAZY, sample_dims=DIMS)


def test_a_function_of_values_keeps_the_array_and_an_encoder_makes_features():
    found = dpipe.transform(FunctionTransformer(np.abs).fit(ROWS), LAZY, sample_dims=DIMS)
    xr.testing.assert_identical(found.compute(), abs(X).assign_attrs(X.attrs))
    classes = xr.Dataset({"cover": (DIMS, np.arange(120).reshape(SAMPLES) % 3)}).chunk(time=2)
    encoder = OneHotEncoder().fit(pd.DataFrame({"cover": [0, 1, 2]}))
    found = dpipe.transform(encoder, classes, sample_dims=DIMS)
    assert found.dims == (*DIMS, "feature")
    assert found.feature.values.tolist() == ["cover_0", "cover_1", "cover_2"]
    np.testing.assert_array_equal(found.argmax("feature"), classes.cover)


def test_a_block_of_land_only():
    land = LAZY.where(LAZY.lat < 0)
    found = dpipe.predict(KMeans(2, random_state=0, n_init=1).fit(ROWS), land, sample_dims=DIMS)
    assert np.isnan(found.sel(lat=[60.0, 20.0])).all()
    assert not np.isnan(found.sel(lat=[-20.0, -60.0])).any()


def test_patterns_lie_on_the_features():
    fields = X.isel(band=0, drop=True).fillna(0.0)
    values = fields.stack(cell=("lat", "lon")).values
    fitted = PCA(2).fit(values)
    with raise_if_computes():
        eofs = dpipe.patterns(fitted, fields.chunk(time=2), sample_dims="time")
    assert eofs.dims == ("component", "lat", "lon")
    np.testing.assert_array_equal(eofs, fitted.components_.reshape(2, 4, 5))
    xr.testing.assert_identical(eofs.lat.reset_coords(drop=True), X.lat.reset_coords(drop=True))
    np.testing.assert_array_equal(eofs.explained_variance_ratio, fitted.explained_variance_ratio_)


def test_patterns_with_land():
    """An imputer drops what is never there; the patterns have gaps where it was."""
    fields = X.isel(band=0, drop=True)
    values = fields.stack(cell=("lat", "lon")).values
    sea = ~np.isnan(values).all(axis=0)
    model = make_pipeline(SimpleImputer(), PCA(2))
    with pytest.warns(UserWarning, match="without any observed values"):
        fitted = model.fit(values)
    eofs = dpipe.patterns(fitted, fields, sample_dims="time")
    wanted = np.full((2, 20), np.nan)
    wanted[:, sea] = fitted[-1].components_
    np.testing.assert_array_equal(eofs, wanted.reshape(2, 4, 5))


def test_patterns_of_variables_and_of_one_target():
    rows = pd.DataFrame(ROWS, columns=list(DATA))
    centres = KMeans(2, random_state=0, n_init=1).fit(rows)
    found = dpipe.patterns(centres, DATA, sample_dims=DIMS)
    assert found.red.dims == ("cluster",)
    np.testing.assert_array_equal(found.blue, centres.cluster_centers_[:, 2])
    line = make_pipeline(StandardScaler(), LinearRegression()).fit(rows, ROWS[:, 0])
    np.testing.assert_array_equal(dpipe.patterns(line, DATA, sample_dims=DIMS).green, line[-1].coef_[1])


WRONG = {
    "no inverse": (lambda: dpipe.inverse_transform(KMeans(2).fit(ROWS), X, X, sample_dims=DIMS), "has no inverse"),
    "no labels": (lambda: dpipe.inverse_transform(PCA().fit(ROWS), ROWS, X, sample_dims=DIMS), "takes xarray objects"),
    "other features": (
        lambda: dpipe.inverse_transform(PCA().fit(ROWS), X, X.isel(band=[0]), sample_dims=DIMS),
        "like has 1 features, x0, but this PCA was fitted on 3",
    ),
    "other components": (
        lambda: dpipe.inverse_transform(PCA(2).fit(ROWS), X, X, sample_dims=DIMS),
        "X has 3 features, which this PCA cannot take back",
    ),
    "no patterns": (lambda: dpipe.patterns(StandardScaler().fit(ROWS), X, sample_dims=DIMS), "has no components_ or"),
    "patterns of others": (
        lambda: dpipe.patterns(make_pipeline(PCA(2), KMeans(2)).fit(ROWS), X, sample_dims=DIMS),
        "which are not the 3 features of like",
    ),
    "a dim is there": (
        lambda: dpipe.transform(PCA(2).fit(ROWS), X.rename(lat="component"), sample_dims=("time", "component", "lon")),
        "a new dim 'component', but X has one of this name",
    ),
    "width": (lambda: dpipe.transform(PCA(2).fit(ROWS[:, :2]), X, sample_dims=DIMS), "X has 3 columns, but this PCA"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    call, said = WRONG[case]
    with raise_if_computes(), pytest.raises(InputError, match=said):
        call()
