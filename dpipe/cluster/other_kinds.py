"""Clusters that other packages start: dask-mpi, dask-kubernetes and dask-cuda, where they are installed.

References
----------
Dask-MPI, "Dask-MPI with Batch Jobs" and "API", https://mpi.dask.org: ``mpirun -np 4 python script.py``, in which
``initialize`` makes rank 0 the scheduler, lets rank 1 go on, and makes workers of all others.
"""

import contextlib
import importlib
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from distributed import Client

from dpipe.cluster.local import scratch_here
from dpipe.cluster.queues import one_line
from dpipe.cluster.specification import Specification
from dpipe.errors import ClusterError
from dpipe.sizes import counted, format_bytes

_PACKAGES = {"mpi": "dask-mpi", "kubernetes": "dask-kubernetes", "cuda": "dask-cuda"}


def _package(kind: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as err:
        name = _PACKAGES[kind]
        raise ClusterError(
            f"Kind {kind!r} needs {name}, which is not installed: pip install {name} ({err})."
        ) from err


def mpi_arguments(spec: Specification) -> dict[str, Any]:
    """Give the arguments of `dask_mpi.initialize`, which each rank of the program calls."""
    given: dict[str, Any] = {
        "nthreads": spec.cores,
        "local_directory": scratch_here(spec.scratch),
        "dashboard_address": "127.0.0.1:0",
        "worker_options": {"dashboard_address": "127.0.0.1:0"},
        "exit": True,
    }
    if spec.memory_nbytes is not None:
        given["memory_limit"] = spec.memory_nbytes
    if spec.interface is not None:
        given["interface"] = spec.interface
    return given


def mpi_script(spec: Specification, n_workers: int = 2, starter: str = "mpirun") -> str:
    """Write the lines that start a run by MPI, for a job script or for a shell.

    Parameters
    ----------
    spec : Specification
        Of kind ``mpi``.
    n_workers : int
        How many ranks are to be workers; two more are the scheduler and the driver.
    starter : str
        The program that starts the ranks.

    Returns
    -------
    str
        With ``RECIPE`` to fill in.
    """
    memory = "" if spec.memory_nbytes is None else f" and {format_bytes(spec.memory_nbytes)}"
    run = [sys.executable, "-m", "dpipe.cli", "run", "RECIPE", "--cluster", spec.source or "FILE"]
    return (
        "# rank 0 is the scheduler, rank 1 the driver; each further rank is a worker with "
        f"{counted(spec.cores, 'thread')}{memory}\n{shlex.join([starter, '-np', str(n_workers + 2), *run])}\n"
    )


@contextlib.contextmanager
def mpi_client(spec: Specification) -> Iterator[Client]:
    """Share out the ranks of this MPI program: one is the scheduler, one goes on here, the others are workers.

    Those others never come back: they end with the client.
    """
    dask_mpi = _package("mpi", "dask_mpi")
    try:
        dask_mpi.initialize(**mpi_arguments(spec))
    except (ImportError, RuntimeError) as err:  # no mpi4py, no library of MPI, or too few ranks
        raise ClusterError(
            f"Kind 'mpi' cannot start: {one_line(str(err)).rstrip('.')}. Start all ranks together, at least 3: "
            "mpirun -np 4 python -m dpipe.cli run RECIPE --cluster FILE"
        ) from err
    with Client() as client:
        client.wait_for_workers(1)
        yield client


@contextlib.contextmanager
def kubernetes_client(spec: Specification) -> Iterator[Client]:
    """Start a cluster through the operator of dask-kubernetes."""
    module = _package("kubernetes", "dask_kubernetes.operator")
    low, high = spec.n_workers
    needed: dict[str, str] = {"cpu": str(spec.cores)}
    if spec.memory_nbytes is not None:
        needed["memory"] = str(spec.memory_nbytes)
    named = {"image": spec.image, "namespace": spec.namespace}
    with (
        module.KubeCluster(
            name="dpipe",
            n_workers=low,
            resources={"requests": needed, "limits": needed},
            **{key: value for key, value in named.items() if value is not None},
            **spec.options,
        ) as cluster,
        Client(cluster) as client,
    ):
        if low < high:
            cluster.adapt(minimum=low, maximum=high)
        client.wait_for_workers(1)
        yield client


@contextlib.contextmanager
def cuda_client(spec: Specification) -> Iterator[Client]:
    """Start a worker for each GPU of this machine, or for so many as are asked for."""
    module = _package("cuda", "dask_cuda")
    given: dict[str, Any] = {"threads_per_worker": spec.cores, **spec.options}
    if spec.workers is not None:
        given["n_workers"] = spec.n_workers[1]
    if spec.memory_nbytes is not None:
        given["memory_limit"] = spec.memory_nbytes
    with (
        module.LocalCUDACluster(
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            local_directory=scratch_here(spec.scratch),
            **given,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
