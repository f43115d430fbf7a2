"""The rows of one block, with their targets and weights, and the tally of what was read."""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import pyarrow as pa

from dpipe.blocks.flows import Flow, merged
from dpipe.blocks.table import Block, n_rows, nbytes
from dpipe.errors import BlockMismatchError, InputError


class RowsAt(NamedTuple):
    """Where the rows of a block stand in the whole data set."""

    first: int
    """Rows before this block."""
    total: int
    """Rows of all blocks."""


class Rows(NamedTuple):
    """One block of a data set."""

    X: Block
    y: np.ndarray | None
    w: np.ndarray | None
    ordered: bool = False
    """Whether the rows stand in the order in which they are to be learned."""
    values: Mapping[Any, Block] | None = None
    """What was made of them in an earlier pass, and kept in scratch."""
    at: RowsAt | None = None
    """Where they stand in the data set, if the lengths of all blocks are known."""


def as_target(values: Any) -> np.ndarray | None:
    """Give y or weights as NumPy: of shape (n_rows,), or (n_rows, n_targets)."""
    if values is None or isinstance(values, np.ndarray):
        return values
    if isinstance(values, pa.ChunkedArray):
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        return np.asarray(values.to_pandas())
    if isinstance(values, pd.Series) and isinstance(values.dtype, pd.CategoricalDtype):
        return np.asarray(values)
    if isinstance(values, pd.Series) and pd.api.types.is_extension_array_dtype(values.dtype):
        # as scikit-learn does: numbers that may be missing are floats
        numeric = pd.api.types.is_numeric_dtype(values.dtype)
        return (
            values.to_numpy(dtype=np.float64, na_value=np.nan)
            if numeric
            else np.asarray(values, dtype=object)
        )
    if isinstance(values, pd.Series | pd.DataFrame):
        return values.to_numpy()
    raise InputError(f"y is a {type(values).__name__}; it must be a column, a series or an array.")


def checked_weights(w: np.ndarray | None) -> np.ndarray | None:
    """Give weights as float64, none of them negative.

    Raises
    ------
    InputError
        If there is a negative weight, or one is missing.
    """
    if w is None:
        return None
    w = np.asarray(w, dtype=np.float64)
    if len(w) and not w.min() >= 0:
        raise InputError(
            f"sample_weight holds {w.min()}, but must be 0 or more where rows are drawn or ranked by their weights. "
            "Give other weights, or leave those rows out."
        )
    return w


def checked(rows: Rows, where: str) -> Rows:
    """Check that a block's X, y and weights have as many rows as each other."""
    n = n_rows(rows.X)
    for name, other in (("y", rows.y), ("sample_weight", rows.w)):
        if other is not None and len(other) != n:
            raise BlockMismatchError(
                f"{where}: X has {n:,} rows, but {name} has {len(other):,}. Take X and {name} from the same "
                f"frame, or give {name} as the name of a column of X."
            )
    return rows


def peak_nbytes() -> int:
    """Peak resident memory of this process since it started, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


@dataclass(frozen=True)
class Tally:
    """What one pass read, added up over its blocks."""

    n_blocks: int = 0
    rows: int = 0
    nbytes: int = 0
    """Decoded bytes."""
    busy_s: float = 0.0
    """Seconds of work, added up over all workers."""
    started: float = float("inf")
    ended: float = 0.0
    """First start and last end, in seconds of Unix time."""
    peak_nbytes: int = 0
    """Largest peak memory of a worker process."""
    n_readings: int | None = None
    """How often all blocks were read, where the data decided that."""
    lengths: tuple[int, ...] = ()
    """Rows of each block, in their order."""
    n_recalled: int = 0
    """Blocks that were not read: what they give was on record."""
    flows: Mapping[str, Flow] = field(default_factory=dict)
    """What operations on the way of the blocks have counted, by their names."""
    weighs: bool | None = None
    """Whether the weight of any row is not zero; None if rows have no weights."""

    @classmethod
    def of(cls, rows: Rows, started: float, flows: Mapping[str, Flow] | None = None) -> Self:
        """Tally one block whose work began at `started`."""
        now = time.time()
        n = n_rows(rows.X)
        weighs = None if rows.w is None else bool(np.any(rows.w))
        return cls(
            1,
            n,
            nbytes(rows.X),
            now - started,
            started,
            now,
            peak_nbytes(),
            lengths=(n,),
            flows=flows or {},
            weighs=weighs,
        )

    def merge(self, other: Self) -> Self:
        """Add another tally."""
        return type(self)(
            self.n_blocks + other.n_blocks,
            self.rows + other.rows,
            self.nbytes + other.nbytes,
            self.busy_s + other.busy_s,
            min(self.started, other.started),
            max(self.ended, other.ended),
            max(self.peak_nbytes, other.peak_nbytes),
            lengths=self.lengths + other.lengths,
            n_recalled=self.n_recalled + other.n_recalled,
            flows=merged(self.flows, other.flows),
            weighs=other.weighs if self.weighs is None else self.weighs or bool(other.weighs),
        )

    def in_order(self, blocks: Sequence[int]) -> Self:
        """Give the tally of blocks that were read in another order than theirs; `blocks` are their numbers.

        What stands for another number of blocks is left out.
        """
        places = np.argsort(blocks)
        lengths = self.lengths if len(self.lengths) == len(places) else ()
        flows = {
            name: flow.taken(places) for name, flow in self.flows.items() if flow.n_blocks == len(places)
        }
        return replace(self, lengths=tuple(lengths[i] for i in places[: len(lengths)]), flows=flows)

    def recalled(self) -> Self:
        """Give the tally of the same blocks, on record: they took no time, and no memory."""
        return replace(
            self, busy_s=0.0, started=float("inf"), ended=0.0, peak_nbytes=0, n_recalled=self.n_blocks
        )
