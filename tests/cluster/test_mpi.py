"""Runs by MPI: what is started against a golden file, and a real run where MPI is installed."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dpipe.cli import main
from dpipe.cluster.other_kinds import mpi_arguments, mpi_script
from dpipe.cluster.specification import Specification
from tests.cluster.tiny_recipe import NAME as RECIPE
from tests.cluster.tiny_recipe import fitted

GOLDEN = Path(__file__).parent / "scripts" / "mpi.txt"


def missing():
    """Say what is not installed here for a program of MPI; empty if all is."""
    if shutil.which("mpirun") is None:
        return "no mpirun: apt-get install openmpi-bin"
    absent = [name for name in ("dask_mpi", "mpi4py") if find_spec(name) is None]
    return f"no {absent[0]}: pip install dask-mpi mpi4py" if absent else ""


needs_mpi = pytest.mark.skipif(bool(missing()), reason=f"MPI is not installed here: {missing()}")


def test_what_is_started_is_as_it_was_compared_with_the_manual(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/python/bin/python")
    spec = Specification(
        "mpi", cores=4, memory="16 GiB", interface="ib0", scratch="/scratch", tls=False, source="mpi.yaml"
    )
    arguments = json.dumps(mpi_arguments(spec), indent=1)
    assert f"{mpi_script(spec, 6)}---- each rank: dask_mpi.initialize\n{arguments}\n" == GOLDEN.read_text()


def test_a_path_with_a_space_is_one_word_of_the_shell():
    spec = Specification("mpi", tls=False, source="/my files/mpi.yaml")
    assert mpi_script(spec).endswith(" RECIPE --cluster '/my files/mpi.yaml'\n")


@needs_mpi
def test_dask_mpi_takes_what_it_is_given():
    from dask_mpi import initialize

    spec = Specification("mpi", memory="1 GiB", interface="lo", tls=False)
    assert set(mpi_arguments(spec)) <= set(inspect.signature(initialize).parameters)


@pytest.fixture
def ranks(tmp_path):
    """Run `dpipe run` on so many ranks; give what was printed and the status."""
    (tmp_path / "mpi.yaml").write_text(
        f"kind: mpi\nmemory: 1 GiB\ninterface: lo\nscratch: {tmp_path}\ntls: false\n"
    )
    environment = {
        **os.environ,
        **dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1"),
        "PYTHONPATH": os.pathsep.join(["", *sys.path]).strip(os.pathsep),
    }

    def run(n, *settings):
        # ranks of one machine that may be more than its processors, on the loopback interface
        start = ("mpirun", "--oversubscribe", "-np", str(n), "--mca", "btl", "self,vader")
        command = (
            *start,
            "--mca",
            "oob_tcp_if_include",
            "lo",
            sys.executable,
            "-m",
            "dpipe.cli",
            "run",
            RECIPE,
        )
        return subprocess.run(
            [*command, *settings, "--cluster", str(tmp_path / "mpi.yaml"), "--quiet"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@needs_mpi
@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_on_ranks_of_mpi_gives_the_same_bits(ranks, tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    done = ranks(4, f"folder={there}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tiny: finished") == 1
    assert main(["run", RECIPE, f"folder={here}", "--quiet"]) == 0
    assert fitted(there) == fitted(here)


@needs_mpi
@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_too_few_ranks_are_an_error_that_says_how_to_start_them(ranks, tmp_path):
    done = ranks(1, f"folder={tmp_path}/there")
    assert done.returncode != 0
    assert "dpipe: Kind 'mpi' cannot start: Not enough MPI ranks" in done.stderr
    assert "mpirun -np 4" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "there").exists()


def test_a_check_tells_how_to_start_the_ranks_and_what_is_missing(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mpi.yaml"
    path.write_text("kind: mpi\ncores: 2\nmemory: 4 GiB\ntls: false\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        main(["cluster", "check", str(path)])
    said = capsys.readouterr().out
    assert f"-m dpipe.cli run RECIPE --cluster {path}" in said
    assert "a worker with 2 threads and 4.00 GiB" in said
    assert "CHANGE  commands: no mpirun here" in said
