"""The blocks of a source as a loader reads them: their lengths, and what loads each."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import dask
from dask.local import get_sync
from distributed import Future

from dpipe.blocks.rows import Rows
from dpipe.blocks.table import n_rows, take_rows
from dpipe.collect.loads import HeldLoad, Load
from dpipe.collect.source import Source

#: Rows of a block of what is in memory.
HELD_ROWS = 32_768


@dataclass(frozen=True)
class _SliceLoad:
    """Some rows of what is in memory."""

    rows: Rows
    part: slice
    needs: tuple[Any, ...] = ()

    def __call__(self, inputs: Mapping[Any, Any]) -> Rows:
        """Give them, without a copy."""
        return _some_rows(self.rows, self.part)


@dataclass
class Blocks:
    """Loads the blocks of a source, in any thread.

    What several blocks share is computed once, and held.
    """

    source: Source
    threads: int = 1
    _loads: Sequence[Load | _SliceLoad] = field(init=False, repr=False)
    _shared: dict[Any, Any] = field(init=False, repr=False)
    _held: dict[Any, Any] | None = field(default=None, repr=False)
    _lengths: tuple[int, ...] | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._shared, loads = self.source.loads(None)
        self._loads = [part for load in loads for part in _in_slices(load)]
        known = [_length(load) for load in self._loads]
        if self.source.n_blocks == len(known) and None not in self.source.rows:
            known = list(self.source.rows)
        if None not in known:
            self._lengths = tuple(n for n in known if n is not None)

    def __getstate__(self) -> dict[str, Any]:
        """Travel without what is held here, and without the lock."""
        return {**self.__dict__, "_held": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive."""
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def of_cluster(self) -> bool:
        """Whether blocks are held by a cluster, where processes that are not part of it cannot have them."""
        return any(isinstance(task, Future) for task in self._shared.values())

    @property
    def known(self) -> bool:
        """Whether the lengths of all blocks are known."""
        return self._lengths is not None

    @property
    def width(self) -> int:
        """Columns of X."""
        return self.source.n_columns

    @property
    def target_nbytes(self) -> int:
        """Bytes of a row of y and weights, as a guess."""
        return 8 * ((self.source.y is not None) + (self.source.w is not None))

    def one_row(self) -> Rows:
        """Read one row."""
        i = next(i for i, n in enumerate(self.lengths) if n)
        return _some_rows(self.load(i), slice(0, 1))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Rows of each block; those that are not known are counted, in a reading of all blocks."""
        if self._lengths is None:
            with ThreadPoolExecutor(self.threads) as pool:
                self._lengths = tuple(pool.map(lambda i: n_rows(self.load(i).X), range(len(self._loads))))
        return self._lengths

    def tell_lengths(self, lengths: Sequence[int]) -> None:
        """Take lengths that somebody has counted, if they are of all blocks, and not known."""
        if self._lengths is None and len(lengths) == len(self._loads):
            self._lengths = tuple(lengths)

    def load(self, i: int) -> Rows:
        """Load a block."""
        load = self._loads[i]
        if not load.needs:
            return load({})
        held = self._needed()
        return load({key: held[key] for key in load.needs})

    def _needed(self) -> dict[Any, Any]:
        with self._lock:
            if self._held is None:
                keys = sorted({key for load in self._loads for key in load.needs}, key=str)
                tasks = {key: _gathered(task) for key, task in self._shared.items()}
                with dask.config.set(scheduler="synchronous"):
                    self._held = dict(zip(keys, get_sync(tasks, keys), strict=True))
            return self._held


def _some_rows(rows: Rows, part: slice) -> Rows:
    y, w = (None if values is None else values[part] for values in (rows.y, rows.w))
    return Rows(take_rows(rows.X, part), y, w)


def _gathered(task: Any) -> Any:
    """Give what a cluster holds."""
    return task.result() if isinstance(task, Future) else task


def _length(load: Any) -> int | None:
    return load.part.stop - load.part.start if isinstance(load, _SliceLoad) else None


def _in_slices(load: Load) -> Sequence[Load | _SliceLoad]:
    """Cut what is in memory into blocks."""
    if not isinstance(load, HeldLoad):
        return [load]
    n = n_rows(load.rows.X)
    starts = range(0, max(n, 1), HELD_ROWS)
    return [_SliceLoad(load.rows, slice(start, min(start + HELD_ROWS, n))) for start in starts]
