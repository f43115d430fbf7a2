"""Keep linear algebra to one thread inside a block's task.

Blocks run side by side already, and a product that is split over several threads adds up in
another order: the same block would give other bits on a machine with more cores.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_controller: Any = None  # finding the loaded libraries takes milliseconds: done once
_inside = 0
_limits: Any = None


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit BLAS to one thread while any task of this process is inside.

    The limit is global to the process. The first one in sets it and the last one out lifts it:
    were each to restore what it had found, one that left early would free the others.
    """
    global _controller, _inside, _limits
    with _lock:
        _controller = _controller or ThreadpoolController()
        if _inside == 0:
            _limits = _controller.limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limits.restore_original_limits()
