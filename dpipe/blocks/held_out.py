"""Rows that are held out of each block: drawn at random, the same ones each time the block is read."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from dpipe.blocks.rows import Rows
from dpipe.blocks.side_by_side import SideBySide
from dpipe.blocks.table import Block, n_rows, to_pandas


@dataclass(frozen=True)
class HeldOut:
    """One side of a block whose rows are split in two.

    Parameters
    ----------
    share : float
        Of the rows that are held out, between 0 and 1.
    seed : int
    block : int
        The block's place among all blocks.
    held : bool
        Whether these are the rows that are held out, or the others.

    Examples
    --------
    >>> rows = Rows(np.arange(10.0).reshape(5, 2), np.arange(5), None)
    >>> HeldOut(0.4, 0, 0, held=True).of(rows).y.tolist(), HeldOut(0.4, 0, 0, held=False).of(rows).y.tolist()
    ([2, 4], [0, 1, 3])
    """

    share: float
    seed: int
    block: int
    held: bool

    def mask(self, n: int) -> np.ndarray:
        """Tell which of `n` rows are of this side; of shape (n,)."""
        rng, n_held = self._drawn(n)
        mask = np.zeros(n, dtype=bool)
        mask[rng.permutation(n)[:n_held]] = True
        return mask if self.held else ~mask

    def n_of(self, n: int | None) -> int | None:
        """Count the rows of this side of a block of `n` rows; None if that is not known."""
        if n is None:
            return None
        n_held = self._drawn(n)[1]
        return n_held if self.held else n - n_held

    def _drawn(self, n: int) -> tuple[np.random.Generator, int]:
        """Give the block's generator, and how many rows are held out."""
        rng = np.random.default_rng((self.seed, self.block))
        # what is left over of a share is drawn, so that small blocks add up to the share, too
        return rng, int(n * self.share + rng.random())

    def of(self, rows: Rows) -> Rows:
        """Give the rows of this side."""
        return kept(rows, self.mask(n_rows(rows.X)))


def kept(rows: Rows, mask: np.ndarray) -> Rows:
    """Leave rows out; those that are left stand nowhere in the data set any more."""
    y, w = (None if values is None else np.asarray(values)[mask] for values in (rows.y, rows.w))
    return Rows(_taken(rows.X, mask), y, w)


def _taken(block: Block, mask: np.ndarray) -> Block:
    if isinstance(block, pa.Table):
        return block.filter(pa.array(mask))
    if isinstance(block, SideBySide):
        return block.taken(mask)
    value = to_pandas(block)
    return value[mask] if not isinstance(value, pd.DataFrame) else value.loc[mask]
