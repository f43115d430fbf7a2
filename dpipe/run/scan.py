"""Merge passes: one task a block, and a tree of merges over them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dask.task_spec import List, TaskRef

from dpipe.blocks.heap import keep_freed, trim
from dpipe.blocks.rows import Rows, RowsAt, Tally
from dpipe.blocks.table import n_rows
from dpipe.collect.loads import Load
from dpipe.errors import LedgerError
from dpipe.monitor.events import emit
from dpipe.run.graph import GraphBuilder, Input, loaded
from dpipe.run.pages import FAN_IN, Entry, Pages
from dpipe.run.state import PassState

#: Groups of blocks for each slot from which on a group is one task.
_WORTH_GROUPING = 8


def add_scan(
    graph: GraphBuilder,
    inputs: Sequence[Input],
    collect: Callable[[Rows, Any], tuple[Any, ...]],
    known: Any,
    *,
    name: str,
    counted: bool = True,
    slots: int | None = None,
    pages: Pages | None = None,
) -> Any:
    """Add one merge pass; the result is the key of its merged `PassState`.

    The tree of merges has the same shape whatever the number of workers. Where there are many blocks for
    each of them, one task goes through all blocks of a merge: a task costs the scheduler about as
    much as decoding a thousand rows.

    Parameters
    ----------
    graph : GraphBuilder
    inputs : sequence of Input
        The blocks.
    collect : callable ``(rows, known) -> states``
        Reads one block that has at least one row.
    known : key
        The task that gives what earlier passes have found.
    name : str
        Prefix of the keys, as it stands in the dashboard.
    counted : bool, default True
        Whether progress shows how many blocks are left: not for one of many readings.
    slots : int, optional
        Blocks that are worked on at a time, on all workers; None keeps to one block a task.
    pages : Pages, optional
        The ledger's, with a key for each input: what is on record is not read, and what is found is recorded.
    """
    tree = _Tree(graph, inputs, graph.hold(f"{name}-collect", collect), TaskRef(known), name, pages)
    if slots is not None and len(inputs) >= _WORTH_GROUPING * FAN_IN * slots:
        tree.leaves = 1
    tree.n = len(inputs) if counted else None
    height = 0
    while FAN_IN**height < len(inputs):
        height += 1
    return tree.add(max(height, tree.leaves), 0)


@dataclass
class _Tree:
    """The merges of a pass, added from the top: below what is on record there is nothing to do."""

    graph: GraphBuilder
    inputs: Sequence[Input]
    collect: TaskRef
    known: TaskRef
    name: str
    pages: Pages | None
    leaves: int = 0
    """The level whose merges are one task with the blocks below."""
    n: int | None = None

    def add(self, level: int, i: int) -> Any:
        """Add the task of a node and of all below it; give its key."""
        entry = self._entry(level, i)
        if level == self.leaves:
            return self._add_leaf(i, entry)
        if entry is not None and entry.place is not None:
            return self.graph.add(f"{self.name}-recall", _recall, entry, self.collect)
        below = range(i * FAN_IN, min((i + 1) * FAN_IN, -(-len(self.inputs) // FAN_IN ** (level - 1))))
        parts = List(*(TaskRef(self.add(level - 1, j)) for j in below))
        recording = () if entry is None else (entry, self.collect, self.name)
        return self.graph.add(f"{self.name}-merge", _merge, parts, *recording)

    def _add_leaf(self, i: int, entry: Entry | None) -> Any:
        size = FAN_IN**self.leaves
        first, group = i * size, self.inputs[i * size : (i + 1) * size]
        entries = [entry] if not self.leaves else [self._entry(0, first + j) for j in range(len(group))]
        needs = List(*(each.needs for each in group))
        loads = tuple((each.load, each.at, own) for each, own in zip(group, entries, strict=True))
        above = entry if self.leaves else None
        return self.graph.add_block(
            self.name,
            first,
            _scan_blocks,
            loads,
            needs,
            self.collect,
            self.known,
            above,
            self.name,
            first,
            self.n,
        )

    def _entry(self, level: int, i: int) -> Entry | None:
        if self.pages is None or level >= len(self.pages.keys):
            return None
        key = self.pages.keys[level][i]
        return Entry(self.pages.pen, key, self.pages.places.get(key), always=key == self.pages.root)


def _recall(entry: Entry, collect: Callable[..., Any]) -> PassState:
    found = entry.recalled(collect)
    if found is None:
        assert entry.place is not None
        raise LedgerError(f"{entry.place.path} is damaged. Remove the folder of the ledger, and run again.")
    return found


def _scan_blocks(
    loads: Sequence[tuple[Load, RowsAt | None, Entry | None]],
    inputs: Sequence[Sequence[Any]],
    collect: Callable[..., Any],
    known: Any,
    entry: Entry | None,
    name: str,
    first: int,
    n: int | None,
) -> PassState:
    found = None if entry is None else entry.recalled(collect)
    if found is not None:
        return found
    for i, ((load, at, page), needs) in enumerate(zip(loads, inputs, strict=True), start=first):
        block = None if page is None else page.recalled(collect)
        if block is None:
            block = _scan_block(load, needs, collect, known, at, name, i, n)
            block = block if page is None else page.record(block, collect, name)
        found = block if found is None else _merge([found, block])
    assert found is not None
    return found if entry is None else entry.record(found, collect, name)


def _scan_block(
    load: Load,
    inputs: Sequence[Any],
    collect: Callable[..., Any],
    known: Any,
    at: RowsAt | None,
    name: str,
    i: int,
    n: int | None,
) -> PassState:
    started = time.time()
    keep_freed()
    rows, flows = loaded(load, inputs, at, i)
    states = collect(rows, known) if n_rows(rows.X) else None
    tally = Tally.of(rows, started, flows)
    del rows
    trim(tally.nbytes)
    emit({"pass": name, "block": i, "n_blocks": n, "rows": tally.rows, "nbytes": tally.nbytes})
    return PassState(states, tally)


def _merge(
    parts: Sequence[PassState],
    entry: Entry | None = None,
    collect: Any = None,
    name: str = "",
) -> PassState:
    tally = parts[0].tally
    states = parts[0].states
    for part in parts[1:]:
        tally = tally.merge(part.tally)
        if states is None:
            states = part.states
        elif part.states is not None:
            states = tuple(mine.merge(theirs) for mine, theirs in zip(states, part.states, strict=True))
    merged = PassState(states, tally, recorded=all(part.recorded for part in parts))
    return merged if entry is None else entry.record(merged, collect, name)
