"""Chosen rows of the whole data, gathered from the blocks that hold them."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp

from dpipe.blocks.rows import RowsAt
from dpipe.blocks.table import Block, to_pandas
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
        if at is None:
            raise InputError(
                "Rows are chosen by their place in the data, but the lengths of the blocks are not known. Call "
                "X.compute_chunk_sizes() on an array first, or read files with dpipe.read_parquet."
            )
        wanted = np.unique(self.positions)
        n = X.num_rows if isinstance(X, pa.Table) else X.shape[0]
        mine = wanted[np.searchsorted(wanted, at.first) : np.searchsorted(wanted, at.first + n)]
        rows = mine - at.first
        return Picked(
            mine, _taken(X, rows), None if y is None else np.asarray(y)[rows], None if w is None else w[rows]
        )


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
