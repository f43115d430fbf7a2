"""CSV files: what is found out early, and what is said late."""

import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

import dpipe
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
