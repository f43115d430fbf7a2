"""Stages whose arrays are written to a Zarr store in the workdir: in the chunks that later stages read, grown in place.

What a store holds is on record by the fingerprints of its source, file after file, or block after block, along the
dimension of time. A source that begins as it did, and is longer, is appended to the store; any other is written anew.
"""

import json
import math
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.task_spec import Task
from distributed import Client

from dpipe.cluster.specification import Specification
from dpipe.collect.array_files import ArrayPart, ArrayReader
from dpipe.collect.zarr_store import open_zarr
from dpipe.errors import ConservationError, InputError, LedgerError
from dpipe.ledger.book import Ledger, Reading
from dpipe.ledger.fingerprint import Fingerprinter, Unknowable, joined
from dpipe.outputs.append import append_zarr, finish_append
from dpipe.outputs.manifest import finished
from dpipe.outputs.rechunk import fingerprint_of, plan_rechunk, rechunk
from dpipe.outputs.rechunk_plan import CHUNK_NBYTES, check_room, lazy_names, opened, time_dims
from dpipe.outputs.zarr import block_fingerprints
from dpipe.pipeline.arrays import Need, needs_after, rebound, variables_of, with_chunks
from dpipe.pipeline.stages import Stage
from dpipe.sizes import counted, format_bytes, parse_bytes

#: How much larger than asked chunks may be, so that all stages find whole what they need whole.
_LARGER = 4
_UNFINISHED = "it was not finished"


@dataclass(frozen=True)
class ArrayStore:
    """Where the arrays of a stage are written, and in which chunks, as far as the caller says."""

    name: str
    """Of the stage."""
    folder: Path
    chunks: dict[str, int] | None = None
    access: str | tuple[str, ...] | None = None
    chunk_nbytes: int = CHUNK_NBYTES

    @classmethod
    def of(
        cls, name: str, workdir: Path, store: Any, chunks: Any, access: Any, chunk_nbytes: int | str | None
    ) -> "ArrayStore | None":
        """Take what the caller says; None for no store.

        Raises
        ------
        InputError
            If chunks are asked for, but no store, or in two ways.
        """
        if store is None or store is False:
            asked = {"chunks": chunks, "access": access, "chunk_nbytes": chunk_nbytes}
            named = [key for key, value in asked.items() if value is not None]
            if named:
                raise InputError(
                    f"{', '.join(named)}: nothing is written that would have chunks. Ask for a store (store=True), or "
                    "leave them out."
                )
            return None
        if chunks is not None and access is not None:
            raise InputError("Give either chunks= or access=, not both: access chooses the chunks.")
        folder = workdir / "stores" / f"{name}.zarr" if store is True else Path(store)
        nbytes = CHUNK_NBYTES if chunk_nbytes is None else parse_bytes(chunk_nbytes)
        chosen = access if access is None or isinstance(access, str) else tuple(access)
        return cls(name, folder, None if chunks is None else dict(chunks), chosen, nbytes)

    def layout(self, value: Any, needs: Sequence[Need]) -> tuple[dict[str, Any], str]:
        """Choose chunks for what later stages need whole; give what `rechunk` is told, and why."""
        if self.chunks is not None:
            return {"chunks": self.chunks, "chunk_nbytes": self.chunk_nbytes}, "as chunks= says"
        if self.access is not None:
            return {"access": self.access, "chunk_nbytes": self.chunk_nbytes}, "as access= says"
        dataset = opened(value)
        most, whole, why = _LARGER * self.chunk_nbytes, set[str](), list[str]()
        for need in needs:
            wanted = whole | need.dims
            size = max(
                (_nbytes_of(dataset.variables[name], wanted) for name in lazy_names(dataset)), default=0
            )
            if size > most:
                why.append(f"{need.why}, but with {format_bytes(size)} a chunk would be too large for that")
                continue
            whole = wanted
            why.append(need.why)
        said = "; ".join(why) or "no later stage needs a dimension whole"
        return {"access": tuple(sorted(whole)), "chunk_nbytes": self.chunk_nbytes}, said

    def planned(
        self,
        value: Any,
        needs: Sequence[Need],
        reading: Reading | None,
        memory: Any,
        client: Client | Specification | None,
    ) -> tuple[Any, str]:
        """Tell what a run would write; give what later stages would read, and the plan in words.

        Raises
        ------
        OutputError
            If the disk has no room for what lies between two copies.
        """
        layout, why = self.layout(value, needs)
        held, n, dim = "nothing", 0, None
        if reading is not None:
            state = _State.of(self, opened(value), layout)
            dim = state.dim
            held, n = state.held(reading, self.folder)
        if held == "all":
            return self.open(value), f"{self.folder} is on record, and nothing of it has changed"
        if held == "some":
            said = f"{value.sizes[dim] - n:,} new along {dim} are appended to {self.folder}"
            sizes = self._sizes(value)
            return with_chunks(value, sizes), said
        plan = plan_rechunk(value, self.folder, memory=memory, client=client, **layout)
        check_room(plan)
        own = _own_name(value)
        targets = {"" if name == own else name: copy.target for name, copy in plan.arrays.items()}
        anew = "" if held == "nothing" else f" (anew: {held})"
        lines = [f"to {self.folder}{anew}", f"chunks: {why}", *str(plan).splitlines()]
        return with_chunks(value, targets), "\n  ".join(lines)

    def written(
        self, value: Any, needs: Sequence[Need], ledger: Ledger, memory: Any, client: Client | None
    ) -> tuple[Any, str]:
        """Write what is missing; give what later stages read, and what was done in words."""
        layout, why = self.layout(value, needs)
        dataset = opened(value)
        state = _State.of(self, dataset, layout)
        finish_append(self.folder)
        held, n = state.held(ledger, self.folder)
        if held not in ("all", "some", "nothing", _UNFINISHED):
            shutil.rmtree(self.folder)  # before the record tells of other data
        if held != "all":
            # first what will be there: only a source that begins like this may be appended to what is there
            ledger.pen.write(state.key, json.dumps(state.told).encode(), what="store")
        if held == "all":
            did = "as it was written"
        elif held == "some":
            more = dataset.isel({state.dim: slice(n, None)})
            append_zarr(more, self.folder, dim=str(state.dim), memory=memory, client=client)
            did = f"{more.sizes[str(state.dim)]:,} new along {state.dim} appended"
        else:
            rechunk(value, self.folder, memory=memory, client=client, **layout)
            did = f"written, {why}" if held == "nothing" else f"written anew ({held}), {why}"
        found = self.open(value)
        _check_sizes(value, found, self.folder)
        arrays = [v for v in variables_of(found).values() if isinstance(v.data, da.Array)]
        n_values = sum(math.prod(v.shape) for v in arrays)
        stored = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        sizes = f"{counted(n_values, 'value')}, {format_bytes(opened(found).nbytes)}, on disk {format_bytes(stored)}"
        return found, f"{self.folder}: {did}; {sizes}"

    def open(self, like: Any) -> Any:
        """Open the store as what was written to it."""
        found = open_zarr(self.folder)
        if not isinstance(like, xr.DataArray):
            return found
        return found[_own_name(like)].rename(like.name)

    def _sizes(self, value: Any) -> dict[str, tuple[int, ...]]:
        """Give the chunks of a store that is there."""
        return {
            name: tuple(max(sizes) for sizes in variable.data.chunks)
            for name, variable in variables_of(self.open(value)).items()
            if isinstance(variable.data, da.Array)
        }


def planned_stores(
    stages: Sequence[Stage], workdir: Path | None, memory: Any, client: Client | Specification | None
) -> tuple[list[Stage], list[tuple[str, str]]]:
    """Plan what is to be written; give the stages as they will be with it, and each store in words.

    Raises
    ------
    OutputError
        If the disk has no room.
    MemoryLimitError
        If not even one chunk fits into the budget.
    """
    reading = None if workdir is None else Reading(workdir)
    given: dict[str, Any] = {}
    said: list[tuple[str, str]] = []
    now = rebound(stages, given, memory)
    for i, stage in enumerate(stages):
        store = stage.settings.get("store")
        if store is not None:
            found = store.planned(now[i].outputs[0], needs_after(now, i), reading, memory, client)
            given[stage.name], words = found
            said.append((stage.name, words))
            now = rebound(stages, given, memory)
    return now, said


def _own_name(value: Any) -> str:
    """Name the variable that an array is in a dataset; none of a dataset."""
    return str(value.name or "values") if isinstance(value, xr.DataArray) else ""


def _nbytes_of(variable: xr.Variable, whole: set[str]) -> int:
    sizes = [n for dim, n in zip(variable.dims, variable.shape, strict=True) if str(dim) in whole]
    return variable.dtype.itemsize * math.prod(sizes)


def _check_sizes(value: Any, found: Any, folder: Path) -> None:
    """See that a store has all cells of what was written to it; their values were compared as they were written."""
    others = variables_of(found)
    for name, variable in variables_of(value).items():
        other = others.get(name)
        if other is None or other.shape != variable.shape:
            has = "lacks it" if other is None else f"has {other.shape}"
            raise ConservationError(
                f"{folder}: {name or 'the array'} has the shape {variable.shape} in its source, and the store {has}. "
                "Files changed during the run, or another process writes to the store: remove it, and run again."
            )


@dataclass(frozen=True)
class _State:
    """What a store is made of, as it is on record."""

    key: str
    dim: str | None
    """The dimension along which it may grow."""
    told: dict[str, Any]
    dataset: xr.Dataset

    @classmethod
    def of(cls, store: ArrayStore, dataset: xr.Dataset, layout: dict[str, Any]) -> "_State":
        times = sorted(time_dims(dataset))
        dim = times[0] if len(times) == 1 else None
        growing = {
            name for name in lazy_names(dataset) if dim is not None and dim in dataset.variables[name].dims
        }
        rest = [name for name in lazy_names(dataset) if name not in growing]
        about = dataset if dim is None else dataset.isel({dim: slice(0, 0)})
        fixed = [
            fingerprint_of(about),
            str({name: str(dataset.variables[name].dtype) for name in dataset.variables}),
        ]
        fixed += [found for name in rest for found in block_fingerprints(dataset.variables[name].data)]
        told = {
            "layout": json.loads(json.dumps(layout)),
            "fixed": joined(*fixed),
            "grows": {name: _segments(dataset.variables[name], str(dim)) for name in sorted(growing)},
        }
        return cls(f"store {store.name} {store.folder}", dim, told, dataset)

    def held(self, book: Ledger | Reading | None, folder: Path) -> tuple[str, int]:
        """Tell what a store holds of it: "all", "some" and how many steps, "nothing", or why it is of no use."""
        place = None if book is None else book.find(self.key)
        if place is None:
            return "nothing", 0
        try:
            before = json.loads(place.read())
        except (LedgerError, ValueError):
            return "its record is damaged", 0
        if not folder.is_dir() or (manifest := finished(folder)) is None:
            return _UNFINISHED, 0
        for name, said in manifest["files"].items():
            path = folder / name
            # a chunk that is not there would be read as missing values
            if not path.is_file() or path.stat().st_size != said["nbytes"]:
                return f"{name} is missing or damaged", 0
        if before["layout"] != self.told["layout"]:
            return "other chunks are needed", 0
        if before["fixed"] != self.told["fixed"]:
            return "its source has changed", 0
        if self.dim is None:
            return "all", 0
        stored = open_zarr(folder)
        n, now = stored.sizes[self.dim], self.dataset.sizes[self.dim]
        for name, segments in self.told["grows"].items():
            if not _begins(before["grows"].get(name, []), segments, n):
                return f"{name!r} of its source has changed", 0
        if n > now or not _same_values(self.dataset, stored, self.dim, n):
            return "its source has other coordinates", 0
        return ("all" if n == now else "some"), n


def _begins(before: Sequence[Any], now: Sequence[Any], n: int) -> bool:
    """Tell whether two lists of segments are the same up to a length, where a segment ends."""
    length = 0
    for one, other in zip(before, now, strict=False):
        if length == n or list(one) != list(other):
            break
        length += one[0]
    return length == n


def _same_values(dataset: xr.Dataset, stored: xr.Dataset, dim: str, n: int) -> bool:
    """Tell whether what is in memory along a dimension is the same up to a length."""
    lazy, first = lazy_names(dataset), dataset.isel({dim: slice(0, n)})
    names = [name for name, v in dataset.variables.items() if dim in v.dims and str(name) not in lazy]
    return all(
        name in stored.variables
        and np.array_equal(first.variables[name].values, stored.variables[name].values)
        for name in names
    )


def _segments(variable: xr.Variable, dim: str) -> list[list[Any]]:
    """List what an array follows from along a dimension: lengths and fingerprints of files, or of blocks."""
    array = variable.data
    axis = variable.dims.index(dim)
    graph = dict(array.__dask_graph__())
    others = [range(n) for j, n in enumerate(array.numblocks) if j != axis]
    of_blocks: list[str] | None = None
    found: list[list[Any]] = []
    for j, length in enumerate(array.chunks[axis]):
        places = [(*rest[:axis], j, *rest[axis:]) for rest in product(*others)]
        parts = [_files_of(graph.get((array.name, *place))) for place in places]
        if all(each is not None for each in parts):
            for same in zip(*(each or () for each in parts), strict=True):
                at = same[0].where[axis]
                found.append([at.stop - at.start, _taken(list(same))])
            continue
        if of_blocks is None:
            of_blocks = block_fingerprints(array)
        numbers = [int(sum(p * s for p, s in zip(place, _strides(array), strict=True))) for place in places]
        found.append([int(length), joined(*(of_blocks[number] for number in numbers))])
    return found


def _strides(array: da.Array) -> list[int]:
    return [math.prod(array.numblocks[j + 1 :]) for j in range(array.ndim)]


def _files_of(task: Any) -> list[ArrayPart] | None:
    """Give the parts of files that a block is read from, if that is all it is."""
    if isinstance(task, Task) and isinstance(task.func, ArrayReader) and len(task.args) == 1:
        return list(task.args[0])
    return None


def _taken(value: Any) -> str:
    try:
        return Fingerprinter().of(value)
    except Unknowable:
        return uuid.uuid4().hex
