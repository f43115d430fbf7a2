"""Graphs of readings: fold blocks into small states, and map blocks beside what was found.

A task loads its blocks itself, one after the other, by running the tasks that only they need. A second reading is
thereby a reading of its own, which waits for what the first one finds: blocks are never held from one to the other.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import GraphNode, List, Task, TaskRef
from dask.tokenize import tokenize

from dpipe.blocks.cells import steps_first
from dpipe.collect.loads import ArrayLoad, Graph, divide_tasks
from dpipe.fields.costs import Step, steps_of, told
from dpipe.run.graph import needs_of

#: Blocks that one task goes through.
RUN = 16
#: At most so many chains of tasks fold the blocks of one state, beside each other.
LANES = 8
#: What their states may take together, in bytes. It is no matter of the budget: bits depend on the lanes.
_LANES_NBYTES = 2**27


@dataclass
class Reading:
    """One reading of the blocks of an array.

    Attributes
    ----------
    loads : dict of tuple of int to ArrayLoad
        By the place of the block.
    tasks : dict
        Tasks that several blocks need, by keys that belong to this reading, and those that were added.
    what : str
        Who reads.
    task_nbytes : int
        What one of its tasks takes at most.
    note : str
        What a plan says of it.
    """

    data: da.Array
    token: str
    loads: dict[tuple[int, ...], ArrayLoad] = field(default_factory=dict)
    tasks: Graph = field(default_factory=dict)
    what: str = ""
    task_nbytes: int = 0
    note: str = ""

    @classmethod
    def of(cls, data: da.Array, purpose: str, task_nbytes: float, note: str = "") -> "Reading":
        """Open the blocks of an array for one purpose; readings for different ones share nothing."""
        token = f"{purpose}-{tokenize(data.name, data.chunks, purpose)}"
        (optimised,) = dask.optimize(data)
        places = list(np.ndindex(data.numblocks))
        keys = [(optimised.name, *place) for place in places]
        shared, divided = divide_tasks(dict(optimised.__dask_graph__()), keys)
        own = sorted((key for key, task in shared.items() if isinstance(task, GraphNode)), key=str)
        renamed = {key: f"{token}-shared-{i}" for i, key in enumerate(own)}
        tasks = {
            renamed.get(key, key): task.substitute(renamed, key=renamed[key]) if key in renamed else task
            for key, task in shared.items()
        }
        loads = {}
        for place, key, (mine, needs) in zip(places, keys, divided, strict=True):
            mine = {name: task.substitute(renamed) for name, task in mine.items()}
            loads[place] = ArrayLoad(mine, renamed.get(key, key), tuple(renamed.get(k, k) for k in needs))
        return cls(data, token, loads, tasks, purpose.partition("-")[0], int(task_nbytes), note)

    def array(
        self, name: str, tasks: Graph, chunks: Any, dtype: Any, dependencies: Sequence[Any] = ()
    ) -> da.Array:
        """Make an array of tasks that belong to this reading.

        Parameters
        ----------
        name : str
            The first part of the keys in `tasks`.
        tasks : dict
        chunks : tuple of tuple of int
        dtype : dtype
        dependencies : sequence of dask.array.Array
            Other arrays whose blocks the tasks need.
        """
        graph = HighLevelGraph.from_collections(
            name, {**self.tasks, **tasks}, dependencies=list(dependencies)
        )
        return told(da.Array(graph, name, chunks, dtype=dtype), self._step(tasks))

    def _step(self, tasks: Graph) -> Step:
        """Count what the tasks read."""
        places = {id(load): place for place, load in self.loads.items()}
        n_read = read_nbytes = 0
        for task in {**self.tasks, **tasks}.values():
            given = task.args if isinstance(task, Task) else ()
            for load in (each for part in given for each in (part if isinstance(part, tuple) else (part,))):
                if id(load) in places:
                    place = places[id(load)]
                    n_read += 1
                    shape = [sizes[i] for sizes, i in zip(self.data.chunks, place, strict=True)]
                    read_nbytes += math.prod(shape) * self.data.dtype.itemsize
        inside = steps_of(self.data)
        return Step(
            token=self.token,
            what=self.what,
            n_blocks=self.data.npartitions,
            nbytes=int(self.data.nbytes),
            n_read=n_read,
            read_nbytes=read_nbytes,
            task_nbytes=self.task_nbytes,
            note=self.note,
            inside=inside,
            source="" if inside else self.data.name,
        )


@dataclass(frozen=True)
class Fold:
    """How the states of a reading are made."""

    kind: Any
    """Their class, with `empty`, `add` and `merged`."""
    axes: tuple[int, ...]
    """Axes of a block that are its steps, in order."""


def fold_blocks(
    reading: Reading,
    name: str,
    fold: Fold,
    begin: tuple[Any, ...],
    blocks: Sequence[tuple[int, tuple[int, ...], Any]],
    lanes: int,
) -> Any:
    """Add the tasks that fold some blocks into one state; give its key.

    Parameters
    ----------
    reading : Reading
    name : str
        The first part of the keys.
    fold : Fold
    begin : tuple
        Arguments of the `empty` of the state.
    blocks : sequence of (lane, place, argument)
        In the order in which they are added; `argument` goes with the block to the `add` of the state.
    lanes : int
        How many lanes there are in all.
    """
    ends = []
    for lane in range(lanes):
        mine = [(place, argument) for number, place, argument in blocks if number == lane]
        before: Any = None
        for i in range(0, len(mine), RUN):
            run = mine[i : i + RUN]
            key = f"{name}-lane{lane}-{i}"
            loads = tuple(reading.loads[place] for place, _ in run)
            arguments = tuple(argument for _, argument in run)
            waits = List(*map(needs_of, loads))
            given = None if before is None else TaskRef(before)
            reading.tasks[key] = Task(key, _folded, fold, begin, given, loads, arguments, waits)
            before = key
        if before is not None:
            ends.append(before)
    if len(ends) == 1:
        return ends[0]
    key = f"{name}-merged"
    reading.tasks[key] = Task(key, _merged, fold, begin, List(*map(TaskRef, ends)))
    return key


def _folded(
    fold: Fold,
    begin: tuple[Any, ...],
    before: Any,
    loads: Sequence[ArrayLoad],
    arguments: Sequence[Any],
    inputs: Sequence[Sequence[Any]],
) -> Any:
    # what another task has given is never changed
    state = fold.kind.empty(*begin) if before is None else fold.kind.merged([before])
    for load, argument, given in zip(loads, arguments, inputs, strict=True):
        state.add(steps_first(_block(load, given), fold.axes), argument)
    return state


def _merged(fold: Fold, begin: tuple[Any, ...], parts: Sequence[Any]) -> Any:
    return fold.kind.merged(parts) if parts else fold.kind.empty(*begin)


def lanes_of(n_blocks: int, state_nbytes: int) -> int:
    """Choose how many chains of tasks fold `n_blocks` into one state: a matter of sizes alone.

    Examples
    --------
    >>> lanes_of(1000, 8), lanes_of(1000, 2**30), lanes_of(3, 8)
    (8, 1, 1)
    """
    return max(1, min(LANES, _LANES_NBYTES // max(state_nbytes, 1), n_blocks // 2))


def map_blocks_beside(
    reading: Reading,
    name: str,
    function: Callable[..., np.ndarray],
    arguments: Callable[[tuple[int, ...]], tuple[Any, ...]],
    dtype: Any,
    others: Sequence[da.Array],
) -> da.Array:
    """Apply a function to each block that a reading loads, beside what other arrays hold.

    Parameters
    ----------
    reading : Reading
    name : str
        The first part of the keys.
    function : callable ``(block, *arguments) -> block``
    arguments : callable
        Gives the arguments for the block at a place: values, and references to blocks of `others`.
    dtype : dtype
    others : sequence of dask.array.Array

    Returns
    -------
    dask.array.Array
        In the same chunks.
    """
    tasks = {}
    for place, load in reading.loads.items():
        key = (name, *place)
        tasks[key] = Task(key, _loaded_beside, function, load, needs_of(load), *arguments(place))
    return reading.array(name, tasks, reading.data.chunks, dtype, others)


def _loaded_beside(
    function: Callable[..., np.ndarray], load: ArrayLoad, inputs: Sequence[Any], *arguments: Any
) -> np.ndarray:
    return function(_block(load, inputs), *arguments)


def _block(load: ArrayLoad, inputs: Sequence[Any]) -> np.ndarray:
    return load(dict(zip(load.needs, inputs, strict=True)))


def block_ref(array: da.Array, place: Sequence[int]) -> TaskRef:
    """Refer to a block, as an argument of a task."""
    return TaskRef((array.name, *place))


def starts_of(sizes: Sequence[int]) -> list[int]:
    """Give where each block begins.

    Examples
    --------
    >>> starts_of((3, 2, 4))
    [0, 3, 5]
    """
    return [0, *np.cumsum(sizes)[:-1].tolist()]


def blocks_over(numblocks: Sequence[int], kept: dict[int, int]) -> list[tuple[int, ...]]:
    """List the places of the blocks that stand at given numbers along the kept axes.

    Examples
    --------
    >>> blocks_over((2, 3), {1: 2})
    [(0, 2), (1, 2)]
    """
    return list(itertools.product(*([kept[i]] if i in kept else range(n) for i, n in enumerate(numblocks))))
