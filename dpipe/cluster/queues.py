"""Ask the queues of clusters what became of jobs: one command and one reader of its answer for each system."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dpipe.errors import ClusterError

WAITING, RUNNING, ENDED, REFUSED = "waiting", "running", "ended", "refused"
#: Why SLURM leaves jobs waiting that can never start, from the manual of squeue.
_NEVER = {
    "AssocMaxCpuPerJobLimit",
    "AssocMaxMemPerJob",
    "AssocMaxWallDurationPerJobLimit",
    "AssociationTimeLimit",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "JobHeldAdmin",
    "JobHeldUser",
    "PartitionInactive",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "QOSMaxWallDurationPerJobLimit",
    "QOSTimeLimit",
}


@dataclass(frozen=True)
class JobState:
    """What a queue says of a job."""

    phase: str
    """``waiting``, ``running``, ``ended``, or ``refused``: it waits and will never start."""
    reason: str = ""
    """In the words of the queue."""


@dataclass(frozen=True)
class Queue:
    """How one system is asked."""

    job_class: str
    """Name of the class of dask-jobqueue that writes its job scripts."""
    command: Callable[[Sequence[str]], list[str]]
    """Command line that asks for jobs by their numbers."""
    read: Callable[[str], dict[str, JobState]]
    """What it printed, by the number of the job; a job that is not in it has ended."""
    gone: tuple[str, ...] = ()
    """What it says, and fails, when it knows none of the jobs any more."""
    cancel: str = ""
    """Command that ends jobs."""
    ended: tuple[str, ...] = ()
    """What that command says, and fails, of a job that has ended already; beside `gone`."""

    async def states(self, jobs: Sequence[str]) -> dict[str, JobState]:
        """Ask what became of jobs.

        Raises
        ------
        ClusterError
            If the queue gives no answer: that tells nothing of the jobs.
        """
        if not jobs:
            return {}
        status, out, said = await called(self.command(jobs))
        if status and not any(text in said + out for text in self.gone):
            raise ClusterError(
                f"{self.command(jobs)[0]} failed with status {status}: {one_line(said or out)}"
            )
        found = self.read(out)
        return {job: found.get(job, JobState(ENDED)) for job in jobs}

    async def end(self, job: str) -> None:
        """End a job; that it has ended already is no error.

        Raises
        ------
        ClusterError
            If the queue gives no answer, or refuses.
        """
        status, out, said = await called([self.cancel, job])
        if status and not any(text in said + out for text in (*self.gone, *self.ended)):
            raise ClusterError(f"{self.cancel} failed with status {status}: {one_line(said or out)}")


async def called(command: Sequence[str], timeout_s: float = 60) -> tuple[int, str, str]:
    """Run a command of the queue; give its status, output and errors.

    Raises
    ------
    ClusterError
        If it is not there, or gives no answer in time.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as err:
        raise ClusterError(
            f"The command {command[0]} cannot be run: {err.strerror}. Jobs are submitted from a machine of the cluster,"
            " most often its login node; check the specification's kind, and load what provides the command."
        ) from err
    try:
        out, said = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError as err:
        process.kill()
        raise ClusterError(f"{command[0]} gave no answer within {timeout_s:g} s.") from err
    return process.returncode or 0, out.decode(errors="replace"), said.decode(errors="replace")


def one_line(text: str) -> str:
    """Join lines into one, for messages."""
    return " ".join(text.split())


def _columns(text: str, separator: str | None, n: int) -> list[list[str]]:
    """Split lines into at least so many columns; headings and rules among them are harmless: they name no job."""
    lines = (line.split(separator) for line in text.splitlines())
    return [[each.strip() for each in line] for line in lines if len(line) >= n]


def _slurm(text: str) -> dict[str, JobState]:
    found = {}
    for job, state, reason in _columns(text, "|", 3):
        if state in ("PENDING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESV_DEL_HOLD"):
            phase = REFUSED if reason in _NEVER or state.endswith("HOLD") else WAITING
            found[job] = JobState(phase, reason)
        elif state in ("RUNNING", "SIGNALING", "STOPPED"):
            found[job] = JobState(RUNNING)
        else:
            found[job] = JobState(ENDED, state if reason in ("None", "") else f"{state}, {reason}")
    return found


def _lettered(letters: dict[str, str], column: int) -> Callable[[str], dict[str, JobState]]:
    """Read a table with the number of the job first and a state in some column."""

    def read(text: str) -> dict[str, JobState]:
        found = {}
        for line in _columns(text, None, column + 1):
            state = line[column]
            phase = next((kind for start, kind in letters.items() if state.startswith(start)), ENDED)
            found[line[0]] = JobState(phase, "" if phase == RUNNING else state)
        return found

    return read


def _pbs(text: str) -> dict[str, JobState]:
    letters = {"Q": WAITING, "W": WAITING, "T": WAITING, "H": REFUSED, "S": WAITING, "R": RUNNING, "E": ENDED}
    found = _lettered(letters, 4)(text)
    # a server's name may be cut short in the table: the number is what counts
    return {job.partition(".")[0]: state for job, state in found.items()}


def _sge(text: str) -> dict[str, JobState]:
    # E anywhere is an error that keeps a job waiting for ever; d is being deleted
    found = _lettered(
        {"r": RUNNING, "t": RUNNING, "R": RUNNING, "s": WAITING, "S": WAITING, "qw": WAITING}, 4
    )(text)
    for job, state in found.items():
        if "E" in state.reason or state.reason.startswith("h"):
            found[job] = JobState(REFUSED, f"state {state.reason}")
    return found


def _htcondor(text: str) -> dict[str, JobState]:
    letters = {"1": WAITING, "2": RUNNING, "5": REFUSED, "6": RUNNING, "7": WAITING}
    found = {}
    for line in _columns(text, None, 2):
        phase = letters.get(line[1], ENDED)
        found[f"{line[0]}.0"] = JobState(phase, " ".join(line[2:]) if phase == REFUSED else "")
    return found


def _oar(text: str) -> dict[str, JobState]:
    phases = {
        "Waiting": WAITING,
        "toLaunch": WAITING,
        "Launching": WAITING,
        "Hold": REFUSED,
        "Suspended": WAITING,
    }
    phases |= {"toAckReservation": WAITING, "Resuming": WAITING, "Running": RUNNING}
    jobs = json.loads(text) if text.strip() else {}
    return {
        str(job): JobState(phases.get(each["state"], ENDED), each.get("message", ""))
        for job, each in jobs.items()
    }


def _numbers(jobs: Sequence[str]) -> list[str]:
    """Leave out what follows the number of a job: the place in its cluster, or the name of the server."""
    return [job.partition(".")[0] for job in jobs]


#: The systems by the kind of a specification.
SYSTEMS = {
    "slurm": Queue(
        "SLURMJob",
        lambda jobs: ["squeue", "-h", "-t", "all", "-o", "%i|%T|%r", "-j", ",".join(jobs)],
        _slurm,
        ("Invalid job id",),
        "scancel",
    ),
    "pbs": Queue(
        "PBSJob", lambda jobs: ["qstat", *jobs], _pbs, ("Unknown Job", "has finished", "Unknown job"), "qdel"
    ),
    "sge": Queue("SGEJob", lambda jobs: ["qstat"], _sge, (), "qdel", ("does not exist",)),
    "lsf": Queue(
        "LSFJob",
        lambda jobs: ["bjobs", "-a", "-noheader", "-o", "jobid stat", *jobs],
        _lettered({"PEND": WAITING, "RUN": RUNNING, "PSUSP": REFUSED, "USUSP": WAITING, "SSUSP": WAITING}, 1),
        ("is not found",),
        "bkill",
        ("already finished",),
    ),
    "htcondor": Queue(
        "HTCondorJob",
        lambda jobs: [
            "condor_q",
            *(job.partition(".")[0] for job in jobs),
            "-af",
            "ClusterId",
            "JobStatus",
            "HoldReason",
        ],
        _htcondor,
        (),
        "condor_rm",
        ("Couldn't find",),
    ),
    "oar": Queue(
        "OARJob", lambda jobs: ["oarstat", "-J", "-j", ",".join(jobs)], _oar, ("not found",), "oardel"
    ),
}
