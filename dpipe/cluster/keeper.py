"""The keeper: asks the queue what became of jobs, submits lost ones again, and says why they were lost.

It runs on the event loop of the scheduler, so that it may look at the scheduler's workers while nothing changes them.
"""

import asyncio
import logging
import math
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dpipe.cluster.jobs import DEATH_TIMEOUT_S, lifetime
from dpipe.cluster.queues import ENDED, REFUSED, RUNNING, WAITING, JobState
from dpipe.cluster.specification import Specification
from dpipe.errors import ClusterError
from dpipe.sizes import counted

logger = logging.getLogger(__name__)

#: Seconds between two looks at the queue. Those who run clusters dislike being asked more often.
EVERY_S = 5.0
#: The same where nobody is asked: while no job is in the queue yet, or what was started is watched from here.
_UNASKED_S = 1.0
#: A job whose workers have worked for so long was not the fault of the specification.
SOUND_S = 60.0
#: Looks in a row that must find fewer workers needed before any are sent home.
_LOOKS_TO_SHRINK = 3
#: What the end of a log tells to change.
_HINTS = (
    ("Could not resolve hostname", "Check the key 'hosts'."),
    ("Host key verification failed", "Connect by hand once, ssh HOST, and compare the key that is shown."),
    (
        "Permission denied (",
        "Let ssh log in without a password: a key, named with '-i FILE' in 'directives'.",
    ),
    ("destination [command", "Check the key 'directives': ssh takes them as its options."),
    ("ssh: connect to host", "Check the keys 'hosts' and 'directives': '-p PORT', if it is not 22."),
    ("No such file or directory", "Check the key 'python', and that the nodes see the same files."),
    ("command not found", "Check the keys 'python' and 'prologue'."),
    ("No module named", "That Python lacks dpipe, or what the run needs: check the key 'python'."),
    ("scratch", "Check the key 'scratch'."),
    ("partition", "Check the key 'queue'."),
    ("queue", "Check the key 'queue'."),
    ("account", "Check the key 'account'."),
    ("emory", "Check the key 'memory'."),
    ("ime limit", "Check the key 'walltime'."),
    ("Timed out", "Nodes cannot reach the scheduler: check the keys 'interface' and 'scheduler_interface'."),
)


class Launcher(Protocol):
    """What submits jobs of workers, and knows what became of them."""

    what: str
    """Name of the system, for messages."""
    asks: bool
    """Whether others are asked what became of jobs."""

    async def submit(self, name: str) -> str:
        """Submit a job whose workers bear a name; give its number."""
        ...

    async def states(self, jobs: Sequence[str]) -> dict[str, JobState]:
        """Ask what became of jobs."""
        ...

    async def cancel(self, jobs: Sequence[str]) -> None:
        """End jobs."""
        ...

    def last_lines(self, job: str) -> list[str]:
        """Give the end of what a job has printed."""
        ...


@dataclass
class Job:
    """A job as the keeper knows it."""

    name: str
    number: str
    submitted_at: float = field(default_factory=time.monotonic)
    state: JobState = field(default_factory=lambda: JobState(WAITING))
    running_since: float | None = None
    registered_at: float | None = None
    n_missing: int = 0
    """How often in a row the queue did not know it."""
    leaving: bool = False
    """Whether it was asked to go."""


class Keeper:
    """Keep as many jobs as a specification asks for.

    Parameters
    ----------
    spec : Specification
    scheduler : distributed.Scheduler
        Must run in this process.
    launcher : Launcher
    every_s : float
        Seconds between two looks at the queue.

    Notes
    -----
    A job that ends though nobody asked it to, and before its wall time, is lost, and another is submitted. That has
    limits: after `spec.attempts` jobs in a row of which no worker has reported, and after as many losses for each job
    within a minute of its start. Then nothing more is submitted, and when no worker is left, `failure` is set and
    whoever waits for a result is given it as an error.

    Before the wall time of a job another one is submitted, as much earlier as twice what the last one took to start:
    workers that leave have somebody to give to what they hold.
    """

    def __init__(self, spec: Specification, scheduler: Any, launcher: Launcher, every_s: float) -> None:
        self.spec, self.scheduler, self.launcher, self.every_s = spec, scheduler, launcher, every_s
        self.jobs: list[Job] = []
        self.failure: str | None = None
        self.lost: list[str] = []
        """What was said of each job that was lost."""
        self._stopped = ""
        self._n_submitted = self._n_unborn = self._n_short = self._n_shrink = 0
        self._unanswered = 0
        self._looking, self._closed = asyncio.Lock(), False
        self._start_s = 0.0
        """What the last job took from its submission until its workers were there."""

    @property
    def waiting(self) -> str:
        """Say what the jobs wait for; empty if some job runs."""
        if not self.jobs or any(job.state.phase == RUNNING for job in self.jobs):
            return ""
        reasons = sorted({job.state.reason for job in self.jobs if job.state.reason not in ("", "None")})
        return f"{counted(len(self.jobs), 'job')} in the queue: {', '.join(reasons) or 'not started yet'}"

    async def keep(self) -> None:
        """Look at the queue again and again, until closed."""
        while not self._closed:
            try:
                async with self._looking:
                    await self.look()
                self._unanswered = 0
            except ClusterError as err:
                # a queue that is too busy to answer has not lost any job
                self._unanswered += 1
                if self._unanswered in (1, 20):
                    logger.warning("%s The jobs are taken to be as they were.", err)
            except Exception as err:
                # nobody else waits for this coroutine: whoever waits for workers must not wait for ever
                logger.exception("The keeper of the cluster's jobs has failed")
                self.failure = f"The keeper of the cluster's jobs has failed: {type(err).__name__}: {err}."
                self._tell_clients()
            await asyncio.sleep(self._pause_s())

    def _pause_s(self) -> float:
        """Give the seconds until the next look; what cannot even start is to be told of soon."""
        started = self._start_s > 0
        asked = bool(self.jobs) and self.launcher.asks
        return self.every_s if started or asked else min(self.every_s, _UNASKED_S)

    async def look(self) -> None:
        """Look at the queue once, and do what is needed."""
        self._note_workers()
        states = await self.launcher.states([job.number for job in self.jobs])
        self._note_workers()
        for job in list(self.jobs):
            job.state = states.get(job.number, JobState(ENDED))
            await self._follow(job)
        if not self._stopped:
            await self._resize()
        if self._stopped and not self.scheduler.workers and not self.jobs:
            self.failure = self._stopped
            self._tell_clients()

    def _note_workers(self) -> None:
        for job in self.jobs:
            if job.registered_at is None and self._workers_of(job):
                job.registered_at = time.monotonic()
                self._start_s = job.registered_at - job.submitted_at
                self._n_unborn = 0

    def _workers_of(self, job: Job) -> list[Any]:
        names = {job.name, *(f"{job.name}-{i}" for i in range(self.spec.per_job))}
        return [worker for worker in self.scheduler.workers.values() if worker.name in names]

    async def _follow(self, job: Job) -> None:
        now = time.monotonic()
        if job.state.phase == RUNNING:
            job.running_since = job.running_since or now
            silent = job.registered_at is None and now - job.running_since > 1.5 * DEATH_TIMEOUT_S
            if silent:
                await self.launcher.cancel([job.number])
                await self._gone(job, "no worker of it reached the scheduler")
        elif job.state.phase == REFUSED:
            await self.launcher.cancel([job.number])
            await self._gone(job, f"the queue will never start it: {job.state.reason}")
        elif job.state.phase == ENDED:
            # a queue may know a job only some time after it was submitted: silence must be heard twice
            job.n_missing += 1
            if job.state.reason or job.n_missing > 1:
                await self._gone(job, job.state.reason)
            return
        job.n_missing = 0

    async def _gone(self, job: Job, reason: str) -> None:
        """Take a job off the list, and its workers off the scheduler: they may have had no time to say so."""
        self.jobs.remove(job)
        for worker in self._workers_of(job):
            # expected: what they were computing is not to blame
            await self.scheduler.remove_worker(
                worker.address, stimulus_id="dpipe-keeper", expected=True, close=False
            )
        lived = 0.0 if job.registered_at is None else time.monotonic() - job.registered_at
        if job.leaving or (job.registered_at is not None and self._time_left(job) < self.every_s):
            return
        said = self._why(job, reason)
        self.lost.append(said)
        if job.registered_at is None:
            self._n_unborn += 1
        elif lived >= SOUND_S:
            self._n_short = 0
        else:
            self._n_short += 1
        self._judge(said)

    def _time_left(self, job: Job) -> float:
        """Give the seconds until the first of a job's workers may leave."""
        if self.spec.walltime_s is None or job.running_since is None:
            return math.inf
        after, stagger = lifetime(self.spec.walltime_s)
        return job.running_since + after - stagger - time.monotonic()

    def _why(self, job: Job, reason: str) -> str:
        state = f" ({reason})" if reason else ""
        when = "before its workers had started" if job.registered_at is None else "while it worked"
        lines = self.launcher.last_lines(job.number)
        log = f" Its log ends with: {' | '.join(lines).rstrip('.')}." if lines else ""
        return f"Job {job.number} of {self.launcher.what} was lost {when}{state}.{log}"

    def _judge(self, said: str) -> None:
        """Say that a job was lost; stop submitting where that is of no use."""
        n_jobs = math.ceil(self.spec.n_workers[1] / self.spec.per_job)
        if self._n_unborn >= self.spec.attempts:
            count = f"{self._n_unborn} jobs in a row ended before any worker had started"
        elif self._n_short >= self.spec.attempts * n_jobs:
            count = f"{self._n_short} jobs were lost within {SOUND_S:g} s of their start"
        else:
            logger.warning("%s Another is submitted.", said)
            return
        hint = next((hint for sign, hint in _HINTS if sign in said), "")
        more = " 'dpipe cluster check' tells more." if self.launcher.asks else ""
        self._stopped = f"The cluster has no workers: {count}. {said}{f' {hint}' if hint else ''}{more}"
        logger.warning("No more jobs are submitted: %s. %s", count, said)

    async def _resize(self) -> None:
        wanted = math.ceil(self._wanted_workers() / self.spec.per_job)
        staying = [job for job in self.jobs if not job.leaving and not self._has_successor(job)]
        for _ in range(wanted - len(staying)):
            if not await self._submit():
                return
        self._n_shrink = self._n_shrink + 1 if len(staying) > wanted else 0
        if self._n_shrink >= _LOOKS_TO_SHRINK:
            await self._shrink(staying, len(staying) - wanted)

    def _has_successor(self, job: Job) -> bool:
        """Whether workers of a job leave so soon that others must be on their way: what they hold goes to those."""
        if self.spec.walltime_s is None or job.registered_at is None:
            return False
        return self._time_left(job) < min(2 * self._start_s + self.every_s, self.spec.walltime_s / 2)

    def _wanted_workers(self) -> int:
        low, high = self.spec.n_workers
        return low if low == high else min(max(int(self.scheduler.adaptive_target()), low), high)

    async def _submit(self) -> bool:
        self._n_submitted += 1
        name = f"dpipe-{self._n_submitted}"
        try:
            self.jobs.append(Job(name, await self.launcher.submit(name)))
        except ClusterError as err:
            self._n_unborn += 1
            self.lost.append(str(err))
            self._judge(str(err))
            return False
        return True

    async def _shrink(self, staying: list[Job], n: int) -> None:
        """Send home jobs that wait, then those whose workers have nothing to do."""
        idle = [job for job in staying if job.state.phase == WAITING]
        idle += [
            job
            for job in staying
            if job.registered_at is not None and not any(each.processing for each in self._workers_of(job))
        ]
        for job in idle[:n]:
            job.leaving = True
            addresses = [worker.address for worker in self._workers_of(job)]
            if addresses:
                await self.scheduler.retire_workers(workers=addresses, close_workers=True, remove=True)
            else:
                await self.launcher.cancel([job.number])

    def _tell_clients(self) -> None:
        """End the waiting of all who wait for a result that nobody will compute."""
        error = pickle.dumps(ClusterError(self.failure))
        for name, client in self.scheduler.clients.items():
            for task in client.wants_what:
                if task.state not in ("memory", "erred"):
                    found = {"op": "task-erred", "key": task.key, "exception": error, "traceback": None}
                    self.scheduler.report(found, client=name)

    async def close(self) -> None:
        """End all jobs; one that is being submitted just now, too."""
        self._closed = True
        async with self._looking:
            numbers = [job.number for job in self.jobs]
        self.jobs.clear()
        if numbers:
            await self.launcher.cancel(numbers)
