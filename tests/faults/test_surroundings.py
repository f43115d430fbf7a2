"""What goes wrong around a run: full disks, changing files, failing blocks, jumping clocks, other runs."""

import contextlib
import os
import random
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from distributed import Client
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.cluster.local import explained
from dpipe.errors import ClusterError, DpipeError
from tests.faults import harness
from tests.faults.job import made_rows, make_data

pytestmark = pytest.mark.timeout(600)


def longer(*values):
    """A case of the long form: like another one that always runs, by another of its ways."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def fault():
    """Count the fault that a test is about; its report counts those that were survived."""
    harness.TRIED.faults += 1


def test_two_runs_at_once(data, undisturbed, tmp_path):
    wanted = undisturbed("fit").result
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: harness.start("fit", data, tmp_path / "run"), range(2)))
    one, other = sorted(map(harness.finish, runs), key=lambda done: done.status)
    harness.check(one, wanted)
    assert (other.status, "Another run works in" in other.said) == (3, True)


@pytest.mark.parametrize(
    ("kind", "times"),
    [("fit", "always"), ("stream", "once"), longer("fit", "once"), longer("stream", "always")],
)
def test_a_block_that_fails(kind, times, data, undisturbed, tmp_path, monkeypatch):
    wanted = undisturbed(kind).result
    breaks = tmp_path / "breaks"
    breaks.write_text(times)
    monkeypatch.setenv("BREAKS", str(breaks))
    failed = harness.run(kind, data, tmp_path / "run")
    assert failed.status == 1
    assert "a block that breaks" in failed.said
    assert "007.parquet" in failed.said
    if times == "always":
        assert harness.run(kind, data, tmp_path / "run").status == 1
        breaks.unlink()
    again = harness.run(kind, data, tmp_path / "run")
    harness.check(again, wanted)


@pytest.mark.parametrize("jump_s", ["-86400", longer("3600")])
def test_a_clock_that_jumps(jump_s, data, undisturbed, tmp_path, monkeypatch):
    wanted = undisturbed("stream")
    clock = tmp_path / "clock"
    clock.write_text("0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "clock"))
    monkeypatch.setenv("CLOCK", str(clock))
    process = harness.start("stream", data, tmp_path / "run")
    time.sleep(0.3 * wanted.seconds)
    clock.write_text(jump_s)
    harness.check(harness.finish(process), wanted.result)


@pytest.mark.parametrize("kind", ["stream", longer("fit")])
def test_a_clock_that_is_set_back_again_and_again(kind, data, undisturbed, tmp_path, monkeypatch):
    # one of many moments falls between two messages of the embedded cluster, which wait for a time of day
    clock, new = tmp_path / "clock", tmp_path / "new"
    clock.write_text("0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "clock"))
    monkeypatch.setenv("CLOCK", str(clock))
    process = harness.start(kind, data, tmp_path / "run")
    for i in range(1, 101):
        new.write_text(str(-1000 * i))
        new.replace(clock)
        time.sleep(0.02)
    harness.check(harness.finish(process), undisturbed(kind).result)


def changed(path, how):
    content = path.read_bytes()
    if how == "truncated":
        os.truncate(path, len(content) // 2)
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "removed":
        path.unlink()
    else:
        frame = made_rows(99)
        temporary = path.with_suffix(".tmp")
        frame.to_parquet(temporary, index=False, row_group_size=len(frame) // 2)
        temporary.replace(path)
    return content


def restored(path, content):
    if path.is_dir():
        path.rmdir()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *(("fit", "truncated"), ("stream", "removed"), ("predict", "a folder")),
        *(longer("fit", "removed"), longer("fit", "a folder")),
        *(longer("stream", "truncated"), longer("stream", "a folder")),
        *(longer("predict", "truncated"), longer("predict", "removed")),
    ],
)
def test_a_file_that_breaks_during_a_run(kind, how, undisturbed, tmp_path):
    make_data(tmp_path)
    path = tmp_path / "data" / "010.parquet"
    process = harness.start(kind, tmp_path, tmp_path / "run")
    time.sleep(random.Random(f"{kind} {how}").random() * 0.5 * undisturbed(kind).seconds)
    content = changed(path, how)
    stopped = harness.finish(process)
    if stopped.status:
        assert stopped.status == 3, stopped.said
        assert "010.parquet" in stopped.said
    restored(path, content)
    harness.check(harness.run(kind, tmp_path, tmp_path / "run"), undisturbed(kind).result)


@pytest.mark.parametrize("kind", ["fit", "predict"])
def test_a_file_that_is_replaced_during_a_run(kind, undisturbed, tmp_path):
    make_data(tmp_path)
    process = harness.start(kind, tmp_path, tmp_path / "run")
    time.sleep(0.3 * undisturbed(kind).seconds)
    changed(tmp_path / "data" / "010.parquet", "replaced")
    stopped = harness.finish(process)
    if stopped.status:
        assert stopped.status == 3, stopped.said
        assert "010.parquet" in stopped.said
    again = harness.run(kind, tmp_path, tmp_path / "run")
    harness.check(again, harness.run(kind, tmp_path, tmp_path / "anew").result)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of eight megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command, check=False).returncode:
        pytest.skip("a small file system cannot be mounted: run this as root, outside of a sealed container")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    ("kind", "free_nbytes"),
    [
        *(("fit", 8_000), ("stream", 40_000)),
        *(longer("fit", 0), longer("fit", 40_000), longer("stream", 0), longer("stream", 8_000)),
    ],
)
def test_a_disk_that_fills(kind, free_nbytes, data, undisturbed, small_disk):
    ballast = small_disk / "ballast"
    room = shutil.disk_usage(small_disk).free
    ballast.write_bytes(bytes(max(room - free_nbytes, 0) // 4096 * 4096))
    stopped = harness.run(kind, data, small_disk / "run")
    assert stopped.status == 3, stopped.said
    assert str(small_disk) in stopped.said
    assert "room" in stopped.said or "may write" in stopped.said
    ballast.unlink()
    harness.check(harness.run(kind, data, small_disk / "run"), undisturbed(kind).result)


@pytest.mark.parametrize("recorded", [True, longer(False)])
def test_a_scheduler_that_is_gone_before_a_run(recorded, tmp_path):
    X = da.from_array(np.arange(60.0).reshape(20, 3), chunks=(5, 3))
    with harness.cluster(tmp_path) as cluster, contextlib.ExitStack() as stack:
        with Client(cluster.address, set_as_default=False) as patient:
            patient.wait_for_workers(2)
        client = stack.enter_context(Client(cluster.address, set_as_default=False, timeout=2))
        cluster.scheduler.kill()
        cluster.scheduler.wait()
        for _ in range(2):  # before and after the client has noticed
            with pytest.raises(DpipeError, match="is gone.*again"):
                dpipe.fit(StandardScaler(), X, client=client, workdir=tmp_path / "run" if recorded else None)


def test_what_a_lost_connection_says():
    lost = "Timed out trying to connect to tcp://a after 2 s"
    with pytest.raises(ClusterError, match=f"is gone: {lost} Start it and run"), explained(None):
        raise OSError(lost)
    with pytest.raises(FileNotFoundError, match="a file"), explained(None):
        raise FileNotFoundError("a file")
