"""A boosted model as a part of a fit's graph: one task a block keeps its rows in scratch, one task trains.

The task that trains looks for the last record of its model when it begins: after a worker was lost it goes on there,
on another one. Where several workers train a model together, `dpipe.train.boosting.team` leads them.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dask.task_spec import List, TaskRef

from dpipe.blocks.rows import Tally
from dpipe.collect.source import Source
from dpipe.errors import ClusterError, InputError
from dpipe.families.boosting import is_ranker, library_of, rounds_of
from dpipe.families.program import BoostKeeper, Known, ProgramPass, known_meta
from dpipe.families.registry import Estimator
from dpipe.ledger.book import Place
from dpipe.run.graph import GraphBuilder, Input, add_inputs
from dpipe.run.recorded import Recorded
from dpipe.train.boosting import lgbm, xgb
from dpipe.train.boosting.batches import Kept, keep, with_time
from dpipe.train.boosting.libraries import imported
from dpipe.train.boosting.progress import Progress, Recorder, RoundPages, read
from dpipe.train.boosting.rounds import Group, Job, Share, Task, learn, tracked
from dpipe.train.boosting.shares import Extent, cut, extent, pieces

#: Learners of one process end together: they need not watch each other.
_NO_LIMIT_S = 7 * 86_400


def add_boosted(
    graph: GraphBuilder,
    inputs: Sequence[Input],
    held_out: Source | None,
    known: Any,
    step: ProgramPass,
    number: int,
    room: int | None,
    recorded: Recorded | None,
    shares: int = 1,
) -> Any:
    """Add what trains a boosted model; the result is the key of ``((estimator, None), tally)``.

    Parameters
    ----------
    graph : GraphBuilder
    inputs : sequence of Input
        The blocks to learn from.
    held_out : Source, optional
        The rows to watch it on.
    known : key
        The task that gives what earlier passes have found.
    step : ProgramPass
    number : int
        Of the pass.
    room : int, optional
        Bytes that training may take.
    recorded : Recorded, optional
        The ledger's view: a model that is on record as finished reads nothing.
    shares : int, default 1
        Into how many shares the rows are dealt; all are learned in one task.
    """
    job, beside = described(graph, inputs, held_out, step, number, room, recorded, shares)
    held = graph.hold(f"{job.name}-job", job)
    if job.pages is not None and job.pages.place is not None:
        return graph.add(f"{job.name}-recall", recall, held, job.pages.place, TaskRef(known))
    make = graph.hold(f"{job.name}-keep", BoostKeeper(step))
    kept = [
        List(*map(TaskRef, add_kept(graph, some, range(len(some)), make, TaskRef(known), step, part)))
        for part, some in ((job.name, inputs), (f"{job.name}-held-out", beside))
    ]
    return graph.add(f"{job.name}-train", _train, held, *kept, TaskRef(known))


def described(
    graph: GraphBuilder,
    inputs: Sequence[Input],
    held_out: Source | None,
    step: ProgramPass,
    number: int,
    room: int | None,
    recorded: Recorded | None,
    shares: int,
) -> tuple[Job, list[Input]]:
    """Describe what is to be trained, and give the blocks that are held out; see `add_boosted`."""
    shared = set(graph.tasks)
    beside = [] if held_out is None else add_inputs(graph, held_out, step.columns)
    added = {key: task for key, task in graph.tasks.items() if key not in shared}
    job = Job(step, room, f"pass{number}-boost", None, shares)
    if recorded is not None:
        job = replace(job, pages=_pages(recorded, inputs, beside, added, job, f"pass {number}"))
    return job, beside


def _pages(
    recorded: Recorded,
    inputs: Sequence[Input],
    held_out: Sequence[Input],
    shared: Mapping[Any, Any],
    job: Job,
    title: str,
) -> RoundPages | None:
    watched = recorded.keys_of(held_out, shared)
    library = library_of(job.estimator)
    dealt = [] if job.shares == 1 else ["shares", str(job.shares)]
    beside = [library, imported(library).__version__, *dealt, "held out", *(watched or ())]
    pen, key, place = recorded.rounds(inputs, beside, title)
    return RoundPages(pen, key, rounds_of(job.estimator), place) if key else None


def add_kept(
    graph: GraphBuilder,
    inputs: Sequence[Input],
    chosen: Sequence[int],
    make: TaskRef,
    known: TaskRef,
    step: ProgramPass,
    name: str,
) -> Iterator[Any]:
    """Add the tasks that keep some of the blocks in scratch; give their keys."""
    for i in chosen:
        each = inputs[i]
        place, progress = (step.scratch or "", graph.token), (name, i, len(inputs))
        arguments = each.load, each.needs, each.at, make, known, place, progress
        yield graph.add_block(name, i, keep, *arguments)


def recall(job: Job, place: Place, known: Known) -> tuple[tuple[Estimator, None], Tally]:
    """Give a finished model that is on record."""
    progress, tally = read(place)
    return (fitted(job, known, progress), None), tally.recalled()


def fitted(job: Job, known: Known, progress: Progress) -> Estimator:
    """Give the estimator as its own `fit` would leave it."""
    fit = job.step.learner
    assert fit is not None
    make = xgb.fitted if library_of(job.estimator) == "xgboost" else lgbm.fitted
    return make(job.estimator, known.starts[fit.index], known_meta(fit, known.fitted), progress)


def tallied(extents: Sequence[Extent]) -> Tally:
    """Add up what was read."""
    tally = Tally()
    for each in extents:
        tally = tally.merge(each.tally)
    return tally


def task_of(
    job: Job, extents: Sequence[Extent], held_out: Sequence[Extent], begun: Progress, tally: Tally
) -> Task | None:
    """Say what is to be done; None if there are no rows to learn from.

    Raises
    ------
    InputError
        If there are no rows to watch it on.
    """
    width = max((each.shape[1] for each in extents), default=0)
    if not any(each.shape[0] for each in extents):
        return None
    if held_out and not any(each.shape[0] for each in held_out):
        raise InputError(f"{job.name}: validation has no rows. Check how they were chosen.")
    return Task(job, begun, width, bool(held_out), tally)


def _train(
    job: Job, kept: Sequence[Kept], held_out: Sequence[Kept], known: Known
) -> tuple[tuple[Estimator, None], Tally]:
    began = time.time()
    grouped = is_ranker(job.estimator) and job.shares > 1
    extents, watched = ([extent(each, grouped) for each in some] for some in (kept, held_out))
    tally = tallied(extents)
    begun = Progress() if job.pages is None else job.pages.last()
    task = task_of(job, extents, watched, begun, tally)
    if task is None:
        return (None, None), tally
    if job.shares == 1:
        progress = learn(task, [Share(kept, held_out)], known, _always)
    else:
        parts = [
            [[cut(some[piece.block], piece) for piece in share] for share in dealt]
            for some, dealt in (
                (kept, pieces(extents, job.shares)),
                (held_out, pieces(watched, job.shares)),
            )
        ]
        with tracked(job.shares) as arguments:
            together = replace(task, group=Group(arguments, 0, _NO_LIMIT_S))
            progress = learn(together, [Share(*each) for each in zip(*parts, strict=True)], known, _always)
        if not progress.finished:
            raise ClusterError(
                f"{job.name}: the learners of this process have lost each other. Run again: with a workdir, training "
                "goes on from its last record."
            )
    Recorder(job.pages, job.name, tally).conclude(progress)
    return (fitted(job, known, progress), None), with_time(tally, began)


def _always() -> bool:
    return True
