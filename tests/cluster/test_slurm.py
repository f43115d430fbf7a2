"""Clusters on a real SLURM: jobs that are lost come back, and what cannot work says so instead of waiting."""

import sys
import time
from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.cli import main
from dpipe.cluster import keeper
from dpipe.cluster.cluster import Cluster
from dpipe.errors import ClusterError

# each job imports Python's scientific packages anew: on a busy machine that takes long
pytestmark = [pytest.mark.cluster, pytest.mark.slurm, pytest.mark.timeout(300)]


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
    settings = ["rows=5000", f"workdir={tmp_path}/there"]
    assert main(["run", "recipes.taxi_tips", *settings, "--cluster", str(slurm_file), "--quiet"]) == 0
    assert "ssh -N -L" in capsys.readouterr().err
    assert main(["run", "recipes.taxi_tips", "rows=5000", f"workdir={tmp_path}/here", "--quiet"]) == 0
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


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("python", "/nowhere/python", "No such file or directory.*Check the key 'python'"),
        ("queue", "nowhere", "invalid partition specified.*Check the key 'queue'"),
        ("memory", "900 GiB", "(?i)memory|node configuration.*Check the key 'memory'"),
    ],
)
def test_what_cannot_start_is_an_error_that_names_the_key(slurm, slurm_file, key, value, says):
    spec = Cluster.read(slurm_file)
    begun = time.monotonic()
    with pytest.raises(ClusterError, match=says), replace(spec, **{key: value}):
        pytest.fail("a cluster without workers has started")
    assert time.monotonic() - begun < 60
    assert slurm.jobs() == []


def test_workers_that_can_never_come_back_end_the_wait_for_a_result(slurm, slurm_file, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    spec = replace(Cluster.read(slurm_file), python=str(python), workers=1, per_job=1)
    with spec as client:
        total = client.compute(slow_array(1000).sum())
        python.unlink()
        slurm.call("scancel", *slurm.jobs())
        with pytest.raises(ClusterError, match="No such file"):
            total.result()


def test_a_plan_tells_of_a_cluster_that_has_not_been_started(slurm_file):
    X = da.ones((1000, 3), chunks=(100, 3))
    plan = dpipe.plan(StandardScaler(), X, client=Cluster.read(slurm_file))
    assert plan.workers == 4


def test_a_check_finds_what_is_wrong_with_a_specification(slurm, slurm_file, capsys):
    assert main(["cluster", "check", str(slurm_file)]) == 0
    said = capsys.readouterr().out
    assert "#SBATCH -p main" in said
    assert "ok      packages: the same versions as here" in said
    wrong = slurm_file.with_name("wrong.yaml")
    text = slurm_file.read_text().replace("main", "short")
    wrong.write_text(text.replace(f"{slurm_file.parent}/scratch", "/dev/shm/dpipe-tests"))
    with pytest.raises(SystemExit):
        main(["cluster", "check", str(wrong)])
    said = capsys.readouterr().out
    assert "CHANGE  walltime: a job asks for 00:20:00, the partition allows 1:00" in said


def test_a_submitted_run_is_followed_to_its_end(slurm, slurm_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DPIPE_HOME", str(tmp_path / "home"))
    spec = ["rows=3000", f"workdir={tmp_path}/wd", "--cluster", str(slurm_file)]
    assert main(["submit", "recipes.taxi_tips", *spec]) == 0
    assert "taxi_tips-1 is job" in capsys.readouterr().out

    def ended():
        main(["status", "taxi_tips-1"])
        said = capsys.readouterr().out
        assert "lost" not in said
        return "finished" in said or "failed" in said

    until(ended, 200)
    main(["logs", "taxi_tips-1"])
    assert "taxi-tips: finished" in capsys.readouterr().out
    assert dpipe.load(tmp_path / "wd" / "bundle", trusted=["recipes.ride_features.ride_features"])
