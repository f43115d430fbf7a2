"""What the ledger holds of a search: its end, the scores of each turn, and its candidates as they were last."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpipe.errors import LedgerError
from dpipe.ledger.book import Pen
from dpipe.ledger.codec import decode, encode
from dpipe.ledger.fingerprint import Fingerprinter, Unknowable, joined
from dpipe.run.graph import Input
from dpipe.run.recorded import Recorded
from dpipe.tuning.setup import Setup, opened


@dataclass(frozen=True)
class SearchPages:
    """The ledger's pages of one search; nothing is found nor written where it has no key."""

    recorded: Recorded | None
    key: str
    """Fingerprint of the search: what is recorded under it is what would come out again."""

    @classmethod
    def of(cls, setup: Setup, inputs: Sequence[Input], recorded: Recorded | None) -> "SearchPages":
        """Fingerprint a search and its blocks, those to learn from and those that are held out."""
        if recorded is None or not recorded.works:
            return cls(recorded, "")
        asked = [[(c.ident, c.params, c.learner) for c in setup.space.candidates], setup.metric, setup.seed]
        rules = [bracket.says for bracket in setup.brackets]
        try:
            own = Fingerprinter().of([asked, rules, setup.classes])
        except Unknowable as err:
            recorded.say(f"the search is not recorded, a stopped run begins anew: {err}.")
            return cls(recorded, "")
        return cls(recorded, joined(recorded.history, own, *(each.key for each in inputs)))

    @property
    def pen(self) -> Pen | None:
        """What writes, if anything is to be written."""
        return None if self.recorded is None or not self.key else self.recorded.ledger.pen

    def place(self, key: str) -> Any:
        """Say where a page lies; None if there is none."""
        return None if self.recorded is None or not self.key else self.recorded.ledger.find(key)

    def key_of(self, ident: Any, n_calls: int) -> str:
        """Name the page of a candidate after so many calls."""
        return joined(self.key, str(ident), str(n_calls))

    def find(self, name: str) -> Any:
        """Give what is recorded under a name; None if nothing is, or if it is damaged."""
        place = self.place(joined(self.key, name))
        try:
            return None if place is None else decode(place.read())
        except LedgerError:
            return None

    def write(self, name: str, value: Any) -> None:
        """Record a value under a name."""
        if self.pen is not None:
            self.pen.write(joined(self.key, name), encode(value), what="search", rows=0, nbytes=0)


def tell_search(setup: Setup, what: str, recorded: Recorded) -> None:
    """Say what is on record of a search that is about to run; nothing is computed."""
    train, held = opened(setup, "", recorded)
    pages = SearchPages.of(setup, (*train[0], *held[0]), recorded)
    if pages.find("end") is not None:
        recorded.say(f"{what} is on record.")
        return
    snapshot = pages.find("snapshot") or {}
    n_calls = sum(calls for calls, key in snapshot.values() if pages.place(key) is not None)
    if n_calls:
        recorded.say(f"{n_calls:,} calls of partial_fit of its candidates on record.")
