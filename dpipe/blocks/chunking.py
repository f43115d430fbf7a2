"""Chunks of arrays: joining stored ones to blocks, and choosing sizes for how they will be read. Arithmetic only."""

import math
from collections.abc import Collection, Sequence


def joined_chunks(
    shape: Sequence[int], stored: Sequence[int] | None, itemsize: int, limit: int
) -> tuple[int, ...]:
    """Join stored chunks to blocks of at most `limit` bytes, without cutting any.

    Parameters
    ----------
    shape : sequence of int
    stored : sequence of int, optional
        Sizes of the stored chunks; None for one piece, which may be cut anywhere, at best along its first axis.
    itemsize : int
        Bytes of a value.
    limit : int
        Bytes of a block. A stored chunk that is larger stays whole.

    Returns
    -------
    tuple of int
        Sizes of the blocks, multiples of the stored ones or the whole axis.

    Examples
    --------
    >>> joined_chunks((1000, 50, 100), (1, 50, 100), 4, 100_000)
    (5, 50, 100)
    >>> joined_chunks((1000, 50, 100), None, 4, 100_000)
    (5, 50, 100)
    """
    unit = (
        [1] * len(shape)
        if stored is None
        else [min(s, max(n, 1)) for s, n in zip(stored, shape, strict=True)]
    )
    found = list(unit)
    for axis in reversed(range(len(shape))):  # the last axis lies closest together
        most = limit // max(itemsize * math.prod(found) // found[axis], 1)
        if most >= shape[axis]:
            found[axis] = max(shape[axis], 1)
        else:
            found[axis] = max(most // unit[axis], 1) * unit[axis]
    return tuple(found)


def chosen_chunks(
    shape: Sequence[int], whole: Collection[int], itemsize: int, target: int
) -> tuple[int, ...]:
    """Choose chunks that leave some axes whole and come close to a size in bytes.

    The other axes are halved, always the one that is cut into the fewest, until a chunk is no larger than the target.

    Examples
    --------
    >>> chosen_chunks((1000, 180, 360), whole={0}, itemsize=4, target=1_000_000)
    (1000, 12, 20)
    >>> chosen_chunks((1000, 180, 360), whole={1, 2}, itemsize=4, target=1_000_000)
    (3, 180, 360)
    """
    parts = [1] * len(shape)
    free = [axis for axis in range(len(shape)) if axis not in whole]

    def sizes() -> list[int]:
        return [max(-(-n // k), 1) for n, k in zip(shape, parts, strict=True)]

    while itemsize * math.prod(sizes()) > target:
        open_axes = [axis for axis in free if parts[axis] < shape[axis]]
        if not open_axes:
            break
        axis = min(open_axes, key=lambda j: (parts[j], -shape[j]))
        parts[axis] = min(parts[axis] * 2, shape[axis])
        rest = itemsize * math.prod(sizes()) // sizes()[axis]
        if target >= rest:  # the last cut need not be in halves
            parts[axis] = min(parts[axis], -(-shape[axis] // (target // rest)))
    return tuple(sizes())
