"""Which rows make up each batch of an epoch: of the seed, the epoch, the blocks and the shares, and of nothing else.

The rows of an epoch are its blocks one after another, in random order. They are cut into equal shares, and every batch
takes equally many rows of each: whoever knows its shares knows its part of all batches, however many readers there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from dpipe.blocks.order import Visit, mixed_rows, visits
from dpipe.errors import InputError


class Piece(NamedTuple):
    """Some rows of a block."""

    block: int
    start: int
    stop: int

    @property
    def n_rows(self) -> int:
        """How many they are."""
        return self.stop - self.start


class Group(NamedTuple):
    """Pieces of one share whose rows are shuffled together."""

    share: int
    number: int
    """Counted through all shares of the epoch."""
    pieces: tuple[Piece, ...]
    start: int
    """Rows of the share before it."""

    @property
    def n_rows(self) -> int:
        """Rows of all pieces."""
        return sum(piece.n_rows for piece in self.pieces)

    @property
    def stop(self) -> int:
        """Rows of the share up to its end."""
        return self.start + self.n_rows


@dataclass(frozen=True)
class BatchOrder:
    """The batches of each epoch.

    Parameters
    ----------
    lengths : tuple of int
        Rows of each block.
    batch_size : int
        Rows of a batch, those of all readers together.
    shuffle : {None, "blocks", "rows"}
        As of `dpipe.blocks.order.visits`.
    mix : int
        Blocks whose rows are mixed at a time, in all shares together.
    shares : int
        Into how many shares the rows of an epoch are cut.
    random_state : int
    drop_last : bool
        Whether to leave out a last batch that is shorter.

    Raises
    ------
    InputError
        If a batch has fewer rows than there are shares, or there are fewer rows than shares.

    Examples
    --------
    >>> order = BatchOrder((3, 3, 2), batch_size=4, shuffle=None, mix=2, shares=2, random_state=0, drop_last=False)
    >>> [order.numbers(0, step).tolist() for step in range(order.n_steps)]
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """

    lengths: tuple[int, ...]
    batch_size: int
    shuffle: str | None
    mix: int
    shares: int
    random_state: int
    drop_last: bool

    def __post_init__(self) -> None:
        if self.batch_size < self.shares:
            raise InputError(
                f"batch_size={self.batch_size} rows cannot be taken out of shares={self.shares}. Give larger batches, "
                "or fewer shares."
            )
        if not self.n_steps:
            raise InputError(
                f"There are {self.n_rows:,} rows: too few for a batch of {self.batch_size:,} out of "
                f"{self.shares} shares{', whole as drop_last asks' if self.drop_last else ''}. Give more rows, or "
                "smaller batches and fewer shares."
            )

    @cached_property
    def n_rows(self) -> int:
        """Rows of all blocks."""
        return sum(self.lengths)

    @cached_property
    def n_steps(self) -> int:
        """Batches of an epoch; the last one may be shorter, but has rows of every share."""
        whole, rest = divmod(self.n_rows, self.batch_size)
        short = not self.drop_last and min(_dealt(rest, self.batch_size, self.shares)) > 0
        return whole + int(short)

    @property
    def mixed(self) -> int:
        """Pieces of a group at most."""
        return mixed_of(self.shuffle, self.mix, self.shares)

    def counts(self, step: int) -> tuple[int, ...]:
        """Count the rows that a batch takes of each share."""
        left = self.n_rows - step * self.batch_size
        return self._of_batch if left >= self.batch_size else _dealt(left, self.batch_size, self.shares)

    def begun(self, share: int, step: int) -> int:
        """Count the rows of a share that were taken before a step."""
        return step * self._of_batch[share]

    @cached_property
    def _of_batch(self) -> tuple[int, ...]:
        return _dealt(self.batch_size, self.batch_size, self.shares)

    def n_of(self, shares: Sequence[int]) -> int:
        """Count the rows of some shares in an epoch."""
        sizes = self._share_sizes()
        return sum(sizes[share] for share in shares)

    def _share_sizes(self) -> list[int]:
        whole, rest = divmod(self.n_rows, self.batch_size)
        last = _dealt(rest, self.batch_size, self.shares)
        return [whole * own + more for own, more in zip(self._of_batch, last, strict=True)]

    def groups(self, epoch: int) -> list[list[Group]]:
        """List the groups of each share in an epoch, in their order."""
        shuffle = None if self.shuffle is None else "blocks"
        order = [
            visit.blocks[0]
            for visit in visits(
                len(self.lengths), epoch, shuffle=shuffle, mix=1, random_state=self.random_state
            )
        ]
        found: list[list[Group]] = []
        number = 0
        for share, pieces in enumerate(_cut(self.lengths, order, self._share_sizes())):
            own = []
            start = first = 0
            while first < len(pieces):
                # groups of different shares should end at different times, for readers to have steady work
                n = self.mixed if first else self.mixed - int(_spread(share) * self.mixed)
                group = Group(share, number, tuple(pieces[first : first + n]), start)
                own.append(group)
                start, first, number = group.stop, first + n, number + 1
            found.append(own)
        return found

    def rows(self, epoch: int, group: Group) -> np.ndarray:
        """Give the order of the rows of a group, counted through its pieces."""
        if self.shuffle != "rows":
            return np.arange(group.n_rows)
        visit = Visit(epoch, 0, tuple(piece.block for piece in group.pieces), 0, group.number)
        return np.concatenate(mixed_rows([piece.n_rows for piece in group.pieces], visit, self.random_state))

    def numbers(self, epoch: int, step: int, shares: Sequence[int] | None = None) -> np.ndarray:
        """Give the rows of a batch, or of some shares of it, by their numbers through all blocks.

        It walks through the epoch, and is meant for looking at an order, not for reading by it.
        """
        firsts = list(accumulate(self.lengths, initial=0))
        chosen = range(self.shares) if shares is None else shares
        groups, counts = self.groups(epoch), self.counts(step)
        found = []
        for share in chosen:
            own = [
                np.concatenate([np.arange(p.start, p.stop) + firsts[p.block] for p in group.pieces])[
                    self.rows(epoch, group)
                ]
                for group in groups[share]
            ]
            start = self.begun(share, step)
            found.append(np.concatenate(own)[start : start + counts[share]])
        return np.concatenate(found)


def mixed_of(shuffle: str | None, mix: int, shares: int) -> int:
    """Count the pieces of one share whose rows are shuffled together, at most."""
    return max(mix // shares, 1) if shuffle == "rows" else 1


def shares_of(rank: int, n_ranks: int, shares: int) -> range:
    """Say which shares a rank reads: neighbours, as many each as can be.

    Examples
    --------
    >>> [shares_of(rank, 3, 4) for rank in range(3)]
    [range(0, 1), range(1, 2), range(2, 4)]
    """
    return range(rank * shares // n_ranks, (rank + 1) * shares // n_ranks)


def _spread(i: int) -> float:
    """Give numbers of [0, 1) so that neighbours are far from each other (van der Corput): 0, 1/2, 1/4, 3/4, 1/8..."""
    digits = f"{i:b}"[::-1]
    return int(digits, 2) / 2 ** len(digits)


def _dealt(n: int, batch_size: int, shares: int) -> tuple[int, ...]:
    """Deal `n` rows to shares, in proportion to what each has of a whole batch."""
    ends = [n * (share * batch_size // shares) // batch_size for share in range(shares + 1)]
    return tuple(ends[share + 1] - ends[share] for share in range(shares))


def _cut(lengths: Sequence[int], order: Sequence[int], sizes: Sequence[int]) -> list[list[Piece]]:
    """Cut blocks that stand in some order into shares of some sizes."""
    found: list[list[Piece]] = []
    blocks = iter(order)
    left = Piece(-1, 0, 0)
    for size in sizes:
        own: list[Piece] = []
        while size:
            if not left.n_rows:
                block = next(blocks)
                left = Piece(block, 0, lengths[block])
                continue
            taken = Piece(left.block, left.start, min(left.start + size, left.stop))
            own.append(taken)
            size -= taken.n_rows
            left = Piece(left.block, taken.stop, left.stop)
        found.append(own)
    return found
