"""Give memory that was freed back to the operating system.

Threads that decode large blocks leave free memory scattered over the allocator's arenas, where it is
kept: over hundreds of blocks a process then grows though it holds nothing. Dask's nannies set the
allocator up for that before a worker starts; a process that is running already can only be trimmed.
"""

import ctypes
import functools
from collections.abc import Callable

#: Trimming walks the heap, so a block has to be worth it.
_WORTH_NBYTES = 4 * 2**20


@functools.lru_cache(maxsize=1)
def _trimmer() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None  # not glibc: other allocators give memory back by themselves
    trim.argtypes = [ctypes.c_size_t]
    return trim


def trim(freed_nbytes: int) -> None:
    """Give free memory back, after a block of some size has been worked on."""
    give_back = _trimmer()
    if give_back is not None and freed_nbytes >= _WORTH_NBYTES:
        give_back(0)
