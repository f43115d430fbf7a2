"""A scheduler in this process, and workers in jobs of a queue, which a keeper looks after."""

import asyncio
import contextlib
import getpass
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from distributed import Client, Scheduler, SpecCluster
from distributed.utils import format_dashboard_link

from dpipe.cluster import keeper as keeping
from dpipe.cluster import node
from dpipe.cluster.certificates import Certificates, make_certificates
from dpipe.cluster.jobs import NODE_SCRIPT, last_lines, submitted, worker_job
from dpipe.cluster.keeper import Keeper, Launcher
from dpipe.cluster.queues import SYSTEMS, JobState, called
from dpipe.cluster.specification import Specification
from dpipe.errors import ClusterError, InputError

#: How often the start looks whether a worker is there.
_LOOK_S = 0.1


class QueueLauncher:
    """Jobs of a batch system."""

    asks = True

    def __init__(
        self, spec: Specification, scheduler: str, folder: Path, certificates: Certificates | None
    ) -> None:
        self.what = spec.kind
        self._spec, self._scheduler, self._folder, self._certificates = spec, scheduler, folder, certificates
        self._queue = SYSTEMS[spec.kind]
        self._job("")  # what cannot be written as a job script is said at once

    def _job(self, name: str) -> Any:
        return worker_job(self._spec, self._scheduler, name, self._folder / "logs", self._certificates)

    async def submit(self, name: str) -> str:
        """Write the script of a job into the folder of the run, and submit it."""
        return await submitted(self._job(name), self._folder / f"{name}.sh")

    async def states(self, jobs: Sequence[str]) -> dict[str, JobState]:
        """Ask the queue."""
        return await self._queue.states(jobs)

    async def cancel(self, jobs: Sequence[str]) -> None:
        """End jobs; that one is gone already is no error."""
        with contextlib.suppress(ClusterError):
            await called([self._queue.cancel, *jobs])

    def last_lines(self, job: str) -> list[str]:
        """Give the end of the log of a job."""
        return last_lines(self._folder / "logs", job)


class KeptCluster(SpecCluster):
    """Dask's handle of the scheduler; its workers are the keeper's business."""

    keeper: Keeper | None = None

    @property
    def _state(self) -> Any:
        """The scheduler itself; it runs in this process."""
        return self.scheduler

    @property
    def failure(self) -> str | None:
        """Why there will be no more workers; None while all is well."""
        return None if self.keeper is None else self.keeper.failure

    @property
    def dashboard_port(self) -> int:
        """Port of the dashboard on this machine."""
        return int(self._state.http_server.port)

    @property
    def dashboard_link(self) -> str:
        """Address of the dashboard, which listens on this machine only."""
        return format_dashboard_link("127.0.0.1", self.dashboard_port)


def run_folder(spec: Specification) -> Path:
    """Make the folder of a run, for its scripts, logs and certificates, and clear up after runs that were killed.

    Raises
    ------
    InputError
        If it cannot be made.
    """
    root = Path(spec.folder or "~/.dpipe").expanduser().absolute() / "clusters"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        owner = f"{socket.gethostname()}-{os.getpid()}"
        folder = Path(tempfile.mkdtemp(prefix=f"{stamp}-{owner}-", dir=root))  # of this user only
        (folder / "logs").mkdir()
        shutil.copyfile(node.__file__, folder / NODE_SCRIPT)
    except OSError as err:
        raise InputError(
            f"The folder {root} for job scripts and logs cannot be written: {err}. Name one that all nodes see, with "
            "the key 'folder'."
        ) from err
    return folder


def _sweep(root: Path) -> None:
    """Remove certificates of runs of this machine that are no more: they were killed before they could."""
    pattern = re.compile(rf"\d+-\d+-{re.escape(socket.gethostname())}-(\d+)-")
    for path in root.iterdir():
        found = pattern.match(path.name)
        if found and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(path / "tls", ignore_errors=True)


@contextlib.contextmanager
def kept_cluster(
    spec: Specification,
    launcher: Callable[[str, Path, Certificates | None], Launcher],
    *,
    say: Callable[[str], None] | None = None,
) -> Iterator[Client]:
    """Start a scheduler and jobs, give a client when the first worker is there, and clear everything up.

    Parameters
    ----------
    spec : Specification
    launcher : callable
        Makes what submits jobs, of the scheduler's address, the folder of the run and the certificates.
    say : callable, optional
        Told what a user wants to know.

    Raises
    ------
    InputError
        If this machine has no such network interface, or the folder of the run cannot be made.
    ClusterError
        If no worker can be had, with the reason.
    """
    told = say or (lambda text: print(text, file=sys.stderr))
    _check_interface(spec)
    folder = run_folder(spec)
    with contextlib.ExitStack() as stack:
        certificates = None
        if spec.tls is not False:
            certificates = make_certificates(folder / "tls")
            stack.callback(certificates.remove)
        security = None if certificates is None else certificates.security()
        cluster = stack.enter_context(_scheduler(spec, certificates))
        keeper = Keeper(
            spec,
            cluster.scheduler,
            launcher(cluster.scheduler_address, folder, certificates),
            keeping.EVERY_S,
        )
        cluster.keeper = keeper
        stack.enter_context(_keeping(cluster, keeper))
        told(_where(cluster))
        _wait_for_worker(cluster, keeper, told)
        client = stack.enter_context(Client(cluster, security=security))
        try:
            yield client
        except BaseException as err:
            if keeper.failure and not isinstance(err, ClusterError):
                raise ClusterError(keeper.failure) from err
            if keeper.lost:
                err.add_note(f"Logs of the jobs are in {folder / 'logs'}.")
            raise
    if not keeper.lost:
        shutil.rmtree(folder, ignore_errors=True)


def _check_interface(spec: Specification) -> None:
    key = "interface" if spec.scheduler_interface is None else "scheduler_interface"
    name, here = getattr(spec, key), psutil.net_if_addrs()
    if name is not None and name not in here:
        raise InputError(
            f"Key {key!r} is {name!r}: this machine, where the scheduler runs, has no such network interface; it has "
            f"{', '.join(here)}. Where that of the nodes is named otherwise, set 'scheduler_interface', too."
        )


@contextlib.contextmanager
def _scheduler(spec: Specification, certificates: Certificates | None) -> Iterator[KeptCluster]:
    options: dict[str, Any] = {
        "protocol": "tcp://" if certificates is None else "tls://",
        "dashboard": True,
        "dashboard_address": "127.0.0.1:0",
        "port": 0,
    }
    if spec.scheduler_interface or spec.interface:
        options["interface"] = spec.scheduler_interface or spec.interface
    if certificates is not None:
        options["security"] = certificates.security()
    make: Any = KeptCluster  # its constructor is not annotated
    with make(
        workers={},
        scheduler={"cls": Scheduler, "options": options},
        security=options.get("security"),
        name="dpipe",
        silence_logs=logging.WARNING,
    ) as cluster:
        yield cluster


@contextlib.contextmanager
def _keeping(cluster: KeptCluster, keeper: Keeper) -> Iterator[None]:
    loop = cluster._state.loop.asyncio_loop
    watching = asyncio.run_coroutine_threadsafe(keeper.keep(), loop)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(keeper.close(), loop).result()
        watching.cancel()


def _wait_for_worker(cluster: KeptCluster, keeper: Keeper, say: Callable[[str], None]) -> None:
    said = ""
    while not cluster._state.workers:
        if keeper.failure:
            raise ClusterError(keeper.failure)
        if keeper.waiting not in ("", said):
            said = keeper.waiting
            say(said)
        time.sleep(_LOOK_S)


def _where(cluster: KeptCluster) -> str:
    port, user, host = cluster.dashboard_port, getpass.getuser(), socket.getfqdn()
    return (
        f"dashboard from your own machine: ssh -N -L {port}:127.0.0.1:{port} {user}@{host}, then "
        f"{cluster.dashboard_link}"
    )
