"""The benchmark of loaders as a test: so few rows that only the answers count, not the seconds."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import loader


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("torch", reason="loaders are compared where PyTorch is installed")
    return tmp_path_factory.mktemp("loader")


@pytest.mark.parametrize("name", [name for name in loader.CONTENDERS if not name.endswith("workers")])
def test_every_loader_gives_every_row_once(name, folder, capsys):
    if loader.missing(name):
        pytest.skip(loader.missing(name))
    loader.run_here(name, folder, 8_000)
    given = json.loads(capsys.readouterr().out)
    labels = sum(float(np.sum(pq.read_table(path)["y"].to_numpy())) for path in folder.glob("*.parquet"))
    in_part = name in loader.IN_PART or name in loader.OF_ONE_FILE
    expected = (1000, given["labels"]) if in_part else (8000, labels)
    assert (given["rows"], given["labels"]) == expected


@pytest.mark.slow
def test_the_table_has_a_row_for_each_loader_or_says_what_is_missing(folder, capsys):
    assert loader.main(["--folder", str(folder), "--rows", "8000", "--repeat", "1"]) == 0
    printed = capsys.readouterr().out
    left_out = [name for name in loader.CONTENDERS if loader.missing(name)]
    assert all(f"{name} is left out: pip install" in printed for name in left_out)
    assert all(f"| {name} | " in printed for name in loader.CONTENDERS if name not in left_out)
