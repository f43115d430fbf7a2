"""Labelled arrays go all ways that tables go: fits, records, scores, folds, searches and pipelines."""

import numpy as np
import pytest
import xarray as xr
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge, SGDRegressor
from sklearn.metrics import r2_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.errors import UnsupportedEstimatorError
from dpipe.ledger.book import Ledger
from dpipe.ledger.stored import stored_as
from dpipe.train.fit import run_fit
from dpipe.train.prepare import prepare
from tests.helpers import raise_if_computes

DIMS = ("time", "lat", "lon")


def scene(seed=0):
    """Three variables, of which land has none; the last one follows from the others."""
    rng = np.random.default_rng(seed)
    sizes = {"time": 12, "lat": 4, "lon": 5}
    shape = tuple(sizes.values())
    coords = {"time": np.arange(12), "lat": [60.0, 20.0, -20.0, -60.0], "lon": np.arange(5) * 72.0}
    data = xr.Dataset({name: (DIMS, rng.normal(size=shape)) for name in "ab"}, coords=coords)
    data["y"] = data.a - 2 * data.b + 0.1 * rng.normal(size=shape)
    return data.where(~((data.lat > 30) & (data.lon < 100)))


DATA = scene()
LAZY = DATA.chunk(time=4)
ROWS = DATA.to_dataframe().dropna()
X_HELD, Y_HELD = ROWS[["a", "b"]], ROWS["y"]


def test_a_weight_for_each_latitude():
    weights = np.cos(np.deg2rad(DATA.lat))
    with raise_if_computes():
        assert dpipe.plan(Ridge(), LAZY, "y", weights, sample_dims=DIMS).n_passes == 1
    fitted = dpipe.fit(Ridge(), LAZY, "y", weights, sample_dims=DIMS)
    held = np.cos(np.deg2rad(ROWS.index.get_level_values("lat")))
    expected = Ridge().fit(X_HELD, Y_HELD, sample_weight=held)
    np.testing.assert_allclose(fitted.coef_, expected.coef_, rtol=1e-12)
    assert fitted.feature_names_in_.tolist() == ["a", "b"]


def test_an_ordered_learner_sees_the_blocks_in_their_order():
    fitted = dpipe.fit(SGDRegressor(random_state=0), LAZY, "y", sample_dims=DIMS)
    by_hand = SGDRegressor(random_state=0)
    for first in range(0, 12, 4):
        rows = ROWS.loc[first : first + 3]
        by_hand.partial_fit(rows[["a", "b"]], rows["y"])
    np.testing.assert_array_equal(fitted.coef_, by_hand.coef_)


def test_scores_and_folds_are_those_of_the_stacked_array():
    model = make_pipeline(StandardScaler(), Ridge())
    fitted = dpipe.fit(model, LAZY, "y", sample_dims=DIMS)
    wanted = r2_score(Y_HELD, fitted.predict(X_HELD))
    assert dpipe.score(fitted, LAZY, "y", sample_dims=DIMS) == pytest.approx(wanted)
    found = dpipe.cross_validate(model, LAZY, "y", cv=4, sample_dims=DIMS)
    np.testing.assert_allclose(found["test_score"], cross_val_score(model, X_HELD, Y_HELD, cv=4), rtol=1e-9)
    with pytest.raises(UnsupportedEstimatorError, match="SGDRegressor learns in its own order"):
        dpipe.cross_validate(make_pipeline(StandardScaler(), SGDRegressor()), LAZY, "y", sample_dims=DIMS)
    searched = dpipe.search(Ridge(), {"alpha": [0.1, 1e3]}, LAZY, "y", method="grid", sample_dims=DIMS)
    assert searched.best_params_ == {"alpha": 0.1}


def fit_on_record(workdir, estimator, X, y=None):
    notes = []
    prepared = prepare(estimator, X, y, sample_dims=DIMS)
    with Ledger(workdir) as ledger:
        fitted, tallies = run_fit(prepared, recorded=prepared.recorded(ledger, "fit", notes.append))
    return fitted, sum(tally.n_blocks - tally.n_recalled for tally in tallies), notes


@pytest.mark.parametrize("kind", ["zarr", "netcdf"])
def test_what_is_on_record_is_not_read_again(kind, tmp_path):
    def opened(data):
        if kind == "zarr":
            data.to_zarr(tmp_path / "store.zarr", mode="w", consolidated=False)
            return xr.open_zarr(tmp_path / "store.zarr", consolidated=False)
        data.to_netcdf(tmp_path / "scene.nc")
        return xr.open_dataset(tmp_path / "scene.nc", chunks={"time": 4})

    X = opened(LAZY)
    model = make_pipeline(StandardScaler(), PCA(1), KMeans(2, random_state=0, n_init=1))
    first, read, _ = fit_on_record(tmp_path / "run", model, X)
    assert read
    again, read, _ = fit_on_record(tmp_path / "run", model, X)
    assert read == 0
    np.testing.assert_array_equal(first[-1].cluster_centers_, again[-1].cluster_centers_)
    X.close()
    changed, read, notes = fit_on_record(tmp_path / "run", model, opened(scene(1).chunk(time=4)))
    assert read, notes
    assert not np.array_equal(first[-1].cluster_centers_, changed[-1].cluster_centers_)


def test_files_that_cannot_be_seen_are_not_taken_from_the_record(tmp_path):
    store = {}
    LAZY.to_zarr(store, consolidated=False)
    X = xr.open_zarr(store, consolidated=False)
    assert stored_as(opened_array(X)) is None
    for _ in range(2):
        _, read, notes = fit_on_record(tmp_path / "run", StandardScaler(), X)
        assert read == 3
        assert "nothing is recorded" in notes[0]


def opened_array(X):
    """What reads the variable `a` of a store."""
    tasks = dict(X.a.data.__dask_graph__())
    task = next(task for key, task in tasks.items() if "original" in str(key))
    array = getattr(task, "value", task)
    while hasattr(array, "array"):
        array = array.array
    return array


def test_a_pipeline_of_labelled_arrays(tmp_path):
    label = (DATA.y > 0).where(DATA.y.notnull()).astype(float)
    labelled = LAZY.assign(label=label.chunk(time=4)).drop_vars("y")
    train, test = labelled.isel(time=slice(8)), labelled.isel(time=slice(8, None))
    pipe = dpipe.Pipeline("scene", workdir=tmp_path / "run")
    with raise_if_computes():
        model = pipe.train(LogisticRegression(), train, target="label", sample_dims=DIMS)
        report = pipe.validate(model, test, scoring=["accuracy", "roc_auc"])
        pipe.deploy(model, report)
        assert "samples time x lat x lon" in str(pipe.plan())
    done = pipe.run(progress=False)
    assert done.metrics["accuracy"] > 0.9
    assert done.model.feature_names_in_.tolist() == ["a", "b"]
    found = dpipe.predict(done.model, test, sample_dims=DIMS)
    assert int(found.notnull().sum()) == int(test.a.notnull().sum())
    again = dpipe.Pipeline("scene", workdir=tmp_path / "run")
    again.train(LogisticRegression(), train, target="label", sample_dims=DIMS)
    assert "on record" in str(again.plan())


def test_in_memory_and_chunked_give_the_same():
    held = dpipe.fit(PCA(2), DATA, sample_dims=DIMS)
    lazy = dpipe.fit(PCA(2), LAZY, sample_dims=DIMS)
    np.testing.assert_allclose(held.components_, lazy.components_, rtol=1e-9)
    expected = PCA(2).fit(ROWS.reset_index(drop=True))
    np.testing.assert_allclose(np.abs(lazy.components_), np.abs(expected.components_), rtol=1e-9)


def test_eofs_of_a_field_weighted_by_area():
    """Known modes come back: the features are the cells, each weighted by the root of its area."""
    rng = np.random.default_rng(0)
    lat, lon = np.linspace(-80, 80, 9), np.arange(12) * 30.0
    modes = xr.DataArray(
        np.stack(
            [np.outer(np.ones(9), np.sin(np.deg2rad(lon))), np.outer(np.sin(np.deg2rad(lat)), np.ones(12))]
        ),
        dims=("mode", "lat", "lon"),
        coords={"lat": lat, "lon": lon},
    )
    series = xr.DataArray(rng.normal(size=(300, 2)) * [3.0, 1.0], dims=("time", "mode"))
    field = (series @ modes).chunk(time=64)
    root = np.sqrt(np.cos(np.deg2rad(field.lat)))
    fitted = dpipe.fit(PCA(2), field * root, sample_dims="time")
    eofs = dpipe.patterns(fitted, field, sample_dims="time") / root
    for i in range(2):
        found, wanted = eofs.isel(component=i).values.ravel(), modes.isel(mode=i).values.ravel()
        assert abs(np.corrcoef(found, wanted)[0, 1]) > 0.999
    values = (field * root).transpose("time", "lat", "lon").values.reshape(300, -1)
    singular = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(fitted.singular_values_, singular[:2], rtol=1e-7)
