"""The benchmark of single fits as a test: a table so small that only the answers count, not the seconds."""

import pytest

from benchmarks import fits
from benchmarks.made_table import made_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fits")
    made_table(folder, rows=4_000)
    return folder


@pytest.mark.parametrize("name", fits.CONTENDERS)
def test_every_contender_does_its_work(name, folder, capsys):
    if name.startswith("polars"):
        pytest.importorskip("polars", reason="Polars is compared where it is installed")
    fits.run_here(name, folder)
    assert '"seconds"' in capsys.readouterr().out


def test_the_table_has_a_row_for_each_pair(folder, capsys):
    assert fits.main(["--folder", str(folder), "--rows", "4000", "--repeat", "1", "--pairs", "ten_fits"]) == 0
    assert "| ten_fits | " in capsys.readouterr().out
