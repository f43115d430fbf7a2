"""The benchmark of searches as a test: so small that only the answers count, not the seconds."""

import pytest

from benchmarks import search


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", search.CONTENDERS)
def test_every_contender_does_its_work(name):
    if name == "optuna_pruned":
        pytest.importorskip("optuna", reason="Optuna is compared where it is installed")
    data = search.made(rows=900, block_rows=300, max_iter=3, seed=0)
    found = search.CONTENDERS[name](data)
    assert 0 < found.score <= 1
    assert found.calls >= 3


@pytest.mark.filterwarnings("ignore")
def test_the_table_has_a_row_for_each_search(capsys):
    arguments = ["--rows", "900", "--block-rows", "300", "--max-iter", "3", "--repeat", "1"]
    assert search.main([*arguments, "--contenders", "hyperband,random_search"]) == 0
    said = capsys.readouterr().out
    assert "| hyperband | " in said
    assert "| random_search | " in said
