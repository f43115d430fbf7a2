"""Rows in and rows out of every stage of a pipeline, and the proof that none was lost or is there twice."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np

from dpipe.blocks.flows import Flow, tell
from dpipe.blocks.table import n_rows
from dpipe.errors import ConservationError, InputError
from dpipe.monitor.record import StageRecord
from dpipe.pipeline.arrays import is_array
from dpipe.pipeline.stages import Stage

#: What each operation has counted, in each of the passes that read it.
Told = Mapping[str, Sequence[Flow]]


def counted(name: str, collection: Any) -> Any:
    """Count the rows of each block of a collection, when it is read, under a name."""
    if isinstance(collection, dd.DataFrame):
        return collection.map_partitions(
            _count, name, meta=collection._meta, enforce_metadata=False, align_dataframes=False
        )
    if isinstance(collection, da.Array) and all(n == 1 for n in collection.numblocks[1:]):
        return da.map_blocks(_count, collection, name, dtype=collection.dtype, meta=collection._meta)
    return collection


def mapped(frame: Any, function: Callable[..., Any], options: Mapping[str, Any], stage: str) -> Any:
    """Apply a function to each block of a frame or an array, and count the rows that go in and come out.

    Raises
    ------
    InputError
        If it fails on a block without rows.
    """
    given = counted(f"{stage}: in", frame)
    try:
        if isinstance(frame, dd.DataFrame):
            # the meta is made here: Dask would try made-up values, which a filter may not like
            meta = function(frame._meta.copy(), **options)
            made = given.map_partitions(function, **options, meta=meta, enforce_metadata=False)
        else:
            made = da.map_blocks(function, given, **options)
    except Exception as err:
        name = getattr(function, "__name__", repr(function))
        raise InputError(
            f"preprocess: {name} fails on a block without rows: {type(err).__name__}: {err}. Its columns are found "
            "that way before anything is read; let it accept an empty block."
        ) from err
    return counted(f"{stage}: out", made)


def _count(block: Any, name: str) -> Any:
    tell(name, {"rows": n_rows(block)})
    return block


def check_flows(stages: Sequence[Stage], told: Told) -> None:
    """Compare what the passes have counted of the same blocks, and of the sides of each split.

    Raises
    ------
    ConservationError
        If rows were lost, are there twice, or are others; it names the stage and the block.
    """
    for name, flows in told.items():
        for first, second in itertools.pairwise(flows):
            i = _differing(first.counts, second.counts)
            if i is not None:
                before, after = first.counts[i, 0], second.counts[i, 0]
                raise ConservationError(
                    f"{name}: block {i} gave {before:,} rows in one pass and {after:,} in another, or others. Files "
                    "changed during the run, or a function before this stage gives other rows each time; make it give "
                    "the same, and run again."
                )
    for stage in stages:
        if stage.kind == "split":
            _check_split(stage.name, told)


def _differing(first: np.ndarray, second: np.ndarray) -> int | None:
    # a pass may read some of the blocks only
    if first.shape != second.shape:
        return None
    differ = np.flatnonzero((first != second).any(axis=1))
    return int(differ[0]) if len(differ) else None


def _check_split(name: str, told: Told) -> None:
    came = longest(told, name)
    sides = [longest(told, f"{name}: side {number}") for number in (0, 1)]
    if came is None or any(side is None or side.n_blocks != came.n_blocks for side in sides):
        return  # only one side was read
    for about in ("rows", "keys"):
        went = sum(side.of_each_block(about) for side in sides if side is not None)
        differ = np.flatnonzero(came.of_each_block(about) != went + came.of_each_block(f"{about} on no side"))
        if len(differ):
            i = int(differ[0])
            n_in = came.of_each_block("rows")[i]
            n_out = [int(side.of_each_block("rows")[i]) for side in sides if side is not None]
            raise ConservationError(
                f"{name}: of block {i}, {n_in:,} rows came in, but {n_out[0]:,} and {n_out[1]:,} went out, or others. "
                "Files changed during the run, or a function before this stage gives other rows each time; make it "
                "give the same, and run again."
            )


def longest(told: Told, name: str) -> Flow | None:
    """Give what the pass that read the most blocks has counted under a name; None if none has."""
    return max(told.get(name, ()), key=lambda flow: flow.n_blocks, default=None)


def with_rows(stage: Stage, record: StageRecord, told: Told, rows: Mapping[int, int]) -> StageRecord:
    """Fill in how many rows a lazy stage took and gave, which only the passes after it have counted.

    Parameters
    ----------
    stage : Stage
    record : StageRecord
    told : mapping
    rows : mapping of int to int
        Rows of collections by their `id`, as far as passes have counted them.
    """
    if stage.kind == "collect":
        n = rows.get(id(stage.outputs[0]))
        if record.rows_out is not None or n is None:
            return record
        return replace(record, rows_in=n, rows_out=n, note=f"{record.note}, {n:,} rows")
    if stage.kind == "preprocess":
        joined = next(
            (longest(told, name) for name in told if name.startswith(f"{stage.name}: merge on")), None
        )
        if joined is not None:
            return replace(record, rows_in=joined.total("rows in"), rows_out=joined.total("rows out"))
        n_in, n_out = (_total(told, f"{stage.name}: {which}", "rows") for which in ("in", "out"))
    elif stage.kind == "split":
        n_in = _total(told, stage.name, "rows")
        nowhere = _total(told, stage.name, "rows on no side")
        n_out = None if n_in is None or nowhere is None else n_in - nowhere
    else:
        return record
    given = [rows.get(id(output)) for output in stage.outputs]
    if n_out is None and None not in given:
        n_out = sum(n for n in given if n is not None)
    return replace(
        record,
        rows_in=record.rows_in if n_in is None else n_in,
        rows_out=record.rows_out if n_out is None else n_out,
    )


def with_samples(stages: Sequence[Stage], records: Sequence[StageRecord]) -> list[StageRecord]:
    """Fill in how many samples the stages of labelled arrays took and gave, as their sizes tell.

    Which dims are samples is what the first stage says that learns from arrays or scores them.
    """
    found = (stage.settings["samples"] for stage in stages if stage.settings.get("samples"))
    named = next(found, {"sample_dims": ()})["sample_dims"]
    dims = (named,) if isinstance(named, str) else tuple(named)

    def n_samples(*values: Any) -> int | None:
        if not dims or not all(is_array(value) and set(dims) <= set(value.sizes) for value in values):
            return None
        n = sum(math.prod(value.sizes[dim] for dim in dims) for value in values)
        return None if math.isnan(n) else int(n)

    made = []
    for stage, record in zip(stages, records, strict=True):
        n_out = n_samples(*stage.outputs) if stage.kind in ("collect", "preprocess", "split") else None
        n_in = None if n_out is None else n_samples(*(stage.inputs or stage.outputs))
        made.append(record if n_out is None else replace(record, rows_in=n_in, rows_out=n_out))
    return made


def rows_taken(stage: Stage, told: Told) -> int | None:
    """Count the rows that came into a lazy stage; None if no pass has told of them."""
    if stage.kind == "split":
        return _total(told, stage.name, "rows")
    return _total(told, f"{stage.name}: in", "rows") if stage.kind == "preprocess" else None


def _total(told: Told, name: str, about: str) -> int | None:
    flow = longest(told, name)
    return None if flow is None else flow.total(about)
