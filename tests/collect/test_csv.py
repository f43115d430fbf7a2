"""CSV files: what is found out early, and what is said late."""

import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.collect import csv
from dpipe.errors import InputError, SourceError


def write(folder, *frames):
    for i, frame in enumerate(frames):
        frame.to_csv(folder / f"{i}.csv", index=False)
    return folder


FRAME = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5]})


def test_reads_back_what_was_written(tmp_path):
    frame = dpipe.read_csv(write(tmp_path, FRAME, FRAME), columns=["b"])
    assert frame.compute()["b"].tolist() == [0.5, 1.5, 2.5] * 2


def test_another_header_names_its_file(tmp_path):
    write(tmp_path, FRAME, FRAME.rename(columns={"b": "q"}))
    with pytest.raises(
        SourceError, match=r"1\.csv has another header than .*0\.csv: 'a', 'q' instead of 'a', 'b'"
    ):
        dpipe.read_csv(tmp_path)


def test_types_that_the_head_does_not_show_are_named_with_a_remedy(tmp_path):
    write(tmp_path, FRAME, FRAME.assign(a=[0.5, 1.5, 2.5]))
    frame = dpipe.read_csv(tmp_path)
    with pytest.raises(SourceError, match=r"block 1: .*read_csv\(\.\.\., dtype=\{'a': 'float64'\}\)"):
        dpipe.fit(StandardScaler(), frame)
    again = dpipe.read_csv(tmp_path, dtype={"a": "float64"})
    assert dpipe.fit(StandardScaler(), again).n_samples_seen_ == 6


@pytest.mark.parametrize(("size", "message"), [("lots", "'lots' is not a size"), (0, "must be positive")])
def test_sizes_of_blocks(size, message, tmp_path):
    with pytest.raises(InputError, match=message):
        dpipe.read_csv(write(tmp_path, FRAME), block_nbytes=size)


def test_a_missing_column(tmp_path):
    with pytest.raises(InputError, match="no column 'z' in the source. It has: 'a', 'b'"):
        dpipe.read_csv(write(tmp_path, FRAME), columns=["z"])


def test_an_empty_file_is_named(tmp_path):
    write(tmp_path, FRAME)
    (tmp_path / "1.csv").write_text("")
    with pytest.raises(SourceError, match=r"1\.csv cannot be read as CSV"):
        dpipe.read_csv(tmp_path)


def grown(path):
    with path.open("a") as file:
        file.write("4,3.5\n")


def removed(path):
    path.unlink()


@pytest.mark.parametrize(("change", "says"), [(grown, "it had 22 bytes and has 28"), (removed, "it is gone")])
def test_a_file_that_changed_since_it_was_listed_is_named_and_nothing_of_it_is_used(change, says, tmp_path):
    frame = dpipe.read_csv(write(tmp_path, FRAME, FRAME))
    change(tmp_path / "1.csv")
    with pytest.raises(SourceError, match=rf"1\.csv has changed since it was listed: {says}"):
        dpipe.fit(StandardScaler(), frame)


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, monkeypatch):
    real = csv.read_block

    def meanwhile(file, *arguments):
        text = real(file, *arguments)
        grown(tmp_path / "1.csv")
        return text

    frame = dpipe.read_csv(write(tmp_path, FRAME, FRAME))
    monkeypatch.setattr(csv, "read_block", meanwhile)
    with pytest.raises(SourceError, match=r"1\.csv has changed since it was listed"):
        frame.partitions[1].compute(scheduler="sync")


def test_only_the_blocks_of_a_changed_file_are_read_again(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    write(data, *[FRAME] * 3)
    dpipe.fit(StandardScaler(), dpipe.read_csv(data), workdir=tmp_path / "run")
    grown(data / "1.csv")
    capsys.readouterr()
    fitted = dpipe.fit(StandardScaler(), dpipe.read_csv(data), workdir=tmp_path / "run")
    assert fitted.n_samples_seen_ == 10
    said = capsys.readouterr().err
    assert "2 of 3 blocks of pass 1 on record" in said
    assert f"the file {data / '1.csv'} changed" in said


def test_compressed_files_and_broken_ones(tmp_path):
    FRAME.to_csv(tmp_path / "0.csv.gz", index=False)
    FRAME.to_csv(tmp_path / "1.csv.gz", index=False)
    with pytest.warns(UserWarning, match="compress"):
        frame = dpipe.read_csv(str(tmp_path / "*.csv.gz"))
    assert dpipe.fit(StandardScaler(), frame).n_samples_seen_ == 6
    whole = (tmp_path / "1.csv.gz").read_bytes()
    (tmp_path / "1.csv.gz").write_bytes(whole[:30] + bytes(8) + whole[38:])
    with pytest.raises(SourceError, match=r"1\.csv\.gz"):
        dpipe.fit(StandardScaler(), frame)
