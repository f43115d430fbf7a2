"""Look at a specification before it is used: what the queue says of it, and what one tiny job finds on a node."""

import asyncio
import contextlib
import getpass
import json
import platform
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distributed.utils import get_ip, get_ip_interface

from dpipe.cluster import probe
from dpipe.cluster.job_cluster import run_folder
from dpipe.cluster.jobs import last_lines, submitted, with_command, worker_job
from dpipe.cluster.other_kinds import mpi_script
from dpipe.cluster.queues import ENDED, REFUSED, SYSTEMS, JobState, called, one_line
from dpipe.cluster.specification import QUEUES, Specification, clock, seconds
from dpipe.errors import ClusterError, InputError
from dpipe.sizes import MIB, format_bytes

#: File systems that are reached through a network, or are memory: neither is the node's own disk.
_NOT_LOCAL = (
    "nfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "cifs",
    "smb",
    "glusterfs",
    "afs",
    "fuse.sshfs",
    "9p",
)
_IN_MEMORY = ("tmpfs", "ramfs")
#: Seconds that the tiny job may take, from its submission on.
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    says: str
    ok: bool = True

    def __str__(self) -> str:
        return f"{'ok     ' if self.ok else 'CHANGE '} {self.what}: {self.says}"


@dataclass(frozen=True)
class Checked:
    """What was found; as text, one line each after the job script."""

    script: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing needs to be changed."""
        return all(finding.ok for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join([self.script.rstrip(), "", *map(str, self.findings)])


def check_cluster(spec: Specification, patience_s: float = PATIENCE_S) -> Checked:
    """Check a specification of a queue, by asking the queue and by one job of the size of a worker's.

    Parameters
    ----------
    spec : Specification
        Of a kind that queues jobs; of MPI, which has no jobs of its own, only what it needs here is looked at.
    patience_s : float
        How long to wait for that job.

    Returns
    -------
    Checked
        The script that would be submitted, and what was found. Errors are findings, too.

    Raises
    ------
    InputError
        If the kind is neither.
    """
    if spec.kind == "mpi":
        starter = next((name for name in ("mpirun", "mpiexec") if shutil.which(name)), None)
        return Checked(mpi_script(spec, starter=starter or "mpirun"), tuple(_mpi(starter)))
    if spec.kind not in QUEUES:
        raise InputError(
            f"Key 'kind' is {spec.kind!r}: a check looks at queues, {', '.join(QUEUES)}, and at mpi. Others show what "
            "they are when they are started."
        )
    folder = run_folder(spec)
    try:
        script = worker_job(spec, "tls://DRIVER:PORT", "dpipe-1", folder / "logs", None).job_script()
        findings = [_commands(spec)]
        if findings[0].ok:
            findings += asyncio.run(_partition(spec)) if spec.kind == "slurm" else []
            findings += asyncio.run(_by_job(spec, folder, patience_s))
        return Checked(script, tuple(findings))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _mpi(starter: str | None) -> list[Finding]:
    """Tell what starts the ranks, and look for the packages that each of them imports."""
    absent = [
        name for module, name in (("dask_mpi", "dask-mpi"), ("mpi4py", "mpi4py")) if find_spec(module) is None
    ]
    return [
        Finding("commands", starter or "no mpirun here; load the module of MPI", starter is not None),
        Finding(
            "packages",
            f"install {' '.join(absent)} in the Python of all nodes" if absent else "dask-mpi, mpi4py",
            not absent,
        ),
    ]


def _commands(spec: Specification) -> Finding:
    queue = SYSTEMS[spec.kind]
    needed = (queue.command(["1"])[0], queue.cancel)
    absent = [name for name in needed if shutil.which(name) is None]
    if absent:
        return Finding(
            "commands",
            f"{', '.join(absent)} not found here; go to a login node, or load what has them",
            ok=False,
        )
    return Finding("commands", ", ".join(needed))


async def _partition(spec: Specification) -> list[Finding]:
    """Compare what is asked for with what the nodes of the partition have."""
    status, out, said = await called(["sinfo", "-h", "-N", "-o", "%R|%a|%l|%c|%m|%T"])
    if status:
        return [Finding("queue", f"sinfo failed with status {status}: {one_line(said)}", ok=False)]
    rows = [line.split("|") for line in out.splitlines() if line.count("|") == 5]
    names = sorted({row[0] for row in rows})
    if spec.queue is not None and spec.queue not in names:
        return [
            Finding("queue", f"there is no partition {spec.queue!r}; there are {', '.join(names)}", ok=False)
        ]
    if spec.queue is None:
        return [Finding("queue", f"none named: the default of {', '.join(names)} is taken")]
    rows = [row for row in rows if row[0] == spec.queue]
    cores, memory = spec.cores * spec.per_job, (spec.memory_nbytes or 0) * spec.per_job
    most_cores = max(int(row[3].rstrip("+")) for row in rows)
    most_memory = max(int(row[4].rstrip("+")) for row in rows) * MIB
    usable = [row for row in rows if row[5].rstrip("*~#$@+") in ("idle", "mixed", "allocated", "completing")]
    found = [
        Finding(
            "queue",
            f"{spec.queue} is {rows[0][1]}, {len(usable)} of its {len(rows)} nodes are in use or free",
            ok=rows[0][1] == "up" and bool(usable),
        ),
        Finding(
            "cores", f"a job asks for {cores}, the largest node has {most_cores}", ok=cores <= most_cores
        ),
        Finding(
            "memory",
            f"a job asks for {format_bytes(memory)}, the largest node has {format_bytes(most_memory)}",
            ok=memory <= most_memory,
        ),
    ]
    return [*found, _walltime(spec, rows[0][2]), *(await _account(spec))]


def _walltime(spec: Specification, most: str) -> Finding:
    if spec.walltime_s is None:
        return Finding("walltime", f"none asked for: the default of the partition, at most {most}")
    says = f"a job asks for {clock(spec.walltime_s)}, the partition allows {most}"
    return Finding("walltime", says, ok=most == "infinite" or spec.walltime_s <= _limit_s(most))


def _limit_s(text: str) -> int:
    """Read a limit of SLURM, which leaves out days and hours that are none."""
    return seconds(text if text.count(":") == 2 else f"00:{text.rjust(5, '0')}")


async def _account(spec: Specification) -> list[Finding]:
    """Compare the account with those of the user, where SLURM keeps accounts."""
    if shutil.which("sacctmgr") is None:
        return []
    asked = ["sacctmgr", "-n", "-P", "show", "associations", f"user={getpass.getuser()}", "format=Account"]
    status, out, _ = await called(asked)
    accounts = sorted(set(out.split()))
    if status or not accounts:
        return []
    if spec.account is not None and spec.account not in accounts:
        return [Finding("account", f"{spec.account!r} is none of yours: {', '.join(accounts)}", ok=False)]
    return [Finding("account", spec.account or f"the default of {', '.join(accounts)}")]


async def _by_job(spec: Specification, folder: Path, patience_s: float) -> list[Finding]:
    """Let a job tell what a node is like."""
    answer = folder / "answer.json"
    shutil.copyfile(probe.__file__, folder / "probe.py")
    try:
        host = _driver_address(spec)
    except (ValueError, OSError) as err:
        return [
            Finding(
                "interface", f"{err}; set 'interface', or 'scheduler_interface' for this machine", ok=False
            )
        ]
    with _listening(host) as (address, heard):
        job = with_command(
            worker_job(spec, "", "dpipe-check", folder / "logs", None),
            spec,
            [
                spec.python or sys.executable,
                str(folder / "probe.py"),
                str(answer),
                spec.scratch or "/tmp",
                address,
            ],
        )
        try:
            number = await submitted(job, folder / "check.sh")
        except ClusterError as err:
            return [Finding("job", str(err), ok=False)]
        try:
            state = await _until_answered(spec, number, answer, patience_s)
        finally:
            with contextlib.suppress(ClusterError):
                await called([SYSTEMS[spec.kind].cancel, number])
    if not answer.exists():
        lines = " | ".join(last_lines(folder / "logs", number))
        says = (
            f"no answer from job {number} after {patience_s:g} s"
            if state.phase != ENDED
            else "it ended without an answer"
        )
        return [Finding("job", f"{says} ({state.phase} {state.reason}). {lines}", ok=False)]
    return _compared(spec, json.loads(answer.read_text(encoding="utf-8")), heard.is_set())


async def _until_answered(spec: Specification, number: str, answer: Path, patience_s: float) -> JobState:
    end = time.monotonic() + patience_s
    state, last = JobState(ENDED), False
    while not answer.exists() and time.monotonic() < end and not last:
        state = (await SYSTEMS[spec.kind].states([number]))[number]
        last = state.phase in (ENDED, REFUSED)
        # files of a node may be seen here some time after its job has ended
        await asyncio.sleep(2 if last else 0.5)
    return state


def _driver_address(spec: Specification) -> str:
    name = spec.scheduler_interface or spec.interface
    return get_ip_interface(name) if name else get_ip()


@contextlib.contextmanager
def _listening(host: str) -> Iterator[tuple[str, threading.Event]]:
    """Listen where the scheduler would; note whether somebody has called."""
    heard = threading.Event()
    with socket.create_server((host, 0)) as server:

        def listen() -> None:
            with contextlib.suppress(OSError):  # closed before anybody has called
                connection, _ = server.accept()
                with connection:
                    if connection.recv(5) == b"dpipe":
                        heard.set()

        threading.Thread(target=listen, daemon=True).start()
        try:
            yield f"{host}:{server.getsockname()[1]}", heard
        finally:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)


def _compared(spec: Specification, node: dict[str, Any], heard: bool) -> list[Finding]:
    """Say how a node differs from what a run needs."""
    name = node["node"]
    found = [Finding("job", f"ran on {name} with {node['executable']}, {node['cpus']} cores")]
    here, there = platform.python_version(), node["python"]
    same = here.rpartition(".")[0] == there.rpartition(".")[0]
    found.append(
        Finding("Python", there if same else f"{there} on {name}, {here} here: set 'python'", ok=same)
    )
    ours = probe.versions()
    differ = [
        f"{package} {node['versions'][package] or 'missing'} (here {version})"
        for package, version in ours.items()
        if node["versions"][package] != version
    ]
    says = f"on {name}: {', '.join(differ)}; install the same versions, or set 'python'"
    found.append(Finding("packages", says if differ else "the same versions as here", ok=not differ))
    found.append(_scratch(spec, node["scratch"], name))
    if heard and not node["unreached"]:
        found.append(Finding("network", f"{name} reaches this machine"))
    else:
        there = ", ".join(node["interfaces"])
        found.append(
            Finding(
                "network",
                f"{name} does not reach this machine ({node['unreached']}); set 'interface' to one of {there}, or "
                "'scheduler_interface' for this machine",
                ok=False,
            )
        )
    return found


def _scratch(spec: Specification, there: dict[str, Any], name: str) -> Finding:
    where = f"{there['path']} on {name}"
    if there["error"]:
        return Finding("scratch", f"{where}: {there['error']}; name another folder with 'scratch'", ok=False)
    kind, free = there["kind"], there["free"]
    wrong = ""
    if kind.startswith(_NOT_LOCAL):
        wrong = ": not the node's own disk, spilling would be slow; set 'scratch'"
    elif kind in _IN_MEMORY:
        wrong = ": memory and no disk, spilling would be of no use; set 'scratch'"
    elif free < (spec.memory_nbytes or 0) * spec.per_job:
        wrong = ": less than the workers' memory; set 'scratch'"
    return Finding("scratch", f"{where} is {kind}, {format_bytes(free)} free{wrong}", ok=not wrong)
