"""The files of a scoring run: inputs, the names of their outputs, and what is finished already."""

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpipe.collect.files import find_files, stamp_of
from dpipe.deploy.score_file import FINGERPRINT, open_file, told
from dpipe.errors import InputError


@dataclass(frozen=True)
class Input:
    """An input file: where its output goes, and what its footer says."""

    source: str
    destination: Path
    fingerprint: str
    done_rows: int | None = None
    """Rows of a finished output; None if there is work to do."""
    schema: pa.Schema | None = None
    row_groups: tuple[int, ...] = ()
    """Rows of each."""
    error: str = ""
    """Why the footer cannot be read; empty if it can."""


def listed(source: Any) -> list[str]:
    """List the input files, once each, by paths that mean the same on every worker.

    Raises
    ------
    SourceError
        If nothing matches.
    """
    found = find_files(source, {}, ".parquet")
    return list(dict.fromkeys(path if "://" in path else os.path.abspath(path) for path in found))


def made_destination(destination: str | os.PathLike[str], source: Any, sources: Sequence[str]) -> Path:
    """Make the folder of the outputs.

    Raises
    ------
    InputError
        If it cannot be written, or if it and the source lie in each other.
    """
    folder = Path(destination).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{uuid.uuid4().hex[:8]}"
        probe.touch()
        probe.unlink()
    except OSError as err:
        raise InputError(
            f"The destination {folder} cannot be written: {err}. Choose a folder that you may write."
        ) from err
    here = folder.resolve()
    entries = [source] if isinstance(source, str | os.PathLike) else list(source)
    folders = [Path(entry).expanduser() for entry in entries if "://" not in str(entry)]
    inside = [str(entry) for entry in folders if entry.is_dir() and here.is_relative_to(entry.resolve())]
    inside += [path for path in sources if "://" not in path and Path(path).resolve().is_relative_to(here)]
    if inside:
        raise InputError(
            f"The destination {folder} and the source {inside[0]} lie in each other: the next run would take "
            "outputs for inputs. Choose a folder apart from the source."
        )
    return folder


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other runs out of the destination, and delete what killed ones left there.

    Raises
    ------
    InputError
        If another run is writing there.
    """
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise InputError(
                f"Another run is writing to {folder}. Wait for its end, or choose another destination."
            ) from err
        except OSError:
            pass  # a file system without locks: what seems left over may be in use
        else:
            for leftover in folder.glob(".*." + 8 * "[0-9a-f]" + ".tmp"):
                leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(held)


def inspected(sources: Sequence[str], folder: Path, made_from: Mapping[str, Any]) -> list[Input]:
    """Look for finished outputs, and read the footers of the other inputs.

    Parameters
    ----------
    sources : sequence of str
        Paths and URLs.
    folder : pathlib.Path
        Where the outputs are.
    made_from : mapping
        What else an output depends on; strict JSON.

    Raises
    ------
    InputError
        If an output's place is taken by a file of another kind.
    """
    names = output_names(sources)

    def inspect(source: str) -> Input:
        path = folder / names[source]
        try:
            stamp = stamp_of(source, {}, anew=False)  # they have just been listed
        except OSError as err:
            return Input(source, path, "", error=told(err))
        fingerprint = json.dumps({"source": [source, *stamp], **made_from}, sort_keys=True)
        return _with_footer(Input(source, path, fingerprint, _done_rows(path, fingerprint)))

    with ThreadPoolExecutor(min(16, len(sources))) as pool:
        return list(pool.map(inspect, sources))


def output_names(sources: Sequence[str]) -> dict[str, str]:
    """Name the output of each input.

    Examples
    --------
    >>> output_names(["2024/a.parquet", "2025/a.parquet", "2025/b.parquet"])
    {'2024/a.parquet': '2024-a.parquet', '2025/a.parquet': '2025-a.parquet', '2025/b.parquet': 'b.parquet'}
    """
    names = {source: os.path.basename(source) for source in sources}
    for longer in (_with_folder, _with_hash):
        taken = list(names.values())
        names = {source: longer(source) if taken.count(name) > 1 else name for source, name in names.items()}
    return names


def _with_folder(source: str) -> str:
    folder, name = os.path.split(os.path.abspath(source))
    return f"{os.path.basename(folder)}-{name}"


def _with_hash(source: str) -> str:
    stem, ending = os.path.splitext(os.path.basename(source))
    return f"{stem}-{sha256(os.path.abspath(source).encode()).hexdigest()[:12]}{ending}"


def _done_rows(path: Path, fingerprint: str) -> int | None:
    """Give the rows of an output that needs not be made again; else None."""
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return None  # not there, or damaged since
    mine = (metadata.metadata or {}).get(FINGERPRINT)
    if mine is None:
        raise InputError(
            f"{path} is there already, and was not written by score_files. Move it away, or choose another "
            "destination."
        )
    return int(metadata.num_rows) if mine == fingerprint.encode() else None


def _with_footer(item: Input) -> Input:
    if item.error or item.done_rows is not None:
        return item
    try:
        with open_file(item.source) as file:
            metadata = pq.read_metadata(file)
            schema = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as err:
        return replace(item, error=told(err))
    groups = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    return replace(item, schema=schema, row_groups=groups)
