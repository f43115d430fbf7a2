"""Tasks that copy regions of an array: from its blocks, into the store between, and from there into chunks of Zarr.

Each region is a unit: whole on disk and recorded, or to be done again.
"""

import contextlib
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from dpipe.blocks.copies import Cuts, Region, lengths, shared, touching, within
from dpipe.blocks.heap import keep_freed, trim
from dpipe.collect.array_files import Stored
from dpipe.collect.loads import ArrayLoad
from dpipe.errors import ConservationError, InputError, OutputError
from dpipe.ledger.codec import encode
from dpipe.outputs.manifest import FileEntry


@dataclass(frozen=True)
class PlacedLoad(ArrayLoad):
    """Computes one block of an array inside of a task, and says where it stands."""

    where: Region


def assembled(
    loads: Sequence[PlacedLoad], inputs: Mapping[Any, Any], region: Region, dtype: Any
) -> np.ndarray:
    """Compute a region of an array, one of its blocks after the other."""
    if len(loads) == 1 and loads[0].where == region:
        return loads[0](inputs).astype(dtype, copy=False)
    whole = np.empty(lengths(region), dtype)
    for load in loads:
        part = shared(load.where, region)
        block = load(inputs)
        if block.shape != lengths(load.where):
            raise ConservationError(
                f"A block has the shape {block.shape}, but its array says {lengths(load.where)}. Say the true chunks "
                "where the array is made, as with map_blocks(..., chunks=...)."
            )
        whole[within(part, region)] = block[within(part, load.where)]
    return whole


@dataclass(frozen=True)
class Between:
    """The store between: a file for each region that is read, cut at the borders of the regions that are written."""

    folder: str
    reads: Cuts
    writes: Cuts
    dtype: np.dtype[Any]
    pen: Any

    def path(self, place: Sequence[int]) -> str:
        """Name the file of a region."""
        return os.path.join(self.folder, "-".join(map(str, place)) or "0")

    def keep(
        self,
        place: tuple[int, ...],
        region: Region,
        loads: Sequence[PlacedLoad],
        needs: Sequence[Any],
        names: Sequence[Any],
        key: str,
    ) -> None:
        """Read one region and keep it: a task."""
        keep_freed()
        whole = assembled(loads, dict(zip(names, needs, strict=True)), region, self.dtype)
        path = self.path(place)
        temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            os.makedirs(self.folder, exist_ok=True)
            with open(temporary, "wb") as file:
                for _, other in touching(self.writes, region):
                    part = within(shared(region, other), region)
                    file.write(np.ascontiguousarray(whole[part]).data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as err:
            raise OutputError(
                f"{path}, between the copies, cannot be written: {err}. Make room, or name another folder: "
                f"scratch=...; and run again: what is done already stays."
            ) from err
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
        trim(whole.nbytes)
        self.pen.write(key, encode(whole.nbytes), what="between", rows=0)

    def assembled(self, region: Region) -> np.ndarray:
        """Give one of the regions that are written."""
        whole = np.empty(lengths(region), self.dtype)
        for place, other in touching(self.reads, region):
            start = 0
            for _, written in touching(self.writes, other):
                part = shared(other, written)
                if written == region:
                    with open(self.path(place), "rb") as file:
                        file.seek(start)
                        found = np.fromfile(file, self.dtype, int(np.prod(lengths(part))))
                    whole[within(part, region)] = found.reshape(lengths(part))
                    break
                start += int(np.prod(lengths(part))) * self.dtype.itemsize
        return whole


@dataclass(frozen=True)
class RegionWriter:
    """Writes regions of one array, each of whole chunks, into a store that is not open yet."""

    store: str
    name: str
    stored: Stored
    pen: Any

    def write(self, values: np.ndarray, region: Region, key: str) -> tuple[FileEntry, ...]:
        """Write a region and read it back; give its chunks.

        Raises
        ------
        InputError
            If values do not fit into the type that they are to be packed in.
        ConservationError
            If the disk does not hold what was written.
        OutputError
            If it cannot be written.
        """
        raw = np.asarray(packed(self.stored, values), order="C")  # of no dims, too
        try:
            array = zarr.open_array(os.path.join(self.store, self.name), mode="r+")
            # a chunk of zeros is a file, too: it can be verified
            array = array.with_config({"write_empty_chunks": True})
            array[region] = raw
            if np.asarray(array[region]).tobytes() != raw.tobytes():
                raise ConservationError(
                    f"{self.store}: {self.name!r} does not hold what was written to it. The disk or its driver may be "
                    "failing; write it again elsewhere."
                )
            entries = tuple(self._entries(array, region))
        except OSError as err:
            raise OutputError(
                f"{self.store}: {self.name!r} cannot be written: {err}. Make room, and write again: what is done "
                "already stays."
            ) from err
        trim(values.nbytes + raw.nbytes)
        self.pen.write(key, encode(entries), what="region", rows=0)
        return entries

    def _entries(self, array: Any, region: Region) -> list[FileEntry]:
        found = []
        for place in np.ndindex(
            *(-(-(part.stop - part.start) // size) for part, size in zip(region, array.chunks, strict=True))
        ):
            index = tuple(
                part.start // size + j for part, size, j in zip(region, array.chunks, place, strict=True)
            )
            name = f"{self.name}/{array.metadata.encode_chunk_key(index)}"
            path = Path(self.store) / name
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            entry = FileEntry.of(path)
            found.append(FileEntry(name, entry.sha256, entry.nbytes))
        return found


def packed(stored: Stored, values: np.ndarray) -> np.ndarray:
    """Encode values as a variable of a store says, and see that none has changed.

    Raises
    ------
    InputError
        If some do not fit: they are too large for the type, or are what marks missing values.
    """
    _, encoding = stored.told()
    if not encoding.keys() - {"dtype"} or (
        stored.dtype == values.dtype and encoding.keys() <= {"dtype", "_FillValue"}
    ):
        raw = values.astype(stored.dtype, copy=False)
        back = raw.astype(values.dtype, copy=False)
    else:
        with np.errstate(invalid="ignore", over="ignore"), _quietly("units" in encoding):
            variable = xr.Variable(stored.dims, values, {}, encoding)
            raw = np.asarray(xr.conventions.encode_cf_variable(variable, name=stored.name).values)
            raw = raw.astype(stored.dtype, copy=False)
        back = stored.decoded(raw)
    wrong = _changed(values, back, float(abs(encoding.get("scale_factor", 0.0))), raw.dtype)
    if wrong.any():
        value = values[wrong][0]
        what = f"packed as {stored.dtype}" + (
            f" with scale_factor={encoding['scale_factor']:g}" if "scale_factor" in encoding else ""
        )
        raise InputError(
            f"{stored.name!r}: {value} cannot be {what}: it overflows, or is what marks missing values. Write the "
            f"store in another type: {int(wrong.sum()):,} of {values.size:,} values of this region would change."
        )
    return raw


@contextlib.contextmanager
def _quietly(wanted: bool) -> Iterator[None]:
    """Let xarray choose other units for times without a word: that they are others is found out and told here."""
    if not wanted:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _changed(values: np.ndarray, back: np.ndarray, scale: float, kind: np.dtype[Any]) -> np.ndarray:
    if values is back:
        return np.zeros(values.shape, bool)
    missing = (values != values) & (back != back)
    if values.dtype.kind != "f":
        return ~((values == back) | missing)
    # half a step is rounding; a float that is kept as a float of less bits loses what these hold
    most = 0.501 * scale if kind.kind in "iu" else 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(back.astype("f8") - values.astype("f8")) <= most + 1e-6 * np.abs(values.astype("f8"))
    return ~(near | missing | (values == back))


def write_region(
    writer: RegionWriter,
    region: Region,
    key: str,
    source: "Between | Sequence[PlacedLoad]",
    names: Sequence[Any],
    needs: Sequence[Any],
    dtype: Any,
    waits: Any = None,
) -> tuple[FileEntry, ...]:
    """Copy a region into its chunks: a task."""
    keep_freed()
    if isinstance(source, Between):
        return writer.write(source.assembled(region), region, key)
    return writer.write(assembled(source, dict(zip(names, needs, strict=True)), region, dtype), region, key)
