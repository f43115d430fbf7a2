"""Candidates that are cross-validated: the fits of all candidates on all folds share their readings.

What the first readings collect does not depend on any fit: it is collected once for each fold, and a fit outside of a
fold merges what the others gave. One reading then scores all candidates on the rows that they have not seen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from distributed import Client
from sklearn.base import BaseEstimator, is_classifier
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import FeatureUnion, Pipeline

from dpipe.blocks.folds import Folds, KFolds, LabelPlaces, StratifiedFolds
from dpipe.blocks.rows import Rows, RowsAt, Tally
from dpipe.blocks.statistics import LabelCounts
from dpipe.blocks.table import Block, n_rows
from dpipe.collect.source import Source
from dpipe.composites.folds import check_folds
from dpipe.composites.inside import InnerPass, InnerStates, check_parts, most_passes
from dpipe.composites.several import TargetWidth
from dpipe.errors import DpipeError, InputError
from dpipe.families.asking import Asking
from dpipe.families.compose import Fit, Walk, walk
from dpipe.families.expression import needed_fits
from dpipe.families.program import Known, ProgramPass, finish_pass
from dpipe.families.refinement import Refinements
from dpipe.families.registry import Estimator, Failed, Meta, Refinement, Rounds, add, refined
from dpipe.planner import DataShape, Resources, make_program
from dpipe.run.recorded import Recorded
from dpipe.run.state import PassState
from dpipe.train.fit import check_rows, run_passes, tell_passes
from dpipe.train.prepare import OwnFit, prepare_source
from dpipe.tuning.foundation import ForScoring
from dpipe.tuning.learning import reason
from dpipe.tuning.scoring import Scored, found_of, held_nbytes, score_block
from dpipe.tuning.sides import GivenFolds, InParts, Sides
from dpipe.tuning.space import Candidate, Params, Space, make_space


class CrossValidated(BaseEstimator):  # type: ignore[misc]
    """Candidates, as one estimator that is fitted outside of each fold and on all rows.

    Parameters
    ----------
    tree : FeatureUnion
        For each distinct way of preprocessing a part; its last step holds the candidates that share it.
    cv : int, KFold, StratifiedKFold or GivenFolds
    metrics : tuple of str
        The first one compares.
    counted : bool
        Whether the number of rows is known before they are read.
    """

    def __init__(
        self, tree: Any = None, cv: Any = 5, metrics: tuple[str, ...] = (), counted: bool = True
    ) -> None:
        self.tree = tree
        self.cv = cv
        self.metrics = metrics
        self.counted = counted

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "CrossValidated":
        """Say that it is fitted by dpipe alone."""
        raise NotImplementedError("CrossValidated is fitted by dpipe.search")

    @property
    def stratified(self) -> bool:
        """Whether the folds have equal shares of each class, as GridSearchCV would have it."""
        if isinstance(self.cv, int):
            return bool(is_classifier(_any_learner(self.tree)))
        return type(self.cv) is StratifiedKFold

    @property
    def n_splits(self) -> int:
        """Number of folds."""
        return int(self.cv if isinstance(self.cv, int) else self.cv.n_splits)

    def folds(self, places: LabelPlaces | None) -> Folds:
        """Give the folds of scikit-learn's splitter, or those that were given."""
        if isinstance(self.cv, GivenFolds):
            return self.cv
        seed = self.cv.random_state if getattr(self.cv, "shuffle", False) else None
        if places is None:
            return KFolds(self.n_splits, seed)
        if places.continuous:
            raise InputError(
                "y holds numbers that are not whole, which are no classes. Use a regressor, or cv=KFold(...)."
            )
        return StratifiedFolds(places, self.n_splits, seed)


def _any_learner(tree: FeatureUnion) -> Estimator:
    part = tree.transformer_list[0][1]
    tails = part.steps[-1][1] if isinstance(part, Pipeline) else part
    return tails.transformer_list[0][1]


def tree_of(space: Space) -> FeatureUnion:
    """Arrange candidates by their preprocessing."""
    parts = []
    for i, preprocessing in enumerate(space.preprocessings):
        own = [c for c in space.candidates if c.preprocessing == i]
        tails = FeatureUnion([(f"candidate {c.number}", c.learner) for c in own])
        parts.append(
            (
                f"preprocessing {i}",
                Pipeline([*preprocessing, ("candidates", tails)]) if preprocessing else tails,
            )
        )
    return FeatureUnion(parts)


def parts_of(fitted: FeatureUnion) -> tuple[tuple[tuple[Any, ...], dict[int, Estimator]], ...]:
    """Give the fitted steps of each way of preprocessing, and the fitted candidates behind it by their numbers."""
    found = []
    for _, part in fitted.transformer_list:
        piped = isinstance(part, Pipeline)
        preprocessing = tuple(step for _, step in part.steps[:-1]) if piped else ()
        tails = part.steps[-1][1] if piped else part
        found.append((preprocessing, {int(name.split()[1]): tail for name, tail in tails.transformer_list}))
    return tuple(found)


def _refine(estimator: CrossValidated, stats: Sequence[Any], meta: Meta) -> Refinement:
    folds = estimator.folds(stats[0] if estimator.stratified else None)
    sides = Sides(folds, estimator.n_splits)
    weighted = meta.weighted and (estimator.cv.weighted if sides.beside_weights else True)
    fits = yield from fit_in_folds(estimator.tree, meta, sides, weighted=weighted)
    parts = [parts_of(each) for each in fits]
    (scored,) = yield (FoldScores(tuple(parts[:-1]), sides, estimator.metrics),)
    fitted = CrossValidated(estimator.tree, estimator.cv, estimator.metrics, estimator.counted)
    fitted.parts_, fitted.in_folds_ = parts[-1], parts[:-1]
    failed = _failures(parts)
    if len(failed) == sum(len(tails) for _, tails in parts[-1]):
        raise next(iter(failed.values()))
    first = estimator.metrics[0]
    every = {
        metric: {
            number: [found_of(scored.by_fold[fold, number, metric], metric) for fold in range(sides.n_splits)]
            for _, tails in parts[-1]
            for number in tails
            if number not in failed
            and all((fold, number, metric) in scored.by_fold for fold in range(sides.n_splits))
        }
        for metric in estimator.metrics
    }
    found = every[first]
    if not found:
        raise InputError(f"A fold of cv={estimator.cv!r} has no rows. Use fewer folds.")
    fitted.scores_by_metric_ = {
        metric: {number: [one.score for one in own] for number, own in each.items()}
        for metric, each in every.items()
    }
    fitted.scores_ = fitted.scores_by_metric_[first]
    fitted.failed_ = {
        **{number: reason(err) for number, err in failed.items()},
        **{
            number: next(one.failed for one in own if one.failed)
            for each in every.values()
            for number, own in each.items()
            if any(one.failed for one in own)
        },
    }
    return fitted


def _failures(parts: Sequence[Any]) -> dict[int, DpipeError]:
    """Give the candidates that could not be fitted on some of the rows."""
    return {
        number: tail.why
        for part in parts
        for _, tails in part
        for number, tail in tails.items()
        if isinstance(tail, Failed)
    }


def fit_in_folds(tree: Estimator, meta: Meta, sides: Sides, *, weighted: bool) -> Asking:
    """Fit an estimator on the training side of each split, and on all rows; gives these fits, the last of all rows."""
    walked = _each_by_itself(walk(tree, meta, weighted=weighted, takers=_is_candidate))
    width = meta.width or 0
    names = meta.names or tuple(f"x{j}" for j in range(width))
    program = make_program(walked, DataShape("folds", names, (None,), (8,) * width, whole=True), Resources(1))
    views = [InParts(sides, sides.training(split)) for split in [*range(sides.n_splits), None]]
    knowns = [finish_pass(program.at_once, Known(), None)] * len(views)
    for step in program.passes:
        if step.refines:
            knowns = yield from _refined_in_folds(step, knowns, views)
            continue
        if any(needed_fits(expression) for _, expression in step.collects):
            wants = [InnerPass(step, known, view) for known, view in zip(knowns, views, strict=True)]
            states = yield tuple(wants)
        else:
            inside = [InParts(sides, (part,)) for part in range(sides.n_parts)]
            of_parts = yield tuple(InnerPass(step, knowns[0], view) for view in inside)
            states = [_merged(of_parts, view.members) for view in views]
        knowns = [
            finish_pass(step, known, PassState(state.states, Tally()))
            for known, state in zip(knowns, states, strict=True)
        ]
    return [known.fitted[walked.root].estimator for known in knowns]


def _each_by_itself(tree: Walk) -> Walk:
    """Let a candidate fail, and the others go on."""
    candidates = tuple(replace(fit, may_fail=fit.is_leaf and _is_candidate(fit)) for fit in tree.fits)
    return replace(tree, fits=candidates)


def _is_candidate(fit: Fit) -> bool:
    return "candidate " in fit.name.split(" / ")[-1]


def _merged(of_parts: Sequence[InnerStates], members: Sequence[int]) -> InnerStates:
    """Merge what some of the parts gave, in their order."""
    merged = InnerStates(None)
    for part in members:
        merged = merged.merge(of_parts[part])
    return merged


def _refined_in_folds(step: ProgramPass, knowns: Sequence[Known], views: Sequence[Any]) -> Asking:
    running = [Refinements(step, known) for known in knowns]
    while any(each.asked for each in running):
        open_ones = [i for i, each in enumerate(running) if each.asked]
        asked = tuple(
            InnerPass(replace(step, collects=running[i].asked), knowns[i], views[i]) for i in open_ones
        )
        for i, found in zip(open_ones, (yield asked), strict=True):
            running[i].answer(found.states or (), Tally())
    return [each.finished() for each in running]


@dataclass(frozen=True)
class FoldScored:
    """What is found of each candidate on the rows of each fold."""

    by_fold: dict[tuple[int, int, str], Scored]
    """By the fold, the candidate's number, and the metric."""

    def merge(self, other: "FoldScored") -> "FoldScored":
        """Join with later rows."""
        both = dict(self.by_fold)
        for key, scored in other.by_fold.items():
            both[key] = both[key].merge(scored) if key in both else scored
        return FoldScored(both)


@dataclass(frozen=True, eq=False)
class FoldScores:
    """Scores candidates on the rows of each fold, by the fits that have not seen them."""

    fits: tuple[Any, ...]
    """For each fold what `parts_of` gives."""
    sides: Sides
    metrics: tuple[str, ...]
    placed: ClassVar[bool] = True
    name: ClassVar[str] = "scores of the candidates"

    def of(self, X: Block, y: Any, w: Any = None, at: RowsAt | None = None) -> FoldScored:
        """Read one block."""
        found: dict[tuple[int, int, str], Scored] = {}
        for fold, parts in enumerate(self.fits):
            rows = InParts(self.sides, self.sides.testing(fold))(Rows(X, y, w, at=at))
            if not n_rows(rows.X):
                continue
            values = ForScoring(tuple(preprocessing for preprocessing, _ in parts), named=True)(rows)
            for i, (_, tails) in enumerate(parts):
                for number, learner in tails.items():
                    if isinstance(learner, Failed):
                        continue
                    said: dict[str, Any] = {}
                    for metric in self.metrics:
                        found[fold, number, metric] = score_block(metric, learner, values[i], rows, said)
        return FoldScored(found)


def _check(estimator: CrossValidated) -> None:
    cv = estimator.cv
    check_parts(estimator, [estimator.tree])
    if isinstance(cv, GivenFolds):
        return
    if isinstance(cv, bool) or (isinstance(cv, int) and cv < 2):
        raise InputError(f"cv must be a number of folds of at least 2, KFold or StratifiedKFold, got {cv!r}.")
    if not isinstance(cv, int | KFold | StratifiedKFold):
        raise InputError(f"cv must be a number of folds, KFold or StratifiedKFold, got {cv!r}.")
    check_folds(estimator, classifies=is_classifier(_any_learner(estimator.tree)))


def _rounds(estimator: CrossValidated) -> Rounds:
    most = most_passes(estimator.tree, "a search by folds")
    return Rounds(most + 1, "what the candidates ask for, of each fold", least=min(most, 1) + 1)


def _wants(estimator: CrossValidated) -> tuple[Any, ...]:
    if estimator.stratified:
        return (LabelPlaces,)
    # a pass over y counts the rows, from which the folds follow
    learner = _any_learner(estimator.tree)
    beside = isinstance(estimator.cv, GivenFolds) and estimator.cv.parts is None
    return () if estimator.counted or beside else (LabelCounts if is_classifier(learner) else TargetWidth,)


add(CrossValidated, refined(_refine, _rounds, _wants, check=_check, needs_y=True, exact="that of its parts"))


@dataclass(frozen=True, kw_only=True)
class PreparedCrossed(OwnFit):
    """A search over candidates that are cross-validated."""

    done: Callable[[CrossValidated], Estimator]
    failed: Mapping[int, str]
    """Why candidates were left out before anything was read."""

    def run(
        self, client: Client | None, recorded: Recorded | None, tell: Callable[[dict[str, Any]], None] | None
    ) -> tuple[Estimator, tuple[Tally, ...]]:
        """Fit and score all candidates on all folds."""
        known = run_passes(self, client, recorded)
        check_rows(self, known.tallies)
        fitted = known.fitted[self.program.walk.root].estimator
        best = self.done(fitted)
        for note in said({**self.failed, **fitted.failed_}):
            if tell is not None:
                tell({"said": note})
        return best, known.tallies

    def tell(self, recorded: Recorded) -> None:
        """Say what is on record of its passes."""
        tell_passes(self, recorded)


def prepare_crossed(
    search: Any,
    source: Source,
    params: Sequence[Params],
    take: Callable[..., None],
    *,
    memory: int | None,
    client: Client | None,
    workers: int | None,
    each_fit: Callable[[CrossValidated, list[Estimator]], None] | None = None,
) -> PreparedCrossed:
    """Plan a search by folds; candidates that cannot be fitted are left out, and reported.

    Raises
    ------
    DpipeError
        As `dpipe.fit` does for what metadata can tell.
    """
    space = make_space(search.estimator, {0: params}, named=False)
    metrics = search.compared_by()
    metric = metrics[0]
    if isinstance(search.cv, GivenFolds) and search.cv.parts is None:
        weighted = search.cv.weighted
    else:
        weighted = source.w is not None
    ranked = [name for name in metrics if held_nbytes(name, 1, 1)]
    if weighted and ranked:
        raise InputError(
            f"{ranked[0]} does not take sample_weight: pairs of rows are counted, each once. Compare by another "
            "metric, such as neg_log_loss, or leave the weights out."
        )
    meta = Meta(
        source.frame, source.n_columns, source.dtype, source.sparse, one_dimensional=source.one_dimensional
    )
    good, failed = _fitting(space, meta)
    kept_space = replace(space, candidates=tuple(good))
    asked = CrossValidated(tree_of(kept_space), search.cv, metrics, source.n_rows is not None)
    prepared = prepare_source(asked, source, memory=memory, client=client, workers=workers)

    def done(fitted: CrossValidated) -> Estimator:
        scores = np.full((len(params), fitted.n_splits), np.nan)
        for number, own in fitted.scores_.items():
            scores[number] = own
        reasons = {**failed, **fitted.failed_}
        means = scores.mean(axis=1)
        if not np.isfinite(means).any():
            raise DpipeError(
                f"All {len(params)} candidates have failed. The first reason: {next(iter(reasons.values()))} Check "
                "the data and the parameters."
            )
        best = int(np.nanargmax(means))
        estimator = _assembled(space, space.candidates[best], fitted.parts_)
        take(estimator, params, scores, best, metric, reasons)
        if each_fit is not None:
            each_fit(fitted, [_assembled(space, space.candidates[best], part) for part in fitted.in_folds_])
        return estimator

    plan = replace(prepared.plan, estimator=f"Search of {type(search.estimator).__name__}")
    program = replace(prepared.program, plan=plan)
    return PreparedCrossed(
        prepared.source, program, prepared.place, prepared.epochs, done=done, failed=failed
    )


def _assembled(space: Space, candidate: Candidate, parts: Any) -> Estimator:
    for preprocessing, tails in parts:
        if candidate.number in tails:
            return space.assembled(candidate, preprocessing, tails[candidate.number])
    raise AssertionError("every candidate that was scored was fitted")


def _fitting(space: Space, meta: Meta) -> tuple[list[Candidate], dict[int, str]]:
    """Tell which candidates can be fitted, and why the others cannot."""
    good: list[Candidate] = []
    failed: dict[int, str] = {}
    first: DpipeError | None = None
    for candidate in space.candidates:
        preprocessing = space.preprocessings[candidate.preprocessing]
        try:
            walk(
                Pipeline([*preprocessing, ("last", candidate.learner)])
                if preprocessing
                else candidate.learner,
                meta,
            )
        except DpipeError as err:
            failed[candidate.number] = reason(err)
            first = first or err
        else:
            good.append(candidate)
    if first is not None and not good:
        raise first
    return good, failed


def said(failed: Mapping[int, str]) -> list[str]:
    """Say which candidates have failed, and why."""
    return [f"Candidate {number} was dropped: {why}" for number, why in failed.items()]
