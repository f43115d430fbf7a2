"""Keep linear algebra to one thread inside a block's task.

Blocks run side by side already, and a product that is split over several threads adds up in
another order: the same block would give other bits on a machine with more cores.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_libraries: tuple[list[Any], list[Any]] | None = None  # finding what is loaded takes milliseconds: done once
_inside = 0
_found: list[int] = []


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit BLAS to one thread while any task of this process is inside.

    Most libraries know one limit for the process. The first one in sets it and the last one out lifts it:
    were each to restore what it had found, one that left early would free the others. OpenBLAS over OpenMP
    has a limit for each thread, which each sets for itself.
    """
    global _libraries, _inside, _found
    with _lock:
        if _libraries is None:
            _libraries = _blas_libraries()
        of_process, of_thread = _libraries
        if _inside == 0:
            _found = _set_threads(of_process, [1] * len(of_process))
        _inside += 1
    own = _set_threads(of_thread, [1] * len(of_thread))
    try:
        yield
    finally:
        _set_threads(of_thread, own)
        with _lock:
            _inside -= 1
            if _inside == 0:
                _set_threads(of_process, _found)


def _blas_libraries() -> tuple[list[Any], list[Any]]:
    """Those that have one limit for the process, and those that have one for each thread."""
    loaded = ThreadpoolController().select(user_api="blas").lib_controllers
    for_each = [getattr(library, "threading_layer", None) == "openmp" for library in loaded]
    return (
        [library for library, each in zip(loaded, for_each, strict=True) if not each],
        [library for library, each in zip(loaded, for_each, strict=True) if each],
    )


def _set_threads(libraries: Sequence[Any], n_threads: Sequence[int]) -> list[int]:
    """Set the limit of each library; give what it was."""
    found = []
    for library, n in zip(libraries, n_threads, strict=True):
        found.append(library.num_threads)
        # threadpoolctl obeys only the thread that first set a limit, and ignores all others without a word
        disown = getattr(library, "clear_controlling_thread", lambda force: None)
        disown(force=True)
        library.set_num_threads(n)
        disown(force=True)
    return found
