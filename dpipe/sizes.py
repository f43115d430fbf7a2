"""Bytes, rows and budgets: arithmetic only.

Sizes are `int` bytes everywhere inside the package; text such as "2 GiB" is parsed
once, at the public edge, by `parse_bytes`.
"""

import math

from dask.utils import format_bytes as _dask_format_bytes
from dask.utils import parse_bytes as _dask_parse_bytes

from dpipe.errors import InputError

MIB = 2**20
#: What one block may weigh, decoded, when the caller names neither blocks nor a budget.
DEFAULT_BLOCK_NBYTES = 32 * MIB


def parse_bytes(size: int | float | str) -> int:
    """Read a size such as ``"2 GiB"`` or ``1_000_000`` as bytes.

    Parameters
    ----------
    size : int, float or str
        Bytes, or a number with a unit: kB, MB, GB (powers of 1000), KiB, MiB, GiB (powers of 1024).

    Returns
    -------
    int
        Bytes, at least 1.

    Raises
    ------
    InputError
        If `size` is not a size, or not positive.

    Examples
    --------
    >>> parse_bytes("1.5 GiB")
    1610612736
    >>> parse_bytes(2_000_000)
    2000000
    """
    try:
        nbytes = int(_dask_parse_bytes(size))
        if isinstance(size, float) and size != nbytes:
            raise ValueError("a fraction of a byte")
    except (ValueError, TypeError, AttributeError, OverflowError) as err:
        raise InputError(
            f'{size!r} is not a size. Write bytes, or text such as "2 GiB" or "500 MB".'
        ) from err
    if nbytes < 1:
        raise InputError(f'A size must be positive, got {size!r}. Write text such as "2 GiB".')
    return nbytes


def format_bytes(nbytes: float) -> str:
    """Write bytes for people.

    Examples
    --------
    >>> format_bytes(1610612736)
    '1.50 GiB'
    """
    return _dask_format_bytes(math.ceil(nbytes))


def format_seconds(seconds: float) -> str:
    """Write a duration for people.

    Examples
    --------
    >>> format_seconds(0.0421), format_seconds(7.32), format_seconds(3725)
    ('42 ms', '7.3 s', '1 h 2 min')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def format_rows(rows: int | None) -> str:
    """Write a number of rows, or "unknown".

    Examples
    --------
    >>> format_rows(9000000), format_rows(None)
    ('9,000,000', 'unknown')
    """
    return "unknown" if rows is None else f"{rows:,}"


def block_nbytes_for(memory: int, threads: int) -> int:
    """Choose the size of a decoded block from a memory budget.

    Decoding, transforming and the window of blocks that wait for an ordered learner hold
    about ten blocks a thread at the worst.

    Examples
    --------
    >>> block_nbytes_for(2 * 2**30, threads=2) // 2**20
    102
    """
    return min(max(memory // (10 * max(threads, 1)), 4 * MIB), 256 * MIB)


def counted(n: int, noun: str) -> str:
    """Say how many there are.

    Examples
    --------
    >>> counted(1, "block"), counted(1200, "block")
    ('1 block', '1,200 blocks')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
