"""The benchmark of averaged learners as a test: a table so small that only the answers count, not the seconds."""

import pytest

from benchmarks import averages
from benchmarks.made_table import made_table


@pytest.mark.cluster
@pytest.mark.parametrize("learner", ["sgd", "asgd"])
def test_contenders_learn_the_same_thing(learner, tmp_path, capsys):
    made_table(tmp_path, rows=4_000)
    losses = []
    for contender in averages.CONTENDERS[:2]:
        averages.run_here(contender, learner, 2, tmp_path)
        losses.append(float(capsys.readouterr().out.rpartition(": ")[2].rstrip("}\n")))
    assert all(0.3 < loss < 3 for loss in losses)
