"""`dpipe.quantile` is numpy's and pandas', on data in blocks."""

import dask.array as da
import numpy as np
import pandas as pd
import pytest

import dpipe
from dpipe.errors import InputError
from dpipe.families.quantile import METHODS
from tests.kernel_cases import UNEVEN, array_blocks, awkward_frame, in_blocks

NUMBERS = ["plain", "more", "holes", "whole"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_numpy(method):
    values = awkward_frame()[["plain", "whole"]].to_numpy(dtype=float)
    shares = [0.0, 0.1, 0.25, 0.5, 2 / 3, 0.9, 1.0]
    found = dpipe.quantile(array_blocks(values), shares, method=method)
    np.testing.assert_array_equal(found, np.quantile(values, shares, axis=0, method=method))


@pytest.mark.parametrize("q", [0.5, [0.25, 0.5, 0.75]])
def test_frames_give_frames(q):
    frame = awkward_frame()[NUMBERS]
    found, expected = dpipe.quantile(in_blocks(frame), q), frame.quantile(q)
    assert_same = (
        pd.testing.assert_series_equal if isinstance(expected, pd.Series) else pd.testing.assert_frame_equal
    )
    assert_same(found, expected, check_index_type=False)


def test_many_blocks_are_looked_at_in_part_first():
    values = np.random.default_rng(0).normal(size=(40_000, 3))
    X = da.from_array(values, chunks=(1000, 3))
    np.testing.assert_array_equal(dpipe.quantile(X, [0.1, 0.5]), np.quantile(values, [0.1, 0.5], axis=0))


def test_blocks_of_unknown_length_are_read_whole():
    frame = awkward_frame()[NUMBERS]
    X = in_blocks(frame, UNEVEN).to_dask_array()
    np.testing.assert_array_equal(dpipe.quantile(X), np.nanquantile(frame.to_numpy(dtype=float), 0.5, axis=0))


def test_nothing_observed_is_nan():
    assert np.isnan(dpipe.quantile(da.full((20, 1), np.nan, chunks=(5, 1)))).all()


@pytest.mark.parametrize("q", [-0.1, 1.5, [], [0.5, np.nan], [[0.5]]])
def test_what_is_no_share_is_refused(q):
    with pytest.raises(InputError, match="between 0 and 1"):
        dpipe.quantile(da.ones((4, 2)), q)


def test_an_unknown_method_and_texts_are_refused():
    with pytest.raises(InputError, match="method must be one of linear"):
        dpipe.quantile(da.ones((4, 2)), method="nearest?")
    with pytest.raises(InputError, match="'text' is not numeric"):
        dpipe.quantile(in_blocks(awkward_frame()[["text"]]))
