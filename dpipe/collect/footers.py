"""The ends of Parquet files: types, row groups and statistics, read once for each file."""

import contextlib
import hashlib
import os
import uuid
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from dpipe.collect.files import UNSTAMPED, Stamp, is_remote, retried, scrubbed, stamp_of
from dpipe.errors import InputError, SourceError


@contextlib.contextmanager
def parquet_file(
    path: str, storage_options: dict[str, Any], dictionaries: Sequence[str] = ()
) -> Iterator[pq.ParquetFile]:
    """Open a file; Arrow reads a local one by itself, without a call into Python for each column."""
    options = {"pre_buffer": False, "page_checksum_verification": True}
    with contextlib.ExitStack() as stack:
        file: Any = path
        if is_remote(path):
            file = stack.enter_context(fsspec.open(path, "rb", **storage_options))
        try:
            parquet = pq.ParquetFile(file, read_dictionary=list(dictionaries), **options)
        except KeyError:  # this file lacks a text column, or spells it in another way: its texts are decoded
            parquet = pq.ParquetFile(file, **options)
        yield stack.enter_context(parquet)


@dataclass(frozen=True)
class Footer:
    """What the end of a Parquet file says: its types as Arrow reads them, its row groups with statistics."""

    schema: pa.Schema
    metadata: Any
    stamp: Stamp = UNSTAMPED
    """What the file was when this was read."""


class Listing:
    """What footers told, kept in a file, so that only new and changed files are opened again.

    Parameters
    ----------
    path : path, optional
        Of a checksum and an Arrow file; one that cannot be read is as none, with a warning. None keeps nothing.

    Raises
    ------
    InputError
        If `path` is no path of a file.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        if path is not None and not isinstance(path, str | os.PathLike):
            raise InputError(
                f"listing={path!r} must be the path of a file, which is made if it is not there."
            )
        self.path = None if path is None else Path(path).expanduser()
        self._known: dict[str, tuple[Stamp, bytes]] = {}
        self._changed = False
        if self.path is None or not self.path.exists():
            return
        if not self.path.is_file():
            raise InputError(f"listing={str(path)!r} is there and is no file. Give the path of a file.")
        try:
            self._known = _listed(self.path)
        except (OSError, pa.ArrowException, ValueError) as err:
            warnings.warn(f"{self.path} is not read: {err}. It is written anew.", stacklevel=2)

    def find(self, path: str, stamp: Stamp) -> Footer | None:
        """Give the footer of a file that has not changed since."""
        known = self._known.get(path)
        if known is None or known[0] != stamp or stamp == UNSTAMPED:
            return None
        parquet = pq.ParquetFile(pa.BufferReader(known[1]))
        return Footer(parquet.schema_arrow.remove_metadata(), parquet.metadata, stamp)

    def keep(self, path: str, footer: Footer) -> None:
        """Remember a footer."""
        if self.path is None:
            return
        sink = pa.BufferOutputStream()
        footer.metadata.write_metadata_file(sink)
        self._known[path] = footer.stamp, sink.getvalue().to_pybytes()
        self._changed = True

    def save(self) -> None:
        """Write what is new, whole or not at all.

        Raises
        ------
        InputError
            If the file cannot be written.
        """
        if self.path is None or not self._changed:
            return
        table = pa.table(
            {
                "path": pa.array(self._known, pa.string()),
                "size": pa.array([stamp[0] for stamp, _ in self._known.values()], pa.int64()),
                "written": pa.array([stamp[1] for stamp, _ in self._known.values()], pa.int64()),
                "footer": pa.array([footer for _, footer in self._known.values()], pa.binary()),
            }
        )
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                sink = pa.BufferOutputStream()
                with pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)
                content = memoryview(sink.getvalue())
                temporary.write_bytes(_checksum(content) + content)
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as err:
            raise InputError(
                f"listing={str(self.path)!r} cannot be written: {err.strerror or err}. Give the path of a file in a "
                "folder that you may write, or leave listing= out."
            ) from err
        self._changed = False


#: Arrow's own files have none: a flipped bit would pass for a footer that is broken, or worse, is not.
_CHECKSUM_NBYTES = 32


def _checksum(content: memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM_NBYTES).digest()


def _listed(path: Path) -> dict[str, tuple[Stamp, bytes]]:
    """Read what a listing has kept, by the path of each file."""
    content = memoryview(path.read_bytes())
    if content[:_CHECKSUM_NBYTES] != _checksum(content[_CHECKSUM_NBYTES:]):
        raise ValueError("its checksum is wrong")
    rows = pa.ipc.open_file(pa.py_buffer(content[_CHECKSUM_NBYTES:])).read_all().to_pydict()
    stamps = zip(rows["size"], rows["written"], strict=True)
    return dict(zip(rows["path"], zip(stamps, rows["footer"], strict=True), strict=True))


def read_footers(
    paths: list[str], storage_options: dict[str, Any], on_corrupt: str, listing: Listing | None = None
) -> tuple[list[str], list[Footer]]:
    """Read the footers of all files; give the files that have one, and theirs."""
    kept = Listing() if listing is None else listing
    with ThreadPoolExecutor(min(16, len(paths))) as pool:
        found = list(pool.map(lambda path: _footer(path, storage_options, on_corrupt, kept), paths))
    pairs = [(path, footer) for path, footer in zip(paths, found, strict=True) if footer is not None]
    if not pairs:
        raise SourceError(
            f"None of the {len(paths)} files can be read as Parquet, the first one being {paths[0]}. "
            "Write them again."
        )
    return [path for path, _ in pairs], [footer for _, footer in pairs]


def _footer(path: str, storage_options: dict[str, Any], on_corrupt: str, listing: Listing) -> Footer | None:
    try:
        stamp = stamp_of(path, storage_options, anew=False)
        known = listing.find(path, stamp)
        if known is not None:
            return known
        footer = retried(_read_footer, path, storage_options, stamp, path=path)
        listing.keep(path, footer)
        return footer
    except (OSError, pa.ArrowException) as err:
        if isinstance(err, FileNotFoundError) and on_corrupt != "skip":
            raise SourceError(
                f"There is no file {path}. Check its name, or leave it out of the source."
            ) from err
        what = f"{path} cannot be read as Parquet: {scrubbed(err, storage_options)}"
        if on_corrupt == "skip":
            warnings.warn(f"{what} The file is left out.", stacklevel=2)
            return None
        raise SourceError(
            f"{what} Write it again, leave it out of the source, or go on without it: "
            "read_parquet(..., on_corrupt='skip')."
        ) from err


def _read_footer(path: str, storage_options: dict[str, Any], stamp: Stamp) -> Footer:
    with parquet_file(path, storage_options) as parquet:
        return Footer(parquet.schema_arrow.remove_metadata(), parquet.metadata, stamp)
