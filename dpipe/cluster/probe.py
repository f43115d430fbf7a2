"""Tell what a node of a cluster is like: run there by a job, from a copy of this file, by whatever Python it finds.

Only the standard library is needed: what is missing is what the answer is about.
"""

import json
import os
import platform
import shutil
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

#: What must be there, in the version that the driver has.
PACKAGES = (
    "dpipe",
    "dask",
    "distributed",
    "numpy",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "cloudpickle",
    "msgpack",
)


def versions() -> dict[str, str]:
    """List the versions of the packages that a driver and its workers share; empty where one is missing."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def file_system(folder: str) -> str:
    """Name the kind of file system that a folder is on, such as ext4, nfs4 or tmpfs."""
    path = Path(folder).resolve()
    kinds = {}
    for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
        _, where, kind = line.split()[:3]
        kinds[where.replace("\\040", " ")] = kind
    return next((kinds[str(each)] for each in (path, *path.parents) if str(each) in kinds), "")


def scratch(folder: str) -> dict[str, Any]:
    """Describe the folder for scratch: what it is on, whether it can be written, and how much is free."""
    path = Path(os.path.expandvars(folder))
    if "$" in str(path):
        return {"path": str(path), "error": "a variable in it is not set in jobs there"}
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".dpipe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as err:
        return {"path": str(path), "error": str(err)}
    return {
        "path": str(path),
        "error": "",
        "kind": file_system(str(path)),
        "free": shutil.disk_usage(path).free,
    }


def reached(address: str) -> str:
    """Connect to the driver, as workers will; say what is wrong, nothing if it answers."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"dpipe")
    except OSError as err:
        return str(err)
    return ""


def answer(folder: str, address: str) -> dict[str, Any]:
    """Describe this node."""
    return {
        "node": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": versions(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_per_node": os.environ.get("SLURM_MEM_PER_NODE", ""),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "scratch": scratch(folder),
        "unreached": reached(address),
    }


if __name__ == "__main__":
    _, to, scratch_folder, driver = sys.argv
    unfinished = Path(f"{to}.part")
    unfinished.write_text(json.dumps(answer(scratch_folder, driver)), encoding="utf-8")
    unfinished.rename(to)  # who waits for the answer never reads half of it
