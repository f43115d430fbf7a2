"""Clusters on a real Grid Engine, in namespaces of its own: its daemons would listen on all networks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAMS = ("sge_qmaster", "sge_execd", "qsub", "qstat", "unshare", "ip")


def missing():
    """Say why a Grid Engine cannot be started here; empty if it can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"no {absent[0]}: apt-get install gridengine-master gridengine-exec gridengine-client iproute2"
    if os.geteuid():
        return "only root may make namespaces"
    apart = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True)
    return "" if apart.returncode == 0 else apart.stderr.decode().strip()


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_jobs_on_a_grid_engine_are_checked_and_come_back(tmp_path):
    if why := missing():
        pytest.skip(f"there is no Grid Engine here: {why}")
    command = [str(HERE / "grid_engine.sh"), sys.executable, str(HERE / "grid_engine_job.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path]).strip(os.pathsep)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "#$ -q all.q" in found["script"]
    assert not [line for line in found["check"] if line.startswith("CHANGE")]
    assert found["despite"]["bits"] == found["undisturbed"]
    assert found["despite"]["lost"] not in found["despite"]["jobs"]
    assert len(found["despite"]["jobs"]) == 2
    assert "Check the key 'python'" in found["python"]["says"]
    assert found["python"]["seconds"] < 60
    assert "Check the key 'queue'" in found["queue"]["says"]
    assert found["left"] == []
