"""The blocks of a source as one operand of a Dask expression."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, TypeVar, overload

_Block = TypeVar("_Block")


class BlockList(Sequence[_Block]):
    """Blocks that Dask names by one hash, taken once.

    Dask names an expression anew whenever it rewrites it, by looking into each element of a tuple: with very many
    blocks that is most of planning.

    Parameters
    ----------
    blocks : iterable
        Frozen records, whose `repr` tells all of them.

    Examples
    --------
    >>> blocks = BlockList([("a.parquet", 0), ("a.parquet", 1)])
    >>> len(blocks), blocks[1], blocks == BlockList(list(blocks))
    (2, ('a.parquet', 1), True)
    """

    def __init__(self, blocks: Iterable[_Block]) -> None:
        self._blocks = tuple(blocks)

    @overload
    def __getitem__(self, place: int) -> _Block: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[_Block]: ...
    def __getitem__(self, place: int | slice) -> _Block | Sequence[_Block]:
        """Give one block, or some."""
        return self._blocks[place]

    def __len__(self) -> int:
        """Count them."""
        return len(self._blocks)

    def __eq__(self, other: object) -> bool:
        """Compare block by block."""
        return self is other or (isinstance(other, BlockList) and self._token == other._token)

    def __hash__(self) -> int:
        """Hash as it compares."""
        return hash(self._token)

    def __repr__(self) -> str:
        """Say how many there are."""
        return f"<{len(self._blocks):,} blocks>"

    @cached_property
    def _token(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for block in self._blocks:
            digest.update(repr(block).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def __dask_tokenize__(self) -> Any:
        """Name them for Dask."""
        return type(self).__name__, self._token
