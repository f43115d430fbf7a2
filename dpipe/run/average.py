"""Ordered passes of several learners at a time, which meet at fixed places of the data.

A round deals some blocks to learners that start from the same weights; at its end one learner is made of them. What
they give depends on the blocks and on how they are dealt, never on who was faster.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from dask.task_spec import List, TaskRef

from dpipe.blocks.rows import Rows, Tally
from dpipe.blocks.table import n_rows
from dpipe.monitor.events import emit
from dpipe.run.pages import Saving, StreamPages
from dpipe.run.stream import Feed, add_start

#: Of each learner of a round the numbers of its steps.
Round = Sequence[Sequence[int]]


def add_average(
    feed: Feed,
    rounds: Sequence[Round],
    start: Callable[[Any], Any],
    learn: Callable[[Any, Rows, tuple[int, int]], Any],
    average: Callable[[Any, Sequence[Any], Sequence[float]], Any],
    *,
    pages: StreamPages | None = None,
) -> Any:
    """Add an ordered pass of several learners; the result is the key of ``(learner, tally)``.

    Parameters
    ----------
    feed : Feed
        What is visited.
    rounds : sequence of rounds
        Which learner makes which steps, until they are averaged.
    start : callable ``(known) -> learner``
    learn : callable ``(learner, rows, (epoch, block)) -> learner``
        Must not change the learner that it is given. Not called for empty blocks.
    average : callable ``(learner before, learners, rows of each) -> learner``
    pages : StreamPages, optional
        The ledger's, with a key for each round.
    """
    graph, name, total = feed.graph, feed.name, len(feed.visits)
    begun = 0 if pages is None else pages.begun
    common = add_start(graph, start, feed.known, name, pages)
    saving = None if pages is None else graph.hold(f"{name}-pages", pages.saving)
    # a learner's first step of a round may begin where this one stands: without, all would where they were averaged
    seats = [graph.add(f"{name}-seat", int, shard) for shard in range(max(map(len, rounds), default=0))]
    steps: dict[int, Any] = {}

    def passed(position: int) -> Any:
        return TaskRef(steps[position]) if position in steps else None

    for number in range(begun, len(rounds)):
        own = [common] * len(rounds[number])
        last = number + 1 == len(rounds)
        # in the order of the data: blocks are prepared in that order
        for position, shard in sorted(
            (i, shard) for shard, dealt in enumerate(rounds[number]) for i in dealt
        ):
            visit = feed.visits[position]
            # a block of its own is prepared by who learns from it: it moves nowhere, and nobody reads ahead
            alone = visit.part is None
            ready = feed.ready(position, _never if alone else passed)
            key = graph.add(
                f"{name}-learn",
                _learn,
                learn,
                TaskRef(own[shard]),
                TaskRef(ready),
                visit.position,
                name,
                position,
                total,
                TaskRef(seats[shard]) if own[shard] == common else None,
            )
            if alone:
                graph.fuse(ready, key)
            steps[position] = own[shard] = key
        common = graph.add(
            f"{name}-average",
            _average,
            average,
            TaskRef(common),
            List(*(TaskRef(key) for key in own if key != common)),
            name,
            last,
            saving,
            pages and pages.keys[number + 1],
        )
    return common


def _never(position: int) -> None:
    return None


def _learn(
    learn: Callable[..., Any],
    before: Any,
    ready: tuple[Rows | None, Tally],
    position: tuple[int, int],
    name: str,
    i: int,
    n: int,
    seat: int | None,
) -> tuple[Any, Tally, int]:
    """Learn one step; with a seat the first one of a round, from what was averaged."""
    learner, tally, learned = before if seat is None else (before[0], Tally(), 0)
    rows, read = ready
    began = time.time()
    if rows is not None:
        learner = learn(learner, rows, position)
        learned += n_rows(rows.X)
    emit({"pass": name, "block": i, "n_blocks": n, "rows": read.rows, "nbytes": read.nbytes})
    worked = Tally(busy_s=time.time() - began, started=began, ended=time.time())
    return learner, tally.merge(read).merge(worked), learned


def _average(
    average: Callable[..., Any],
    before: tuple[Any, Tally],
    shards: Sequence[tuple[Any, Tally, int]],
    name: str,
    last: bool,
    saving: Saving | None,
    key: str | None,
) -> tuple[Any, Tally]:
    common, tally = before
    began = time.time()
    learner = average(common, [learner for learner, _, _ in shards], [learned for _, _, learned in shards])
    for _, read, _ in shards:
        tally = tally.merge(read)
    tally = tally.merge(Tally(busy_s=time.time() - began, started=began, ended=time.time()))
    if saving is not None and key is not None:
        saving.save(key, learner, tally, name, last=last)
    return learner, tally
