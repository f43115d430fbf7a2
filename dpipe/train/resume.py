"""What a fit follows from, and how its learner is recorded."""

from collections.abc import Callable
from typing import Any

from dpipe.collect.source import Source
from dpipe.families.compose import Walk
from dpipe.families.epochs import Epochs
from dpipe.families.model_file import open_model, skops_io, unknown_types
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
    """Give a learner as bytes, as skops keeps models: without pickle.

    Raises
    ------
    TypeError
        If it holds objects of other classes than its own which nobody knows to be harmless: it could not be read back.
    """
    try:
        content = bytes(skops_io().dumps(learner[0]))
    except Exception as err:
        raise TypeError(f"a {type(learner[0]).__name__} cannot be kept: {err}") from err
    if unknown := unknown_types(content, _own(learner[0])):
        raise TypeError(f"a {type(learner[0]).__name__} cannot be kept: it holds {', '.join(unknown)}")
    return content


def thaw(content: bytes, started: tuple[Any, Any]) -> tuple[Any, Any]:
    """Give the learner of some bytes, beside the classes that it would start with."""
    return open_model(content, _own(started[0]), "the ledger"), started[1]


def _own(learner: Any) -> tuple[str, ...]:
    """Name the learner's own class: whoever passes an instance trusts it."""
    return (f"{type(learner).__module__}.{type(learner).__qualname__}",)
