"""Blocks of every kind give the same numbers and the same codes."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from dpipe.blocks.table import (
    Categories,
    Codes,
    codes,
    double_columns,
    float_dtype,
    n_columns,
    n_rows,
    nbytes,
    numbers,
    owned_numbers,
    plain_strings,
    select,
    table_to_pandas,
    take_rows,
    to_pandas,
)
from dpipe.errors import InputError

FRAME = pd.DataFrame(
    {
        "a": [1.5, np.nan, 3.0],
        "f": np.array([1, 2, 3], dtype="float32"),
        "n": [1, 2, 3],
        "flag": [True, False, True],
        "I": pd.array([1, None, 3], dtype="Int64"),
        "F": pd.array([0.5, None, 2.5], dtype="Float32"),
    }
)
WANTED = np.array([[1.5, 1, 1, 1, 1, 0.5], [np.nan, 2, 2, 0, np.nan, np.nan], [3, 3, 3, 1, 3, 2.5]])


def chunked(table):
    """The same table in several chunks, one of them empty."""
    return pa.concat_tables([table[:1], table[:0], table[1:]])


NUMERIC = {
    "frame": FRAME,
    "arrow types": FRAME.convert_dtypes(dtype_backend="pyarrow"),
    "table": pa.Table.from_pandas(FRAME, preserve_index=False),
    "chunked table": chunked(pa.Table.from_pandas(FRAME, preserve_index=False)),
    "array": WANTED,
    "column-major": np.asfortranarray(WANTED),
    "objects": WANTED.astype(object),
}


@pytest.mark.parametrize("kind", NUMERIC)
def test_numbers(kind):
    block = NUMERIC[kind]
    found = numbers(block)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, WANTED)
    assert (n_rows(block), n_columns(block)) == (3, 6)
    assert nbytes(block) > 0
    np.testing.assert_array_equal(numbers(select(block, [3, 0])), WANTED[:, [3, 0]])


@pytest.mark.parametrize("kind", NUMERIC)
def test_owned_numbers_may_be_changed(kind):
    block = NUMERIC[kind]
    owned_numbers(block)[:] = -1
    np.testing.assert_array_equal(numbers(block), WANTED)


def test_single_precision_stays():
    assert numbers(FRAME[["f"]]).dtype == np.float32
    assert numbers(pa.table({"f": pa.array([1, 2], pa.float32())})).dtype == np.float32
    assert numbers(FRAME[["f", "n"]]).dtype == np.float64
    assert numbers(np.ones((2, 2), dtype="float16")).dtype == np.float64
    assert numbers(np.ones((2, 2), dtype="int8")).dtype == np.float64


def test_nothing_is_copied_that_need_not_be():
    matrix = np.asfortranarray(WANTED)
    assert np.shares_memory(numbers(matrix), matrix)
    stored = sp.csr_matrix(np.eye(3))
    assert numbers(stored) is stored


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (pd.DataFrame({"a": [1.0], "s": ["x"]}), "Column 's' is not numeric: its type is str"),
        (pd.DataFrame({"s": pd.Categorical(["x"])}), "Column 's' is not numeric: its type is category"),
        (
            pd.DataFrame({"t": [pd.Timestamp(0)], "a": [1.0]}),
            "Column 't' is not numeric: its type is datetime64",
        ),
        (pd.DataFrame({"t": [pd.Timedelta(1)]}), "Column 't' is not numeric: its type is timedelta64"),
        (pa.table({"a": [1.0], "s": ["x"]}), "Column 's' is not numeric: its type is string"),
        (pa.table({"a": [1.0], "t": [pd.Timestamp(0)]}), "Column 't' is not numeric: its type is timestamp"),
        (np.array([["x"]], dtype=object), "The array is not numeric"),
        (np.array([["x"]]), "The array is not numeric"),
        (np.array([["2024-01-01"]], dtype="M8[D]"), "The array is not numeric"),
    ],
)
def test_what_is_not_numeric_is_named(block, message):
    with pytest.raises(InputError, match=message):
        numbers(block)


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [(["f4"], "f4"), (["f4", "i8"], "f8"), (["?"], "f8"), ([], "f8"), (["M8[ns]", "f4"], "f8")],
)
def test_float_dtype(kinds, wanted):
    assert float_dtype([np.dtype(kind) for kind in kinds]) == np.dtype(wanted)


words = st.lists(st.sampled_from(["a", "b", "c", None]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(words=words)
def test_codes_of_every_kind_say_the_same(words):
    text = pa.array(words, pa.string())
    series = pd.Series(words, dtype="str")
    category = series.astype(pd.CategoricalDtype(["z", "c", "b", "a"]))
    blocks = [
        pa.table({"s": text}),
        pa.table({"s": text.dictionary_encode()}),
        pa.table({"s": text.cast(pa.large_string())}),
        chunked(pa.table({"s": text.dictionary_encode()})),
        pa.table({"s": pa.chunked_array([text[:3].dictionary_encode(), text[3:].dictionary_encode()])}),
        pd.DataFrame({"s": series}),
        pd.DataFrame({"s": series.astype("string")}),
        pd.DataFrame({"s": category}),
        pd.DataFrame({"s": series.astype(object).where(series.notna(), None)}),
        np.array([[word] for word in words] or np.empty((0, 1)), dtype=object),
    ]
    for block in blocks:
        found = codes(block, 0)
        assert found.dtype == object
        assert [None if code < 0 else found.values[code] for code in found.codes] == words
        assert len(set(found.values)) == len(found.values)
        plain = Categories((found,)).to_numpy()[:, 0]
        assert [None if value != value else value for value in plain] == words


@pytest.mark.parametrize("dtype", ["int64", "int8", "bool", "float64", "float32", "Int64", "boolean"])
def test_codes_of_numbers(dtype):
    series = pd.Series([1, 0, 1, 1], dtype=dtype)
    for block in (pd.DataFrame({"n": series}), series.to_frame().to_numpy()):
        found = codes(block, 0)
        assert [found.values[code] for code in found.codes] == [1, 0, 1, 1]
        assert not isinstance(found.values[0], np.generic)


def test_codes_keep_what_marks_a_gap():
    assert codes(np.array([["a"], [None]], dtype=object), 0).missing is None
    assert np.isnan(codes(np.array([["a"], [np.nan]], dtype=object), 0).missing)
    with pytest.raises(InputError, match="both None and NaN"):
        codes(np.array([[None], [np.nan]], dtype=object), 0)
    with pytest.raises(InputError, match="sparse"):
        codes(sp.csr_matrix(np.eye(2)), 0)


def test_categories_become_arrays():
    text = Codes(np.array([1, -1, 0]), ["a", "b"], np.dtype(object), None)
    number = Codes(np.array([0, 1, -1], dtype=np.int8), [1.0, 2.0], np.dtype(float))
    block = Categories((text, number))
    assert (n_rows(block), n_columns(block)) == (3, 2)
    assert to_pandas(block).tolist()[:2] == [["b", 1.0], [None, 2.0]]
    np.testing.assert_array_equal(numbers(select(block, [1])), [[1.0], [2.0], [np.nan]])
    assert nbytes(block) == text.codes.nbytes + 3


def test_tables_become_plain_frames():
    table = pa.table({"s": pa.array(["a", None]).dictionary_encode(), "n": [1, 2]})
    frame = table_to_pandas(table)
    assert frame.dtypes.astype(str).tolist() == ["str", "int64"]
    assert to_pandas(frame) is frame


def test_plain_strings():
    frame = pd.DataFrame({"s": pd.array(["a", None], dtype="string"), "n": [1, 2]})
    found = plain_strings(frame)
    assert found["s"].dtype == "str"
    assert np.isnan(found["s"].iloc[1])
    assert frame["s"].iloc[1] is pd.NA
    assert plain_strings(found) is found


@settings(max_examples=200, deadline=None)
@given(known=st.lists(st.booleans(), min_size=1, max_size=70), data=st.data())
def test_nulls_are_found_wherever_a_slice_begins(known, data):
    values = pa.array([1.0 if there else None for there in known], type=pa.float64())
    start = data.draw(st.integers(0, len(known) - 1))
    stop = data.draw(st.integers(start + 1, len(known)))
    table = pa.table({"x": values}).slice(start, stop - start)
    assert np.isnan(numbers(table)[:, 0]).tolist() == [not there for there in known[start:stop]]
    _, columns = double_columns(table)
    ((_, gaps),) = list(columns)
    assert gaps.tolist() == [i for i, there in enumerate(known[start:stop]) if not there]


@pytest.mark.parametrize("kind", NUMERIC)
def test_double_columns(kind):
    dtype, columns = double_columns(NUMERIC[kind])
    assert dtype == numbers(NUMERIC[kind]).dtype
    for j, (values, gaps) in enumerate(columns):
        assert values.dtype == np.float64
        assert gaps.tolist() == np.flatnonzero(np.isnan(WANTED[:, j])).tolist()
        known = np.delete(np.arange(3), gaps)
        np.testing.assert_array_equal(values[known], WANTED[known, j])


def test_missing_values_of_both_kinds_are_gaps():
    mixed = pa.table({"x": pa.array([1.0, None, float("nan"), 4.0])})
    _, columns = double_columns(mixed)
    ((_, gaps),) = list(columns)
    assert gaps.tolist() == [1, 2]


@pytest.mark.parametrize(
    "block",
    [FRAME, pa.table({"a": [1, 2, 3]}), WANTED, Categories((Codes(np.arange(3), [1, 2, 3], np.dtype(int)),))],
)
def test_take_rows(block):
    taken = take_rows(block, slice(1, 3))
    assert n_rows(taken) == 2
    given = pd.DataFrame(to_pandas(block))
    pd.testing.assert_frame_equal(
        pd.DataFrame(to_pandas(taken)).reset_index(drop=True), given[1:3].reset_index(drop=True)
    )
