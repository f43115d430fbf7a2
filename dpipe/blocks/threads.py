"""Keep linear algebra to one thread inside a block's task.

Blocks run side by side already, and a product that is split over several threads adds up in
another order: the same block would give other bits on a machine with more cores.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from threadpoolctl import threadpool_limits

_lock = threading.Lock()
_inside = 0
_limits: Any = None


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit BLAS to one thread while any task of this process is inside.

    The limit is global to the process. The first one in sets it and the last one out lifts it:
    were each to restore what it had found, one that left early would free the others.
    """
    global _inside, _limits
    with _lock:
        if _inside == 0:
            _limits = threadpool_limits(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limits.restore_original_limits()
