"""Clusters on a real SLURM: jobs that are lost come back, and what cannot work says so instead of waiting."""

import subprocess
import sys
import time
from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.cli import main
from dpipe.cluster import keeper
from dpipe.cluster.cluster import Cluster
from dpipe.cluster.node import NANNY_NBYTES
from dpipe.cluster.submission import read_submission
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
    trusted = ["recipes.ride_features.ride_features"]
    there, here = (dpipe.load(tmp_path / run / "bundle", trusted=trusted) for run in ("there", "here"))
    assert there.metrics == here.metrics
    assert there.model[-1].coef_.tobytes() == here.model[-1].coef_.tobytes()
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
    assert caplog.text.count("Another is submitted") == 2


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
    assert plan.memory_nbytes == (2 * 2**30 - NANNY_NBYTES) // 2


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


RECIPE = "tests.cluster.tiny_recipe"


def followed(capsys, name):
    """Follow a submission to its end; give what its status was."""
    said = ""

    def ended():
        nonlocal said
        main(["status", name])
        said = capsys.readouterr().out
        assert "lost" not in said
        return "finished" in said or "failed" in said

    until(ended, 600)
    return said


def fitted(folder):
    """Give the coefficients that a run of the recipe has deployed, to the bit."""
    model = dpipe.load(folder / "workdir" / "bundle").model
    return [model[0].mean_.tobytes(), model[1].coef_.tobytes()]


def test_a_submitted_run_is_followed_to_its_end(slurm, slurm_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DPIPE_HOME", str(tmp_path / "home"))
    slurm_file.write_text(slurm_file.read_text().replace("workers: 4\nper_job: 2", "workers: 1"))
    assert main(["submit", RECIPE, f"folder={tmp_path}", "--cluster", str(slurm_file)]) == 0
    assert "tiny_recipe-1 is job" in capsys.readouterr().out
    assert "finished" in followed(capsys, "tiny_recipe-1")
    main(["logs", "tiny_recipe-1"])
    assert "tiny: finished" in capsys.readouterr().out
    assert len(fitted(tmp_path)) == 2
    main(["cancel", "tiny_recipe-1"])
    assert "is finished already" in capsys.readouterr().out


def test_a_submitted_run_can_be_cancelled(slurm, slurm_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DPIPE_HOME", str(tmp_path / "home"))
    assert main(["submit", RECIPE, f"folder={tmp_path}", "pause=60", "--cluster", str(slurm_file)]) == 0
    main(["cancel", "tiny_recipe-1"])
    main(["status"])
    assert "tiny_recipe-1: cancelled" in capsys.readouterr().out
    until(lambda: not slurm.jobs())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_that_needs_several_wall_times_ends_with_the_same_bits(
    slurm, slurm_file, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("DPIPE_HOME", str(tmp_path / "home"))
    text = slurm_file.read_text().replace("workers: 4\nper_job: 2", "workers: 1\ndriver_walltime: 90")
    slurm_file.write_text(text)
    long, short = tmp_path / "long", tmp_path / "short"
    assert main(["submit", RECIPE, f"folder={long}", "pause=5", "--cluster", str(slurm_file)]) == 0
    capsys.readouterr()
    assert "finished" in followed(capsys, "tiny_recipe-1")
    assert len(read_submission("tiny_recipe-1").jobs) >= 3
    assert main(["run", RECIPE, f"folder={short}", "--quiet"]) == 0
    assert fitted(long) == fitted(short)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MiB; skipped where none can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_node_whose_scratch_is_full_ends_in_an_error_that_says_so(slurm, slurm_file, small_disk):
    text = slurm_file.read_text().replace("workers: 4\nper_job: 2", "workers: 1")
    slurm_file.write_text(text.replace(f"{slurm_file.parent}/scratch", str(small_disk)))
    X = da.random.default_rng(0).normal(size=(400_000, 4), chunks=(50_000, 4))
    with Cluster.read(slurm_file) as client:
        begun = time.monotonic()
        with pytest.raises(
            dpipe.DpipeError, match=f"Scratch cannot be written in {small_disk}.*No space left"
        ):
            dpipe.fit(KMeans(3, random_state=0), X, client=client)
        assert time.monotonic() - begun < 60


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_whose_wall_time_runs_out_are_replaced(slurm, slurm_file, caplog):
    text = slurm_file.read_text().replace("workers: 4\nper_job: 2", "workers: 1")
    slurm_file.write_text(text.replace("00:20:00", "00:01:30"))
    seen = set()
    with Cluster.read(slurm_file) as client:
        total = client.compute(slow_array(280).sum())
        while not total.done():
            seen |= {worker["name"] for worker in client.scheduler_info()["workers"].values()}
            time.sleep(0.5)
        assert total.result() == 5600
    assert len(seen) >= 3
    assert "was lost" not in caplog.text


@pytest.mark.slow
def test_a_cluster_of_two_sizes_follows_the_work(slurm, slurm_file):
    text = slurm_file.read_text().replace("workers: 4\nper_job: 2", "workers: [1, 3]")
    slurm_file.write_text(text)
    with Cluster.read(slurm_file) as client:
        total = client.compute(slow_array(150).sum())
        until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 3)
        assert total.result() == 3000
        until(lambda: len(slurm.jobs()) == 1)
        assert client.submit(sum, [1, 2]).result() == 3
