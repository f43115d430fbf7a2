"""Values come back as they were, and nothing else comes back."""

import datetime
import json
import struct

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dpipe.blocks.rows import RowsAt, Tally
from dpipe.blocks.statistics import Moments
from dpipe.errors import LedgerError
from dpipe.ledger.codec import decode, encode
from tests.kernel_cases import assert_same

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers()
    | st.dates()
    | st.datetimes(timezones=st.just(datetime.UTC) | st.none())
    | hnp.arrays(
        st.sampled_from([np.float64, np.float32, np.int8, np.uint64, np.bool_, "M8[us]", "<U3"]), (2, 3)
    )
    | hnp.arrays(np.float64, (2, 3)).map(np.asfortranarray)
    | st.floats(width=32).map(np.float32)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=VALUES)
def test_values_come_back_as_they_were(value):
    found = decode(encode(value))
    assert repr(found) == repr(value)
    same_layout(found, value)


def same_layout(found, value):
    assert type(found) is type(value)
    if isinstance(value, np.ndarray):
        assert (found.dtype, found.shape, found.flags.f_contiguous) == (
            value.dtype,
            value.shape,
            value.flags.f_contiguous,
        )
        assert found.tobytes() == value.tobytes()
        assert found.flags.writeable
    elif isinstance(value, dict):
        for mine, theirs in zip(found.items(), value.items(), strict=True):
            same_layout(mine, theirs)
    elif isinstance(value, list | tuple):
        for mine, theirs in zip(found, value, strict=True):
            same_layout(mine, theirs)


def test_records_and_matrices_come_back():
    moments = Moments.of(np.arange(12.0).reshape(4, 3))
    given = (
        moments,
        Tally(1, 2, 3),
        RowsAt(1, 2),
        {1, "a"},
        frozenset({None}),
        slice(1, None),
        np.dtype("f4"),
    )
    assert_same(decode(encode(given)), given, rtol=0)
    matrix = sp.random_array((5, 4), density=0.5, format="csr", random_state=0)
    found = decode(encode([matrix, sp.csc_matrix(matrix)]))
    assert type(found[0]) is sp.csr_array
    assert type(found[1]) is sp.csc_matrix
    assert (found[0] != matrix).nnz == 0
    for value in (pd.NaT, pd.NA, pd.Timestamp("2024-02-29 12:00", tz="Asia/Tokyo")):
        assert repr(decode(encode(value))) == repr(value)
    objects = np.array([None, "a", 1.5, pd.NA], dtype=object).reshape(2, 2)
    assert repr(decode(encode(objects))) == repr(objects)


class Stranger:
    pass


@pytest.mark.parametrize("value", [Stranger(), [Stranger()], len, np.zeros(2, dtype="i4,f8"), lambda: 1])
def test_anything_else_is_refused(value):
    with pytest.raises(TypeError, match="cannot be kept"):
        encode(value)


def forged(tree):
    text = json.dumps(tree).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04N.",
        encode([1, 2])[:-8],
        encode(np.zeros(3))[:-8],
        forged({"record": ["os:system", {}]}),
        forged({"record": ["dpipe.errors:DpipeError", {}]}),
        forged({"named": ["dpipe.train.fit:fit", []]}),
        forged({"record": ["dpipe.blocks.rows:Tally", {}]}),
        forged({"call": ["os:system", ["true"]]}),
        forged({"array": ["<f8", [1000], "C", 0, 8]}),
    ],
)
def test_what_was_not_written_here_is_not_read(content):
    with pytest.raises(LedgerError, match="cannot be read back"):
        decode(content)
