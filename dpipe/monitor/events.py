"""Progress events: from a task, wherever it runs, to whoever listens on the client."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from distributed import Client, get_worker

from dpipe.blocks.flows import counting

TOPIC = "dpipe"
Listener = Callable[[dict[str, Any]], None]

_listeners: list[Listener] = []
_lock = threading.Lock()


def emit(event: dict[str, Any]) -> None:
    """Tell the client about finished work; does nothing where nobody listens."""
    with _lock:
        local = list(_listeners)
    for listener in local:
        listener(event)
    if local:
        return
    try:
        worker = get_worker()
    except ValueError:
        return
    worker.log_event(TOPIC, event)


@contextlib.contextmanager
def counting_apart(block: int) -> Iterator[None]:
    """Gather what is counted while a block is loaded that no pass reads itself, and tell the client."""
    with counting(block) as flows:
        yield
    for name, flow in flows.items():
        counts = dict(zip(flow.names, flow.counts[0].tolist(), strict=True))
        emit({"flow": name, "block": block, "counts": counts})


@contextlib.contextmanager
def listening(listener: Listener | None, client: Client | None) -> Iterator[None]:
    """Call `listener` for each event while inside; do nothing without one.

    With a client whose workers are other processes, events come over its connection; tasks of this
    process call the listener directly.
    """
    if listener is None:
        yield
        return
    with _lock:
        _listeners.append(listener)
    try:
        if client is not None:
            client.subscribe_topic(TOPIC, lambda stamped: listener(stamped[1]))
        yield
    finally:
        with _lock:
            _listeners.remove(listener)
        if client is not None:
            with contextlib.suppress(ValueError):
                client.unsubscribe_topic(TOPIC)
