"""Fit an estimator inside another one: its passes become readings of the outer fit, shared with those of its siblings.

The inner estimator is planned as any other. Each of its passes is one statistic of the outer fit's input: what its
states are after a block, seen through a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from sklearn.base import is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline

from dpipe.blocks.rows import Rows, RowsAt, Tally
from dpipe.blocks.table import Block, n_rows
from dpipe.composites.views import View
from dpipe.errors import UnsupportedEstimatorError
from dpipe.families.asking import Asking
from dpipe.families.compose import walk
from dpipe.families.program import Collector, Known, ProgramPass, finish_pass
from dpipe.families.refinement import Refinements
from dpipe.families.registry import Estimator, Meta, Rounds, way_of
from dpipe.planner import DataShape, Resources, make_program
from dpipe.run.state import PassState, states_of

_READINGS = "what its parts ask for"


@dataclass(frozen=True)
class InnerStates:
    """The states of an inner pass; None if no row was seen."""

    states: tuple[Any, ...] | None

    def merge(self, other: Self) -> Self:
        """Join with those of later rows."""
        if self.states is None or other.states is None:
            return other if self.states is None else self
        joined = (mine.merge(theirs) for mine, theirs in zip(self.states, other.states, strict=True))
        return type(self)(tuple(joined))


@dataclass(frozen=True, eq=False)
class InnerPass:
    """Wants the states of one pass of an inner estimator."""

    step: ProgramPass
    known: Known
    view: View | None
    placed: ClassVar[bool] = True
    in_parts: ClassVar[bool] = True
    name: ClassVar[str] = "states of the parts"

    def of(self, X: Block, y: Any, w: Any = None, at: RowsAt | None = None) -> InnerStates:
        """Read one block."""
        rows = Rows(X, y, w, at=at)
        if self.view is not None:
            rows = self.view(rows)
        if not n_rows(rows.X):
            return InnerStates(None)
        return InnerStates(Collector(self.step)(rows, self.known))


def fit_inside(estimator: Estimator, meta: Meta, view: View | None = None) -> Asking:
    """Fit an estimator on what a view shows of the rows; gives the fitted estimator.

    Parameters
    ----------
    estimator : scikit-learn estimator or pipeline
        Unfitted.
    meta : Meta
        Of the outer fit's input.
    view : callable ``(rows) -> rows``, optional

    Raises
    ------
    UnsupportedEstimatorError
        If a part of it has no way, or learns in order.
    """
    tree = walk(estimator, meta, weighted=meta.weighted)
    width = meta.width or 0
    names = meta.names or tuple(f"x{j}" for j in range(width))
    shape = DataShape("the outer fit", names, (None,), (8,) * width, whole=True)
    program = make_program(tree, shape, Resources(1))
    known = finish_pass(program.at_once, Known(), None)
    for step in program.passes:
        if step.refines:
            running = Refinements(step, known)
            while asked := running.asked:
                (found,) = yield (InnerPass(replace(step, collects=asked), known, view),)
                running.answer(states_of(PassState(found.states, Tally()), type(estimator).__name__), Tally())
            known = running.finished()
        else:
            (found,) = yield (InnerPass(step, known, view),)
            known = finish_pass(step, known, PassState(found.states, Tally()))
    return known.fitted[tree.root].estimator


def check_parts(outer: Estimator, parts: Sequence[Estimator]) -> None:
    """Refuse parts that cannot be fitted inside of a composite, by their classes and parameters.

    Raises
    ------
    UnsupportedEstimatorError
        With the name of the part.
    """
    for part in parts:
        most_passes(part, type(outer).__name__)


def most_passes(estimator: Estimator, outer: str) -> int:
    """Tell how many readings an inner fit takes at most."""
    if isinstance(estimator, str) or estimator is None:
        return 0
    if isinstance(estimator, Pipeline):
        return sum(most_passes(step, outer) for _, step in estimator.steps)
    if isinstance(estimator, ColumnTransformer):
        return max(most_passes(part[1], outer) for part in estimator.transformers)
    if isinstance(estimator, FeatureUnion):
        return max(most_passes(part, outer) for _, part in estimator.transformer_list)
    way = way_of(estimator)
    if way.kind == "stream":
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__} learns in order, row after row, which it cannot do inside of {outer}. Use "
            f"{'LogisticRegression' if is_classifier(estimator) else 'Ridge'} there, or fit it by itself."
        )
    if way.kind == "boost":
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__} is trained in rounds over a binned copy of the data, which it cannot do "
            f"inside of {outer}. Fit it by itself, or as the last step of a Pipeline."
        )
    if way.kind == "refine":
        assert way.rounds is not None
        return 1 + way.rounds(estimator).most
    return 0 if way.kind == "stateless" else 1


def rounds_of(outer: Estimator, parts: Sequence[Estimator], more: int = 0) -> Rounds:
    """Tell how often a composite reads the data: as often as the part that reads most often."""
    most = max((most_passes(part, type(outer).__name__) for part in parts), default=0)
    return Rounds(max(most + more, 1), _READINGS)
