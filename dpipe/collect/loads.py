"""One block of any input as a `Load`: a picklable callable that gives its `Rows` inside one task."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import scipy.sparse as sp
from dask._task_spec import convert_legacy_graph  # parts of Dask still write graphs of tuples
from dask.base import flatten
from dask.highlevelgraph import MaterializedLayer
from dask.task_spec import DataNode, GraphNode, Task

from dpipe.blocks.flows import tell_again
from dpipe.blocks.held_out import HeldOut
from dpipe.blocks.rows import Rows, as_target, checked
from dpipe.blocks.scratch import HeldBlock, ScratchBlock
from dpipe.blocks.table import plain_strings
from dpipe.collect.csv import CsvBlock
from dpipe.collect.parquet import BlockSpec, ParquetReader
from dpipe.errors import SourceError

Graph = dict[Any, Any]


@dataclass(frozen=True)
class ReadLoad:
    """Load a block by decoding it straight to Arrow."""

    reader: ParquetReader
    block: BlockSpec
    X: tuple[str, ...]
    y: str | None
    w: str | None
    needs: tuple[Any, ...] = ()

    @property
    def files(self) -> tuple[BlockSpec, ...]:
        """The part of a file that it reads."""
        return (self.block,)

    def __call__(self, inputs: Mapping[Any, Any]) -> Rows:
        """Decode the block: all columns in one read."""
        wanted = dict.fromkeys([*self.X, *(name for name in (self.y, self.w) if name is not None)])
        table = self.reader.read(self.block, list(wanted))
        target = None if self.y is None else as_target(table.column(self.y))
        weights = None if self.w is None else as_target(table.column(self.w))
        return Rows(table.select(list(self.X)), target, weights)


@dataclass(frozen=True)
class GraphLoad:
    """Load a block by running the tasks of a Dask graph that only this block needs."""

    tasks: Graph
    output: Any
    """Key of a tuple of X, y and weights."""
    needs: tuple[Any, ...]
    """Keys that other blocks need, too, or that a worker holds already: computed outside, once."""
    present: tuple[bool, bool, bool]
    """Which of X, y and weights the tuple holds."""
    where: str

    def __call__(self, inputs: Mapping[Any, Any]) -> Rows:
        """Run the tasks in order."""
        values = dict(inputs)
        for key, task in self.tasks.items():
            try:
                values[key] = task({k: values[k] for k in task.dependencies})
            except Exception as err:
                explained = _explained(err, self.where)
                explained.add_note(self._told())
                if explained is err:  # an error that were its own cause would be followed for ever
                    raise
                raise explained from err
        packed = iter(values[self.output])
        X, y, w = (next(packed) if there else None for there in self.present)
        return checked(Rows(as_block(X), as_target(y), as_target(w)), self.where)

    @property
    def files(self) -> tuple[BlockSpec | CsvBlock, ...]:
        """The parts of files that its own tasks read."""
        return tuple(block for task in self.tasks.values() for block in _specs(task))

    def _told(self) -> str:
        """Say which block it was, and of which files."""
        paths = sorted({block.path for block in self.files})
        of = f" of {', '.join(paths)}" if paths else ""
        return (
            f"This was {self.where}{of}. Repair what fails and run again: with a workdir, what was recorded is not "
            "done again."
        )


def _specs(part: Any) -> Iterator[BlockSpec | CsvBlock]:
    """Find the parts of files that a task reads."""
    if isinstance(part, BlockSpec | CsvBlock):
        yield part
    elif isinstance(part, Task):
        for each in (*part.args, *part.kwargs.values()):
            yield from _specs(each)
    elif isinstance(part, DataNode):
        yield from _specs(part.value)
    elif isinstance(part, dict):
        for each in part.values():
            yield from _specs(each)
    elif isinstance(part, list | tuple):
        for each in part:
            yield from _specs(each)


def _explained(err: Exception, where: str) -> Exception:
    """Say in short what Dask says at length when a block of CSV is not of the types of the first file's head."""
    if not isinstance(err, ValueError) or "Mismatched dtypes" not in str(err):
        return err
    types = re.search(r"dtype=\{.*?\}", str(err), re.DOTALL)
    advice = " ".join(types.group().split()) if types else "dtype={name: type}"
    return SourceError(
        f"{where}: it holds other types than the head of the first file. Tell the types: read_csv(..., {advice})."
    )


@dataclass(frozen=True)
class HeldLoad:
    """A block that is in memory already."""

    rows: Rows
    needs: tuple[Any, ...] = ()

    def __call__(self, inputs: Mapping[Any, Any]) -> Rows:
        """Give the rows."""
        return self.rows


@dataclass(frozen=True)
class ScratchLoad:
    """A block that an earlier reading has left in scratch, or in memory."""

    needs: tuple[Any, ...] = ("scratch",)

    def __call__(self, inputs: Mapping[Any, Any]) -> Rows:
        """Map it, or give it as it is."""
        block: ScratchBlock | HeldBlock = inputs["scratch"]
        tell_again(block.flows)
        return block.rows()


@dataclass(frozen=True)
class PartLoad:
    """Some of the rows of a block: those that are held out, or the others."""

    load: "Load"
    part: HeldOut

    @property
    def needs(self) -> tuple[Any, ...]:
        """What the block waits for."""
        return self.load.needs

    @property
    def files(self) -> tuple[BlockSpec, ...]:
        """The parts of files that the block reads."""
        return getattr(self.load, "files", ())

    def __call__(self, inputs: Mapping[Any, Any]) -> Rows:
        """Load the block, and leave the other rows out."""
        return self.part.of(self.load(inputs))


WholeLoad = ReadLoad | GraphLoad | HeldLoad
Load = WholeLoad | ScratchLoad | PartLoad


def as_block(X: Any) -> Any:
    """Give X as one of the kinds that a block may have."""
    if isinstance(X, pd.Series | pd.DataFrame):
        return plain_strings(X.to_frame() if isinstance(X, pd.Series) else X)
    if sp.issparse(X):
        return X.tocsr()
    return X.reshape(-1, 1) if isinstance(X, np.ndarray) and X.ndim == 1 else X


def as_objects(values: Iterable[Any]) -> np.ndarray:
    """Give any values as an array of one dimension, lists and records as they are."""
    return np.fromiter(values, dtype=object)


def _pack(*parts: Any) -> tuple[Any, ...]:
    return parts


def frame_loads(X: dd.DataFrame, y: Any, w: Any) -> tuple[Graph, list[WholeLoad]]:
    """Give what loads each partition, and the tasks that several of them share."""
    parts = [part for part in (X, y, w) if part is not None]
    # one expression for all parts: Dask then reads what they share once
    packed = dd.map_partitions(
        _pack,
        *parts,
        align_dataframes=False,
        meta=pd.Series([], dtype=object),
        enforce_metadata=False,
        token="dpipe-pack",
    ).optimize(fuse=True)
    return _inline(dict(packed.__dask_graph__()), packed, (True, y is not None, w is not None))


def array_loads(X: da.Array, y: Any, w: Any) -> tuple[Graph, list[WholeLoad]]:
    """Give what loads each block of rows, and the tasks that several of them share."""
    parts = [part for part in (X, y, w) if part is not None]
    # one array of tuples for all parts: optimised apart, each would read again what they share
    packed = da.blockwise(
        _pack_blocks,
        "i",
        *(
            item
            for part, axes in zip(parts, "jkl", strict=False)
            for item in (part, "i" + axes * (part.ndim - 1))
        ),
        dtype=object,
        meta=np.empty(0, dtype=object),
        align_arrays=False,
        concatenate=False,
        token="dpipe-pack",
    )
    return packed_loads(packed, (True, y is not None, w is not None))


def packed_loads(packed: da.Array, present: tuple[bool, bool, bool]) -> tuple[Graph, list[WholeLoad]]:
    """Give what loads each block of an array of tuples, which hold X and what is `present` of y and weights."""
    (optimised,) = dask.optimize(packed)
    # optimising loses the futures of an array that a cluster holds; only layers that are written out have any
    graph: Any = packed.__dask_graph__()  # of layers
    layers = graph.layers.values()
    given = {
        key: task for layer in layers if isinstance(layer, MaterializedLayer) for key, task in layer.items()
    }
    return _inline({**given, **optimised.__dask_graph__()}, optimised, present)


def _pack_blocks(*parts: Any) -> tuple[Any, ...]:
    """Take the one block of columns out of each list."""
    return tuple(part[0] if isinstance(part, list) else part for part in parts)


def _inline(given: Graph, packed: Any, present: tuple[bool, bool, bool]) -> tuple[Graph, list[WholeLoad]]:
    """Move the tasks that only one block needs into that block's load.

    What several blocks need (a shuffle, an array held in memory) stays outside as tasks of its own, and
    so does what a cluster holds already: its futures.
    """
    keys = list(flatten(packed.__dask_keys__()))
    shared, divided = divide_tasks(given, keys)
    loads: list[WholeLoad] = [
        GraphLoad(own, output, needs, present, f"block {i}")
        for i, (output, (own, needs)) in enumerate(zip(keys, divided, strict=True))
    ]
    return shared, loads


@dataclass(frozen=True)
class ArrayLoad:
    """Compute one block of an array by the tasks of its graph that only this block needs."""

    tasks: Graph
    output: Any
    needs: tuple[Any, ...]
    """Keys of what several blocks need."""

    def __call__(self, inputs: Mapping[Any, Any]) -> np.ndarray:
        """Run the tasks in order."""
        values = dict(inputs)
        for key, task in self.tasks.items():
            values[key] = task({k: values[k] for k in task.dependencies})
        return np.asarray(values[self.output])


def divide_tasks(given: Graph, keys: Sequence[Any]) -> tuple[Graph, list[tuple[Graph, tuple[Any, ...]]]]:
    """Divide a graph into tasks that several outputs share, and for each output its own, with what they wait for."""
    graph = convert_legacy_graph(given)
    reach = [_ancestors(graph, key) for key in keys]
    users = Counter(key for ancestors in reach for key in ancestors)
    outside = {key for key, n in users.items() if n > 1 or key not in graph}
    divided = []
    for output, ordered in zip(keys, reach, strict=True):
        own = {key: graph[key] for key in ordered if key not in outside}
        needs = {k for task in own.values() for k in task.dependencies if k in outside}
        needs |= {output} & outside
        divided.append((own, tuple(sorted(needs, key=str))))
    return {key: graph[key] if key in graph else given[key] for key in outside}, divided


def _ancestors(graph: Mapping[Any, GraphNode], output: Any) -> list[Any]:
    """All tasks that a key needs, each after those that it needs itself."""
    ordered: dict[Any, None] = {}
    stack: list[tuple[Any, bool]] = [(output, False)]
    while stack:
        key, ready = stack.pop()
        if key in ordered:
            continue
        if ready or key not in graph:  # a future has no task here
            ordered[key] = None
            continue
        stack.append((key, True))
        stack += [(k, False) for k in sorted(graph[key].dependencies, key=str) if k not in ordered]
    return list(ordered)
