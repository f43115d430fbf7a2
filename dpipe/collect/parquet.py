"""Read Parquet: metadata now, blocks of row groups later.

A block is decoded to an Arrow table with strings left as dictionary codes when dpipe reads it
for a pass, and to a pandas frame when Dask does.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import dask.dataframe as dd
import pandas as pd
import pyarrow as pa

from dpipe.blocks.table import table_to_pandas
from dpipe.collect.block_list import BlockList
from dpipe.collect.columns import check_columns, refuse_one_name
from dpipe.collect.files import UNSTAMPED, Stamp, check_unchanged, find_files, is_remote, retried, scrubbed
from dpipe.collect.footers import Footer, Listing, parquet_file, read_footers
from dpipe.errors import InputError, SourceError
from dpipe.sizes import DEFAULT_BLOCK_NBYTES, block_nbytes_for, parse_bytes

#: Encoded columns of about so many bytes are decoded by one call: they stay in the processor's cache.
_AT_A_TIME_NBYTES = 2 * 2**20


@dataclass(frozen=True)
class BlockSpec:
    """One block of a Parquet source: some neighbouring row groups of one file."""

    path: str
    row_groups: tuple[int, ...]
    n_rows: int
    stamp: Stamp = UNSTAMPED
    """What the file was when it was listed: a changed file is another block."""


@dataclass(frozen=True)
class ParquetReader:
    """Decodes blocks; small enough to travel with every task."""

    schema: pa.Schema
    """The types that every block is given."""
    dictionaries: tuple[str, ...]
    """String columns, read as dictionary codes."""
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Credentials may be among them: they are no part of what the data is, and are not shown."""
    on_corrupt: str = "raise"
    """Whether to raise or to skip what cannot be read."""
    kind: ClassVar[str] = "Parquet"

    def __call__(self, block: BlockSpec, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read one block for Dask: a pandas frame."""
        return table_to_pandas(self.read(block, columns))

    def read(self, block: BlockSpec, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one block as an Arrow table, with strings as dictionary codes.

        Raises
        ------
        SourceError
            If the file is gone, changed or corrupt; the message names it.
        """
        wanted = list(self.schema.names if columns is None else columns)
        found, table = self.raw(block, wanted)
        return self._with_schema(table, found, block.path)

    def raw(self, block: BlockSpec, wanted: Sequence[str]) -> tuple[dict[str, str | None], pa.Table]:
        """Read columns of one block in the types of its file; give them with how the file spells each.

        Raises
        ------
        SourceError
            As `read` does.
        """
        # of an object it would be one more request; that it changed is found out after reading it
        if not is_remote(block.path):
            self._check_unchanged(block)
        try:
            found, table = retried(self._decoded, block, wanted, path=block.path)
        except (OSError, pa.ArrowException, IndexError) as err:
            said = scrubbed(err, self.storage_options)
            what = f"{block.path}: row groups {list(block.row_groups)} cannot be read: {said}"
            if self.on_corrupt == "skip":
                warnings.warn(f"{what} These rows are left out.", stacklevel=2)
                empty = pa.schema([self.schema.field(name) for name in wanted]).empty_table()
                return {name: name for name in wanted}, empty
            raise SourceError(
                f"{what} The file is corrupt or has changed since it was listed. Write it again, leave it out of "
                "the source, or go on without these rows: read_parquet(..., on_corrupt='skip'). The other files "
                "are not affected."
            ) from err
        self._check_unchanged(block)
        return found, table

    def _decoded(self, block: BlockSpec, wanted: Sequence[str]) -> tuple[dict[str, str | None], pa.Table]:
        with parquet_file(block.path, self.storage_options, self.dictionaries) as parquet:
            found = spelling(wanted, parquet.schema_arrow.names)
            names = [name for name in found.values() if name]
            parts = [
                parquet.read_row_groups(block.row_groups, columns=some, use_threads=False)
                for some in _some_at_a_time(names, parquet.metadata, block.row_groups)
            ]
        if len(parts) == 1:
            return found, parts[0]
        fields = [one for part in parts for one in part.schema]
        return found, pa.table(
            [column for part in parts for column in part.columns], schema=pa.schema(fields)
        )

    def with_types(self, table: pa.Table, path: str) -> pa.Table:
        """Give a table, which has all columns, the types that every block has.

        Raises
        ------
        SourceError
            If a value cannot be cast; the message names `path`.
        """
        return self._with_schema(table, {name: name for name in self.schema.names}, path)

    def _check_unchanged(self, block: BlockSpec) -> None:
        """Refuse a file that is another one than was listed: old and new rows must not be mixed."""
        if block.stamp == UNSTAMPED or self.on_corrupt == "skip":
            return
        check_unchanged(block.path, block.stamp, self.storage_options)

    def _with_schema(self, table: pa.Table, found: dict[str, str | None], path: str) -> pa.Table:
        arrays = []
        for name, spelled in found.items():
            kind = self.schema.field(name).type
            if spelled is None:
                arrays.append(pa.nulls(table.num_rows, type=kind))
                continue
            column = table.column(spelled)
            if pa.types.is_dictionary(column.type) or column.type == kind:
                arrays.append(column)
            else:
                arrays.append(_cast(column, kind, name, path))
        if not arrays:
            # a table without columns still has rows
            return pa.table({"": pa.nulls(table.num_rows)}).select([])
        return pa.table(arrays, names=list(found))


def _some_at_a_time(names: list[str], metadata: Any, row_groups: Sequence[int]) -> Iterator[list[str]]:
    """Share columns out over calls of Arrow, which holds the bytes of all until the last one is decoded."""
    nbytes = sum(metadata.row_group(i).total_byte_size for i in row_groups)
    step = (
        max(_AT_A_TIME_NBYTES * metadata.row_group(0).num_columns // max(nbytes, 1), 1) if row_groups else 1
    )
    for i in range(0, max(len(names), 1), step):
        yield names[i : i + step]


def _cast(column: pa.ChunkedArray, kind: pa.DataType, name: str, path: str) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except pa.ArrowException as err:
        raise SourceError(
            f"{path}: column {name!r} is {column.type}, and cannot be read as {kind}: {' '.join(str(err).split())} "
            f"Give the column another type in schema=..., or convert the file."
        ) from err


def spelling(wanted: Sequence[str], names: Sequence[str]) -> dict[str, str | None]:
    """Find each wanted column in a file: as written, or else by a spelling that differs in case only."""
    lower = {name.lower(): name for name in names}
    return {name: name if name in names else lower.get(name.lower()) for name in wanted}


def read_column(path: str, name: str, storage_options: dict[str, Any]) -> pa.ChunkedArray:
    """Read one column of a file whole, texts as dictionary codes.

    Raises
    ------
    SourceError
        If the file cannot be read.
    """

    def read() -> pa.ChunkedArray:
        with parquet_file(path, storage_options, [name]) as parquet:
            return parquet.read([name], use_threads=False).column(0)

    try:
        return retried(read, path=path)
    except (OSError, pa.ArrowException) as err:
        raise SourceError(
            f"{path}: column {name!r} cannot be read: {scrubbed(err, storage_options)}. Write the file again."
        ) from err


def read_parquet(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
    block_nbytes: int | str | None = None,
    memory: int | str | None = None,
    storage_options: dict[str, Any] | None = None,
    on_corrupt: str = "raise",
    listing: "str | os.PathLike[str] | Listing | None" = None,
) -> dd.DataFrame:
    """Open Parquet files as one lazy Dask DataFrame, by reading their footers only.

    Parameters
    ----------
    source : path, glob, folder, URL, or a sequence of them
        Anything that fsspec knows (``s3://``, ``https://`` ...). Globs and folders are sorted by name.
    columns : sequence of str, optional
        Columns to keep; default all. Columns that a computation does not use are not read anyway.
    schema : pyarrow.Schema, optional
        Names and types that every file is given; names match regardless of case, a column that a file
        lacks is null there. By default all files must have the schema of the first one.
    block_nbytes : int or str, default "32 MiB"
        Decoded size of a block. Row groups of a file are joined up to it, never split.
    memory : int or str, optional
        Choose `block_nbytes` for this memory budget instead.
    storage_options : dict, optional
        For fsspec: credentials and the like.
    on_corrupt : {"raise", "skip"}, default "raise"
        What to do with row groups that cannot be read: raise an error that names their file, or leave
        them out with a warning.
    listing : path, optional
        A file that keeps what the footers told: of many files only new and changed ones are opened again.

    Returns
    -------
    dask.dataframe.DataFrame
        Lazy; one partition a block, divisions unknown. Integers and booleans with nulls are float64, with NaN.

    Raises
    ------
    SourceError
        If no file matches, a file is not Parquet, or its schema differs from the first one's.
    InputError
        If a column does not exist.

    Examples
    --------
    >>> import tempfile, pandas as pd, dpipe
    >>> folder = tempfile.mkdtemp()
    >>> pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}).to_parquet(folder + "/0.parquet")
    >>> dpipe.read_parquet(folder + "/*.parquet").compute()
       a  b
    0  1  x
    1  2  y
    """
    if on_corrupt not in ("raise", "skip"):
        raise InputError(f"on_corrupt must be 'raise' or 'skip', got {on_corrupt!r}.")
    refuse_one_name(columns)
    options = storage_options or {}
    paths = find_files(source, options, ".parquet")
    kept = listing if isinstance(listing, Listing) else Listing(listing)
    paths, footers = read_footers(paths, options, on_corrupt, kept)
    if not isinstance(listing, Listing):
        kept.save()
    types = schema or common_schema(paths, footers)
    types = _with_nullable_floats(types, footers)
    if columns is not None:
        types = _chosen(types, columns)
    blocks = blocks_of_files(paths, footers, types, block_limit(block_nbytes, memory))
    texts = tuple(f.name for f in types if pa.types.is_string(f.type) or pa.types.is_large_string(f.type))
    reader = ParquetReader(types, texts, dict(options), on_corrupt)
    meta = types.empty_table().to_pandas()
    return dd.from_map(reader, blocks, meta=meta, label="read-parquet", enforce_metadata=False)


def block_limit(block_nbytes: int | str | None, memory: int | str | None) -> int:
    """Choose the decoded bytes of a block: as given, or else for a memory budget, or else the default."""
    if block_nbytes is not None:
        return parse_bytes(block_nbytes)
    if memory is not None:
        return block_nbytes_for(parse_bytes(memory), os.cpu_count() or 1)
    return DEFAULT_BLOCK_NBYTES


def common_schema(paths: list[str], footers: list[Footer]) -> pa.Schema:
    """Give the schema of the first file; a column that is all missing in one file has the type of the others."""
    first: dict[str, pa.DataType] = {}
    for path, footer in zip(paths, footers, strict=True):
        other = {f.name: plain_type(f.type) for f in footer.schema}
        first = first or other
        for name in first.keys() & other.keys():
            known = other[name] if pa.types.is_null(first[name]) else first[name]
            first[name] = known
            other[name] = known if pa.types.is_null(other[name]) else other[name]
        if other != first:
            raise SourceError(
                f"{path} has another schema than {paths[0]}: {_difference(first, other)}. Pass the schema that "
                "all files should be given, as schema=pyarrow.schema([...]), or read them apart."
            )
    return pa.schema(list(first.items()))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Give the type without its encoding: plain strings instead of dictionaries and large strings."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


def _difference(first: dict[str, pa.DataType], other: dict[str, pa.DataType]) -> str:
    said = [f"it lacks {name!r}" for name in first if name not in other]
    said += [f"it also has {name!r}" for name in other if name not in first]
    said += [
        f"{name!r} is {other[name]} instead of {kind}"
        for name, kind in first.items()
        if name in other and other[name] != kind
    ]
    return "; ".join(said) or "its columns are in another order"


def _with_nullable_floats(schema: pa.Schema, footers: list[Footer]) -> pa.Schema:
    """Read integers and booleans that have nulls anywhere as float64: a column has one type in all blocks."""
    fields = []
    for item in schema:
        kind = plain_type(item.type)
        narrow = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        if narrow and any(may_have_nulls(f.metadata, item.name) for f in footers):
            kind = pa.float64()
        fields.append(pa.field(item.name, kind))
    return pa.schema(fields)


def may_have_nulls(metadata: Any, name: str) -> bool:
    """Tell from the statistics of a file whether a column has nulls, or may have them."""
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        if row_group.num_rows == 0:
            continue
        found = None
        for j in range(row_group.num_columns):
            column = row_group.column(j)
            if column.path_in_schema.lower() == name.lower():
                found = column
                break
        if found is None or found.statistics is None or not found.statistics.has_null_count:
            return True
        if found.statistics.null_count:
            return True
    return False


def _chosen(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    check_columns(columns, schema.names)
    return pa.schema([schema.field(name) for name in columns])


def row_nbytes(schema: pa.Schema) -> int:
    """Estimate the decoded bytes of one row; a string counts as its code and a share of the dictionary.

    Examples
    --------
    >>> row_nbytes(pa.schema([("a", pa.float64()), ("b", pa.string())]))
    16
    """
    return sum(_width(item.type) for item in schema) or 1


def _width(kind: pa.DataType) -> int:
    if pa.types.is_primitive(kind):
        return max(kind.bit_width // 8, 1)
    return 8


def blocks_of_files(
    paths: Sequence[str], footers: Sequence[Footer], schema: pa.Schema, limit: int
) -> BlockList[BlockSpec]:
    """Join neighbouring row groups of each file to blocks of at most `limit` decoded bytes."""
    pairs = zip(paths, footers, strict=True)
    return BlockList(b for path, footer in pairs for b in blocks_of_file(path, footer, schema, limit))


def blocks_of_file(path: str, footer: Footer, schema: pa.Schema, limit: int) -> list[BlockSpec]:
    """Join neighbouring row groups of a file to blocks of at most `limit` decoded bytes."""
    metadata = footer.metadata
    lengths = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return joined_blocks(path, lengths, footer.stamp, max(limit // row_nbytes(schema), 1))


def joined_blocks(path: str, lengths: Sequence[int], stamp: Stamp, most: int) -> list[BlockSpec]:
    """Join neighbouring parts of a file, of some lengths, to blocks of at most `most` rows."""
    blocks: list[BlockSpec] = []
    for part, rows in enumerate(lengths):
        if blocks and blocks[-1].n_rows + rows <= most:
            last = blocks[-1]
            blocks[-1] = replace(last, row_groups=(*last.row_groups, part), n_rows=last.n_rows + rows)
        else:
            blocks.append(BlockSpec(path, (part,), rows, stamp))
    return blocks or [BlockSpec(path, (), 0, stamp)]
