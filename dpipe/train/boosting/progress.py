"""How far training has come: what is in the ledger, and when to stop."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dpipe.blocks.rows import Tally
from dpipe.errors import LedgerError
from dpipe.ledger.book import Pen, Place, records
from dpipe.ledger.codec import decode, encode
from dpipe.ledger.fingerprint import joined

#: Rounds after which draws of rows and columns begin anew, from a seed of their own, and the booster can be recorded.
STRETCH = 10
#: How much longer the rounds between two records take than one of them.
_WORTH_TIMES = 100


class GroupBroken(Exception):
    """Another learner of those that train a model together is lost; never seen by a caller."""


class Watched(NamedTuple):
    """What a metric was after a round, on the rows that are held out."""

    metric: str
    value: float
    maximize: bool


@dataclass(frozen=True)
class Progress:
    """A booster in the making."""

    model: bytes = b""
    """In the library's own format."""
    n_rounds: int = 0
    history: tuple[tuple[Watched, ...], ...] = ()
    """For each round, the metrics on the rows that are held out."""
    finished: bool = False

    @property
    def tree(self) -> dict[str, Any]:
        """The same in terms of what the ledger can keep."""
        return {
            "model": np.frombuffer(self.model, dtype=np.uint8),
            "n_rounds": self.n_rounds,
            "history": [[list(watched) for watched in each] for each in self.history],
            "finished": self.finished,
        }

    @classmethod
    def of(cls, tree: dict[str, Any]) -> "Progress":
        """Build what `tree` has given."""
        history = tuple(tuple(Watched(*watched) for watched in each) for each in tree["history"])
        return cls(tree["model"].tobytes(), tree["n_rounds"], history, tree["finished"])


class Model(Protocol):
    """A booster that learns round after round, in whatever library."""

    history: list[tuple[Watched, ...]]

    @property
    def resumable(self) -> bool:
        """Whether training can go on from a record between its rounds."""

    @property
    def sampled(self) -> bool:
        """Whether a round draws rows or columns, so that it can go on between two stretches only."""

    def update(self, i: int) -> None:
        """Learn round `i`, counted from 0."""

    def stop(self, i: int) -> bool:
        """Tell whether training ends after round `i`."""

    def model(self) -> bytes:
        """Give all rounds so far, in the library's own format."""


@dataclass(frozen=True)
class RoundPages:
    """The ledger's pages for the rounds of one boosted model."""

    pen: Pen | None
    start: str
    """The fingerprint of all that the rounds follow from."""
    n_rounds: int
    place: Place | None = None
    """Where the finished model lies."""

    def key(self, n_rounds: int) -> str:
        """Name the record of a model after some rounds."""
        return joined("rounds", self.start, str(n_rounds))

    @property
    def end(self) -> str:
        """The name of the record of the finished model."""
        return joined("rounds", self.start, "end")

    def last(self) -> Progress:
        """Look for the last record of a model, now: another worker may have written one."""
        if self.pen is None:
            return Progress()
        found = records(Path(self.pen.folder))
        for n_rounds in range(self.n_rounds, 0, -1):
            place = found.get(self.key(n_rounds))
            try:
                if place is not None:
                    return read(place)[0]
            except LedgerError:
                continue
        return Progress()


def read(place: Place) -> tuple[Progress, Tally]:
    """Read a record.

    Raises
    ------
    LedgerError
        If it is damaged.
    """
    tree, tally = decode(place.read())
    return Progress.of(tree), tally


@dataclass
class Recorder:
    """Writes a model down once in a while: as often as costs a hundredth of the time at most."""

    pages: RoundPages | None
    name: str
    tally: Tally
    remembers: bool = False
    """Whether the last model is kept in memory, too: for the others, if this process is the one that is left."""
    last: Progress = field(default_factory=Progress)
    _due: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, model: Model, n_rounds: int) -> None:
        """Write the model down after some rounds, if it is time and if training could go on from there."""
        writes = self.pages is not None and self.pages.pen is not None
        if not (writes or self.remembers) or not model.resumable:
            return
        if (model.sampled and n_rounds % STRETCH) or time.monotonic() < self._due:
            return
        began = time.monotonic()
        progress = Progress(model.model(), n_rounds, tuple(model.history))
        if self.remembers:
            self.last = progress
        if writes:
            assert self.pages is not None
            self._write(self.pages.key(n_rounds), progress)
        now = time.monotonic()
        self._due = now + _WORTH_TIMES * (now - began)

    def conclude(self, progress: Progress) -> None:
        """Write the finished model down."""
        if self.pages is not None and self.pages.pen is not None:
            self._write(self.pages.end, progress)

    def _write(self, key: str, progress: Progress) -> None:
        assert self.pages is not None
        assert self.pages.pen is not None
        content = encode((progress.tree, self.tally))
        self.pages.pen.write(
            key, content, what=f"{self.name} rounds", rows=self.tally.rows, nbytes=self.tally.nbytes
        )


def seed_of(given: Any, i: int) -> int:
    """Give the seed of the stretch that begins with round `i`; that of the first one is the one that is given."""
    if not i:
        return int(given or 0)
    return int(np.random.SeedSequence([abs(int(given or 0)), i]).generate_state(1)[0] // 2)


def best_round(values: Sequence[float], *, maximize: bool, least: float = 0.0) -> int:
    """Give the first round, counted from 0, that no later one improves by more than `least`.

    Examples
    --------
    >>> best_round([0.5, 0.4, 0.4, 0.45], maximize=False)
    1
    """
    best = 0
    for i, value in enumerate(values):
        gain = value - values[best] if maximize else values[best] - value
        if gain > least:
            best = i
    return best
