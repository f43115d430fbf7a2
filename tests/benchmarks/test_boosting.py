"""The benchmark of boosting as a test: a table so small that only the answers count, not the seconds."""

import json

import pytest

from benchmarks import boosting


@pytest.mark.parametrize("memory", [None, "4 GiB"])
def test_all_contenders_reach_the_same(memory, tmp_path, capsys):
    found = {}
    for name in boosting.CONTENDERS:
        options = [
            "--rows",
            "4000",
            "--columns",
            "5",
            "--rounds",
            "5",
            "--folder",
            str(tmp_path),
            "--only",
            name,
        ]
        assert boosting.main([*options, *([] if memory is None else ["--memory", memory])]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found["dpipe_fit"]["auc"] == pytest.approx(found["in_memory"]["auc"], abs=0.002)
    assert found["dpipe_shares"]["auc"] == pytest.approx(found["in_memory"]["auc"], abs=0.01)
    assert found["in_memory"]["auc"] > 0.6


def test_the_table_has_a_row_for_each(tmp_path, capsys):
    options = [
        "--rows",
        "2000",
        "--columns",
        "5",
        "--rounds",
        "2",
        "--folder",
        str(tmp_path),
        "--repeat",
        "1",
    ]
    assert boosting.main(options) == 0
    assert "| dpipe_fit | " in capsys.readouterr().out
