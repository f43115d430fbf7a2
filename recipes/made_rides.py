"""Made-up rides in the schema of the New York TLC's yellow-cab files, with a known truth.

A recipe runs on made rides as on the public files, without change. Made rides need no
download, come in any number, and have what real ones lack: for each ride the probability
with which it was tipped, hence the best score that any model can reach.

Rides are made one row group at a time, each from a seed of its own, so memory stays small
and a row group depends on `rows`, on `seed` and on its place only.
"""

import contextlib
import numbers
import os
import shutil
import time
import uuid
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import dpipe
from recipes.made_row_group import SCHEMA, made_row_group, month_demand, tip_probability

__all__ = ["ROWS_PER_FILE", "ROWS_PER_GROUP", "SCHEMA", "made_rides", "tip_probability"]

ROWS_PER_FILE = 1_000_000
ROWS_PER_GROUP = 100_000

# Part of the default folder's name: raise it with any change that makes other rides, or else
# a cached set would be judged by another truth than the one it was made with.
_VERSION = 1
_DEAD_AFTER_S = 3600.0
_FIRST_MONTH = np.datetime64("2025-01", "M")


class RideError(dpipe.DpipeError, ValueError):
    """Rides cannot be made as they are asked for."""


def made_rides(rows: int, folder: str | os.PathLike[str] | None = None, *, seed: int = 0) -> list[Path]:
    """Write made rides as Parquet files, once, and return the paths of the files.

    Each file holds a calendar month from January 2025 on, in the order of the pickups, with
    at most 1,000,000 rides in row groups of 100,000.

    Parameters
    ----------
    rows : int
        How many rides, at least 1. 10 million take 1.4 GB.
    folder : path, default: `dpipe/made-rides-v1` in the user's cache folder
        Where the set's own folder `rides-{rows}-{seed}` lies, or is to lie. The cache folder is
        `$XDG_CACHE_HOME`, or else `~/.cache`.
    seed : int, default 0
        Another seed makes other rides.

    Returns
    -------
    list of pathlib.Path
        The files, in the order of their months. If they were there already, nothing is written.

    Raises
    ------
    RideError
        If `rows` or `seed` is not such a whole number, or if `folder` cannot be written to.
    FileExistsError
        If the set's folder is there, but some of its files are not.

    Notes
    -----
    The folder is named at the end, when all its files are whole: what a killed writer leaves
    (`.rides-*`) is never taken for a set, and the next writer deletes it after an hour.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in made_rides(10, folder)]
    ['yellow_tripdata_2025-01.parquet']
    """
    n_rows, seed = _whole("rows", rows, 1), _whole("seed", seed, 0)
    parent = _cache() if folder is None else Path(folder).expanduser()
    target = parent / f"rides-{n_rows}-{seed}"
    n_files = -(-n_rows // ROWS_PER_FILE)
    paths = [target / f"yellow_tripdata_{_FIRST_MONTH + i}.parquet" for i in range(n_files)]
    if all(path.is_file() for path in paths):
        return paths
    if target.exists():
        raise FileExistsError(
            f"{target} should hold {len(paths)} Parquet files of made rides, but lacks some. "
            "Delete that folder, and they will be made anew."
        )
    unfinished = _new_folder(parent, target.name)
    try:
        for i, path in enumerate(paths):
            _write_file(unfinished / path.name, i, min(ROWS_PER_FILE, n_rows - i * ROWS_PER_FILE), seed)
        unfinished.rename(target)
    except OSError:
        # Another process may have finished the same set first; its files are the same.
        if not all(path.is_file() for path in paths):
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return paths


def _whole(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise RideError(f"{name} must be a whole number, {least} or more, but is {value!r}.")
    return int(value)


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "dpipe" / f"made-rides-v{_VERSION}"


def _new_folder(parent: Path, name: str) -> Path:
    """Make a new folder beside the final one, and delete what killed writers of the same set left."""
    new = parent / f".{name}-{uuid.uuid4().hex}"
    try:
        new.mkdir(parents=True)
        for old in parent.glob(f".{name}-*"):
            # A writer that lives starts a file every few seconds. One that finishes right now
            # renames its folder under our hands.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - old.stat().st_mtime > _DEAD_AFTER_S:
                    shutil.rmtree(old, ignore_errors=True)
    except OSError as err:
        raise RideError(
            f"Cannot make the folder {new} for the rides: {err}. "
            "Pass a folder that you may write to, as in made_rides(rows, folder='rides')."
        ) from err
    return new


def _write_file(path: Path, month: int, n_rows: int, seed: int) -> None:
    # Plain values, not compressed: 139 bytes a ride, about what it takes in memory. A benchmark then
    # measures the program that reads them rather than a codec, a ride weighs what its schema
    # says, and 10 million are over 1 GB. Text alone is read faster from a dictionary.
    options = {"compression": "none", "use_dictionary": ["store_and_fwd_flag"]}
    clock = month_demand(_FIRST_MONTH + month)
    with pq.ParquetWriter(path, SCHEMA, **options) as writer:
        for group, start in enumerate(range(0, n_rows, ROWS_PER_GROUP)):
            stop = min(start + ROWS_PER_GROUP, n_rows)
            rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(month, group))))
            share = (np.arange(start, stop) + rng.random(stop - start)) / n_rows
            writer.write_table(made_row_group(np.interp(share, *clock), rng), row_group_size=ROWS_PER_GROUP)
