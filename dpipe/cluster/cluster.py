"""`Cluster`: one small specification of where to run, from a laptop to a supercomputer."""

import asyncio
import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import current_process
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import dask
from distributed import Client, LocalCluster
from distributed.comm import connect
from distributed.core import send_recv
from distributed.security import Security

from dpipe.cluster.job_cluster import QueueLauncher, kept_cluster
from dpipe.cluster.local import WORKER_RESERVED_NBYTES, calm, dashboard_link, scratch_here
from dpipe.cluster.node import enforced_nbytes
from dpipe.cluster.other_kinds import cuda_client, kubernetes_client, mpi_client
from dpipe.cluster.queues import one_line
from dpipe.cluster.specification import QUEUES, Specification, find_specification
from dpipe.cluster.ssh import SshLauncher
from dpipe.errors import ClusterError, InputError

#: How long a scheduler that runs already may take to answer.
CONNECT_S = 5

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Cluster(Specification):
    """Say where to run; as a context manager, start it and give a client.

    Nothing is started before ``with``. Where an argument `client` is taken, a Cluster may be given, too: it is started
    for the call and ended after it. All sizes are those of one worker.

    Parameters
    ----------
    kind : str
        ``local``, ``address`` (a scheduler that runs already), ``slurm``, ``pbs``, ``sge``, ``lsf``, ``htcondor``,
        ``oar``, ``ssh``, ``mpi``, ``kubernetes`` or ``cuda``.
    workers : int or pair of int, optional
        Worker processes: a fixed number, or the fewest and the most of a cluster that follows the work.
    cores : int
        Threads of a worker; default 1.
    memory : int or str, optional
        Of a worker, such as "8 GiB". Queues must be told.
    per_job : int
        Workers of one job; default 1.
    walltime : int or str, optional
        Of a job, such as "02:00:00". Workers leave before it is over, and new jobs take their places.
    scratch : str, optional
        Folder on the disk of each node for what workers spill; ``$NAME`` is read there.
    queue, account, resource : str, optional
        Partition or queue; account or project; what PBS, SGE and OAR call the resource specification, and the disk of a
        job of HTCondor.
    directives : sequence of str
        Further lines of the job's header, without their prefix; for ``ssh``, further options of the command.
    python : str, optional
        Python of the nodes; default this one.
    prologue : sequence of str
        Lines of shell before the worker starts, such as ``module load``. The nodes run them, dpipe does not.
    interface, scheduler_interface : str, optional
        Network interface of workers, and of the scheduler where it is another one.
    folder : str, optional
        For scripts, logs and certificates, on a disk that all nodes see; default ``~/.dpipe``.
    attempts : int
        Jobs in a row that may end before a worker has started; default 3.
    tls : bool, optional
        False sends everything unencrypted; default: what leaves this machine is encrypted.
    driver_cores, driver_memory, driver_walltime, driver_directives : optional
        Of the job that ``dpipe submit`` makes of the run itself; by default 1, "2 GiB" and the workers' wall time.
    threads : bool
        One process with `workers` x `cores` threads; only for ``local``.
    address, ca, certificate, key : str, optional
        Of a running scheduler, and PEM files for ``tls://``.
    hosts : sequence of str
        Machines for ``ssh``, each as often as it is to have a job.
    image, namespace : str, optional
        For ``kubernetes``.
    options : mapping
        Further arguments of the classes of dask-kubernetes and dask-cuda.

    Raises
    ------
    InputError
        If a key or a value does not do; the message names both, and the file.

    Examples
    --------
    >>> Cluster("slurm", workers=(2, 40), cores=4, memory="16 GiB", walltime="4 h", queue="main").n_workers
    (2, 40)
    >>> with Cluster("local", workers=2, threads=True) as client:
    ...     client.submit(sum, [1, 2]).result()
    3
    """

    _running: list[tuple[contextlib.ExitStack, Client]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    @classmethod
    def read(cls, name: str | os.PathLike[str]) -> "Cluster":
        """Read a specification.

        Parameters
        ----------
        name : str or path
            A YAML file, the address of a scheduler, ``local``, or the name of a file in ``~/.config/dpipe/clusters``.

        Raises
        ------
        InputError
            If it cannot be found or read, or holds what no specification has.
        """
        return cls(**find_specification(name))

    @property
    def started(self) -> Client | None:
        """Client of the cluster while it runs."""
        return self._running[-1][1] if self._running else None

    def __enter__(self) -> Client:
        stack = contextlib.ExitStack()
        with stack:
            client = stack.enter_context(_started(self))
            self._running.append((stack.pop_all(), client))
        return client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, _ = self._running.pop()
        stack.__exit__(kind, error, trace)


def takes_cluster(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function that takes `client=` take a Cluster, too: it is started for the call and ended after it.

    A cluster that is started already, by ``with``, is taken as it is.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        given = kwargs.get("client")
        if not isinstance(given, Cluster):
            return function(*args, **kwargs)
        with contextlib.nullcontext(given.started) if given.started else given as client:
            kwargs["client"] = client
            return function(*args, **kwargs)

    return called


@contextlib.contextmanager
def _started(cluster: Cluster) -> Iterator[Client]:
    with _STARTS[cluster.kind](cluster) as client:
        yield client


@contextlib.contextmanager
def _local(spec: Cluster) -> Iterator[Client]:
    """Start workers on this machine, which listen on the loopback interface only."""
    n = spec.n_workers[1]
    room = enforced_nbytes()
    n_processes = 1 if spec.threads else n
    asked = spec.memory_nbytes
    if asked is None and n_processes > max(1, room // WORKER_RESERVED_NBYTES):
        raise InputError(
            f"Key 'workers' asks for {n_processes:,} processes; this machine, or the job or container that this is in, "
            f"lets them have {room:,} bytes together, and each takes {WORKER_RESERVED_NBYTES:,} before it has read "
            "anything. Ask for fewer."
        )
    if asked is not None and asked * n_processes > room:
        raise InputError(
            f"Key 'memory' asks for {n_processes} x {asked:,} bytes; this machine, or the job or container that this "
            f"is in, lets them have {room:,} together. Ask for less, or for fewer workers."
        )
    scratch = scratch_here(spec.scratch)
    try:
        os.makedirs(scratch, exist_ok=True)
    except OSError as err:
        raise InputError(
            f"Key 'scratch' is {scratch}: that folder cannot be made: {err.strerror}. Name one of this machine."
        ) from err
    with (
        dask.config.set({**calm(), "distributed.dashboard.link": dashboard_link()}),
        _processes(
            processes=not spec.threads,
            n_workers=n_processes,
            threads_per_worker=spec.cores * (n if spec.threads else 1),
            memory_limit=asked or room // n_processes,
            host=None if spec.threads else "127.0.0.1",
            protocol="inproc://" if spec.threads else "tcp://",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            local_directory=scratch,
        ) as cluster,
        Client(cluster) as client,
    ):
        if spec.n_workers[0] < n and not spec.threads:
            cluster.adapt(minimum=spec.n_workers[0], maximum=n)
        yield client


def _processes(**given: Any) -> LocalCluster:
    """Start the workers of this machine; a script that does so at its top level is told what to change."""
    guard = (
        "A script that starts a cluster does so below a line if __name__ == '__main__': as each worker begins by "
        "importing the script."
    )
    # such a worker would start workers of its own; this is where multiprocessing itself looks, too late for a message
    if getattr(current_process(), "_inheriting", False):
        raise ClusterError(guard)
    try:
        return LocalCluster(**given)
    except RuntimeError as err:
        why = _first_cause(err) or type(err).__name__
        raise ClusterError(f"Workers cannot be started on this machine: {why}. {guard}") from err


@contextlib.contextmanager
def _address(spec: Cluster) -> Iterator[Client]:
    address = str(spec.address)
    security: Any = None
    if address.startswith("tls://"):
        security = _own_certificates(spec)
    elif spec.tls is not False and not _is_here(address):
        raise InputError(
            f"Key 'address' is {address}: what is sent there is not encrypted, and leaves this machine. Use tls:// "
            "with ca, certificate and key, or say tls: false if nobody else can reach that network."
        )
    _call(address, security)
    with Client(address, security=security) as client:
        yield client


def _call(address: str, security: Security | None) -> None:
    """Greet a scheduler, as a client does: `Client` itself would wait for ever for an answer of something else."""
    given = {} if security is None else security.get_connection_args("client")

    async def greet() -> str:
        comm = await connect(address, timeout=CONNECT_S, **given)
        try:
            found: dict[str, Any] = await send_recv(comm, op="identity", reply=True)
        finally:
            await comm.close()
        return str(found.get("type"))

    async def greet_in_time() -> str:
        return await asyncio.wait_for(greet(), 1.2 * CONNECT_S)

    try:
        with ThreadPoolExecutor(1) as other:  # in a notebook, this thread has a loop that runs already
            kind = other.submit(asyncio.run, greet_in_time()).result()
    except (OSError, TimeoutError, ValueError, MemoryError) as err:
        why = _first_cause(err) or "what listens there is no scheduler, perhaps its dashboard"
        raise ClusterError(
            f"No scheduler answers at {address}; it was tried for {CONNECT_S} s: {why}. Start one, or correct the key "
            "'address'."
        ) from err
    if kind != "Scheduler":
        raise ClusterError(
            f"What answers at {address} is a {kind}, not a scheduler. Give the scheduler's address with the key "
            "'address'; each worker's log begins with it."
        )


def _own_certificates(spec: Cluster) -> Security:
    """Read the files that a running scheduler asks for; what is wrong with them is said before it is called."""
    files = {name: os.path.expandvars(str(getattr(spec, name))) for name in ("ca", "certificate", "key")}
    for name, path in files.items():
        file = Path(path)
        try:
            file.read_bytes()
        except OSError as err:
            raise InputError(
                f"Key {name!r} is {str(file)!r}, which cannot be read: {err.strerror}. Name the PEM file that whoever "
                "runs the scheduler has given you."
            ) from err
    security = Security(
        require_encryption=True,
        tls_ca_file=files["ca"],
        tls_client_cert=files["certificate"],
        tls_client_key=files["key"],
    )
    try:
        security.get_connection_args("client")
    except (OSError, ValueError) as err:
        raise InputError(
            f"Keys 'ca', 'certificate' and 'key' are {spec.ca!r}, {spec.certificate!r} and {spec.key!r}; these are no "
            f"PEM files that belong together: {one_line(str(err)).rstrip('.')}."
        ) from err
    return security


def _first_cause(err: BaseException) -> str:
    """Say what went wrong at first, if anything says so: that a time ran out only follows from it."""
    said = ""
    cause: BaseException | None = err
    while cause is not None:
        said, cause = str(cause) or said, cause.__cause__
    return one_line(said).rstrip(".")


def _is_here(address: str) -> bool:
    scheme, _, rest = address.partition("://")
    host = rest.rpartition(":")[0]
    loopback = host in ("localhost", "[::1]") or re.fullmatch(r"127(\.\d+){3}", host) is not None
    return loopback or scheme == "inproc"


@contextlib.contextmanager
def _queued(spec: Cluster) -> Iterator[Client]:
    with kept_cluster(spec, functools.partial(QueueLauncher, spec)) as client:
        yield client


@contextlib.contextmanager
def _by_ssh(spec: Cluster) -> Iterator[Client]:
    with kept_cluster(spec, functools.partial(SshLauncher, spec)) as client:
        yield client


_STARTS: dict[str, Callable[[Cluster], contextlib.AbstractContextManager[Client]]] = {
    "local": _local,
    "address": _address,
    **dict.fromkeys(QUEUES, _queued),
    "ssh": _by_ssh,
    "mpi": mpi_client,
    "kubernetes": kubernetes_client,
    "cuda": cuda_client,
}
