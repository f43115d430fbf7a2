"""Clusters on a real SLURM: jobs that are lost come back, and what cannot work says so instead of waiting."""

import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.cli import main
from dpipe.cluster.cluster import Cluster
from dpipe.cluster.node import NANNY_NBYTES
from dpipe.errors import ClusterError
from tests.cluster.slurm import missing
from tests.cluster.tiny_recipe import NAME as RECIPE
from tests.cluster.tiny_recipe import fitted, followed, until

# each job imports Python's scientific packages anew: on a busy machine that takes long
pytestmark = [
    *(pytest.mark.cluster, pytest.mark.slurm, pytest.mark.timeout(300)),
    pytest.mark.usefixtures("often"),
]


def slow_ones(block):
    """Give a block of ones, in half a second."""
    time.sleep(0.5)
    return np.ones_like(block)


def slow_array(n_blocks):
    return da.zeros((n_blocks * 10, 2), chunks=(10, 2)).map_blocks(slow_ones, dtype=float)


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
def test_a_cluster_of_two_sizes_follows_the_work(slurm, slurm_file):
    text = slurm_file.read_text().replace("workers: 4\nper_job: 2", "workers: [1, 3]")
    slurm_file.write_text(text)
    with Cluster.read(slurm_file) as client:
        total = client.compute(slow_array(150).sum())
        until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 3)
        assert total.result() == 3000
        until(lambda: len(slurm.jobs()) == 1)
        assert client.submit(sum, [1, 2]).result() == 3


def has_ended(pid):
    """Tell whether a process is gone, or nothing is left of it but its status."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=f"SLURM is not installed here: {missing()}")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_tests_that_are_killed_leave_no_daemons(how):
    # munge wants a folder that everybody may enter, which pytest's are not
    folder = Path(tempfile.mkdtemp(prefix="dpipe-slurm-"))
    folder.chmod(0o755)
    code = (
        "import pathlib, sys, time; from tests.cluster.slurm import Slurm; s = Slurm(pathlib.Path(sys.argv[1])); "
        "s.start(); print(*(d.pid for d in s._daemons), flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE) as tests:
        assert tests.stdout is not None
        daemons = tests.stdout.readline().split()
        tests.send_signal(how)
    assert len(daemons) == 4
    until(lambda: all(has_ended(int(pid)) for pid in daemons) and not folder.exists(), 40)
