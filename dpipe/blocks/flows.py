"""How many rows come into an operation and go out of it: counted while a block is read, and kept with what was read.

An operation inside of a graph (a join, a split, a function of the user's) does not know which pass reads it. It
calls `tell`; whoever reads a block gathers what is told meanwhile, block after block, as a `Flow` of each operation.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Flow:
    """What one operation counted, block after block."""

    names: tuple[str, ...]
    """What each column counts."""
    counts: np.ndarray
    """Of shape (n_blocks, n_names), int64; sums of hashes are modulo 2**64."""

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> Self:
        """Take the counts of one block."""
        values = [n % 2**64 for n in counts.values()]
        return cls(tuple(counts), np.array([values], dtype=np.uint64).view(np.int64))

    @property
    def n_blocks(self) -> int:
        """Blocks that were counted."""
        return len(self.counts)

    def merge(self, other: Self) -> Self:
        """Add the blocks that come after these."""
        return type(self)(self.names, np.concatenate([self.counts, other.counts]))

    def taken(self, blocks: np.ndarray) -> Self:
        """Give the blocks at some places."""
        return type(self)(self.names, self.counts[blocks])

    def of_each_block(self, name: str) -> np.ndarray:
        """Give one of the counts; int64 of shape (n_blocks,)."""
        return np.asarray(self.counts[:, self.names.index(name)])

    def total(self, name: str) -> int:
        """Add one of the counts up.

        Examples
        --------
        >>> Flow.of({"rows in": 9}).merge(Flow.of({"rows in": 2})).total("rows in")
        11
        """
        return int(self.of_each_block(name).sum())


Flows = dict[str, Flow]


def merged(first: Mapping[str, Flow], second: Mapping[str, Flow]) -> Flows:
    """Put what was told of some blocks before what was told of the next ones."""
    found = dict(first)
    for name, flow in second.items():
        found[name] = found[name].merge(flow) if name in found else flow
    return found


@dataclass
class _Block:
    name: str
    flows: Flows = field(default_factory=dict)


_current: ContextVar[_Block | None] = ContextVar("block", default=None)


@contextmanager
def counting(block: int) -> Iterator[Flows]:
    """Gather what operations tell while a block is loaded."""
    within = _Block(f"block {block}")
    token = _current.set(within)
    try:
        yield within.flows
    finally:
        _current.reset(token)


def tell(name: str, counts: Mapping[str, int]) -> None:
    """Tell what an operation counted of the block that is being loaded; nothing happens where nobody gathers."""
    block = _current.get()
    if block is None:
        return
    flow, chosen, n = Flow.of(counts), name, 1
    while chosen in block.flows:  # another operation of the same name
        n += 1
        chosen = f"{name} ({n})"
    block.flows[chosen] = flow


def tell_again(flows: Mapping[str, Flow]) -> None:
    """Tell what was gathered when the block was read for the first time."""
    block = _current.get()
    if block is not None:
        block.flows.update(flows)


def block_name() -> str:
    """Say which block is being loaded, for messages."""
    block = _current.get()
    return "a block" if block is None else block.name
