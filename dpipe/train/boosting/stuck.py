"""Learners that wait inside XGBoost for others that are gone.

A learner whose connections break is told so at its next step. In between there is a moment at which XGBoost 3 waits for
its own thread of connections after that has ended, for ever: seen in about one of a hundred groups that broke while
their matrices were built. Nothing ends a thread that waits there but the end of its process.
"""

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import psutil
from distributed import get_worker

#: How long a learner that nobody waits for may do nothing at all before it counts as stuck.
_IDLE_S = 5.0
_LOOK_EVERY_S = 0.1


def ended(threads: Sequence[threading.Thread], given_up: Callable[[], bool]) -> bool:
    """Wait for learners to end.

    Parameters
    ----------
    threads : sequence of threading.Thread
        Started.
    given_up : callable
        Tells whether their group is broken. From then on, they are waited for as long as they compute.

    Returns
    -------
    bool
        False if some are stuck; they are left to themselves.
    """
    used, since = -1.0, time.monotonic()
    while alive := [thread for thread in threads if thread.is_alive()]:
        alive[0].join(_LOOK_EVERY_S)
        if not given_up():
            since = time.monotonic()
            continue
        now = _processor_time(alive)
        if abs(now - used) > 1e-3:
            used, since = now, time.monotonic()
        elif time.monotonic() - since > _IDLE_S:
            return False
    return True


def _processor_time(threads: Sequence[threading.Thread]) -> float:
    """Give the seconds that threads have computed for; what has ended meanwhile counts no more."""
    numbers = {thread.native_id for thread in threads}
    return sum(each.user_time + each.system_time for each in psutil.Process().threads() if each.id in numbers)


def renew_worker(threads: Sequence[threading.Thread], after_s: float) -> None:
    """Have the worker of this task start again, if learners that were left to themselves do not end.

    They hold their rows until their process ends. The worker hands what it keeps to others first; one without a
    nanny, which would start it again, stays as it is.

    Parameters
    ----------
    threads : sequence of threading.Thread
    after_s : float
        Seconds to wait for them.
    """
    try:
        worker = get_worker()
    except ValueError:
        worker = None

    def watch() -> None:
        until = time.monotonic() + after_s
        for thread in threads:
            thread.join(max(until - time.monotonic(), 0))
        if not any(thread.is_alive() for thread in threads):
            return
        reason = "a learner of a group that broke waits inside XGBoost for ever"
        if worker is None or worker.nanny is None:
            warnings.warn(
                f"{reason}; it keeps its memory until this process ends", RuntimeWarning, stacklevel=1
            )
        else:
            worker.loop.add_callback(partial(worker.close_gracefully, restart=True, reason=reason))

    threading.Thread(target=watch, daemon=True).start()
