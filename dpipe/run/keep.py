"""Blocks that are kept between readings: in scratch, or in memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dask.task_spec import List, TaskRef

from dpipe.blocks.heap import keep_freed, trim
from dpipe.blocks.rows import Rows, RowsAt
from dpipe.blocks.scratch import HeldBlock, ScratchBlock
from dpipe.blocks.table import n_rows, nbytes
from dpipe.collect.loads import Load, ScratchLoad
from dpipe.run.graph import GraphBuilder, Input, loaded


def add_keep(
    graph: GraphBuilder,
    inputs: Sequence[Input],
    keep: Callable[[Rows, Any], dict[Any, Any]],
    known: Any,
    *,
    name: str,
    folder: str | None,
) -> list[Any]:
    """Add tasks that keep what is made of each block in a scratch folder, or in memory; give their keys."""
    held = graph.hold(f"{name}-keep", keep)
    return [
        graph.add_block(
            f"{name}-keep",
            i,
            keep_block,
            each.load,
            each.needs,
            each.at,
            held,
            TaskRef(known),
            folder,
            graph.token,
            i,
        )
        for i, each in enumerate(inputs)
    ]


def kept_inputs(inputs: Sequence[Input], kept: Sequence[Any]) -> list[Input]:
    """Give what loads each block from where it is kept: `kept` holds keys as `TaskRef`, futures or values."""
    return [
        replace(each, load=ScratchLoad(), needs=List(one)) for each, one in zip(inputs, kept, strict=True)
    ]


def keep_block(
    load: Load,
    inputs: Sequence[Any],
    at: RowsAt | None,
    keep: Callable[..., dict[Any, Any]],
    known: Any,
    folder: str | None,
    token: str,
    block: int,
    gate: Any = None,
) -> ScratchBlock | HeldBlock:
    """Load one block and keep what is made of it: a task; `gate` is what it has to wait for."""
    keep_freed()
    rows, flows = loaded(load, inputs, at, block)
    size = nbytes(rows.X)
    made = keep(rows, known) if n_rows(rows.X) else {}
    keep_it = HeldBlock.of if folder is None else partial(ScratchBlock.write, folder, token)
    kept: ScratchBlock | HeldBlock = keep_it(made, rows, flows)
    del rows, made
    trim(size)
    return kept
