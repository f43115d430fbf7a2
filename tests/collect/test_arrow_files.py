"""Arrow IPC files as blocks: what is read, what is refused, and what a fit makes of them."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.errors import InputError, SourceError


def write(path, table, rows=20):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


@pytest.fixture
def folder(tmp_path):
    for i in range(2):
        numbers = np.arange(50.0) + 50 * i
        table = pa.table(
            {
                "a": numbers,
                "n": pa.array([None if i and k == 3 else k for k in range(50)], pa.int64()),
                "t": pa.array([f"t{k % 3}" for k in range(50)]),
            }
        )
        write(tmp_path / f"{i}.arrow", table)
    return tmp_path


def test_files_are_read_as_they_were_written(folder):
    frame = dpipe.read_arrow(folder, block_nbytes=20 * 24)
    assert frame.npartitions == 6
    found = frame.compute()
    assert found["a"].tolist() == list(range(100))
    assert found["n"].dtype == "float64"  # it lacks a value in one of the files
    assert found["n"].isna().sum() == 1
    assert found["t"].tolist() == [f"t{k % 3}" for k in range(50)] * 2
    assert dpipe.read_arrow(folder).npartitions == 2


def test_a_fit_reads_columns_of_them(folder):
    X = dpipe.read_arrow(folder, columns=["a", "n"])
    fitted = dpipe.fit(StandardScaler(), X)
    values = pd.concat([pd.read_feather(folder / f"{i}.arrow") for i in range(2)])[["a", "n"]]
    np.testing.assert_allclose(fitted.mean_, StandardScaler().fit(values).mean_)
    assert "2 Arrow files in" in str(dpipe.plan(StandardScaler(), X))


def test_a_loader_gives_their_rows(folder):
    frame = dpipe.read_arrow(folder, columns=["a", "n"], block_nbytes=20 * 16)
    loader = dpipe.Loader(frame, "a", batch_size=10, tensors=False)
    y = np.concatenate([y for _, y in loader])
    assert sorted(y.tolist()) == list(range(100))


def test_what_is_no_arrow_file_is_named(folder):
    (folder / "2.arrow").write_bytes(b"no Arrow at all, but long enough to be looked at")
    with pytest.raises(SourceError, match=r"2\.arrow cannot be read as an Arrow IPC file"):
        dpipe.read_arrow(folder)


def test_another_schema_is_refused(folder):
    write(folder / "2.arrow", pa.table({"a": ["text"]}))
    with pytest.raises(SourceError, match=r"2\.arrow has another schema than .*0\.arrow"):
        dpipe.read_arrow(folder)


def test_a_file_that_changed_is_refused(folder):
    frame = dpipe.read_arrow(folder)
    write(folder / "0.arrow", pa.table({"a": [1.0], "n": [1], "t": ["x"]}))
    with pytest.raises(SourceError, match=r"0\.arrow"):
        frame.compute()


def test_files_of_an_object_store_are_refused():
    with pytest.raises(InputError, match="memory://x/0.arrow cannot be mapped"):
        dpipe.read_arrow(["memory://x/0.arrow"])
