"""Clusters on a real SLURM: jobs that are lost come back, and what cannot work says so instead of waiting."""

import time

import dask.array as da
import numpy as np
import pytest

from dpipe.cli import main
from dpipe.cluster import keeper
from dpipe.cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slurm]


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Look at the queue every half a second: this one has nobody else to serve."""
    monkeypatch.setattr(keeper, "EVERY_S", 0.5)


def slow_ones(block):
    """Give a block of ones, in half a second."""
    time.sleep(0.5)
    return np.ones_like(block)


def slow_array(n_blocks):
    return da.zeros((n_blocks * 10, 2), chunks=(10, 2)).map_blocks(slow_ones, dtype=float)


def until(is_so, seconds=60):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"{is_so} is still not so after {seconds} s"
        time.sleep(0.1)


def test_the_main_job_gives_the_same_bits_on_two_nodes_with_two_workers(slurm, slurm_file, tmp_path, capsys):
    settings = ["rows=20000", f"workdir={tmp_path}/there"]
    assert main(["run", "recipes.taxi_tips", *settings, "--cluster", str(slurm_file), "--quiet"]) == 0
    assert "ssh -N -L" in capsys.readouterr().err
    assert main(["run", "recipes.taxi_tips", "rows=20000", f"workdir={tmp_path}/here", "--quiet"]) == 0
    models = [(tmp_path / where / "bundle" / "model.skops").read_bytes() for where in ("there", "here")]
    assert models[0] == models[1]
    assert not list((tmp_path / "dpipe" / "clusters").iterdir())  # certificates and scripts are gone


def test_jobs_that_are_cancelled_or_lose_their_node_come_back(slurm, slurm_file, caplog):
    with Cluster.read(slurm_file) as client:
        client.wait_for_workers(4, timeout=60)
        first, second = slurm.jobs()
        assert slurm.nodes_of(first, second) == {"node1", "node2"}
        total = client.compute(slow_array(24).sum())
        slurm.call("scancel", first)
        assert total.result() == 480
        until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 4)
        total = client.compute(slow_array(25).sum())
        node = slurm.nodes_of(second).pop()
        slurm.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        assert total.result() == 500
        assert second not in slurm.jobs()
    assert caplog.text.count("It is replaced") == 2
