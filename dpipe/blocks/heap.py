"""Let what one block has freed serve the next one, and give it back once in a while.

Memory that is fetched from the operating system is cleared page by page, which can take longer than
the work that is done in it. By default the C library and Arrow's own allocator return large pieces as
soon as they are free; and Dask's nannies tell their workers to return even small ones.
"""

import ctypes
import functools
from typing import Any

import pyarrow as pa

#: Trimming walks the heap, and what it gives back must be fetched again: done once in a while.
_WORTH_NBYTES = 1024 * 2**20
#: Pieces up to this size are kept when they are freed, until the heap is trimmed.
_KEPT_NBYTES = 512 * 2**20
#: The same where the large ones live long: between them the heap would fill with gaps.
_KEPT_BESIDE_LARGE_NBYTES = 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as in malloc.h
_worked_on = 0
_kept = 0


@functools.lru_cache(maxsize=1)
def _glibc() -> Any:
    """The C library, if its allocator is glibc's; others give memory back by themselves."""
    try:
        library = ctypes.CDLL(None)
        library.malloc_trim.argtypes = [ctypes.c_size_t]
        library.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    except (AttributeError, OSError):
        return None
    return library


def keep_freed() -> None:
    """Keep freed memory in this process for the next block, from now on; Arrow's as well as NumPy's."""
    if not _kept:
        _keep(_KEPT_NBYTES)


def keep_small_freed() -> None:
    """Keep small pieces only, whatever asks for more later: for a process that trains a network."""
    _keep(_KEPT_BESIDE_LARGE_NBYTES)


def _keep(nbytes: int) -> None:
    global _kept
    _kept = nbytes
    library = _glibc()
    if library is not None:
        library.mallopt(_M_MMAP_THRESHOLD, nbytes)
        library.mallopt(_M_TRIM_THRESHOLD, nbytes)
        pa.set_memory_pool(pa.system_memory_pool())


def trim(freed_nbytes: int) -> None:
    """Give free memory back, once blocks of some size in all have been worked on."""
    global _worked_on
    _worked_on += freed_nbytes  # a lost race between threads only delays the next time
    if _worked_on >= _WORTH_NBYTES:
        give_back()


def give_back() -> None:
    """Give all free memory back."""
    global _worked_on
    _worked_on = 0
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
