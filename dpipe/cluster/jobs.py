"""Job scripts: what dask-jobqueue writes for a specification, for the workers of a cluster or for a driver."""

import importlib
import os
import re
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from dpipe.cluster.certificates import Certificates
from dpipe.cluster.queues import SYSTEMS, called, one_line
from dpipe.cluster.specification import Specification, clock
from dpipe.errors import ClusterError
from dpipe.sizes import MIB

#: Name of the copy of `node.py` in the folder of a run.
NODE_SCRIPT = "start_workers.py"
#: How long a worker looks for its scheduler. The time that it takes to import everything counts.
DEATH_TIMEOUT_S = 120
#: A driver may be started again by the queue if its node is lost: it goes on from the ledger, in the same log.
_REQUEUE = {"slurm": ("--requeue", "--open-mode=append")}
#: A lost job of workers is submitted again by us: the queue must not start it a second time beside that.
_NO_REQUEUE = {"slurm": "--no-requeue", "pbs": "-r n", "sge": "-r n", "lsf": "-rn"}


def lifetime(walltime_s: int) -> tuple[int, int]:
    """Say after how many seconds workers leave by themselves, and by how many they may differ.

    What they hold is handed over first, and not all leave at once. They are gone before the queue ends the job.

    Examples
    --------
    >>> lifetime(3600), lifetime(60)
    ((3240, 90), (38, 7))
    """
    margin = min(max(walltime_s // 10, 15), 600)
    stagger = max(margin // 2, 1) if margin < 30 else margin // 4
    return walltime_s - margin - stagger * (margin < 30), stagger


def worker_options(spec: Specification, certificates: Certificates | None) -> list[str]:
    """Give the options of `dask worker` that a specification asks for."""
    options = ["--dashboard-address", "127.0.0.1:0"]
    if certificates is not None:
        options += ["--protocol", "tls", *certificates.worker_options()]
    if spec.walltime_s is not None:
        after, stagger = lifetime(spec.walltime_s)
        options += ["--lifetime", f"{after}s", "--lifetime-stagger", f"{stagger}s"]
    return options


def worker_job(
    spec: Specification, scheduler: str, name: str, logs: Path, certificates: Certificates | None
) -> Any:
    """Describe a job of workers.

    Parameters
    ----------
    spec : Specification
        Of a kind that queues jobs.
    scheduler : str
        Address that the workers turn to.
    name : str
        Name of the worker; where a job has several, each adds its number.
    logs : Path
        Folder for what the job prints.
    certificates : Certificates, optional
        None: traffic is not encrypted.

    Returns
    -------
    dask_jobqueue.core.Job
        Its ``job_script()`` is what would be submitted.
    """
    assert spec.memory_nbytes is not None
    resource = {}
    if spec.resource is not None:
        resource = {"disk" if spec.kind == "htcondor" else "resource_spec": spec.resource}
    job = _job(
        spec,
        logs,
        scheduler=scheduler,
        name=name,
        cores=spec.cores * spec.per_job,
        memory=f"{spec.memory_nbytes * spec.per_job}B",
        processes=spec.per_job,
        walltime=spec.walltime_s,
        directives=[*([_NO_REQUEUE[spec.kind]] if spec.kind in _NO_REQUEUE else []), *spec.directives],
        **resource,
        interface=spec.interface,
        death_timeout=DEATH_TIMEOUT_S,
        local_directory=spec.scratch,
        worker_extra_args=worker_options(spec, certificates),
        worker_command="distributed.cli.dask_worker",
    )
    # what dask-jobqueue would start is started by our own script, from the folder that the nodes see
    job._command_template = job._command_template.replace(
        " -m distributed.cli.dask_worker ", f" {shlex.quote(str(logs.parent / NODE_SCRIPT))} ", 1
    )
    return job


def command_job(spec: Specification, command: list[str], logs: Path, name: str) -> Any:
    """Describe a job that runs one command, with the size that the specification gives the driver."""
    walltime = spec.walltime_s if spec.driver_walltime is None else int(spec.driver_walltime)
    job = _job(
        spec,
        logs,
        scheduler="",
        name=name,
        cores=spec.driver_cores,
        memory=f"{spec.driver_memory}B",
        processes=1,
        walltime=walltime,
        directives=[*_REQUEUE.get(spec.kind, ()), *spec.driver_directives],
    )
    return with_command(job, spec, command)


def with_command(job: Any, spec: Specification, command: list[str]) -> Any:
    """Let a job run another command in place of its workers."""
    line = shlex.join(command)
    if spec.kind == "htcondor":  # its lines before the command are part of the command
        line = "; ".join([*job._job_script_prologue, line])
    job._command_template = line
    return job


def _job(
    spec: Specification, logs: Path, *, directives: list[str], walltime: int | None, **given: Any
) -> Any:
    module = _jobqueue(spec.kind)
    own: dict[str, Any] = {}
    if spec.queue is not None:
        own["queue"] = spec.queue
    if spec.account is not None and spec.kind != "htcondor":
        own["account" if spec.kind in ("slurm", "pbs") else "project"] = spec.account
    if walltime is not None and spec.kind != "htcondor":
        # LSF counts in hours and minutes
        own["walltime"] = clock(walltime).rpartition(":")[0] if spec.kind == "lsf" else clock(walltime)
    lines: Any = directives
    if spec.kind == "oar":
        own["memory_per_core_property_name"] = "not_applicable"
    if spec.kind == "lsf":
        own["lsf_units"] = "mb"
    if spec.kind == "htcondor":
        given.setdefault("disk", "1 GB")
        if spec.account is not None:
            lines = [f"accounting_group = {spec.account}", *lines]
        lines = dict(_assignment(line) for line in lines)
    return getattr(module, SYSTEMS[spec.kind].job_class)(
        python=spec.python or sys.executable,
        job_name="dpipe",
        # modules of the folder that the run was started in are found, such as recipes
        job_script_prologue=[f"cd {shlex.quote(os.getcwd())}", *spec.prologue],
        job_extra_directives=lines,
        log_directory=str(logs),
        **own,
        **given,
    )


def _jobqueue(kind: str) -> Any:
    """Import the module of dask-jobqueue for a system, and leave Ctrl-C as it was: the package takes it for itself."""
    before = signal.getsignal(signal.SIGINT)
    try:
        return importlib.import_module(f"dask_jobqueue.{kind}")
    except ImportError as err:
        raise ClusterError(
            f"Kind {kind!r} needs dask-jobqueue. Install it with: pip install 'dpipe[hpc]'"
        ) from err
    except ValueError as err:  # only the main thread may set what a signal does
        raise ClusterError("A cluster of jobs must be started in the main thread the first time.") from err
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _assignment(line: str) -> tuple[str, str]:
    name, separator, value = line.partition("=")
    if not separator:
        raise ClusterError(f"Directive {line!r} is no assignment; HTCondor's are written as name = value.")
    return name.strip(), value.strip()


async def submitted(job: Any, script: Path) -> str:
    """Submit a job; give its number.

    Raises
    ------
    ClusterError
        If the queue refuses it, with the queue's own words.
    """
    script.write_text(job.job_script(), encoding="utf-8")
    command = job.submit_command.split()[0]
    try:
        said = await job._submit_job(str(script))
    except RuntimeError as err:
        text = str(err).partition("stderr:\n")[2] or str(err)
        raise ClusterError(f"{command} refused the job: {one_line(text).rstrip('.')}.") from err
    except OSError as err:
        await called([command])  # says what it means that there is no such command
        raise ClusterError(f"{command} failed: {err}") from err
    try:
        return str(job._job_id_from_submit_output(said))
    except ValueError as err:
        raise ClusterError(f"{command} did not tell the number of the job, but: {one_line(said)}") from err


def last_lines(logs: Path, job: str, n: int = 6) -> list[str]:
    """Give the last lines that a job has printed, those of its own and not of Dask's progress first."""
    number = re.escape(job.partition(".")[0])
    found: list[str] = []
    for path in sorted(logs.glob("*")):
        if re.search(rf"(?<!\d){number}(?!\d)", path.name) and path.suffix != ".log":
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [line.rstrip() for line in text.splitlines() if line.strip()][-n:]
    return found[-n:]


def asked_memory(spec: Specification) -> str:
    """Say what a job asks for, for messages."""
    assert spec.memory_nbytes is not None
    return f"{spec.cores * spec.per_job} cores and {spec.memory_nbytes * spec.per_job // MIB} MiB"
