"""Ordered passes: blocks in parallel, a bounded window ahead of a learner."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from dask.task_spec import List, TaskRef

from dpipe.blocks.flows import counting
from dpipe.blocks.heap import keep_freed, trim
from dpipe.blocks.rows import Rows, RowsAt, Tally
from dpipe.blocks.table import n_rows
from dpipe.collect.loads import Load, ScratchLoad
from dpipe.ledger.book import Place
from dpipe.ledger.codec import decode
from dpipe.monitor.events import emit
from dpipe.run.graph import GraphBuilder, Input
from dpipe.run.keep import keep_block
from dpipe.run.pages import Saving, StreamPages


def add_stream(
    graph: GraphBuilder,
    inputs: Sequence[Input],
    prepare: Callable[[Rows, Any, tuple[int, int], Any], Rows],
    start: Callable[[Any], Any],
    learn: Callable[[Any, Rows, tuple[int, int]], Any],
    known: Any,
    *,
    name: str,
    epochs: int,
    window: int,
    given: Sequence[Any] | None = None,
    keep: Callable[[Rows, Any], dict[Any, Any]] | None = None,
    folder: str | None = None,
    pages: StreamPages | None = None,
) -> Any:
    """Add one ordered pass; the result is the key of ``(learner, tally)``.

    Blocks are loaded and prepared in parallel, at most `window` of them ahead of the learner: the task
    that loads block ``i + window`` depends on the step that learned block ``i``. The bound is a part of
    the graph, so every scheduler keeps it.

    Parameters
    ----------
    prepare : callable ``(rows, known, (epoch, block), given) -> rows``
        Transforms one block; runs in parallel.
    start : callable ``(known) -> learner``
    learn : callable ``(learner, rows, (epoch, block)) -> learner``
        Must not change the learner that it is given. Not called for empty blocks.
    epochs : int
        How often the blocks are read.
    window : int
        Blocks in flight.
    given : sequence of keys or None, optional
        For each block a task that does not wait for the data, whose result `prepare` is given.
    keep, folder : callable ``(rows, known) -> values`` and str, optional
        Keep what is made of each block in this folder, for the epochs after the first.
    pages : StreamPages, optional
        The ledger's: the learner goes on from where it was last recorded.
    """
    held = graph.hold(f"{name}-prepare", prepare)
    keeping = None if keep is None else graph.hold(f"{name}-keep", keep)
    total = epochs * len(inputs)
    begun = 0 if pages is None else pages.begun
    resumed = None if pages is None else pages.place
    step = graph.add(f"{name}-start", _start, start, TaskRef(known), resumed, pages and pages.thaw)
    saving = None if pages is None else graph.hold(f"{name}-pages", pages.saving)
    steps: list[Any] = []
    kept: dict[int, Any] = {}
    for position in range(begun, total):
        epoch, i = divmod(position, len(inputs))
        gate = TaskRef(steps[position - begun - window]) if position - begun >= window else None
        load, needs, at = inputs[i].load, inputs[i].needs, inputs[i].at
        if keeping is not None:
            if i not in kept:
                arguments = load, needs, at, keeping, TaskRef(known), folder, graph.token, i, gate
                kept[i] = graph.add_block(f"{name}-keep", i, keep_block, *arguments)
            load, needs = ScratchLoad(), List(TaskRef(kept[i]))
        extra = given[i] if given else None
        found = None if extra is None else TaskRef(extra)
        ready = graph.add_block(
            name,
            position,
            _prepare_block,
            load,
            needs,
            at,
            held,
            TaskRef(known),
            found,
            (epoch, i),
            gate,
        )
        step = graph.add(
            f"{name}-learn",
            _learn_block,
            learn,
            TaskRef(step),
            TaskRef(ready),
            (epoch, i),
            name,
            position,
            total,
            saving,
            pages and pages.keys[position + 1],
        )
        steps.append(step)
    return step


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
    with counting(i) as flows:
        rows = load(dict(zip(load.needs, inputs, strict=True)))._replace(at=at)
    prepared = prepare(rows, known, position, given) if n_rows(rows.X) else None
    tally = Tally.of(rows, started, {} if epoch else flows)
    del rows
    trim(tally.nbytes)
    return prepared, tally


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
