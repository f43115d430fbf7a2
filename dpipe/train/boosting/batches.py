"""Transformed blocks in scratch, as the batches that a boosting library reads."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from dpipe.blocks.heap import keep_freed, trim
from dpipe.blocks.rows import Rows, RowsAt, Tally, peak_nbytes
from dpipe.blocks.scratch import ScratchBlock
from dpipe.blocks.table import n_columns, n_rows, nbytes
from dpipe.collect.loads import Load
from dpipe.errors import InputError
from dpipe.families.boosting import BATCH_NBYTES
from dpipe.monitor.events import emit


@dataclass(frozen=True)
class Kept:
    """One block in scratch, and what was read for it."""

    block: ScratchBlock
    tally: Tally
    shape: tuple[int, int]
    """Rows and columns of what is kept; no columns if there are no rows."""


def keep(
    load: Load,
    inputs: Sequence[Any],
    at: RowsAt | None,
    make: Callable[[Rows, Any], dict[Any, Any]],
    known: Any,
    place: tuple[str, str],
    progress: tuple[str, int, int],
) -> Kept:
    """Load one block and keep what `make` makes of it in scratch: a task.

    `place` is the folder of the scratch file and the token of the graph, `progress` the name of the pass, the number
    of the block, and how many there are.
    """
    started = time.time()
    keep_freed()
    rows = load(dict(zip(load.needs, inputs, strict=True)))._replace(at=at)
    made = make(rows, known) if n_rows(rows.X) else {}
    block = ScratchBlock.write(*place, made, rows)
    shape = next(((n_rows(value), n_columns(value)) for value in made.values()), (0, 0))
    tally = Tally.of(rows, started)
    size = nbytes(rows.X)
    del rows, made
    trim(size)
    name, i, n = progress
    emit({"pass": name, "block": i, "n_blocks": n, "rows": tally.rows, "nbytes": tally.nbytes})
    return Kept(block, tally, shape)


class Batch(NamedTuple):
    """Some rows, as a library takes them."""

    X: Any
    """Row-major or CSR."""
    y: np.ndarray
    w: np.ndarray | None
    groups: np.ndarray | None
    """For rankers, the number of each row's group, counted from 0."""


class Batches:
    """The rows that are kept in some blocks, in batches that depend on the blocks alone.

    Parameters
    ----------
    kept : sequence of Kept
    grouped : bool, default False
        Whether the last column of y tells the groups of a ranker. A group is never cut.
    width : int, default 0
        The number of columns, where there may be no rows to tell it: a single batch has none, then.
    """

    def __init__(self, kept: Sequence[Kept], *, grouped: bool = False, width: int = 0) -> None:
        self._kept = [each for each in kept if each.shape[0]]
        self._grouped = grouped
        self.n_rows = sum(each.shape[0] for each in self._kept)
        self.width = self._kept[0].shape[1] if self._kept else width

    def blocks(self) -> list[Kept]:
        """List the blocks that have rows."""
        return list(self._kept)

    def __iter__(self) -> Iterator[Batch]:
        """Go through the rows; what is given may be a view of scratch, and is read only."""
        if not self._kept and self.width:
            groups = np.empty(0, dtype=np.int64) if self._grouped else None
            return iter([Batch(np.empty((0, self.width), dtype=np.float32), np.empty(0), None, groups)])
        return self._in_groups() if self._grouped else self._plain()

    def _plain(self) -> Iterator[Batch]:
        together: list[Rows] = []
        size = 0
        for kept in self._kept:
            rows = kept.block.rows()
            own = nbytes(rows.X)
            if together and size + own > BATCH_NBYTES:
                yield _joined(together)
                together, size = [], 0
            together.append(rows)
            size += own
        if together:
            yield _joined(together)

    def _in_groups(self) -> Iterator[Batch]:
        seen: set[float] = set()
        held: Rows | None = None
        for batch in self._plain():
            rows = Rows(batch.X, batch.y, batch.w)
            if held is not None:
                ids = _ids(held)
                # its last group may go on in this batch
                last = int(np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))[-1])
                if last:
                    yield _numbered(_cut(held, slice(0, last)), seen)
                rows = _stacked([_cut(held, slice(last, None)), rows])
            held = rows
        if held is not None:
            yield _numbered(held, seen)

    def targets(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Give y, weights, and the sizes of the groups, of all rows."""
        found = [kept.block.rows() for kept in self._kept]
        y = np.concatenate([rows.y for rows in found])
        w = None if found[0].w is None else np.concatenate([rows.w for rows in found])
        if not self._grouped:
            return y, w, None
        ids = y[:, -1]
        starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
        check_contiguous(ids[starts], set())
        return y[:, 0], w, np.diff(np.append(starts, len(ids)))


def _ids(rows: Rows) -> np.ndarray:
    assert rows.y is not None
    found: np.ndarray = rows.y[:, -1]
    return found


def _joined(together: Sequence[Rows]) -> Batch:
    rows = together[0] if len(together) == 1 else _stacked(together)
    assert rows.y is not None
    return Batch(rows.X, rows.y, rows.w, None)


def _stacked(parts: Sequence[Rows]) -> Rows:
    matrices = [part.X for part in parts]
    X = sp.vstack(matrices, format="csr") if sp.issparse(matrices[0]) else np.concatenate(matrices)
    y = np.concatenate([part.y for part in parts if part.y is not None])
    weights = [part.w for part in parts if part.w is not None]
    return Rows(X, y, np.concatenate(weights) if weights else None)


def _cut(rows: Rows, part: slice) -> Rows:
    assert rows.y is not None
    return Rows(rows.X[part], rows.y[part], None if rows.w is None else rows.w[part])


def _numbered(rows: Rows, seen: set[float]) -> Batch:
    """Number the groups of some rows, after those that were seen."""
    assert rows.y is not None
    ids = _ids(rows)
    begins = np.append(True, ids[1:] != ids[:-1])
    first = len(seen)
    check_contiguous(ids[begins], seen)
    return Batch(rows.X, rows.y[:, 0], rows.w, first + np.cumsum(begins) - 1)


def check_contiguous(ids: np.ndarray, seen: set[float]) -> None:
    """Refuse a group that begins twice; `seen` are those that began before, and takes up these.

    Raises
    ------
    InputError
        If one does.
    """
    before = len(seen)
    seen.update(ids.tolist())
    if len(seen) != before + len(ids):
        raise InputError(
            "qid: the rows of a group must stand together, but some group begins twice. Sort the rows by qid, as by "
            "dpipe.shuffle(frame, by='...') and a sort within each block."
        )


def group_weights(batch: Batch) -> np.ndarray | None:
    """Give the weight of each group, which its rows must agree on."""
    if batch.w is None or batch.groups is None:
        return batch.w
    starts = np.flatnonzero(np.append(True, batch.groups[1:] != batch.groups[:-1]))
    each = batch.w[starts]
    if not np.array_equal(np.repeat(each, np.diff(np.append(starts, len(batch.w)))), batch.w):
        raise InputError(
            "sample_weight: XGBRanker weighs groups, but rows of one group have several weights. Give all rows of a "
            "group the same one."
        )
    return each


def with_time(tally: Tally, began: float) -> Tally:
    """Add the time and the memory of training to what was read."""
    trained = Tally(busy_s=time.time() - began, started=began, ended=time.time(), peak_nbytes=peak_nbytes())
    return tally.merge(trained)
