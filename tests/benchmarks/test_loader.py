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
    loader.run_here(name, folder, 8_000)
    given = json.loads(capsys.readouterr().out)
    labels = sum(float(np.sum(pq.read_table(path)["y"].to_numpy())) for path in folder.glob("*.parquet"))
    expected = (1000, given["labels"]) if name == "torch_map" else (8000, labels)
    assert (given["rows"], given["labels"]) == expected


@pytest.mark.slow
def test_the_table_has_a_row_for_each_loader(folder, capsys):
    assert loader.main(["--folder", str(folder), "--rows", "8000", "--repeat", "1"]) == 0
    assert all(f"| {name} | " in capsys.readouterr().out for name in list(loader.CONTENDERS)[:1])
