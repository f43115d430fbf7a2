"""Files that differ from the others are named, with how."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dpipe
from dpipe.errors import InputError, SourceError


def write(folder, **files):
    for name, columns in files.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def changes(found):
    return [list(file.changes) for file in found.files]


def test_files_that_are_alike(tmp_path):
    same = {"n": [1, 2, 3], "s": ["a", None, "b"]}
    found = dpipe.drift(write(tmp_path, a=same, b=same, c=same))
    assert not found.found
    assert str(found) == "3 files, all alike"
    assert [file.rows for file in found.files] == [3, 3, 3]


def test_types_columns_and_nulls(tmp_path):
    usual = {"n": [1, 2], "s": ["a", "b"], "f": [1.0, 2.0]}
    folder = write(
        tmp_path,
        a=usual,
        b=usual,
        c={"n": [1.0, 2.0], "s": ["a", "b"], "f": [None, 1.0]},
        d={"n": [1, 2], "s": ["a", "b"], "extra": [1, 2]},
        e={"n": [1, 2], "s": pa.array([None, None], pa.null()), "f": [1.0, 2.0]},
    )
    found = dpipe.drift(folder)
    assert changes(found) == [
        [],
        [],
        ["column 'n' is double, in most files int64", "column 'f' has 50% nulls, the median of the files 0%"],
        ["column 'f' is missing", "column 'extra' is new: 1 file of 5 have it"],
        ["column 's' has 100% nulls, the median of the files 0%"],
    ]
    assert "3 of 5 files differ" in str(found)
    assert list(found.to_pandas()["rows"]) == [2] * 5


@pytest.mark.parametrize(("scale", "told"), [(1000, True), (0.001, True), (9, False), (-1, False)])
def test_units(tmp_path, scale, told):
    files = {f"m{i}": {"x": np.arange(1.0, 9) * (scale if i == 3 else 1)} for i in range(5)}
    found = dpipe.drift(write(tmp_path, **files))
    assert [bool(each) for each in changes(found)] == [False, False, False, told, False]
    if told:
        assert "other units?" in changes(found)[3][0]


def test_a_category_never_seen(tmp_path):
    folder = write(
        tmp_path, a={"s": ["x", "y"]}, b={"s": ["y", "x"]}, c={"s": ["z", "x"]}, d={"s": ["z", "z"]}
    )
    assert not dpipe.drift(folder).found
    found = dpipe.drift(folder, categories=["s"])
    assert changes(found)[2] == ["column 's' has 'z', never seen before"]
    assert not changes(found)[0]
    assert not changes(found)[3]


def test_infinities_dates_and_empty_files(tmp_path):
    days = np.array(["2026-01-01"], dtype="datetime64[ns]")
    folder = write(
        tmp_path,
        a={"x": [np.inf], "t": days, "b": [True]},
        b={"x": [1.0], "t": days, "b": [False]},
        c={"x": pa.array([], pa.float64()), "t": days[:0], "b": pa.array([], pa.bool_())},
    )
    assert not dpipe.drift(folder).found


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"factor": 1}, "factor must be a number above 1, got 1"),
        ({"factor": "ten"}, "factor must be a number above 1, got 'ten'"),
        ({"categories": ["q"]}, "no file has a column 'q'. They have: 'x'"),
    ],
)
def test_arguments_that_cannot_be(tmp_path, arguments, says):
    with pytest.raises(InputError, match=says):
        dpipe.drift(write(tmp_path, a={"x": [1]}), **arguments)


def test_no_files_and_a_broken_one(tmp_path):
    with pytest.raises(SourceError):
        dpipe.drift(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"a\.parquet"):
        dpipe.drift(tmp_path)


def test_a_run_tells_of_drift(tmp_path):
    (tmp_path / "rows").mkdir()
    files = {
        f"m{i}": {"x": np.arange(1.0, 40) * (1000 if i == 2 else 1), "y": np.arange(39)} for i in range(4)
    }
    write(tmp_path / "rows", **files)
    pipe = dpipe.Pipeline("drifting", workdir=tmp_path / "run")
    from sklearn.linear_model import LinearRegression

    pipe.train(LinearRegression(), pipe.collect(tmp_path / "rows", schema="infer"), target="y")
    pipe.run()
    report = (tmp_path / "run" / "report.html").read_text()
    assert "m2.parquet differs from the other files" in report
    assert "other units?" in report
    assert isinstance(dpipe.drift(tmp_path / "rows").to_pandas(), pd.DataFrame)
