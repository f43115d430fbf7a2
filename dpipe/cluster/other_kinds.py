"""Clusters that other packages start: dask-mpi, dask-kubernetes and dask-cuda, where they are installed."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from distributed import Client

from dpipe.cluster.local import scratch_folder
from dpipe.cluster.specification import Specification
from dpipe.errors import ClusterError

_PACKAGES = {"mpi": "dask-mpi", "kubernetes": "dask-kubernetes", "cuda": "dask-cuda"}


def _package(kind: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as err:
        name = _PACKAGES[kind]
        raise ClusterError(
            f"Kind {kind!r} needs {name}, which is not installed: pip install {name} ({err})."
        ) from err


@contextlib.contextmanager
def mpi_client(spec: Specification) -> Iterator[Client]:
    """Share out the ranks of this MPI program: one is the scheduler, one goes on here, the others are workers.

    Those others never come back: they end with the client.
    """
    given: dict[str, Any] = {"nthreads": spec.cores, "dashboard_address": "127.0.0.1:0", "exit": True}
    if spec.memory_nbytes is not None:
        given["memory_limit"] = spec.memory_nbytes
    if spec.interface is not None:
        given["interface"] = spec.interface
    _package("mpi", "dask_mpi").initialize(local_directory=spec.scratch or scratch_folder(), **given)
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
            local_directory=spec.scratch or scratch_folder(),
            **given,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
