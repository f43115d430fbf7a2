"""Ordered passes: blocks in parallel, a bounded window ahead of a learner."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from dask.task_spec import List, TaskRef

from dpipe.blocks.heap import keep_freed, trim
from dpipe.blocks.order import Visit, mixed_rows
from dpipe.blocks.rows import Rows, RowsAt, Tally
from dpipe.blocks.table import n_rows
from dpipe.collect.loads import Load, ScratchLoad
from dpipe.ledger.book import Place
from dpipe.ledger.codec import decode
from dpipe.ledger.fingerprint import joined
from dpipe.monitor.events import emit
from dpipe.run.graph import GraphBuilder, Input, loaded
from dpipe.run.keep import keep_block
from dpipe.run.pages import Saving, StreamPages

#: Gives what a task must wait for before a step's block may be loaded: a step that far back, or nothing.
Passed = Callable[[int], Any]


@dataclass
class Feed:
    """Adds the tasks that prepare what a learner visits: in parallel, a bounded number of blocks ahead of it.

    Parameters
    ----------
    visits : sequence of Visit
        What the learner is given, step by step.
    prepare : callable ``(rows, known, (epoch, block), given) -> rows``
        Transforms one block; runs in parallel.
    mix : callable ``(rows of several blocks, chosen, known, position, given) -> rows``
        Takes rows out of several prepared blocks, for visits that mix them.
    random_state : int
        Seeds the mixing.
    window : int
        Blocks in flight, beside those that are mixed.
    given : sequence of keys or None, optional
        For each block a task that does not wait for the data, whose result `prepare`, or `mix`, is given.
    keep, folder : callable ``(rows, known) -> values`` and str, optional
        Keep what is made of each block in this folder, for the epochs after the first.
    """

    graph: GraphBuilder
    inputs: Sequence[Input]
    known: Any
    name: str
    visits: Sequence[Visit]
    window: int
    prepare: Callable[..., Any]
    mix: Callable[..., Any] | None = None
    random_state: int = 0
    given: Sequence[Any] | None = None
    keep: Callable[[Rows, Any], dict[Any, Any]] | None = None
    folder: str | None = None
    n_added: int = 0
    """Blocks that are loaded so far."""
    _kept: dict[int, Any] = field(default_factory=dict)
    _groups: dict[tuple[int, int], tuple[List, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._prepare = self.graph.hold(f"{self.name}-prepare", self.prepare)
        self._mix = None if self.mix is None else self.graph.hold(f"{self.name}-mix", self.mix)
        self._keep = None if self.keep is None else self.graph.hold(f"{self.name}-keep", self.keep)

    def keys(self) -> list[str]:
        """Give the fingerprint of what each visit gives."""
        return [joined(*(self.inputs[block].key for block in visit.blocks)) for visit in self.visits]

    def block(self, step: int) -> int:
        """Give the block that a step is the first to read; of mixed ones one each."""
        visit = self.visits[step]
        return visit.blocks[visit.part or 0]

    def ready(self, step: int, passed: Passed) -> Any:
        """Add what prepares a step's rows; give the key of the rows, None without any, and of what was read."""
        visit = self.visits[step]
        extra = self.given[self.block(step)] if self.given else None
        found = None if extra is None else TaskRef(extra)
        if visit.part is None:
            return self._add(step, visit.blocks[0], visit.epoch, found, passed(step - self.window))
        prepared, order = self._group(step - visit.part, visit, passed)
        return self.graph.add_block(
            f"{self.name}-mix",
            step,
            _mix_part,
            prepared,
            TaskRef(order),
            visit.part,
            self._mix,
            TaskRef(self.known),
            visit.position,
            found,
            passed(step - self.window),
        )

    def _group(self, first: int, visit: Visit, passed: Passed) -> tuple[List, Any]:
        """Prepare all blocks that are mixed; the last one may not wait for a step of its own group."""
        group = visit.epoch, visit.group
        if group not in self._groups:
            ahead = len(visit.blocks) + self.window
            keys = [
                self._add(first + j, block, visit.epoch, None, passed(first + j - ahead))
                for j, block in enumerate(visit.blocks)
            ]
            prepared = List(*map(TaskRef, keys))
            order = self.graph.add(f"{self.name}-order", _mixed_order, prepared, visit, self.random_state)
            self._groups = {group: (prepared, order)}
        return self._groups[group]

    def _add(self, step: int, block: int, epoch: int, given: Any, gate: Any) -> Any:
        self.n_added += 1
        each = self.inputs[block]
        load, needs = each.load, each.needs
        if self._keep is not None:
            if block not in self._kept:
                kept = (load, needs, each.at, self._keep, TaskRef(self.known), self.folder)
                self._kept[block] = self.graph.add_block(
                    f"{self.name}-keep", block, keep_block, *kept, self.graph.token, block, gate
                )
            load, needs = ScratchLoad(), List(TaskRef(self._kept[block]))
        position = (epoch, block)
        arguments = (load, needs, each.at, self._prepare, TaskRef(self.known), given, position, gate)
        return self.graph.add_block(self.name, step, _prepare_block, *arguments)


def add_stream(
    feed: Feed,
    start: Callable[[Any], Any],
    learn: Callable[[Any, Rows, tuple[int, int]], Any],
    *,
    pages: StreamPages | None = None,
) -> Any:
    """Add one ordered pass; the result is the key of ``(learner, tally)``.

    Blocks are loaded and prepared in parallel, at most a window of them ahead of the learner: the task
    that loads block ``i + window`` depends on the step that learned block ``i``. The bound is a part of
    the graph, so every scheduler keeps it.

    Parameters
    ----------
    feed : Feed
        What the learner visits.
    start : callable ``(known) -> learner``
    learn : callable ``(learner, rows, (epoch, block)) -> learner``
        Must not change the learner that it is given. Not called for empty blocks.
    pages : StreamPages, optional
        The ledger's: the learner goes on from where it was last recorded.
    """
    graph, name, total = feed.graph, feed.name, len(feed.visits)
    begun = 0 if pages is None else pages.begun
    step = add_start(graph, start, feed.known, name, pages)
    saving = None if pages is None else graph.hold(f"{name}-pages", pages.saving)
    steps: list[Any] = []

    def passed(position: int) -> Any:
        return TaskRef(steps[position - begun]) if position >= begun else None

    for position in range(begun, total):
        ready = feed.ready(position, passed)
        step = graph.add(
            f"{name}-learn",
            _learn_block,
            learn,
            TaskRef(step),
            TaskRef(ready),
            feed.visits[position].position,
            name,
            position,
            total,
            saving,
            pages and pages.keys[position + 1],
        )
        steps.append(step)
    return step


def add_start(
    graph: GraphBuilder, start: Callable[[Any], Any], known: Any, name: str, pages: StreamPages | None
) -> Any:
    """Add the task of the learner before the first step, or as it was last recorded, and of what was read."""
    resumed = None if pages is None else pages.place
    return graph.add(f"{name}-start", _start, start, TaskRef(known), resumed, pages and pages.thaw)


def _start(
    start: Callable[[Any], Any], known: Any, place: Place | None, thaw: Callable[[bytes, Any], Any] | None
) -> tuple[Any, Tally]:
    learner = start(known)
    if place is None or thaw is None:
        return learner, Tally()
    content, tally = decode(place.read())
    return thaw(content, learner), tally.recalled()


def _prepare_block(
    load: Load,
    inputs: Sequence[Any],
    at: RowsAt | None,
    prepare: Callable[..., Rows],
    known: Any,
    given: Any,
    position: tuple[int, int],
    gate: Any,
) -> tuple[Rows | None, Tally]:
    started = time.time()
    keep_freed()
    epoch, i = position
    rows, flows = loaded(load, inputs, at, i)
    prepared = prepare(rows, known, position, given) if n_rows(rows.X) else None
    tally = Tally.of(rows, started, {} if epoch else flows)
    del rows
    trim(tally.nbytes)
    return prepared, tally


def _mixed_order(
    prepared: Sequence[tuple[Rows | None, Tally]], visit: Visit, random_state: int
) -> list[np.ndarray]:
    """Find the order of the rows of several blocks, for all visits of their group."""
    return mixed_rows([0 if rows is None else n_rows(rows.X) for rows, _ in prepared], visit, random_state)


def _mix_part(
    prepared: Sequence[tuple[Rows | None, Tally]],
    order: Sequence[np.ndarray],
    part: int,
    mix: Callable[..., Rows],
    known: Any,
    position: tuple[int, int],
    given: Any,
    gate: Any,
) -> tuple[Rows | None, Tally]:
    """Take one visit's rows out of several blocks; of what was read it tells one block."""
    began = time.time()
    tally = prepared[part][1]
    if not len(order[part]):
        return None, tally
    held = [None if rows is None else rows for rows, _ in prepared]
    mixed = mix([rows for rows in held if rows is not None], order[part], known, position, given)
    return mixed, replace(tally, busy_s=tally.busy_s + time.time() - began)


def _learn_block(
    learn: Callable[..., Any],
    before: tuple[Any, Tally],
    ready: tuple[Rows | None, Tally],
    position: tuple[int, int],
    name: str,
    i: int,
    n: int,
    saving: Saving | None = None,
    key: str | None = None,
) -> tuple[Any, Tally]:
    learner, tally = before
    rows, read = ready
    began = time.time()
    if rows is not None:
        learner = learn(learner, rows, position)
    emit({"pass": name, "block": i, "n_blocks": n, "rows": read.rows, "nbytes": read.nbytes})
    worked = Tally(busy_s=time.time() - began, started=began, ended=time.time())
    tally = tally.merge(read).merge(worked)
    if saving is not None and key is not None:
        saving.save(key, learner, tally, name, last=i + 1 == n)
    return learner, tally
