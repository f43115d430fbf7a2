"""Chosen rows of the whole data, gathered from the blocks that hold them."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp

from dpipe.blocks.rows import RowsAt, checked_weights
from dpipe.blocks.table import Block, n_rows, to_pandas
from dpipe.errors import InputError


@dataclass(frozen=True)
class Picked:
    """Some rows, in the order of the data."""

    positions: np.ndarray
    """Where each stands in the data; int64, sorted."""
    X: Block
    y: np.ndarray | None
    w: np.ndarray | None

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        y = None if self.y is None or other.y is None else np.concatenate([self.y, other.y])
        w = None if self.w is None or other.w is None else np.concatenate([self.w, other.w])
        positions = np.concatenate([self.positions, other.positions])
        return type(self)(positions, _stacked(self.X, other.X), y, w)


@dataclass(frozen=True, eq=False)
class Pick:
    """Wants the rows at some positions of the data, each once."""

    positions: np.ndarray
    """Of shape (n_chosen,), in any order; rows counted from 0."""
    placed: ClassVar[bool] = True
    name: ClassVar[str] = "chosen rows"

    def of(self, X: Block, y: Any, w: np.ndarray | None, at: RowsAt | None) -> Picked:
        """Read one block.

        Raises
        ------
        InputError
            If the lengths of the blocks are not known.
        """
        at = _known(at)
        wanted = np.unique(self.positions)
        mine = wanted[np.searchsorted(wanted, at.first) : np.searchsorted(wanted, at.first + n_rows(X))]
        rows = mine - at.first
        return Picked(
            mine, _taken(X, rows), None if y is None else np.asarray(y)[rows], None if w is None else w[rows]
        )


@dataclass(frozen=True)
class BlockWeights:
    """The weight of each block, as `Draw` needs it."""

    first: np.ndarray
    """Rows before each block; int64."""
    total: np.ndarray
    """Sum of the weights of each block's rows."""

    def merge(self, other: Self) -> Self:
        """Join with later blocks."""
        return type(self)(
            np.concatenate([self.first, other.first]), np.concatenate([self.total, other.total])
        )


@dataclass(frozen=True)
class WeighBlocks:
    """Wants the `BlockWeights`."""

    placed: ClassVar[bool] = True
    name: ClassVar[str] = "weights of the blocks"

    def of(self, X: Block, y: Any, w: np.ndarray | None, at: RowsAt | None) -> BlockWeights:
        """Read one block.

        Raises
        ------
        InputError
            If the lengths of the blocks are not known, or a weight is negative.
        """
        weights = checked_weights(w)
        first = np.array([_known(at).first], dtype=np.int64)
        return BlockWeights(first, np.array([0.0 if weights is None else weights.sum()]))


@dataclass(frozen=True, eq=False)
class Draw:
    """Wants rows drawn with replacement, each with a probability in proportion to its weight.

    What it gives holds in `positions` the numbers of the draws, not those of the rows.
    """

    draws: np.ndarray
    """Of shape (n_draws,), uniform in [0, 1)."""
    blocks: BlockWeights
    placed: ClassVar[bool] = True
    name: ClassVar[str] = "drawn rows"

    def of(self, X: Block, y: Any, w: np.ndarray | None, at: RowsAt | None) -> Picked:
        """Read one block."""
        mine = int(np.searchsorted(self.blocks.first, _known(at).first, side="right")) - 1
        ends = np.cumsum(self.blocks.total)
        places = self.draws * ends[-1]
        # blocks without weight end where they begin, and get no draws
        drawn = np.flatnonzero(np.searchsorted(ends, places, side="right") == mine)
        before = ends[mine] - self.blocks.total[mine]
        weights = np.ones(n_rows(X)) if w is None else np.asarray(w, dtype=np.float64)
        last = int(np.flatnonzero(weights)[-1]) if len(drawn) else 0
        rows = np.searchsorted(np.cumsum(weights), places[drawn] - before, side="right").clip(0, last)
        return Picked(drawn, _taken(X, rows), None if y is None else np.asarray(y)[rows], None)


def _known(at: RowsAt | None) -> RowsAt:
    if at is None:
        raise InputError(
            "Rows are chosen by their place in the data, but the lengths of the blocks are not known. Call "
            "X.compute_chunk_sizes() on an array first, or read files with dpipe.read_parquet."
        )
    return at


def _taken(block: Block, rows: np.ndarray) -> Block:
    """Take rows as a frame, an array or a CSR matrix."""
    if isinstance(block, pa.Table):
        return to_pandas(block.take(pa.array(rows)))
    value = to_pandas(block)
    return value.iloc[rows] if isinstance(value, pd.DataFrame) else value[rows]


def _stacked(a: Block, b: Block) -> Block:
    if isinstance(a, pd.DataFrame):
        return pd.concat([a, b], ignore_index=True)
    return sp.vstack([a, b], format="csr") if sp.issparse(a) else np.concatenate([a, b])
