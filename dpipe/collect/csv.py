"""Read CSV files as one lazy Dask DataFrame."""

import lzma
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import dask.dataframe as dd
import fsspec
import pandas as pd
from dask.dataframe.dask_expr.io.io import FromMapProjectable
from fsspec.core import OpenFile
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import read_block

from dpipe.collect.block_list import BlockList
from dpipe.collect.columns import check_columns, refuse_one_name
from dpipe.collect.files import Stamp, check_unchanged, find_files, is_remote, retried, scrubbed, stamp_of
from dpipe.errors import SourceError
from dpipe.sizes import DEFAULT_BLOCK_NBYTES, parse_bytes


def read_csv(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    columns: Sequence[str] | None = None,
    block_nbytes: int | str | None = None,
    storage_options: dict[str, Any] | None = None,
    **options: Any,
) -> dd.DataFrame:
    """Open CSV files as one lazy Dask DataFrame, by reading the head of the first one.

    Parameters
    ----------
    source : path, glob, folder, URL, or a sequence of them
    columns : sequence of str, optional
        Columns to keep; default all.
    block_nbytes : int or str, default "32 MiB"
        Bytes of text in a block.
    storage_options : dict, optional
        For fsspec.
    **options
        For `pandas.read_csv`, such as ``parse_dates`` or ``dtype``. Types are guessed from the head
        of the first file; a column whose type the head does not show needs ``dtype``.

    Returns
    -------
    dask.dataframe.DataFrame
        Lazy.

    Raises
    ------
    SourceError
        If no file matches, the first one is not CSV, or another has another header.
    InputError
        If a column does not exist.
    """
    refuse_one_name(columns)
    paths = find_files(source, storage_options or {}, ".csv")
    limit = DEFAULT_BLOCK_NBYTES if block_nbytes is None else parse_bytes(block_nbytes)
    try:
        frame = dd.read_csv(
            paths,
            blocksize=limit,
            storage_options=storage_options,
            **options,
        )
    except (OSError, ValueError, TypeError) as err:
        cause = err.__cause__ or err
        raise SourceError(
            f"{paths[0]} cannot be read as CSV with these options: {cause}. Check the options, and its first lines."
        ) from err
    _check_headers(paths, storage_options, options)
    frame = _stamped(frame, storage_options or {})
    if columns is None:
        return frame
    check_columns(columns, frame.columns)
    return frame[list(columns)]


@dataclass(frozen=True)
class CsvBlock:
    """One block of a CSV source: a range of bytes of one file, up to the ends of lines."""

    path: str
    start: int
    n_bytes: int | None
    """None for a whole file."""
    ends: bytes
    """What ends a line."""
    compression: str | None
    part: tuple[Any, ...]
    """What Dask tells its reader of the block: whether it is the first or the last of its file."""
    stamp: Stamp
    """What the file was when it was listed: a changed file is another block."""


@dataclass(frozen=True)
class CsvReader:
    """Reads a block of text, and has Dask's own reader make a frame of it."""

    parse: Callable[..., pd.DataFrame]
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, block: CsvBlock, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read one block.

        Raises
        ------
        SourceError
            If the file is gone, has changed, or cannot be read; the message names it.
        """
        if not is_remote(block.path):  # of an object it would be one more request
            check_unchanged(block.path, block.stamp, self.storage_options)
        try:
            text = retried(self._text, block, path=block.path)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as err:
            raise SourceError(
                f"{block.path}: bytes from {block.start:,} on cannot be read: {scrubbed(err, self.storage_options)}. "
                "Write the file again, or leave it out of the source; the other files are not affected."
            ) from err
        check_unchanged(block.path, block.stamp, self.storage_options)
        return self.parse(text, list(block.part), columns)

    def _text(self, block: CsvBlock) -> bytes:
        options = self.storage_options if is_remote(block.path) else {}
        with fsspec.open(block.path, "rb", compression=block.compression, **options) as file:
            if block.n_bytes is None:
                return bytes(file.read())
            return bytes(read_block(file, block.start, block.n_bytes, block.ends))


def _stamped(frame: dd.DataFrame, storage_options: dict[str, Any]) -> dd.DataFrame:
    """Read the same blocks as Dask would, but each with the stamp of its file."""
    (found,) = frame.expr.find_operations(FromMapProjectable)
    tasks, parts = found.operand("iterables")
    paths = [_path_of(task.args[0]) for task in tasks]
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(min(16, len(distinct))) as pool:
        found_stamps = list(pool.map(lambda path: stamp_of(path, storage_options, anew=False), distinct))
    stamps = dict(zip(distinct, found_stamps, strict=True))
    blocks = []
    for path, task, part in zip(paths, tasks, parts, strict=True):
        file, start, n_bytes, ends = task.args
        blocks.append(CsvBlock(path, start, n_bytes, ends, file.compression, tuple(part), stamps[path]))
    reader = CsvReader(found.operand("func"), storage_options)
    return dd.from_map(
        reader, BlockList(blocks), meta=found.operand("user_meta"), label="read-csv", enforce_metadata=False
    )


def _path_of(file: OpenFile) -> str:
    return str(file.path if isinstance(file.fs, LocalFileSystem) else file.full_name)


def _check_headers(
    paths: Sequence[str], storage_options: dict[str, Any] | None, options: dict[str, Any]
) -> None:
    """Compare the first lines of all files, where they are headers: Dask reads only the first file's."""
    if len(paths) < 2 or "names" in options or options.get("header", 0) is None:
        return
    shaping = (
        "sep",
        "delimiter",
        "quotechar",
        "encoding",
        "compression",
        "header",
        "skiprows",
        "usecols",
        "comment",
    )
    same = {k: options[k] for k in shaping if k in options}

    def header(path: str) -> list[str]:
        try:
            return list(pd.read_csv(path, nrows=0, storage_options=storage_options, **same).columns)
        except (OSError, ValueError) as err:
            raise SourceError(
                f"{path} cannot be read as CSV: {err}. Write it again, or leave it out of the source."
            ) from err

    with ThreadPoolExecutor(min(16, len(paths))) as pool:
        headers = list(pool.map(header, paths))
    for path, found in zip(paths, headers, strict=True):
        if found != headers[0]:
            raise SourceError(
                f"{path} has another header than {paths[0]}: {', '.join(map(repr, found))} instead of "
                f"{', '.join(map(repr, headers[0]))}. Read the files apart, or write them with the same columns."
            )
