"""Labelled arrays in chunks drawn along every dim: fits and results are those of scikit-learn on the stacked array."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, SGDRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)

import dpipe

SIZES = {"time": 7, "band": 3, "lat": 4, "level": 2}
SAMPLES = ("time", "lat")
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=tuple(SIZES.values())) * np.array([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
LABELS = (VALUES[:, 0, :, 0] + 0.5 * RNG.normal(size=(7, 4)) > 0).astype(np.int64)
FIELD = xr.DataArray(
    VALUES, {"time": np.arange(7), "lat": np.linspace(-30, 30, 4)}, tuple(SIZES), "z", {"units": "K"}
)
CLASS = xr.DataArray(LABELS, {"time": FIELD.time, "lat": FIELD.lat}, SAMPLES)
STACKED = FIELD.transpose(*SAMPLES, "band", "level").values.reshape(28, 6)
STARTS = STACKED[[0, 9, 20]]

#: An estimator, what it says of the samples, and how close that is.
CASES = [
    (StandardScaler(), "transform", 1e-9),
    (MinMaxScaler(), "transform", 1e-12),
    (MaxAbsScaler(), "transform", 1e-12),
    (RobustScaler(), "transform", 1e-9),
    (QuantileTransformer(n_quantiles=9), "transform", 1e-7),
    (PowerTransformer(), "transform", 1e-4),
    (KBinsDiscretizer(3, encode="ordinal", quantile_method="averaged_inverted_cdf"), "transform", 0),
    (SimpleImputer(strategy="median"), "transform", 0),
    (SelectKBest(k=2), "transform", 0),
    (PCA(3, svd_solver="full"), "transform", 1e-7),
    (TruncatedSVD(2, algorithm="arpack", random_state=0), "transform", 1e-7),
    (make_pipeline(StandardScaler(), PCA(2, svd_solver="full")), "transform", 1e-7),
    (KMeans(3, init=STARTS, n_init=1), "predict", 0),
    (Ridge(), "predict", 1e-8),
    (GaussianNB(), "predict_proba", 1e-8),
    (LinearDiscriminantAnalysis(), "predict_proba", 1e-6),
    (LogisticRegression(), "predict_proba", 1e-3),
]


def cuts(n):
    """Three chunks at most, of any sizes from one element on, which add up to a length."""
    borders = st.sets(st.integers(1, n - 1), max_size=2).map(sorted)
    return borders.map(lambda found: tuple(np.diff([0, *found, n]).tolist()))


@st.composite
def chunked(draw):
    """The field and the labels, in the same chunks along the samples."""
    chunks = {dim: draw(cuts(n)) for dim, n in SIZES.items()}
    order = draw(st.permutations(SAMPLES))
    return FIELD.chunk(chunks), CLASS.chunk({dim: chunks[dim] for dim in SAMPLES}).transpose(*order)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("estimator", "method", "close"), CASES, ids=lambda value: type(value).__name__)
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(pair=chunked())
def test_results_in_any_chunks_are_those_of_the_stacked_array(estimator, method, close, pair):
    X, y = pair
    expected = clone(estimator).fit(STACKED, LABELS.ravel())
    fitted = dpipe.fit(estimator, X, y, sample_dims=SAMPLES)
    assert type(fitted) is type(expected)
    wanted = np.asarray(getattr(expected, method)(STACKED))
    apply = dpipe.transform if method == "transform" else dpipe.predict
    asked = {} if method == "transform" else {"method": method}
    found = apply(fitted, X, sample_dims=SAMPLES, **asked)
    assert [found.chunksizes[dim] for dim in SAMPLES] == [X.chunksizes[dim] for dim in SAMPLES]
    xr.testing.assert_equal(found.time, X.time)
    given = found.transpose(*SAMPLES, ...).values.reshape(28, *wanted.shape[1:])
    np.testing.assert_allclose(given, wanted, rtol=close, atol=10 * close)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(pair=chunked())
def test_there_and_back_again_in_any_chunks(pair):
    X, _ = pair
    fitted = dpipe.fit(PCA(6), X, sample_dims=SAMPLES)
    series = dpipe.transform(fitted, X, sample_dims=SAMPLES)
    back = dpipe.inverse_transform(fitted, series, X, sample_dims=SAMPLES)
    assert (back.dims, back.chunks, back.attrs) == (X.dims, X.chunks, X.attrs)
    xr.testing.assert_allclose(back, FIELD)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(pair=chunked())
def test_learning_in_order_equals_partial_fit_on_the_same_blocks(pair):
    X, y = pair
    fitted = dpipe.fit(SGDRegressor(random_state=0), X, y.astype(float), sample_dims=SAMPLES)
    by_hand = SGDRegressor(random_state=0)
    blocks = [
        [(end - size, end) for size, end in zip(n, np.cumsum(n), strict=True)]
        for n in (X.chunksizes[dim] for dim in SAMPLES)
    ]
    for first, last in blocks[0]:
        for low, high in blocks[1]:
            place = {"time": slice(first, last), "lat": slice(low, high)}
            rows = FIELD.isel(place).transpose(*SAMPLES, "band", "level").values.reshape(-1, 6)
            by_hand.partial_fit(rows, CLASS.isel(place).values.ravel().astype(float))
    np.testing.assert_allclose(fitted.coef_, by_hand.coef_, rtol=1e-12)
