"""Searches over candidates that learn in order: one reading of a block feeds all live ones.

All candidates meet the blocks in one order, and wait for each other: the call number c of any of them is of the same
block, which is read, transformed and handed to all of them once. Where a bracket decides, one reading of the held-out
rows scores its candidates. Nothing depends on which worker was faster.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dask.task_spec import GraphNode, List, TaskRef
from distributed import Client

from dpipe.blocks.rows import Tally
from dpipe.cluster.local import Place, compute_keys
from dpipe.collect.loads import ScratchLoad
from dpipe.errors import DpipeError
from dpipe.families.model_file import open_model
from dpipe.families.program import Known
from dpipe.run.graph import GraphBuilder, Input, graph_token
from dpipe.run.recorded import Recorded
from dpipe.run.scan import add_scan
from dpipe.train.resume import freeze
from dpipe.tuning.foundation import ForLearning, ForScoring
from dpipe.tuning.learning import (
    Trained,
    as_it_is,
    block_of,
    collected,
    learn_blocks,
    read_block,
    recalled,
    record,
    said,
    tally_of,
)
from dpipe.tuning.pages import SearchPages
from dpipe.tuning.schedule import Bracket
from dpipe.tuning.scoring import RANKED_NBYTES, Found, ScoreAll, held_nbytes, scores_of
from dpipe.tuning.setup import Setup, opened
from dpipe.tuning.space import Candidate

#: Recording the candidates takes at most one part in so many of the time.
_WORTH_TIMES = 20


@dataclass(frozen=True)
class Read:
    """What a search has read, and what it has used of that: blocks, and decoded bytes."""

    blocks: int = 0
    """Blocks that were read from their source and made ready."""
    nbytes: int = 0
    uses: int = 0
    """Blocks that a candidate has learned from: a stream for each candidate would have read as many."""
    used_nbytes: int = 0
    scoring_blocks: int = 0
    """Blocks of held-out rows that were gone through to score, together or one by one."""


@dataclass
class Outcome:
    """What came of a search."""

    records: list[dict[str, Any]] = field(default_factory=list)
    """For each candidate of each round what it did and how it was scored, in order."""
    best: Any = None
    """The name of the best candidate."""
    learner: Any = None
    """The best one, fitted."""
    known: Known | None = None
    read: Read = field(default_factory=Read)
    tally: Tally = field(default_factory=Tally)

    @property
    def best_score(self) -> float:
        """The last score of the best candidate."""
        return float(next(one["score"] for one in reversed(self.records) if one["model_id"] == self.best))


class Runner:
    """One search, or one bracket of it.

    Parameters
    ----------
    setup : Setup
    known : Known
        The fitted preprocessing.
    place : Place
    client : Client, optional
    recorded : Recorded, optional
        The ledger's view, after the passes of the preprocessing.
    before : Runner, optional
        Of another bracket, on the same data: the blocks that it has made ready are not made again.
    """

    def __init__(
        self,
        setup: Setup,
        known: Known,
        place: Place,
        client: Client | None,
        recorded: Recorded | None,
        before: "Runner | None" = None,
    ) -> None:
        self.setup, self.known, self.place, self.client = setup, known, place, client
        self.recorded = recorded
        self.by_name = {(c.bracket, c.number): c for c in setup.space.candidates}
        self.states: dict[Any, Any] = {c.ident: Trained(c.learner) for c in setup.space.candidates}
        self.calls: dict[Any, int] = dict.fromkeys(self.states, 0)
        self.told: dict[Any, tuple[str, float, int]] = dict.fromkeys(self.states, ("", 0.0, 0))
        self.classes = setup.foundation.classes(known) if setup.classes is None else setup.classes
        self.outcome = Outcome(known=known)
        self.window = 2 * place.threads * place.workers
        self._graphs = 0
        self._token = graph_token(setup.train.X, setup.train.y, setup.seed, time.time_ns())
        self._held: list[Any] = []
        self._kept: dict[int, Any] = {}
        self._held_lengths: tuple[int, ...] = ()
        self._began = time.monotonic()
        """When the search would have begun, had it not been stopped."""
        if before is not None:
            self._token, self._graphs, self._began = before._token, before._graphs, before._began
            self._kept, self._held, self._held_lengths = before._kept, before._held, before._held_lengths
            self.outcome.read = before.outcome.read
        self._due, self._restored = 0.0, False
        self._saved: set[str] = set()
        foundation = setup.foundation
        self._learning = ForLearning(tuple(fit.source for fit in foundation.stands), foundation.columns)
        self._scoring = ForScoring(foundation.preprocessings(known))
        (self._inputs, self._shared), (self._held_inputs, self._held_shared) = opened(
            setup, self._token, recorded
        )
        self._pages = SearchPages.of(setup, (*self._inputs, *self._held_inputs), recorded)

    def run(self) -> Outcome:
        """Run all rounds of all brackets, and give the best candidate.

        Raises
        ------
        DpipeError
            If all candidates have failed.
        """
        end = self._pages.find("end")
        if end is not None:
            return self._recalled_end(end)
        turn = 0
        while any(bracket.round for bracket in self.setup.brackets):
            turn = self._take(turn)
        best = self._best()
        self._restore()
        self._bring({best.ident: self._last_of(best.ident)["partial_fit_calls"]})
        state = self._value(self.states[best.ident])
        self.outcome.best, self.outcome.learner = best.ident, state.learner
        self.outcome.tally = replace(self.outcome.tally, lengths=self._held_lengths)
        if self._pages.pen is not None:  # only then: what knows all kinds of models is large
            content = freeze((state.learner, None))
            self._pages.write("end", (self.outcome.records, best.ident, content, self.outcome.tally))
        return self.outcome

    def _take(self, turn: int) -> int:
        """Go on to the next call at which a bracket ends its round, and let it decide."""
        goals = {
            bracket.number: {i: bracket.calls(i) + more for i, more in bracket.round.items()}
            for bracket in self.setup.brackets
            if bracket.round
        }
        clock = min(max(goal.values()) for goal in goals.values())
        ending = [b for b in self.setup.brackets if b.round and max(goals[b.number].values()) == clock]
        found = self._pages.find(f"turn {turn}")
        if found is None:
            self._restore()
            self._bring(
                {
                    self.by_name[number, i].ident: min(goal, clock)
                    for number, goal_of in goals.items()
                    for i, goal in goal_of.items()
                }
            )
            found = self._scored([self.by_name[b.number, i] for b in ending for i in b.round])
            self._pages.write(f"turn {turn}", found)
        else:
            self._began = time.monotonic() - max(one["elapsed_wall_time"] for one in found)
        self._decide(ending, found)
        if not self._last_turn():
            self._save()
        return turn + 1

    def _last_turn(self) -> bool:
        return not any(bracket.round for bracket in self.setup.brackets)

    def _decide(self, ending: Sequence[Bracket], found: Sequence[dict[str, Any]]) -> None:
        self.outcome.records += found
        by_ident = {one["model_id"]: one for one in found}
        for bracket in ending:
            bracket.decide({i: by_ident[self.by_name[bracket.number, i].ident] for i in bracket.round})
        live = {self.by_name[b.number, i].ident for b in self.setup.brackets for i in b.live}
        for ident in [ident for ident in self.states if ident not in live]:
            del self.states[ident]

    # what is computed

    def _graph(self) -> GraphBuilder:
        self._graphs += 1
        return GraphBuilder(graph_token(self._token, self._graphs))

    def _computed(self, graph: GraphBuilder, key: Any, kept: Sequence[Any]) -> tuple[Any, list[Any]]:
        tasks = _needed(graph.tasks, [key, *kept])
        return compute_keys(tasks, key, kept, self.client, self.place.threads)

    def _value(self, held: Any) -> Any:
        graph = self._graph()
        return self._computed(graph, graph.add("search-bring", as_it_is, held), [])[0]

    def _bring(self, wanted: Mapping[Any, int]) -> None:
        """Let candidates learn until each has made as many calls as it is to; some blocks at a time."""
        while pending := {i: goal for i, goal in wanted.items() if self.calls[i] < goal}:
            first = min(self.calls[i] for i in pending)
            last = min(first + self.window, max(pending.values()))
            self._learn(
                {i: min(goal, last) for i, goal in pending.items() if self.calls[i] < last}, first, last
            )
            self._save()

    def _learn(self, goals: Mapping[Any, int], first: int, last: int) -> None:
        """Hand the blocks of some calls to all candidates that have not made them yet."""
        graph = self._graph()
        places = {call: block_of(self.setup.seed, call, len(self._inputs)) for call in range(first, last)}
        blocks, new = self._blocks(graph, {block for _, block in places.values()})
        candidates = {c.ident: c for c in self.setup.space.candidates if c.ident in goals}
        classes = graph.hold("search-classes", self.classes)
        keys = {}
        for ident, goal in goals.items():
            calls = range(self.calls[ident], goal)
            keys[ident] = graph.add(
                "search-learn",
                learn_blocks,
                self.states[ident],
                candidates[ident].preprocessing,
                classes,
                tuple((call, places[call]) for call in calls),
                List(*(blocks[places[call][1]] for call in calls)),
            )
        told = [TaskRef(graph.add("search-said", said, TaskRef(key))) for key in keys.values()]
        read = {block: graph.add("search-tally", tally_of, blocks[block]) for block in blocks}
        summary = graph.add("search-told", collected, List(*told), List(*map(TaskRef, read.values())))
        keeps = self.setup.foundation.scratch is not None
        kept_blocks = list(new.values()) if keeps else []
        (found, tallies), kept = self._computed(graph, summary, [*keys.values(), *kept_blocks])
        if keeps:
            self._kept.update(zip(new, kept[len(keys) :], strict=True))
        for ident, state, one in zip(keys, kept, found, strict=False):
            self.states[ident], self.told[ident] = state, one
        self._count(dict(zip(read, tallies, strict=True)), set(new), goals, places)
        self.calls.update(goals)

    def _count(
        self, tallies: Mapping[int, Tally], new: set[int], goals: Mapping[Any, int], places: Mapping[int, Any]
    ) -> None:
        read = self.outcome.read
        for block in new:
            self._add_tally(tallies[block])
        used = [places[call][1] for i, goal in goals.items() for call in range(self.calls[i], goal)]
        self.outcome.read = replace(
            self.outcome.read,
            uses=read.uses + len(used),
            used_nbytes=read.used_nbytes + sum(tallies[block].nbytes for block in used),
        )

    def _add_tally(self, tally: Tally) -> None:
        read = self.outcome.read
        self.outcome.tally = self.outcome.tally.merge(replace(tally, lengths=()))
        self.outcome.read = replace(read, blocks=read.blocks + 1, nbytes=read.nbytes + tally.nbytes)

    def _blocks(self, graph: GraphBuilder, wanted: set[int]) -> tuple[dict[int, Any], dict[int, Any]]:
        """Give what stands for each block in a graph, and the keys of those that are read in it."""
        new = {}
        found = {}
        todo = [block for block in sorted(wanted) if block not in self._kept]
        if todo:
            graph.tasks.update(self._shared)
            known, make = graph.hold("search-known", self.known), graph.hold("search-make", self._learning)
        for block in sorted(wanted):
            if block in self._kept:
                found[block] = self._kept[block]
                continue
            new[block] = self._read(graph, self._inputs[block], make, known, "search", block)
            found[block] = TaskRef(new[block])
        return found, new

    def _read(self, graph: GraphBuilder, each: Input, make: Any, known: Any, name: str, number: int) -> Any:
        arguments = each.load, each.needs, each.at, make, known
        folder = self.setup.foundation.scratch
        return graph.add_block(
            f"{name}-read", number, read_block, *arguments, folder, self._token, name, number
        )

    # scores

    def _scored(self, candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
        """Score candidates in one reading of the held-out rows, and give their records."""
        if self.setup.foundation.scratch is not None and not self._held:
            self._hold()
        inputs = self._held_inputs
        if self._held:
            inputs = [
                replace(each, load=ScratchLoad(), needs=List(held))
                for each, held in zip(inputs, self._held, strict=True)
            ]
        graph = self._graph()
        graph.tasks.update({} if self._held else self._held_shared)
        n_parts = self._score_parts(len(candidates)) if self._held else 1
        collect = ScoreAll(self.setup.metric, self._scoring)
        keys = []
        for i in range(n_parts):
            part, name = candidates[i::n_parts], "search score" + (f" {i + 1}" if n_parts > 1 else "")
            held = graph.add(
                "search-compared", collected, *(List(c.preprocessing, self.states[c.ident]) for c in part)
            )
            merged = add_scan(graph, inputs, collect, held, name=name, counted=False)
            keys.append(graph.add("search-scores", _with_tally, TaskRef(merged), self.setup.metric))
        summary = graph.add("search-told", collected, *map(TaskRef, keys))
        found, _ = self._computed(graph, summary, [])
        scores: dict[Any, Found] = {}
        for i, (each, tally) in enumerate(found):
            scores |= {c.ident: one for c, one in zip(candidates[i::n_parts], each, strict=True)}
            if not self._held and i == 0:
                self._add_scan_tally(tally)
                self._held_lengths = tally.lengths
        read = self.outcome.read
        self.outcome.read = replace(read, scoring_blocks=read.scoring_blocks + len(inputs))
        return [self._record(c, scores[c.ident]) for c in candidates]

    def _score_parts(self, n_candidates: int) -> int:
        """Share the candidates out: blocks that are held cost nothing to go through again."""
        slots = self.place.threads * self.place.workers
        spread = -(-slots // len(self._held))
        nbytes = held_nbytes(self.setup.metric, n_candidates, sum(self._held_lengths))
        return min(n_candidates, max(spread, -(-nbytes // RANKED_NBYTES)))

    def _add_scan_tally(self, tally: Tally) -> None:
        self.outcome.tally = self.outcome.tally.merge(replace(tally, lengths=()))
        read = self.outcome.read
        self.outcome.read = replace(
            read, blocks=read.blocks + tally.n_blocks, nbytes=read.nbytes + tally.nbytes
        )

    def _hold(self) -> None:
        """Read the held-out rows once, and keep them in scratch."""
        graph = self._graph()
        graph.tasks.update(self._held_shared)
        make = graph.hold("search-make", self._scoring)
        known = graph.hold("search-known", None)
        keys = [
            self._read(graph, each, make, known, "search held out", i)
            for i, each in enumerate(self._held_inputs)
        ]
        tallies = [TaskRef(graph.add("search-tally", tally_of, TaskRef(key))) for key in keys]
        found, self._held = self._computed(graph, graph.add("search-told", collected, *tallies), keys)
        for tally in found:
            self._add_tally(tally)
        self._held_lengths = tuple(tally.rows for tally in found)

    def _record(self, candidate: Candidate, found: Found) -> dict[str, Any]:
        failed, seconds, calls = self.told[candidate.ident]
        one = {
            "model_id": candidate.ident,
            "partial_fit_calls": calls,
            "partial_fit_time": seconds,
            "score": found.score,
            "score_time": found.seconds,
            "elapsed_wall_time": time.monotonic() - self._began,
        }
        return {**one, "error": failed or found.failed} if failed or found.failed else one

    def _last_of(self, ident: Any) -> dict[str, Any]:
        return next(one for one in reversed(self.outcome.records) if one["model_id"] == ident)

    def _best(self) -> Candidate:
        """Choose the best of each bracket by its last score, and the best of these."""
        best: tuple[float, Candidate] | None = None
        for bracket in self.setup.brackets:
            for i, score in bracket.scores().items():
                if best is None or score > best[0]:
                    best = score, self.by_name[bracket.number, i]
        if best is None:
            reasons = list(dict.fromkeys(one["error"] for one in self.outcome.records if "error" in one))
            raise DpipeError(
                f"All {len(self.by_name)} candidates have failed. {len(reasons)} reason"
                f"{'s' * (len(reasons) > 1)}, the first: {reasons[0]} Check the data and the parameters."
            )
        return best[1]

    # the ledger

    def _recalled_end(self, end: Any) -> Outcome:
        assert self.recorded is not None
        records, best, content, tally = end
        self.recorded.say("the whole search is on record.")
        self.outcome.records, self.outcome.best, self.outcome.tally = records, best, tally.recalled()
        self.outcome.learner = open_model(content, (), "the ledger")
        return self.outcome

    def _restore(self) -> None:
        """Take up the candidates where they were recorded last."""
        if self._restored:
            return
        self._restored = True
        snapshot = self._pages.find("snapshot") or {}
        n_calls = 0
        for ident, (calls, key) in snapshot.items():
            place = self._pages.place(key)
            state = None if place is None or ident not in self.states else recalled(place)
            limit = self._limit(ident)
            if state is not None and state.calls == calls and calls <= limit:
                self.states[ident], self.calls[ident] = state, calls
                self.told[ident] = said(state)
                n_calls += calls
        if self.recorded is not None and n_calls:
            self.recorded.say(f"{n_calls:,} calls of partial_fit of its candidates on record.")

    def _limit(self, ident: Any) -> int:
        """Calls that a candidate can have made by the end of its bracket's round."""
        candidate = next(c for c in self.setup.space.candidates if c.ident == ident)
        bracket = next(b for b in self.setup.brackets if b.number == candidate.bracket)
        return bracket.calls(candidate.number) + bracket.round.get(candidate.number, 0)

    def _save(self) -> None:
        """Record the candidates, if that is due."""
        pen, began = self._pages.pen, time.monotonic()
        if pen is None or began < self._due or not self._restored:
            return
        keys = {i: self._pages.key_of(i, self.calls[i]) for i in self.states if self.calls[i]}
        graph = self._graph()
        new = {i: key for i, key in keys.items() if key not in self._saved}
        tasks = [
            TaskRef(graph.add("search-record", record, self.states[i], pen, key)) for i, key in new.items()
        ]
        problems, _ = self._computed(graph, graph.add("search-told", collected, *tasks), [])
        bad = [problem for problem in problems if problem]
        assert self.recorded is not None
        if bad:
            self.recorded.say(f"the candidates are not recorded, a stopped run begins anew: {bad[0]}.")
            self._due = float("inf")
            return
        self._saved |= set(new.values())
        self._pages.write("snapshot", {i: (self.calls[i], key) for i, key in keys.items()})
        self._due = time.monotonic() + _WORTH_TIMES * (time.monotonic() - began)


def _with_tally(state: Any, metric: str) -> tuple[tuple[Found, ...], Tally]:
    return scores_of(state, metric), state.tally


def _needed(tasks: Mapping[Any, Any], keys: Sequence[Any]) -> dict[Any, Any]:
    """Leave out the tasks that these keys do not need."""
    found: dict[Any, Any] = {}
    stack = list(keys)
    while stack:
        key = stack.pop()
        if key in found or key not in tasks:
            continue
        found[key] = tasks[key]
        if isinstance(tasks[key], GraphNode):
            stack += tasks[key].dependencies
    return found
