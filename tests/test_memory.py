"""The memory contract, measured on real processes. On request: pytest -m memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from dpipe.monitor.record import RunRecord

GIB = 2**30


def run_recipe(rows: int, workdir: Path, memory: str) -> RunRecord:
    """Run the main job in a process of its own, and give its record."""
    subprocess.run(
        [
            *(sys.executable, "-m", "dpipe.cli", "run", "recipes.taxi_tips"),
            *(f"rows={rows}", f"workdir={workdir}", "--memory", memory, "--quiet"),
        ],
        cwd=Path(__file__).parents[1],
        check=True,
        timeout=1000,
    )
    return RunRecord.read(workdir / "run.json")


@pytest.mark.memory
@pytest.mark.timeout(1200)
def test_the_peak_keeps_the_budget_and_does_not_grow_with_the_rows(tmp_path):
    few = run_recipe(2_000_000, tmp_path / "few", "1GiB")
    many = run_recipe(8_000_000, tmp_path / "many", "1GiB")
    assert many.memory.measured_nbytes < GIB
    assert many.memory.measured_nbytes < 1.2 * few.memory.measured_nbytes
    assert many.memory.measured_nbytes < 1.2 * many.memory.projected_nbytes
