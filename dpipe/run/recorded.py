"""What is on record of a run's passes: which blocks need not be read, and why others must be.

The key of a state is the fingerprint of all that it follows from: what is fitted, the functions and files behind its
block, and the passes before. What is found under a key is therefore what would be computed.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

from dask.task_spec import GraphNode

from dpipe.collect.loads import GraphLoad, HeldLoad, Load, PartLoad, ReadLoad
from dpipe.errors import LedgerError
from dpipe.ledger.book import Ledger, Place, Reading
from dpipe.ledger.codec import decode, encode
from dpipe.ledger.fingerprint import Fingerprinter, Unknowable, joined
from dpipe.run.graph import Input, runs_of
from dpipe.run.pages import Pages, Saving, StreamPages, recalled_state
from dpipe.run.state import PassState
from dpipe.sizes import counted

#: Their versions decide what comes out.
_PACKAGES = ("dpipe", "scikit-learn", "numpy", "scipy", "pandas", "pyarrow")


class Recorded:
    """The ledger's view of one stage.

    Parameters
    ----------
    ledger : Ledger
    name : str
        Of the stage.
    parts : mapping of str to object
        What the stage follows from beside its blocks, each by a name to tell it by.
    note : callable
        Is told, in words, what is taken from the ledger and why other things are not.
    placed : bool, default False
        Whether it matters where among all rows a block stands.
    """

    def __init__(
        self,
        ledger: Ledger | Reading,
        name: str,
        parts: Mapping[str, Any],
        note: Callable[[str], None],
        *,
        placed: bool = False,
    ) -> None:
        self._ledger, self._name, self._note = ledger, name, note
        self._placed = placed
        self._taker = Fingerprinter()
        self._whole: list[str] = []
        self._parts = {f"the version of {package}": _version(package) for package in _PACKAGES}
        self.history = ""
        try:
            self._parts |= {about: self._taker.of(value) for about, value in parts.items()}
        except Unknowable as err:
            self._give_up(err)
        else:
            self.history = joined(*self._parts.values())

    def _give_up(self, err: Unknowable) -> None:
        self.history = ""
        self._note(f"{self._name}: nothing is recorded, a stopped run begins anew: {err}.")

    @property
    def works(self) -> bool:
        """Whether all that the fit follows from has a fingerprint."""
        return bool(self.history)

    def keyed(
        self, inputs: Sequence[Input], shared: Mapping[Any, Any], *, explain: bool = True
    ) -> list[Input]:
        """Give each input the fingerprint of its rows; say what has changed, unless they are not of the fit."""
        if not self.works:
            return list(inputs)
        try:
            known = _shared_fingerprints(self._taker, shared)
            keys = [self._key_of(each, known) for each in inputs]
        except Unknowable as err:
            self._give_up(err)
            return list(inputs)
        if explain:
            self._explain()
        return [replace(each, key=key) for each, key in zip(inputs, keys, strict=True)]

    def _key_of(self, each: Input, known: Mapping[Any, str]) -> str:
        place = [str(each.at)] if self._placed else []
        if isinstance(each.load, ReadLoad | GraphLoad | PartLoad):
            for block in each.load.files:
                self._parts[f"the file {block.path}"] = str(block.stamp)
        return joined(_load_fingerprint(self._taker, each.load, known), *place)

    def _explain(self) -> None:
        """Say what has changed since the last run of this stage, and remember what it follows from now."""
        functions = {f"the function {name}": found for name, found in self._taker.functions.items()}
        now = {**self._parts, **functions}
        key = f"stage {self._name}"
        place = self._ledger.find(key)
        before = {} if place is None else _told(place)
        if before == now:
            return
        if before:
            changes = _changes(before, now)
            if changes:
                self._note(f"{self._name}: {changes}; what followed from that is not used.")
        if self._ledger.pen is not None:
            self._ledger.pen.write(key, json.dumps(now).encode(), what="stage")

    def pages(self, inputs: Sequence[Input], collects: Any, name: str, run: int = 1) -> Pages | None:
        """Give the pages of a merge pass, or of one reading of a refining one, with a state for each `run` of blocks.

        Readings of which all is on record are told of when one is not, or by `told`.
        """
        if not self.works:
            return None
        try:
            asked = self._taker.of(collects)
        except Unknowable as err:
            self._give_up(err)
            return None
        runs = runs_of(inputs, run)
        blocks = [joined(self.history, asked, *(each.key for each in one)) for one in runs]
        pages = Pages.of(self._ledger.pen, blocks, self._ledger.find, [len(one) for one in runs])
        self.history = joined(self.history, pages.root)
        n_recorded = pages.n_recorded
        if n_recorded == len(inputs):
            self._whole.append(name)
        else:
            self.told()
            if n_recorded:
                self._note(f"{self._name}: {_of_blocks(n_recorded, len(inputs))} of {name} on record.")
        return pages

    def say(self, text: str) -> None:
        """Tell something of this stage."""
        self._note(f"{self._name}: {text}")

    @property
    def ledger(self) -> Ledger | Reading:
        """Where it looks, and writes."""
        return self._ledger

    def told(self) -> None:
        """Tell of the passes and readings that are on record as a whole."""
        if self._whole:
            self._note(f"{self._name}: {_list(_shortened(self._whole), most=9)} on record.")
        self._whole.clear()

    def stream(
        self,
        blocks: Sequence[str],
        name: str,
        freeze: Callable[[Any], bytes],
        thaw: Callable[[bytes, Any], Any],
        sizes: Sequence[int] | None = None,
    ) -> StreamPages | None:
        """Give the pages of an ordered pass, of the fingerprint of what is learned in each step.

        `freeze` and `thaw` turn a learner into bytes and back; `sizes` are the blocks of each step, if not one.
        """
        if not self.works:
            return None
        saving = Saving(self._ledger.pen, freeze)
        pages = StreamPages.of(saving, self.history, blocks, self._ledger.find, thaw)
        self.history = joined(self.history, pages.keys[-1])
        if blocks and pages.begun == len(blocks):
            self._whole.append(name)
            return pages
        self.told()
        if pages.begun:
            counts = [1] * len(blocks) if sizes is None else sizes
            found = _of_blocks(sum(counts[: pages.begun]), sum(counts))
            self._note(f"{self._name}: {found} of {name} on record.")
        return pages

    def rounds(
        self, inputs: Sequence[Input], beside: Sequence[str], name: str
    ) -> tuple[Any, str, Place | None]:
        """Give what a model that learns in rounds is recorded by: the pen, a key, and where it lies if it is finished.

        `beside` are fingerprints of what it follows from beside its blocks; the key is empty where nothing is recorded.
        """
        if not self.works:
            return None, "", None
        key = joined("boost", self.history, *beside, *(each.key for each in inputs))
        place = self._ledger.find(joined("rounds", key, "end"))
        self.history = joined(self.history, key)
        self.told()
        if place is not None:
            self._note(f"{self._name}: {name} on record.")
        return self._ledger.pen, key, place

    def keys_of(self, inputs: Sequence[Input], shared: Mapping[Any, Any]) -> list[str] | None:
        """Give the fingerprints of the rows of other blocks than those to learn from; None if there are none."""
        if not self.works:
            return None
        try:
            known = _shared_fingerprints(self._taker, shared)
            return [_load_fingerprint(self._taker, each.load, known) for each in inputs]
        except Unknowable as err:
            self._give_up(err)
            return None

    def result(self) -> Any:
        """Give what `conclude` has recorded of the same passes; None if there is nothing."""
        self.told()
        place = self._ledger.find(self._end) if self.works else None
        try:
            return None if place is None else decode(place.read())
        except LedgerError:
            return None

    def conclude(self, result: Any) -> None:
        """Record what came of all passes up to here."""
        if self.works and self._ledger.pen is not None:
            self._ledger.pen.write(self._end, encode(result), what=self._name)

    @property
    def _end(self) -> str:
        return joined("end", self.history)


def recalled_root(pages: Pages | None, collect: Any) -> PassState | None:
    """Give what a whole pass gave, if that is on record."""
    place = None if pages is None else pages.places.get(pages.root)
    if place is None:
        return None
    try:
        states, tally = decode(place.read())
        return recalled_state(states, tally, collect)
    except LedgerError:
        return None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _load_fingerprint(taker: Fingerprinter, load: Load, known: Mapping[Any, str]) -> str:
    if isinstance(load, ReadLoad):
        kinds = taker.of(load.reader.schema)
        return joined(kinds, taker.of([load.block, load.X, load.y, load.w]))
    if isinstance(load, GraphLoad):
        found = dict(known)
        for key, task in load.tasks.items():
            found[key] = taker.of_task(task, found)
        return joined(found.get(load.output, str(load.output)), str(load.present))
    if isinstance(load, HeldLoad):
        return taker.of(list(load.rows[:3]))
    if isinstance(load, PartLoad):
        return joined(_load_fingerprint(taker, load.load, known), taker.of(load.part))
    raise Unknowable("a block in scratch has no source")


def _shared_fingerprints(taker: Fingerprinter, shared: Mapping[Any, Any]) -> dict[Any, str]:
    """Fingerprints of the tasks that several blocks need."""
    found: dict[Any, str] = {}
    for start in shared:
        stack = [start]
        while stack:
            key = stack[-1]
            task = shared[key]
            if key in found:
                stack.pop()
            elif not isinstance(task, GraphNode):
                raise Unknowable(f"block {key} is held by a cluster, and its source is not known")
            elif waits := [k for k in task.dependencies if k in shared and k not in found]:
                stack += waits
            else:
                found[stack.pop()] = taker.of_task(task, found)
    return found


def _told(place: Place) -> dict[str, str]:
    try:
        return dict(json.loads(place.read()))
    except (LedgerError, ValueError):
        return {}


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    changed = [name for name in now if name in before and now[name] != before[name]]
    if len(changed) > 1:
        # the parameters of a part are the estimator's, too
        changed = [name for name in changed if name != "the estimator"]
    gone = [name for name in before if name not in now]
    said = []
    if changed:
        said.append(f"{_list(changed)} changed")
    if files := [name for name in gone if name.startswith("the file ")]:
        said.append(f"{_list(files)} {'are' if len(files) > 1 else 'is'} gone")
    return " and ".join(said)


def _list(names: Sequence[str], most: int = 3) -> str:
    more = [f"{len(names) - most} more"] if len(names) > most else []
    *first, last = [*names[:most], *more]
    return f"{', '.join(first)} and {last}" if first else last


def _shortened(names: Sequence[str]) -> list[str]:
    """Count the readings of a pass instead of naming each.

    Examples
    --------
    >>> _shortened(["pass 1", "pass 2, reading 1", "pass 2, reading 2"])
    ['pass 1', 'pass 2 (2 readings)']
    """
    passes = Counter(name.partition(", reading")[0] for name in names)
    read = {name.partition(", reading")[0] for name in names if ", reading" in name}
    return [f"{name} ({counted(n, 'reading')})" if name in read else name for name, n in passes.items()]


def _of_blocks(n: int, total: int) -> str:
    return f"{n:,} of {counted(total, 'block')}"
