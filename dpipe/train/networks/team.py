"""A group of ranks, and another one if it breaks: on the workers of a cluster, or in processes of this machine."""

import contextlib
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from distributed import Client, wait
from distributed.comm import get_address_host

from dpipe.cluster.local import explained
from dpipe.errors import ClusterError, InputError
from dpipe.train.networks.child import Ended, Meeting, run_rank
from dpipe.train.networks.training import Recipe, Trained

#: Groups that may break in a row.
_MOST_BROKEN = 4
_LOOK_EVERY_S = 0.5


def train_here(recipe: Recipe, n_ranks: int, timeout_s: float) -> Trained:
    """Train in some processes of this machine.

    Raises
    ------
    InputError
        What a rank complains of.
    ClusterError
        If group after group breaks.
    """
    token = uuid.uuid4().hex
    for _ in range(_MOST_BROKEN):
        meeting = Meeting("127.0.0.1", open_store(token, "127.0.0.1"), token, timeout_s)
        try:
            with ThreadPoolExecutor(n_ranks) as pool:
                asked = [pool.submit(run_rank, recipe, rank, n_ranks, meeting, 1) for rank in range(n_ranks)]
            ended = [each.result() for each in asked]
        finally:
            close_store(token)
        found = _outcome(ended)
        if found is not None:
            return found
    raise _broken(ended)


def train_on(client: Client, recipe: Recipe, most: int | None, timeout_s: float) -> Trained:
    """Train on the workers of a cluster, one rank each; with those that are left, if one is lost.

    Raises
    ------
    InputError
        What a rank complains of.
    ClusterError
        If group after group breaks.
    """
    avoided: set[str] = set()
    ended: Sequence[Ended] = ()
    with explained(client):
        for _ in range(_MOST_BROKEN):
            present = _addresses(client)
            hosts = ([each for each in present if each not in avoided] or present)[:most]
            ended, lost = _attempt(client, recipe, hosts, timeout_s)
            avoided |= lost
            found = _outcome(ended)
            if found is not None:
                return found
    raise _broken(ended)


def _attempt(
    client: Client, recipe: Recipe, hosts: Sequence[str], timeout_s: float
) -> tuple[list[Ended], set[str]]:
    """Have one group learn; give how its ranks have ended, and the workers that were lost."""
    token, first = uuid.uuid4().hex, hosts[0]
    where = get_address_host(first)
    found = client.run(open_store, token, where, workers=[first], on_error="return")
    if not isinstance(found.get(first), int):
        return [], {first}
    meeting = Meeting(where, found[first], token, timeout_s)
    futures = {
        host: client.submit(
            run_rank,
            recipe,
            rank,
            len(hosts),
            meeting,
            1,
            workers=[host],
            allow_other_workers=False,
            pure=False,
            retries=0,
            key=f"network-rank-{token}-{rank}",
        )
        for rank, host in enumerate(hosts)
    }
    lost: set[str] = set()
    try:
        while not lost and any(not future.done() for future in futures.values()):
            with contextlib.suppress(TimeoutError), client.as_current():
                wait(list(futures.values()), timeout=_LOOK_EVERY_S)
            lost = set(hosts) - set(_addresses(client))
    finally:
        with contextlib.suppress(OSError, KeyError, ValueError):
            client.run(close_store, token, workers=[first], on_error="ignore")
    left = {host: future for host, future in futures.items() if host not in lost}
    return _results(left, timeout_s), lost


def _results(futures: Mapping[str, Any], timeout_s: float) -> list[Ended]:
    """Gather how ranks have ended; those that say nothing are as good as lost."""
    until = time.monotonic() + timeout_s
    ended = []
    for future in futures.values():
        with contextlib.suppress(TimeoutError):
            ended.append(future.result(timeout=max(until - time.monotonic(), 1.0)))
    return ended


def _outcome(ended: Sequence[Ended]) -> Trained | None:
    """Give what was learned; None if the group is broken.

    Raises
    ------
    InputError
        What a rank complains of: it would do so again.
    """
    for each in ended:
        if each.error:
            raise InputError(each.error)
    if not ended or not all(each.finished for each in ended):
        return None
    return next((each.trained for each in ended if each.trained is not None), None)


def _broken(ended: Sequence[Ended]) -> ClusterError:
    why = " ".join(each.why for each in ended if each.why)
    return ClusterError(
        f"Groups of processes that train a network broke {_MOST_BROKEN} times in a row. {why} Give them more memory, "
        "or smaller batches, and run again: with a workdir, training goes on from its last checkpoint."
    )


def _addresses(client: Client) -> list[str]:
    """List the workers that are left, always in the same order."""
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


_stores: dict[str, Any] = {}
_lock = threading.Lock()


def open_store(token: str, host: str) -> int:
    """Open the store in which the ranks of a group find each other, in this process; give its port."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined,unused-ignore]

    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    with _lock:
        _stores[token] = store
    return int(store.port)


def close_store(token: str) -> None:
    """Close it; ranks that still run are ended."""
    with _lock:
        _stores.pop(token, None)
