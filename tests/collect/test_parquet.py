"""Parquet sources: metadata only until read, one type a column, files that are broken are named."""

import os
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from dpipe.collect.block_list import BlockList
from dpipe.collect.loads import ReadLoad
from dpipe.collect.parquet import BlockSpec, ParquetReader, read_parquet, row_nbytes
from dpipe.collect.source import open_source
from dpipe.errors import InputError, SourceError
from dpipe.train.fit import fit, plan
from tests.helpers import raise_if_computes

FRAME = pd.DataFrame(
    {
        "a": np.arange(100.0),
        "n": np.arange(100),
        "s": pd.Series(["u", "v", "w", "x"] * 25, dtype="str"),
        "flag": [True, False] * 50,
    }
)


def write(folder, *frames, **options):
    for i, frame in enumerate(frames):
        table = frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, preserve_index=False)
        pq.write_table(table, folder / f"{i}.parquet", **options)
    return folder


def test_reads_back_what_was_written(tmp_path):
    write(tmp_path, FRAME.iloc[:30], FRAME.iloc[30:])
    with raise_if_computes():
        X = read_parquet(tmp_path)
    assert X.npartitions == 2
    found = X.compute().reset_index(drop=True)
    pd.testing.assert_frame_equal(found.astype({"s": "str"}), FRAME)
    assert X.dtypes.astype(str).to_dict() == found.dtypes.astype(str).to_dict()


@pytest.mark.parametrize(
    "source",
    [
        lambda folder: folder,
        lambda folder: str(folder),
        lambda folder: folder / "*.parquet",
        lambda folder: [folder / "0.parquet", folder / "1.parquet"],
        lambda folder: f"{folder}/**/[01].parquet",
        lambda folder: f"file://{folder}/*.parquet",
        lambda folder: [f"file://{folder}/0.parquet", folder / "1.parquet"],
    ],
    ids=["path", "text", "glob", "list", "recursive", "URL", "mixed"],
)
def test_ways_to_name_files(source, tmp_path):
    write(tmp_path, FRAME.iloc[:30], FRAME.iloc[30:])
    X = read_parquet(source(tmp_path))
    assert X["n"].compute().tolist() == list(range(100))


def test_a_folder_is_read_with_its_folders_and_nothing_else(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
    write(tmp_path / "a", FRAME.iloc[:30])
    write(tmp_path / "b", FRAME.iloc[30:])
    (tmp_path / "_SUCCESS").write_text("")
    assert read_parquet(tmp_path)["n"].compute().tolist() == list(range(100))


@pytest.mark.parametrize("source", ["nothing/*.parquet", "nothing.parquet", "", []])
def test_no_files(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="No file matches"):
        read_parquet(source)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (FRAME.drop(columns="s"), "it lacks 's'"),
        (FRAME.assign(new=1), "it also has 'new'"),
        (FRAME.astype({"n": "float64"}), "'n' is double instead of int64"),
        (FRAME.astype({"a": "float32"}), "'a' is float instead of double"),
        (FRAME.rename(columns={"a": "A"}), "it lacks 'a'; it also has 'A'"),
    ],
)
def test_another_schema_is_refused_by_the_name_of_its_file(other, said, tmp_path):
    write(tmp_path, FRAME, FRAME, other)
    with pytest.raises(
        SourceError, match=rf"2\.parquet has another schema than .*0\.parquet: {said}.*schema=pyarrow"
    ):
        read_parquet(tmp_path)


def test_encodings_of_text_are_not_another_schema(tmp_path):
    plain = pa.Table.from_pandas(FRAME, preserve_index=False)
    j = plain.schema.get_field_index("s")
    tables = [plain.set_column(j, "s", plain["s"].cast(kind)) for kind in (pa.string(), pa.large_string())]
    tables.append(plain.set_column(j, "s", plain["s"].cast(pa.string()).dictionary_encode()))
    tables.append(pa.Table.from_pandas(FRAME.astype({"s": "category"}), preserve_index=False))
    X = read_parquet(write(tmp_path, *tables))
    assert X["s"].compute().tolist() == FRAME["s"].tolist() * 4
    assert fit(OneHotEncoder(), X[["s"]]).categories_[0].tolist() == list("uvwx")


def test_columns_that_are_all_missing_in_a_file_have_the_type_of_the_others(tmp_path):
    gone = FRAME.assign(s=None, a=None)
    X = read_parquet(write(tmp_path, gone, FRAME, gone))
    found = X.compute()
    assert found["a"].isna().sum() == found["s"].isna().sum() == 200
    assert found["a"].dtype == "float64"
    assert fit(StandardScaler(), X[["a"]]).n_samples_seen_ == 100


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_columns_in_another_order_are_found_by_name(order, tmp_path):
    frames = [FRAME, FRAME[["flag", "s", "n", "a"]]]
    X = read_parquet(write(tmp_path, *(frames[i] for i in order)))
    assert X["a"].compute().tolist() == FRAME["a"].tolist() * 2


def test_whole_numbers_with_gaps_are_floats_in_every_block(tmp_path):
    holes = FRAME.astype({"n": "Int64", "flag": "boolean"})
    holes.loc[5, ["n", "flag"]] = pd.NA
    X = read_parquet(write(tmp_path, FRAME, holes))
    assert X.dtypes[["n", "flag"]].astype(str).tolist() == ["float64", "float64"]
    for part in X.partitions:
        assert part.compute().dtypes[["n", "flag"]].astype(str).tolist() == ["float64", "float64"]
    assert np.isnan(X["n"].compute().iloc[105])
    expected = make_pipeline(SimpleImputer(), StandardScaler()).fit(X.compute()[["n", "flag"]])
    result = fit(make_pipeline(SimpleImputer(), StandardScaler()), X[["n", "flag"]])
    np.testing.assert_allclose(result[1].mean_, expected[1].mean_)


def test_nullable_numbers_without_gaps_stay_whole(tmp_path):
    X = read_parquet(write(tmp_path, FRAME.astype({"n": "Int64"}), FRAME.iloc[:0], FRAME))
    assert X["n"].dtype == "int64"
    assert X["n"].compute().dtype == "int64"


def test_a_schema_casts_renames_case_and_fills(tmp_path):
    other = FRAME.rename(columns={"a": "A", "s": "S"}).astype({"n": "float32"}).drop(columns="flag")
    schema = pa.schema([("a", pa.float64()), ("n", pa.int64()), ("s", pa.string()), ("flag", pa.bool_())])
    X = read_parquet(write(tmp_path, FRAME, other), schema=schema)
    found = X.compute()
    assert list(found) == ["a", "n", "s", "flag"]
    assert found["a"].tolist() == FRAME["a"].tolist() * 2
    assert found["n"].tolist() == FRAME["n"].tolist() * 2
    assert found["s"].tolist() == FRAME["s"].tolist() * 2
    assert found["flag"].isna().sum() == 100
    assert fit(OneHotEncoder(), X[["s"]]).categories_[0].tolist() == list("uvwx")
    assert fit(StandardScaler(), X[["flag"]]).n_samples_seen_ == 100


def test_a_schema_that_cannot_be_had_names_the_file(tmp_path):
    X = read_parquet(write(tmp_path, FRAME), schema=pa.schema([("s", pa.float64())]))
    with pytest.raises(SourceError, match=r"0\.parquet"):
        X.compute()


def test_a_file_that_lacks_every_column_that_is_asked_for(tmp_path):
    schema = pa.schema([("a", pa.float64()), ("flag", pa.bool_())])
    X = read_parquet(write(tmp_path, FRAME, FRAME.drop(columns="flag")), schema=schema)
    assert len(X["flag"].compute()) == 200


def test_columns_are_chosen(tmp_path):
    X = read_parquet(write(tmp_path, FRAME), columns=["s", "a"])
    assert list(X.columns) == ["s", "a"]
    with pytest.raises(InputError, match="no column 'zz' in the source. It has: 'a', 'n', 's', 'flag'"):
        read_parquet(tmp_path, columns=["zz", "a"])


def test_only_needed_columns_are_decoded(tmp_path, monkeypatch):
    decoded = []
    real = pq.ParquetFile.read_row_groups

    def watched(self, row_groups, columns=None, **options):
        decoded.append(columns)
        return real(self, row_groups, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", watched)
    X = read_parquet(write(tmp_path, FRAME, FRAME))
    fit(make_column_transformer((StandardScaler(), ["n"]), ("drop", ["s"])), X, "flag")
    X[["a"]].sum().compute()
    assert decoded == [["n", "flag"]] * 2 + [["a"]] * 2


def test_row_groups_are_joined_up_to_the_size_of_a_block_and_never_split(tmp_path):
    write(tmp_path, FRAME, FRAME, row_group_size=10)
    width = row_nbytes(pa.Table.from_pandas(FRAME, preserve_index=False).schema)
    for rows, blocks in ((1000, 2), (35, 8), (10, 20), (1, 20)):
        X = read_parquet(tmp_path, block_nbytes=rows * width)
        assert X.npartitions == blocks
        assert X["n"].compute().tolist() == list(range(100)) * 2
    assert read_parquet(tmp_path, memory="2 GiB").npartitions == 2


def flip(path, at=0.5):
    data = bytearray(path.read_bytes())
    start = int(len(data) * at)
    for i in range(start, start + 64):
        data[i] ^= 0xFF
    path.write_bytes(bytes(data))


def test_a_corrupt_footer_names_its_file(tmp_path):
    write(tmp_path, FRAME, FRAME)
    path = tmp_path / "1.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match=r"1\.parquet cannot be read as Parquet"):
        read_parquet(tmp_path)
    path.write_text("no Parquet at all")
    with pytest.raises(SourceError, match=r"1\.parquet cannot be read as Parquet"):
        read_parquet(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(SourceError, match=r"1\.parquet cannot be read as Parquet"):
        read_parquet(tmp_path)


def corrupted(tmp_path):
    rng = np.random.default_rng(0)
    noise = pd.DataFrame({"a": rng.normal(size=5000), "b": rng.normal(size=5000)})
    write(tmp_path, noise, noise, noise, compression="zstd", use_dictionary=False, write_page_checksum=True)
    flip(tmp_path / "1.parquet", at=0.3)
    return tmp_path


def test_a_corrupt_page_names_its_file(tmp_path):
    X = read_parquet(corrupted(tmp_path))
    for compute in (lambda: fit(StandardScaler(), X), lambda: X.sum().compute()):
        with pytest.raises(SourceError, match=r"1\.parquet: row groups \[0\] cannot be read.*other files"):
            compute()


def test_a_corrupt_page_can_be_left_out(tmp_path):
    X = read_parquet(corrupted(tmp_path), on_corrupt="skip")
    with (
        pytest.warns(UserWarning, match=r"1\.parquet.*left out"),
        pytest.warns(UserWarning, match="pass 1 read 10,000 rows of 15,000"),
    ):
        assert fit(StandardScaler(), X).n_samples_seen_ == 10_000


def test_a_corrupt_footer_can_be_left_out(tmp_path):
    write(tmp_path, FRAME, FRAME)
    (tmp_path / "1.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:-20])
    with pytest.warns(UserWarning, match=r"1\.parquet cannot be read as Parquet.*left out"):
        assert len(read_parquet(tmp_path, on_corrupt="skip")) == len(FRAME)
    (tmp_path / "0.parquet").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(SourceError, match="None of the 2 files"),
    ):
        read_parquet(tmp_path, on_corrupt="skip")


@pytest.mark.parametrize("source", [5, None])
def test_a_source_that_names_nothing(source):
    with pytest.raises(InputError, match=f"source is {source}; it must be a path"):
        read_parquet(source)


def test_a_file_that_changes_or_goes_is_named(tmp_path):
    X = read_parquet(write(tmp_path, FRAME, FRAME, row_group_size=50))
    os.remove(tmp_path / "0.parquet")
    with pytest.raises(SourceError, match=r"0\.parquet.*changed since it was listed"):
        X.partitions[0].compute()
    write(tmp_path, FRAME, FRAME, row_group_size=100)
    with pytest.raises(SourceError, match=r"1\.parquet has changed since it was listed: it had"):
        X.partitions[1].compute()


def test_a_changed_file_is_another_block(tmp_path):
    before = read_parquet(write(tmp_path, FRAME))
    write(tmp_path, FRAME.assign(a=1.0))
    os.utime(tmp_path / "0.parquet", ns=(1, 1))
    assert before.dask.keys() != read_parquet(tmp_path).dask.keys()


def test_a_reader_gives_the_rows_of_no_columns(tmp_path):
    write(tmp_path, FRAME)
    reader = ParquetReader(pa.schema([("a", pa.float64())]), ())
    assert reader.read(BlockSpec(str(tmp_path / "0.parquet"), (0,), 100), []).num_rows == 100


def test_files_without_rows(tmp_path):
    X = read_parquet(write(tmp_path, FRAME.iloc[:0], FRAME, FRAME.iloc[:0]))
    assert fit(StandardScaler(), X[["a"]]).n_samples_seen_ == 100
    _, loads = open_source(X).loads(None)
    assert all(isinstance(load, ReadLoad) for load in loads)


def test_times_are_refused_by_name_where_numbers_are_needed(tmp_path):
    X = read_parquet(write(tmp_path, FRAME.assign(when=pd.Timestamp("2024-01-01"))))
    with pytest.raises(InputError, match="Column 'when' is not numeric: its type is timestamp"):
        fit(StandardScaler(), X[["a", "when"]])
    assert fit(make_column_transformer((StandardScaler(), ["a"])), X)


@dataclass(frozen=True)
class Told(BlockSpec):
    """A block that counts how often all of it is looked at."""

    seen: ClassVar[Counter] = Counter()

    def __repr__(self):
        self.seen[self.path, self.row_groups] += 1
        return super().__repr__()


def test_planning_looks_at_each_block_once():
    schema = pa.schema([("x", pa.float64()), ("y", pa.float64())])
    blocks = BlockList(Told(f"{i}.parquet", (0,), 10, (100, i)) for i in range(50))
    Told.seen.clear()
    frame = dd.from_map(ParquetReader(schema, ()), blocks, meta=schema.empty_table().to_pandas())
    for model in (StandardScaler(), make_pipeline(StandardScaler(), OneHotEncoder())):
        plan(model, frame, "y")
    assert set(Told.seen.values()) == {1}
    assert len(Told.seen) == 50
