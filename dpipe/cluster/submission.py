"""Runs whose driver is a job itself: submitted, followed and cancelled from any shell; each is a folder.

A driver ends before its own wall time, and leaves another job behind that goes on from the ledger.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpipe.cluster.jobs import command_job, last_lines, submitted
from dpipe.cluster.queues import ENDED, SYSTEMS, one_line
from dpipe.cluster.specification import QUEUES, Specification
from dpipe.errors import ClusterError, InputError

#: Where submissions are kept; the environment may name another folder.
HOME_VARIABLE = "DPIPE_HOME"
#: A run that is not done after so many driver jobs is taken to make no progress.
MOST_JOBS = 100
#: What a submission may be at; the last three are final.
SUBMITTED, RUNNING, CONTINUES, FINISHED, FAILED, CANCELLED = (
    "submitted",
    "running",
    "continues",
    "finished",
    "failed",
    "cancelled",
)
FINAL = (FINISHED, FAILED, CANCELLED)


@dataclass(frozen=True)
class Submission:
    """What is known of a submitted run; kept as JSON in its folder."""

    name: str
    command: tuple[str, ...]
    """Arguments of `dpipe`."""
    cwd: str
    cluster: dict[str, Any]
    """The keys of its specification."""
    jobs: tuple[str, ...] = ()
    """Driver jobs so far, the last one last."""
    state: str = SUBMITTED
    says: str = ""

    @property
    def folder(self) -> Path:
        """Where everything of the run stands."""
        return home() / self.name

    @property
    def spec(self) -> Specification:
        """The specification of its cluster."""
        return Specification(**self.cluster)

    def changed(self, **changes: Any) -> "Submission":
        """Give a changed record, and keep it; no reader ever sees half of it."""
        made = dataclasses.replace(self, **changes)
        part = made.folder / f"submission.json.{os.getpid()}"
        part.write_text(json.dumps(dataclasses.asdict(made), indent=1), encoding="utf-8")
        part.rename(made.folder / "submission.json")
        return made


def home() -> Path:
    """Give the folder of all submissions."""
    return Path(os.environ.get(HOME_VARIABLE) or "~/.dpipe").expanduser().absolute() / "submitted"


def read_submission(name: str) -> Submission:
    """Read the record of a submission.

    Raises
    ------
    InputError
        If there is no such submission, or its record cannot be read.
    """
    names = _names()
    if name not in names:
        raise InputError(
            f"There is no submission {name!r} in {home()}; there are: {', '.join(names) or 'none'}."
        )
    path = home() / name / "submission.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found |= {key: tuple(found[key]) for key in ("command", "jobs")}
        made = Submission(**found)
        if made.spec.kind not in QUEUES:
            raise ValueError(f"its kind is {made.spec.kind!r}, which has no queue")
        return made
    except (OSError, ValueError, KeyError, TypeError) as err:
        why = f"it lacks {err}" if isinstance(err, KeyError) else one_line(str(err)).rstrip(".")
        raise InputError(
            f"The record of submission {name!r}, {path}, cannot be read: {why}. It may be of another version of dpipe. "
            "Remove the folder once no job of it is in the queue, and submit the run again."
        ) from err


def _names() -> list[str]:
    """List the folders of all submissions, the newest last."""
    try:
        paths = sorted(home().glob("*/submission.json"), key=lambda path: path.parent.stat().st_mtime)
    except OSError as err:
        raise InputError(f"Submissions are kept in {home()}, which cannot be read: {err.strerror}.") from err
    return [path.parent.name for path in paths]


def report(name: str | None = None) -> str:
    """Tell what a submission is at, or all of them, one line each; a record that cannot be read is a line, too."""
    if name is not None:
        return status(read_submission(name))
    lines = []
    for each in _names():
        try:
            lines.append(status(read_submission(each)))
        except InputError as err:
            lines.append(f"{each}: {err}")
    return "\n".join(lines) or f"nothing was submitted: there are none in {home()}"


def submit(recipe: str, command: Sequence[str], spec: Specification) -> Submission:
    """Submit a run: a job drives it, which submits the jobs of its workers.

    Parameters
    ----------
    recipe : str
        Names the submission.
    command : sequence of str
        Arguments of ``dpipe`` for the run, without ``--cluster``.
    spec : Specification
        Of a kind that queues jobs.

    Returns
    -------
    Submission

    Raises
    ------
    InputError
        If the kind has no queue.
    ClusterError
        If the queue refuses the job.
    """
    if spec.kind not in QUEUES:
        raise InputError(
            f"Key 'kind' is {spec.kind!r}: only a queue takes the driver as a job: {', '.join(QUEUES)}. Use dpipe run."
        )
    base = re.sub(r"\W+", "-", recipe.rpartition(".")[2]).strip("-")
    try:
        home().mkdir(parents=True, exist_ok=True, mode=0o700)
        name = _new_folder(base)
    except OSError as err:
        raise InputError(
            f"Submissions are kept in {home()}, which cannot be written: {err.strerror}. Name another folder, which "
            f"all nodes see, in the environment variable {HOME_VARIABLE}."
        ) from err
    cluster = {
        each.name: getattr(spec, each.name)
        for each in dataclasses.fields(Specification)
        if getattr(spec, each.name) != each.default and each.name not in ("source", "options")
    }
    made = Submission(name, tuple(command), os.getcwd(), cluster)
    try:
        return asyncio.run(submit_driver(made))
    except ClusterError:
        shutil.rmtree(made.folder, ignore_errors=True)
        raise


def _new_folder(base: str) -> str:
    for number in range(1, 10_000):
        name = f"{base}-{number}"
        try:
            (home() / name).mkdir(mode=0o700)
        except FileExistsError:
            continue
        (home() / name / "logs").mkdir()
        return name
    raise InputError(f"{home()} holds too many submissions of {base!r}; remove those that are done.")


def resume(submission: Submission) -> Submission:
    """Submit the driver of a run again that was lost, has failed or was cancelled: it goes on from what is recorded.

    Parameters
    ----------
    submission : Submission
        Of which no job is in the queue.

    Returns
    -------
    Submission
        With the new job as its last one.

    Raises
    ------
    InputError
        If the run is finished, its driver is in the queue still, or the folder that it was submitted from is gone.
    ClusterError
        If the queue refuses the job, or does not tell what became of the last one.
    """
    if submission.state == FINISHED:
        raise InputError(f"{submission.name} is finished: there is nothing left to do.")
    if submission.jobs:
        job = submission.jobs[-1]
        state = asyncio.run(SYSTEMS[submission.spec.kind].states([job]))[job]
        if state.phase != ENDED:
            raise InputError(
                f"The driver of {submission.name}, job {job}, is {state.phase}: two would write to the same ledger. "
                f"Wait for its end, or end it with: dpipe cancel {submission.name}"
            )
    if not os.path.isdir(submission.cwd):
        raise InputError(
            f"{submission.name} was submitted from {submission.cwd}, which is no folder any more: its recipe and paths "
            "were found there. Put it back, or submit the run again from where they are now."
        )
    with contextlib.chdir(submission.cwd):  # where the job script goes, too
        return asyncio.run(submit_driver(submission.changed(state=SUBMITTED, says="")))


async def submit_driver(submission: Submission) -> Submission:
    """Submit the next driver job of a run.

    Raises
    ------
    ClusterError
        If the queue refuses it, or there have been too many.
    """
    if len(submission.jobs) >= MOST_JOBS:
        raise ClusterError(f"{submission.name} is not done after {MOST_JOBS} driver jobs.")
    spec = submission.spec
    folder = submission.folder
    command = [spec.python or sys.executable, "-m", "dpipe.cluster.driver", str(folder)]
    number = len(submission.jobs) + 1
    job = command_job(spec, command, folder / "logs", f"driver-{number}")
    made = await submitted(job, folder / f"driver-{number}.sh")
    return submission.changed(jobs=(*submission.jobs, made))


def status(submission: Submission) -> str:
    """Tell what a submission is at, in one line."""
    said = f"{submission.name}: {submission.state}"
    if submission.state in FINAL or not submission.jobs:
        return f"{said}{f', {submission.says}' if submission.says else ''}{_goes_on(submission)}"
    job = submission.jobs[-1]
    try:
        state = asyncio.run(SYSTEMS[submission.spec.kind].states([job]))[job]
    except ClusterError as err:
        return f"{said}; {err}"
    if state.phase == ENDED:
        # the record may have been written since
        again = read_submission(submission.name)
        if again.state in FINAL or again.jobs != submission.jobs:
            return status(again)
        lines = " | ".join(last_lines(submission.folder / "logs", job))
        return (
            f"{submission.name}: lost, its driver, job {job}, has ended ({state.reason}) and left no word"
            f"{_goes_on(submission)}. {lines}"
        )
    reason = f" ({state.reason})" if state.reason not in ("", "None") else ""
    return f"{said}, job {job}, {len(submission.jobs)} so far: {state.phase}{reason}"


def _goes_on(submission: Submission) -> str:
    if submission.state == FINISHED:
        return ""
    return f"; it goes on from what is recorded with: dpipe resume {submission.name}"


def logs(submission: Submission) -> str:
    """Give what the driver jobs have printed, one after another."""
    found = []
    for job in submission.jobs:
        for path in sorted((submission.folder / "logs").glob(f"*{job.partition('.')[0]}*")):
            text = path.read_text(encoding="utf-8", errors="replace").rstrip()
            if text:
                found.append(f"== {path.name}\n{text}")
    return "\n".join(found) or "nothing was printed yet"


def cancel(submission: Submission) -> str:
    """End a submission; the driver takes its workers with it.

    Raises
    ------
    ClusterError
        If the queue gives no answer, or refuses: the run goes on.
    """
    if submission.state in FINAL:
        return f"{submission.name} is {submission.state} already"
    # the driver that is ended must find it so: it would take this for the end of its node
    made = submission.changed(state=CANCELLED)
    if made.jobs:
        try:
            asyncio.run(SYSTEMS[made.spec.kind].end(made.jobs[-1]))
        except BaseException as err:
            again = read_submission(made.name)
            if again.state == CANCELLED:  # what a driver has written meanwhile stays
                again.changed(state=submission.state)
            if isinstance(err, ClusterError):
                raise ClusterError(f"{made.name} is not cancelled: {err}") from err
            raise
    return f"{made.name} is cancelled{_goes_on(made)}"
