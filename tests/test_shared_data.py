"""Real tables, with the gaps and the texts that they have: `dpipe.fit` is scikit-learn's own fit."""

import math
import warnings

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xarray as xr
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_selector, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, Ridge, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, OrdinalEncoder, StandardScaler

import dpipe
from tests.kernel_cases import assert_same


@pytest.fixture(scope="module")
def taxis(shared_data):
    frame = pd.read_csv(shared_data / "taxis.csv", parse_dates=["pickup", "dropoff"])
    return frame.assign(tipped=(frame["tip"] > 0).astype(int), hour=frame["pickup"].dt.hour)


@pytest.fixture(scope="module")
def diamonds(shared_data):
    return pd.read_csv(shared_data / "diamonds.csv")


@pytest.fixture(scope="module")
def flights(shared_data):
    with pa.memory_map(str(shared_data / "flights-200k.arrow")) as file:
        return pa.ipc.open_file(file).read_all().to_pandas()


def in_files(frame, folder, n):
    for i in range(n):
        part = frame.iloc[len(frame) * i // n : len(frame) * (i + 1) // n]
        part.to_parquet(folder / f"{i:02d}.parquet", index=False, row_group_size=1500)
    return dpipe.read_parquet(folder)


NUMBERS = ["passengers", "distance", "fare", "tolls", "hour"]
TEXTS = ["color", "payment", "pickup_borough", "dropoff_borough"]
ZONES = ["pickup_zone", "dropoff_zone"]


def taxi_columns(**options):
    text = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    gaps = make_pipeline(
        SimpleImputer(strategy="constant", fill_value="somewhere"),
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    )
    return ColumnTransformer(
        [
            ("num", make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS),
            ("text", text, TEXTS),
            ("zone", gaps, ZONES),
        ],
        **options,
    )


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["parquet", "frame"])
def test_taxis(taxis, kind, threshold, tmp_path):
    X = in_files(taxis, tmp_path, 3) if kind == "parquet" else dd.from_pandas(taxis, npartitions=5)
    estimator = taxi_columns(sparse_threshold=threshold)
    assert dpipe.plan(estimator, X).n_passes == 1
    result, expected = dpipe.fit(estimator, X), clone(estimator).fit(taxis)
    assert_same(result, expected)
    ours, theirs = result.transform(taxis), expected.transform(taxis)
    assert type(ours) is type(theirs)
    assert result.get_feature_names_out().tolist() == expected.get_feature_names_out().tolist()


def test_taxis_learned_in_order_from_text(taxis, tmp_path):
    """The learner sees what scikit-learn's own transformers give, block after block."""
    X = in_files(taxis, tmp_path, 3)
    model = make_pipeline(taxi_columns(), SGDClassifier(loss="log_loss", random_state=0))
    result = dpipe.fit(model, X, "tipped", epochs=2)
    columns = clone(model[0]).fit(taxis)
    by_hand = SGDClassifier(loss="log_loss", random_state=0)
    for _ in range(2):
        for i in range(3):
            part = taxis.iloc[len(taxis) * i // 3 : len(taxis) * (i + 1) // 3]
            by_hand.partial_fit(columns.transform(part), part["tipped"], classes=[0, 1])
    np.testing.assert_allclose(result[-1].coef_, by_hand.coef_, rtol=1e-6, atol=1e-8)
    assert (result.predict(taxis) == by_hand.predict(columns.transform(taxis))).all()


def test_taxis_from_csv(taxis, shared_data):
    X = dpipe.read_csv(shared_data / "taxis.csv", block_nbytes="200 kB")
    assert X.npartitions > 3
    estimator = (
        taxi_columns()
        .set_params(num=SimpleImputer())
        .set_params(
            transformers=[
                ("num", make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS[:-1]),
                *taxi_columns().transformers[1:],
            ]
        )
    )
    assert_same(dpipe.fit(estimator, X), clone(estimator).fit(pd.read_csv(shared_data / "taxis.csv")))


@pytest.mark.parametrize("last", [LinearRegression(), Ridge(alpha=3.0)])
def test_diamonds(diamonds, last, tmp_path):
    columns = make_column_transformer(
        (StandardScaler(), make_column_selector(dtype_include=np.number)),
        (OneHotEncoder(drop="first"), ["cut", "color", "clarity"]),
        sparse_threshold=0,
    )
    X = in_files(diamonds, tmp_path, 4)
    model = make_pipeline(columns, last)
    used = diamonds.drop(columns="price")
    result, expected = dpipe.fit(model, X, "price"), clone(model).fit(used, diamonds["price"])
    assert_same(result[0], expected[0])
    np.testing.assert_allclose(result[-1].coef_, expected[-1].coef_, rtol=1e-6)
    np.testing.assert_allclose(result.predict(used), expected.predict(used), rtol=1e-7, atol=1e-5)


def test_diamonds_by_their_ordered_categories(diamonds):
    quality = ["Fair", "Good", "Very Good", "Premium", "Ideal"]
    frame = diamonds.astype({"cut": pd.CategoricalDtype(quality, ordered=True), "color": "category"})
    estimator = make_column_transformer(
        (OrdinalEncoder(categories=[quality]), ["cut"]),
        (OrdinalEncoder(), ["color"]),
        (MinMaxScaler(), ["carat", "price"]),
        remainder="drop",
    )
    X = dd.from_pandas(frame, npartitions=7)
    assert_same(dpipe.fit(estimator, X), clone(estimator).fit(frame))


def test_flights(flights, tmp_path):
    X = in_files(flights, tmp_path, 4)
    late = (flights["delay"] > 15).astype(int)
    names = [name for name in flights if name != "delay"]
    model = make_pipeline(SimpleImputer(), MinMaxScaler(), StandardScaler(), GaussianNB())
    result = dpipe.fit(model, X[names], (X["delay"] > 15).astype(int))
    expected = clone(model).fit(flights[names], late)
    # scikit-learn's imputer adds up columns of single precision in single precision
    assert_same(result[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(result[-1].theta_, expected[-1].theta_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        result.predict_proba(flights[names]), expected.predict_proba(flights[names]), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("samples", "chunks"),
    [(("month", "level"), {"level": 1}), (("month", "level", "latitude"), {"level": 2, "latitude": 100})],
)
def test_eofs_weighted_by_area_are_those_of_a_direct_svd(shared_data, samples, chunks):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # xarray warns of a mark of missing values that no integer can be
        with xr.open_dataset(shared_data / "eraint_uvz.nc", chunks=chunks) as opened:
            z = opened.z.load()
    weighted = z * np.sqrt(np.cos(np.deg2rad(z.latitude.astype(float))).clip(0, None))
    features = [dim for dim in z.dims if dim not in samples]
    rows = weighted.transpose(*samples, *features).values.reshape(math.prod(z.sizes[d] for d in samples), -1)
    _, values, components = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    fitted = dpipe.fit(PCA(3), weighted.chunk(chunks), sample_dims=samples)
    np.testing.assert_allclose(fitted.singular_values_, values[:3], rtol=1e-6)
    signs = np.sign(np.einsum("ij,ij->i", fitted.components_, components[:3]))
    np.testing.assert_allclose(fitted.components_ * signs[:, None], components[:3], atol=1e-6)
