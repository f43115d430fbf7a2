"""Chunks of labelled arrays become rows, and results go back to their cells."""

import numpy as np
import pandas as pd
import pytest

from dpipe.blocks.grid import Cells, GridLayout, GridRows, lacking, put_back


def two_chunks(values, at):
    """An array of dims (feature, lon, lat) cut in two along its features."""
    return [values[:at], values[at:]]


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("dtype", ["f8", ">f4", "i2", "?"])
def test_chunks_of_features_become_columns(at, dtype):
    values = (np.arange(24) % 7).reshape(3, 4, 2).astype(dtype)
    cells = Cells((2, 1, 0), (), (3,), ((slice(0, at),), (slice(at, 3),)))
    found = cells.columns(two_chunks(values, at), (2, 4))
    np.testing.assert_array_equal(found, values.transpose(2, 1, 0).reshape(8, 3))
    assert found.dtype == np.dtype(dtype).newbyteorder("=")


def test_one_chunk_in_the_order_of_the_samples_is_not_copied():
    values = np.arange(12.0).reshape(2, 2, 3)
    found = Cells((0, 1, 2), (), (3,), ((slice(0, 3),),)).columns([values], (2, 2))
    assert np.shares_memory(found, values)


def test_values_of_some_dims_hold_for_all_cells():
    cells = Cells(order=(0,), absent=(0, 2), shape=(), places=((),))
    found = cells.columns([np.array([1.0, 2.0])], (3, 2, 2))
    assert found[:, 0].tolist() == [1, 1, 2, 2] * 3


@pytest.mark.parametrize("missing", ["all", "any"])
@pytest.mark.parametrize("kind", ["array", "frame"])
def test_rows_that_lack_features(missing, kind):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    X[rng.random(X.shape) < 0.4] = np.nan
    X[0] = [np.inf, -np.inf, 1.0]
    wanted = getattr(np.isnan(X), missing)(axis=1)
    found = lacking(X if kind == "array" else pd.DataFrame(X), missing)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("missing", ["all", "any"])
def test_integers_lack_nothing(missing):
    assert not lacking(np.ones((3, 2), dtype=int), missing).any()
    assert not lacking(np.ones((0, 2)), missing).any()


def test_cells_without_target_are_left_out():
    one = Cells((0, 1), (), (1,), ((slice(0, 1),),))
    flat = Cells((0,), (), (), ((),))
    layout = GridLayout((one,), None, y=flat, w=flat, missing="all")
    X, y, w = np.arange(4.0)[:, None], np.array([0, np.nan, 2, 3]), np.array([1, 1, np.nan, 1])
    rows = layout.rows([[X], [y], [w]])
    assert (rows.X.tolist(), rows.y.tolist(), rows.w.tolist()) == ([[0], [3]], [0, 3], [1, 1])
    assert put_back(rows.y * 10, rows, np.dtype(float), -1).tolist() == [0, -1, -1, 30]


def test_results_of_several_columns_go_back():
    rows = GridRows(np.ones((1, 1)), None, None, np.array([False, True]), (1, 2))
    found = put_back(np.array([[1, 2]]), rows, np.dtype(np.float32), np.nan)
    np.testing.assert_array_equal(found, np.array([[[np.nan, np.nan], [1, 2]]], dtype=np.float32))
    whole = GridRows(np.ones((2, 1)), None, None, None, (1, 2))
    assert put_back(np.array([5, 6]), whole, np.dtype(int), None).tolist() == [[5, 6]]
