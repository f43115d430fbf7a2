"""What happens while a run is under way: progress, the dashboard's address, memory, the record."""

import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from distributed import Client

from dpipe.blocks.flows import Flow
from dpipe.blocks.rows import Tally
from dpipe.errors import InputError, LedgerError
from dpipe.monitor.progress import Progress
from dpipe.monitor.record import (
    CurveRecord,
    MachineRecord,
    MemoryRecord,
    PassRecord,
    RunRecord,
    SearchRecord,
    StageRecord,
)
from dpipe.monitor.report import write_report
from dpipe.monitor.sampler import MemorySampler
from dpipe.plan_record import Plan
from dpipe.sizes import counted

_PACKAGES = ("dpipe", "dask", "distributed", "scikit-learn", "numpy", "pandas", "pyarrow")


def make_workdir(workdir: str | os.PathLike[str]) -> Path:
    """Make the folder of a run's results, and check that it can be written.

    Raises
    ------
    InputError
        If it cannot be made or written.
    """
    if not isinstance(workdir, str | os.PathLike):
        raise InputError(f"workdir is {workdir!r}; it must be a path.")
    path = Path(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as err:
        raise InputError(
            f"workdir {str(path)!r} cannot be written: {err}. Choose a folder that you may write, with workdir=..."
        ) from err
    return path


def versions() -> dict[str, str]:
    """List the versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


#: Characters of an error that a record keeps; the whole stands where it was raised.
_MOST_OF_AN_ERROR = 2000


class Session:
    """One run: listens to progress events, samples memory, and ends as a `RunRecord`.

    Parameters
    ----------
    name : str
    workdir : Path, optional
        Where the record and the report go; None keeps them in memory.
    show : bool, optional
        Whether to show progress; default: in a terminal and in Jupyter.
    budget_nbytes : int, optional
    """

    def __init__(
        self,
        name: str,
        workdir: Path | None = None,
        *,
        show: bool | None = None,
        budget_nbytes: int | None = None,
    ) -> None:
        self.name = name
        self.workdir = workdir
        self.budget_nbytes = budget_nbytes
        self.started_at = datetime.now(UTC)
        self.stages: list[StageRecord] = []
        self.passes: list[PassRecord] = []
        self.metrics: dict[str, float] = {}
        self.references: dict[str, float] = {}
        self.required: dict[str, float] = {}
        self.curves: tuple[CurveRecord, ...] = ()
        self.searches: tuple[SearchRecord, ...] = ()
        self.notes: list[str] = []
        self.dashboard: str | None = None
        self.workers, self.threads = 1, 1
        self.reserved = self.projected = 0
        self._show = show
        self._begun = time.perf_counter()
        self._progress = Progress(show)
        self._sampler = MemorySampler()
        self._current = ""
        self._error = ""
        self.flows: dict[str, list[Flow]] = {}
        """What operations have counted, in each of the passes that read them."""
        self._apart: dict[str, dict[int, Mapping[str, int]]] = {}

    def __enter__(self) -> Self:
        self._sampler.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()
        self._sampler.__exit__(kind, error, trace)
        if error is not None:
            self._error = f"{type(error).__name__}: {error}"[:_MOST_OF_AN_ERROR]
        if self.workdir is not None:
            try:
                self.write(finished=error is None)
            except OSError as unwritten:
                if error is None:
                    raise LedgerError(
                        f"The record of the run cannot be written into {self.workdir}: {unwritten}. Make room there "
                        "and run again: what was recorded is not done again."
                    ) from unwritten
                error.add_note(
                    f"Nor could the record of the run be written into {self.workdir}: {unwritten}."
                )

    def listener(self, event: Mapping[str, Any]) -> None:
        """Move the progress bar of a pass by one block."""
        if "unrecorded" in event:
            self.note(
                f"{event['pass']} is not recorded, a stopped run reads it again: {event['unrecorded']}."
            )
            return
        if "search" in event:
            self.searches = (*self.searches, event["search"])
            return
        if "said" in event:
            self.note(event["said"])
            return
        if "flow" in event:
            # a block that is read again says the same again
            self._apart.setdefault(event["flow"], {})[event["block"]] = event["counts"]
            return
        if "curve" in event:
            self._add_to_curve(event["curve"], event["epoch"], event["score"])
            return
        if event["pass"] != self._current:
            self._current = event["pass"]
            self._progress.start(event["pass"], event["n_blocks"])
        self._progress.advance(event["rows"], event["nbytes"])

    def _add_to_curve(self, name: str, epoch: int, score: float) -> None:
        """Add an epoch to a learning curve; the first one begins another curve."""
        before = CurveRecord(name, (), ())
        if epoch > 1:
            *rest, before = self.curves
            self.curves = tuple(rest)
        xs, ys = (*before.x, float(epoch)), (*before.y, score)
        self.curves += (CurveRecord(name, xs, ys, "epoch", "score", "On rows that were held out."),)

    def note(self, text: str) -> None:
        """Say something worth knowing, once; the record keeps it."""
        if text in self.notes:
            return
        self.notes.append(text)
        if self._show is not False:
            print(text, file=sys.stderr)

    def _flow_notes(self) -> list[str]:
        """Say of each join how many rows came in and went out, and why they differ."""
        totals: dict[str, tuple[int, Mapping[str, int]]] = {}
        for name, blocks in self._apart.items():
            total = Counter[str]()
            for counts in blocks.values():
                total.update(counts)
            totals[name] = len(blocks), total
        for name, flows in self.flows.items():
            flow = max(flows, key=lambda each: each.n_blocks)
            totals[name] = flow.n_blocks, {what: flow.total(what) for what in flow.names}
        said = []
        for name, (n_blocks, counts) in totals.items():
            if {"rows in", "rows out"} <= counts.keys():  # of other operations the stages tell
                parts = [f"{abs(n):,} {what}" for what, n in counts.items() if n or what.startswith("rows")]
                said.append(f"{name}, {counted(n_blocks, 'block')}: {', '.join(parts)}.")
        return said

    def started(self, client: Client | None) -> None:
        """Say where the dashboard is."""
        if client is None or client.dashboard_link == self.dashboard:
            return
        self.dashboard = client.dashboard_link
        if self._show is not False:
            print(f"dashboard: {self.dashboard}", file=sys.stderr)

    def add_passes(self, stage: str, plan: Plan, tallies: tuple[Tally, ...]) -> None:
        """Record the passes of a fit, planned and measured."""
        self.workers, self.threads = plan.workers, plan.threads
        self.reserved = max(self.reserved, plan.reserved_nbytes)
        self.projected = max(self.projected, plan.projected_nbytes or 0)
        for step, tally in zip(plan.passes, tallies, strict=True):
            readings = "" if tally.n_readings is None else f", {counted(tally.n_readings, 'reading')}"
            self.add_pass(
                stage,
                f"Pass {step.number}{readings}",
                step.way,
                tally,
                collects=step.collects or step.fits,
                reason="; ".join(filter(None, [step.why, step.scratch])),
                projected_nbytes=step.projected_nbytes or 0,
                n_readings=step.epochs if tally.n_readings is None else tally.n_readings,
            )

    def add_pass(self, stage: str, title: str, way: str, tally: Tally, **described: Any) -> None:
        """Record one pass."""
        for name, flow in tally.flows.items():
            self.flows.setdefault(name, []).append(flow)
        self.passes.append(
            PassRecord(
                stage=stage,
                title=title,
                way=way,
                n_blocks=tally.n_blocks,
                n_recalled=tally.n_recalled,
                rows=tally.rows,
                nbytes=tally.nbytes,
                seconds=max(tally.ended - tally.started, 0.0),
                measured_nbytes=tally.peak_nbytes,
                **described,
            )
        )

    def record(self, *, finished: bool) -> RunRecord:
        """Give the record as it stands."""
        return RunRecord(
            name=self.name,
            started=self.started_at.isoformat(timespec="seconds"),
            seconds=time.perf_counter() - self._begun,
            finished=finished,
            error=self._error,
            versions=versions(),
            machine=MachineRecord.here(),
            workers=self.workers,
            threads=self.threads,
            dashboard=self.dashboard,
            stages=tuple(self.stages),
            passes=tuple(self.passes),
            notes=(*self.notes, *self._flow_notes()),
            memory=MemoryRecord(
                budget_nbytes=self.budget_nbytes,
                reserved_nbytes=self.reserved,
                projected_nbytes=self.projected,
                measured_nbytes=self._sampler.peak_nbytes,
                samples=self._sampler.samples,
            ),
            metrics=self.metrics,
            references=self.references,
            required=self.required,
            curves=self.curves,
            searches=self.searches,
        )

    def write(self, *, finished: bool) -> Path:
        """Write the record and the report under the workdir; give the report's path."""
        assert self.workdir is not None
        record = self.record(finished=finished)
        record.write(self.workdir / "run.json")
        return write_report(record, self.workdir / "report.html")
