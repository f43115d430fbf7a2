"""What a fit follows from, and how its learner is recorded."""

from collections.abc import Callable
from typing import Any

import skops.io

from dpipe.collect.source import Source
from dpipe.families.compose import Walk
from dpipe.families.epochs import Epochs
from dpipe.families.model_file import open_model
from dpipe.ledger.book import Ledger, Reading
from dpipe.planner import needs_places
from dpipe.run.recorded import Recorded


def recorded_fit(
    ledger: Ledger | Reading,
    name: str,
    source: Source,
    tree: Walk,
    epochs: Epochs,
    note: Callable[[str], None],
) -> Recorded:
    """Look up in a ledger what is done of a fit already; see `dpipe.run.recorded.Recorded`."""
    steps = {f"the parameters of {fit.name}": fit.estimator for fit in tree.fits if fit.is_leaf}
    parts = {
        **steps,
        "the estimator": tree.fits[tree.root].estimator,
        "the columns of X": source.names,
        "the target and the weights": [source.y is not None, source.w is not None],
        **epochs.identity,
    }
    return Recorded(ledger, name, parts, note, placed=needs_places(tree))


def freeze(learner: tuple[Any, Any]) -> bytes:
    """Give a learner as bytes, as skops keeps models: without pickle."""
    return bytes(skops.io.dumps(learner[0]))


def thaw(content: bytes, started: tuple[Any, Any]) -> tuple[Any, Any]:
    """Give the learner of some bytes, beside the classes that it would start with."""
    return open_model(content, (), "the ledger"), started[1]
