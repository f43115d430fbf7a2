"""Read Arrow IPC files (Feather) as one lazy Dask DataFrame: mapped into memory, with next to nothing to decode."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import dask.dataframe as dd
import pyarrow as pa

from dpipe.collect.block_list import BlockList
from dpipe.collect.columns import check_columns, refuse_one_name
from dpipe.collect.files import find_files, is_remote, stamp_of
from dpipe.collect.footers import Footer
from dpipe.collect.parquet import (
    BlockSpec,
    ParquetReader,
    block_limit,
    common_schema,
    joined_blocks,
    plain_type,
    row_nbytes,
    spelling,
)
from dpipe.errors import InputError, SourceError


@dataclass(frozen=True)
class _Batches:
    """What is known of the record batches of a file."""

    n_rows: tuple[int, ...]
    with_nulls: frozenset[str]
    """Columns that lack a value somewhere."""


@dataclass(frozen=True)
class ArrowReader(ParquetReader):
    """Gives record batches of Arrow IPC files; the row groups of a block are their numbers."""

    kind: ClassVar[str] = "Arrow"

    def _decoded(self, block: BlockSpec, wanted: Sequence[str]) -> tuple[dict[str, str | None], pa.Table]:
        with pa.memory_map(block.path) as file, pa.ipc.open_file(file) as opened:
            found = spelling(wanted, opened.schema.names)
            names = [name for name in found.values() if name]
            batches = [opened.get_batch(i).select(names) for i in block.row_groups]
            kept = pa.schema([opened.schema.field(name) for name in names])
            table = pa.Table.from_batches(batches, schema=kept)
        for i, name in enumerate(table.column_names):
            if name in self.dictionaries and not pa.types.is_dictionary(table.schema.field(i).type):
                table = table.set_column(i, name, table.column(i).dictionary_encode())
        return found, table


def read_arrow(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
    block_nbytes: int | str | None = None,
    memory: int | str | None = None,
) -> dd.DataFrame:
    """Open Arrow IPC files (Feather version 2) as one lazy Dask DataFrame.

    Parameters
    ----------
    source : path, glob, folder, or a sequence of them
        On this machine's disks: the files are mapped into memory, and must not be written to while they are read.
        Of a folder the files that end in ".arrow".
    columns : sequence of str, optional
        Columns to keep; default all.
    schema : pyarrow.Schema, optional
        Names and types that every file is given, as for `dpipe.read_parquet`.
    block_nbytes : int or str, default "32 MiB"
        Size of a block. Record batches of a file are joined up to it, never split.
    memory : int or str, optional
        Choose `block_nbytes` for this memory budget instead.

    Returns
    -------
    dask.dataframe.DataFrame
        Lazy; one partition a block. Integers and booleans with nulls are float64, with NaN.

    Raises
    ------
    SourceError
        If no file matches, a file is no Arrow IPC file, or its schema differs from the first one's.
    InputError
        If a column does not exist, or a file is not on a disk of this machine.

    Examples
    --------
    >>> import tempfile, pyarrow.feather, dpipe
    >>> folder = tempfile.mkdtemp()
    >>> pyarrow.feather.write_feather(pa.table({"a": [1, 2], "b": ["x", "y"]}), folder + "/0.arrow")
    >>> dpipe.read_arrow(folder).compute()
       a  b
    0  1  x
    1  2  y
    """
    refuse_one_name(columns)
    paths = find_files(source, {}, ".arrow")
    remote = [path for path in paths if is_remote(path)]
    if remote:
        raise InputError(
            f"{remote[0]} cannot be mapped into memory. Copy the files to this machine, or write them as Parquet."
        )
    with ThreadPoolExecutor(min(16, len(paths))) as pool:
        ends = list(pool.map(_end, paths))
    types = schema or common_schema(paths, ends)
    types = _with_nullable_floats(types, frozenset().union(*(end.metadata.with_nulls for end in ends)))
    if columns is not None:
        check_columns(columns, types.names)
        types = pa.schema([types.field(name) for name in columns])
    most = max(block_limit(block_nbytes, memory) // row_nbytes(types), 1)
    blocks = BlockList(
        block
        for path, end in zip(paths, ends, strict=True)
        for block in joined_blocks(path, end.metadata.n_rows, end.stamp, most)
    )
    texts = tuple(field.name for field in types if pa.types.is_string(field.type))
    meta = types.empty_table().to_pandas()
    return dd.from_map(
        ArrowReader(types, texts), blocks, meta=meta, label="read-arrow", enforce_metadata=False
    )


def _end(path: str) -> Footer:
    """Read what the end of a file says, and the lengths of its record batches."""
    try:
        stamp = stamp_of(path, {})
        with pa.memory_map(path) as file, pa.ipc.open_file(file) as opened:
            schema = opened.schema.remove_metadata()
            lengths, nulls = [], set()
            for i in range(opened.num_record_batches):
                batch = opened.get_batch(i)
                lengths.append(batch.num_rows)
                nulls |= {
                    name
                    for name, column in zip(schema.names, batch.columns, strict=True)
                    if column.null_count
                }
    except (OSError, pa.ArrowException) as err:
        raise SourceError(
            f"{path} cannot be read as an Arrow IPC file: {err}. Write it again (a stream of Arrow, or Feather "
            "version 1, is another format), or leave it out of the source."
        ) from err
    return Footer(schema, _Batches(tuple(lengths), frozenset(nulls)), stamp)


def _with_nullable_floats(schema: pa.Schema, with_nulls: frozenset[str]) -> pa.Schema:
    def kind(field: Any) -> pa.DataType:
        plain = plain_type(field.type)
        narrow = pa.types.is_integer(plain) or pa.types.is_boolean(plain)
        return pa.float64() if narrow and field.name in with_nulls else plain

    return pa.schema([pa.field(field.name, kind(field)) for field in schema])
