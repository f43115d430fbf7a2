"""What one process does for a boosted model: it learns one share of the rows, or several, round after round.

Learners that train a model together are threads, in one process or in many, joined by XGBoost's collective: after
each step they add up what they have found, in the order of their ranks. So all have the same trees, whoever is where.
"""

import contextlib
import contextvars
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from distributed import get_worker

from dpipe.blocks.heap import give_back
from dpipe.blocks.rows import Tally
from dpipe.blocks.scratch import on_this_node
from dpipe.families.boosting import Footprint, Start, check_room, is_ranker, library_of, rounds_of
from dpipe.families.program import Known, ProgramPass, known_meta
from dpipe.families.registry import Estimator
from dpipe.monitor.events import emit
from dpipe.train.boosting import lgbm, xgb
from dpipe.train.boosting.batches import Batches, Kept
from dpipe.train.boosting.libraries import imported
from dpipe.train.boosting.progress import GroupBroken, Model, Progress, Recorder, RoundPages
from dpipe.train.boosting.stuck import ended, renew_worker

_CACHE = "dpipe-boosting-"


@dataclass(frozen=True)
class Job:
    """What is to be trained."""

    step: ProgramPass
    room: int | None
    """Bytes that training may take in one process; None: half of what is free where it runs."""
    name: str
    pages: RoundPages | None
    shares: int = 1
    """Into how many shares the rows are dealt."""

    @property
    def estimator(self) -> Estimator:
        """The unfitted estimator."""
        assert self.step.learner is not None
        return self.step.learner.estimator


class Share(NamedTuple):
    """What one learner is given."""

    train: Sequence[Kept]
    held_out: Sequence[Kept]


@dataclass(frozen=True)
class Group:
    """How the learners of a model find each other."""

    arguments: Mapping[str, Any]
    """XGBoost's, from its tracker."""
    first: int
    """The rank of the first learner of this process."""
    timeout_s: int
    """How long a learner waits for others in one step."""


@dataclass(frozen=True)
class Task:
    """What a process is told beside its rows."""

    job: Job
    begun: Progress
    width: int
    watched: bool
    """Whether there are rows that are held out, in whatever share."""
    tally: Tally
    """Of all blocks, for the ledger."""
    group: Group | None = None


@dataclass(frozen=True)
class _Learner:
    """How one learner goes about its share."""

    recorder: Recorder
    cached: bool
    """Whether its bins are on disk."""
    threads: int | None
    tells: bool
    """Whether it tells of its rounds: one does, for all."""
    wanted: Callable[[], bool]


def learn(task: Task, shares: Sequence[Share], known: Known, wanted: Callable[[], bool]) -> Progress:
    """Train one model from some shares, each in a thread of its own.

    Parameters
    ----------
    task : Task
    shares : sequence of Share
    known : Known
    wanted : callable
        Tells whether to go on: before each round, and while learners wait for each other.

    Returns
    -------
    Progress
        How far it has come: to the end, unless others of its group were lost.

    Raises
    ------
    DpipeError
        If memory or the values do not do.
    """
    give_back()  # what transforming the blocks has left in the heap
    threads = _threads()
    own = None if threads is None else max(threads // len(shares), 1)
    cached = [_is_cached(task, share, known, len(shares)) for share in shares]
    if task.group is None:
        recorder = Recorder(task.job.pages, task.job.name, task.tally)
        return _trained(task, shares[0], known, _Learner(recorder, cached[0], own, True, wanted))
    first = task.group.first
    learners = []
    for i, on_disk in enumerate(cached):
        leads = first + i == 0  # one writes and tells for all
        pages = task.job.pages if leads else None
        recorder = Recorder(pages, task.job.name, task.tally, remembers=True, last=task.begun)
        learners.append(_Learner(recorder, on_disk, own, leads, wanted))
    return _together(task, shares, known, learners)


def _together(task: Task, shares: Sequence[Share], known: Known, learners: Sequence[_Learner]) -> Progress:
    """Run the learners of this process."""
    group = task.group
    assert group is not None
    found: dict[int, Progress] = {}
    failed: dict[int, BaseException] = {}

    def one(i: int) -> None:
        try:
            with xgb.joined(group.arguments, group.first + i, group.timeout_s):
                found[i] = _trained(task, shares[i], known, learners[i])
        except BaseException as err:  # it is raised again, in the thread of the task
            failed[i] = err

    # the contexts know the worker that hears of rounds
    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(one, i), daemon=True)
        for i in range(len(shares))
    ]
    for thread in threads:
        thread.start()
    wanted = learners[0].wanted
    if not ended(threads, lambda: bool(failed) or not wanted()):
        renew_worker(threads, group.timeout_s)
    for _, err in sorted(failed.items()):
        if not isinstance(err, GroupBroken):
            raise err
    if len(found) < len(shares):
        return max((each.recorder.last for each in learners), key=lambda progress: progress.n_rounds)
    # all have the same trees, and one process sends them
    return found[0] if group.first == 0 else Progress(n_rounds=found[0].n_rounds, finished=True)


def _trained(task: Task, share: Share, known: Known, learner: _Learner) -> Progress:
    """Make a booster of one share, and have it learn to its end."""
    job, fit = task.job, task.job.step.learner
    assert fit is not None
    ranks = is_ranker(job.estimator)
    train, watched = (Batches(each, grouped=ranks, width=task.width) for each in share)
    with (
        cache_folder(on_this_node(job.step.scratch or ""))
        if learner.cached
        else contextlib.nullcontext() as folder
    ):
        make = xgb.XGBoostModel if library_of(job.estimator) == "xgboost" else lgbm.LightGBMModel
        model = make(
            job.estimator,
            known.starts[fit.index],
            known_meta(fit, known.fitted),
            train,
            watched if task.watched else None,
            task.begun,
            folder,
            learner.threads,
        )
        give_back()  # what finding the bins has left
        progress = _rounds(model, task, learner)
        del model  # it closes its files, which are removed next
        return progress


def _rounds(model: Model, task: Task, learner: _Learner) -> Progress:
    """Learn round after round, from where it was left."""
    job, rows = task.job, task.tally.rows
    i = task.begun.n_rounds
    # a model that was killed after its last round, and before it was concluded
    done = i > 0 and model.stop(i - 1)
    total = rounds_of(job.estimator)
    while not done:
        if not learner.wanted():
            raise GroupBroken("nobody waits for it")
        model.update(i)
        done = model.stop(i)
        i += 1
        if learner.tells:
            emit({"pass": f"{job.name} rounds", "block": i, "n_blocks": total, "rows": rows, "nbytes": 0})
        if not done:
            learner.recorder.record(model, i)
    return Progress(model.model(), i, tuple(model.history), finished=True)


def _is_cached(task: Task, share: Share, known: Known, n_shares: int) -> bool:
    """Tell whether the bins of a share are cached on disk: where they do not fit the memory.

    Raises
    ------
    MemoryLimitError
        If training does not fit then, either.
    """
    job, fit = task.job, task.job.step.learner
    assert fit is not None
    start: Start = known.starts[fit.index]
    rows = sum(kept.shape[0] for part in share for kept in part)
    n_outputs = 1 if start.classes is None or len(start.classes) == 2 else len(start.classes)
    room = (psutil.virtual_memory().available // 2 if job.room is None else job.room) // n_shares
    footprint = Footprint.of(job.estimator, rows, task.width, n_outputs=n_outputs)
    if job.room is not None:
        check_room(job.estimator, footprint, (rows, task.width), room)
    return not footprint.fits(room)


def _threads() -> int | None:
    """Give the threads of the worker that this task runs on; None where all of the machine's are ours."""
    try:
        worker = get_worker()
    except ValueError:
        return None
    return None if worker.address.startswith("inproc://") else int(worker.state.nthreads)


@contextlib.contextmanager
def tracked(n: int, host: str = "127.0.0.1") -> Iterator[dict[str, Any]]:
    """Run XGBoost's tracker for a group of learners; give what each needs to join."""
    tracker = imported("xgboost").tracker.RabitTracker(n_workers=n, host_ip=host, sortby="task")
    tracker.start()
    try:
        yield dict(tracker.worker_args())
    finally:
        # a group that has come to its end has closed it; of one that has not, it complains
        with contextlib.suppress(imported("xgboost").core.XGBoostError):
            tracker.free()


@contextlib.contextmanager
def cache_folder(scratch: str) -> Iterator[str]:
    """Make a folder for XGBoost's cache, which opens its files by name, and remove it at the end.

    Those of processes that were killed are removed, too: a lock tells whether the owner still lives.
    """
    for old in Path(scratch).glob(f"{_CACHE}*"):
        with contextlib.suppress(OSError), (old / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old, ignore_errors=True)
    made = tempfile.mkdtemp(prefix=f".{_CACHE}", dir=scratch)
    folder = os.path.join(scratch, os.path.basename(made)[1:])
    try:
        with open(os.path.join(made, "lock"), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # only now can others see it, who would take it for one that was left
            os.rename(made, folder)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
