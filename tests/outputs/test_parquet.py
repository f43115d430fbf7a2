"""Results are whole or not there, go on after a kill, and are checked to the byte."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dpipe
from dpipe.cli import main
from dpipe.errors import ConservationError, InputError, OutputError
from dpipe.outputs.manifest import MANIFEST, verify
from dpipe.outputs.parquet import write_parquet


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "x": rng.normal(size=500),
            "n": np.arange(500),
            "s": pd.Series(rng.choice(["a", "b", None], 500), dtype="str"),
            "day": pd.Timestamp("2024-02-28") + pd.to_timedelta(np.arange(500) % 7, unit="D"),
            "kind": pd.Categorical(rng.choice(["u", "v"], 500)),
        }
    )


@pytest.mark.parametrize("npartitions", [1, 4, 30])
def test_rows_come_back(frame, npartitions, tmp_path):
    folder = write_parquet(dd.from_pandas(frame, npartitions=npartitions), tmp_path / "out")
    parts = sorted(folder.glob("*.parquet"))
    assert len(parts) == npartitions
    found = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    pd.testing.assert_frame_equal(found, frame, check_dtype=False, check_categorical=False)
    checked = verify(folder)
    assert (checked.ok, checked.n_files, checked.n_rows) == (True, npartitions, 500)
    assert {item.name for item in folder.iterdir()} == {MANIFEST, *(part.name for part in parts)}


@pytest.mark.parametrize("lost", ["row", "value"])
def test_what_is_written_is_read_back_and_compared(frame, lost, tmp_path, monkeypatch):
    real = pq.write_table

    def faulty(table, where, **options):
        rows = table.to_pandas()
        wrong = rows.iloc[1:] if lost == "row" else rows.assign(n=rows["n"].where(rows["n"] != 300, 7))
        real(pa.Table.from_pandas(wrong, schema=table.schema, preserve_index=False), where, **options)

    monkeypatch.setattr(pq, "write_table", faulty)
    says = (
        r"block \d has 125 rows, but .* would hold 124"
        if lost == "row"
        else "block 2 has 125 rows, but .* 125"
    )
    with pytest.raises(ConservationError, match=says):
        write_parquet(dd.from_pandas(frame, npartitions=4), tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST).exists()
    monkeypatch.undo()
    assert verify(write_parquet(dd.from_pandas(frame, npartitions=4), tmp_path / "out")).ok


def test_the_checksum_is_of_the_rows_whatever_their_files_and_order(frame, tmp_path):
    one = write_parquet(dd.from_pandas(frame, npartitions=1), tmp_path / "one")
    others = frame.sample(frac=1, random_state=0).assign(kind=lambda rows: rows["kind"].astype(str))
    many = write_parquet(dd.from_pandas(others, npartitions=7, sort=False), tmp_path / "many")
    other = write_parquet(dd.from_pandas(frame.assign(x=0.0), npartitions=1), tmp_path / "other")
    assert verify(one).checksum == verify(many).checksum != verify(other).checksum


def test_a_source_of_parquet_is_copied_with_its_types(frame, tmp_path):
    (tmp_path / "in").mkdir()
    frame.drop(columns="kind").to_parquet(tmp_path / "in" / "0.parquet", index=False, row_group_size=100)
    source = dpipe.read_parquet(tmp_path / "in", block_nbytes=2000)
    folder = write_parquet(source, tmp_path / "out")
    again = dpipe.read_parquet(folder).compute().reset_index(drop=True)
    pd.testing.assert_frame_equal(again, source.compute().reset_index(drop=True))


def test_the_same_call_again_does_nothing_and_another_is_refused(frame, tmp_path):
    rows = dd.from_pandas(frame, npartitions=3)
    folder = write_parquet(rows, tmp_path / "out")
    before = {item.name: item.stat().st_mtime_ns for item in folder.iterdir()}
    write_parquet(rows, folder)
    assert {item.name: item.stat().st_mtime_ns for item in folder.iterdir()} == before
    with pytest.raises(OutputError, match="other data.*overwrite=True"):
        write_parquet(rows[rows["n"] > 100], folder)
    assert verify(folder).n_rows == 500
    write_parquet(rows.partitions[:1], folder, overwrite=True)
    assert (verify(folder).ok, verify(folder).n_files) == (True, 1)


PROGRAM = """
import time
import dask.dataframe as dd, numpy as np, pandas as pd, dpipe
def slow(block):
    time.sleep(0.1 if len(block) else 0)
    return block
if __name__ == "__main__":
    rows = dd.from_pandas(pd.DataFrame({{"n": np.arange(4000)}}), npartitions=20)
    print("begun", flush=True)
    dpipe.write_parquet(rows.map_partitions(slow, meta=rows._meta), {folder!r})
"""


@pytest.mark.parametrize("after_s", [0.3, 0.7])
def test_a_killed_call_goes_on(after_s, tmp_path):
    folder = tmp_path / "out"
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM).format(folder=str(folder)))
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begun\n"
        while not list(folder.glob("part-*.parquet")):
            time.sleep(0.01)
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
    with pytest.raises(OutputError, match="was not finished"):
        verify(folder)
    (folder / ".part-00019.parquet.0123abcd.tmp").write_bytes(b"PAR1 half of a file")
    there = {part.name: part.stat().st_mtime_ns for part in folder.glob("part-*.parquet")}
    assert there
    subprocess.run([sys.executable, str(program)], check=True, stdout=subprocess.DEVNULL)
    kept = {name for name in there if (folder / name).stat().st_mtime_ns == there[name]}
    # a part can have been there before it was recorded
    assert len(kept) >= len(there) - (os.cpu_count() or 1)
    assert verify(folder).ok
    whole = pq.read_table([part for part in sorted(folder.glob("*.parquet"))])
    assert whole.column("n").to_pylist() == list(range(4000))
    assert not [item for item in folder.iterdir() if item.name.startswith(".")]


def tampered(folder, how):
    part = folder / "part-00001.parquet"
    if how == "missing":
        part.unlink()
    elif how == "instead of":
        os.truncate(part, part.stat().st_size - 1)
    elif how == "changed since":
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    else:
        (folder / "stray.parquet").write_bytes(b"")


@pytest.mark.parametrize("how", ["missing", "instead of", "changed since", "not of this result"])
def test_what_was_tampered_with_is_named(how, frame, tmp_path, capsys):
    folder = write_parquet(dd.from_pandas(frame, npartitions=3), tmp_path / "out")
    assert main(["verify", str(folder)]) == 0
    tampered(folder, how)
    found = verify(folder)
    assert not found.ok
    assert how in str(found)
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(folder)])
    assert stopped.value.code == 1


@pytest.mark.parametrize("content", [b"", b"[]", b'{"files": {"a": {}}}', b'{"files": 3}'])
def test_a_broken_manifest_is_named(content, tmp_path):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(OutputError, match=MANIFEST):
        verify(tmp_path)
    with pytest.raises(OutputError, match="has no _manifest"):
        verify(tmp_path / "nowhere")


def test_what_cannot_be_written_is_refused(frame, tmp_path):
    rows = dd.from_pandas(frame, npartitions=2)
    with pytest.raises(InputError, match="takes a Dask DataFrame"):
        write_parquet(frame, tmp_path / "out")
    with pytest.raises(InputError, match="compression='zip'"):
        write_parquet(rows, tmp_path / "out", compression="zip")
    with pytest.raises(InputError, match="takes a Dask DataFrame"):
        write_parquet(da.ones((4, 2)), tmp_path / "out")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "letter.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds other files, such as letter.txt"):
        write_parquet(rows, tmp_path / "notes")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        write_parquet(rows, tmp_path / "file")
