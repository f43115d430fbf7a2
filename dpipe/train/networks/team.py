"""A group of ranks, and another one if it breaks: on the workers of a cluster, or in processes of this machine."""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

from distributed import Client, Future, get_worker, wait
from distributed.comm import get_address_host

from dpipe.cluster.local import explained
from dpipe.cluster.workers import addresses, alone, still_wanted
from dpipe.errors import ClusterError, InputError
from dpipe.train.networks.child import Ended, Meeting, Shared, Work, packed, run_rank
from dpipe.train.networks.ranks import Ranks

#: Groups that may break in a row.
_MOST_BROKEN = 4
#: A group that has lasted so many times its timeout has come somewhere, and is not one in a row.
_LASTED = 10
_LOOK_EVERY_S = 0.5
#: When one rank has ended, the others are told so by their connections; they have so long to say what is wrong.
_GRACE_S = 5.0
#: So long a worker that was lost has to come back, where others could go on without it.
_WAIT_S = 30.0
#: A scheduler may take a moment to notice that a worker is gone.
_PAUSE_S = 1.0
_LOCK = "dpipe-networks"


def run_here(work: Work | Shared, n_ranks: int, timeout_s: float, device: str | None = None) -> list[bytes]:
    """Have some processes of this machine do some work; give what each has found.

    Raises
    ------
    InputError
        What a rank complains of.
    ClusterError
        If group after group breaks.
    """
    told, threads = packed(work, n_ranks), max((os.cpu_count() or 1) // n_ranks, 1)

    def attempt() -> list[Ended]:
        meeting = Meeting("127.0.0.1", free_port("127.0.0.1"), uuid.uuid4().hex, timeout_s)
        broken = _Broken()

        def one(rank: int) -> Ended:
            ranks = Ranks(rank, n_ranks, rank, n_ranks, "127.0.0.1", device)
            ended = run_rank(told[rank], ranks, meeting, threads, broken.still_whole)
            if not ended.finished:
                broken.tell()
            return ended

        with ThreadPoolExecutor(n_ranks) as pool:
            return list(pool.map(one, range(n_ranks)))

    return _until_whole(attempt, timeout_s)


class _Broken:
    """Whether a rank of a group has ended, and the others have had their time to say why."""

    def __init__(self) -> None:
        self._since: float | None = None

    def tell(self) -> None:
        self._since = self._since or time.monotonic()

    def still_whole(self) -> bool:
        return self._since is None or time.monotonic() - self._since < _GRACE_S


def run_on(
    client: Client,
    work: Work | Shared,
    most: int | None,
    timeout_s: float,
    device: str | None = None,
    least: int = 1,
) -> list[bytes]:
    """Have the workers of a cluster do some work, one rank each; with those that are left, if one is lost.

    Parameters
    ----------
    client : Client
    work : Work
    most : int, optional
        Ranks at most. Default: as many as there are workers.
    timeout_s : float
    device : str, optional
    least : int
        Workers that are waited for, should there be fewer; after a while it goes on with those that there are.

    Returns
    -------
    list of bytes
        What each rank has found.

    Raises
    ------
    InputError
        What a rank complains of.
    ClusterError
        If group after group breaks.
    """
    avoided: set[str] = set()

    def attempt() -> list[Ended]:
        present = addresses(client)
        if len(present) < least:
            with contextlib.suppress(TimeoutError):
                client.wait_for_workers(least, timeout=_WAIT_S if present else None)
            present = addresses(client)
        left = [each for each in present if each not in avoided]
        hosts = (left if len(left) >= least else present)[:most]
        hosts = hosts[: work.usable(len(hosts))] if isinstance(work, Shared) else hosts
        ended, lost = _Group(client, hosts, timeout_s, device).run(packed(work, len(hosts)))
        avoided.update(lost)
        return ended

    with explained(client), alone(client, _LOCK):
        return _until_whole(attempt, timeout_s)


def _until_whole(attempt: Callable[[], list[Ended]], timeout_s: float) -> list[bytes]:
    """Make groups until one has done it.

    Raises
    ------
    InputError
        What a rank complains of: it would do so again.
    ClusterError
        If group after group breaks.
    """
    broken = 0
    while broken < _MOST_BROKEN:
        began = time.monotonic()
        ended = attempt()
        for each in ended:
            if each.error:
                raise InputError(each.error)
        if ended and all(each.finished for each in ended):
            return [each.found for each in ended]
        broken = 1 if time.monotonic() - began > _LASTED * timeout_s else broken + 1
        time.sleep(_PAUSE_S)
    why = " ".join(dict.fromkeys(each.why for each in ended if each.why))
    raise ClusterError(
        f"Groups of processes that train a network broke {_MOST_BROKEN} times in a row. {why} Give them more memory, "
        "or smaller batches, and run again: with a workdir, training goes on from its last checkpoint."
    )


class _Group:
    """One group on the workers of a cluster."""

    def __init__(self, client: Client, hosts: Sequence[str], timeout_s: float, device: str | None) -> None:
        self._client, self._hosts, self._timeout_s, self._device = client, hosts, timeout_s, device

    def run(self, told: Sequence[bytes]) -> tuple[list[Ended], set[str]]:
        """Have it work; give how its ranks have ended, and the workers that were lost."""
        first, token = self._hosts[0], uuid.uuid4().hex
        where = get_address_host(first)
        port = self._ask(first, free_port, where)
        if not isinstance(port, int):
            return [], {first}
        meeting = Meeting(where, port, token, self._timeout_s)
        with contextlib.suppress(OSError, TimeoutError, KeyError, ValueError):
            held = self._sent(told)
            futures = {
                host: self._started(host, each, ranks, meeting)
                for (host, ranks), each in zip(self._ranks(), held, strict=True)
            }
            try:
                lost = self._until_ended(futures)
                return [self._result(each) for host, each in futures.items() if host not in lost], lost
            finally:
                self._client.cancel(list(futures.values()))
        return [], set(self._hosts) - set(addresses(self._client))

    def _sent(self, told: Sequence[bytes]) -> list[Any]:
        """Send what ranks are told beside the tasks, so that it travels once, and not through the scheduler."""
        hosts = list(self._hosts)
        if all(each is told[0] for each in told):
            return [self._client.scatter(told[0], workers=hosts, broadcast=True, hash=False)] * len(hosts)
        return [
            self._client.scatter(each, workers=[host], hash=False)
            for each, host in zip(told, hosts, strict=True)
        ]

    def _ranks(self) -> list[tuple[str, Ranks]]:
        """Give each worker its rank, and its place among those of its machine."""
        machines = [get_address_host(host) for host in self._hosts]
        total, seen = Counter(machines), Counter[str]()
        found = []
        for rank, (host, machine) in enumerate(zip(self._hosts, machines, strict=True)):
            place = seen[machine], total[machine], machine, self._device
            found.append((host, Ranks(rank, len(machines), *place)))
            seen[machine] += 1
        return found

    def _started(self, host: str, held: Any, ranks: Ranks, meeting: Meeting) -> Future[Any]:
        return self._client.submit(
            _run_on_worker,
            held,
            ranks,
            meeting,
            workers=[host],
            allow_other_workers=False,
            pure=False,
            retries=0,
            key=f"network-rank-{meeting.token}-{ranks.rank}",
        )

    def _ask(self, host: str, function: Any, *arguments: Any) -> Any:
        """Call a function on a worker, beside its tasks; None if it does not answer in time."""
        found: list[Any] = []

        def ask() -> None:
            with contextlib.suppress(OSError, KeyError, ValueError):
                told = self._client.run(function, *arguments, workers=[host], on_error="return")
                found.append(told.get(host))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(self._timeout_s)
        return found[0] if found else None

    def _until_ended(self, futures: Mapping[str, Future[Any]]) -> set[str]:
        """Wait until all ranks have ended, or one otherwise than the others will; give the workers that are lost."""
        broken = _Broken()
        while broken.still_whole():
            waiting = [each for each in futures.values() if not each.done()]
            if not waiting:
                break
            # with its worker a rank loses what it was told, and is cancelled
            with contextlib.suppress(TimeoutError, CancelledError), self._client.as_current():
                wait(waiting, timeout=_LOOK_EVERY_S, return_when="FIRST_COMPLETED")
            lost = set(futures) - set(addresses(self._client))
            if lost:
                return lost
            if any(each.done() and not self._result(each).finished for each in futures.values()):
                broken.tell()
        return set(futures) - set(addresses(self._client))

    def _result(self, future: Future[Any]) -> Ended:
        """Give how a rank has ended; who does not say it was lost on the way."""
        if not future.done():
            return Ended(why="A rank did not end with the others.")
        try:
            found: Ended = future.result(timeout=self._timeout_s)
        except Exception as err:
            return Ended(why=f"A worker has given up a rank: {type(err).__name__}: {err}.")
        return found


def _run_on_worker(told: bytes, ranks: Ranks, meeting: Meeting) -> Ended:
    return run_rank(told, ranks, meeting, get_worker().state.nthreads, still_wanted())


def free_port(host: str) -> int:
    """Find a port that is free on this machine; should another process take it, the group meets elsewhere."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])
