"""What a pass takes from the ledger, and writes there."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from dpipe.blocks.rows import Tally
from dpipe.errors import DpipeError, LedgerError
from dpipe.ledger.book import Pen, Place
from dpipe.ledger.codec import decode, encode
from dpipe.ledger.fingerprint import joined
from dpipe.monitor.events import emit
from dpipe.run.state import PassState

#: States that are merged at a time. Part of the answer: another number gives other rounding.
FAN_IN = 8

#: States up to this size are recorded for each block; larger ones if they are this small a share of its rows.
_SMALL_NBYTES = 64 * 2**10
_WORTH_SHARE = 0.02
#: How much longer the learning between two records of a learner takes than one of them.
_WORTH_TIMES = 100


@dataclass(frozen=True)
class Pages:
    """What a pass takes from the ledger, and how it writes there."""

    pen: Pen | None
    keys: tuple[tuple[str, ...], ...]
    """The fingerprint of each block's state; of each merge of them; and so on up to the last merge, the root."""
    places: Mapping[str, Place]
    """Where those lie that are on record."""
    sizes: tuple[int, ...] = ()
    """Blocks of each state, if not one."""

    @classmethod
    def of(
        cls,
        pen: Pen | None,
        blocks: Sequence[str],
        find: Callable[[str], Place | None],
        sizes: Sequence[int] = (),
    ) -> Self:
        """Look up the blocks of a pass, or runs of them, and all merges."""
        levels = [tuple(blocks)]
        while len(levels[-1]) > 1:
            groups = range(0, len(levels[-1]), FAN_IN)
            levels.append(tuple(joined("merge", *levels[-1][i : i + FAN_IN]) for i in groups))
        found = {key: find(key) for level in levels for key in level}
        places = {key: place for key, place in found.items() if place is not None}
        return cls(pen, tuple(levels), places, tuple(sizes))

    @property
    def root(self) -> str:
        """The key of what the whole pass gives."""
        return self.keys[-1][0]

    @property
    def n_recorded(self) -> int:
        """Blocks that need not be read."""
        return sum(self._covered(len(self.keys) - 1, 0))

    def _covered(self, level: int, i: int) -> list[int]:
        first, last = i * FAN_IN**level, min((i + 1) * FAN_IN**level, len(self.keys[0]))
        if self.keys[level][i] in self.places:
            return [sum(self.sizes[first:last]) if self.sizes else last - first]
        if not level:
            return []
        below = range(i * FAN_IN, min((i + 1) * FAN_IN, len(self.keys[level - 1])))
        return [n for j in below for n in self._covered(level - 1, j)]


def n_states_held(n_states: int, slots: int) -> int:
    """Count the states that are held at a time where merges are chained: what is worked on, and what waits.

    Parameters
    ----------
    n_states : int
        All of a pass: one for each block, or for each run of blocks.
    slots : int
        Blocks that are worked on at a time.

    Examples
    --------
    >>> n_states_held(1, slots=2), n_states_held(60, slots=2), n_states_held(500, slots=2)
    (2, 7, 8)
    """
    levels, n = 0, n_states
    while n > 1:
        levels, n = levels + 1, -(-n // FAN_IN)
    # each level has what it has merged so far; one of them is merging
    return min(2 * slots + levels + 1, 2 * n_states)


@dataclass(frozen=True)
class Entry:
    """The ledger's page for one state: its key, and where it lies if it is on record."""

    pen: Pen | None
    key: str
    place: Place | None = None
    always: bool = False
    """Whether it is recorded whatever its size: what a pass gives in the end."""

    def recalled(self, collect: Callable[..., Any]) -> PassState | None:
        """Give what is on record; None if nothing is, or if that is damaged."""
        if self.place is None:
            return None
        try:
            states, tally = decode(self.place.read())
            return recalled_state(states, tally, collect)
        except LedgerError:
            return None

    def record(self, state: PassState, collect: Callable[..., Any], name: str) -> PassState:
        """Write a state down, if that costs little beside reading its blocks again."""
        if self.pen is None or (state.recorded and not self.always):
            return state
        kept = getattr(collect, "kept", _as_it_is)(state.states)
        try:
            content = encode((kept, state.tally))
        except TypeError as err:
            emit({"pass": name, "unrecorded": str(err)})
            return state
        if not self.always and len(content) > max(_SMALL_NBYTES, _WORTH_SHARE * state.tally.nbytes):
            return state
        self.pen.write(self.key, content, what=name, rows=state.tally.rows, nbytes=state.tally.nbytes)
        return replace(state, recorded=True)


@dataclass(frozen=True)
class Saving:
    """Records a learner once in a while: as often as costs a hundredth of the time at most."""

    pen: Pen | None
    freeze: Callable[[Any], bytes]
    """Gives a learner as bytes."""

    def save(self, key: str, learner: Any, tally: Tally, name: str, *, last: bool) -> None:
        """Record the learner if it is time, or after the last block."""
        if self.pen is None:
            return
        with _paces_lock:
            due, cost = _paces.get(self.pen, (0.0, 0.0))
        began = time.monotonic()  # a clock that is set does not matter
        if began < due and not last:
            return
        try:
            content = encode((self.freeze(learner), tally))
        except (TypeError, DpipeError) as err:
            emit({"pass": name, "unrecorded": str(err)})
            cost = float("inf")
        else:
            self.pen.write(key, content, what=name, rows=tally.rows, nbytes=tally.nbytes)
            cost = time.monotonic() - began
        with _paces_lock:
            _paces[self.pen] = time.monotonic() + _WORTH_TIMES * cost, cost


_paces: dict[Pen, tuple[float, float]] = {}
_paces_lock = threading.Lock()


@dataclass(frozen=True)
class StreamPages:
    """The ledger's pages for an ordered pass: where its learner was last recorded."""

    saving: Saving
    keys: tuple[str, ...]
    """The fingerprint of the learner before the first block, and after each one."""
    begun: int
    """Blocks that it has learned already."""
    place: Place | None
    thaw: Callable[[bytes, Any], Any]
    """Gives the learner of some bytes, and of what it would start from."""

    @classmethod
    def of(
        cls,
        saving: Saving,
        start: str,
        blocks: Sequence[str],
        find: Callable[[str], Place | None],
        thaw: Callable[[bytes, Any], Any],
    ) -> Self:
        """Look for the last record of a learner; `blocks` are those of all epochs, one after another."""
        keys = [start]
        for block in blocks:
            keys.append(joined("learn", keys[-1], block))
        for begun in range(len(keys) - 1, 0, -1):
            place = find(keys[begun])
            if place is not None and _is_whole(place):
                return cls(saving, tuple(keys), begun, place, thaw)
        return cls(saving, tuple(keys), 0, None, thaw)


def _is_whole(place: Place) -> bool:
    try:
        place.read()
    except LedgerError:
        return False
    return True


def _as_it_is(states: Any) -> Any:
    return states


def recalled_state(states: Any, tally: Tally, collect: Callable[..., Any]) -> PassState:
    """Give a state that was read from the ledger: it took no time in this run, and read no block."""
    revived = getattr(collect, "revived", _as_it_is)(states)
    return PassState(revived, tally.recalled(), recorded=True)
