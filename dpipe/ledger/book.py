"""The ledger of a workdir: records that are only ever added, each whole or not there at all.

Each process writes a file of its own, so that workers on several machines need no lock between them, on
network file systems either, where databases of one file are not safe. A record is a line of JSON that says what
it is, and its content with a checksum: what a killed process, or a full disk, has left half written is
passed over.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import threading
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from dpipe.errors import LedgerError
from dpipe.sizes import format_bytes

#: Old records are cleared away when they are more than what is in use, and more than this.
_WORTH_CLEARING_NBYTES = 64 * 2**20


class Place(NamedTuple):
    """Where the content of a record lies."""

    path: str
    start: int
    length: int
    check: int

    def read(self) -> bytes:
        """Give the content.

        Raises
        ------
        LedgerError
            If it is gone or damaged.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.start)
                content = file.read(self.length)
        except OSError as err:
            raise LedgerError(f"{self.path} cannot be read: {err}. Run again: it is done anew.") from err
        if len(content) != self.length or zlib.crc32(content) != self.check:
            raise LedgerError(f"{self.path} is damaged at byte {self.start:,}. Run again: it is done anew.")
        return content


@dataclass(frozen=True)
class Pen:
    """What a task needs to write a record, in whatever process it runs."""

    folder: str
    run: int
    """Counts the runs of a workdir; later records replace earlier ones of the same key."""

    def write(self, key: str, content: bytes, **said: Any) -> None:
        """Add a record.

        Raises
        ------
        LedgerError
            If it cannot be written: the disk is full, the folder is gone.
        """
        _writer(self).write({"key": key, **said}, content)


class _Writer:
    """One process's file of a run."""

    def __init__(self, pen: Pen) -> None:
        name = f"{pen.run:06d}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}.log"
        self.path = os.path.join(pen.folder, name)
        self._lock = threading.Lock()
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as err:
            raise _unwritable(self.path, err) from err
        self._end = 0

    def write(self, said: dict[str, Any], content: bytes) -> None:
        header = {**said, "length": len(content), "check": zlib.crc32(content)}
        left = memoryview(json.dumps(header, separators=(",", ":")).encode() + b"\n" + content + b"\n")
        size = len(left)
        with self._lock:
            try:
                while left:
                    left = left[os.pwrite(self._file, left, self._end + size - len(left)) :]
            except OSError as err:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._end)
                raise _unwritable(self.path, err) from err
            self._end += size

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._file)


def _unwritable(path: str, err: OSError) -> LedgerError:
    folder = os.path.dirname(path)
    try:
        free = f", where {format_bytes(shutil.disk_usage(folder).free)} are free"
    except OSError:
        free = ""
    return LedgerError(
        f"The ledger in {folder}{free}, cannot be written: {err.strerror or err}. Make room or choose another "
        "workdir, and run again: what was recorded so far is not done again."
    )


_writers: dict[tuple[Pen, int], _Writer] = {}
_writers_lock = threading.Lock()


def _writer(pen: Pen) -> _Writer:
    key = pen, os.getpid()
    with _writers_lock:
        found = _writers.get(key)
        if found is None:
            found = _writers[key] = _Writer(pen)
        return found


class Ledger:
    """What the runs of a workdir have recorded, held by one run at a time.

    Parameters
    ----------
    workdir : path
        The ledger is its folder ``ledger``.

    Raises
    ------
    LedgerError
        If another run holds it, or it cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with Ledger(folder) as ledger:
    ...     ledger.pen.write("a key", b"what was found")
    >>> with Ledger(folder) as ledger:
    ...     ledger.find("a key").read()
    b'what was found'
    """

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        self.folder = Path(workdir).resolve() / "ledger"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.folder / "lock")
        except OSError as err:
            raise _unwritable(str(self.folder / "lock"), err) from err
        self._found = records(self.folder)
        self._used: set[str] = set()
        runs = [int(path.name[:6]) for path in _logs(self.folder)]
        self.pen = Pen(str(self.folder), max(runs, default=0) + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(clear=error is None)

    def find(self, key: str) -> Place | None:
        """Give the place of a record of earlier runs; None if there is none."""
        found = self._found.get(key)
        self._used.add(key)
        return found

    def close(self, *, clear: bool = False) -> None:
        """Let others have the ledger; `clear` what this run had no use for, where that is much."""
        with _writers_lock:
            for key in [key for key in _writers if key[0] == self.pen]:
                _writers.pop(key).close()
        try:
            if clear:
                self._clear()
        finally:
            os.close(self._lock)

    def _clear(self) -> None:
        found = records(self.folder)
        own = f"{self.pen.run:06d}-"
        used = {
            key: place
            for key, place in found.items()
            if key in self._used or os.path.basename(place.path).startswith(own)
        }
        held = sum(path.stat().st_size for path in _logs(self.folder))
        needed = sum(place.length for place in used.values())
        if held - needed <= max(needed, _WORTH_CLEARING_NBYTES):
            return
        old = _logs(self.folder)
        pen = Pen(self.pen.folder, self.pen.run + 1)
        try:
            for key, place in used.items():
                pen.write(key, place.read())
        except LedgerError:
            return  # the old ones stay
        finally:
            with _writers_lock:
                writer = _writers.pop((pen, os.getpid()), None)
            if writer is not None:
                writer.close()
        for path in old:
            path.unlink()


class Reading:
    """A ledger that is looked into without holding it: for plans, while another run may be at work."""

    pen: Pen | None = None

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        self._found = records(Path(workdir).resolve() / "ledger")

    def find(self, key: str) -> Place | None:
        """Give the place of a record; None if there is none."""
        return self._found.get(key)


def _logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.log"))


def records(folder: Path) -> dict[str, Place]:
    """Give the places of all records of a ledger, without holding it: later ones replace earlier ones."""
    found: dict[str, Place] = {}
    for path in _logs(folder):
        found.update(_records_of(path))
    return found


def _records_of(path: Path) -> Iterator[tuple[str, Place]]:
    """Go through a file, up to what is only half there."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while line := file.readline():
            try:
                said = json.loads(line)
                place = Place(str(path), file.tell(), int(said["length"]), int(said["check"]))
                key = str(said["key"])
            except (ValueError, KeyError, TypeError):
                return
            end = place.start + place.length + 1
            if end > size:
                return
            yield key, place
            file.seek(end)


def _locked(path: Path) -> int:
    """Hold a lock that ends with this process, however it ends."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        holder = os.read(file, 200).decode(errors="replace")
        os.close(file)
        if not isinstance(err, BlockingIOError):
            raise
        raise LedgerError(
            f"Another run works in {path.parent.parent} ({holder or 'it has just begun'}). Wait for it, stop it, or "
            "choose another workdir: two runs on one workdir would overwrite each other's results."
        ) from err
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return file
