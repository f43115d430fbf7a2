"""Footers are read once for each file, and again for those that changed."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LinearRegression

import dpipe
from dpipe.collect import footers


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows").mkdir()
    for i in range(5):
        write(tmp_path / "rows" / f"{i}.parquet", i)
    return tmp_path / "rows"


def write(path, i, n=6):
    table = pa.table(
        {
            "x": pa.array(range(n), pa.float64()),
            "y": pa.array([float(i)] * n),
            "c": pa.array(["a", "b"] * (n // 2)).dictionary_encode(),
            "l": pa.array(["long"] * n, pa.large_string()),
            "t": pa.array([0] * n, pa.timestamp("us", "Europe/Paris")),
            "n": pa.array([1, None] * (n // 2), pa.int32()),
        }
    )
    pq.write_table(table, path, row_group_size=2)


@pytest.fixture
def opened(monkeypatch):
    paths = []
    real = footers._read_footer

    def counting(path, *rest):
        paths.append(path.rsplit("/")[-1])
        return real(path, *rest)

    monkeypatch.setattr(footers, "_read_footer", counting)
    return paths


def test_only_what_changed_is_opened(folder, tmp_path, opened):
    listing = tmp_path / "listing.arrow"
    first = dpipe.read_parquet(folder, listing=listing)
    assert len(opened) == 5
    opened.clear()
    again = dpipe.read_parquet(folder, listing=listing)
    assert opened == []
    pd.testing.assert_frame_equal(again.compute(), first.compute())
    assert dict(again.dtypes) == dict(first.dtypes)
    assert again._name == first._name
    write(folder / "2.parquet", 7, 8)
    write(folder / "9.parquet", 9)
    assert len(dpipe.read_parquet(folder, listing=listing)) == 4 * 6 + 8 + 6
    assert sorted(opened) == ["2.parquet", "9.parquet"]
    (folder / "0.parquet").unlink()
    opened.clear()
    assert len(dpipe.read_parquet(folder, listing=listing)) == 3 * 6 + 8 + 6
    assert opened == []


@pytest.mark.parametrize("content", [b"", b"ARROW1 and nothing", b"\0" * 100])
def test_a_listing_that_is_broken_is_written_anew(folder, tmp_path, opened, content):
    listing = tmp_path / "listing.arrow"
    listing.write_bytes(content)
    with pytest.warns(UserWarning, match="It is written anew"):
        dpipe.read_parquet(folder, listing=listing)
    opened.clear()
    dpipe.read_parquet(folder, listing=listing)
    assert opened == []


def test_a_pipeline_keeps_its_listing(folder, tmp_path, opened):
    def pipe():
        made = dpipe.Pipeline("listed", workdir=tmp_path / "run")
        made.train(LinearRegression(), made.collect(folder), features=["x"], target="y")
        return made

    first = pipe()
    assert not (tmp_path / "run" / "listings").exists()  # nothing is written before it runs
    first.run()
    opened.clear()
    pipe().run()
    assert opened == []
