"""Merge passes: one task a block, and a tree of merges over them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

from dask.task_spec import List, TaskRef

from dpipe.blocks.heap import keep_freed, trim
from dpipe.blocks.rows import Rows, RowsAt, Tally
from dpipe.blocks.table import n_rows
from dpipe.blocks.threads import single_threaded_blas
from dpipe.collect.loads import Load
from dpipe.errors import LedgerError
from dpipe.monitor.events import emit
from dpipe.run.graph import GraphBuilder, Input, loaded, runs_of
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
    run: int = 1,
    chained: bool = False,
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
        The ledger's, with a key for each run: what is on record is not read, and what is found is recorded.
    run : int, default 1
        Blocks that are added up in one state, one after the other. Part of the answer, as the tree of merges is.
    chained : bool, default False
        Merge states as they come instead of as soon as all of a merge are there: more tasks, but few states wait.
        The result is the same.
    """
    runs = runs_of(inputs, run)
    tree = _Tree(graph, runs, graph.hold(f"{name}-collect", collect), TaskRef(known), name, pages)
    if slots is not None and len(runs) >= _WORTH_GROUPING * FAN_IN * slots:
        tree.leaves = 1
    tree.n = len(inputs) if counted else None
    tree.run, tree.chained = run, chained
    height = 0
    while FAN_IN**height < len(runs):
        height += 1
    return tree.add(max(height, tree.leaves), 0)


@dataclass
class _Tree:
    """The merges of a pass, added from the top: below what is on record there is nothing to do."""

    graph: GraphBuilder
    runs: Sequence[Sequence[Input]]
    collect: TaskRef
    known: TaskRef
    name: str
    pages: Pages | None
    leaves: int = 0
    """The level whose merges are one task with the blocks below."""
    n: int | None = None
    run: int = 1
    chained: bool = False

    def add(self, level: int, i: int) -> Any:
        """Add the task of a node and of all below it; give its key."""
        entry = self._entry(level, i)
        if level == self.leaves:
            return self._add_leaf(i, entry)
        if entry is not None and entry.place is not None:
            return self.graph.add(f"{self.name}-recall", _recall, entry, self.collect)
        below = range(i * FAN_IN, min((i + 1) * FAN_IN, -(-len(self.runs) // FAN_IN ** (level - 1))))
        parts = [TaskRef(self.add(level - 1, j)) for j in below]
        while self.chained and len(parts) > 2:
            both = self.graph.add(f"{self.name}-merge", _merge, List(*parts[:2]))
            parts[:2] = [TaskRef(both)]
        recording = () if entry is None else (entry, self.collect, self.name)
        return self.graph.add(f"{self.name}-merge", _merge, List(*parts), *recording)

    def _add_leaf(self, i: int, entry: Entry | None) -> Any:
        size = FAN_IN**self.leaves
        first, group = i * size, self.runs[i * size : (i + 1) * size]
        entries = [entry] if not self.leaves else [self._entry(0, first + j) for j in range(len(group))]
        needs = List(*(List(*(each.needs for each in run)) for run in group))
        loads = tuple(
            (tuple((each.load, each.at) for each in run), own)
            for run, own in zip(group, entries, strict=True)
        )
        above = entry if self.leaves else None
        return self.graph.add_block(
            self.name,
            first * self.run,
            _scan_runs,
            loads,
            needs,
            self.collect,
            self.known,
            above,
            self.name,
            first * self.run,
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


_Run = Sequence[tuple[Load, RowsAt | None]]


def _scan_runs(
    runs: Sequence[tuple[_Run, Entry | None]],
    inputs: Sequence[Sequence[Sequence[Any]]],
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
    for (run, page), needs in zip(runs, inputs, strict=True):
        one = None if page is None else page.recalled(collect)
        if one is None:
            one = _scan_run(run, needs, collect, known, name, first, n)
            one = one if page is None else page.record(one, collect, name)
        found = one if found is None else _merge([found, one])
        first += len(run)
    assert found is not None
    return found if entry is None else entry.record(found, collect, name)


def _scan_run(
    run: _Run, inputs: Sequence[Sequence[Any]], collect: Any, known: Any, name: str, first: int, n: int | None
) -> PassState:
    """Add blocks up, one after the other."""
    if len(run) == 1:
        return _scan_block(run[0][0], inputs[0], collect, known, run[0][1], name, first, n)
    sums: list[Any] = []
    add = partial(collect.add, sums)
    tallies = [
        _scan_block(load, needs, add, known, at, name, i, n).tally
        for i, ((load, at), needs) in enumerate(zip(run, inputs, strict=True), start=first)
    ]
    return PassState(collect.added_up(sums), reduce(Tally.merge, tallies))


@single_threaded_blas()
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


@single_threaded_blas()  # a thread of BLAS that has helped once waits for more at full speed, beside the other tasks
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
