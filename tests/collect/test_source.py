"""Any kind of X, y and weights becomes the same blocks of rows, checked by metadata first."""

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp

from dpipe.blocks.table import numbers
from dpipe.collect.loads import HeldLoad, ReadLoad
from dpipe.collect.source import open_source, source_name
from dpipe.errors import BlockMismatchError, InputError
from tests.helpers import raise_if_computes
from tests.kernel_cases import array_blocks, csr_blocks, in_blocks, parquet_blocks

SIZES = (0, 4, 1, 5)
FRAME = pd.DataFrame(
    {"a": np.arange(10.0), "b": np.arange(10.0) * 2, "y": np.arange(10) % 2, "w": np.linspace(0.1, 1, 10)}
)
VALUES = FRAME.to_numpy()


def blocks(source, columns=None, **options):
    """Load all blocks as dpipe's tasks do, with what they share computed first."""
    shared, loads = source.loads(columns, **options)
    keys = list(shared)
    computed = dict(zip(keys, dask.get(shared, keys), strict=True))
    return [load({key: computed[key] for key in load.needs}) for load in loads]


KINDS = {
    "frame": lambda folder: in_blocks(FRAME, SIZES),
    "parquet": lambda folder: parquet_blocks(FRAME, folder, SIZES),
    "projected parquet": lambda folder: parquet_blocks(FRAME.assign(more=1), folder, SIZES)[list(FRAME)],
    "derived parquet": lambda folder: parquet_blocks(FRAME, folder, SIZES).assign(a=lambda f: f["a"] + 0),
    "pandas": lambda folder: FRAME,
}


@pytest.mark.parametrize("kind", KINDS)
def test_named_columns_of_frames(kind, tmp_path):
    X = KINDS[kind](tmp_path)
    with raise_if_computes():
        source = open_source(X, "y", "w")
        assert source.names == ("a", "b")
        assert list(source.frame) == ["a", "b"]
        assert len(source.frame) == 0
        assert source_name(source)
    found = blocks(source)
    assert [len(part.y) for part in found] == ([10] if kind == "pandas" else list(SIZES))
    np.testing.assert_array_equal(np.vstack([numbers(part.X) for part in found]), VALUES[:, :2])
    np.testing.assert_array_equal(np.concatenate([part.y for part in found]), FRAME["y"])
    np.testing.assert_array_equal(np.concatenate([part.w for part in found]), FRAME["w"])


@pytest.mark.parametrize("kind", KINDS)
def test_only_some_columns_and_targets_alone(kind, tmp_path):
    source = open_source(KINDS[kind](tmp_path), "y")
    some = blocks(source, [2])
    np.testing.assert_array_equal(np.vstack([numbers(part.X) for part in some])[:, 0], FRAME["w"])
    alone = blocks(source, [], with_X=False)
    np.testing.assert_array_equal(np.concatenate([part.y for part in alone]), FRAME["y"])


@pytest.mark.parametrize("known", [True, False])
def test_arrays(known):
    X, y, w = (array_blocks(v, SIZES) for v in (VALUES[:, :2], VALUES[:, 2], VALUES[:, 3]))
    if not known:
        X, y, w = (
            dd.from_dask_array(v, columns=list("ab") if v.ndim == 2 else "v").to_dask_array()
            for v in (X, y, w)
        )
    source = open_source(X, y, w)
    assert source.rows == (SIZES if known else (None,) * 4)
    assert source.n_rows == (10 if known else None)
    found = blocks(source)
    assert [len(part.X) for part in found] == list(SIZES)
    np.testing.assert_array_equal(np.vstack([part.X for part in found]), VALUES[:, :2])
    np.testing.assert_array_equal(np.concatenate([part.w for part in found]), VALUES[:, 3])


def test_arrays_in_blocks_of_columns_and_of_one_dimension():
    X = da.from_array(VALUES, chunks=(5, 3))
    np.testing.assert_array_equal(np.vstack([part.X for part in blocks(open_source(X))]), VALUES)
    for one in (array_blocks(VALUES[:, 0], SIZES), in_blocks(FRAME["a"].to_frame(), SIZES)["a"], FRAME["a"]):
        source = open_source(one)
        assert source.n_columns == 1
        assert sum(len(part.X) for part in blocks(source)) == 10
    y = array_blocks(VALUES[:, :2], SIZES)
    assert blocks(open_source(array_blocks(VALUES, SIZES), y))[1].y.shape == (4, 2)


def test_sparse_blocks():
    source = open_source(csr_blocks(VALUES, SIZES))
    assert source.sparse
    assert all(sp.issparse(part.X) and part.X.format == "csr" for part in blocks(source))
    held = open_source(sp.coo_matrix(VALUES))
    assert held.sparse
    assert blocks(held)[0].X.format == "csr"


def test_mixed_kinds_of_x_and_y(tmp_path):
    frame = in_blocks(FRAME, SIZES)
    array = array_blocks(VALUES[:, 2], SIZES)
    unknown = frame["y"].to_dask_array()
    parquet = parquet_blocks(FRAME, tmp_path, SIZES)
    for X, y in (
        (frame[["a", "b"]], array),
        (frame[["a", "b"]], unknown),
        (frame[["a", "b"]], frame["y"]),
        (parquet[["a", "b"]], frame["y"]),
        (parquet[["a", "b"]], parquet["y"] * 1),
        (parquet[["a", "b"]], array),
        (array_blocks(VALUES[:, :2], SIZES), frame["y"]),
        (array_blocks(VALUES[:, :2], SIZES), unknown),
        (frame[["a", "b"]].to_dask_array(), frame["y"]),
    ):
        found = blocks(open_source(X, y))
        np.testing.assert_array_equal(np.vstack([numbers(part.X) for part in found]), VALUES[:, :2])
        np.testing.assert_array_equal(np.concatenate([part.y for part in found]), FRAME["y"])
    for y in (FRAME["y"], FRAME["y"].to_numpy(), FRAME["y"].tolist()):
        assert blocks(open_source(FRAME, y))[0].y.tolist() == FRAME["y"].tolist()


def test_parquet_is_decoded_to_arrow_without_pandas(tmp_path):
    X = parquet_blocks(FRAME.assign(s="word"), tmp_path, SIZES)
    for chosen in (X, X[["s", "a"]], X.drop(columns="b"), X.partitions[1:3]):
        source = open_source(chosen, chosen["y"]) if "y" in chosen else open_source(chosen, X["y"])
        assert source.decoded == "arrow"
        _, loads = source.loads(None)
        assert all(isinstance(load, ReadLoad) for load in loads)
        assert isinstance(loads[1]({}).X, pa.Table)
    assert open_source(X.partitions[1:3]).rows == (4, 1)


def test_a_function_in_between_is_not_left_out(tmp_path):
    X = parquet_blocks(FRAME, tmp_path, SIZES)
    for derived in (
        X[X["a"] > 3],
        X.fillna(0),
        X.rename(columns={"a": "z"}),
        X.map_partitions(lambda f: f[f["a"] > 3]),
    ):
        source = open_source(derived)
        assert source.decoded == "pandas"
        expected = derived.compute()
        found = blocks(source)
        np.testing.assert_array_equal(np.vstack([numbers(part.X) for part in found]), expected.to_numpy())


def test_two_sources_are_not_taken_for_one(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    X = parquet_blocks(FRAME, tmp_path / "one", SIZES)
    other = parquet_blocks(FRAME.assign(y=7), tmp_path / "two", SIZES)
    found = blocks(open_source(X[["a"]], other["y"]))
    assert np.concatenate([part.y for part in found]).tolist() == [7] * 10


def test_text_with_gaps_is_marked_by_nan():
    texts = pd.DataFrame({"t": pd.Series(["a", None, "b"], dtype="str")})
    source = open_source(dd.from_pandas(texts, npartitions=2))
    assert source.frame["t"].dtype == "str"
    assert all(part.X["t"].dtype == "str" for part in blocks(source))


def test_a_shuffle_is_shared_by_the_blocks():
    X = dd.from_pandas(FRAME, npartitions=3).shuffle("y", npartitions=3)
    source = open_source(X, "y")
    with raise_if_computes():
        shared, _ = source.loads(None)
    assert shared
    found = blocks(source)
    assert sorted(np.concatenate([numbers(part.X)[:, 0] for part in found])) == FRAME["a"].tolist()


@pytest.mark.parametrize(
    ("X", "y", "w", "error", "message"),
    [
        (
            in_blocks(FRAME, SIZES),
            "zz",
            None,
            InputError,
            "y='zz' is not a column of X. X has: 'a', 'b', 'y', 'w'",
        ),
        (in_blocks(FRAME, SIZES), None, "zz", InputError, "sample_weight='zz' is not a column of X"),
        (array_blocks(VALUES, SIZES), "y", None, InputError, "y='y' names a column, but X is a Array"),
        (in_blocks(FRAME, SIZES), FRAME["y"], None, InputError, "X is a Dask DataFrame, but y is a Series"),
        (
            in_blocks(FRAME, SIZES),
            VALUES[:, 2],
            None,
            InputError,
            "X is a Dask DataFrame, but y is a ndarray",
        ),
        (array_blocks(VALUES, SIZES), VALUES[:, 2], None, InputError, "X is a Dask Array, but y"),
        (
            FRAME,
            in_blocks(FRAME, SIZES)["y"],
            None,
            BlockMismatchError,
            "X is in memory, but y is a Dask collection",
        ),
        (
            in_blocks(FRAME, SIZES),
            in_blocks(FRAME, (5, 5))["y"],
            None,
            BlockMismatchError,
            "X has 4 blocks, but y has 2",
        ),
        (
            array_blocks(VALUES, SIZES),
            array_blocks(VALUES[:, 2], (4, 0, 1, 5)),
            None,
            BlockMismatchError,
            r"X has row chunks \(0, 4, 1, 5\), but y has \(4, 0, 1, 5\).*rechunk",
        ),
        (VALUES, VALUES[:3, 2], None, BlockMismatchError, "X has 10 rows, but y has 3"),
        (FRAME, "y", VALUES[:3, 2], BlockMismatchError, "X has 10 rows, but sample_weight has 3"),
        ((1, 2), None, None, InputError, "X is a builtins.tuple.*dpipe.read_parquet"),
        (da.ones((2, 2, 2)), None, None, InputError, "X has 3 dimensions"),
        (da.ones(()), None, None, InputError, "X has 0 dimensions"),
        (np.ones((2, 2, 2)), None, None, InputError, "X has 3 dimensions"),
        (
            pd.DataFrame(np.ones((2, 2)), columns=["a", "a"]),
            None,
            None,
            InputError,
            "several columns named 'a'",
        ),
    ],
)
def test_what_metadata_can_refuse(X, y, w, error, message):
    with raise_if_computes(), pytest.raises(error, match=message):
        open_source(X, y, w)


def test_blocks_that_differ_are_named_when_they_are_read(tmp_path):
    one, other = in_blocks(FRAME, SIZES), in_blocks(FRAME, (0, 1, 4, 5))
    with pytest.raises(BlockMismatchError, match="block 1: X has 4 rows, but y has 1"):
        blocks(open_source(one[["a"]], other["y"]))
    with pytest.raises(BlockMismatchError, match="block 1: X has 4 rows, but sample_weight has 1"):
        blocks(open_source(one[["a"]], one["y"], other["w"]))
    with pytest.raises(BlockMismatchError, match="block 1: X has 4 rows, but y has 1"):
        blocks(open_source(one[["a"]].to_dask_array(), other["y"].to_dask_array()))


def test_memory_stays_what_it_is():
    source = open_source(FRAME, "y")
    _, (load,) = source.loads(None)
    assert isinstance(load, HeldLoad)
    assert source.n_blocks == 1
    assert source.n_rows == 10
    assert source.decoded == "memory"


@pytest.mark.parametrize(
    "values", [["a", "b", "c"], [[1, 2], [3, 4], []], [{"a": 1}, {}, {"b": 2}], [1.5, 2.5, 3.5]]
)
def test_lists_and_bags_are_one_column(values):
    for X, sizes in ((values, [3]), (db.from_sequence(values, npartitions=2), [2, 1])):
        with raise_if_computes():
            source = open_source(X)
        assert source.one_dimensional
        read = [rows.X for rows in blocks(source)]
        assert [block.shape for block in read] == [(n, 1) for n in sizes]
        assert [value for block in read for value in block[:, 0]] == values


def test_a_series_of_a_parquet_source_is_decoded_to_arrow(tmp_path):
    X = parquet_blocks(FRAME, tmp_path, SIZES)
    source = open_source(X["a"], X["y"])
    assert source.one_dimensional
    assert source.decoded == "arrow"
    read = blocks(source)
    assert all(isinstance(rows.X, pa.Table) and rows.X.column_names == ["a"] for rows in read)
    assert np.concatenate([rows.y for rows in read]).tolist() == FRAME["y"].tolist()
    renamed = open_source(X["a"].rename("b"))
    assert np.concatenate([rows.X["b"] for rows in blocks(renamed)]).tolist() == FRAME["a"].tolist()
