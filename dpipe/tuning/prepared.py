"""A search that is planned and can be run: by itself, or as the training of a pipeline."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from distributed import Client

from dpipe.blocks.rows import Tally
from dpipe.collect.source import Source
from dpipe.families.registry import Estimator
from dpipe.monitor.record import SearchLine, SearchRecord
from dpipe.plan_record import PassPlan, Plan
from dpipe.planner import check_budget
from dpipe.run.recorded import Recorded
from dpipe.sizes import counted
from dpipe.train.fit import check_rows, run_passes, tell_passes
from dpipe.train.prepare import OwnFit, Prepared
from dpipe.tuning.foundation import Foundation
from dpipe.tuning.pages import tell_search
from dpipe.tuning.sampled import OneSearch, SampledSearch
from dpipe.tuning.schedule import Settings
from dpipe.tuning.scoring import RANKED_NBYTES, held_nbytes
from dpipe.tuning.setup import Setup
from dpipe.tuning.space import Space
from dpipe.tuning.streamed import Outcome, Runner


@dataclass(frozen=True, kw_only=True)
class PreparedSearch(OwnFit):
    """A search over candidates that learn in order."""

    searches: OneSearch | SampledSearch
    foundation: Foundation
    done: Callable[[Outcome, Setup], Estimator]
    """Takes what came out, and gives the best estimator."""

    def run(
        self, client: Client | None, recorded: Recorded | None, tell: Callable[[dict[str, Any]], None] | None
    ) -> tuple[Estimator, tuple[Tally, ...]]:
        """Fit the preprocessing, then search."""
        before = self.foundation.prepared
        known = run_passes(before, client, recorded)
        check_rows(before, known.tallies)
        setup: Setup | None = self.searches.first()
        runner: Runner | None = None
        run: list[tuple[Setup, Outcome]] = []
        while setup is not None:
            runner = Runner(setup, known, self.place, client, recorded, runner)
            run.append((setup, runner.run()))
            setup = self.searches.after(*run[-1])
        setup, outcome = together(run)
        best = self.done(outcome, setup)
        if tell is not None:
            tell({"search": search_record(outcome, setup)})
            for note in failures(outcome):
                tell({"said": note})
        return best, (*known.tallies, outcome.tally)

    def tell(self, recorded: Recorded) -> None:
        """Say what is on record of the preprocessing, and of the search, if that is all there."""
        if tell_passes(self.foundation.prepared, recorded):
            one = isinstance(self.searches, OneSearch)
            tell_search(self.searches.first(), "the whole search" if one else "its first bracket", recorded)

    def n_rows_of(self, tallies: Sequence[Tally]) -> int | None:
        """Count the rows to learn from, and those that were held out of the same blocks."""
        *before, searched = tallies
        if not self.source.parts:
            return before[0].rows if before else None
        if not before or not searched.lengths:
            return None
        return before[0].rows + sum(searched.lengths)


def together(run: Sequence[tuple[Setup, Outcome]]) -> tuple[Setup, Outcome]:
    """Put searches together that were run one after another; the best of them is the best of all."""
    first = run[0][0]
    candidates = tuple(candidate for setup, _ in run for candidate in setup.space.candidates)
    brackets = [bracket for setup, _ in run for bracket in setup.brackets]
    setup = replace(first, space=replace(first.space, candidates=candidates), brackets=brackets)
    outcomes = [outcome for _, outcome in run]
    best = max(outcomes, key=lambda each: each.best_score)
    tally = outcomes[0].tally
    for outcome in outcomes[1:]:
        tally = tally.merge(replace(outcome.tally, lengths=()))
    records = [one for outcome in outcomes for one in outcome.records]
    return setup, replace(best, records=records, tally=tally, read=outcomes[-1].read)


def failures(outcome: Outcome) -> list[str]:
    """Say which candidates have failed, and why."""
    bad = {one["model_id"]: one["error"] for one in outcome.records if "error" in one}
    return [f"Candidate {ident} was dropped: {why}" for ident, why in bad.items()]


def search_record(outcome: Outcome, setup: Setup) -> SearchRecord:
    """Give the scores of all candidates over their calls, for the report."""
    lines = []
    for candidate in setup.space.candidates:
        own = [one for one in outcome.records if one["model_id"] == candidate.ident]
        lines.append(
            SearchLine(
                str(candidate.ident),
                candidate.bracket,
                ", ".join(f"{name}={_shown(value)}" for name, value in candidate.params.items()),
                tuple(one["partial_fit_calls"] for one in own),
                tuple(float(one["score"]) for one in own),
                candidate.ident == outcome.best,
            )
        )
    return SearchRecord(setup.metric, tuple(lines))


def _shown(value: Any) -> str:
    plain = value.item() if isinstance(value, np.generic) else value
    return (
        f"{plain:.4g}" if isinstance(plain, float) else textwrap.shorten(repr(plain), 80, placeholder=" ...")
    )


def search_plan(
    estimator: Estimator,
    before: Plan,
    foundation: Foundation,
    space: Space,
    settings: Settings,
    train: Source,
    held: Source,
    metric: str,
) -> Plan:
    """Describe the search as one more pass of a plan.

    Raises
    ------
    MemoryLimitError
        If blocks that are ready do not fit into the budget.
    """
    kept = foundation.scratch is not None
    rows = train.n_rows, held.n_rows
    base = foundation.record
    per_row = base.nbytes / base.rows if base.nbytes and base.rows else None
    epochs = -(-(settings.max_iter or 1) // train.n_blocks)
    readings = 1 if kept else epochs + _most_scorings(settings)
    n_rows = None if None in rows else sum(n or 0 for n in rows)
    # each way of preprocessing makes a matrix of its own of a block
    own = None if base.projected_nbytes is None else base.projected_nbytes - before.reserved_nbytes
    projected = None if own is None else before.reserved_nbytes + len(space.preprocessings) * own
    if projected is not None and held.n_rows is not None:
        ranked = held_nbytes(metric, len(space.candidates), held.n_rows)
        projected += min(ranked, before.threads * RANKED_NBYTES) if kept else ranked
    step = PassPlan(
        number=len(before.passes) + 1,
        way="search",
        fits=(f"{counted(len(space.candidates), 'candidate')} by {settings.method}",),
        collects=(f"{metric} of the held-out rows, where candidates are compared",),
        why="all candidates learn in order from the same blocks, which are read once for all of them",
        rules=() if len(space.preprocessings) > 1 else ("preprocessing is fitted once for all candidates",),
        columns=base.columns,
        n_blocks=train.n_blocks,
        epochs=readings,
        most_epochs=readings,
        scratch=base.scratch,
        scratch_nbytes=base.scratch_nbytes,
        rows=None if n_rows is None else n_rows * readings,
        nbytes=None if n_rows is None or per_row is None else int(n_rows * per_row * readings),
        projected_nbytes=projected,
    )
    peaks = [one.projected_nbytes for one in (*before.passes, step)]
    most = None if any(peak is None for peak in peaks) else max(peak or 0 for peak in peaks)
    name = f"Search of {type(estimator).__name__}"
    plan = replace(before, estimator=name, passes=(*before.passes, step), projected_nbytes=most)
    check_budget(plan)
    return plan


def _most_scorings(settings: Settings) -> int:
    """How often the held-out rows are read at most, if they are not kept."""
    most = settings.max_iter or 81
    n = 1
    while (settings.aggressiveness**n) < most:
        n += 1
    return n + 1


def prepared_search(
    foundation: Foundation,
    plan: Plan,
    searches: OneSearch | SampledSearch,
    done: Callable[[Outcome, Setup], Estimator],
) -> PreparedSearch:
    """Put a planned search together."""
    before: Prepared = foundation.prepared
    program = replace(before.program, plan=plan)
    return PreparedSearch(
        before.source,
        program,
        before.place,
        before.epochs,
        searches=searches,
        foundation=foundation,
        done=done,
    )


def metadata_of(outcome: Outcome, setup: Setup) -> Mapping[int, dict[str, Any]]:
    """Tell, for each bracket, how many candidates and calls there were, and when it decided."""
    found: dict[int, dict[str, Any]] = {}
    deepest = max(bracket.number for bracket in setup.brackets)
    for bracket in setup.brackets:
        own = {c.ident for c in setup.space.candidates if c.bracket == bracket.number}
        records = [one for one in outcome.records if one["model_id"] in own]
        calls: dict[Any, int] = {}
        for one in records:
            calls[one["model_id"]] = max(calls.get(one["model_id"], 0), one["partial_fit_calls"])
        decisions = {one["partial_fit_calls"] for one in records}
        if bracket.number != deepest:
            decisions.discard(1)
        found[bracket.number] = {
            "decisions": sorted(decisions),
            "n_models": len(calls),
            "bracket": bracket.number,
            "partial_fit_calls": sum(calls.values()),
        }
    return found
