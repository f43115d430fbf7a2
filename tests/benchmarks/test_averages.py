"""The benchmark of averaged learners as a test: a table so small that only the answers count, not the seconds."""

import json

import pytest

from benchmarks import averages
from benchmarks.made_table import made_table


@pytest.mark.cluster
def test_contenders_learn_the_same_thing(tmp_path, capsys):
    made_table(tmp_path, rows=20_000)
    for contender in averages.CONTENDERS[:2]:
        averages.run_here(contender, "sgd", 2, tmp_path, processes=False)
        assert 0.3 < json.loads(capsys.readouterr().out)["log_loss"] < 5
