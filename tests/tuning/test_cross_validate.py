"""Cross-validation against scikit-learn's, given the same folds: several metrics, weights, blocks with gaps."""

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import sklearn
import xarray as xr
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDRegressor
from sklearn.model_selection import GridSearchCV, KFold, PredefinedSplit, cross_validate
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe import fields
from dpipe.errors import InputError, UnsupportedEstimatorError
from tests.helpers import raise_if_computes

RNG = np.random.default_rng(0)
X = RNG.normal(size=(240, 3)) + np.arange(3)
Y = X @ [1.0, -2.0, 0.5] + RNG.normal(size=240)
LABELS = (np.median(Y) < Y).astype(int)
W = RNG.uniform(0.1, 3.0, 240)
CHUNKS = (70, 1, 99, 70)
DX, DY, DL, DW = (da.from_array(values, chunks=(CHUNKS, *values.shape[1:])) for values in (X, Y, LABELS, W))
METRICS = ["r2", "neg_mean_squared_error", "neg_max_error"]
MODEL = make_pipeline(StandardScaler(), Ridge(0.5))


def assert_same(found, wanted, tolerance=1e-9):
    names = {name for name in wanted if name.startswith("test_")}
    assert names == set(found) - {"estimator"}
    for name in names:
        np.testing.assert_allclose(found[name], wanted[name], rtol=tolerance)


@pytest.mark.parametrize(
    "scoring", ["neg_mean_squared_error", METRICS, tuple(METRICS), {"a": "r2", "b": METRICS[1]}]
)
def test_several_metrics(scoring):
    wanted = cross_validate(MODEL, X, Y, cv=4, scoring=scoring)
    assert_same(dpipe.cross_validate(MODEL, DX, DY, cv=4, scoring=scoring), wanted)


def test_classes_and_the_fitted_estimators():
    scoring = ["accuracy", "neg_log_loss", "roc_auc"]
    wanted = cross_validate(GaussianNB(), X, LABELS, cv=3, scoring=scoring, return_estimator=True)
    found = dpipe.cross_validate(GaussianNB(), DX, DL, cv=3, scoring=scoring, return_estimator=True)
    assert_same(found, wanted)
    for mine, theirs in zip(found["estimator"], wanted["estimator"], strict=True):
        assert type(mine) is GaussianNB
        np.testing.assert_allclose(mine.theta_, theirs.theta_)


def with_weights(model, y, scoring, cv):
    """What scikit-learn finds where weights count in the fits and in the scores."""
    with sklearn.config_context(enable_metadata_routing=True):
        model.set_fit_request(sample_weight=True)
        scorers = {
            name: sklearn.metrics.get_scorer(name).set_score_request(sample_weight=True) for name in scoring
        }
        return cross_validate(model, X, y, cv=cv, scoring=scorers, params={"sample_weight": W})


@pytest.mark.parametrize(
    ("model", "y", "scoring"),
    [
        (Ridge(0.5), "Y", ["r2", "neg_mean_squared_error"]),
        (GaussianNB(), "LABELS", ["accuracy", "neg_log_loss"]),
        (LogisticRegression(tol=1e-10, max_iter=500), "LABELS", ["neg_log_loss"]),
    ],
)
def test_weights_count_in_fits_and_scores(model, y, scoring):
    values, lazy = {"Y": (Y, DY), "LABELS": (LABELS, DL)}[y]
    wanted = with_weights(sklearn.clone(model), values, scoring, 4)
    assert_same(dpipe.cross_validate(model, DX, lazy, DW, cv=4, scoring=scoring), wanted, 1e-6)


def test_a_search_by_folds_takes_weights():
    space = {"alpha": [0.01, 10.0, 1000.0]}
    found = dpipe.search(Ridge(), space, DX, DY, DW, method="grid", cv=3, scoring="neg_mean_squared_error")
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = sklearn.metrics.get_scorer("neg_mean_squared_error").set_score_request(sample_weight=True)
        wanted = GridSearchCV(Ridge().set_fit_request(sample_weight=True), space, cv=3, scoring=scorer)
        wanted.fit(X, Y, sample_weight=W)
    np.testing.assert_allclose(found.cv_results_["mean_test_score"], wanted.cv_results_["mean_test_score"])
    np.testing.assert_allclose(found.best_estimator_.coef_, wanted.best_estimator_.coef_)


def test_pairs_of_rows_with_a_gap():
    every = np.arange(240)
    pairs = [
        (every[(every < first - 7) | (every >= first + 47)], every[first : first + 40])
        for first in (0, 60, 150)
    ]
    wanted = cross_validate(MODEL, X, Y, cv=pairs, scoring=METRICS)
    assert_same(dpipe.cross_validate(MODEL, DX, DY, cv=pairs, scoring=METRICS), wanted)
    assert not np.allclose(
        wanted["test_r2"], cross_validate(MODEL, X, Y, cv=KFold(3), scoring=METRICS)["test_r2"]
    )
    frame = dd.from_pandas(pd.DataFrame(X, columns=list("abc")).assign(y=Y), npartitions=4)
    frame = frame[frame.a > -100]  # of unknown lengths
    assert_same(
        dpipe.cross_validate(MODEL, frame[["a", "b", "c"]], frame["y"], cv=iter(pairs), scoring=METRICS),
        wanted,
    )
    folds = PredefinedSplit(every % 3).split()
    assert_same(
        dpipe.cross_validate(MODEL, DX, DY, cv=folds),
        cross_validate(MODEL, X, Y, cv=PredefinedSplit(every % 3)),
    )


def scene():
    """Two variables of a sea with an island, and what follows from them."""
    rng = np.random.default_rng(3)
    dims = {"time": 60, "lat": 4, "lon": 6}
    coords = {
        "time": pd.date_range("2001-01-01", periods=60),
        "lat": np.linspace(-60, 60, 4),
        "lon": 10.0 * np.arange(6),
    }
    data = xr.Dataset(
        {name: (tuple(dims), rng.normal(size=tuple(dims.values()))) for name in "ab"}, coords=coords
    )
    data["y"] = data.a - 2 * data.b + rng.normal(size=tuple(dims.values()))
    return data.where(~((data.lat > 50) & (data.lon < 20)))


def by_hand(data, pairs, weights=None):
    """Cross-validate the rows of a scene in memory."""
    scores = []
    for sides in pairs:
        (train, w), (test, v) = (
            (rows, None if weights is None else rows.pop("w"))
            for rows in (
                side.assign(w=weights if weights is not None else 1.0)
                .to_dataframe()
                .dropna()[["a", "b", "y", "w"]]
                for side in sides
            )
        )
        model = Ridge(0.1).fit(train[["a", "b"]], train["y"], w)
        scores.append(model.score(test[["a", "b"]], test["y"], v))
    return np.array(scores)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunks", [{"time": 13}, {"time": 25, "lat": 3, "lon": 4}])
def test_folds_of_a_field_with_a_gap(weighted, chunks):
    data = scene()
    lazy = data.chunk(chunks)
    weights = np.cos(np.deg2rad(data["lat"])) if weighted else None
    for pairs in (
        fields.folds(data[["a", "b", "y"]], "time", 4, gap="3D"),
        fields.folds(data[["a", "b", "y"]], "time", 3, block="5D", gap="1D"),
        fields.folds(data[["a", "b", "y"]], ["lat", "lon"], 2, block={"lat": 41, "lon": 20}, gap=10),
    ):
        found = dpipe.cross_validate(
            Ridge(0.1),
            lazy,
            "y",
            weights,
            cv=pairs,
            sample_dims=("time", "lat", "lon"),
            return_estimator=True,
        )
        np.testing.assert_allclose(found["test_score"], by_hand(data, pairs, weights), rtol=1e-9)
        assert len(found["estimator"]) == len(pairs)


def test_a_search_takes_folds_of_rows_and_of_fields():
    every = np.arange(240)
    pairs = [(every[60:], every[:50]), (every[:100], every[120:])]
    space = {"alpha": [0.01, 500.0]}
    found = dpipe.search(Ridge(), space, DX, DY, method="grid", cv=pairs)
    wanted = GridSearchCV(Ridge(), space, cv=pairs).fit(X, Y)
    np.testing.assert_allclose(found.cv_results_["mean_test_score"], wanted.cv_results_["mean_test_score"])
    data = scene()
    pairs = fields.folds(data, "time", 3, gap="2D")
    dims = {"sample_dims": ("time", "lat", "lon")}
    found = dpipe.search(Ridge(), {"alpha": [0.1]}, data.chunk(time=20), "y", method="grid", cv=pairs, **dims)
    np.testing.assert_allclose(found.best_score_, by_hand(data, pairs).mean())


def test_folds_of_a_field_share_one_reading_and_a_record(tmp_path):
    data = scene().fillna(0.0)
    reads = []

    def read(block):
        reads.append(1)
        return block

    lazy = data.chunk(time=20)
    counted = lazy.assign(a=lazy.a.copy(data=lazy.a.data.map_blocks(read, meta=np.empty((0, 0, 0)))))
    pairs = fields.folds(lazy["a"], "time", 5, gap="2D")
    with_dask = dpipe.cross_validate(
        LinearRegression(), counted, "y", cv=pairs, sample_dims=("time", "lat", "lon"), scoring=METRICS[:2]
    )
    assert len(reads) == 2 * 3, "one reading for all fits, and one for all scores"
    stored = data.chunk(time=20)
    stored.to_zarr(tmp_path / "scene.zarr", consolidated=False)
    opened = xr.open_zarr(tmp_path / "scene.zarr", consolidated=False)
    options = {"sample_dims": ("time", "lat", "lon"), "scoring": METRICS[:2]}
    others = [fields.folds(lazy["a"], "time", 5, block="4D", random_state=seed) for seed in (1, 2)]
    for cv in (pairs, pairs, *others):
        found = dpipe.cross_validate(
            LinearRegression(), opened, "y", cv=cv, workdir=tmp_path / "run", **options
        )
        wanted = dpipe.cross_validate(LinearRegression(), opened, "y", cv=cv, **options)
        assert_same(found, wanted)
        if cv is pairs:
            assert_same(found, with_dask)


def test_other_rows_are_not_taken_from_the_record(tmp_path):
    frame = pd.DataFrame(X, columns=list("abc")).assign(y=Y)
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=60)
    rows = dpipe.read_parquet(tmp_path / "rows.parquet")
    for numbers in (np.arange(240) % 3, np.arange(240) // 5 % 3):
        cv = list(PredefinedSplit(numbers).split())
        found = dpipe.cross_validate(Ridge(), rows, "y", cv=cv, workdir=tmp_path / "run")
        assert_same(found, cross_validate(Ridge(), X, Y, cv=cv))


def test_bad_input():
    every = np.arange(240)
    data = scene().chunk(time=20)
    pairs = fields.folds(data["a"], "time", 3)
    touching = [(data.isel(time=slice(9)), data.isel(time=slice(8, 12)))] * 2

    def of_scene(data, cv):
        return lambda: dpipe.cross_validate(Ridge(), data, "y", cv=cv, sample_dims=("time", "lat", "lon"))

    cases = [
        (
            lambda: dpipe.cross_validate(Ridge(), DX, DY, cv=[(every, every)] * 2),
            "240 of the test places of split 0",
        ),
        (lambda: dpipe.cross_validate(Ridge(), DX, DY, cv=[(every, every)]), "cv holds 1 pairs"),
        (
            lambda: dpipe.cross_validate(Ridge(), DX, DY, cv=[(1, 2), (3, 4)]),
            "places of rows, integers from 0 on",
        ),
        (lambda: dpipe.cross_validate(Ridge(), DX, DY, cv=[([0.5], [1]), ([1], [0])]), "integers from 0 on"),
        (
            lambda: dpipe.cross_validate(Ridge(), DX, DY, cv=[5, 6]),
            "cv must hold pairs of training and test rows",
        ),
        (lambda: dpipe.cross_validate(Ridge(), DX, DY, scoring={"a": 3}), "scoring must name metrics"),
        (lambda: dpipe.cross_validate(Ridge(), DX, DY, scoring=["r3"]), "r3"),
        (
            lambda: dpipe.cross_validate(GaussianNB(), DX, DL, DW, scoring="roc_auc"),
            "roc_auc does not take sample_weight",
        ),
        (of_scene(data, [(every[:9], every[9:])] * 2), "cv holds a ndarray"),
        (of_scene(data.isel(time=slice(9)), pairs), "that X has not, such as 2001"),
        (of_scene(data, [(data, data)] * 2), "a side is all of X"),
        (of_scene(data, touching), "of the test places of split 0 are on its training side"),
        (lambda: dpipe.cross_validate(SGDRegressor(), DX, DY), "learns in its own order"),
    ]
    for call, said in cases:
        with raise_if_computes(), pytest.raises((InputError, UnsupportedEstimatorError), match=said):
            call()
    with pytest.raises(InputError, match="cv is of 200 rows, but the data has 240"):
        dpipe.cross_validate(
            Ridge(), DX, DY, cv=[(every[:100], every[100:200]), (every[100:200], every[:100])]
        )
