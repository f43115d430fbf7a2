"""Ordered passes of a fit: what a learner visits, in which order, and how far ahead of it blocks are prepared."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dask.task_spec import TaskRef

from dpipe.blocks.rows import Tally
from dpipe.errors import InputError
from dpipe.families.compose import Walk
from dpipe.families.epochs import Epochs
from dpipe.families.gradient import foreseen_order, foresees
from dpipe.families.learner_calls import takes
from dpipe.families.program import (
    Keeper,
    Known,
    Mixer,
    Preparer,
    ProgramPass,
    Starter,
    finish_stream,
    learn,
)
from dpipe.families.registry import Estimator
from dpipe.run.graph import GraphBuilder, Input
from dpipe.run.recorded import Recorded
from dpipe.run.stream import Feed, add_stream
from dpipe.train.average import add_averaged
from dpipe.train.resume import freeze, thaw


@dataclass(frozen=True)
class Learning:
    """An ordered pass, ready to be added to a graph."""

    step: ProgramPass
    number: int
    """Of the pass, counted from 1."""
    epochs: Epochs
    rows: tuple[int | None, ...]
    """Of each block, where known."""
    window: int
    """Blocks that are prepared ahead of the learner."""

    def add(self, graph: GraphBuilder, inputs: Sequence[Input], known: Any, recorded: Recorded | None) -> Any:
        """Add all epochs of the pass; give the key of the `Known` after it."""
        feed = self.feed(graph, inputs, known)
        learned = self.add_epochs(feed, recorded, f"pass {self.number}")
        held = graph.hold(f"pass{self.number}", self.step)
        order = graph.hold(f"pass{self.number}-read", self.reading_order(feed))
        finish = f"pass{self.number}-finish"
        return graph.add(finish, finish_learning, held, TaskRef(known), TaskRef(learned), order)

    def reading_order(self, feed: Feed) -> list[int]:
        """Give the blocks of the first epoch of a feed, in the order in which what was read is added up."""
        n_blocks = len(feed.inputs)
        steps: Sequence[int] = range(n_blocks)
        if self.epochs.average is not None:
            rounds = self.epochs.rounds(feed.visits[:n_blocks])
            steps = [i for each in rounds for dealt in each for i in dealt]
        return [feed.block(i) for i in steps]

    def add_epochs(
        self,
        feed: Feed,
        recorded: Recorded | None,
        title: str,
        start: Callable[[Known], Any] | None = None,
    ) -> Any:
        """Add what a feed gives; give the key of the learner after it, and of what was read.

        `start` gives the learner before it; without one it is as it is before the first epoch.
        """
        assert self.step.learner is not None
        start = start or Starter(self.step.learner.index)
        if self.epochs.average is not None:
            return add_averaged(feed, self.epochs, start, self.how_to_learn, recorded, title)
        pages = None if recorded is None else recorded.stream(feed.keys(), title, freeze, thaw)
        return add_stream(feed, start, self.how_to_learn, pages=pages)

    @property
    def how_to_learn(self) -> Callable[..., Any]:
        """What learns one block."""
        return partial(
            learn, batch_size=self.epochs.batch_size, check_classes=self.epochs.classes is not None
        )

    def feed(
        self, graph: GraphBuilder, inputs: Sequence[Input], known: Any, epochs: range | None = None
    ) -> Feed:
        """Give what prepares the blocks of some epochs."""
        step = self.step
        assert step.learner is not None
        mixed = self.epochs.shuffle == "rows"
        # of what is left of a block after rows were held out, the length is not known beforehand
        rows = self.rows if self.epochs.share is None else (None,) * len(inputs)
        return Feed(
            graph,
            inputs,
            known,
            f"pass{self.number}-stream",
            self.epochs.visits(len(inputs), epochs),
            self.epochs.ahead(self.window),
            Preparer(step, mixed=mixed),
            mix=Mixer(step) if mixed else None,
            random_state=self.epochs.random_state,
            given=_learning_orders(graph, step.learner.estimator, rows, f"pass{self.number}-order"),
            keep=Keeper(step) if step.scratch and epochs is None else None,
            folder=step.scratch,
        )


def told_classes(tree: Walk, epochs: Epochs) -> Walk:
    """Tell classifiers that learn in order the classes that are given, so that none must be found.

    Raises
    ------
    InputError
        If classes are given, but nobody takes them.
    """
    if epochs.classes is None:
        return tree
    classes = tuple(epochs.classes)
    fits = [
        replace(fit, classes=classes, wants=())
        if fit.way.kind == "stream" and takes(fit.estimator, "classes")
        else fit
        for fit in tree.fits
    ]
    if not any(fit.classes for fit in fits):
        raise InputError(
            f"classes={list(classes)!r} are given, but no classifier of {tree.fits[tree.root].name} learns in order. "
            "Leave them out."
        )
    return replace(tree, fits=tuple(fits))


def finish_learning(
    step: ProgramPass, known: Known, learned: tuple[Any, Tally], order: Sequence[int]
) -> Known:
    """Finish an ordered pass; what was read is told in the order of the blocks."""
    state, tally = learned
    return finish_stream(step, known, (state, tally.in_order(order)))


def _learning_orders(
    graph: GraphBuilder, estimator: Estimator, rows: Sequence[int | None], name: str
) -> list[Any]:
    """Add tasks that find a learner's order for the lengths that several blocks have; give each block's."""
    lengths = Counter(rows)
    # for other lengths it costs as much as it saves
    repeated = [n for n, times in lengths.items() if n is not None and times > 2]
    found = {n: graph.add(name, foreseen_order, estimator, n) for n in repeated if foresees(estimator, n)}
    return [None if n is None else found.get(n) for n in rows]
