"""Early stopping: an epoch, its score on rows that were held out, and then perhaps another epoch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from dask.task_spec import TaskRef
from distributed import Client

from dpipe.blocks.held_out import HeldOut
from dpipe.blocks.rows import Rows, Tally
from dpipe.blocks.threads import single_threaded_blas
from dpipe.cluster.local import compute_keys
from dpipe.collect.loads import PartLoad
from dpipe.collect.source import Source, open_source
from dpipe.errors import InputError
from dpipe.families.compose import Fit, Walk, final_fit
from dpipe.families.epochs import Epoch, Epochs
from dpipe.families.program import Keeper, Known, Preparer, ProgramPass
from dpipe.monitor.events import emit
from dpipe.plan_record import PassPlan, Plan
from dpipe.planner import Program, check_budget
from dpipe.run.graph import GraphBuilder, Input, add_inputs
from dpipe.run.keep import add_keep, kept_inputs
from dpipe.run.recorded import Recorded
from dpipe.run.scan import add_scan
from dpipe.run.state import PassState
from dpipe.train.stream import Learning, finish_learning
from dpipe.validate.curves import ScoreRuns, ranking
from dpipe.validate.metrics import METRICS, check_scoring, want_of
from dpipe.validate.states import ScoredBlock, Want

_State = tuple[Any, np.ndarray | None]


@dataclass(frozen=True)
class Validation:
    """What a learner is scored on, and by what."""

    fit: Fit
    metric: str
    source: Source | None
    """Rows of their own; None for a share of those that are learned from."""


def open_validation(tree: Walk, epochs: Epochs, source: Source) -> Validation | None:
    """Check what a fit is to be stopped by; None if it is not.

    Raises
    ------
    InputError
        If the last step does not learn in order, or cannot be scored so, or the rows have other columns.
    """
    if epochs.validation is None:
        return None
    fit = final_fit(tree)
    name = type(fit.estimator).__name__
    if fit.way.kind != "stream" or not fit.way.needs_y:
        raise InputError(
            f"validation is for a last step that learns in order from targets; {name} does not. Leave it out."
        )
    metric = _metric(fit.estimator, epochs.scoring)
    if epochs.share is not None:
        return Validation(fit, metric, None)
    held = open_source(*epochs.validation)
    if tuple(held.names) != tuple(source.names):
        raise InputError(
            f"X of validation has the columns {', '.join(map(repr, held.names))}, but X has "
            f"{', '.join(map(repr, source.names))}. Give both the same columns, in the same order."
        )
    return Validation(fit, metric, held)


def _metric(estimator: Any, scoring: str | None) -> str:
    if scoring is not None and not isinstance(scoring, str):
        raise InputError(f"scoring must be one name, as it decides when to stop, got {scoring!r}.")
    if hasattr(estimator, "__sklearn_tags__"):
        (name,) = check_scoring(scoring, estimator)
        return name
    of_numbers = sorted(name for name, metric in METRICS.items() if metric.task == "regression")
    if scoring not in of_numbers:
        raise InputError(
            f"{type(estimator).__name__} is no estimator of scikit-learn, so no metric is its own. Name one with "
            f"scoring=...: {', '.join(of_numbers)}."
        )
    return scoring


def with_scoring(program: Program, validation: Validation | None, source: Source, epochs: Epochs) -> Program:
    """Put the scoring into a plan: the last pass of it.

    Raises
    ------
    MemoryLimitError
        If its blocks do not fit.
    """
    if validation is None:
        return program
    learning = program.plan.passes[-1]
    times, most = learning.epochs, learning.most_epochs
    held = validation.source
    rows = (source if held is None else held).n_rows
    share = 1.0 if epochs.share is None else epochs.share
    peak, own = learning.projected_nbytes, program.plan.reserved_nbytes
    if peak is not None and held is not None:
        ratio = _block_rows(held) / max(_block_rows(source), 1)
        peak = own + int((peak - own) * max(ratio, 1.0))
    read = None if rows is None else sum((source if held is None else held).row_nbytes.values()) * rows
    kept = bool(learning.scratch_nbytes or learning.scratch)
    said = "a share" if held is None else "rows"
    scoring = PassPlan(
        number=learning.number + 1,
        way="score",
        fits=(),
        collects=(
            f"{validation.metric} of {said} that {type(validation.fit.estimator).__name__} does not learn from",
        ),
        why="scores each epoch, to stop once they get no better",
        rules=(),
        columns=learning.columns,
        n_blocks=(source if held is None else held).n_blocks,
        epochs=times,
        most_epochs=most,
        rows=None if rows is None else round(rows * share) * times,
        nbytes=None if read is None else read * (1 if kept else times),
        projected_nbytes=peak,
    )
    plan: Plan = replace(program.plan, passes=(*program.plan.passes, scoring))
    if peak is not None and plan.projected_nbytes is not None:
        plan = replace(plan, projected_nbytes=max(peak, plan.projected_nbytes))
    check_budget(plan)
    return replace(program, plan=plan)


def _block_rows(source: Source) -> int:
    return max((n or 0 for n in source.rows), default=0)


@dataclass(frozen=True)
class _Scorer:
    """Collects what a metric needs from a block that has rows, transformed and predicted."""

    step: ProgramPass
    want: Want
    labels: tuple[Any, ...]

    def __call__(self, rows: Rows, given: tuple[Known, _State]) -> tuple[Any, ...]:
        known, (learner, _) = given
        ready = Preparer(self.step, mixed=True)(rows, known, (0, 0), None)
        with single_threaded_blas():
            answer = getattr(learner, self.want.method)(ready.X)
        assert ready.y is not None
        weights = None if self.want.state is ScoreRuns else ready.w
        block = ScoredBlock(ready.y, weights, {self.want.method: answer}, self.labels)
        return (self.want.state.of(block, self.want),)


@dataclass(frozen=True)
class _Begun:
    """Gives the learner that the epoch before has ended with."""

    state: _State

    def __call__(self, known: Known) -> _State:
        return self.state


class Stopping:
    """An ordered pass, epoch after epoch, until scores get no better.

    Parameters
    ----------
    learning : Learning
        The pass.
    validation : Validation
    known : Known
        What earlier passes have found.
    inputs : callable ``(graph) -> inputs``
        Adds what loads the blocks of the pass.
    recorded : Recorded, optional
    token : str
        Names the graphs.
    """

    def __init__(
        self,
        learning: Learning,
        validation: Validation,
        known: Known,
        inputs: Callable[[GraphBuilder], list[Input]],
        recorded: Recorded | None,
        token: str,
    ) -> None:
        self.learning, self.validation, self.known = learning, validation, known
        self._add_inputs, self.recorded, self.token = inputs, recorded, token
        classes = known.starts[validation.fit.index][1]
        self._labels = () if classes is None else tuple(classes.tolist())
        self._want = want_of(validation.metric, validation.fit.estimator, self._labels)
        self._state: _State | None = None
        self._kept: tuple[list[Any], list[Any]] = ([], [])
        self._tallies = Tally(), Tally()
        self._first: tuple[list[Input], list[Input]] = ([], [])

    def run(self, client: Client | None, threads: int) -> Known:
        """Learn until it is time to stop; give what is known then."""
        epochs = self.learning.epochs
        best: tuple[float, _State] | None = None
        waited = made = 0
        while made < epochs.n and waited < epochs.patience:
            score = self._epoch(made, client, threads)
            made += 1
            assert self._state is not None
            better = best is None or score > best[0] + epochs.tol
            if better:
                best = score, self._state
            waited = 0 if better else waited + 1
            self._tell(Epoch(made, score, better))
        assert best is not None
        learned, scored = (replace(tally, lengths=(), n_readings=made) for tally in self._tallies)
        known = finish_learning(
            self.learning.step, self.known, (best[1], learned), range(len(self._first[0]))
        )
        return replace(known, tallies=(*known.tallies, scored))

    def _tell(self, epoch: Epoch) -> None:
        name = f"{type(self.validation.fit.estimator).__name__}: {self.validation.metric} after each epoch"
        emit({"curve": name, "epoch": epoch.number, "score": epoch.score})
        if self.learning.epochs.on_epoch is not None:
            self.learning.epochs.on_epoch(epoch)

    def _epoch(self, number: int, client: Client | None, threads: int) -> float:
        """Learn once from all blocks, and score what came of it."""
        graph = GraphBuilder(f"{self.token}-epoch{number}")
        known = graph.hold("known", self.known).key
        inputs, held = self._inputs(graph)
        keys: list[Any] = []
        if self.learning.step.scratch and not self._kept[0]:
            keeper, folder = Keeper(self.learning.step), self.learning.step.scratch
            name = f"pass{self.learning.number}"
            parts = [
                add_keep(graph, each, keeper, known, name=f"{name}-{what}", folder=folder)
                for what, each in (("learn", inputs), ("hold", held))
            ]
            keys = [key for part in parts for key in part]
            inputs, held = (
                kept_inputs(each, list(map(TaskRef, part)))
                for each, part in zip((inputs, held), parts, strict=True)
            )
        reading = f"reading {number + 1}"
        feed = self.learning.feed(graph, inputs, known, range(number, number + 1))
        start = None if self._state is None else _Begun(self._state)
        learned = self.learning.add_epochs(
            feed, self.recorded, f"pass {self.learning.number}, {reading}", start
        )
        scored = self._add_scoring(
            graph, held, known, learned, f"pass {self.learning.number + 1}, reading {number + 1}"
        )
        both = graph.add("epoch", _both, TaskRef(learned), TaskRef(scored))
        # what is on record as a whole need not be kept
        found, kept = compute_keys(graph.tasks, both, keys if feed.n_added else [], client, threads)
        if kept:
            self._kept = kept[: len(inputs)], kept[len(inputs) :]
        (self._state, learned_tally), state = found
        self._tally(learned_tally.in_order(self.learning.reading_order(feed)), state.tally)
        return self._score(state, number)

    def _tally(self, learned: Tally, scored: Tally) -> None:
        """Add up what was read; what operations have counted is the same each time."""
        if self._tallies[0].n_blocks:
            learned, scored = replace(learned, flows={}), replace(scored, flows={})
        self._tallies = self._tallies[0].merge(learned), self._tallies[1].merge(scored)

    def _inputs(self, graph: GraphBuilder) -> tuple[list[Input], list[Input]]:
        """Give what loads the rows to learn from, and those to score on."""
        if self._kept[0]:
            learn, hold = (
                kept_inputs(each, kept) for each, kept in zip(self._first, self._kept, strict=True)
            )
            return learn, hold
        inputs = self._add_inputs(graph)
        epochs, own = self.learning.epochs, self.validation.source
        if own is None:
            assert epochs.share is not None
            portions = [
                [
                    replace(
                        each,
                        at=None,
                        load=PartLoad(each.load, HeldOut(epochs.share, epochs.random_state, i, held)),
                    )
                    for i, each in enumerate(inputs)
                ]
                for held in (False, True)
            ]
            self._first = portions[0], portions[1]
        else:
            shared = set(graph.tasks)
            held = add_inputs(graph, own, self.learning.step.columns)
            if self.recorded is not None:
                new = {key: task for key, task in graph.tasks.items() if key not in shared}
                held = self.recorded.keyed(held, new, explain=False)
            self._first = inputs, held
        return self._first

    def _add_scoring(
        self, graph: GraphBuilder, held: Sequence[Input], known: Any, learned: Any, title: str
    ) -> Any:
        scorer = _Scorer(self.learning.step, self._want, self._labels)
        pages = None
        if self.recorded is not None:
            pages = self.recorded.pages(held, ["validation", self.validation.metric], title)
        given = graph.add("learned", _given, TaskRef(known), TaskRef(learned))
        name = f"pass{self.learning.number + 1}-score"
        return add_scan(graph, held, scorer, given, name=name, pages=pages)

    def _score(self, found: PassState, number: int) -> float:
        if found.states is None:
            raise InputError(
                "validation: none of the rows is held out. Hold out a larger share, or rows of their own."
            )
        state = found.states[0]
        if isinstance(state, ScoreRuns):
            state = ranking(state, self.validation.metric)
        score = float(METRICS[self.validation.metric].value(state))
        if np.isnan(score):
            raise InputError(
                f"{type(self.validation.fit.estimator).__name__}: {self.validation.metric} is NaN after epoch "
                f"{number + 1}. It has diverged, or too few rows are held out: standardise its columns, take smaller "
                "steps, or hold out more."
            )
        return score


def _both(learned: Any, scored: Any) -> tuple[Any, Any]:
    return learned, scored


def _given(known: Known, learned: tuple[_State, Tally]) -> tuple[Known, _State]:
    return known, learned[0]
