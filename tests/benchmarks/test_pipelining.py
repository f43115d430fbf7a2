"""The benchmark of split networks as a test: so small that only its tables count, not the seconds."""

import pytest

from benchmarks import pipelining


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_the_tables_have_a_row_for_each_case(capsys):
    pytest.importorskip("torch", reason="networks need PyTorch: pip install 'dpipe[torch]'")
    small = ["--width", "8", "--inner", "8", "--blocks", "2", "--steps", "2", "--repeat", "1"]
    assert pipelining.main([*small, "--memory-width", "32", "--memory-layers", "4", "--cap", "1 GiB"]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {m} | " in printed for m in pipelining.MICRO_BATCHES)
    assert all(f"| 2, {name} 1 | " in printed for name in pipelining.SHARES)
