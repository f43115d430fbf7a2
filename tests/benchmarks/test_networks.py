"""The benchmarks of networks as tests: so small that only their tables count, not the figures."""

import pytest

from benchmarks import data_parallel, gpu


@pytest.fixture(scope="module", autouse=True)
def torch():
    return pytest.importorskip("torch", reason="networks need PyTorch: pip install 'dpipe[torch]'")


def test_the_table_of_devices_has_a_row_for_each_way(tmp_path, capsys):
    small = ["--rows", "8000", "--batch", "512", "--hidden", "8", "--device", "cpu"]
    assert gpu.main([*small, "--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    # 16 of them, less those before the clock starts
    assert "| one batch on the device | 13 | " in printed
    assert "| dpipe.Loader | " in printed
    assert "| torch.utils.data.DataLoader | " in printed


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_the_table_of_memory_has_a_row_for_each_way(capsys):
    assert data_parallel.main(["--width", "64", "--layers", "2", "--steps", "2", "--cap", "2 GiB"]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {name}" in printed for name in data_parallel.CASES)
