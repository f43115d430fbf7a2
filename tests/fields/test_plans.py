"""Plans of fields: what they say is read is what is read."""

import re
import threading

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from sklearn.decomposition import PCA

import dpipe
from dpipe import fields
from dpipe.errors import InputError, MemoryLimitError
from tests.fields.made import field
from tests.fields.test_climate import chunkings
from tests.helpers import raise_if_computes


class Counted:
    """A field whose blocks count how often they are read, in bytes."""

    def __init__(self, **chunks):
        held = field(40, 6, 5)
        lock, self.read_nbytes = threading.Lock(), 0

        def read(block):
            with lock:
                self.read_nbytes += block.nbytes
            return block

        # blocks that depend on nothing else: each computes the values that it reads
        data = da.from_array(held.values, chunks=tuple(chunks[dim] for dim in held.dims))
        self.field = held.copy(data=data.map_blocks(read, dtype=data.dtype, meta=np.empty((0, 0, 0))))


def computed(x):
    with dask.config.set(scheduler="synchronous"):
        return x.compute()


MADE = {
    "anomalies": lambda x: fields.anomalies(x, fields.climatology(x, "month")),
    "detrend": fields.detrend,
    "rolling": lambda x: fields.rolling(x, {"time": 3, "lat": 2}),
    "rolling of a trend": lambda x: fields.rolling(fields.detrend(x), {"time": 3}),
    "patches": lambda x: fields.patches(x, {"time": 2, "lat": 3}, 1),
    "there and back": lambda x: fields.unpatch(fields.patches(x, {"lat": 3}, 1), x),
    "moments": lambda x: fields.moments(x, "time"),
    "standardise": lambda x: fields.standardise(x, "time"),
    "regrid": lambda x: fields.regrid(x, {"lat": np.linspace(-40, 40, 3)}),
}


@settings(max_examples=5, deadline=None)
@given(chunkings())
@pytest.mark.parametrize("name", MADE)
def test_what_a_plan_says_is_read_is_read(name, chunks):
    x = Counted(**chunks)
    made = MADE[name](x.field)
    with raise_if_computes():
        plan = fields.plan(made)
    computed(made)
    assert plan.read_nbytes == x.read_nbytes
    assert name.split()[0] in str(plan) or name == "there and back"


def test_groups_in_several_ranges_are_told():
    x = Counted(time=40, lat=6, lon=5)
    assert "12 groups in" not in str(fields.plan(fields.climatology(x.field, "month")))
    narrow = fields.climatology(x.field, "dayofyear", memory="60 kB")
    plan = fields.plan(narrow)
    assert re.search(r"40 groups in \d ranges .* blocks that reach over several are read again", str(plan))
    computed(narrow)
    assert plan.read_nbytes == x.read_nbytes > x.field.nbytes


def test_overlap_is_counted_in_bytes():
    x = field(40, 6, 5).chunk(time=10)
    (step,) = fields.plan(fields.rolling(x, {"time": 3})).steps
    assert step.shared_nbytes == 3 * 2 * 6 * 5 * 8
    assert step.task_nbytes >= 12 * 6 * 5 * 8


def test_a_plan_of_a_fit_tells_what_makes_its_features():
    x = field(40, 6, 5).fillna(0).chunk(time=10)
    made = fields.anomalies(x, fields.climatology(x, "month"))
    said = str(dpipe.plan(PCA(2), made, sample_dims="time"))
    assert "made by climatology, anomalies: each pass reads 18.75 kiB of their sources (2 times)" in said
    assert "made by" not in str(dpipe.plan(PCA(2), x, sample_dims="time"))


def test_a_field_as_it_is_is_read_once_and_a_small_budget_is_refused():
    x = xr.Dataset({"z": field(40, 6, 5).chunk(time=10)})
    assert "Reads its source once, 9.38 kiB in all" in str(fields.plan(x))
    with pytest.raises(MemoryLimitError, match="plan: a task of rolling takes .* Read smaller blocks"):
        fields.plan(fields.rolling(x, {"time": 3}), memory=8000)
    with pytest.raises(InputError, match="plan takes an xarray object with Dask blocks"):
        fields.plan(field())
