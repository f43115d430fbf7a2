"""Quantiles of rows that count by their weights: scikit-learn's, to the bit where the weights are whole numbers."""

import warnings

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import KBinsDiscretizer, SplineTransformer

import dpipe

ESTIMATORS = [
    KBinsDiscretizer(3, encode="ordinal", subsample=None),
    KBinsDiscretizer(4, encode="ordinal", subsample=None, quantile_method="inverted_cdf"),
    KBinsDiscretizer(3, encode="ordinal", strategy="uniform", subsample=None),
    KBinsDiscretizer(3, encode="ordinal", subsample=10, random_state=1),
    KBinsDiscretizer(2, encode="ordinal", strategy="kmeans", subsample=10, random_state=1),
    SplineTransformer(n_knots=3, knots="quantile"),
    SplineTransformer(n_knots=3),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 4)), min_size=12, max_size=40),
    cuts=st.sets(st.integers(1, 11), max_size=3),
)
def test_whole_weights_give_the_same_bits(estimator, rows, cuts):
    values, weights = np.array(rows, dtype=float).T
    # values of two rows or more count, and differ
    values[:2], weights[:2] = [-10.0, 10.0], 1.0
    at = [0, *sorted(cuts), len(values)]
    chunks = (tuple(int(n) for n in np.diff(at)), 1)
    X = da.from_array(values[:, None], chunks=chunks)
    w = da.from_array(weights, chunks=chunks[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of narrow bins
        ours = dpipe.fit(estimator, X, sample_weight=w)
        theirs = estimator.fit(values[:, None], sample_weight=weights)
    if isinstance(estimator, KBinsDiscretizer):
        np.testing.assert_array_equal(ours.bin_edges_[0], theirs.bin_edges_[0])
        assert ours.n_bins_.tolist() == theirs.n_bins_.tolist()
    else:
        np.testing.assert_array_equal(ours.bsplines_[0].t, theirs.bsplines_[0].t)
