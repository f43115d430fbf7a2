"""A boosted model as a part of a fit's graph: one task a block keeps its rows in scratch, one task trains.

The task that trains looks for the last record of its model when it begins: after a worker was lost it goes on there,
on another one.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from dask.task_spec import List, TaskRef
from distributed import get_worker

from dpipe.blocks.heap import give_back
from dpipe.blocks.rows import Tally
from dpipe.collect.source import Source
from dpipe.errors import InputError
from dpipe.families.boosting import Footprint, Start, check_room, is_ranker, library_of, rounds_of
from dpipe.families.program import BoostKeeper, Known, ProgramPass, known_meta
from dpipe.families.registry import Estimator
from dpipe.ledger.book import Place
from dpipe.monitor.events import emit
from dpipe.run.graph import GraphBuilder, Input, add_inputs
from dpipe.run.recorded import Recorded
from dpipe.train.boosting import lgbm, xgb
from dpipe.train.boosting.batches import Batches, Kept, keep, merged, with_time
from dpipe.train.boosting.libraries import imported
from dpipe.train.boosting.progress import Model, Progress, Recorder, RoundPages, read

_CACHE = "dpipe-boosting-"


@dataclass(frozen=True)
class Job:
    """What the task that trains is told."""

    step: ProgramPass
    room: int | None
    """Bytes that training may take; None: half of what is free where it runs."""
    name: str
    pages: RoundPages | None

    @property
    def estimator(self) -> Estimator:
        """The unfitted estimator."""
        assert self.step.learner is not None
        return self.step.learner.estimator


def add_boosted(
    graph: GraphBuilder,
    inputs: Sequence[Input],
    held_out: Source | None,
    known: Any,
    step: ProgramPass,
    number: int,
    room: int | None,
    recorded: Recorded | None,
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
    """
    shared = set(graph.tasks)
    beside = [] if held_out is None else add_inputs(graph, held_out, step.columns)
    added = {key: task for key, task in graph.tasks.items() if key not in shared}
    name = f"pass{number}-boost"
    job = Job(step, room, name, None)
    if recorded is not None:
        job = replace(job, pages=_pages(recorded, inputs, beside, added, job, f"pass {number}"))
    held = graph.hold(f"{name}-job", job)
    if job.pages is not None and job.pages.place is not None:
        return graph.add(f"{name}-recall", _recall, held, job.pages.place, TaskRef(known))
    make = graph.hold(f"{name}-keep", BoostKeeper(step))
    kept = [
        List(*_kept(graph, some, make, TaskRef(known), step.scratch or "", part))
        for part, some in ((name, inputs), (f"{name}-held-out", beside))
    ]
    return graph.add(f"{name}-train", _train, held, *kept, TaskRef(known))


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
    beside = [library, imported(library).__version__, "held out", *(watched or ())]
    pen, key, place = recorded.rounds(inputs, beside, title)
    return RoundPages(pen, key, rounds_of(job.estimator), place) if key else None


def _kept(
    graph: GraphBuilder, inputs: Sequence[Input], make: TaskRef, known: TaskRef, folder: str, name: str
) -> Iterator[TaskRef]:
    """Add the tasks that keep some blocks in scratch."""
    for i, each in enumerate(inputs):
        place, progress = (folder, graph.token), (name, i, len(inputs))
        arguments = each.load, each.needs, each.at, make, known, place, progress
        yield TaskRef(graph.add_block(name, i, keep, *arguments))


def _recall(job: Job, place: Place, known: Known) -> tuple[tuple[Estimator, None], Tally]:
    progress, tally = read(place)
    return (_fitted(job, known, progress), None), tally.recalled()


def _fitted(job: Job, known: Known, progress: Progress) -> Estimator:
    fit = job.step.learner
    assert fit is not None
    start: Start = known.starts[fit.index]
    make = xgb.fitted if library_of(job.estimator) == "xgboost" else lgbm.fitted
    return make(job.estimator, start, known_meta(fit, known.fitted), progress)


def _train(
    job: Job, kept: Sequence[Kept], held_out: Sequence[Kept], known: Known
) -> tuple[tuple[Estimator, None], Tally]:
    began = time.time()
    give_back()  # what transforming the blocks has left in the heap
    fit = job.step.learner
    assert fit is not None
    tally = merged(kept)
    ranks = is_ranker(job.estimator)
    train, watched = (Batches(each, grouped=ranks) for each in (kept, held_out))
    if not train.n_rows:
        return (None, None), tally
    if held_out and not watched.n_rows:
        raise InputError(f"{job.name}: validation has no rows. Check how they were chosen.")
    begun = Progress() if job.pages is None else job.pages.last()
    start: Start = known.starts[fit.index]
    cached = _is_cached(job, train.n_rows + watched.n_rows, train.width, start)
    recorder = Recorder(job.pages, job.name, tally)
    with cache_folder(job.step.scratch or "") if cached else contextlib.nullcontext() as folder:
        make = xgb.XGBoostModel if library_of(job.estimator) == "xgboost" else lgbm.LightGBMModel
        model = make(
            job.estimator,
            start,
            known_meta(fit, known.fitted),
            train,
            watched if held_out else None,
            begun,
            folder,
            _threads(),
        )
        give_back()  # what finding the bins has left
        progress = _rounds(job, model, begun, recorder, tally.rows)
        del model
    recorder.conclude(progress)
    return (_fitted(job, known, progress), None), with_time(tally, began)


def _rounds(job: Job, model: Model, begun: Progress, recorder: Recorder, rows: int) -> Progress:
    """Learn round after round, from where it was left."""
    i = begun.n_rounds
    # a model that was killed after its last round, and before it was concluded
    done = i > 0 and model.stop(i - 1)
    while not done:
        model.update(i)
        done = model.stop(i)
        i += 1
        total = rounds_of(job.estimator)
        emit({"pass": f"{job.name} rounds", "block": i, "n_blocks": total, "rows": rows, "nbytes": 0})
        if not done:
            recorder.record(model, i)
    return Progress(model.model(), i, tuple(model.history), finished=True)


def _is_cached(job: Job, rows: int, width: int, start: Start) -> bool:
    """Tell whether bins are cached on disk: where they do not fit the memory.

    Raises
    ------
    MemoryLimitError
        If training does not fit then, either.
    """
    n_outputs = 1 if start.classes is None or len(start.classes) == 2 else len(start.classes)
    room = psutil.virtual_memory().available // 2 if job.room is None else job.room
    footprint = Footprint.of(job.estimator, rows, width, n_outputs=n_outputs)
    if job.room is not None:
        check_room(job.estimator, footprint, (rows, width), room)
    return not footprint.fits(room)


def _threads() -> int | None:
    """Give the threads of the worker that this task runs on; None where all of the machine's are ours."""
    try:
        worker = get_worker()
    except ValueError:
        return None
    return None if worker.address.startswith("inproc://") else int(worker.state.nthreads)


@contextlib.contextmanager
def cache_folder(scratch: str) -> Iterator[str]:
    """Make a folder for XGBoost's cache, which opens its files by name, and remove it at the end.

    Those of processes that were killed are removed, too: a lock tells whether the owner still lives.
    """
    for old in Path(scratch).glob(f"{_CACHE}*"):
        with contextlib.suppress(OSError), (old / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_CACHE, dir=scratch)
    try:
        with open(os.path.join(folder, "lock"), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
