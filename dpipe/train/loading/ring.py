"""A ring of buffers that threads fill ahead, and out of which batches are taken.

A buffer holds one piece of a block. Threads take pieces in the order in which batches will need them, each with a free
buffer; the buffers of a group are free again as soon as its last row was taken. With as many buffers as the groups have
pieces that are in use together, somebody can always go on.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpipe.blocks.batch_order import BatchOrder, Group, Piece
from dpipe.blocks.heap import keep_freed

#: Writes a piece of a block into buffers of as many rows.
Fill = Callable[[Piece, Sequence[np.ndarray]], None]
#: Makes room for a batch of some rows: the arrays to write to, and what is given.
Room = Callable[[int], tuple[Sequence[np.ndarray], tuple[Any, ...]]]
#: Seconds between two looks at whether the readers still live.
_LOOK_EVERY_S = 5.0


@dataclass
class _Held:
    """A group in the ring."""

    group: Group
    start: int
    stop: int
    """Rows of its share before it, and up to its end."""
    buffers: list[int] = field(default_factory=list)
    missing: int = 0
    """Pieces that are not there yet."""
    rows: np.ndarray | None = None
    """Where its rows are in the ring, in the order in which they are taken."""


class Ring:
    """The buffers of one epoch, and the threads that fill them.

    Parameters
    ----------
    order : BatchOrder
    epoch, step : int
        Where to begin.
    shares : sequence of int
        The shares that are read.
    parts : sequence of numpy.ndarray
        Of shape (n_buffers * rows, ...), one for each part of a batch.
    n_buffers, rows : int
        How many, and how many rows each can hold.
    fill : callable
    threads : int
    """

    def __init__(
        self,
        order: BatchOrder,
        epoch: int,
        step: int,
        shares: Sequence[int],
        parts: Sequence[np.ndarray],
        rows: int,
        fill: Fill,
        threads: int,
    ) -> None:
        self._order, self._epoch, self._step, self._shares = order, epoch, step, shares
        self._parts, self._rows, self._fill = parts, rows, fill
        self._free = list(range(len(parts[0]) // rows))
        self._changed = threading.Condition()
        self._failed: BaseException | None = None
        self._closed = False
        groups = order.groups(epoch)
        begun = {share: order.begun(share, step) for share in shares}
        self._queues = {
            share: [_Held(each, each.start, each.stop) for each in groups[share] if each.stop > begun[share]]
            for share in shares
        }
        self._pending = self._schedule()
        self._threads = [
            threading.Thread(target=self._read, name=f"dpipe-loader-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _schedule(self) -> Iterator[tuple[_Held, int]]:
        """Give the pieces in the order in which the batches need their groups."""
        of_batch = self._order.counts(0)
        held = [
            (each.group.start // of_batch[share], share, each)
            for share in self._shares
            for each in self._queues[share]
        ]
        for _, _, each in sorted(held, key=lambda item: item[:2]):
            each.missing = len(each.group.pieces)
            for i in range(len(each.group.pieces)):
                yield each, i

    def _read(self) -> None:
        """Fill buffers until there is nothing left to read; what fails is raised where batches are taken."""
        keep_freed()
        try:
            while (taken := self._next()) is not None:
                held, piece, buffer = taken
                first = buffer * self._rows
                self._fill(piece, [part[first : first + piece.n_rows] for part in self._parts])
                with self._changed:
                    held.missing -= 1
                    complete = not held.missing
                if complete:
                    rows = self._places(held)
                    with self._changed:
                        held.rows = rows
                        self._changed.notify_all()
        except BaseException as err:
            with self._changed:
                self._failed = self._failed or err
                self._changed.notify_all()

    def _next(self) -> tuple[_Held, Piece, int] | None:
        """Take the next piece, once there is a free buffer; None at the end."""
        with self._changed:
            while not self._free and not self._closed and self._failed is None:
                self._changed.wait()
            if self._closed or self._failed is not None:
                return None
            found = next(self._pending, None)
            if found is None:
                return None
            held, i = found
            buffer = self._free.pop()
            held.buffers.append(buffer)
            return held, held.group.pieces[i], buffer

    def _places(self, held: _Held) -> np.ndarray:
        """Say where the rows of a group are, in their order."""
        pieces = zip(held.group.pieces, held.buffers, strict=True)
        where = [np.arange(p.n_rows) + buffer * self._rows for p, buffer in pieces]
        found: np.ndarray = np.concatenate(where)[self._order.rows(self._epoch, held.group)]
        return found

    def batches(self, room: Room) -> Iterator[tuple[Any, ...]]:
        """Yield the batches to the end of the epoch."""
        taken = {share: self._order.begun(share, self._step) for share in self._shares}
        for step in range(self._step, self._order.n_steps):
            counts = self._order.counts(step)
            out, batch = room(sum(counts[share] for share in self._shares))
            self._take(out, taken, counts)
            yield batch

    def _take(self, out: Sequence[np.ndarray], taken: dict[int, int], counts: Sequence[int]) -> None:
        """Take the next rows of each share; a buffer is free before another one of its share is waited for."""
        place = 0
        found: list[np.ndarray] = []
        for share in self._shares:
            left = counts[share]
            while left:
                held = self._group(share)
                assert held.rows is not None
                first = taken[share] - held.start
                found.append(held.rows[first : first + left])
                left -= len(found[-1])
                taken[share] += len(found[-1])
                if taken[share] == held.stop:
                    place = self._copy(out, place, found)
                    self._release(share)
        self._copy(out, place, found)

    def _copy(self, out: Sequence[np.ndarray], place: int, found: list[np.ndarray]) -> int:
        """Copy rows out of the ring; give how many the batch has now."""
        if not found:
            return place
        rows = found[0] if len(found) == 1 else np.concatenate(found)
        end = place + len(rows)
        for part, into in zip(self._parts, out, strict=True):
            part.take(rows, 0, into[place:end], "clip")
        found.clear()
        return end

    def _group(self, share: int) -> _Held:
        """Wait for the group of a share whose rows are next.

        Raises
        ------
        Exception
            What a reader has raised.
        """
        held = self._queues[share][0]
        if held.rows is None:
            with self._changed:
                while held.rows is None and self._failed is None:
                    self._changed.wait(_LOOK_EVERY_S)
                if held.rows is None and self._failed is not None:
                    raise self._failed
        return held

    def _release(self, share: int) -> None:
        """Give the buffers of a group back."""
        with self._changed:
            held = self._queues[share].pop(0)
            held.rows = None  # the schedule still knows the group
            self._free += held.buffers
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the readers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
