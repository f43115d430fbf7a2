"""Files that vanish, are cut short, replaced or made unreadable between their listing and their reading."""

import os
import signal
from types import FrameType

import pandas as pd
import pyarrow as pa
import pytest

import dpipe
from dpipe.collect.footers import Listing
from dpipe.collect.parquet import ParquetReader
from dpipe.errors import InputError, SourceError

FRAME = pd.DataFrame({"x": range(40), "y": range(40)})


def write(frame, path):
    frame.to_parquet(path, index=False, row_group_size=10, compression=None, use_dictionary=False)


@pytest.fixture
def rows(tmp_path):
    for i in range(3):
        write(FRAME, tmp_path / f"{i}.parquet")
    return tmp_path


@pytest.fixture(autouse=True)
def _soon():
    """Fail where a read would wait for ever: nobody writes to the pipes."""

    def give_up(number: int, frame: FrameType | None) -> None:
        os._exit(99)  # a thread that waits inside of a system call cannot be stopped in another way

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


def emptied(path):
    os.truncate(path, 0)


def removed(path):
    path.unlink()


def replaced(path):
    write(FRAME.iloc[:20], path)


def of_the_same_size(path):
    n_bytes = path.stat().st_size
    write(FRAME.assign(y=7), path)
    assert path.stat().st_size == n_bytes


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def a_link_to_nothing(path):
    path.unlink()
    path.symlink_to(path.parent / "nothing")


def a_link_to_itself(path):
    path.unlink()
    path.symlink_to(path)


CHANGES = [
    *(truncated, emptied, removed, replaced, of_the_same_size),
    *(a_folder, a_pipe, a_link_to_nothing, a_link_to_itself),
]


@pytest.mark.parametrize("change", CHANGES)
def test_before_a_block_is_read(change, rows):
    frame = dpipe.read_parquet(rows)
    change(rows / "1.parquet")
    with pytest.raises(
        SourceError, match=r"1\.parquet.* since it was listed.*the other files are not affected"
    ):
        frame["x"].sum().compute()


@pytest.mark.parametrize("change", [replaced, of_the_same_size, removed])
def test_while_a_block_is_read(change, rows, monkeypatch):
    """What was decoded may be of both contents: it is refused, though decoding went well."""
    frame = dpipe.read_parquet(rows)
    decoded = ParquetReader._decoded

    def changing(reader, block, wanted):
        found = decoded(reader, block, wanted)
        if block.path.endswith("1.parquet"):
            change(rows / "1.parquet")
        return found

    monkeypatch.setattr(ParquetReader, "_decoded", changing)
    with pytest.raises(SourceError, match=r"1\.parquet has changed since it was listed"):
        frame["x"].sum().compute()


@pytest.mark.parametrize("change", [truncated, emptied, a_pipe, a_link_to_nothing, a_link_to_itself])
def test_before_the_footers_are_read(change, rows):
    change(rows / "1.parquet")
    with pytest.raises(SourceError, match=r"1\.parquet.*leave it out of the source"):
        dpipe.read_parquet(rows)


@pytest.mark.parametrize("change", [truncated, emptied, a_pipe, a_link_to_nothing, a_link_to_itself])
def test_broken_files_are_left_out_where_asked_for(change, rows):
    change(rows / "1.parquet")
    with pytest.warns(UserWarning, match=r"1\.parquet.*The file is left out"):
        frame = dpipe.read_parquet(rows, on_corrupt="skip")
    assert len(frame) == 80


@pytest.mark.parametrize("change", CHANGES)
def test_a_listing_does_not_hide_a_change(change, rows, tmp_path):
    listing = tmp_path / "listing"
    dpipe.read_parquet(rows, listing=listing)
    change(rows / "1.parquet")
    if change in (replaced, of_the_same_size):
        fresh = dpipe.read_parquet(rows).compute()
        pd.testing.assert_frame_equal(dpipe.read_parquet(rows, listing=listing).compute(), fresh)
    elif change in (removed, a_folder):  # a folder is not read as a file
        assert len(dpipe.read_parquet(rows, listing=listing)) == 80
    else:
        with pytest.raises(SourceError, match=r"1\.parquet"):
            dpipe.read_parquet(rows, listing=listing)


def test_any_flipped_bit_of_a_listing_is_noticed(rows, tmp_path):
    listing = tmp_path / "listing"
    dpipe.read_parquet(rows, listing=listing)
    content = listing.read_bytes()
    for at in range(0, len(content), 97):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        listing.write_bytes(flipped)
        with pytest.warns(UserWarning, match="It is written anew"):
            assert Listing(listing).find(str(rows / "1.parquet"), (0, 1)) is None


def test_another_table_is_no_listing(rows, tmp_path):
    listing = tmp_path / "listing"
    with (
        pa.OSFile(str(listing), "wb") as file,
        pa.ipc.new_file(file, pa.schema([("a", pa.int64())])) as writer,
    ):
        writer.write_table(pa.table({"a": [1]}))
    with pytest.warns(UserWarning, match="It is written anew"):
        assert len(dpipe.read_parquet(rows, listing=listing)) == 120


@pytest.mark.parametrize("listing", ["", ".", 5, b"listing", ["listing"]])
def test_what_is_no_path_of_a_listing(listing, rows, monkeypatch):
    monkeypatch.chdir(rows)
    with pytest.raises(InputError, match="listing="):
        dpipe.read_parquet(rows, listing=listing)


def test_a_listing_that_cannot_be_written(rows, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"taken/listing.* cannot be written.*leave listing= out"):
        dpipe.read_parquet(rows, listing=tmp_path / "taken" / "listing")


def test_a_listing_in_the_home_folder(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    dpipe.read_parquet(rows, listing="~/listing")
    assert (tmp_path / "home" / "listing").is_file()


@pytest.mark.parametrize("options", ["a-secret-key-as-text", 5, ["a-secret-key"]])
def test_options_that_are_no_mapping_are_not_shown(options, rows):
    with pytest.raises(InputError, match="storage_options is a") as caught:
        dpipe.read_parquet(rows, storage_options=options)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(rows):
    with pytest.raises(SourceError, match=r"There is no file .*missing\.parquet"):
        dpipe.read_parquet(f"memory://{rows}/missing.parquet")


def test_an_address_that_nothing_reads():
    with pytest.raises(SourceError, match="cannot be listed.*Check the address"):
        dpipe.read_parquet("nonsense://bucket/*.parquet")
