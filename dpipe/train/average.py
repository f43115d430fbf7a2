"""Data-parallel learning: blocks are dealt to several learners, whose weights are averaged at fixed places."""

from collections.abc import Callable, Sequence
from typing import Any

from dpipe.families.averaged import averaged, check_averaged
from dpipe.families.compose import Walk
from dpipe.families.epochs import Epochs
from dpipe.ledger.fingerprint import joined
from dpipe.run.average import add_average
from dpipe.run.recorded import Recorded
from dpipe.run.stream import Feed
from dpipe.train.resume import freeze, thaw


def check_average(tree: Walk, epochs: Epochs) -> None:
    """Refuse to average what cannot be.

    Raises
    ------
    UnsupportedEstimatorError
        With what can be averaged.
    """
    for fit in tree.fits:
        if epochs.average is not None and fit.is_leaf and fit.way.kind == "stream":
            check_averaged(fit.estimator)


def add_averaged(
    feed: Feed,
    epochs: Epochs,
    start: Callable[[Any], Any],
    learn: Callable[..., Any],
    recorded: Recorded | None,
    title: str,
) -> Any:
    """Add the epochs that a feed gives, to be learned by several; give the key of ``(learner, tally)``."""
    rounds = epochs.rounds(feed.visits)
    pages = None
    if recorded is not None:
        keys = feed.keys()
        blocks = [joined(*(keys[i] for dealt in each for i in dealt)) for each in rounds]
        sizes = [sum(map(len, each)) for each in rounds]
        pages = recorded.stream(blocks, title, freeze, thaw, sizes=sizes)
    return add_average(feed, rounds, start, learn, average_states, pages=pages)


def average_states(before: Any, learners: Sequence[Any], weights: Sequence[float]) -> Any:
    """Average learners, each beside the classes that it knows."""
    return averaged(before[0], [learner for learner, _ in learners], weights), before[1]
