"""Weights that several processes share, each a part of them: which part, and how all of them make one again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: What stands for a weight in a checkpoint, if it holds one part of it only.
_OWN, _DIM, _GROUPS = "own", "dim", "groups"


@dataclass(frozen=True)
class Cut:
    """Along which dimension a weight is cut, into as many equal parts as there are processes."""

    dim: int
    groups: int = 1
    """How many weights stand in it one after another, each of which is cut: three in the projection of an attention."""

    def ranges(self, size: int, shard: int, n_shards: int) -> list[tuple[int, int]]:
        """Give where the part of one process begins and ends, in each group.

        Examples
        --------
        >>> Cut(0).ranges(8, 1, 2), Cut(0, groups=3).ranges(12, 1, 2)
        ([(4, 8)], [(2, 4), (6, 8), (10, 12)])
        """
        group, own = size // self.groups, size // self.groups // n_shards
        starts = (i * group + shard * own for i in range(self.groups))
        return [(start, start + own) for start in starts]

    def of(self, weight: Any, shard: int, n_shards: int) -> Any:
        """Take the part of one process out of a weight."""
        import torch

        ranges = self.ranges(weight.shape[self.dim], shard, n_shards)
        parts = [weight.narrow(self.dim, start, stop - start) for start, stop in ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)

    def whole(self, parts: Sequence[Any]) -> Any:
        """Put a weight together from the parts of all processes."""
        import torch

        groups = zip(*(part.chunk(self.groups, self.dim) for part in parts), strict=True)
        return torch.cat([each for group in groups for each in group], self.dim)

    def part(self, own: Any) -> dict[str, Any]:
        """Give what a checkpoint holds for a weight of which a process has its own part."""
        return {_OWN: own, _DIM: self.dim, _GROUPS: self.groups}


def is_part(value: Any) -> bool:
    """Tell a part of a weight from one that is whole."""
    return isinstance(value, Mapping) and _OWN in value


def put_together(parts: Sequence[Any], shard: int = 0, n_shards: int = 1, cut: Cut | None = None) -> Any:
    """Give a weight, or the part of one process, from what processes hold of it.

    Parameters
    ----------
    parts : sequence
        What each has: the whole weight, of which the first counts; or its part, in the order of the processes; or
        several of them, by name.
    shard, n_shards : int
        Whose part is asked for.
    cut : Cut, optional
        How; None for all of it.

    Returns
    -------
    tensor, or dict of tensors
        Without a copy, where nothing must be put together.

    Examples
    --------
    >>> import pytest
    >>> torch = pytest.importorskip("torch")
    >>> parts = [Cut(0).part(torch.tensor([[1, 2]])), Cut(0).part(torch.tensor([[3, 4]]))]
    >>> put_together(parts).tolist(), put_together(parts, 1, 2, Cut(1)).tolist()
    ([[1, 2], [3, 4]], [[2], [4]])
    """
    first = parts[0]
    if isinstance(first, Mapping) and not is_part(first):  # what an optimizer remembers of a weight
        return {
            key: put_together([part[key] for part in parts if key in part], shard, n_shards, cut)
            for key in first
        }
    if not is_part(first):
        return first if cut is None or n_shards == 1 else cut.of(first, shard, n_shards)
    own = [part[_OWN] for part in parts]
    before = Cut(first[_DIM], first[_GROUPS])
    if cut == before and n_shards == len(own):
        return own[shard]  # nobody needs the others
    found = own[0] if len(own) == 1 else before.whole(own)
    return found if cut is None or n_shards == 1 else cut.of(found, shard, n_shards)


def gathered_parts(trees: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """List what processes hold, by name.

    Parameters
    ----------
    trees : iterable of mappings
        What each of them has, in their order.

    Returns
    -------
    dict of str to list
        Names that the first does not have stand after its own.

    Examples
    --------
    >>> gathered_parts([{"weight": 1}, {"weight": 2, "bias": 3}])
    {'weight': [1, 2], 'bias': [3]}
    """
    found: dict[str, list[Any]] = {}
    for tree in trees:
        for name, value in tree.items():
            found.setdefault(name, []).append(value)
    return found


def local(values: Any) -> Any:
    """Give what a process has of a tensor."""
    return values.to_local() if hasattr(values, "to_local") else values
