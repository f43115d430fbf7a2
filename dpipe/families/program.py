"""A program: the passes that fit an estimator, ready to be carried out.

Made by the planner, run by tasks. What earlier passes have found travels as one `Known`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn import config_context
from sklearn.base import OneToOneFeatureMixin

from dpipe.blocks.matrix import RowOrder, learner_matrix
from dpipe.blocks.order import gathered
from dpipe.blocks.rows import Rows, Tally
from dpipe.blocks.side_by_side import SideBySide
from dpipe.blocks.statistics import Custom
from dpipe.blocks.table import n_rows
from dpipe.errors import DpipeError, InputError
from dpipe.families import boosting, gradient
from dpipe.families.compose import Fit
from dpipe.families.composed import finish_composite, n_outputs
from dpipe.families.expression import (
    Columns,
    Expression,
    InFolds,
    Output,
    Raw,
    Stack,
    evaluate,
    evaluate_for_learner,
    evaluate_in_parts,
    narrowed,
    written_out,
)
from dpipe.families.registry import CustomWant, Estimator, Failed, Fitted, Meta, Weighted
from dpipe.run.state import PassState, states_of


@dataclass(frozen=True)
class Derived:
    """A wanted statistic: one that is collected, carried through fitted transformers by algebra."""

    collect: int
    """Its place in the pass's list of statistics."""
    steps: tuple[tuple[int, Callable[[Estimator, Any], Any]], ...] = ()
    """Transformers that it is carried through, the innermost first."""


@dataclass(frozen=True)
class Finish:
    """One fit, and where its statistics come from."""

    fit: Fit
    stats: tuple[Derived, ...]


@dataclass(frozen=True)
class ProgramPass:
    """One reading of the blocks."""

    collects: tuple[tuple[Any, Expression], ...]
    finishes: tuple[Finish, ...]
    columns: tuple[int, ...] | None
    """Positions of the columns of X that are read; None for all."""
    learner: Fit | None = None
    """The estimator that learns in order, for a `stream` pass."""
    refines: tuple[Fit, ...] = ()
    """Fits that read the blocks again and again, together, for a `refine` pass."""
    every: int = 1
    """Every how many blocks one is read: a first sample needs not all of them."""
    run: int = 1
    """Blocks that are added up in one state."""
    chained: bool = False
    """Whether its states are so large that few of them may wait to be merged."""
    scratch: str | None = None
    """The folder in which the transformed blocks are kept from the first reading on; None to read again."""
    held: bool = False
    """Whether they are kept in memory instead."""

    @property
    def sampled(self) -> slice:
        """Which blocks are read."""
        return slice(self.every // 2, None, self.every)


@dataclass(frozen=True)
class Known:
    """What has been found so far."""

    fitted: Mapping[int, Fitted] = field(default_factory=dict)
    starts: Mapping[int, Any] = field(default_factory=dict)
    """Unfitted ordered learners, with their classes; and the first statistics of refining fits."""
    tallies: tuple[Tally, ...] = ()


class _Merging:
    """Statistics of several blocks that can only be merged, under the name of what adds them up in place."""

    def __init__(self, want: Any) -> None:
        self._want, self._found = want, None

    def add(self, *given: Any) -> None:
        """Merge those of one more block."""
        found = self._want.of(*given)
        self._found = found if self._found is None else self._found.merge(found)

    def state(self) -> Any:
        """Give those of all."""
        return self._found


@dataclass(frozen=True)
class Collector:
    """Collects the statistics of one pass from one block."""

    step: ProgramPass

    def __call__(self, rows: Rows, known: Known) -> tuple[Any, ...]:
        """Compute each value once, and each statistic of it."""
        return tuple(want.of(*given) for want, given in self._given(rows, known))

    def add(self, sums: list[Any], rows: Rows, known: Known) -> tuple[Any, ...]:
        """Add the statistics of one block to those of others, in place; `sums` are empty before the first one."""
        for i, (want, given) in enumerate(self._given(rows, known)):
            if i == len(sums):
                sums.append(want.begun() if hasattr(want, "begun") else _Merging(want))
            sums[i].add(*given)
        return ()

    def added_up(self, sums: list[Any]) -> tuple[Any, ...] | None:
        """Give the states of what was added up; None if there was no row."""
        return tuple(each.state() for each in sums) or None

    def _given(self, rows: Rows, known: Known) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """Compute what each statistic is taken of."""
        position_of = _positions(self.step)
        memo = _kept(rows, position_of)
        for want, expression in self.step.collects:
            if getattr(want, "of_y", False):
                value = None
            else:
                local = _local(expression, position_of)
                with _arrays():
                    if getattr(want, "in_parts", False):
                        value = evaluate_in_parts(local, rows, known.fitted, memo)
                    else:
                        value = written_out(evaluate(local, rows, known.fitted, memo))
            given = (value, rows.y, rows.w if isinstance(want, Weighted) else None)
            yield want, ((*given, rows.at) if getattr(want, "placed", False) else given)

    def kept(self, states: tuple[Any, ...] | None) -> Any:
        """Give states as the ledger can keep them: what a third party merges by is code, and stays here."""
        if states is None:
            return None
        return tuple(state.state if isinstance(state, Custom) else state for state in states)

    def revived(self, kept: Any) -> tuple[Any, ...] | None:
        """Give states that were kept."""
        if kept is None:
            return None
        wants = (want.want if isinstance(want, Weighted) else want for want, _ in self.step.collects)
        return tuple(
            Custom(state, want.join) if isinstance(want, CustomWant) else state
            for state, want in zip(kept, wants, strict=True)
        )


def _arrays() -> Any:
    """Have transformers give arrays, whatever `sklearn.set_config` says in this thread."""
    return config_context(transform_output="default")


def _positions(step: ProgramPass) -> dict[int, int]:
    return {} if step.columns is None else {j: k for k, j in enumerate(step.columns)}


def _local(expression: Expression, position_of: dict[int, int]) -> Expression:
    """Rewrite an expression for the columns that are read."""
    return narrowed(expression, position_of) if position_of else expression


def _kept(rows: Rows, position_of: dict[int, int]) -> dict[Any, Any]:
    """Start from the values that are in scratch, if there are any."""
    return {_local(value, position_of): matrix for value, matrix in (rows.values or {}).items()}


@dataclass(frozen=True)
class Keeper:
    """Computes what a pass with scratch keeps of a block that has rows."""

    step: ProgramPass

    def __call__(self, rows: Rows, known: Known) -> dict[Any, Any]:
        """Compute each value that the fits of this pass read."""
        position_of = _positions(self.step)
        memo: dict[Any, Any] = {}
        found = {}
        with _arrays():
            for value in kept_values(self.step):
                made = evaluate_in_parts(_local(value, position_of), rows, known.fitted, memo)
                # a learner takes rows as they are; who refines may multiply with parts
                keeps_parts = self.step.learner is None and isinstance(made, SideBySide)
                found[value] = made if keeps_parts else written_out(made)
        return found


@dataclass(frozen=True)
class BoostKeeper:
    """Computes what a boosted model is trained on of a block that has rows."""

    step: ProgramPass

    def __call__(self, rows: Rows, known: Known) -> dict[Any, Any]:
        """Give its matrix.

        Raises
        ------
        InputError
            If targets or weights are not what can be learned from.
        """
        fit = self.step.learner
        assert fit is not None
        boosting.check_rows(fit.estimator, rows)
        with _arrays():
            made = written_out(evaluate(_local(fit.source, _positions(self.step)), rows, known.fitted, {}))
        begun: boosting.Start = known.starts[fit.index]
        dtype = boosting.value_dtype(fit.estimator)
        return {fit.source: boosting.as_matrix(made, begun.categories or {}, dtype)}


def values_of(step: ProgramPass) -> tuple[Expression, ...]:
    """List the values that a pass computes of each block, each once."""
    read = [expression for want, expression in step.collects if not getattr(want, "of_y", False)]
    return tuple(dict.fromkeys([*read, *kept_values(step)]))


def kept_values(step: ProgramPass) -> tuple[Expression, ...]:
    """List the values that a pass computes again and again, each once."""
    sources = [fit.source for fit in step.refines]
    if step.learner is not None:
        sources.append(step.learner.source)
    return tuple(dict.fromkeys(sources))


@dataclass(frozen=True)
class Preparer:
    """Transforms one block for an ordered learner."""

    step: ProgramPass
    mixed: bool = False
    """Whether its rows are mixed with those of other blocks afterwards."""

    def __call__(
        self, rows: Rows, known: Known, position: tuple[int, int], foreseen: RowOrder | None
    ) -> Rows:
        """Give the learner's matrix, row-major or CSR, its rows in the order of learning if that is known."""
        assert self.step.learner is not None
        position_of = _positions(self.step)
        source = self.step.learner.source
        learner, classes = known.starts[self.step.learner.index]
        order = None
        if not self.mixed:
            order = gradient.learning_order(learner, classes, n_rows(rows.X), position, foreseen)
        with _arrays():
            if rows.values is not None:
                matrix = learner_matrix(rows.values[source], order)
            else:
                matrix = evaluate_for_learner(_local(source, position_of), rows, known.fitted, order)
        if order is None:
            return Rows(matrix, rows.y, rows.w)
        y, w = (None if values is None else values[order.rows] for values in (rows.y, rows.w))
        return Rows(matrix, y, w, ordered=True)


@dataclass(frozen=True)
class Mixer:
    """Takes rows for an ordered learner out of several blocks that are transformed."""

    step: ProgramPass

    def __call__(
        self,
        parts: Sequence[Rows],
        chosen: np.ndarray,
        known: Known,
        position: tuple[int, int],
        foreseen: RowOrder | None,
    ) -> Rows:
        """Give some rows, in the order of learning if that is known."""
        assert self.step.learner is not None
        learner, classes = known.starts[self.step.learner.index]
        order = gradient.learning_order(learner, classes, len(chosen), position, foreseen)
        found = gathered(parts, chosen if order is None else chosen[order.rows])
        return found._replace(ordered=order is not None)


@dataclass(frozen=True)
class Starter:
    """Gives the learner of a `stream` pass before its first block."""

    fit: int

    def __call__(self, known: Known) -> tuple[Estimator, np.ndarray | None]:
        """Look it up."""
        return known.starts[self.fit]


def learn(
    learner: tuple[Estimator, np.ndarray | None],
    rows: Rows,
    position: tuple[int, int],
    **how: Any,
) -> tuple[Estimator, np.ndarray | None]:
    """Learn one block; `how` are the options of `gradient.learn`."""
    estimator, classes = learner
    return gradient.learn(estimator, classes, rows, position, **how), classes


def finish_pass(step: ProgramPass, known: Known, collected: PassState | None) -> Known:
    """Finish every fit of a merge pass from the merged states.

    Raises
    ------
    DpipeError
        If the data has no rows, or an estimator refuses what was found in it.
    """
    states: Sequence[Any] = ()
    if collected is not None:
        states = states_of(collected, "fit")
        if collected.tally.weighs is False and step.every == 1:
            raise InputError(
                "sample_weight: the weights of all rows add up to zero. Give at least one that is not."
            )
        known = replace(known, tallies=(*known.tallies, collected.tally))
    return finish_fits(step, known, states)


def finish_fits(step: ProgramPass, known: Known, states: Sequence[Any]) -> Known:
    """Finish the fits of a pass from its merged states, each after those that it waits for."""
    for finish in step.finishes:
        known = _finish_one(finish, states, known)
    return known


def _finish_one(finish: Finish, states: Sequence[Any], known: Known) -> Known:
    fit = finish.fit
    stats = [_carried(derived, states, known.fitted) for derived in finish.stats]
    try:
        if not fit.is_leaf:
            children = [None if child is None else known.fitted[child] for child in fit.children]
            with _arrays():
                estimator = finish_composite(fit, children, stats)
        elif fit.way.kind == "stream":
            started = gradient.start(fit.estimator, stats, fit.classes)
            return replace(known, starts={**known.starts, fit.index: started})
        elif fit.way.kind == "boost":
            begun = boosting.start(fit.estimator, stats, fit.meta)
            return replace(known, starts={**known.starts, fit.index: begun})
        elif fit.way.kind == "refine":
            return replace(known, starts={**known.starts, fit.index: tuple(stats)})
        else:
            estimator = fit.way.finish(fit.estimator, stats, known_meta(fit, known.fitted))
    except (DpipeError, ValueError, TypeError) as err:
        estimator = failed(fit, err, known.fitted)
    return replace(known, fitted={**known.fitted, fit.index: Fitted(estimator, fit.way)})


def _of_the_data(columns: Any, source: Expression, fitted: Mapping[int, Fitted]) -> Any:
    """Give positions of features as they are in the data; None if steps before have made others of them."""
    if columns is None or isinstance(source, Raw):
        return columns
    if isinstance(source, Columns):
        return _of_the_data(np.asarray(source.positions)[columns], source.source, fitted)
    if not isinstance(source, Output):
        return None
    step = fitted[source.fit].estimator
    if hasattr(step, "get_support"):
        columns = np.flatnonzero(step.get_support())[columns]
    elif not isinstance(step, OneToOneFeatureMixin):
        return None
    return _of_the_data(columns, source.source, fitted)


def failed(fit: Fit, err: Exception, fitted: Mapping[int, Fitted]) -> Failed:
    """Give what stands for a fit that has raised an error, where it may.

    Raises
    ------
    DpipeError
        Where it may not: the error, with the name of the fit.
    """
    if isinstance(err, DpipeError):
        if isinstance(err, InputError):
            err.columns = _of_the_data(err.columns, fit.source, fitted)
        if not fit.may_fail:
            raise err
        return Failed(err)
    told = InputError(f"{fit.name}: {err}")
    if not fit.may_fail:
        raise told from err
    return Failed(told)


def _carried(derived: Derived, states: Sequence[Any], fitted: Mapping[int, Fitted]) -> Any:
    statistic = states[derived.collect]
    for index, function in derived.steps:
        statistic = function(fitted[index].estimator, statistic)
    return statistic


def known_meta(fit: Fit, fitted: Mapping[int, Fitted]) -> Meta:
    """Give the meta of a fit's input, its width too where an earlier fit has decided it."""
    names = _names_given(fit.source, fitted)
    if names is not None:
        return replace(fit.meta, frame=pd.DataFrame(columns=names, dtype=np.float64), n_columns=None)
    if fit.meta.width is not None:
        return fit.meta
    return replace(fit.meta, n_columns=_width(fit.source, fitted))


def _names_given(source: Expression, fitted: Mapping[int, Fitted]) -> np.ndarray | None:
    """Name the columns of what a transformer gives that was told to give frames; None for arrays."""
    if not isinstance(source, Output | Stack):
        return None
    made_by = fitted[source.fit]
    if made_by.plain is made_by.estimator:
        return None
    return made_by.estimator.get_feature_names_out()


def _width(expression: Expression, fitted: Mapping[int, Fitted]) -> int | None:
    if isinstance(expression, Raw):
        return None
    if isinstance(expression, Columns):
        return len(expression.positions)
    if isinstance(expression, Output):
        return n_outputs(fitted[expression.fit].estimator)
    if isinstance(expression, InFolds):
        return _width(expression.source, fitted)
    widths = [_width(part, fitted) for part in expression.parts]
    return None if any(w is None for w in widths) else sum(w for w in widths if w is not None)


def finish_stream(step: ProgramPass, known: Known, learned: tuple[Any, Tally]) -> Known:
    """Take the learner after its last block, and finish the composites around it.

    Raises
    ------
    InputError
        If it has not learned from any row.
    """
    assert step.learner is not None
    (estimator, _), tally = learned
    if not tally.rows:
        states_of(PassState(None, tally), step.learner.name)
    fitted = {**known.fitted, step.learner.index: Fitted(estimator, step.learner.way)}
    return finish_fits(step, Known(fitted, known.starts, (*known.tallies, tally)), ())
