"""What all candidates of a search stand on: fitted preprocessing, the classes, and how a block is made ready.

Each distinct way of preprocessing ends in a stand-in for the candidates that share it. All of them are planned as one
estimator, so that they share readings as the parts of a FeatureUnion do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from distributed import Client
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, is_classifier, is_regressor
from sklearn.pipeline import FeatureUnion, Pipeline

from dpipe.blocks.matrix import learner_matrix
from dpipe.blocks.rows import Rows
from dpipe.blocks.statistics import LabelCounts
from dpipe.blocks.table import Block, n_rows
from dpipe.collect.source import Source
from dpipe.families.compose import Fit
from dpipe.families.expression import Expression, evaluate_for_learner, narrowed
from dpipe.families.fitted import transformed
from dpipe.families.program import Known, ProgramPass
from dpipe.families.registry import Estimator, Meta, Way, add
from dpipe.plan_record import PassPlan
from dpipe.train.prepare import Prepared, prepare_source
from dpipe.tuning.space import Space

#: More readings than these are worth keeping the blocks for.
_MANY_READINGS = 3


class SearchedLearner(BaseEstimator):  # type: ignore[misc]
    """Stands in a plan for candidates that learn from the same matrix."""

    def fit(self, X: Any, y: Any = None) -> "SearchedLearner":
        """Do nothing: the candidates learn in its place."""
        return self


class SearchedClassifier(ClassifierMixin, SearchedLearner):  # type: ignore[misc]
    """The same, for candidates that must know their classes first."""

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None) -> "SearchedClassifier":
        """Do nothing, but say that classes are wanted."""
        return self


class SearchedRegressor(RegressorMixin, SearchedLearner):  # type: ignore[misc]
    """The same, for candidates that learn from numbers."""


def _as_it_is(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    return stats[0]


add(SearchedLearner, Way("stream", _as_it_is))
add(SearchedClassifier, Way("stream", _as_it_is, lambda est: (LabelCounts,), needs_y=True))
add(SearchedRegressor, Way("stream", _as_it_is, needs_y=True))


@dataclass(frozen=True, eq=False)
class Foundation:
    """The passes before the search, and how they make a block ready for the candidates."""

    prepared: Prepared
    stands: tuple[Fit, ...]
    """The stand-in of each way of preprocessing."""
    parents: tuple[Fit, ...]
    """The pipelines that end in them; none without preprocessing."""
    columns: tuple[int, ...] | None
    """Positions of the columns that the candidates need; None for all."""
    scratch: str | None
    """The folder in which blocks that are ready are kept; None to make them ready again each time."""
    record: PassPlan
    """What the planner says of a pass over the blocks that are ready."""

    def classes(self, known: Known) -> np.ndarray | None:
        """Give the classes that were found; None for what is no classifier."""
        return known.starts[self.stands[0].index][1]

    def preprocessings(self, known: Known) -> tuple[tuple[Any, ...], ...]:
        """Give the fitted steps of each way of preprocessing."""
        if not self.parents:
            return ((),) * len(self.stands)
        return tuple(
            tuple(
                step if child is None else known.fitted[child].estimator
                for child, (_, step) in zip(parent.children[:-1], parent.estimator.steps[:-1], strict=True)
            )
            for parent in self.parents
        )


def lay_foundation(
    space: Space,
    source: Source,
    *,
    classes_known: bool,
    memory: int | None,
    client: Client | None,
    workers: int | None,
) -> Foundation:
    """Plan the preprocessing of all candidates, and the pass that finds the classes.

    Raises
    ------
    DpipeError
        As `dpipe.fit` does for what metadata can tell.
    """
    learner = space.candidates[0].learner
    kind = SearchedLearner
    if is_classifier(learner) and not classes_known:
        kind = SearchedClassifier
    elif is_regressor(learner):
        kind = SearchedRegressor
    parts = [
        Pipeline([*preprocessing, ("candidates", kind())]) if preprocessing else kind()
        for preprocessing in space.preprocessings
    ]
    tree = parts[0]
    if len(parts) > 1:
        tree = FeatureUnion([(f"preprocessing {i}", part) for i, part in enumerate(parts, start=1)])
    given: dict[str, Any] = {"memory": memory, "client": client, "workers": workers, "weighted": False}
    prepared = prepare_source(tree, source, **given)
    # the planner decides about scratch by the number of readings
    read_often = prepare_source(tree, source, epochs=_MANY_READINGS, **given)
    stands = tuple(fit for fit in prepared.program.walk.fits if isinstance(fit.estimator, SearchedLearner))
    indices = {fit.index for fit in stands}
    often = [
        (step, record)
        for step, record in zip(read_often.program.passes, read_often.plan.passes, strict=True)
        if step.learner is not None and step.learner.index in indices
    ]
    walk = prepared.program.walk
    parents = tuple(
        next(fit for fit in walk.fits if not fit.is_leaf and stand.index in fit.children)
        for stand in stands
        if any(space.preprocessings)
    )
    return Foundation(
        _without(prepared, indices),
        stands,
        parents,
        _columns([step for step, _ in often]),
        often[0][0].scratch if all(step.scratch for step, _ in often) else None,
        often[0][1],
    )


def _without(prepared: Prepared, stands: set[int]) -> Prepared:
    """Leave out the passes in which the stand-ins would learn."""
    program = prepared.program
    kept = [
        (step, record)
        for step, record in zip(program.passes, program.plan.passes, strict=True)
        if step.learner is None or step.learner.index not in stands
    ]
    records = tuple(replace(record, number=i) for i, (_, record) in enumerate(kept, start=1))
    plan = replace(program.plan, passes=records)
    passes = tuple(step for step, _ in kept)
    return replace(prepared, program=replace(program, passes=passes, plan=plan))


def _columns(steps: Sequence[ProgramPass]) -> tuple[int, ...] | None:
    found: set[int] = set()
    for step in steps:
        if step.columns is None:
            return None
        found |= set(step.columns)
    return tuple(sorted(found))


@dataclass(frozen=True, eq=False)
class ForLearning:
    """Makes the rows of a block ready to be learned from, once for each way of preprocessing."""

    sources: tuple[Expression, ...]
    columns: tuple[int, ...] | None

    def __call__(self, rows: Rows, known: Known) -> dict[Any, Block]:
        """Transform them as a fit does, with what is known."""
        position_of = {} if self.columns is None else {j: k for k, j in enumerate(self.columns)}
        found: dict[Any, Block] = {}
        with config_context(transform_output="default"):
            for i, source in enumerate(self.sources):
                local = narrowed(source, position_of) if position_of else source
                found[i] = _matrix(evaluate_for_learner(local, rows, known.fitted, None))
        return found


@dataclass(frozen=True, eq=False)
class ForScoring:
    """Makes the rows of a block ready to be predicted, once for each way of preprocessing."""

    preprocessings: tuple[tuple[Any, ...], ...]
    named: bool = False
    """Whether learners were fitted with names where there are some."""

    def __call__(self, rows: Rows, known: Any = None) -> dict[Any, Block]:
        """Transform them as a fitted pipeline does."""
        found: dict[Any, Block] = {}
        with config_context(transform_output="default"):
            for i, preprocessing in enumerate(self.preprocessings):
                value = rows.X
                for step in preprocessing:
                    value = transformed(step, value)
                found[i] = learner_matrix(value) if self.named else _matrix(learner_matrix(value))
        return found


def _matrix(value: Block) -> Block:
    """Take the names off: learners see what is kept in scratch, which has none."""
    return np.ascontiguousarray(value.to_numpy()) if isinstance(value, pd.DataFrame) else value


def ready(rows: Rows, values: dict[Any, Block]) -> Rows:
    """Put what was made of a block beside its targets and weights."""
    X = next(iter(values.values())) if n_rows(rows.X) else np.empty((0, 0))
    return Rows(X, rows.y, rows.w, values=values)
