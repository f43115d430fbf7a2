"""What a rechunking would do: chunks chosen for how they will be read, copies within the memory, and room on disk."""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from dpipe.blocks.chunking import chosen_chunks
from dpipe.blocks.copies import CopyPlan, borders, plan_copy
from dpipe.cluster.local import Place
from dpipe.collect.zarr_store import check_store, open_zarr
from dpipe.errors import InputError, MemoryLimitError, OutputError
from dpipe.sizes import MIB, format_bytes

#: A chunk, if nobody says how large: large enough to be worth a request, small enough for many in memory.
CHUNK_NBYTES = 16 * MIB
#: A region, where no budget is given.
_REGION_NBYTES = 128 * MIB
#: Small chunks of a store are read together up to this size: each call of Zarr costs as much as reading 100 kB.
_READ_NBYTES = 4 * MIB
#: How many times a region is in memory while it is written: as values, packed, and read back.
_TIMES_HELD = 3


@dataclass(frozen=True)
class RechunkPlan:
    """What a rechunking would do, array by array.

    Attributes
    ----------
    arrays : dict of str to CopyPlan
    dims : dict of str to tuple of str
    threads : int
        Regions at a time in a worker.
    memory_nbytes : int or None
        The budget of a worker; None for none.
    projected_nbytes : int
        Projected peak memory of a worker.
    between_nbytes : int
        Most that is on disk between the copies at a time.
    between : str
        The folder for it.
    """

    arrays: dict[str, CopyPlan]
    dims: dict[str, tuple[str, ...]]
    threads: int
    memory_nbytes: int | None
    projected_nbytes: int
    between_nbytes: int
    between: str
    limit_nbytes: int
    """What a region may take."""

    def __str__(self) -> str:
        """Draw it."""
        lines = []
        for name, plan in self.arrays.items():
            about = ", ".join(f"{dim}={size}" for dim, size in zip(self.dims[name], plan.target, strict=True))
            lines.append(
                f"{name}: {format_bytes(plan.nbytes)} in {_n_regions(plan.source):,} blocks, to chunks of {about} "
                f"({format_bytes(math.prod(plan.target) * plan.itemsize)})"
            )
            if plan.reads is None:
                extra = plan.read_nbytes / plan.nbytes if plan.nbytes else 1.0
                lines.append(
                    f"  one copy in {_n_regions(plan.writes):,} regions; each value is read {extra:.2f} times"
                )
            else:
                lines.append(
                    f"  two copies: {_n_regions(plan.reads):,} regions to {format_bytes(plan.between_nbytes)} on "
                    f"disk, then {_n_regions(plan.writes):,} regions"
                )
        budget = "no budget" if self.memory_nbytes is None else f"budget {format_bytes(self.memory_nbytes)}"
        lines.append(
            f"Projected peak memory {format_bytes(self.projected_nbytes)} a worker ({budget}), {self.threads} at a "
            "time."
        )
        if self.between_nbytes:
            lines.append(
                f"At most {format_bytes(self.between_nbytes)} between the copies, in {self.between}."
            )
        return "\n".join(lines)

    __repr__ = __str__


def _n_regions(cuts: Sequence[Sequence[int]]) -> int:
    return math.prod(len(each) - 1 for each in cuts)


def read_together(source: Any, dataset: xr.Dataset) -> xr.Dataset:
    """Give the blocks that are copied: of a store that is named, several of its small chunks read at once."""
    if isinstance(source, str | os.PathLike):
        return open_zarr(check_store(source), block_nbytes=_READ_NBYTES)
    return dataset


def opened(source: Any) -> xr.Dataset:
    """Give what is to be written as a dataset.

    Raises
    ------
    InputError
        If it is of another kind, or holds what has no fixed size.
    """
    if isinstance(source, xr.DataArray):
        source = source.to_dataset(name=source.name or "values")
    if isinstance(source, str | os.PathLike):
        source = open_zarr(check_store(source))
    if not isinstance(source, xr.Dataset):
        raise InputError(
            f"source is a {type(source).__name__}; it must be an xarray Dataset or DataArray, or the path of a Zarr "
            "store."
        )
    for name, variable in source.variables.items():
        if isinstance(variable.data, da.Array):
            if variable.dtype.kind not in "biufcmM":
                raise InputError(
                    f"{name!r} holds values of type {variable.dtype}, which have no fixed size. Convert them to "
                    f"numbers, or load them: texts in memory are written as they are."
                )
            if any(math.isnan(n) for n in variable.shape):
                raise InputError(
                    f"{name!r} has chunks of unknown size. Call compute_chunk_sizes() on it first."
                )
    return source


def lazy_names(dataset: xr.Dataset) -> list[str]:
    """Name the variables that are to be computed."""
    return [str(name) for name, variable in dataset.variables.items() if isinstance(variable.data, da.Array)]


def target_chunks(
    dataset: xr.Dataset,
    chunks: Mapping[str, int] | None,
    access: str | Sequence[str] | None,
    nbytes: int,
) -> dict[str, tuple[int, ...]]:
    """Choose the chunks of each lazy variable: as given, or for how they will be read."""
    known = [str(dim) for dim in dataset.sizes]
    if chunks is not None and access is not None:
        raise InputError("Give either chunks= or access=, not both: access chooses the chunks.")
    if chunks is not None:
        for dim, size in chunks.items():
            if dim not in known:
                raise InputError(
                    f"chunks: {dim!r} is no dimension. There are: {', '.join(map(repr, known))}."
                )
            if not isinstance(size, int | np.integer) or size == 0 or size < -1:
                raise InputError(
                    f"chunks: {dim!r} has the size {size!r}; it must be positive, or -1 for all."
                )
    whole = None if access is None else _whole_dims(dataset, access, known)
    found = {}
    for name in lazy_names(dataset):
        variable = dataset.variables[name]
        dims = [str(dim) for dim in variable.dims]
        if whole is not None:
            axes = {j for j, dim in enumerate(dims) if dim in whole}
            found[name] = chosen_chunks(variable.shape, axes, variable.dtype.itemsize, nbytes)
            continue
        sizes = []
        for dim, n, stored in zip(dims, variable.shape, variable.data.chunks, strict=True):
            size = max(stored) if chunks is None or dim not in chunks else chunks[dim]
            sizes.append(max(n if size == -1 else min(int(size), n), 1))
        found[name] = tuple(sizes)
    return found


def _whole_dims(dataset: xr.Dataset, access: str | Sequence[str], known: Sequence[str]) -> set[str]:
    if not isinstance(access, str):
        unknown = [dim for dim in access if dim not in known]
        if unknown:
            raise InputError(
                f"access: {unknown[0]!r} is no dimension. There are: {', '.join(map(repr, known))}."
            )
        return set(access)
    if access not in ("time series", "maps"):
        raise InputError(
            f"access={access!r} is unknown. Use 'time series', 'maps', or the dimensions that are read whole, as a "
            "list."
        )
    times = time_dims(dataset)
    if not times:
        raise InputError(
            f"access={access!r} needs a dimension of time, and none of {', '.join(map(repr, known))} is one. Name the "
            "dimensions that are read whole: access=[...]."
        )
    return times if access == "time series" else set(known) - times


def time_dims(dataset: xr.Dataset) -> set[str]:
    """Name the dimensions that are of times, by their name or by their values."""
    indexes = dataset.indexes
    known = map(str, dataset.sizes)
    return {dim for dim in known if dim == "time" or (dim in indexes and _is_time(indexes[dim]))}


def _is_time(index: Any) -> bool:
    return index.dtype.kind == "M" or type(index).__name__ == "CFTimeIndex"


def planned(
    variables: Mapping[Any, Any],
    targets: Mapping[str, tuple[int, ...]],
    place: Place,
    scratch: str,
    before_nbytes: int | None = None,
) -> RechunkPlan:
    """Plan the copies of all lazy variables within the memory of a worker.

    `before_nbytes` is what a region could take in a call that was stopped: with the same, its regions are the same.

    Raises
    ------
    MemoryLimitError
        If not even one chunk fits.
    """
    sources = {name: borders(_plain(variables[name].data.chunks)) for name in targets}
    least, threads, limit = 0, place.threads, _REGION_NBYTES
    for name, target in targets.items():
        item = variables[name].dtype.itemsize
        stored = item * math.prod(max(sizes, default=0) for sizes in variables[name].data.chunks)
        least = max(least, stored, item * math.prod(target))
    if place.memory is not None:
        free = place.memory - place.reserved
        threads = max(min(threads, free // max((_TIMES_HELD + 1) * least, 1)), 1)
        limit = free // threads // (_TIMES_HELD + 1)
        if limit < least:
            raise MemoryLimitError(
                f"One chunk takes {format_bytes(least)}, and is held {_TIMES_HELD + 1} times while it is copied; "
                f"with the process itself ({format_bytes(place.reserved)}) that is more than the budget of "
                f"{format_bytes(place.memory)}. Choose smaller chunks, or give it "
                f"{format_bytes(place.reserved + (_TIMES_HELD + 1) * least)}."
            )
    limit = max(limit, least)
    if before_nbytes is not None and least <= before_nbytes <= limit:
        limit = before_nbytes
    arrays = {
        name: plan_copy(sources[name], target, variables[name].dtype.itemsize, limit)
        for name, target in targets.items()
    }
    held = max((_TIMES_HELD * plan.region_nbytes + plan.block_nbytes for plan in arrays.values()), default=0)
    between = max((plan.between_nbytes for plan in arrays.values()), default=0)
    dims = {name: tuple(map(str, variables[name].dims)) for name in arrays}
    return RechunkPlan(
        arrays, dims, threads, place.memory, place.reserved + threads * held, between, scratch, limit
    )


def _plain(chunks: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    return [tuple(int(size) for size in sizes) for sizes in chunks]


def check_room(plan: RechunkPlan, held_nbytes: int = 0) -> None:
    """Refuse a plan whose store between does not fit on its disk.

    Raises
    ------
    OutputError
        With what is free, and what would be needed.
    """
    folder = Path(plan.between)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free + held_nbytes
    if plan.between_nbytes > free:
        raise OutputError(
            f"{format_bytes(plan.between_nbytes)} are needed between the copies, and {plan.between} has "
            f"{format_bytes(free)} free. Make room, name another folder (scratch=...), or give more memory: with "
            f"enough of it there is nothing between."
        )
