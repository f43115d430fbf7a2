"""Drive a submitted run inside a job: `python -m dpipe.cluster.driver FOLDER`.

The run itself is a child process, so that it can be ended in time: before the wall time of this job the next one is
submitted, and the child closes its cluster. The next job starts when this one is gone, and goes on from the ledger.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dpipe.cluster.queues import ENDED, SYSTEMS
from dpipe.cluster.submission import (
    CANCELLED,
    CONTINUES,
    FAILED,
    FINAL,
    FINISHED,
    HOME_VARIABLE,
    RUNNING,
    Submission,
    read_submission,
    submit_driver,
)
from dpipe.errors import ClusterError

#: How often a driver looks at its child and at the job before it.
_LOOK_S = 0.5


def margin(walltime_s: int) -> int:
    """Say how many seconds before its wall time a driver ends.

    Examples
    --------
    >>> margin(60), margin(3600), margin(86400)
    (20, 360, 600)
    """
    return min(max(walltime_s // 10, 20), 600)


def without_job(environ: Mapping[str, str]) -> dict[str, str]:
    """Leave out what a queue tells this job of itself: the jobs that it submits are others.

    Examples
    --------
    >>> without_job({"SLURM_CONF": "/etc/slurm.conf", "SLURM_MEM_PER_NODE": "2048", "HOME": "/root"})
    {'SLURM_CONF': '/etc/slurm.conf', 'HOME': '/root'}
    """
    return {
        key: value for key, value in environ.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"
    }


def drive(folder: Path, started: float) -> int:
    """Carry the run on in this job; give the exit status.

    Parameters
    ----------
    folder : Path
        Of the submission.
    started : float
        When this job started, by the monotonic clock.
    """
    submission = read_submission(folder.name)
    own = os.environ.get("SLURM_JOB_ID")
    # a queue may start a job again whose node was lost, even one that another has taken over from already
    if submission.state in FINAL or own in submission.jobs[:-1]:
        return 0
    os.environ.update(kept := without_job(os.environ))
    for key in set(os.environ) - set(kept):
        del os.environ[key]
    asyncio.run(_alone(submission))
    spec = submission.spec
    cluster = folder / "cluster.yaml"
    keys = {
        key: list(value) if isinstance(value, tuple) else value for key, value in submission.cluster.items()
    }
    cluster.write_text(yaml.safe_dump(keys), encoding="utf-8")
    submission = submission.changed(state=RUNNING)
    command = [sys.executable, "-m", "dpipe.cli", *submission.command, "--cluster", str(cluster)]
    child = subprocess.Popen(command, cwd=submission.cwd)
    told_to_end: list[int] = []

    def end_child(number: int, _: Any) -> None:
        told_to_end.append(number)
        child.terminate()

    signal.signal(signal.SIGTERM, end_child)
    walltime = spec.walltime_s if spec.driver_walltime is None else int(spec.driver_walltime)
    end = None if walltime is None else started + walltime - margin(walltime)
    status = _wait(child, end)
    if status is None:
        return _hand_over(submission, child)
    submission = read_submission(folder.name)  # it may have been cancelled
    # whom the queue has ended, an operator or a preemption, has neither finished nor failed: it may be started again
    if submission.state != CANCELLED and not (told_to_end and status):
        ended = FINISHED if status == 0 else FAILED
        submission.changed(state=ended, says="" if status == 0 else f"exit status {status}; see dpipe logs")
    return status


async def _alone(submission: Submission) -> None:
    """Wait until the driver before this one has left the queue: both would write to the same ledger."""
    if len(submission.jobs) < 2:
        return
    before = submission.jobs[-2]
    while True:
        try:
            if (await SYSTEMS[submission.spec.kind].states([before]))[before].phase == ENDED:
                return
        except ClusterError as err:  # the queue is busy
            print(f"dpipe: {err}", file=sys.stderr)
        await asyncio.sleep(_LOOK_S)


def _wait(child: "subprocess.Popen[bytes]", end: float | None) -> int | None:
    """Wait for the child; None if the time is up before."""
    while child.poll() is None:
        if end is not None and time.monotonic() >= end:
            return None
        time.sleep(_LOOK_S)
    return child.returncode


def _hand_over(submission: Submission, child: "subprocess.Popen[bytes]") -> int:
    """Submit the next driver, then end this run: it is the order in which nothing is lost if time runs short."""
    submission = read_submission(submission.name)
    if submission.state != CANCELLED:
        try:
            submission = asyncio.run(submit_driver(submission.changed(state=CONTINUES)))
            print(f"dpipe: the wall time is near; job {submission.jobs[-1]} goes on", file=sys.stderr)
        except ClusterError as err:
            submission.changed(state=FAILED, says=str(err))
            print(f"dpipe: {err}", file=sys.stderr)
    child.terminate()
    try:
        child.wait(15)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    return 0


if __name__ == "__main__":
    # what happened before this line, the import of everything, has taken some of the job's time, too
    os.environ[HOME_VARIABLE] = str(Path(sys.argv[1]).parent.parent)  # not all queues hand on the environment
    sys.exit(drive(Path(sys.argv[1]), time.monotonic() - time.process_time()))
