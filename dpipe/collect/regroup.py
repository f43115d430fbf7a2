"""Shuffle by a key, and cut into other blocks: checked by counts and by sums of hashed keys."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.task_spec import List, Task, TaskRef
from dask.tokenize import tokenize

from dpipe.blocks.hashes import checksum, hashes
from dpipe.blocks.table import to_pandas
from dpipe.collect.exchange import exchanged
from dpipe.collect.loads import Graph, Load
from dpipe.collect.source import open_source
from dpipe.errors import ConservationError, InputError
from dpipe.monitor.events import counting_apart


def shuffle(
    frame: dd.DataFrame,
    by: str | Sequence[str],
    *,
    blocks: int | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> dd.DataFrame:
    """Bring all rows of a key into one block, lazily, through files.

    The order of rows depends on the data alone: by block of `frame`, then as stored. Every block is checked when it
    is read: it has the rows that were sent to it, by their number and by a sum of their hashed keys.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
        Its index is not kept. All its columns are moved: choose those that you need first.
    by : str or sequence of str
        Columns of the key. Which block a key comes to does not depend on how it is stored, as text or category, as
        integer or float.
    blocks : int, optional
        Blocks of the result; default as many as `frame` has.
    folder : path, optional
        Where the pieces lie, of the size of `frame`; default a folder of our own in the temporary directory, removed
        with the frame. On several machines it must be one that all of them see. A folder that you name is kept: a
        run that was stopped goes on with what is there.

    Returns
    -------
    dask.dataframe.DataFrame
        Lazy.

    Raises
    ------
    InputError
        If a column does not exist, or `blocks` is no positive integer.
    ConservationError
        While it is computed: if a block has not the rows that were sent to it.

    Examples
    --------
    >>> import dask
    >>> rides = dd.from_pandas(pd.DataFrame({"zone": [1, 2, 1, 2], "fare": [5, 6, 7, 8]}), npartitions=2)
    >>> [len(set(part["zone"])) for part in dask.compute(*shuffle(rides, "zone").to_delayed())]
    [1, 1]
    """
    keys = check_keys(frame, "shuffle", by)
    n = check_blocks("shuffle", blocks, frame.npartitions)
    return exchanged(frame, keys, n, folder, f"shuffle by {', '.join(map(repr, keys))}")


def repartition(frame: dd.DataFrame, blocks: int) -> dd.DataFrame:
    """Cut a frame into another number of blocks, lazily, with its rows in their order.

    A block of the result is made of its share of one or more adjacent blocks, and is checked: it has the rows that
    were cut for it, by their number and by a sum of their hashes.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
        Its index is not kept.
    blocks : int

    Returns
    -------
    dask.dataframe.DataFrame
        Lazy; blocks are of one size if those of `frame` are.

    Raises
    ------
    InputError
        If `blocks` is no positive integer.
    ConservationError
        While it is computed: if a block has not the rows that were cut for it.

    Examples
    --------
    >>> rides = dd.from_pandas(pd.DataFrame({"fare": range(6)}), npartitions=2)
    >>> list(repartition(rides, 3).map_partitions(len).compute())
    [2, 2, 2]
    """
    check_frame(frame, "repartition")
    n = check_blocks("repartition", blocks, frame.npartitions)
    source = open_source(frame)
    shared, loads = source.loads(None)
    token = tokenize(frame, n, "repartition")[:16]
    graph: Graph = dict(shared)
    arriving: list[list[Any]] = [[] for _ in range(n)]
    for i, load in enumerate(loads):
        cut = Cut.of(i, len(loads), n)
        key = (f"cut-{token}", i)
        graph[key] = Task(key, cut, load, List(*map(TaskRef, load.needs)))
        for place, j in enumerate(cut.to):
            piece = (f"piece-{token}", i, j)
            graph[piece] = Task(piece, _one, TaskRef(key), place)
            arriving[j].append(piece)
    keys = [(f"join-{token}", j) for j in range(n)]
    for j, key in enumerate(keys):
        graph[key] = Task(key, _joined, List(*map(TaskRef, arriving[j])), j)
    return dd.from_graph(graph, source.frame, (None,) * (n + 1), keys, "repartition")


@dataclass(frozen=True)
class Piece:
    """Rows on their way to another block."""

    frame: pd.DataFrame
    rows: int
    checksum: int


@dataclass(frozen=True)
class Cut:
    """Where one block of rows is cut, as shares of its rows, and which blocks the pieces go to."""

    block: int
    at: tuple[float, ...]
    to: tuple[int, ...]

    @classmethod
    def of(cls, i: int, n_in: int, n_out: int) -> "Cut":
        """Cut block `i` of `n_in` for `n_out`: whole numbers, so that no rounding moves a row.

        Examples
        --------
        >>> Cut.of(1, 3, 2)
        Cut(block=1, at=(0.0, 0.5, 1.0), to=(0, 1))
        """
        to = tuple(range(i * n_out // n_in, -(-(i + 1) * n_out // n_in)))
        inner = ((j * n_in - i * n_out) / n_out for j in to[1:])
        return cls(i, (0.0, *inner, 1.0), to)

    def __call__(self, load: Load, inputs: Sequence[Any]) -> tuple[Piece, ...]:
        """Read the block and cut it."""
        with counting_apart(self.block):
            frame = to_pandas(load(dict(zip(load.needs, inputs, strict=True))).X)
        hashed = hashes(frame)
        ends = [round(share * len(frame)) for share in self.at]
        return tuple(
            Piece(frame.iloc[a:b], b - a, int(np.add.reduce(hashed[a:b], dtype=np.uint64)))
            for a, b in itertools.pairwise(ends)
        )


def _one(pieces: Sequence[Piece], place: int) -> Piece:
    return pieces[place]


def _joined(pieces: Sequence[Piece], j: int) -> pd.DataFrame:
    whole = [piece.frame for piece in pieces if piece.rows] or [pieces[0].frame]
    frame = pd.concat(whole, ignore_index=True)
    rows = sum(piece.rows for piece in pieces)
    if len(frame) != rows or checksum(frame) != sum(piece.checksum for piece in pieces) % 2**64:
        raise ConservationError(
            f"repartition: block {j} has {len(frame):,} rows of {rows:,}, or others. Run it again."
        )
    return frame


def check_frame(frame: Any, name: str) -> None:
    """Refuse what is no Dask frame."""
    if not isinstance(frame, dd.DataFrame):
        raise InputError(f"{name} takes a Dask DataFrame, got a {type(frame).__name__}.")


def check_keys(frame: Any, name: str, by: str | Sequence[str]) -> tuple[str, ...]:
    """Give the columns of a key, all of which must exist."""
    check_frame(frame, name)
    keys = (by,) if isinstance(by, str) else tuple(by)
    missing = [key for key in keys if key not in frame.columns]
    if missing or not keys:
        raise InputError(
            f"{name}: there is no column {', '.join(map(repr, missing)) or 'named'} to go by. "
            f"The frame has: {', '.join(map(repr, frame.columns))}."
        )
    return keys


def check_blocks(name: str, blocks: Any, default: int) -> int:
    """Give a number of blocks."""
    if blocks is None:
        return default
    if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1:
        raise InputError(f"{name}: blocks must be a positive integer, got {blocks!r}.")
    return blocks
