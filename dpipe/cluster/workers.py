"""What processes that work together on a cluster must know: who is left, who has it alone, and who is still wanted."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from distributed import Client, Lock, get_worker


def workers_of(client: Client) -> dict[str, dict[str, Any]]:
    """Describe the workers that are left, by their addresses.

    `client.scheduler_info` would not do: what it gives is written anew every two seconds, by then without workers.

    Raises
    ------
    OSError
        If the scheduler is gone.
    """
    if client.scheduler is None:
        return {}
    return dict(client.sync(client.scheduler.identity, n_workers=-1)["workers"])


def addresses(client: Client) -> list[str]:
    """List the workers that are left, always in the same order."""
    return sorted(workers_of(client))


@contextlib.contextmanager
def alone(client: Client, name: str) -> Iterator[None]:
    """Let one group of a cluster work at a time: two could wait for each other's workers for ever."""
    with client.as_current():
        lock = Lock(name)
    lock.acquire()
    try:
        yield
    finally:
        # with the scheduler, the lock is gone
        with contextlib.suppress(Exception):
            lock.release()


def still_wanted() -> Callable[[], bool]:
    """Give what tells whether anybody still waits for the task that calls this."""
    worker = get_worker()
    key = worker.get_current_task()

    def wanted() -> bool:
        state = worker.state.tasks.get(key)
        return state is not None and state.state == "executing"

    return wanted
