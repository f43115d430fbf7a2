"""Choose where to run: the caller's client, Dask's configured scheduler, or an embedded cluster."""

import asyncio
import contextlib
import gc
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import psutil
from dask.base import get_scheduler
from distributed import Client, KilledWorker, LocalCluster, get_worker
from distributed.client import default_client
from distributed.comm import CommClosedError

from dpipe.blocks.heap import give_back
from dpipe.cluster.node import share
from dpipe.cluster.specification import Specification
from dpipe.cluster.workers import workers_of
from dpipe.errors import ClusterError, InputError
from dpipe.sizes import MIB

#: What a worker process takes before it has read anything: Python, Dask, pandas, Arrow, scikit-learn.
WORKER_RESERVED_NBYTES = 260 * MIB
#: How often an embedded cluster looks whether the machine's clock was set back.
CLOCK_EVERY_S = 0.5
#: How often Dask's servers look at themselves and at their tasks: its default, and what is enough. 50 and 100 times a
#: second take a tenth of a core from the tasks of a small machine.
_OFTEN = {
    "distributed.admin.tick.interval": ("20ms", "500ms"),
    "distributed.worker.profile.interval": ("10ms", "100ms"),
}


@dataclass(frozen=True)
class Place:
    """Where a plan will run."""

    client: Client | None
    """None: in this thread, or by a new embedded cluster."""
    workers: int
    threads: int
    """Blocks at a time in a worker."""
    memory: int | None
    """Budget of a worker in bytes."""
    reserved: int
    """What a worker takes by itself, in bytes."""
    embedded: bool = False
    """Whether to start an embedded cluster for the run."""
    near: bool = True
    """Whether all workers run on this machine."""
    inside: bool = True
    """Whether they run in this process."""


def find_place(
    client: Client | Specification | None, memory: int | None, n_blocks: int, workers: int | None = None
) -> Place:
    """Decide where to run, without starting anything.

    Parameters
    ----------
    client : distributed.Client or Specification, optional
        Taken if given; else the current client, if there is one.
    memory : int, optional
        Budget in bytes: of the whole run on this machine, of each worker on a cluster.
    n_blocks : int
        A single block is worked on in this thread.
    workers : int, optional
        Threads of the embedded cluster; default one a processor.

    Raises
    ------
    InputError
        If `client` is not a client, or has no workers.
    """
    if isinstance(client, Specification):
        return _place_to_be(client, memory)
    if client is not None and not isinstance(client, Client):
        raise InputError(f"client must be a distributed.Client or a dpipe.Cluster, got {client!r}.")
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}.")
    if client is None and _inside_task():
        # waiting for other tasks in here could wait for ever: all threads may be waiting
        return Place(None, 1, 1, memory, psutil.Process().memory_info().rss)
    chosen = client or _current_client()
    if chosen is not None:
        return _place_of(chosen, memory)
    here = psutil.Process().memory_info().rss
    if n_blocks <= 1 or dask.config.get("scheduler", None) in ("synchronous", "sync", "single-threaded"):
        return Place(None, 1, 1, memory, here)
    threads = min(workers or os.cpu_count() or 1, n_blocks)
    return Place(None, 1, threads, memory, here, embedded=dask.config.get("scheduler", None) is None)


def _place_to_be(spec: Specification, memory: int | None) -> Place:
    """Tell what a cluster will be that has not been started, for a plan."""
    if spec.started is not None:
        return _place_of(spec.started, memory)
    if spec.kind in ("address", "mpi"):
        raise InputError(
            f"How large a cluster of kind {spec.kind!r} is can be known only when it runs: plan inside of "
            "'with cluster as client:'."
        )
    n, near = spec.n_workers[1], spec.kind == "local"
    if spec.threads:
        return Place(None, 1, spec.cores * n, memory, psutil.Process().memory_info().rss)
    budget = memory // n if near and memory is not None else memory
    if budget is None and spec.memory_nbytes is not None:
        budget = spec.memory_nbytes if near else share(spec.memory_nbytes * spec.per_job, spec.per_job)
    return Place(None, n, spec.cores, budget, WORKER_RESERVED_NBYTES, near=near)


def _inside_task() -> bool:
    try:
        get_worker()
    except ValueError:
        return False
    return True


def _current_client() -> Client | None:
    try:
        return default_client()
    except ValueError:
        return None


def _place_of(client: Client, memory: int | None) -> Place:
    with explained(client):
        workers = workers_of(client)  # empty without a scheduler
    if not workers:
        raise InputError(
            f"{client} has no workers, or its scheduler is gone. Start some, or call client.wait_for_workers(1), and "
            "run again."
        )
    threads = max(int(worker["nthreads"]) for worker in workers.values())
    inside = all(address.startswith("inproc://") for address in workers)
    near = inside or all(_is_loopback(address) for address in workers)
    limits = [int(worker["memory_limit"]) for worker in workers.values() if worker["memory_limit"]]
    budget = min(limits, default=None) if memory is None else memory
    if inside:
        # workers inside this process share its memory: all their threads count as one worker's
        total = sum(int(worker["nthreads"]) for worker in workers.values())
        return Place(client, 1, total, memory, psutil.Process().memory_info().rss)
    if near and memory is not None:
        budget = memory // len(workers)
    return Place(client, len(workers), threads, budget, WORKER_RESERVED_NBYTES, near=near, inside=False)


def _is_loopback(address: str) -> bool:
    return "://127." in address or "://[::1]" in address or "://localhost" in address


def scratch_folder() -> str:
    """Name the folder for scratch: Dask's `temporary-directory`, else TMPDIR, else one that is on disk."""
    named = dask.config.get("temporary-directory", None) or os.environ.get("TMPDIR")
    if named:
        return str(named)
    folder = tempfile.gettempdir()
    # a temporary folder in memory would defeat the purpose
    return "/var/tmp" if _in_memory(folder) and os.access("/var/tmp", os.W_OK) else folder


def scratch_here(named: str | None) -> str:
    """Name the folder for scratch on this machine that a specification names, or `scratch_folder` if it names none.

    Raises
    ------
    InputError
        If a variable in it is not set.
    """
    if not named:
        return scratch_folder()
    folder = os.path.expandvars(named)
    if "$" in folder:
        raise InputError(
            f"Key 'scratch' is {named}: a variable in it is not set on this machine. Set it, or name a folder."
        )
    return folder


def _in_memory(folder: str) -> bool:
    kinds = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    here = Path(folder).resolve()
    found = next((kinds[str(path)] for path in (here, *here.parents) if str(path) in kinds), "")
    return found in ("tmpfs", "ramfs")


@contextlib.contextmanager
def running(place: Place, *, watched: bool = True) -> Iterator[Client | None]:
    """Start the embedded cluster if the place asks for one, and close it at the end.

    A run that nobody watches needs no dashboard: Dask's threads start at once, and take less time for each task.
    """
    if not place.embedded or not watched:
        with explained(place.client):
            yield place.client
        return
    with (
        # the logger of an in-process cluster reports what its user cannot act on
        dask.config.set(
            {
                **calm(),
                "distributed.admin.tick.limit": "30s",
                "distributed.worker.memory.pause": False,
                "distributed.dashboard.link": dashboard_link(),
                # a worker of this process cannot be lost, but a clock that is set would make it look so
                "distributed.scheduler.worker-ttl": None,
            }
        ),
        LocalCluster(
            processes=False,
            n_workers=1,
            threads_per_worker=place.threads,
            memory_limit=0,  # the plan bounds memory; a paused worker would only wait for itself
            dashboard_address="127.0.0.1:0",
            protocol="inproc",
            silence_logs=logging.CRITICAL,  # what a task raises is raised here, too
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        _keeping_time(cluster, client),
    ):
        yield client


@contextlib.contextmanager
def _keeping_time(cluster: Any, client: Any) -> Iterator[None]:
    watching = asyncio.run_coroutine_threadsafe(_keep_time(cluster, client), cluster.loop.asyncio_loop)
    try:
        yield
    finally:
        watching.cancel()


async def _keep_time(cluster: Any, client: Any) -> None:
    """Go on when the machine's clock is set back: Distributed's streams would be silent until it has caught up.

    Their batches wait for a time of day, a few milliseconds ahead (distributed/batched.py). Scheduler and worker of
    this process have nobody else to notice.
    """
    scheduler, before = cluster.scheduler, time.time()
    while True:
        await asyncio.sleep(CLOCK_EVERY_S)
        now = time.time()
        if now < before:
            streams = [
                *scheduler.stream_comms.values(),
                *scheduler.client_comms.values(),
                client.scheduler_comm,
            ]
            for stream in (*streams, *(worker.batched_stream for worker in cluster.workers.values())):
                stream.next_deadline = None
                stream.waker.set()
        before = now


def calm() -> dict[str, str]:
    """Name settings that let Dask's servers look at themselves less often, but for those that a user has changed.

    Examples
    --------
    >>> with dask.config.set({"distributed.admin.tick.interval": "50ms"}):
    ...     calm()
    {'distributed.worker.profile.interval': '100ms'}
    """
    return {
        key: enough for key, (default, enough) in _OFTEN.items() if dask.config.get(key, default) == default
    }


def dashboard_link() -> str:
    """Keep a link that the user has configured; else name the address that the dashboard is bound to."""
    link: str = dask.config.get("distributed.dashboard.link")
    return link.replace("{host}", "127.0.0.1") if link == "{scheme}://{host}:{port}/status" else link


def compute(value: Any, client: Client | None, threads: int = 1) -> Any:
    """Compute one Delayed: by the client if there is one, else as Dask is configured, else by threads."""
    try:
        with short_collections(), explained(client):
            if client is None:
                return value.compute(**_scheduler(threads))
            return client.compute(value, sync=True)
    finally:
        give_back()


def _scheduler(threads: int) -> dict[str, Any]:
    named = dask.config.get("scheduler", None)
    if named is not None:
        return {"scheduler": named}
    return {"scheduler": "threads", "num_workers": threads} if threads > 1 else {"scheduler": "synchronous"}


def compute_keys(
    tasks: dict[Any, Any], key: Any, kept: Sequence[Any], client: Client | None, threads: int = 1
) -> tuple[Any, list[Any]]:
    """Compute one key of a graph, and keep what some others give where it was made.

    Returns
    -------
    value
        What `key` gives.
    kept : list
        Futures if there is a client, else values; to be put into later graphs as they are.
    """
    with short_collections(), explained(client):
        if client is not None:
            futures = client.get(tasks, [key, *kept], sync=False)
            return futures[0].result(), list(futures[1:])
        chosen = _scheduler(threads)
        get = get_scheduler(scheduler=chosen.pop("scheduler"))
        value, *values = get(tasks, [key, *kept], **chosen)
        return value, values


@contextlib.contextmanager
def explained(client: Client | None) -> Iterator[None]:
    """Say what a lost scheduler and dying workers mean, and what to do.

    Raises
    ------
    ClusterError
        If a scheduler is gone, or workers die over and over.
    """
    try:
        yield
    except KilledWorker as err:
        raise ClusterError(
            f"Workers died {err.allowed_failures + 1} times over the same task, {err.task!r}: most often they have "
            "no memory left. Give them more, use smaller blocks or fewer threads, and run again."
        ) from err
    except (CancelledError, OSError) as err:
        # whoever asks for a new connection waits for it, and is told so by an error of the operating system
        if not isinstance(err, CancelledError | CommClosedError) and "trying to connect to" not in str(err):
            raise
        where = "" if client is None or client.scheduler is None else f" at {client.scheduler.address}"
        raise ClusterError(
            f"The scheduler{where} is gone: {' '.join(str(err).split())} Start it and run again: with a workdir, what "
            "was recorded is not done again."
        ) from err


@contextlib.contextmanager
def short_collections() -> Iterator[None]:
    """Keep Python's garbage collector off what is there already: walking it stops all threads for long."""
    if gc.get_freeze_count():  # somebody else's
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
