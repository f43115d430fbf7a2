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
from dpipe.blocks.scratch import ScratchBlock
from dpipe.blocks.table import n_rows, nbytes
from dpipe.collect.loads import Graph, Load, ScratchLoad
from dpipe.collect.source import Source
from dpipe.errors import InputError
from dpipe.monitor.events import emit
from dpipe.sizes import counted

#: States that are merged at a time. Part of the answer: another number gives other rounding.
FAN_IN = 8


#: Groups of blocks for each slot from which on a group is one task.
_WORTH_GROUPING = 8


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


@dataclass(frozen=True)
class Input:
    """What loads one block, and the tasks and values that the load waits for."""

    load: Load
    needs: List
    at: RowsAt | None


def add_inputs(
    graph: GraphBuilder, source: Source, columns: Sequence[int] | None = None, *, with_X: bool = True
) -> list[Input]:
    """Add the tasks that several blocks share, and give what loads each block.

    `columns` are the positions of the columns of X to read; all without it.
    """
    shared, loads = source.loads(columns, with_X=with_X)
    graph.tasks.update(shared)
    return [Input(load, needs_of(load), at) for load, at in zip(loads, source.places, strict=True)]


def add_keep(
    graph: GraphBuilder,
    inputs: Sequence[Input],
    keep: Callable[[Rows, Any], dict[Any, Any]],
    known: Any,
    *,
    name: str,
    folder: str,
) -> list[Any]:
    """Add tasks that keep what is made of each block in scratch; give their keys."""
    held = graph.hold(f"{name}-keep", keep)
    return [
        graph.add_block(
            f"{name}-keep",
            i,
            _keep_block,
            each.load,
            each.needs,
            each.at,
            held,
            TaskRef(known),
            folder,
            graph.token,
        )
        for i, each in enumerate(inputs)
    ]


def kept_inputs(inputs: Sequence[Input], kept: Sequence[Any]) -> list[Input]:
    """Give what loads each block from scratch: `kept` holds keys as `TaskRef`, futures or values."""
    return [Input(ScratchLoad(), List(one), each.at) for each, one in zip(inputs, kept, strict=True)]


def _keep_block(
    load: Load,
    inputs: Sequence[Any],
    at: RowsAt | None,
    keep: Callable[..., dict[Any, Any]],
    known: Any,
    folder: str,
    token: str,
    gate: Any = None,
) -> ScratchBlock:
    keep_freed()
    rows = load(dict(zip(load.needs, inputs, strict=True)))._replace(at=at)
    size = nbytes(rows.X)
    kept = ScratchBlock.write(folder, token, keep(rows, known) if n_rows(rows.X) else {}, rows)
    del rows
    trim(size)
    return kept


def add_scan(
    graph: GraphBuilder,
    inputs: Sequence[Input],
    collect: Callable[[Rows, Any], tuple[Any, ...]],
    known: Any,
    *,
    name: str,
    counted: bool = True,
    slots: int | None = None,
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
    """
    held = graph.hold(f"{name}-collect", collect)
    n = len(inputs) if counted else None
    at_once = FAN_IN if slots is not None and len(inputs) >= _WORTH_GROUPING * FAN_IN * slots else 1
    keys = []
    for i in range(0, len(inputs), at_once):
        group = inputs[i : i + at_once]
        needs = List(*(each.needs for each in group))
        loads = tuple((each.load, each.at) for each in group)
        keys.append(graph.add_block(name, i, _scan_blocks, loads, needs, held, TaskRef(known), name, i, n))
    while len(keys) > 1:
        keys = [
            graph.add(f"{name}-merge", _merge, List(*map(TaskRef, keys[i : i + FAN_IN])))
            for i in range(0, len(keys), FAN_IN)
        ]
    return keys[0]


def _scan_blocks(
    loads: Sequence[tuple[Load, RowsAt | None]],
    inputs: Sequence[Sequence[Any]],
    collect: Callable[..., Any],
    known: Any,
    name: str,
    first: int,
    n: int | None,
) -> PassState:
    found: PassState | None = None
    for i, ((load, at), needs) in enumerate(zip(loads, inputs, strict=True), start=first):
        block = _scan_block(load, needs, collect, known, at, name, i, n)
        found = block if found is None else _merge([found, block])
    assert found is not None
    return found


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
    """
    held = graph.hold(f"{name}-prepare", prepare)
    keeping = None if keep is None else graph.hold(f"{name}-keep", keep)
    step = graph.add(f"{name}-start", _start, start, TaskRef(known))
    steps: list[Any] = []
    total = epochs * len(inputs)
    kept: list[Any] = []
    for position in range(total):
        epoch, i = divmod(position, len(inputs))
        gate = TaskRef(steps[position - window]) if position >= window else None
        load, needs, at = inputs[i].load, inputs[i].needs, inputs[i].at
        if keeping is not None:
            if epoch == 0:
                arguments = load, needs, at, keeping, TaskRef(known), folder, graph.token, gate
                kept.append(graph.add_block(f"{name}-keep", i, _keep_block, *arguments))
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
        )
        steps.append(step)
    return step


def _start(start: Callable[[Any], Any], known: Any) -> tuple[Any, Tally]:
    return start(known), Tally()


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
    rows = load(dict(zip(load.needs, inputs, strict=True)))._replace(at=at)
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
