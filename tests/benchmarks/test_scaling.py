"""The benchmark of scaling as a test: so few blocks that only its arithmetic counts."""

import pytest

from benchmarks import scaling


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_driver_s_cost_is_measured_and_projected(tmp_path, capsys):
    few = [
        "--workers",
        "2",
        "--blocks",
        "3",
        "--pause",
        "0.01",
        "--rows",
        "20000",
        "--times",
        "1",
        "--folder",
        str(tmp_path),
    ]
    assert scaling.main(few) == 0
    said = capsys.readouterr().out
    assert "| 2 | 6 | 0.03 s |" in said
    assert "ms for each block" in said
    assert "| 1,000 |" in said
    assert "| bare processes |" in said
    assert "| workers of dpipe |" in said


def test_predictions_are_compared_and_projected():
    runs = [scaling.Simulated(2, 100, 0.1, 6.0, 0.1), scaling.Simulated(64, 6400, 0.1, 13.6, 6.4)]
    table, worst = scaling.simulations(runs, scaling.Cost(once_s=0.9, block_s=0.001))
    assert table[-2:] == [
        "| 2 | 100 | 5.00 s | 6.00 s | 6.00 s | 1.00 |",
        "| 64 | 6,400 | 10.00 s | 17.30 s | 13.60 s | 0.79 |",
    ]
    assert worst == pytest.approx(1 - 13.6 / 17.3)
    assert scaling.projection(cost_s=0.0009, rate=2**20)[-2].startswith("| 100 | 1,111 | 90 ms, ")
