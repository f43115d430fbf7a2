"""Read CSV files as one lazy Dask DataFrame."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask.dataframe as dd
import pandas as pd

from dpipe.collect.files import find_files
from dpipe.errors import InputError, SourceError
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
    paths = find_files(source, storage_options or {}, ".csv")
    limit = DEFAULT_BLOCK_NBYTES if block_nbytes is None else parse_bytes(block_nbytes)
    try:
        frame = dd.read_csv(
            paths,
            blocksize=limit,
            storage_options=storage_options,
            **options,
        )
    except (OSError, ValueError) as err:
        raise SourceError(
            f"{paths[0]} cannot be read as CSV: {err}. Check its first lines and the options."
        ) from err
    _check_headers(paths, storage_options, options)
    if columns is None:
        return frame
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise InputError(
            f"There is no column {', '.join(map(repr, missing))} in the source. "
            f"It has: {', '.join(map(repr, frame.columns))}."
        )
    return frame[list(columns)]


def _check_headers(
    paths: Sequence[str], storage_options: dict[str, Any] | None, options: dict[str, Any]
) -> None:
    """Compare the first lines of all files, where they are headers: Dask reads only the first file's."""
    if len(paths) < 2 or {"header", "names", "skiprows", "usecols", "comment"} & options.keys():
        return
    same = {
        k: options[k] for k in ("sep", "delimiter", "quotechar", "encoding", "compression") if k in options
    }

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
