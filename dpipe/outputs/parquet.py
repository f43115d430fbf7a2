"""Write Parquet block by block: each file whole or not there, the manifest last."""

import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pyarrow as pa
import pyarrow.parquet as pq
from dask.delayed import Delayed
from dask.task_spec import List, TaskRef
from distributed import Client

from dpipe.blocks.hashes import checksum
from dpipe.cluster.cluster import Cluster, takes_cluster
from dpipe.cluster.local import Place, compute, find_place, running
from dpipe.collect.loads import Load
from dpipe.collect.source import open_source
from dpipe.errors import ConservationError, InputError, OutputError
from dpipe.ledger.book import Ledger
from dpipe.ledger.codec import encode
from dpipe.outputs.manifest import (
    MANIFEST,
    UNFINISHED,
    FileEntry,
    check_folder,
    finished,
    gathered,
    kept_entry,
    refuse_other,
    write_manifest,
)
from dpipe.run.graph import GraphBuilder, add_inputs
from dpipe.run.recorded import Recorded
from dpipe.sizes import parse_bytes

_CODECS = ("zstd", "snappy", "gzip", "lz4", "brotli", "none")


@takes_cluster
def write_parquet(
    frame: dd.DataFrame,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    compression: str = "zstd",
    memory: int | str | None = None,
    client: Client | Cluster | None = None,
) -> Path:
    """Write a frame as a folder of Parquet files, one a block, that can be checked by `dpipe.verify`.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
        Its index is not written.
    path : path
        A folder, made if it is not there. What an earlier call could not finish is kept: only the blocks that are
        missing, or whose source or functions have changed, are written.
    overwrite : bool, default False
        Replace what is there already.
    compression : str, default "zstd"
        One of Arrow's codecs.
    memory, client
        As for `dpipe.fit`.

    Returns
    -------
    pathlib.Path
        `path`.

    Raises
    ------
    OutputError
        If the folder holds another result or other files, or rows were lost on the way.
    InputError
        If `frame` is not a Dask DataFrame, or the codec is unknown.

    Examples
    --------
    >>> import tempfile, pandas as pd, dpipe
    >>> rows = dd.from_pandas(pd.DataFrame({"a": range(9)}), npartitions=2)
    >>> folder = write_parquet(rows, tempfile.mkdtemp() + "/out")
    >>> sorted(item.name for item in folder.iterdir())
    ['_manifest.json', 'part-00000.parquet', 'part-00001.parquet']
    """
    if not isinstance(frame, dd.DataFrame):
        raise InputError(f"write_parquet takes a Dask DataFrame, got a {type(frame).__name__}.")
    if compression not in _CODECS:
        raise InputError(
            f"compression={compression!r} is unknown. Use one of {', '.join(map(repr, _CODECS))}."
        )
    folder = Path(path)
    place = find_place(client, None if memory is None else parse_bytes(memory), frame.npartitions, None)
    check_folder(folder, overwrite)
    with Ledger(folder / UNFINISHED) as ledger:
        _write_parts(frame, folder, ledger, place, compression, overwrite=overwrite)
    shutil.rmtree(folder / UNFINISHED)
    return folder


def _write_parts(
    frame: dd.DataFrame, folder: Path, ledger: Ledger, place: Place, compression: str, *, overwrite: bool
) -> None:
    source = open_source(frame)
    graph = GraphBuilder(uuid.uuid4().hex[:16])
    recorded = Recorded(ledger, "write", {"compression": compression, "columns": list(frame)}, lambda _: None)
    inputs = recorded.keyed(add_inputs(graph, source), graph.tasks)
    keys = [each.key or uuid.uuid4().hex for each in inputs]
    before = finished(folder)
    if before is not None:
        if not overwrite and before.get("blocks") == keys:
            return
        refuse_other(folder, overwrite)
        (folder / MANIFEST).unlink()
    schema = pa.Schema.from_pandas(source.frame, preserve_index=False)
    held = graph.hold("writer", _PartWriter(str(folder), schema.remove_metadata(), compression, ledger.pen))
    tasks = []
    for i, (each, key) in enumerate(zip(inputs, keys, strict=True)):
        arguments = held, each.load, each.needs, i, key, kept_entry(ledger, folder, key)
        tasks.append(graph.add_block("write-parquet", i, _write, *arguments))
    every = graph.add("written", gathered, List(*map(TaskRef, tasks)))
    with running(place, watched=False) as chosen:
        entries = compute(Delayed(every, graph.tasks), chosen, place.threads)
    _commit(folder, entries, [each.key for each in inputs], source.n_rows)


@dataclass(frozen=True)
class _PartWriter:
    folder: str
    schema: pa.Schema
    compression: str
    pen: Any

    def write(self, block: Any, i: int, key: str) -> FileEntry:
        table = block if isinstance(block, pa.Table) else pa.Table.from_pandas(block, preserve_index=False)
        destination = Path(self.folder) / f"part-{i:05d}.parquet"
        temporary = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            table = _typed(table, self.schema)
            pq.write_table(table, temporary, compression=self.compression)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            keys = _check_written(table, temporary, destination, i)
            entry = replace(FileEntry.of(temporary, table.num_rows), name=destination.name, checksum=keys)
            temporary.replace(destination)
        except (OSError, pa.ArrowException) as err:
            raise OutputError(
                f"{destination} cannot be written: {err}. Make room or repair the block, and write again: what is "
                "done already stays."
            ) from err
        finally:
            temporary.unlink(missing_ok=True)
        self.pen.write(key, encode(entry), what="part", rows=entry.rows)
        return entry


def _check_written(table: pa.Table, path: Path, destination: Path, i: int) -> int:
    """Read a file back, and compare its rows with those that were to be written; give the sum of their hashes."""
    keys = checksum(table.to_pandas(use_threads=False))
    written = pq.read_table(path, use_threads=False)
    if written.num_rows != table.num_rows or checksum(written.to_pandas(use_threads=False)) != keys:
        raise ConservationError(
            f"write_parquet: block {i} has {table.num_rows:,} rows, but {destination} would hold {written.num_rows:,}, "
            "or others. The disk or its driver may be failing; write it again elsewhere."
        )
    return keys


def _typed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a block the types of the frame's columns, texts as texts."""
    plain = [
        pa.field(item.name, table.field(item.name).type.value_type)
        if pa.types.is_dictionary(table.field(item.name).type) and not pa.types.is_dictionary(item.type)
        else table.field(item.name)
        for item in schema
    ]
    decoded = table.select(schema.names).cast(pa.schema(plain)).replace_schema_metadata(None)
    wanted = [
        mine if pa.types.is_null(item.type) else item
        for mine, item in zip(decoded.schema, schema, strict=True)
    ]
    return decoded.cast(pa.schema(wanted))


def _write(
    writer: _PartWriter, load: Load, inputs: Sequence[Any], i: int, key: str, kept: FileEntry | None
) -> FileEntry:
    if kept is not None:
        return kept
    rows = load(dict(zip(load.needs, inputs, strict=True)))
    return writer.write(rows.X, i, key)


def _commit(
    folder: Path,
    entries: Sequence[FileEntry],
    keys: Sequence[str],
    n_rows: int | None,
) -> None:
    """Check the rows, remove what is left of other calls, and write the manifest."""
    total = sum(entry.rows or 0 for entry in entries)
    if n_rows is not None and total != n_rows:
        raise OutputError(f"{folder}: {total:,} rows were written of {n_rows:,}. Write it again.")
    names = {entry.name for entry in entries}
    leftovers = folder.glob(".part-*.tmp")  # of a call that was killed while it wrote them
    for path in (*leftovers, *folder.glob("part-*.parquet")):
        if path.name not in names:
            path.unlink()
    write_manifest(folder, entries, keys, rows=total)
