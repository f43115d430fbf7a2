"""What can go wrong on a real SLURM, one fault a test; a table of what came of each closes the tests.

All of them: ``pytest -m slurm tests/cluster/test_slurm_faults.py``.
"""

import re
import shutil
import subprocess
import threading
import time
from dataclasses import replace

import dask
import dask.array as da
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.cli import main
from dpipe.cluster.cluster import Cluster
from dpipe.cluster.submission import read_submission
from dpipe.errors import ClusterError
from tests.cluster.tiny_recipe import NAME as RECIPE
from tests.cluster.tiny_recipe import fitted, followed, until

# each job imports Python's scientific packages anew: on a busy machine that takes long
pytestmark = [
    *(pytest.mark.cluster, pytest.mark.slurm, pytest.mark.timeout(300)),
    pytest.mark.usefixtures("often"),
]


def late(block, pause):
    """Give a block as it is, after a pause."""
    time.sleep(pause)
    return block


def rows(n_blocks, pause):
    """Give X and y; the same whatever the pause is."""
    X = da.random.default_rng(0).normal(size=(n_blocks * 100, 3), chunks=(100, 3))
    X = X.map_blocks(late, pause, dtype=float, meta=np.empty((0, 3)))
    return X, X @ np.array([1.0, -2.0, 0.5])


def bits(n_blocks, pause=0.0, client=None):
    """Fit, and give what was learned to the bit."""
    model = dpipe.fit(make_pipeline(StandardScaler(), Ridge()), *rows(n_blocks, pause), client=client)
    return [model[0].mean_.tobytes(), model[1].coef_.tobytes()]


def bits_despite(fault, n_blocks, client):
    """Fit while something happens in mid-run; give the bits, and the seconds from then to the end."""
    happened = []

    def happen():
        happened.append(time.monotonic())
        fault()

    timer = threading.Timer(2, happen)
    timer.start()
    found = bits(n_blocks, 0.5, client)
    assert happened, "the fit was over before anything happened"
    return found, time.monotonic() - happened[0]


def test_jobs_that_are_cancelled_or_lose_their_node_come_back(slurm, slurm_file, caplog, tally):
    undisturbed = bits(32)
    with Cluster.read(slurm_file) as client:
        client.wait_for_workers(4, timeout=60)
        rooms = client.run(dask.config.get, "distributed.worker.memory.max-spill")
        free = shutil.disk_usage(slurm_file.parent).free
        assert all(0.3 * free < room < 0.5 * free for room in rooms.values())  # two share the disk of a node
        first, second = slurm.jobs()
        assert slurm.nodes_of(first, second) == {"node1", "node2"}
        found, took = bits_despite(lambda: slurm.call("scancel", first), 32, client)
        tally("scancel of a job in mid-run", "the same bits", took)
        assert found == undisturbed
        assert took < 60
        until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 4)
        node = slurm.nodes_of(second).pop()
        down = ("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        found, took = bits_despite(lambda: slurm.call(*down), 32, client)
        tally("a node goes down in mid-run", "the same bits", took)
        assert found == undisturbed
        assert took < 60
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
def test_what_cannot_start_is_an_error_that_names_the_key(slurm, slurm_file, key, value, says, tally):
    spec = Cluster.read(slurm_file)
    begun = time.monotonic()
    with pytest.raises(ClusterError, match=says) as caught, replace(spec, **{key: value}):
        pytest.fail("a cluster without workers has started")
    took = time.monotonic() - begun
    hint = re.search(r"Check the key \'\w+\'", str(caught.value))
    tally(f"{key}: {value}", f"an error: {hint[0] if hint else caught.value}", took)
    assert took < 60
    assert slurm.jobs() == []


def swollen(block):
    """Take ever more memory, as no block that was planned for does."""
    held = []
    for _ in range(40):
        held.append(np.ones(2**24))  # 128 MiB
        time.sleep(0.05)
    return block


@pytest.mark.slow
def test_a_worker_that_takes_too_much_memory_ends_in_an_error(slurm, slurm_file, tally):
    text = slurm_file.read_text().replace("workers: 4\nper_job: 2", "workers: 1")
    slurm_file.write_text(text)
    X = da.ones((400, 3), chunks=(100, 3)).map_blocks(swollen, dtype=float, meta=np.empty((0, 3)))
    with Cluster.read(slurm_file) as client:
        begun = time.monotonic()
        with pytest.raises(ClusterError, match=r"Workers died|was lost") as caught:
            dpipe.fit(StandardScaler(), X, client=client)
        took = time.monotonic() - begun
    tally("a block takes more memory than its worker has", f"an error: {str(caught.value)[:45]}...", took)
    assert took < 60


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
def test_a_node_whose_scratch_is_full_ends_in_an_error_that_says_so(slurm, slurm_file, small_disk, tally):
    text = slurm_file.read_text().replace("workers: 4\nper_job: 2", "workers: 1")
    slurm_file.write_text(text.replace(f"{slurm_file.parent}/scratch", str(small_disk)))
    X = da.random.default_rng(0).normal(size=(400_000, 4), chunks=(50_000, 4))
    with Cluster.read(slurm_file) as client:
        begun = time.monotonic()
        with pytest.raises(
            dpipe.DpipeError, match=f"Scratch cannot be written in {small_disk}.*No space left"
        ):
            dpipe.fit(KMeans(3, random_state=0), X, client=client)
        took = time.monotonic() - begun
    tally("scratch of a node is full", "an error: Scratch cannot be written ... No space left", took)
    assert took < 60


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_whose_wall_time_runs_out_are_replaced(slurm, slurm_file, caplog, tally):
    text = slurm_file.read_text().replace("workers: 4\nper_job: 2", "workers: 1")
    slurm_file.write_text(text.replace("00:20:00", "00:01:30"))
    seen, over = set(), threading.Event()
    undisturbed = bits(280)

    def look(client):
        while not over.wait(0.5):
            seen.update(worker["name"] for worker in client.scheduler_info()["workers"].values())

    with Cluster.read(slurm_file) as client:
        watching = threading.Thread(target=look, args=(client,))
        watching.start()
        begun = time.monotonic()
        try:
            found = bits(280, 0.5, client)
        finally:
            over.set()
            watching.join()
        took = time.monotonic() - begun
    tally(f"wall time of workers runs out {len(seen) - 1} times", "the same bits", took)
    assert found == undisturbed
    assert len(seen) >= 3
    assert "was lost" not in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_that_needs_several_wall_times_ends_with_the_same_bits(
    slurm, slurm_file, tmp_path, capsys, monkeypatch, tally
):
    monkeypatch.setenv("DPIPE_HOME", str(tmp_path / "home"))
    text = slurm_file.read_text().replace("workers: 4\nper_job: 2", "workers: 1\ndriver_walltime: 90")
    slurm_file.write_text(text)
    long, short = tmp_path / "long", tmp_path / "short"
    begun = time.monotonic()
    assert main(["submit", RECIPE, f"folder={long}", "pause=5", "--cluster", str(slurm_file)]) == 0
    capsys.readouterr()
    assert "finished" in followed(capsys, "tiny_recipe-1")
    n_jobs = len(read_submission("tiny_recipe-1").jobs)
    assert main(["run", RECIPE, f"folder={short}", "--quiet"]) == 0
    tally(f"wall time of the driver runs out {n_jobs - 1} times", "the same bits", time.monotonic() - begun)
    assert n_jobs >= 3
    assert fitted(long) == fitted(short)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_driver_that_is_lost_goes_on(slurm, slurm_file, tmp_path, capsys, monkeypatch, tally):
    there, here = tmp_path / "there", tmp_path / "here"
    driver = driven(slurm, slurm_file, tmp_path, monkeypatch)
    capsys.readouterr()
    begun = time.monotonic()
    assert main(["resume", "tiny_recipe-1"]) == 1  # the driver runs still
    slurm.call("scancel", driver)
    until(lambda: driver not in slurm.jobs())
    main(["status", "tiny_recipe-1"])
    took = time.monotonic() - begun
    assert "lost, its driver" in (said := capsys.readouterr().out)
    assert "with: dpipe resume tiny_recipe-1" in said
    assert main(["resume", "tiny_recipe-1"]) == 0
    assert "finished" in followed(capsys, "tiny_recipe-1")
    assert main(["run", RECIPE, f"folder={here}", "--quiet"]) == 0
    tally("scancel of a driver", "dpipe status names dpipe resume; the same bits", took)
    assert took < 60
    assert fitted(there) == fitted(here)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_driver_whose_node_goes_down_is_queued_again_and_goes_on(
    slurm, slurm_file, tmp_path, capsys, monkeypatch, tally
):
    there, here = tmp_path / "there", tmp_path / "here"
    driver = driven(slurm, slurm_file, tmp_path, monkeypatch)
    ledger = there / "workdir" / "ledger"
    until(
        lambda: sum(path.stat().st_size for path in ledger.glob("*.log")) > 1000
    )  # it has something to go on from
    capsys.readouterr()
    begun = time.monotonic()
    (node,) = slurm.nodes_of(driver)
    slurm.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    until(lambda: driver in slurm.jobs("PENDING"))
    took = time.monotonic() - begun
    main(["status", "tiny_recipe-1"])
    assert f"running, job {driver}, 1 so far: waiting" in capsys.readouterr().out
    # SLURM lets a job that has lost its node wait for two minutes: what was left of it there ends meanwhile
    assert "finished" in followed(capsys, "tiny_recipe-1")
    assert read_submission("tiny_recipe-1").jobs == (driver,)
    assert main(["run", RECIPE, f"folder={here}", "--quiet"]) == 0
    tally("the node of a driver goes down", "SLURM starts the driver again; the same bits", took)
    assert took < 60
    assert fitted(there) == fitted(here)


def driven(slurm, slurm_file, tmp_path, monkeypatch):
    """Submit a run that takes a while; give its driver's job once it has a worker."""
    monkeypatch.setenv("DPIPE_HOME", str(tmp_path / "home"))
    slurm_file.write_text(slurm_file.read_text().replace("workers: 4\nper_job: 2", "workers: 1"))
    folder = tmp_path / "there"
    assert main(["submit", RECIPE, f"folder={folder}", "pause=1", "--cluster", str(slurm_file)]) == 0
    (driver,) = read_submission("tiny_recipe-1").jobs
    until(lambda: len(slurm.jobs("RUNNING")) == 2, 120)
    return driver
