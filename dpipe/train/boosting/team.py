"""Workers of a cluster that train one boosted model together, led from the client.

Each worker reads the blocks of its share, as far as it lives, and keeps them in its scratch. One task a worker then
learns its share, or several, joined to the others by XGBoost's collective. A worker that is lost breaks the
group: the others give what they have, and the model goes on from the last record in a group of the workers that are
left. The shares stay what they were, so that the trees are those of a run in which nothing was lost.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from dask.task_spec import TaskRef
from distributed import Client, Future, Lock, get_worker, wait
from distributed.comm import get_address_host

from dpipe.blocks.rows import Tally
from dpipe.cluster.local import explained
from dpipe.collect.source import Source
from dpipe.errors import ClusterError
from dpipe.families.boosting import is_ranker
from dpipe.families.program import BoostKeeper, Known, ProgramPass
from dpipe.families.registry import Estimator
from dpipe.run.graph import GraphBuilder, Input
from dpipe.run.recorded import Recorded
from dpipe.sizes import counted
from dpipe.train.boosting.batches import Kept, with_time
from dpipe.train.boosting.job import add_kept, described, fitted, recall, tallied, task_of
from dpipe.train.boosting.progress import Progress, Recorder
from dpipe.train.boosting.rounds import Group, Job, Share, Task, learn, tracked
from dpipe.train.boosting.shares import Extent, Piece, cut, deal, extent, pieces

#: How long a learner waits for the others in one step, at first: a process that dies is noticed at once, a machine that
#: falls silent after this. Ten times as long when nobody was lost, and the others were only slow.
TIMEOUT_S = 60
#: Seconds between two looks at which workers are left.
_LOOK_EVERY_S = 0.5
#: Groups that may break in a row without having come any further.
_MOST_BROKEN = 4
_LOCK = "dpipe-boosting"


def train_together(
    graph: GraphBuilder,
    inputs: Sequence[Input],
    held_out: Source | None,
    known: tuple[Any, Known],
    step: ProgramPass,
    number: int,
    room: int | None,
    recorded: Recorded | None,
    shares: int,
    client: Client,
) -> tuple[tuple[Estimator | None, None], Tally]:
    """Train a boosted model on all workers of a cluster; give the fitted estimator, and what was read.

    Parameters
    ----------
    graph : GraphBuilder
        With the tasks that `inputs` share; it is not added to.
    inputs, held_out, step, number, room, recorded, shares
        As for `dpipe.train.boosting.job.add_boosted`.
    known : tuple of key and Known
        What earlier passes have found, and the task that gives it.
    client : Client

    Raises
    ------
    ClusterError
        If group after group breaks.
    DpipeError
        If memory or the values do not do.
    """
    job, beside = described(graph, inputs, held_out, step, number, room, recorded, shares)
    if job.pages is not None and job.pages.place is not None:
        return recall(job, job.pages.place, known[1])
    reading = _Reading(client, graph, TaskRef(known[0]), job)
    with explained(client):
        kept = reading.kept(inputs, job.name)
        watched = reading.kept(beside, f"{job.name}-held-out")
        began = time.time()
        extents, beyond = reading.extents(kept), reading.extents(watched)
        tally = tallied(extents)
        begun = Progress() if job.pages is None else job.pages.last()
        task = task_of(job, extents, beyond, begun, tally)
        if task is None:
            return (None, None), tally
        parts = [
            _Part(own, held)
            for own, held in zip(reading.dealt(kept, extents), reading.dealt(watched, beyond), strict=True)
        ]
        with _alone(client):
            progress = _Team(client, task, known[1], parts).train()
    Recorder(job.pages, job.name, tally).conclude(progress)
    return (fitted(job, known[1], progress), None), with_time(tally, began)


def _addresses(client: Client) -> list[str]:
    """List the workers that are left, always in the same order."""
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def hosted(n_shares: int, hosts: Sequence[str]) -> dict[str, range]:
    """Say which worker learns which shares: neighbours together, as many each as can be.

    Examples
    --------
    >>> hosted(3, ["a", "b"])
    {'a': range(0, 2), 'b': range(2, 3)}
    >>> hosted(1, ["a", "b"])
    {'a': range(0, 1)}
    """
    n = min(n_shares, len(hosts))
    bounds = [-(-i * n_shares // n) for i in range(n + 1)]
    return {host: range(bounds[i], bounds[i + 1]) for i, host in enumerate(hosts[:n])}


def _lengths(inputs: Sequence[Input]) -> list[int]:
    """Give the rows of blocks, as far as they are known; else all count the same."""
    places = [each.at for each in inputs if each.at is not None]
    if len(places) < len(inputs) or not inputs:
        return [1] * len(inputs)
    firsts = [place.first for place in places]
    return [end - first for first, end in pairwise([*firsts, places[0].total])]


@dataclass(frozen=True)
class _Reading:
    """Keeps blocks in the scratch of the workers that will most likely learn them."""

    client: Client
    graph: GraphBuilder
    known: TaskRef
    job: Job

    def kept(self, inputs: Sequence[Input], name: str) -> list[Future[Any]]:
        """Have blocks read; lost ones are read again, wherever there is room."""
        dealt = deal(_lengths(inputs), self.job.shares)
        step = self.job.step
        futures: dict[int, Future[Any]] = {}
        chosen = {
            host: [i for share in shares for i in dealt[share]]
            for host, shares in hosted(self.job.shares, _addresses(self.client)).items()
        }
        missing = set(range(len(inputs))) - {i for own in chosen.values() for i in own}
        for host, own in [*chosen.items(), (None, sorted(missing))]:
            if not own:
                continue
            graph = GraphBuilder(self.graph.token, dict(self.graph.tasks))
            make = graph.hold(f"{name}-keep", BoostKeeper(step))
            keys = list(add_kept(graph, inputs, own, make, self.known, step, name))
            where = {} if host is None else {"workers": [host], "allow_other_workers": True}
            found = self.client.get(graph.tasks, keys, sync=False, **where)
            futures.update(zip(own, found, strict=True))
        return [futures[i] for i in range(len(inputs))]

    def extents(self, kept: Sequence[Future[Any]]) -> list[Extent]:
        """Measure the blocks where they are."""
        grouped = is_ranker(self.job.estimator)
        found: list[Extent] = self.client.gather(
            [self.client.submit(extent, each, grouped, pure=False) for each in kept]
        )
        return found

    def dealt(self, kept: Sequence[Future[Any]], extents: Sequence[Extent]) -> list[list[Future[Any]]]:
        """Deal blocks into shares, by what is in them."""

        def part(piece: Piece) -> Future[Any]:
            if (piece.start, piece.stop) == (0, extents[piece.block].shape[0]):
                return kept[piece.block]
            return self.client.submit(cut, kept[piece.block], piece, pure=False)

        return [[part(piece) for piece in share] for share in pieces(extents, self.job.shares)]


@dataclass(frozen=True)
class _Part:
    """The rows of one share, wherever they are."""

    train: Sequence[Future[Any]]
    held_out: Sequence[Future[Any]]


@contextlib.contextmanager
def _alone(client: Client) -> Iterator[None]:
    """Let one group of a cluster learn at a time: two could wait for each other's workers for ever."""
    with client.as_current():
        lock = Lock(_LOCK)
    lock.acquire()
    try:
        yield
    finally:
        # with the scheduler, the lock is gone
        with contextlib.suppress(Exception):
            lock.release()


@dataclass
class _Team:
    """Groups of workers, one after another, until the model is finished."""

    client: Client
    task: Task
    known: Known
    parts: Sequence[_Part]
    timeout_s: int = TIMEOUT_S
    _lost: set[str] = field(default_factory=set)
    """Workers of the last group that died, or fell silent."""
    _avoided: set[str] = field(default_factory=set)
    """Those of all groups: the scheduler may take long to notice."""

    def train(self) -> Progress:
        """Train to the end."""
        begun, broken = self.task.begun, 0
        while True:
            found = self._furthest(self._attempt(begun), begun)
            if found.finished:
                return found
            broken = 0 if found.n_rounds > begun.n_rounds else broken + 1
            if broken >= _MOST_BROKEN:
                lost = counted(len(self._lost), "worker")
                raise ClusterError(
                    f"{self.task.job.name}: groups of workers broke {broken} times in a row after round "
                    f"{begun.n_rounds:,}; the last one has lost {lost}: most often they have no memory left. Give them "
                    "more, or fewer rows each, and run again: with a workdir, training goes on from its last record."
                )
            if not self._lost:
                self.timeout_s *= 10
            begun = found

    def _furthest(self, found: Sequence[Progress], begun: Progress) -> Progress:
        """Give the finished model, or the one to go on from."""
        finished = [each for each in found if each.finished]
        if any(each.model for each in finished):
            return next(each for each in finished if each.model)
        recorded = Progress() if self.task.job.pages is None else self.task.job.pages.last()
        left = [each for each in (*found, recorded, begun) if not each.finished]
        return max(left, key=lambda progress: progress.n_rounds)

    def _attempt(self, begun: Progress) -> list[Progress]:
        """Have the workers that are left learn; give what they have come to."""
        hosts = hosted(len(self.parts), self._hosts())
        first, token = next(iter(hosts)), uuid.uuid4().hex
        self._lost = set()
        tracker = get_address_host(first)
        arguments = self._ask([first], _open_tracker, token, len(self.parts), tracker).get(first)
        if not isinstance(arguments, Mapping):
            self._lose({first})
            return []
        futures = {}
        for host, ranks in hosts.items():
            group = Group(arguments, ranks.start, self.timeout_s)
            task = replace(self.task, begun=begun, group=group)
            own = [self.parts[rank] for rank in ranks]
            futures[host] = self.client.submit(
                _learn,
                token,
                task,
                [each.train for each in own],
                [each.held_out for each in own],
                self.known,
                workers=[host],
                allow_other_workers=False,
                pure=False,
                key=f"{task.job.name}-learn-{token}-{ranks.start}",
            )
        try:
            self._until_one_ends(futures)
        finally:
            # who waits for a learner that will not come is told so
            self._ask([host for host in hosts if host not in self._lost], _give_up, token)
        try:
            return self._results(futures)
        finally:
            self.client.cancel(list(futures.values()))

    def _hosts(self) -> list[str]:
        """List the workers, once there is one."""
        found = _addresses(self.client)
        if not found:
            self.client.wait_for_workers(1)
            found = _addresses(self.client)
        return [each for each in found if each not in self._avoided] or found

    def _ask(self, hosts: Sequence[str], function: Any, *arguments: Any) -> Mapping[str, Any]:
        """Call a function on workers, beside their tasks; nothing comes from those that are lost."""
        with contextlib.suppress(OSError, KeyError, ValueError):
            found: Mapping[str, Any] = self.client.run(
                function, *arguments, workers=list(hosts), on_error="return"
            )
            return found
        return {}

    def _until_one_ends(self, futures: Mapping[str, Future[Any]]) -> None:
        """Wait until all learners have ended, or one in another way than the others will."""
        waiting = dict(futures)
        while waiting and not self._lost:
            with contextlib.suppress(TimeoutError), self.client.as_current():
                wait(list(waiting.values()), timeout=_LOOK_EVERY_S, return_when="FIRST_COMPLETED")
            self._look(futures)
            for host, future in list(waiting.items()):
                if not _has_ended(future):
                    continue
                del waiting[host]
                found = None if future.status == "error" else self._result(future)
                if found is None or not found.finished:
                    return

    def _results(self, futures: Mapping[str, Future[Any]]) -> list[Progress]:
        """Gather what the workers that are left have come to; raise what one of them complains of."""
        until = time.monotonic() + self.timeout_s + _LOOK_EVERY_S
        while True:
            self._look(futures)
            left = {host: future for host, future in futures.items() if host not in self._lost}
            silent = {host for host, future in left.items() if not _has_ended(future)}
            if not silent or time.monotonic() > until:
                break
            time.sleep(_LOOK_EVERY_S / 5)
        self._lose(silent)
        ended = [future for host, future in left.items() if host not in silent]
        failed = [future for future in ended if future.status == "error"]
        found = [self._result(future) for future in failed or ended]
        return [each for each in found if each is not None]

    def _result(self, future: Future[Any]) -> Progress | None:
        """Give what a worker has come to; None if it was lost with it."""
        try:
            found: Progress = future.result(timeout=self.timeout_s)
        except TimeoutError:
            return None
        return found

    def _look(self, futures: Mapping[str, Future[Any]]) -> None:
        self._lose(set(futures) - set(_addresses(self.client)))

    def _lose(self, hosts: set[str]) -> None:
        self._lost |= hosts
        self._avoided |= hosts


def _has_ended(future: Future[Any]) -> bool:
    return future.status in ("finished", "error")


def _learn(
    token: str, task: Task, train: Sequence[Sequence[Kept]], held_out: Sequence[Sequence[Kept]], known: Known
) -> Progress:
    """Learn the shares of this worker, as long as somebody waits for it."""
    worker = get_worker()
    key = worker.get_current_task()
    given_up = threading.Event()
    _given_up[token, key] = given_up

    def wanted() -> bool:
        state = worker.state.tasks.get(key)
        return not given_up.is_set() and state is not None and state.state == "executing"

    try:
        return learn(task, list(map(Share, train, held_out)), known, wanted)
    finally:
        del _given_up[token, key]


#: For each group and task that this process learns in, whether the group is broken.
_given_up: dict[tuple[str, Any], threading.Event] = {}
_trackers: dict[str, Any] = {}
_trackers_lock = threading.Lock()


def _open_tracker(token: str, n: int, host: str) -> dict[str, Any]:
    stack = contextlib.ExitStack()
    arguments = stack.enter_context(tracked(n, host))
    with _trackers_lock:
        _trackers[token] = stack
    return arguments


def _give_up(token: str) -> None:
    for (group, _), event in list(_given_up.items()):
        if group == token:
            event.set()
    with _trackers_lock:
        stack = _trackers.pop(token, None)
    if stack is not None:
        # it may take a while, and this is the thread that all of a worker's messages go through
        threading.Thread(target=stack.close, daemon=True).start()
