"""Every estimator that takes numbers, fitted on labelled arrays, is what scikit-learn fits on the stacked array."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.preprocessing import (
    KBinsDiscretizer,
    LabelBinarizer,
    LabelEncoder,
    MultiLabelBinarizer,
    OneHotEncoder,
    OrdinalEncoder,
    TargetEncoder,
)

from dpipe.families.registry import registered
from dpipe.train.fit import fit
from tests.families.cases import PREDICTORS, TRANSFORMERS
from tests.families.conformance import Case, check_outputs, compare, targets
from tests.kernel_cases import N_ROWS, awkward_frame

DIMS = ("time", "lat", "lon")
SIZES = (3, 4, 5)
assert np.prod(SIZES) == N_ROWS

#: What has only cases of texts among those of tables.
ON_NUMBERS = [
    Case(OneHotEncoder(), ("whole", "small")),
    Case(OrdinalEncoder(), ("whole", "small")),
    Case(TargetEncoder(random_state=0), ("small", "whole"), y="number"),
    Case(KBinsDiscretizer(quantile_method="averaged_inverted_cdf"), ("plain", "more")),
]
#: Those that take labels, documents or records of one dimension: no features.
OF_ONE_DIMENSION = {LabelBinarizer, LabelEncoder, MultiLabelBinarizer}


def on_numbers(case):
    frame = awkward_frame()
    return {"frame", "array"} & set(case.inputs) and all(
        name in frame and isinstance(frame[name].dtype, np.dtype) and frame[name].dtype.kind in "biuf"
        for name in case.columns
    )


def one_case_each():
    first = {}
    for case in (case for maker in (*TRANSFORMERS, *PREDICTORS) for case in maker()):
        if on_numbers(case):
            first.setdefault(type(case.estimator), case)
    for case in ON_NUMBERS:
        first.setdefault(type(case.estimator), case)
    return [pytest.param(case, id=cls.__name__) for cls, case in first.items()]


def cells(values, chunks, last=()):
    """Rows as cells of an array in chunks."""
    values = np.asarray(values)
    values = values.reshape(*SIZES, *values.shape[1:])
    array = xr.DataArray(values, dims=(*DIMS, *last), coords={"lat": [60.0, 20.0, -20.0, -60.0]})
    return array.chunk({dim: chunks[dim] for dim in array.dims if dim in chunks})


def as_grid(case, chunks):
    """X as a data set, or as one array where a case has no frames."""
    frame = awkward_frame()[list(case.columns)]
    if "frame" in case.inputs:
        return xr.Dataset({name: cells(frame[name], chunks) for name in frame}), frame
    values = frame.to_numpy(dtype=np.result_type(*frame.dtypes, np.float32))
    return cells(values, chunks, ("band",)).transpose("band", "lon", "time", "lat"), pd.DataFrame(values)


def rows_of(chunks):
    """The rows in the order of the blocks."""
    places = xr.DataArray(np.arange(N_ROWS).reshape(SIZES), dims=DIMS)
    ends = {dim: np.cumsum([0, *chunks[dim]]) for dim in DIMS}
    blocks = [
        places.values[t0:t1, a0:a1, o0:o1].ravel()
        for t0, t1 in zip(ends["time"], ends["time"][1:], strict=False)
        for a0, a1 in zip(ends["lat"], ends["lat"][1:], strict=False)
        for o0, o1 in zip(ends["lon"], ends["lon"][1:], strict=False)
    ]
    return np.concatenate(blocks)


def check(case, chunks):
    order = rows_of(chunks)
    X, frame = as_grid(case, chunks)
    held = frame.iloc[order] if "frame" in case.inputs else frame.to_numpy()[order]
    y = y_held = w = w_held = None
    if case.y is not None:
        y_held = targets(case.y, "numpy")[1]
        y, y_held = cells(y_held, chunks, ("target",) * (y_held.ndim - 1)), y_held[order]
    if case.weighted:
        w_held = targets("weight", "numpy")[1]
        w, w_held = cells(w_held, chunks), w_held[order]
    weights = {} if w is None else {"sample_weight": w_held}
    expected = clone(case.estimator).fit(held, *([] if y is None else [y_held]), **weights)
    result = fit(case.estimator, X, y, w, sample_dims=DIMS, missing="keep")
    compare(case, result, expected, y_held)
    return result, expected, held


UNEVEN_CHUNKS = {"time": (1, 2), "lat": (3, 1), "lon": (5,), "band": (1,)}


@pytest.mark.parametrize("case", one_case_each())
def test_equal_to_the_stacked_array(case):
    chunks = {**UNEVEN_CHUNKS, "band": (1,) * len(case.columns)}
    result, expected, held = check(case, chunks)
    check_outputs(result, expected, held, case.rtol)


def cut(n):
    ends = st.lists(st.integers(1, n), max_size=n).map(lambda ends: sorted({0, *ends, n}))
    return ends.map(lambda ends: tuple(int(size) for size in np.diff(ends)))


CHUNKS = {"time": cut(3), "lat": cut(4), "lon": cut(5), "band": st.integers(0, 9)}


def check_drawn(case, time, lat, lon, band):
    n = len(case.columns)
    bands = (n,) if band == 0 or n == 1 else (band % (n - 1) + 1, n - band % (n - 1) - 1)
    check(case, {"time": time, "lat": lat, "lon": lon, "band": bands})


@settings(max_examples=15, deadline=None)
@given(case=st.sampled_from([param.values[0] for param in one_case_each()]), **CHUNKS)
def test_any_chunks_give_the_same(case, time, lat, lon, band):
    check_drawn(case, time, lat, lon, band)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", one_case_each())
@settings(max_examples=8, deadline=None)
@given(**CHUNKS)
def test_any_chunks_give_the_same_of_each(case, time, lat, lon, band):
    check_drawn(case, time, lat, lon, band)


def test_every_estimator_of_numbers_is_compared():
    documents = {cls for cls, way in registered().items() if way.one_dimensional} | OF_ONE_DIMENSION
    own = {
        cls
        for cls, way in registered().items()
        if cls.__module__.startswith("sklearn.") and way.kind != "stream"
    }
    compared = {param.values[0].estimator.__class__ for param in one_case_each()}
    assert own - compared <= documents
