"""Write Zarr chunk by chunk: each chunk whole or not there, and nothing that opens before all are."""

import math
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr
from dask._task_spec import convert_legacy_graph  # parts of Dask still write graphs of tuples
from dask.delayed import Delayed
from dask.task_spec import List, TaskRef
from distributed import Client

from dpipe.cluster.cluster import Cluster, takes_cluster
from dpipe.cluster.local import compute, find_place, running
from dpipe.errors import ConservationError, InputError, OutputError
from dpipe.ledger.book import Ledger
from dpipe.ledger.codec import encode
from dpipe.ledger.fingerprint import Fingerprinter, Unknowable, joined
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
from dpipe.run.graph import GraphBuilder
from dpipe.sizes import parse_bytes

#: The one file that makes a folder an array; it is put there last.
_METADATA = "zarr.json"


@takes_cluster
def write_zarr(
    array: da.Array,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    memory: int | str | None = None,
    client: Client | Cluster | None = None,
) -> Path:
    """Write an array as a Zarr store of format 3, one chunk a block, that can be checked by `dpipe.verify`.

    Parameters
    ----------
    array : dask.array.Array
        Of numbers, booleans or times, with chunks of one size along each axis; the last may be smaller.
    path : path
        A folder, made if it is not there. What an earlier call could not finish is kept: only the chunks that are
        missing, or whose source or functions have changed, are written. It opens as an array when all are there.
    overwrite : bool, default False
        Replace what is there already.
    memory, client
        As for `dpipe.fit`.

    Returns
    -------
    pathlib.Path
        `path`.

    Raises
    ------
    OutputError
        If the folder holds another result or other files, or cannot be written.
    InputError
        If `array` is not a Dask array, or its chunks or values cannot be those of a Zarr array.

    Examples
    --------
    >>> import tempfile, dpipe
    >>> folder = write_zarr(da.arange(10, chunks=4), tempfile.mkdtemp() + "/out")
    >>> zarr.open_array(folder, mode="r")[2:5].tolist()
    [2, 3, 4]
    >>> dpipe.verify(folder).ok
    True
    """
    _check_array(array)
    folder = Path(path)
    place = find_place(client, None if memory is None else parse_bytes(memory), array.npartitions, None)
    check_folder(folder, overwrite)
    with Ledger(folder / UNFINISHED) as ledger:
        _write_chunks(array, folder, ledger, place, overwrite=overwrite)
    shutil.rmtree(folder / UNFINISHED)
    return folder


def _check_array(array: Any) -> None:
    if not isinstance(array, da.Array):
        raise InputError(f"write_zarr takes a Dask array, got a {type(array).__name__}.")
    if array.dtype.hasobject:
        raise InputError(
            f"write_zarr: values of type {array.dtype} have no fixed size. Convert them to numbers."
        )
    for axis, sizes in enumerate(array.chunks):
        if any(math.isnan(size) for size in sizes):
            raise InputError(
                f"write_zarr: the chunks along axis {axis} are of unknown size. Call array.compute_chunk_sizes() "
                "first."
            )
        if any(size != sizes[0] for size in sizes[:-1]) or sizes[-1] > sizes[0]:
            raise InputError(
                f"write_zarr: the chunks along axis {axis} are of different sizes, {sizes[:4]}. Zarr has one size: "
                f"array.rechunk({{{axis}: {max(sizes)}}})."
            )


def _write_chunks(array: da.Array, folder: Path, ledger: Ledger, place: Any, *, overwrite: bool) -> None:
    keys = _chunk_keys(array)
    before = finished(folder)
    if before is not None:
        if not overwrite and before.get("blocks") == keys:
            return
        refuse_other(folder, overwrite)
        (folder / MANIFEST).unlink()
        (folder / _METADATA).unlink(missing_ok=True)
    draft = folder / UNFINISHED / f"array-{uuid.uuid4().hex[:8]}"
    zarr.create_array(
        store=draft,
        shape=array.shape,
        chunks=tuple(max(sizes[0], 1) for sizes in array.chunks),
        dtype=array.dtype,
        zarr_format=3,
    )
    graph = GraphBuilder(uuid.uuid4().hex[:16])
    (optimised,) = dask.optimize(array)
    graph.tasks.update(optimised.__dask_graph__())
    writer = graph.hold("writer", _ChunkWriter(str(folder), str(draft), ledger.pen))
    tasks = []
    for i, (place_of, key) in enumerate(zip(np.ndindex(array.numblocks), keys, strict=True)):
        kept = kept_entry(ledger, folder, key)
        block = None if kept is not None else TaskRef((optimised.name, *place_of))
        origin = tuple(sum(sizes[:j]) for sizes, j in zip(array.chunks, place_of, strict=True))
        tasks.append(graph.add_block("write-zarr", i, _write, writer, block, place_of, origin, key, kept))
    every = graph.add("written", gathered, List(*map(TaskRef, tasks)))
    with running(place, watched=False) as chosen:
        entries = compute(Delayed(every, graph.tasks), chosen, place.threads)
    _commit(folder, draft, entries, keys)


def _chunk_keys(array: da.Array) -> list[str]:
    """Fingerprint what each chunk is made of, and where it goes."""
    (optimised,) = dask.optimize(array)
    found = zip(block_fingerprints(optimised), np.ndindex(array.numblocks), strict=True)
    return [
        joined("zarr", made, str(array.dtype), str(array.chunks), str(place_of)) for made, place_of in found
    ]


def block_fingerprints(array: da.Array) -> list[str]:
    """Fingerprint what computes each block of an array; what cannot be looked into is new each time."""
    graph = convert_legacy_graph(dict(array.__dask_graph__()))
    taker, known = Fingerprinter(), dict[Any, str]()
    found = []
    for place in np.ndindex(array.numblocks):
        try:
            found.append(_followed(taker, graph, (array.name, *place), known))
        except Unknowable:
            found.append(uuid.uuid4().hex)
    return found


def _followed(taker: Fingerprinter, tasks: Any, output: Any, known: dict[Any, str]) -> str:
    """Fingerprint what one key of a graph computes.

    Raises
    ------
    Unknowable
        If a task of it cannot be looked into.
    """
    stack = [output]
    while stack:
        key = stack[-1]
        if key in known or key not in tasks:
            known.setdefault(key, str(key))
            stack.pop()
        elif waits := [k for k in tasks[key].dependencies if k not in known]:
            stack += waits
        else:
            known[stack.pop()] = taker.of_task(tasks[key], known)
    return known[output]


@dataclass(frozen=True)
class _ChunkWriter:
    folder: str
    draft: str
    pen: Any

    def write(self, block: np.ndarray, place_of: Sequence[int], origin: Sequence[int], key: str) -> FileEntry:
        name = "/".join(["c", *map(str, place_of)])
        destination = Path(self.folder) / name
        try:
            # a chunk of zeros is a file, too: it can be verified
            array = zarr.open_array(self.draft, mode="r+").with_config({"write_empty_chunks": True})
            where = tuple(slice(a, a + n) for a, n in zip(origin, block.shape, strict=True))
            array[where] = block
            if np.asarray(array[where]).tobytes() != block.tobytes():
                raise ConservationError(
                    f"write_zarr: the chunk at {tuple(place_of)} does not hold what was written to it. The disk or "
                    f"its driver may be failing; write it again elsewhere."
                )
            made = Path(self.draft) / name
            with made.open("rb+") as file:
                os.fsync(file.fileno())
            found = FileEntry.of(made)
            destination.parent.mkdir(parents=True, exist_ok=True)
            made.replace(destination)
        except OSError as err:
            raise OutputError(
                f"{destination} cannot be written: {err}. Make room, and write again: what is done already stays."
            ) from err
        entry = FileEntry(name, found.sha256, found.nbytes)
        self.pen.write(key, encode(entry), what="chunk", rows=0)
        return entry


def _write(
    writer: _ChunkWriter,
    block: Any,
    place_of: Sequence[int],
    origin: Sequence[int],
    key: str,
    kept: FileEntry | None,
) -> FileEntry:
    return kept if kept is not None else writer.write(np.asarray(block), place_of, origin, key)


def _commit(folder: Path, draft: Path, entries: Sequence[FileEntry], keys: Sequence[str]) -> None:
    """Remove what is left of other calls, and make the folder an array."""
    names = {entry.name for entry in entries}
    for path in (folder / "c").rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in names:
            path.unlink()
    found = FileEntry.of(draft / _METADATA)
    os.replace(draft / _METADATA, folder / _METADATA)
    write_manifest(folder, [*entries, FileEntry(_METADATA, found.sha256, found.nbytes)], keys)
