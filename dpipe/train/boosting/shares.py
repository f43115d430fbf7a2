"""Deal the blocks of a boosted model to learners that train it together: contiguous shares, even in rows.

Who has what depends on the blocks and on the number of shares, never on where a block was read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dpipe.blocks.rows import Rows, Tally
from dpipe.blocks.scratch import ScratchBlock
from dpipe.train.boosting.batches import Kept, check_contiguous


@dataclass(frozen=True)
class Extent:
    """What of a block in scratch decides who has it."""

    shape: tuple[int, int]
    """Rows and columns."""
    tally: Tally
    groups: np.ndarray | None = None
    """Of rankers, the number of each group, in the order of the rows."""
    n_first: int = 0
    """Rows of the first group."""


class Piece(NamedTuple):
    """Some rows of a block."""

    block: int
    start: int
    stop: int


def extent(kept: Kept, grouped: bool) -> Extent:
    """Measure a block."""
    if not grouped or not kept.shape[0]:
        return Extent(kept.shape, kept.tally)
    y = kept.block.rows().y
    assert y is not None
    ids = y[:, -1]
    starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    return Extent(kept.shape, kept.tally, ids[starts], int([*starts, len(ids)][1]))


def deal(lengths: Sequence[int], n: int) -> tuple[tuple[int, ...], ...]:
    """Deal blocks of some lengths into shares: contiguous, as even in rows as blocks allow, and none without rows.

    Where fewer blocks than shares have rows, the last shares are empty.

    Examples
    --------
    >>> deal([10, 10, 0, 10, 10], 2)
    ((0, 1), (3, 4))
    >>> deal([100, 1, 1], 3)
    ((0,), (1,), (2,))
    """
    filled = [i for i, length in enumerate(lengths) if length]
    ends = np.cumsum([0, *(lengths[i] for i in filled)])
    bounds = [0]
    for k in range(1, n):
        nearest = int(np.argmin(np.abs(ends * n - k * ends[-1])))
        least = min(bounds[-1] + 1, len(filled))
        # a block is left for each of the shares that follow, as long as there are so many
        most = max(len(filled) - (n - k), least)
        bounds.append(min(max(nearest, least), most))
    bounds.append(len(filled))
    return tuple(tuple(filled[bounds[k] : bounds[k + 1]]) for k in range(n))


def pieces(extents: Sequence[Extent], n: int) -> tuple[tuple[Piece, ...], ...]:
    """Deal blocks into shares; the first rows of a share that go on with the group before it move there.

    Where fewer blocks than shares have rows, blocks are cut, but groups are not.

    Raises
    ------
    InputError
        If the rows of a group do not stand together.
    """
    lengths = [each.shape[0] for each in extents]
    if all(each.groups is None for each in extents):
        if sum(map(bool, lengths)) < n:
            return _cut_evenly(lengths, n)
        return tuple(tuple(Piece(i, 0, lengths[i]) for i in share) for share in deal(lengths, n))
    dealt = [[Piece(i, 0, lengths[i]) for i in share] for share in deal(lengths, n)]
    _check_groups(extents)
    owner: list[Piece] = []
    last = None
    for share in dealt:
        while share and last is not None and _groups(extents[share[0].block])[0] == last:
            block, _, stop = share.pop(0)
            n_first = extents[block].n_first
            owner.append(Piece(block, 0, n_first))
            if n_first < stop:
                share.insert(0, Piece(block, n_first, stop))
                break
        if share:
            owner, last = share, _groups(extents[share[-1].block])[-1]
    return tuple(map(tuple, dealt))


def _cut_evenly(lengths: Sequence[int], n: int) -> tuple[tuple[Piece, ...], ...]:
    starts = np.cumsum([0, *lengths]).tolist()
    total = starts[-1]
    return tuple(
        tuple(
            Piece(i, max(begin - start, 0), min(end - start, length))
            for i, (start, length) in enumerate(zip(starts, lengths, strict=False))
            if max(begin, start) < min(end, start + length)
        )
        for begin, end in ((k * total // n, (k + 1) * total // n) for k in range(n))
    )


def _groups(each: Extent) -> np.ndarray:
    assert each.groups is not None
    return each.groups


def _check_groups(extents: Sequence[Extent]) -> None:
    """Refuse a group that begins twice, in whatever blocks."""
    found = [_groups(each) for each in extents if each.shape[0]]
    ids = np.concatenate(found) if found else np.empty(0)
    check_contiguous(ids[np.append(True, ids[1:] != ids[:-1])] if len(ids) else ids, set())


def cut(kept: Kept, piece: Piece) -> Kept:
    """Keep some rows of a block apart."""
    n, width = kept.shape
    if (piece.start, piece.stop) == (0, n):
        return kept
    rows = kept.block.rows()
    part = slice(piece.start, piece.stop)
    assert rows.y is not None
    own = Rows(rows.X[part], rows.y[part], None if rows.w is None else rows.w[part])
    values = {name: value[part] for name, value in (rows.values or {}).items()}
    block = ScratchBlock.write(kept.block.file.folder, kept.block.token, values, own)
    return Kept(block, Tally(), (piece.stop - piece.start, width))
