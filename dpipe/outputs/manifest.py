"""Manifests: what files a result has, and what is in them; written last, so that without one it is not finished."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpipe.errors import LedgerError, OutputError
from dpipe.ledger.book import Ledger
from dpipe.ledger.codec import decode
from dpipe.sizes import counted

#: Readers of Parquet folders pass over names that begin so.
MANIFEST = "_manifest.json"
#: What a bundle calls its own.
_OF_A_BUNDLE = "manifest.json"
#: Where the ledger of what is not finished lies, inside of the folder of a result.
UNFINISHED = ".unfinished"
_PIECE_NBYTES = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    """One file of a result."""

    name: str
    sha256: str
    nbytes: int
    rows: int | None = None
    checksum: int | None = None
    """The hashes of its rows, added modulo 2**64."""

    @classmethod
    def of(cls, path: Path, rows: int | None = None) -> "FileEntry":
        """Read a file, a piece at a time."""
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_PIECE_NBYTES):
                digest.update(piece)
            nbytes = file.tell()
        return cls(path.name, digest.hexdigest(), nbytes, rows)

    def told(self) -> dict[str, Any]:
        """Give what a manifest says of it."""
        said: dict[str, Any] = {"sha256": self.sha256, "nbytes": self.nbytes}
        said |= {} if self.rows is None else {"rows": self.rows}
        return said if self.checksum is None else {**said, "checksum": f"{self.checksum:016x}"}


@dataclass(frozen=True)
class Verified:
    """What came of checking a result.

    Attributes
    ----------
    path : Path
    n_files : int
        Files that the manifest names.
    n_rows : int or None
        Rows that it names; None for what has none, as a bundle.
    problems : tuple of str
        One for each file that is not as it was written; empty if all is well.
    checksum : int or None
        The hashes of all rows, added modulo 2**64: the same for the same rows in other files, or in another order.
    """

    path: Path
    n_files: int
    n_rows: int | None
    problems: tuple[str, ...]
    checksum: int | None = None

    @property
    def ok(self) -> bool:
        """Whether every file is as it was written."""
        return not self.problems

    def __str__(self) -> str:
        """Say it."""
        rows = "" if self.n_rows is None else f" with {counted(self.n_rows, 'row')}"
        if self.ok:
            return f"{self.path}: {counted(self.n_files, 'file')}{rows}, as written"
        lines = [
            f"{self.path}: {counted(len(self.problems), 'problem')} in {counted(self.n_files, 'file')}{rows}"
        ]
        return "\n".join([*lines, *(f"  {problem}" for problem in self.problems)])


def verify(path: str | os.PathLike[str]) -> Verified:
    """Check a result against its manifest: every byte, and every row.

    Parameters
    ----------
    path : path
        A folder that `dpipe.write_parquet`, `dpipe.write_zarr` or a deployment has written.

    Returns
    -------
    Verified
        With a problem for each file that is missing, cut short, changed, or not of the result.

    Raises
    ------
    OutputError
        If there is no manifest that can be read: the result was never finished, or is none.

    Examples
    --------
    >>> import tempfile, pandas as pd, dask.dataframe as dd, dpipe
    >>> folder = tempfile.mkdtemp() + "/out"
    >>> _ = dpipe.write_parquet(dd.from_pandas(pd.DataFrame({"a": range(9)}), npartitions=2), folder)
    >>> verify(folder).ok
    True
    """
    folder = Path(path)
    files = read_manifest(folder)["files"]
    problems = [problem for name, said in files.items() if (problem := _problem(folder, name, said))]
    found = {
        item.relative_to(folder).as_posix()
        for item in folder.rglob("*")
        if item.is_file() and not item.relative_to(folder).parts[0].startswith(".")
    }
    problems += [
        f"{name}: not of this result" for name in sorted(found - files.keys() - {MANIFEST, _OF_A_BUNDLE})
    ]
    counts = [said["rows"] for said in files.values() if "rows" in said]
    sums = [int(said["checksum"], 16) for said in files.values() if "checksum" in said]
    total = sum(sums) % 2**64 if sums and len(sums) == len(counts) else None
    return Verified(folder, len(files), sum(counts) if counts else None, tuple(problems), total)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a result.

    Raises
    ------
    OutputError
        If there is none, or it is broken.
    """
    bundled = not (folder / MANIFEST).exists() and (folder / _OF_A_BUNDLE).exists()
    path = folder / (_OF_A_BUNDLE if bundled else MANIFEST)
    try:
        said = json.loads(path.read_bytes())
        if not all(isinstance(about["nbytes"], int) and about["sha256"] for about in said["files"].values()):
            raise ValueError("it does not tell sizes")
    except (FileNotFoundError, NotADirectoryError) as err:
        raise OutputError(
            f"{folder} has no {MANIFEST}: it was not finished, or is no result of dpipe. Write it again: what is "
            "done already stays."
        ) from err
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise OutputError(f"{path} cannot be read: {err!r}. Write the result again.") from err
    return dict(said)


def _problem(folder: Path, name: str, said: dict[str, Any]) -> str:
    path = folder / name
    try:
        size = path.stat().st_size
        if size != said["nbytes"]:
            return f"{name}: {size:,} bytes instead of {said['nbytes']:,}"
        if FileEntry.of(path).sha256 != said["sha256"]:
            return f"{name}: changed since it was written"
        if "rows" in said and (rows := pq.read_metadata(path).num_rows) != said["rows"]:
            return f"{name}: {rows:,} rows instead of {said['rows']:,}"
    except FileNotFoundError:
        return f"{name}: missing"
    except (OSError, pa.ArrowException) as err:
        return f"{name}: cannot be read: {err}"
    return ""


def write_manifest(
    folder: Path, entries: Sequence[FileEntry], keys: Sequence[str], *, rows: int | None = None
) -> None:
    """Say what a result is made of, whole or not at all; this makes it finished."""
    said: dict[str, Any] = {
        "format_version": 1,
        **({} if rows is None else {"rows": rows}),
        "files": {entry.name: entry.told() for entry in entries},
        "blocks": list(keys),
    }
    temporary = folder / f".{MANIFEST}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(said, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)


def kept_entry(ledger: Ledger, folder: Path, key: str) -> FileEntry | None:
    """Give the file that an earlier call has written, if it is there and as it was."""
    place = ledger.find(key)
    if place is None:
        return None
    try:
        entry: FileEntry = decode(place.read())
    except LedgerError:
        return None
    path = folder / entry.name
    return entry if path.is_file() and FileEntry.of(path).sha256 == entry.sha256 else None


def gathered(entries: Sequence[FileEntry]) -> tuple[FileEntry, ...]:
    """Give the entries of all blocks: a task."""
    return tuple(entries)


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds what no earlier call has written."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file. Choose another folder.")
    known = (MANIFEST, UNFINISHED)
    others = [p.name for p in folder.iterdir()] if folder.exists() else []
    if others and not set(known) & set(others):
        # also to be overwritten: readers of the folder would be given both
        raise OutputError(
            f"{folder} holds other files, such as {others[0]}, which are no result of dpipe. Choose another folder, or "
            "remove them."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"{folder} cannot be made: {err}. Choose a folder that you may write.") from err


def finished(folder: Path) -> dict[str, Any] | None:
    """Give the manifest of a folder; None if it has none."""
    return read_manifest(folder) if (folder / MANIFEST).exists() else None


def refuse_other(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds the finished result of other data."""
    if not overwrite:
        raise OutputError(
            f"{folder} holds a finished result of other data. Choose another folder, or pass overwrite=True."
        )
