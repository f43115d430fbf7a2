"""The benchmark of scaling as a test: so few blocks that only its arithmetic counts."""

import pytest

from benchmarks import scaling


@pytest.mark.cluster
def test_the_driver_s_cost_is_measured_and_projected(tmp_path, capsys):
    few = [
        "--workers",
        "1,2",
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
    assert "| 1,000 |" in said
    assert "| bare processes |" in said
    assert "| workers of dpipe |" in said
