"""Start the workers of a job on its node, with the options of `dask worker`.

What only the node can tell is put right first: the memory that is really there, and the room for what is spilled.

A run copies this file into its folder, where jobs start it by its path. It must not import dpipe: that would more than
triple the memory of the process that watches over the workers.
"""

import os
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
import psutil
from dask.utils import format_bytes, parse_bytes

MIB = 2**20
_LEAVE_VARIABLE = "DPIPE_LEAVE_AT"
_ROOT = Path("/sys/fs/cgroup")
#: Limits beyond this are none: the first version of control groups writes "no limit" as a very large number.
_NO_LIMIT = 2**60


def enforced_nbytes(
    environ: Mapping[str, str] = os.environ, root: Path = _ROOT, proc: Path | None = None
) -> int:
    """Find the lowest limit on memory that holds for this process.

    Parameters
    ----------
    environ : mapping
        Where SLURM says what a job has been given on this node.
    root : Path
        Where control groups are mounted.
    proc : Path, optional
        File that names the groups of this process; default ``/proc/self/cgroup``.

    Returns
    -------
    int
        Bytes, for all processes of the group or of the job together; the memory of the machine if nothing limits it.

    Notes
    -----
    A limit may stand at any level above the group of a process. Dask looks at the root of the hierarchy only, and so
    misses that of a job or of a nested container.
    """
    found = [int(psutil.virtual_memory().total), *_of_groups(root, proc or Path("/proc/self/cgroup"))]
    found += _of_slurm(environ)
    return min(found)


def _of_groups(root: Path, proc: Path) -> list[int]:
    try:
        lines = proc.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or no control groups
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        # inside of a container the path may be that of the host, which is not there
        levels = [group, *group.parents] if group.is_dir() else [base]
        found += [limit for level in levels if level.is_relative_to(base) for limit in _read(level / name)]
    return found


def _read(path: Path) -> list[int]:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() and 0 < int(text) < _NO_LIMIT else []


def _of_slurm(environ: Mapping[str, str]) -> list[int]:
    """Limit of this node by what SLURM tells its jobs, in MiB: for the node, or for each processor."""
    node, cpu = environ.get("SLURM_MEM_PER_NODE", ""), environ.get("SLURM_MEM_PER_CPU", "")
    cpus = environ.get("SLURM_CPUS_ON_NODE", "")
    if node.isdigit() and int(node) > 0:  # 0 asks for all the memory there is
        return [int(node) * MIB]
    return [int(cpu) * int(cpus) * MIB] if cpu.isdigit() and cpus.isdigit() and int(cpu) > 0 else []


#: What the process that watches over the workers of a job takes itself.
NANNY_NBYTES = 100 * MIB
#: Scratch is left this much for the files that computations make themselves.
_SPARED = 0.1


def option(arguments: Sequence[str], name: str) -> str | None:
    """Give the value of an option of a command line, None if it is not there, nothing if no value follows it."""
    return next(iter(arguments[arguments.index(name) + 1 :]), "") if name in arguments else None


def with_memory(arguments: Sequence[str], limit_nbytes: int) -> list[str]:
    """Bring the workers' memory limit down to what the system enforces, less what watching over them takes.

    Parameters
    ----------
    arguments : sequence of str
        Command line with ``--memory-limit`` of a worker, and ``--nworkers`` where there are several.
    limit_nbytes : int
        What all processes of the job may have together.

    Examples
    --------
    >>> with_memory(["--nworkers", "2", "--memory-limit", "1GiB"], 1600 * 2**20)
    ['--nworkers', '2', '--memory-limit', '786432000']
    """
    n = int(option(arguments, "--nworkers") or 1)
    asked = parse_bytes(option(arguments, "--memory-limit") or limit_nbytes)
    changed = list(arguments)
    if "--memory-limit" not in changed:
        changed += ["--memory-limit", ""]
    changed[changed.index("--memory-limit") + 1] = str(share(min(limit_nbytes, n * asked), n))
    return changed


def share(room_nbytes: int, n_workers: int) -> int:
    """Give the memory of each worker of a job that has so much in all: some is for the process that watches them."""
    own = NANNY_NBYTES if room_nbytes > 4 * NANNY_NBYTES else room_nbytes // 4
    return (room_nbytes - own) // n_workers


def scratch_room(folder: str, n_workers: int) -> int:
    """Make the folder for scratch, and give the bytes that each worker may spill there.

    Raises
    ------
    SystemExit
        If it cannot be made or written; the log of the job then ends with the reason.
    """
    node = os.uname().nodename
    if not folder or folder.startswith("--"):  # the shell has left the value out: this is the option after it
        raise SystemExit(
            f"dpipe: the scratch folder has no name on node {node}: a variable in it is not set there. Use one that is "
            "set, or a path, with the key 'scratch' of the cluster specification."
        )
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError("it is not writable")
        return int(shutil.disk_usage(path).free * (1 - _SPARED)) // n_workers
    except OSError as err:
        raise SystemExit(
            f"dpipe: scratch folder {folder} on node {node} cannot be used: {err}. Name one that every node has, "
            "with the key 'scratch' of the cluster specification."
        ) from err


def leaving_at(arguments: Sequence[str], job_started: float) -> tuple[list[str], float | None]:
    """Make of a lifetime, which would begin when a worker is there, the time of day at which the workers leave.

    Parameters
    ----------
    arguments : sequence of str
        Command line, perhaps with ``--lifetime`` and ``--lifetime-stagger``, in seconds.
    job_started : float
        When the job began, in seconds since 1970: its wall time counts from there, however long imports take.

    Returns
    -------
    arguments : list of str
        Without those options.
    time : float or None
        None if workers stay.

    Examples
    --------
    >>> leaving_at(["--lifetime", "90s", "--lifetime-stagger", "0s", "--nanny"], 1000.0)
    (['--nanny'], 1090.0)
    """
    changed, found = list(arguments), {}
    for name in ("--lifetime", "--lifetime-stagger"):
        if name in changed:
            at = changed.index(name)
            found[name] = float(changed[at + 1].rstrip("s"))
            del changed[at : at + 2]
    if "--lifetime" not in found:
        return changed, None
    stagger = found.get("--lifetime-stagger", 0.0)
    return changed, job_started + found["--lifetime"] + random.uniform(-stagger, stagger)


def dask_setup(worker: Any) -> None:
    """Let a worker leave in time: called by Dask in its process, which has this file as a preload."""
    end = float(os.environ[_LEAVE_VARIABLE])
    worker.io_loop.call_later(
        max(end - time.time(), 0.0), worker.close_gracefully, reason="worker-lifetime-reached"
    )


def main(arguments: Sequence[str]) -> None:
    """Start the workers; come back when they have ended."""
    from distributed.cli.dask_worker import main as dask_worker

    sys.path.insert(
        0, os.getcwd()
    )  # as `python -m` does; the processes of the workers are given the same path
    # the parent of this process is the shell of the job
    rest, end = leaving_at(arguments, psutil.Process(os.getppid()).create_time())
    if end is not None:
        os.environ[_LEAVE_VARIABLE] = str(end)
        rest += ["--preload", os.path.abspath(__file__)]
    given = with_memory(rest, enforced_nbytes())
    n = int(option(given, "--nworkers") or 1)
    folder = option(given, "--local-directory")
    room = scratch_room("." if folder is None else folder, n)
    if folder is not None:  # the scratch of dpipe itself goes there, too
        os.environ["DPIPE_SCRATCH"] = os.path.abspath(folder)
    # the processes of the workers are given this configuration
    dask.config.set({"distributed.worker.memory.max-spill": room})
    limit = int(option(given, "--memory-limit") or 0)
    print(f"dpipe: {n} x {format_bytes(limit)} of memory, {format_bytes(room)} of scratch", file=sys.stderr)
    dask_worker(args=given, prog_name="dask worker")


if __name__ == "__main__":
    main(sys.argv[1:])
