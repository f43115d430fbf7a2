"""Append to a Zarr store along one dimension: what it held stays readable, and is longer only when all is there."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from distributed import Client

from dpipe.blocks.copies import plan_copy
from dpipe.cluster.cluster import Cluster, takes_cluster
from dpipe.cluster.local import Place, find_place
from dpipe.collect.array_join import not_monotonic
from dpipe.collect.files import is_remote
from dpipe.collect.zarr_store import open_zarr
from dpipe.errors import InputError, OutputError
from dpipe.ledger.book import Ledger
from dpipe.ledger.fingerprint import joined
from dpipe.outputs.manifest import MANIFEST, UNFINISHED, FileEntry, finished
from dpipe.outputs.rechunk import DRAFT, SourceArray, copied, fingerprint_of
from dpipe.outputs.rechunk_plan import RechunkPlan, check_room, lazy_names, opened, planned
from dpipe.outputs.zarr import block_fingerprints
from dpipe.outputs.zarr_metadata import StoreMetadata
from dpipe.sizes import parse_bytes

#: The list of what is to be moved into the store; with it, appending cannot fail any more but be finished.
_JOURNAL = "journal.json"


@takes_cluster
def append_zarr(
    source: Any,
    path: str | os.PathLike[str],
    *,
    dim: str = "time",
    memory: int | str | None = None,
    client: Client | Cluster | None = None,
) -> Path:
    """Append a dataset to a Zarr store along one dimension: one that `dpipe.rechunk` has written, or xarray.

    Readers see the store as it was until all of it is there, and then the longer one. A call that was stopped goes on
    where it was.

    Parameters
    ----------
    source : xarray.Dataset, xarray.DataArray, or path of a Zarr store
        With the variables, dimensions and other coordinates of the store.
    path : path
        The store: a folder of format 2 or 3, its arrays in chunks of any size, but not in shards.
    dim : str, default "time"
        The dimension that grows; its coordinate must go on after the last value of the store.
    memory, client
        As for `dpipe.fit`.

    Returns
    -------
    pathlib.Path
        `path`.

    Raises
    ------
    OutputError
        If there is no finished store.
    InputError
        If the source does not fit: other variables, units, calendars or coordinates, times that are there already, or
        values that overflow the type that the store packs them in.

    Notes
    -----
    New chunks are made aside, and then moved into the store: the last ones that were not full, with what they held, in
    place of the old ones; what tells how long the arrays are comes at the end. With consolidated metadata, as xarray
    writes it, that is one file. Without it readers may, for a moment, find arrays of two lengths.

    Blocks that `dpipe.open_zarr` gives keep their fingerprints, but for those of chunks that were not full: a fit
    that can be merged reads only these and the new ones, in the same workdir.

    Examples
    --------
    >>> import tempfile, dpipe
    >>> def days(first):
    ...     coords = {"time": np.arange(first, first + 3)}
    ...     return xr.Dataset({"t": ("time", da.full(3, first, chunks=2))}, coords)
    >>> folder = dpipe.rechunk(days(0), tempfile.mkdtemp() + "/t.zarr")
    >>> _ = append_zarr(days(3), folder)
    >>> dpipe.open_zarr(folder)["t"].values
    array([0, 0, 0, 3, 3, 3])
    """
    if is_remote(os.fspath(path)):
        raise OutputError(f"{path} is not on this machine: a store is appended to in a folder. Give a path.")
    place = find_place(client, None if memory is None else parse_bytes(memory), 2, None)
    _append(opened(source), Path(path).absolute(), dim, place)  # workers may run elsewhere
    return Path(path)


def _append(new: xr.Dataset, folder: Path, dim: str, place: Place) -> None:
    """Check, plan, write aside, and move into the store what is not in it."""
    done = finish_append(folder)
    metadata = StoreMetadata.of(folder)
    manifest = finished(folder)
    aside = _beside(folder) if manifest is None else folder / UNFINISHED
    old = open_zarr(folder)
    _check_fits(new, old, dim, folder)
    arrays = [
        _Longer.of(str(name), new, old, dim, metadata) for name, v in old.variables.items() if dim in v.dims
    ]
    lazy = {each.name: each for each in arrays if each.data.dtype.kind != "O"}
    variables = {name: xr.Variable(each.dims, each.data) for name, each in lazy.items()}
    targets = {name: each.chunks for name, each in lazy.items()}
    plan = planned(variables, targets, place, str(aside / "between"))
    check_room(plan)
    sources = [new.variables[name].data for name in lazy_names(new)]
    blocks = [found for data in sources for found in block_fingerprints(data)]
    key = joined("append", dim, fingerprint_of(new), *blocks)
    if key in (done, *(manifest or {"blocks": []})["blocks"][-1:]):
        return
    _check_order(new, old, dim, folder)
    with Ledger(aside) as ledger:
        moved = _drafted(arrays, plan, metadata, aside, ledger, replace(place, threads=plan.threads))
        said = manifest and {
            **manifest,
            "blocks": [*manifest["blocks"], key],
            "files": {**manifest["files"], **{entry.name: entry.told() for entry in moved.values()}},
        }
        moves = [(name, entry.name) for name, entry in moved.items()]
        _journal(aside, moves, metadata.longer({each.name: each.longer for each in arrays}), said, key)
    finish_append(folder)


def _drafted(
    arrays: Sequence["_Longer"],
    plan: RechunkPlan,
    metadata: StoreMetadata,
    aside: Path,
    ledger: Ledger,
    place: Place,
) -> dict[str, FileEntry]:
    """Write the new chunks aside; for each of them, say where it will be and what is in it."""
    draft = aside / DRAFT
    found: dict[str, FileEntry] = {}
    for each in arrays:
        metadata.make_array(draft, each.name, each.metadata, each.data.shape)
        array = each.taken_apart(plan.arrays.get(each.name))
        entries = {entry.name: entry for entry in copied(array, draft, ledger, place, Path(plan.between))}
        for name, there in metadata.moved_chunks(draft, each.name, each.axis, each.first):
            found[f"{DRAFT}/{name}"] = FileEntry(there, entries[name].sha256, entries[name].nbytes)
    return found


def _check_fits(new: xr.Dataset, old: xr.Dataset, dim: str, folder: Path) -> None:
    """Compare a dataset with the store it is to be appended to, by what both say of themselves."""
    for where, dataset in (("the source", new), (str(folder), old)):
        if dim not in dataset.sizes:
            raise InputError(
                f"dim={dim!r} is no dimension of {where}. It has: {', '.join(map(repr, dataset.sizes))}."
            )
    lacks = sorted(map(str, old.variables.keys() - new.variables.keys()))
    more = sorted(map(str, new.variables.keys() - old.variables.keys()))
    if lacks or more:
        what = f"lacks {', '.join(map(repr, lacks))}" if lacks else f"also has {', '.join(map(repr, more))}"
        raise InputError(
            f"The source {what}, compared with {folder}. Bring the same variables, or rewrite the store."
        )
    for name, variable in old.variables.items():
        other = new.variables[name]
        if other.dims != variable.dims:
            raise InputError(
                f"{name!r} has the dimensions {other.dims} in the source, but {variable.dims} in {folder}. "
                "Transpose it."
            )
        for axis, n, m in zip(variable.dims, other.shape, variable.shape, strict=True):
            if axis != dim and n != m:
                raise InputError(
                    f"{name!r} does not align with {folder} along {axis!r}: it has {n:,} values instead of {m:,}."
                )
        units = [str(v.attrs.get("units", "")) for v in (other, variable)]
        if units[0] != units[1]:
            raise InputError(
                f"{name!r} is in {units[0] or 'no units'!r}, but in {units[1] or 'no units'!r} in {folder}. Convert "
                f"it first: numbers of two units make no array."
            )
        if name in old.indexes and name != dim and not new.indexes[name].equals(old.indexes[name]):
            raise InputError(
                f"The source does not align with {folder} along {name!r}: its values differ. Bring it to the same "
                "grid."
            )
    calendars = [_calendar(dataset, dim) for dataset in (new, old)]
    if calendars[0] != calendars[1]:
        raise InputError(
            f"The calendar of {dim!r} is {calendars[0]!r}, but that of {folder} is {calendars[1]!r}. Days of "
            f"different calendars cannot be put in one order: convert the source (xarray's convert_calendar)."
        )


def _calendar(dataset: xr.Dataset, dim: str) -> str | None:
    """Name the calendar of a dimension, if its values are cftime's; all dates of NumPy are of one."""
    values = dataset.variables[dim].values if dim in dataset.variables else np.empty(0)
    if values.dtype.kind == "O" and len(values):
        return str(getattr(values[0], "calendar", None))
    return "dates of NumPy" if values.dtype.kind == "M" else None


def _check_order(new: xr.Dataset, old: xr.Dataset, dim: str, folder: Path) -> None:
    if dim not in old.variables or not old.sizes[dim] or not new.sizes[dim]:
        return
    before, after = old.variables[dim].values, new.variables[dim].values
    wrong = not_monotonic(after)
    if wrong:
        raise InputError(f"The coordinate {dim!r} of the source {wrong}. Sort it: .sortby({dim!r}).")
    falls = (before[-2] > before[-1]) if len(before) > 1 else (len(after) > 1 and after[0] > after[1])
    rises_on = len(after) < 2 or (after[0] > after[1]) == falls
    if rises_on and ((after[0] < before[-1]) if falls else (after[0] > before[-1])):
        return
    raise InputError(
        f"The source begins at {after[0]} along {dim!r}, and {folder} ends at {before[-1]}. Leave out what is there "
        "already, or rewrite the store."
    )


@dataclass(frozen=True)
class _Longer:
    """One array of the store that grows: its last chunks, which are not full, and what comes after."""

    name: str
    dims: tuple[str, ...]
    data: da.Array
    chunks: tuple[int, ...]
    axis: int
    first: int
    """Chunks before it, which stay."""
    length: int
    """How long the axis will be."""
    metadata: dict[str, Any]

    @classmethod
    def of(cls, name: str, new: xr.Dataset, old: xr.Dataset, dim: str, metadata: StoreMetadata) -> "_Longer":
        said, folder = metadata.array(name), metadata.folder
        chunks = metadata.chunks(said)
        variable, other = old.variables[name], new.variables[name]
        axis = variable.dims.index(dim)
        n = variable.shape[axis]
        begin = n // chunks[axis] * chunks[axis]
        tail = _lazy(variable[(slice(None),) * axis + (slice(begin, n),)].data)
        added = _lazy(other.data)
        if not np.can_cast(added.dtype, tail.dtype, "same_kind"):
            raise InputError(
                f"{name!r} is of type {added.dtype} in the source, but {tail.dtype} in {folder}. Convert it first."
            )
        whole = (
            da.concatenate([tail, added.astype(tail.dtype)], axis=axis)
            if n > begin
            else added.astype(tail.dtype)
        )
        length = n + other.shape[axis]
        return cls(
            name, tuple(map(str, variable.dims)), whole, chunks, axis, begin // chunks[axis], length, said
        )

    def taken_apart(self, plan: Any) -> SourceArray:
        """Give what computes it; a coordinate of any type is small, and copied as one."""
        if plan is None:
            plan = plan_copy(tuple((0, n) for n in self.data.shape), self.data.shape, 8, 1 << 62)
            return SourceArray.of(self.name, self.data.rechunk(-1), replace(plan, target=self.chunks))
        return SourceArray.of(self.name, self.data, plan)

    @property
    def longer(self) -> dict[str, Any]:
        """The metadata of the array as it will be."""
        shape = list(self.metadata["shape"])
        shape[self.axis] = self.length
        return {**self.metadata, "shape": shape}


def _lazy(values: Any) -> da.Array:
    return values if isinstance(values, da.Array) else da.from_array(np.asarray(values), chunks=-1)


def _beside(folder: Path) -> Path:
    """Name the folder for what is not finished of a store that is another's: inside, readers might find it."""
    return folder.with_name(f".{folder.name}{UNFINISHED}")


def _journal(
    aside: Path,
    moves: list[tuple[str, str]],
    texts: dict[str, str],
    manifest: dict[str, Any] | None,
    key: str,
) -> None:
    """Write down all that is to be moved into the store: chunks, then what makes them part of it, the manifest last."""
    for number, (name, text) in enumerate(texts.items()):
        made = aside / f"metadata-{number}.json"
        _write(made, text)
        moves.append((made.name, name))
        if manifest is not None:
            found = FileEntry.of(made)
            manifest["files"][name] = FileEntry(name, found.sha256, found.nbytes).told()
    if manifest is not None:
        _write(aside / "manifest.json", json.dumps(manifest, indent=1))
        moves.append(("manifest.json", MANIFEST))
    _write(aside / _JOURNAL, json.dumps({"moves": moves, "key": key}))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def finish_append(folder: Path) -> str | None:
    """Finish what a call that was stopped at its very end has left to be moved; give the fingerprint of its data."""
    for aside in (folder / UNFINISHED, _beside(folder)):
        journal = aside / _JOURNAL
        if not journal.exists():
            continue
        said = json.loads(journal.read_bytes())
        for source, name in said["moves"]:
            if (aside / source).exists():  # what has been moved already is passed over
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / source).replace(folder / name)
        for path in [path for path in aside.iterdir() if path != journal]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(aside)  # the journal goes last: until then it tells what has been done
        return str(said["key"])
    return None
