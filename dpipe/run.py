"""Passes as Dask graphs: one fused task a block, a tree of merges of fixed shape, ordered windows.

Nothing here knows estimators: a pass is given as functions of rows and states. Graphs are plain
dictionaries of `dask.task_spec.Task`, so that laziness, retries and the choice of a scheduler
stay Dask's.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask.task_spec import DataNode, List, Task, TaskRef
from dask.tokenize import tokenize

from dpipe.blocks.heap import keep_freed, trim
from dpipe.blocks.rows import Rows, RowsAt, Tally
from dpipe.blocks.table import n_rows
from dpipe.collect.loads import Graph, Load
from dpipe.collect.source import Source
from dpipe.errors import InputError
from dpipe.monitor.events import emit
from dpipe.sizes import counted

#: States that are merged at a time. Part of the answer: another number gives other rounding.
FAN_IN = 8


@dataclass(frozen=True)
class PassState:
    """What a pass has collected over some blocks: states, and the tally of what was read."""

    states: tuple[Any, ...] | None
    """One for each statistic; None if no row has been seen."""
    tally: Tally


@dataclass
class GraphBuilder:
    """A graph in the making."""

    token: str
    tasks: Graph = field(default_factory=dict)
    _n: int = 0

    def add(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Add one task and give its key."""
        self._n += 1
        key = f"{name}-{self.token}-{self._n}"
        self.tasks[key] = Task(key, function, *args)
        return key

    def hold(self, name: str, value: Any) -> TaskRef:
        """Add a value that many tasks use, so that it travels to each worker once."""
        self._n += 1
        key = f"{name}-{self.token}-{self._n}"
        self.tasks[key] = DataNode(key, value)
        return TaskRef(key)

    def add_block(self, name: str, block: int, function: Callable[..., Any], *args: Any) -> Any:
        """Add the task of one block and give its key; tasks of one pass share a prefix."""
        key = (f"{name}-{self.token}", block)
        self.tasks[key] = Task(key, function, *args)
        return key


def needs_of(load: Load) -> Any:
    """List the shared tasks that a load waits for, in the order of its `needs`."""
    return List(*map(TaskRef, load.needs))


def add_scan(
    graph: GraphBuilder,
    source: Source,
    columns: Sequence[int] | None,
    collect: Callable[[Rows, Any], tuple[Any, ...]],
    known: Any,
    *,
    name: str,
    with_X: bool = True,
) -> Any:
    """Add one merge pass; the result is the key of its merged `PassState`.

    Parameters
    ----------
    graph : GraphBuilder
    source : Source
    columns : sequence of int, optional
        Positions of the columns of X to read.
    collect : callable ``(rows, known) -> states``
        Reads one block that has at least one row.
    known : key
        The task that gives what earlier passes have found.
    name : str
        Prefix of the keys, as it stands in the dashboard.
    """
    shared, loads = source.loads(columns, with_X=with_X)
    graph.tasks.update(shared)
    held = graph.hold(f"{name}-collect", collect)
    keys = [
        graph.add_block(
            name, i, _scan_block, load, needs_of(load), held, TaskRef(known), at, name, i, len(loads)
        )
        for i, (load, at) in enumerate(zip(loads, source.places, strict=True))
    ]
    while len(keys) > 1:
        keys = [
            graph.add(f"{name}-merge", _merge, List(*map(TaskRef, keys[i : i + FAN_IN])))
            for i in range(0, len(keys), FAN_IN)
        ]
    return keys[0]


def _scan_block(
    load: Load,
    inputs: Sequence[Any],
    collect: Callable[..., Any],
    known: Any,
    at: RowsAt | None,
    name: str,
    i: int,
    n: int,
) -> PassState:
    started = time.time()
    keep_freed()
    rows = load(dict(zip(load.needs, inputs, strict=True)))._replace(at=at)
    states = collect(rows, known) if n_rows(rows.X) else None
    tally = Tally.of(rows, started)
    del rows
    trim(tally.nbytes)
    emit({"pass": name, "block": i, "n_blocks": n, "rows": tally.rows, "nbytes": tally.nbytes})
    return PassState(states, tally)


def _merge(parts: Sequence[PassState]) -> PassState:
    tally = parts[0].tally
    states = parts[0].states
    for part in parts[1:]:
        tally = tally.merge(part.tally)
        if states is None:
            states = part.states
        elif part.states is not None:
            states = tuple(mine.merge(theirs) for mine, theirs in zip(states, part.states, strict=True))
    return PassState(states, tally)


def add_stream(
    graph: GraphBuilder,
    source: Source,
    columns: Sequence[int] | None,
    prepare: Callable[[Rows, Any, tuple[int, int], Any], Rows],
    start: Callable[[Any], Any],
    learn: Callable[[Any, Rows, tuple[int, int]], Any],
    known: Any,
    *,
    name: str,
    epochs: int,
    window: int,
    given: Sequence[Any] | None = None,
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
    """
    shared, loads = source.loads(columns)
    graph.tasks.update(shared)
    held = graph.hold(f"{name}-prepare", prepare)
    step = graph.add(f"{name}-start", _start, start, TaskRef(known))
    steps: list[Any] = []
    total = epochs * len(loads)
    for position in range(total):
        epoch, i = divmod(position, len(loads))
        gate = TaskRef(steps[position - window]) if position >= window else None
        load = loads[i]
        extra = given[i] if given else None
        found = None if extra is None else TaskRef(extra)
        ready = graph.add_block(
            name,
            position,
            _prepare_block,
            load,
            needs_of(load),
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
        )
        steps.append(step)
    return step


def _start(start: Callable[[Any], Any], known: Any) -> tuple[Any, Tally]:
    return start(known), Tally()


def _prepare_block(
    load: Load,
    inputs: Sequence[Any],
    prepare: Callable[..., Rows],
    known: Any,
    given: Any,
    position: tuple[int, int],
    gate: Any,
) -> tuple[Rows | None, Tally]:
    started = time.time()
    keep_freed()
    rows = load(dict(zip(load.needs, inputs, strict=True)))
    prepared = prepare(rows, known, position, given) if n_rows(rows.X) else None
    tally = Tally.of(rows, started)
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
) -> tuple[Any, Tally]:
    learner, tally = before
    rows, read = ready
    began = time.time()
    if rows is not None:
        learner = learn(learner, rows, position)
    emit({"pass": name, "block": i, "n_blocks": n, "rows": read.rows, "nbytes": read.nbytes})
    worked = Tally(busy_s=time.time() - began, started=began, ended=time.time())
    return learner, tally.merge(read).merge(worked)


def states_of(collected: PassState, what: str) -> tuple[Any, ...]:
    """Give the merged states of a pass.

    Raises
    ------
    InputError
        If no block had any row.
    """
    if collected.states is None:
        raise InputError(
            f"{what}: the data has no rows ({counted(collected.tally.n_blocks, 'block')}). Check the filter "
            "or the files it comes from."
        )
    return collected.states


def graph_token(*parts: Any) -> str:
    """Name a graph after what it computes."""
    return str(tokenize(*parts))[:16]
