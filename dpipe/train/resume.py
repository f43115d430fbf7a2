"""What a fit takes from the ledger: which blocks of which pass are on record, and why others are not.

The key of a state is the fingerprint of all that it follows from: the estimator, the functions and files behind its
block, and the passes before. What is found under a key is therefore what would be computed.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import skops.io
from dask.task_spec import GraphNode

from dpipe.collect.loads import GraphLoad, HeldLoad, Load, ReadLoad
from dpipe.collect.source import Source
from dpipe.errors import LedgerError
from dpipe.families.compose import Walk
from dpipe.families.model_file import open_model
from dpipe.ledger.book import Ledger
from dpipe.ledger.codec import decode, encode
from dpipe.ledger.fingerprint import Fingerprinter, Unknowable, joined
from dpipe.planner import needs_places
from dpipe.run.graph import Input
from dpipe.run.pages import Pages, Saving, StreamPages, recalled_state
from dpipe.run.state import PassState
from dpipe.sizes import counted

#: Their versions decide what comes out.
_PACKAGES = ("dpipe", "scikit-learn", "numpy", "scipy", "pandas", "pyarrow")


class Recorded:
    """The ledger's view of one fit.

    Parameters
    ----------
    ledger : Ledger
    name : str
        Of the stage.
    source : Source
    tree : Walk
        The estimator, taken apart.
    epochs : int
    note : callable
        Is told, in words, what is taken from the ledger and why other things are not.
    """

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        source: Source,
        tree: Walk,
        epochs: int,
        note: Callable[[str], None],
    ) -> None:
        self._ledger, self._name, self._note = ledger, name, note
        self._epochs = epochs
        self._placed = needs_places(tree)
        self._taker = Fingerprinter()
        self._parts: dict[str, str] = {}
        self._blocks: dict[str, str] = {}
        self.history = ""
        try:
            self._begin(source, tree)
        except Unknowable as err:
            note(f"{name}: nothing is recorded, a stopped run begins anew: {err}.")

    @property
    def works(self) -> bool:
        """Whether all that the fit follows from has a fingerprint."""
        return bool(self.history)

    def _begin(self, source: Source, tree: Walk) -> None:
        self._parts = {f"the version of {package}": _version(package) for package in _PACKAGES}
        estimator = tree.fits[tree.root].estimator
        for fit in tree.fits:
            if fit.is_leaf:
                self._parts[f"the parameters of {fit.name}"] = self._taker.of(fit.estimator)
        about = [self._taker.of(source.names), str(source.y is not None), str(source.w is not None)]
        self._parts["the estimator"] = self._taker.of(estimator)
        self._parts["the columns of X"] = joined(*about)
        self.history = joined(*self._parts.values(), str(self._epochs))

    def keyed(self, inputs: Sequence[Input], shared: Mapping[Any, Any]) -> list[Input]:
        """Give each input the fingerprint of its rows."""
        if not self.works:
            return list(inputs)
        try:
            known = _shared_fingerprints(self._taker, shared)
            keys = [self._key_of(each, known) for each in inputs]
        except Unknowable as err:
            self.history = ""
            self._note(f"{self._name}: nothing is recorded, a stopped run begins anew: {err}.")
            return list(inputs)
        return [_with_key(each, key) for each, key in zip(inputs, keys, strict=True)]

    def _key_of(self, each: Input, known: Mapping[Any, str]) -> str:
        place = [str(each.at)] if self._placed else []
        load = each.load
        if isinstance(load, ReadLoad):
            self._parts[f"the file {load.block.path}"] = str(load.block.stamp)
        return joined(_load_fingerprint(self._taker, load, known), *place)

    def explain(self) -> None:
        """Say what has changed since the last run of this stage, and remember what it follows from now."""
        if not self.works:
            return
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
                self._note(f"{self._name}: {changes}; what follows from that is done anew.")
        self._ledger.pen.write(key, json.dumps(now).encode(), what="stage")

    def pages(self, inputs: Sequence[Input], collects: Any, name: str) -> Pages | None:
        """Give the pages of a merge pass, or of one reading of a refining one."""
        if not self.works:
            return None
        try:
            asked = self._taker.of(collects)
        except Unknowable as err:
            self._note(f"{self._name}: {name} is not recorded: {err}.")
            self.history = ""
            return None
        blocks = [joined(self.history, asked, each.key) for each in inputs]
        pages = Pages.of(self._ledger.pen, blocks, self._ledger.find)
        self.history = joined(self.history, pages.root)
        if pages.places:
            self._note(f"{self._name}: {_of_blocks(pages.n_recorded, len(inputs))} of {name} on record.")
        return pages

    def stream(self, inputs: Sequence[Input], name: str) -> StreamPages | None:
        """Give the pages of an ordered pass."""
        if not self.works:
            return None
        blocks = [each.key for _ in range(self._epochs) for each in inputs]
        saving = Saving(self._ledger.pen, freeze)
        pages = StreamPages.of(saving, self.history, blocks, self._ledger.find, thaw)
        self.history = joined(self.history, pages.keys[-1])
        if pages.begun:
            self._note(f"{self._name}: {_of_blocks(pages.begun, len(blocks))} of {name} on record.")
        return pages


def recalled_root(pages: Pages | None, collect: Any) -> PassState | None:
    """Give what a whole pass gave, if that is on record."""
    place = None if pages is None else pages.places.get(pages.root)
    if place is None:
        return None
    try:
        states, tally = decode(place.read())
    except LedgerError:
        return None
    return recalled_state(states, tally, collect)


def freeze(learner: tuple[Any, Any]) -> bytes:
    """Give a learner as bytes, as skops keeps models: without pickle."""
    return encode(bytes(skops.io.dumps(learner[0])))


def thaw(content: bytes, started: tuple[Any, Any]) -> tuple[Any, Any]:
    """Give the learner of some bytes."""
    return open_model(decode(content), (), "the ledger"), started[1]


def _with_key(each: Input, key: str) -> Input:
    return Input(each.load, each.needs, each.at, key)


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


def _told(place: Any) -> dict[str, str]:
    try:
        return dict(json.load(io.BytesIO(place.read())))
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


def _of_blocks(n: int, total: int) -> str:
    return f"{n:,} of {counted(total, 'block')}"
