"""Write datasets as Zarr stores in other chunks: within a budget, whole or not at all, going on after a stop."""

import contextlib
import os
import shutil
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask.delayed import Delayed
from dask.task_spec import List, TaskRef
from distributed import Client

from dpipe.blocks.copies import CopyPlan, Region, regions, touching
from dpipe.cluster.cluster import Cluster, takes_cluster
from dpipe.cluster.local import Place, compute, find_place
from dpipe.cluster.specification import Specification
from dpipe.collect.array_files import PACKING
from dpipe.collect.loads import divide_tasks
from dpipe.collect.zarr_store import stored_array
from dpipe.errors import LedgerError
from dpipe.ledger.book import Ledger
from dpipe.ledger.codec import decode
from dpipe.ledger.fingerprint import Fingerprinter, Unknowable, joined
from dpipe.outputs.manifest import (
    MANIFEST,
    UNFINISHED,
    FileEntry,
    check_folder,
    finished,
    gathered,
    refuse_other,
    write_manifest,
)
from dpipe.outputs.rechunk_plan import (
    CHUNK_NBYTES,
    RechunkPlan,
    check_room,
    lazy_names,
    opened,
    planned,
    read_together,
    target_chunks,
)
from dpipe.outputs.regions import Between, PlacedLoad, RegionWriter, write_region
from dpipe.outputs.zarr import block_fingerprints
from dpipe.run.graph import GraphBuilder
from dpipe.sizes import parse_bytes

#: The store in the making, inside of the folder of what is not finished.
DRAFT = "store"
#: Key of the record that tells what a region could take.
_LIMIT = "region limit"


def plan_rechunk(
    source: Any,
    path: str | os.PathLike[str],
    *,
    chunks: Mapping[str, int] | None = None,
    access: str | Sequence[str] | None = None,
    chunk_nbytes: int | str = CHUNK_NBYTES,
    memory: int | str | None = None,
    client: Client | Specification | None = None,
    scratch: str | os.PathLike[str] | None = None,
) -> RechunkPlan:
    """Tell what `rechunk` would do: chunks, copies, memory and what is on disk between; computes nothing.

    Parameters
    ----------
    source, path, chunks, access, chunk_nbytes, memory, client, scratch
        As for `dpipe.rechunk`.

    Returns
    -------
    RechunkPlan

    Raises
    ------
    MemoryLimitError
        If not even one chunk fits into the budget.
    InputError
        If an argument cannot be used.

    Examples
    --------
    >>> days = xr.DataArray(da.zeros((365, 90, 180), chunks=(5, 90, 180)), dims=("time", "lat", "lon"), name="t")
    >>> plan = plan_rechunk(days, "series.zarr", access="time series", chunk_nbytes="1 MiB")
    >>> plan.arrays["t"].target, plan.between_nbytes
    ((365, 15, 23), 0)
    """
    dataset, targets = _to_copy(source, chunks, access, chunk_nbytes)
    return planned(dataset.variables, targets, _place(dataset, memory, client), _between(Path(path), scratch))


@takes_cluster
def rechunk(
    source: Any,
    path: str | os.PathLike[str],
    *,
    chunks: Mapping[str, int] | None = None,
    access: str | Sequence[str] | None = None,
    chunk_nbytes: int | str = CHUNK_NBYTES,
    overwrite: bool = False,
    memory: int | str | None = None,
    client: Client | Cluster | None = None,
    scratch: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a dataset as a Zarr store of format 3, in the chunks that its readers need.

    Parameters
    ----------
    source : xarray.Dataset, xarray.DataArray, or path of a Zarr store
        Lazy arrays are computed region by region; what is in memory is written as it is.
    path : path
        A folder, made if it is not there. What an earlier call could not finish is kept: only the regions that are
        missing, or whose source or functions have changed, are done. It opens as a store when all are there.
    chunks : mapping of str to int, optional
        Sizes along dimensions, -1 for all; along others the chunks stay as they are.
    access : {"time series", "maps"} or sequence of str, optional
        Choose chunks for how they will be read instead: whole along time, whole along all other dimensions, or whole
        along those that are named.
    chunk_nbytes : int or str, default "16 MiB"
        How large chunks are that `access` chooses, at most, unless what is whole takes more.
    overwrite : bool, default False
        Replace what is there already.
    memory, client
        As for `dpipe.fit`.
    scratch : path, optional
        For what lies between two copies; default inside of `path`. It is removed in the end.

    Returns
    -------
    pathlib.Path
        `path`.

    Raises
    ------
    MemoryLimitError
        If not even one chunk fits into the budget.
    OutputError
        If the folder holds another result or other files, or there is no room.
    InputError
        If an argument cannot be used, or values do not fit into the type they are packed in.

    Notes
    -----
    Copies are planned as rechunker does: regions of whole chunks as large as memory allows, with at most one store
    between, `plan_rechunk` tells. Packing (``scale_factor``, ``_FillValue``) is kept, and every value is checked.

    References
    ----------
    Rechunker, https://rechunker.readthedocs.io/en/latest/algorithm.html

    Examples
    --------
    >>> import tempfile, dpipe
    >>> days = xr.DataArray(da.ones((40, 6), chunks=(1, 6)), dims=("time", "x"), name="t")
    >>> folder = rechunk(days, tempfile.mkdtemp() + "/series.zarr", chunks={"time": -1, "x": 2})
    >>> dpipe.open_zarr(folder)["t"].chunks
    ((40,), (2, 2, 2))
    """
    dataset, targets = _to_copy(source, chunks, access, chunk_nbytes)
    place = _place(dataset, memory, client)
    folder = Path(path).absolute()  # workers may run elsewhere
    plan = planned(dataset.variables, targets, place, _between(folder, scratch))
    check_room(plan, _held_nbytes(plan.between))
    check_folder(folder, overwrite)
    with Ledger(folder / UNFINISHED) as ledger:
        plan = _as_before(ledger, dataset, targets, place, plan.between)
        _written(dataset, plan, folder, ledger, replace(place, threads=plan.threads), overwrite=overwrite)
    shutil.rmtree(plan.between, ignore_errors=True)
    shutil.rmtree(folder / UNFINISHED)
    return Path(path)


def _to_copy(
    source: Any, chunks: Mapping[str, int] | None, access: str | Sequence[str] | None, chunk_nbytes: int | str
) -> tuple[xr.Dataset, dict[str, tuple[int, ...]]]:
    """Give what is copied, in the blocks that are read, and the chunks of each array that are written."""
    dataset = opened(source)
    targets = target_chunks(dataset, chunks, access, parse_bytes(chunk_nbytes))
    return read_together(source, dataset), targets


def _as_before(
    ledger: Ledger, dataset: xr.Dataset, targets: Mapping[str, tuple[int, ...]], place: Place, between: str
) -> RechunkPlan:
    """Plan with the limit of a call that was stopped: how much memory is free differs, and regions must not."""
    before = _limit_before(ledger)
    plan = planned(dataset.variables, targets, place, between, before)
    if plan.limit_nbytes != before:
        ledger.pen.write(_LIMIT, str(plan.limit_nbytes).encode())
    return plan


def _limit_before(ledger: Ledger) -> int | None:
    """Give the limit of a call that was stopped."""
    place = ledger.find(_LIMIT)
    try:
        return None if place is None else int(place.read())
    except (LedgerError, ValueError):
        return None


def _place(dataset: xr.Dataset, memory: int | str | None, client: Client | Specification | None) -> Place:
    n = sum(dataset.variables[name].data.npartitions for name in lazy_names(dataset))
    return find_place(client, None if memory is None else parse_bytes(memory), n, None)


def _between(folder: Path, scratch: str | os.PathLike[str] | None) -> str:
    if scratch is None:
        return str(folder.absolute() / UNFINISHED / "between")
    name = joined(str(folder.absolute()))[:16]
    return str(Path(scratch).absolute() / f"dpipe-rechunk-{name}")


def _held_nbytes(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _written(
    dataset: xr.Dataset, plan: RechunkPlan, folder: Path, ledger: Ledger, place: Place, *, overwrite: bool
) -> None:
    arrays = {
        name: SourceArray.of(name, dataset.variables[name].data, plan.arrays[name]) for name in plan.arrays
    }
    keys = [fingerprint_of(dataset), *(key for array in arrays.values() for key in array.keys)]
    before = finished(folder)
    if before is not None:
        if not overwrite and before.get("blocks") == keys:
            return
        refuse_other(folder, overwrite)
        _cleared(folder)
    draft = folder / UNFINISHED / DRAFT
    _taken_back(folder, draft)
    make_metadata(dataset, {name: each.target for name, each in plan.arrays.items()}, draft)
    entries: list[FileEntry] = []
    for array in arrays.values():
        entries += copied(array, draft, ledger, place, Path(plan.between))
    _commit(folder, draft, entries, keys)


def fingerprint_of(dataset: xr.Dataset) -> str:
    """Fingerprint what a dataset holds beside its lazy arrays."""
    lazy = lazy_names(dataset)
    held = [
        (str(name), v.dims, np.asarray(v.values), str(v.attrs))
        for name, v in dataset.variables.items()
        if name not in lazy
    ]
    about = [(name, dataset.variables[name].dims, str(dataset.variables[name].attrs)) for name in lazy]
    try:
        return Fingerprinter().of([held, about, str(dataset.attrs)])
    except Unknowable:
        return uuid.uuid4().hex


@dataclass(frozen=True)
class SourceArray:
    """One lazy array that is to be copied, and what computes its blocks."""

    name: str
    dtype: np.dtype[Any]
    plan: CopyPlan
    shared: Mapping[Any, Any]
    blocks: Mapping[tuple[int, ...], PlacedLoad]
    fingerprints: Mapping[tuple[int, ...], str]

    @classmethod
    def of(cls, name: str, array: da.Array, plan: CopyPlan) -> "SourceArray":
        """Take an array apart: what computes each block, and what it follows from."""
        (optimised,) = dask.optimize(array)
        # optimising loses the futures of an array that a cluster holds
        given = {**array.__dask_graph__(), **optimised.__dask_graph__()}
        places = [(place, where) for place, where in regions(plan.source)]
        outputs = [(optimised.name, *place) for place, _ in places]
        shared, divided = divide_tasks(given, outputs)
        blocks = {
            place: PlacedLoad(own, output, needs, where)
            for (place, where), output, (own, needs) in zip(places, outputs, divided, strict=True)
        }
        found = dict(zip(blocks, block_fingerprints(optimised), strict=True))
        return cls(name, array.dtype, plan, shared, blocks, found)

    @property
    def keys(self) -> list[str]:
        """Fingerprints of the regions that are written."""
        return [self.key("write", region) for _, region in regions(self.plan.writes)]

    def key(self, what: str, region: Region) -> str:
        """Fingerprint a region: of its blocks, and of where it goes."""
        found = [self.fingerprints[place] for place, _ in touching(self.plan.source, region)]
        return joined(
            what, self.name, str(self.dtype), str(self.plan.target), str(self.plan.shape), str(region), *found
        )

    def loads(self, region: Region) -> list[PlacedLoad]:
        """Give what computes the blocks that a region touches."""
        return [self.blocks[place] for place, _ in touching(self.plan.source, region)]


def copied(array: SourceArray, draft: Path, ledger: Ledger, place: Place, between: Path) -> list[FileEntry]:
    """Copy one array into the draft of a store; give its chunks. What is on record is not done again."""
    stored = stored_array(str(draft), array.name)
    writer = RegionWriter(str(draft), array.name, stored, ledger.pen)
    # how values are packed is part of what the chunks are
    about = joined(str(stored.dtype), str(sorted((k, str(v)) for k, v in stored.attrs.items())))
    entries: list[FileEntry] = []
    missing: list[tuple[Region, str]] = []
    for _, region in regions(array.plan.writes):
        key = joined(array.key("write", region), about)
        kept = _kept(ledger, draft, key)
        if kept is None:
            missing.append((region, key))
        else:
            entries += kept
    if not missing:
        return entries
    graph = GraphBuilder(uuid.uuid4().hex[:16])
    graph.tasks.update(array.shared)
    source, barrier = None, None
    if array.plan.reads is not None:
        source = Between(
            str(between / joined(array.name)[:16]),
            array.plan.reads,
            array.plan.writes,
            array.dtype,
            ledger.pen,
        )
        barrier = TaskRef(_add_reads(graph, array, source, ledger, [region for region, _ in missing]))
    held = graph.hold("writer", writer)
    kept_between = None if source is None else graph.hold("between", source)
    tasks = []
    for i, (region, key) in enumerate(missing):
        loads = [] if source is not None else array.loads(region)
        names = tuple(sorted({name for load in loads for name in load.needs}, key=str))
        given = kept_between if kept_between is not None else tuple(loads)
        arguments = held, region, key, given, names, List(*map(TaskRef, names)), array.dtype, barrier
        tasks.append(graph.add_block(f"write-{array.name}", i, write_region, *arguments))
    every = graph.add("written", _all, List(*map(TaskRef, tasks)))
    entries += compute(Delayed(every, graph.tasks), place.client, place.threads)
    if source is not None:
        shutil.rmtree(source.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            between.rmdir()
    return entries


def _add_reads(
    graph: GraphBuilder, array: SourceArray, source: Between, ledger: Ledger, missing: Sequence[Region]
) -> Any:
    """Add the tasks that fill the store between, as far as regions that are missing need it."""
    assert array.plan.reads is not None
    needed = {place: region for each in missing for place, region in touching(array.plan.reads, each)}
    held = graph.hold("between", source)
    tasks = []
    for i, (place, region) in enumerate(sorted(needed.items())):
        key = joined(array.key("between", region), str(array.plan.writes))
        size = int(np.prod([part.stop - part.start for part in region])) * array.dtype.itemsize
        path = Path(source.path(place))
        if ledger.find(key) is not None and path.is_file() and path.stat().st_size == size:
            continue
        loads = array.loads(region)
        names = tuple(sorted({name for load in loads for name in load.needs}, key=str))
        arguments = held, place, region, tuple(loads), List(*map(TaskRef, names)), names, key
        tasks.append(graph.add_block(f"read-{array.name}", i, Between.keep, *arguments))
    return graph.add("read", gathered, List(*map(TaskRef, tasks)))


def _all(entries: Sequence[Sequence[FileEntry]]) -> list[FileEntry]:
    return [entry for each in entries for entry in each]


def _kept(ledger: Ledger, draft: Path, key: str) -> tuple[FileEntry, ...] | None:
    """Give the chunks of a region that an earlier call has written, if all are there and as they were."""
    place = ledger.find(key)
    if place is None:
        return None
    try:
        entries: tuple[FileEntry, ...] = decode(place.read())
    except LedgerError:
        return None
    for entry in entries:
        path = draft / entry.name
        if not path.is_file() or FileEntry.of(path).sha256 != entry.sha256:
            return None
    return entries


def make_metadata(dataset: xr.Dataset, targets: Mapping[str, tuple[int, ...]], draft: Path) -> None:
    """Make a store of all but the chunks of lazy arrays; chunks that are there stay."""
    template = dataset.copy()
    for name, target in targets.items():
        variable = dataset.variables[name]
        encoding = {
            key: variable.encoding[key] for key in (*PACKING, "units", "calendar") if key in variable.encoding
        }
        if variable.dtype.kind == "M":
            encoding = {"units": "nanoseconds since 1970-01-01", "dtype": "int64", **encoding}
        # one block: of it the metadata is made, and nothing else
        zeros = da.zeros(variable.shape, dtype=variable.dtype, chunks=-1)
        template[name] = xr.Variable(variable.dims, zeros, variable.attrs, {**encoding, "chunks": target})
    for name in set(map(str, dataset.variables)) - targets.keys():
        template[name] = _in_memory(dataset.variables[name], is_index=name in dataset.sizes)
    template = template.set_coords([name for name in map(str, dataset.coords) if name in template.variables])
    made = draft.with_name(f"{DRAFT}-{uuid.uuid4().hex[:8]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        template.to_zarr(made, mode="w", compute=False, zarr_format=3, consolidated=False)
        zarr.consolidate_metadata(str(made))
    draft.mkdir(parents=True, exist_ok=True)
    for path in [path for path in draft.iterdir() if path.is_dir() and path.name not in targets]:
        shutil.rmtree(path)  # of an earlier call, perhaps for other data
    for path in made.rglob("*"):
        if path.is_file():
            (draft / path.relative_to(made)).parent.mkdir(parents=True, exist_ok=True)
            path.replace(draft / path.relative_to(made))
    shutil.rmtree(made)


def _in_memory(variable: Any, *, is_index: bool) -> xr.Variable:
    encoding = {
        key: variable.encoding[key] for key in (*PACKING, "units", "calendar") if key in variable.encoding
    }
    values = variable.values
    if values.dtype.kind == "U":
        values = values.astype(object)  # texts of one width have no final form in Zarr
    if is_index and variable.ndim == 1:
        encoding["chunks"] = (max(len(values), 1024),)  # a coordinate is read whole, and may grow
    return xr.Variable(variable.dims, values, variable.attrs, encoding)


def _cleared(folder: Path) -> None:
    """Remove a result that is to be replaced; without its manifest first it is none."""
    (folder / MANIFEST).unlink()
    for path in folder.iterdir():
        if path.name == UNFINISHED:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _taken_back(folder: Path, draft: Path) -> None:
    """Bring back into the draft what a call that was stopped at its very end has moved out of it."""
    for path in list(folder.iterdir()):
        if path.name.startswith("."):
            continue
        draft.mkdir(parents=True, exist_ok=True)
        if (draft / path.name).is_dir():
            shutil.rmtree(draft / path.name)
        path.replace(draft / path.name)


def _commit(folder: Path, draft: Path, entries: Sequence[FileEntry], keys: Sequence[str]) -> None:
    """Make the draft the result; what makes it a store is moved last."""
    known = {entry.name: entry for entry in entries}
    lazy = {name.partition("/")[0] for name in known}
    for path in list(draft.rglob("*")):
        name = path.relative_to(draft).as_posix()
        if not path.is_file() or name in known:
            continue
        if name.partition("/")[0] in lazy and path.name != "zarr.json":
            path.unlink()  # of another plan
            continue
        found = FileEntry.of(path)
        known[name] = FileEntry(name, found.sha256, found.nbytes)
    for path in sorted(draft.iterdir(), key=lambda item: item.name == "zarr.json"):
        path.replace(folder / path.name)
    write_manifest(folder, [known[name] for name in sorted(known)], keys)
