"""Move rows between blocks through files: every row of a key into one block, in an order that no timing changes.

Each input block writes one file with a piece for every output block, and counts what it put into each: rows, and a
sum of the hashes of their keys, which no order changes. An output block is handed on only if it is what was counted.
"""

import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.task_spec import List, Task, TaskRef
from dask.tokenize import tokenize

from dpipe.blocks.hashes import hashes
from dpipe.blocks.scratch import free_nbytes
from dpipe.blocks.table import to_pandas
from dpipe.collect.loads import Graph, Load
from dpipe.collect.source import open_source
from dpipe.errors import ConservationError, DpipeError
from dpipe.monitor.events import counting_apart
from dpipe.sizes import format_bytes

#: Says in a file of pieces that it is whole, and what is in it.
_COUNTS = b"dpipe.counts"


class Folder:
    """Where pieces lie; one of our own is removed when the last frame that needs it is dropped."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = os.fspath(path) if path is not None else tempfile.mkdtemp(prefix="dpipe-exchange-")
        os.makedirs(self.path, exist_ok=True)
        if path is None:
            weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def __reduce__(self) -> Any:
        # a copy in another process must not remove it
        return Folder, (self.path,)


@dataclass(frozen=True, eq=False)
class Sent:
    """What one input block has put into its file."""

    path: str
    rows: np.ndarray
    """For each output block; int64."""
    sums: np.ndarray
    """The hashes of the keys, added modulo 2**64; uint64."""

    @classmethod
    def read(cls, path: str) -> "Sent | None":
        """Read it off a whole file; None if there is none."""
        try:
            with pa.memory_map(path) as file:
                told = pa.ipc.open_file(file).schema.metadata[_COUNTS]
        except (OSError, pa.ArrowException, KeyError, TypeError):
            return None
        rows, sums = np.frombuffer(told, dtype=np.int64).reshape(2, -1)
        return cls(path, rows, sums.view(np.uint64))


@dataclass(frozen=True)
class Exchange:
    """Which rows go where, and the proof that they came."""

    name: str
    """What errors call it."""
    by: tuple[Any, ...]
    n_blocks: int
    token: str
    folder: Folder = field(compare=False)

    def destinations(self, hashed: np.ndarray) -> np.ndarray:
        """Give the output block of each hash."""
        return (hashed % np.uint64(self.n_blocks)).astype(np.int64)

    def cut(self, load: Load, inputs: Sequence[Any], i: int) -> Sent:
        """Read block `i` and write its pieces; if an earlier pass has done that, only look at the file."""
        path = os.path.join(self.folder.path, f"{self.token}-{i:05d}.arrow")
        found = Sent.read(path)
        if found is not None:
            return found
        with counting_apart(i):
            frame = to_pandas(load(dict(zip(load.needs, inputs, strict=True))).X)
        hashed = hashes(frame[list(self.by)])
        where = self.destinations(hashed)
        rows = np.bincount(where, minlength=self.n_blocks).astype(np.int64)
        order = np.argsort(where, kind="stable")
        sums = _sums(hashed[order], rows)
        self._write(path, pa.Table.from_pandas(frame, preserve_index=False).take(order), rows, sums)
        return Sent(path, rows, sums)

    def _write(self, path: str, table: pa.Table, rows: np.ndarray, sums: np.ndarray) -> None:
        told = np.concatenate([rows, sums.view(np.int64)]).tobytes()
        table = table.unify_dictionaries()
        schema = table.schema.with_metadata({**(table.schema.metadata or {}), _COUNTS: told})
        temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with pa.OSFile(temporary, "wb") as file, pa.ipc.new_file(file, schema) as writer:
                for start, n in zip(np.cumsum(rows) - rows, rows, strict=True):
                    piece = table.slice(start, n).combine_chunks().replace_schema_metadata(schema.metadata)
                    batches = piece.to_batches() or [pa.RecordBatch.from_pylist([], schema)]
                    for batch in batches:
                        writer.write_batch(batch)
            os.replace(temporary, path)
        except OSError as err:
            raise DpipeError(
                f"{self.name}: {path} cannot be written: {err}. {format_bytes(free_nbytes(self.folder.path))} are free "
                "there. Make room, or name another folder with folder=..., and run again."
            ) from err
        finally:
            Path(temporary).unlink(missing_ok=True)

    def agreed(self, sent: Sequence[Sent], n_rows: int | None) -> tuple[Sent, ...]:
        """Check that every row of the source was put somewhere."""
        total = sum(int(each.rows.sum()) for each in sent)
        if n_rows is not None and total != n_rows:
            raise ConservationError(
                f"{self.name}: {n_rows:,} rows are in the source, but {total:,} were read. Files changed during the "
                "run; run it again."
            )
        return tuple(sent)

    def gather(self, sent: Sequence[Sent], j: int, meta: pd.DataFrame) -> pd.DataFrame:
        """Put output block `j` together, and check it.

        Raises
        ------
        ConservationError
            If rows are missing, are there twice, or have other keys than those that were sent.
        """
        pieces = [self._piece(each, j) for each in sent if each.rows[j]]
        if not pieces:
            return meta.iloc[:0]
        table = pa.concat_tables(pieces, promote_options="permissive")
        frame = table.to_pandas(use_threads=False)
        self._check(frame, sent, j)
        wanted = {
            name: dtype
            for name, dtype in meta.dtypes.items()
            if dtype != frame[name].dtype and not isinstance(dtype, pd.CategoricalDtype)
        }
        return frame.astype(wanted) if wanted else frame

    def _piece(self, sent: Sent, j: int) -> pa.Table:
        try:
            with pa.memory_map(sent.path) as file:
                return pa.Table.from_batches([pa.ipc.open_file(file).get_batch(j)])
        except (OSError, pa.ArrowException) as err:
            raise ConservationError(
                f"{self.name}: block {j} needs {sent.path}, which cannot be read: {err}. Name a folder that every "
                "worker sees, and that nobody clears, with folder=..., and run again."
            ) from err

    def _check(self, frame: pd.DataFrame, sent: Sequence[Sent], j: int) -> None:
        n = sum(int(each.rows[j]) for each in sent)
        hashed = hashes(frame[list(self.by)])
        if len(frame) != n:
            raise ConservationError(f"{self.name}: block {j} has {len(frame):,} rows of {n:,}. Run it again.")
        wanted = np.add.reduce([each.sums[j] for each in sent], dtype=np.uint64)
        if np.add.reduce(hashed, dtype=np.uint64) != wanted or (self.destinations(hashed) != j).any():
            raise ConservationError(
                f"{self.name}: block {j} has {n:,} rows, as it should, but of other keys than were sent to it. The "
                f"files in {self.folder.path} were changed; remove them and run again."
            )


def _sums(ordered: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Add the hashes of each run of so many rows, modulo 2**64."""
    ends = np.concatenate([np.zeros(1, np.uint64), np.cumsum(ordered, dtype=np.uint64)])
    stops = np.cumsum(rows)
    return ends[stops] - ends[stops - rows]


def exchanged(
    frame: dd.DataFrame, by: Sequence[Any], n_blocks: int, folder: str | os.PathLike[str] | None, name: str
) -> dd.DataFrame:
    """Give a lazy frame whose blocks hold every row of their keys."""
    source = open_source(frame)
    shared, loads = source.loads(None)
    token = tokenize(frame, tuple(by), n_blocks)[:16]
    exchange = Exchange(name, tuple(by), n_blocks, token, Folder(folder))
    graph: Graph = dict(shared)
    cuts = []
    for i, load in enumerate(loads):
        key = (f"cut-{token}", i)
        graph[key] = Task(key, exchange.cut, load, List(*map(TaskRef, load.needs)), i)
        cuts.append(key)
    agreed = f"agree-{token}"
    graph[agreed] = Task(agreed, exchange.agreed, List(*map(TaskRef, cuts)), source.n_rows)
    meta = source.frame
    keys = [(f"gather-{token}", j) for j in range(n_blocks)]
    for j, key in enumerate(keys):
        graph[key] = Task(key, exchange.gather, TaskRef(agreed), j, meta)
    return dd.from_graph(graph, meta, (None,) * (n_blocks + 1), keys, "exchange")
