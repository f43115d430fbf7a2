"""The memory that a pipeline is given is what functions of fields in its stages keep to."""

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.decomposition import PCA

import dpipe
from dpipe.errors import MemoryLimitError
from dpipe.fields.checks import budget
from tests.helpers import raise_if_computes

DAYS = 800
FIELD = xr.DataArray(
    da.random.default_rng(0).normal(size=(DAYS, 60, 100), chunks=(100, 60, 100)).astype("f4"),
    {"time": pd.date_range("2000-01-01", periods=DAYS)},
    ("time", "lat", "lon"),
)


def built(told, **own):
    """A pipeline whose function tells what it could take, and in how many ranges of days."""

    def anomalies(field):
        usual = dpipe.fields.climatology(field, "dayofyear", **own)
        told.append((dpipe.fields.plan(field, **own).memory_nbytes, usual.data.numblocks[0]))
        return dpipe.fields.anomalies(field, usual, **own)

    pipe = dpipe.Pipeline("budget")
    pipe.train(PCA(2), pipe.preprocess(pipe.collect(FIELD), anomalies), sample_dims="time")
    return pipe


def test_the_budget_of_a_pipeline_is_that_of_fields_in_its_stages():
    told = []
    with raise_if_computes():
        pipe = built(told)
        pipe.plan()
        assert {budget for budget, _ in told} == {2**31}, "as without a pipeline"
        pipe.plan(memory="4 GiB")
        assert told[-1][0] == 2**32
        with pytest.raises(MemoryLimitError, match="climatology: a block of 100 steps of 6,000 cells takes"):
            pipe.plan(memory="12 MiB")
    assert told[-1][0] == 2**32


def test_a_function_that_has_a_budget_of_its_own_keeps_it():
    told = []
    with raise_if_computes():
        built(told, memory="3 GiB").plan(memory="4 GiB")
    assert {budget for budget, _ in told} == {3 * 2**30}


def test_a_smaller_budget_gives_the_same_field_in_more_ranges():
    small = FIELD[:, :6, :10].chunk({"time": 400})
    with budget("768 KiB"):
        tight = dpipe.fields.climatology(small, "dayofyear")
        inner = dpipe.fields.climatology(small, "dayofyear", memory="1 GiB")
    roomy = dpipe.fields.climatology(small, "dayofyear")
    assert tight.data.numblocks[0] > roomy.data.numblocks[0] == inner.data.numblocks[0]
    np.testing.assert_array_equal(tight.values, roomy.values)
