"""Real processes that are killed at random moments, and what comes of the next run."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Longer than any job takes on a busy machine; nothing may hang for ever.
LIMIT_S = 120


@dataclass
class Done:
    """How a process ended."""

    status: int
    said: str
    result: dict | None
    seconds: float


@dataclass
class Tried:
    """What a session of faults came to; printed after its tests."""

    faults: int = 0
    survived: int = 0
    lost: int = 0
    twice: int = 0

    def __str__(self) -> str:
        return (
            f"faults tried: {self.faults}, survived: {self.survived}, rows lost: {self.lost}, "
            f"rows counted twice: {self.twice}"
        )


TRIED = Tried()


@dataclass
class Cluster:
    """A scheduler and two workers, each a process of its own."""

    address: str
    scheduler: subprocess.Popen
    workers: list[subprocess.Popen] = field(default_factory=list)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster of processes, and kill what is left of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = (folder / "cluster.log").open("ab")

    def start(program: str, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.dask_{program}", "--no-dashboard", *arguments]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    made = Cluster(address, start("scheduler", "--host", "127.0.0.1", "--port", str(port)))
    options = ("--nthreads", "1", "--no-nanny", "--host", "127.0.0.1", "--local-directory", str(folder))
    made.workers = [start("worker", address, *options) for _ in range(2)]
    try:
        yield made
    finally:
        for process in (*made.workers, made.scheduler):
            process.kill()
            process.wait()
        log.close()


def start(kind: str, folder: Path, workdir: Path, address: str | None = None) -> subprocess.Popen:
    """Start a job, and wait until it is about to read."""
    extra = [] if address is None else ["--scheduler", address]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.job", kind, str(folder), str(workdir), *extra],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != "begun\n":
        raise AssertionError(f"{kind} did not begin: {line}{process.communicate()[1]}")
    return process


def finish(process: subprocess.Popen) -> Done:
    """Wait for a job."""
    began = time.monotonic()
    try:
        said, complained = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    lines = said.splitlines()
    result = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None
    return Done(process.returncode, complained, result, time.monotonic() - began)


def run(kind: str, folder: Path, workdir: Path, address: str | None = None) -> Done:
    """Do a job, undisturbed."""
    return finish(start(kind, folder, workdir, address))


def assert_survives(
    kind: str, folder: Path, workdir: Path, victim: str, wanted: dict, after_s: float
) -> Done:
    """Kill a process of a job, run the job again, and check that nothing is lost; give the second run."""
    TRIED.faults += 1
    if victim == "client":
        process = start(kind, folder, workdir)
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        finish(process)
        again = run(kind, folder, workdir)
    else:
        with cluster(workdir.parent) as first:
            process = start(kind, folder, workdir, first.address)
            time.sleep(after_s)
            (first.scheduler if victim == "scheduler" else random.choice(first.workers)).kill()
            stopped = finish(process)
        if stopped.status:
            # an error of dpipe, which says what to do
            assert stopped.status == 3, stopped.said
            assert "again" in stopped.said, stopped.said
        again = run(kind, folder, workdir)
    check(again, wanted)
    TRIED.survived += 1
    return again


def check(done: Done, wanted: dict) -> None:
    """Compare with an undisturbed run: the same bits, every row once."""
    assert done.status == 0, done.said
    assert done.result is not None
    for rows, expected in zip(done.result["rows"], wanted["rows"], strict=True):
        TRIED.lost += max(expected - rows, 0)
        TRIED.twice += max(rows - expected, 0)
    assert done.result["rows"] == wanted["rows"]
    assert done.result["result"] == wanted["result"]
