"""A graph in the making, and what loads its blocks.

Nothing in this folder knows estimators: a pass is given as functions of rows and states. Graphs are plain
dictionaries of `dask.task_spec.Task`, so that laziness, retries and the choice of a scheduler
stay Dask's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask.task_spec import DataNode, GraphNode, List, Task, TaskRef
from dask.tokenize import tokenize

from dpipe.blocks.flows import Flows, counting
from dpipe.blocks.rows import Rows, RowsAt
from dpipe.collect.loads import ArrayLoad, Graph, Load
from dpipe.collect.source import Source


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

    def fuse(self, first: Any, then: Any) -> None:
        """Make one task of two, of which only the second one is asked for: they run in one place."""
        self.tasks[then] = GraphNode.fuse(self.tasks.pop(first), self.tasks[then])


def needs_of(load: Load | ArrayLoad) -> Any:
    """List the shared tasks that a load waits for, in the order of its `needs`."""
    return List(*map(TaskRef, load.needs))


@dataclass(frozen=True)
class Input:
    """What loads one block, and the tasks and values that the load waits for."""

    load: Load
    needs: List
    at: RowsAt | None
    key: str = ""
    """Fingerprint of the rows, where a ledger is kept."""


def runs_of(inputs: Sequence[Input], run: int) -> list[Sequence[Input]]:
    """Cut the blocks of a pass into runs of some that follow each other; the last one may be shorter."""
    return [inputs[i : i + run] for i in range(0, len(inputs), run)]


def loaded(load: Load, inputs: Sequence[Any], at: RowsAt | None, block: int) -> tuple[Rows, Flows]:
    """Load a block inside of its task; give its rows, and what operations on their way have counted."""
    with counting(block) as flows:
        rows = load(dict(zip(load.needs, inputs, strict=True)))._replace(at=at)
    return rows, flows


def add_inputs(
    graph: GraphBuilder, source: Source, columns: Sequence[int] | None = None, *, with_X: bool = True
) -> list[Input]:
    """Add the tasks that several blocks share, and give what loads each block.

    `columns` are the positions of the columns of X to read; all without it.
    """
    shared, loads = source.loads(columns, with_X=with_X)
    graph.tasks.update(shared)
    return [Input(load, needs_of(load), at) for load, at in zip(loads, source.places, strict=True)]


def graph_token(*parts: Any) -> str:
    """Name a graph after what it computes."""
    return str(tokenize(*parts))[:16]
