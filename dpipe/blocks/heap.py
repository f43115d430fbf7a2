"""Give memory that was freed back to the operating system.

Threads that decode large blocks leave free memory scattered over the allocator's arenas, where it is
kept: over hundreds of blocks a process then grows though it holds nothing. Dask's nannies set the
allocator up for that before a worker starts; a process that is running already can only be trimmed.
"""

import ctypes
import functools
from collections.abc import Callable

#: Trimming walks the heap, and what it gives back must be fetched again: done once in a while.
_WORTH_NBYTES = 128 * 2**20
_worked_on = 0


@functools.lru_cache(maxsize=1)
def _trimmer() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None  # not glibc: other allocators give memory back by themselves
    trim.argtypes = [ctypes.c_size_t]
    return trim


def trim(freed_nbytes: int) -> None:
    """Give free memory back, once blocks of some size in all have been worked on."""
    global _worked_on
    _worked_on += freed_nbytes  # a lost race between threads only delays the next time
    give_back = _trimmer()
    if give_back is not None and _worked_on >= _WORTH_NBYTES:
        _worked_on = 0
        give_back(0)
