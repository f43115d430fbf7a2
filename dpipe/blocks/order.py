"""The order in which an epoch visits blocks and rows: of the seed, the epoch and the blocks, and of nothing else.

Who works on a block, and when it is done, has no part in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from dpipe.blocks.rows import Rows
from dpipe.blocks.table import n_rows

#: Tell the streams of random numbers of one seed apart.
_OF_BLOCKS, _OF_ROWS = 0, 1


@dataclass(frozen=True)
class Visit:
    """One step of a learner: one block, or as many rows out of several that are mixed."""

    epoch: int
    number: int
    """Counts the visits of an epoch."""
    blocks: tuple[int, ...]
    """The block; or all blocks whose rows are mixed."""
    part: int | None = None
    """Which of the equal shares of the mixed rows it is; None where nothing is mixed."""
    group: int = 0
    """Counts the groups of mixed blocks of an epoch."""

    @property
    def position(self) -> tuple[int, int]:
        """What seeds the learner's own choices: the epoch, and the block that is visited, or the visit."""
        return self.epoch, self.blocks[0] if self.part is None else self.number


def visits(n_blocks: int, epoch: int, *, shuffle: str | None, mix: int, random_state: int) -> list[Visit]:
    """List the visits of an epoch.

    Parameters
    ----------
    n_blocks : int
    epoch : int
        Counted from 0; each has an order of its own.
    shuffle : {None, "blocks", "rows"}
        As stored; blocks in random order; or that, and all rows of `mix` blocks at a time in random order.
    mix : int
        Blocks that are mixed at a time.
    random_state : int

    Examples
    --------
    >>> [visit.blocks for visit in visits(4, 0, shuffle="rows", mix=3, random_state=0)]
    [(2, 0, 1), (2, 0, 1), (2, 0, 1), (3,)]
    """
    if shuffle is None:
        return [Visit(epoch, i, (i,)) for i in range(n_blocks)]
    order = _random(random_state, _OF_BLOCKS, epoch).permutation(n_blocks).tolist()
    if shuffle == "blocks":
        return [Visit(epoch, i, (block,)) for i, block in enumerate(order)]
    groups = [tuple(order[first : first + mix]) for first in range(0, n_blocks, mix)]
    parts = ((g, part) for g, group in enumerate(groups) for part in range(len(group)))
    return [Visit(epoch, i, groups[g], part, g) for i, (g, part) in enumerate(parts)]


def mixed_rows(lengths: Sequence[int], visit: Visit, random_state: int) -> list[np.ndarray]:
    """Shuffle the rows of some blocks together, and deal them out again, to each visit as many as its block had.

    Parameters
    ----------
    lengths : sequence of int
        Rows of each block of the visit.
    visit : Visit
        Any one of its group: all of them see the same order.
    random_state : int

    Returns
    -------
    list of numpy.ndarray
        For each visit of the group the numbers of its rows, counted through all blocks of the group.
    """
    found = _random(random_state, _OF_ROWS, visit.epoch, visit.group).permutation(sum(lengths))
    return np.split(found, np.cumsum(lengths)[:-1])


def _random(random_state: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([random_state, *stream])


def gathered(parts: Sequence[Rows], chosen: np.ndarray) -> Rows:
    """Take rows out of several blocks, by their numbers through all of them, in that order."""
    ends = np.cumsum([n_rows(part.X) for part in parts])
    source = np.searchsorted(ends, chosen, side="right")
    takes = [
        (np.flatnonzero(source == i), chosen[source == i] - (ends[i] - n_rows(part.X)))
        for i, part in enumerate(parts)
    ]
    y, w = (
        None if parts[0][field] is None else _taken([part[field] for part in parts], takes)
        for field in (1, 2)
    )
    return Rows(_taken([part.X for part in parts], takes), y, w)


def _taken(values: Sequence[Any], takes: Sequence[tuple[np.ndarray, np.ndarray]]) -> Any:
    """Take rows of each value, and put them where they belong."""
    places = np.concatenate([there for there, _ in takes])
    if sp.issparse(values[0]):
        stacked = sp.vstack(
            [value[rows] for value, (_, rows) in zip(values, takes, strict=True)], format="csr"
        )
        return stacked[np.argsort(places)]
    if isinstance(values[0], pd.DataFrame):
        parts = [value.iloc[rows] for value, (_, rows) in zip(values, takes, strict=True)]
        return pd.concat(parts).iloc[np.argsort(places)]
    dtype = np.result_type(*(value.dtype for value in values))
    out = np.empty((len(places), *values[0].shape[1:]), dtype=dtype)
    for value, (there, rows) in zip(values, takes, strict=True):
        out[there] = value[rows]
    return out


def neighbours_apart(lengths: Sequence[int], mix: int) -> tuple[float, float]:
    """Tell how well rows are mixed, by two shares.

    Parameters
    ----------
    lengths : sequence of int
        Rows of each block; a guess will do if they are alike.
    mix : int
        Blocks whose rows are mixed at a time, of all blocks in random order.

    Returns
    -------
    apart : float
        Of two rows that are visited one after another within a group, how often they come from different blocks.
    left : float
        The variance between what the learner is given at a time, as a share of that between blocks: 0 as if all rows
        were shuffled, 1 as if none were.

    Notes
    -----
    `left` is (1 / k) (N - k) / (N - 1) for k of N blocks: the variance of a mean of k blocks that are drawn without
    being put back. The bound of Xu et al. on the convergence of stochastic gradient descent grows with 1 - (k - 1) /
    (N - 1), which differs by the factor k.

    References
    ----------
    Xu et al. (2022), In-Database Machine Learning with CorgiPile: Stochastic Gradient Descent without Full Data
    Shuffle.

    Examples
    --------
    >>> [round(share, 3) for share in neighbours_apart([1000] * 100, 8)]
    [0.875, 0.116]
    """
    n, k = len(lengths), min(mix, len(lengths))
    rows = sum(lengths) / max(n, 1) * k
    if rows < 2:
        return 0.0, 0.0
    squares = sum(length**2 for length in lengths) / n * k
    apart = (rows**2 - squares) / (rows * (rows - 1))
    return min(max(apart, 0.0), 1.0), (n - k) / (n - 1) / k if n > 1 else 0.0
