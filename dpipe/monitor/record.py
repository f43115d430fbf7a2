"""What is remembered of one run: plain frozen records, and the file that keeps them.

A record holds figures only, never data, so that a report can be written (or written again)
long after the run, on another machine. The file is strict JSON: numbers that JSON cannot hold
are kept as the text "nan", "inf" or "-inf".
"""

import dataclasses
import itertools
import json
import math
import os
import platform
import threading
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from dpipe.errors import InputError, RecordError

FORMAT_VERSION = 3
STAGE_KINDS = ("collect", "split", "preprocess", "train", "validate", "deploy")


@dataclass(frozen=True)
class StageRecord:
    """One stage of a pipeline: how long it took, and the rows that went in and came out.

    Parameters
    ----------
    name : str
        As the user named it.
    kind : str
        One of `STAGE_KINDS`.
    seconds : float
        Wall time.
    rows_in, rows_out : int or None
        None where a stage does not take or give rows.
    note : str
        Anything worth saying in one line.
    """

    name: str
    kind: str
    seconds: float
    rows_in: int | None = None
    rows_out: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in STAGE_KINDS:
            kinds = ", ".join(STAGE_KINDS)
            raise InputError(f"Stage {self.name!r} is of kind {self.kind!r}; use one of {kinds}.")


@dataclass(frozen=True)
class PassRecord:
    """One reading of all blocks.

    Parameters
    ----------
    stage, title : str
        The stage that asked for the pass, and what the pass is for.
    way : str
        How the blocks were used: "merge", "stream", "score", "write", ...
    collects : tuple of str
        The states that this pass collected.
    reason : str
        Why it could not be part of an earlier pass.
    n_blocks, rows, nbytes : int
        What was read, in all readings; bytes are counted after decoding.
    n_recalled : int
        Blocks that were not read, because what they give was on record.
    n_readings : int
        How often all blocks were read.
    seconds : float
        Wall time.
    projected_nbytes, measured_nbytes : int
        Peak memory as planned and as seen; 0 where it was not measured.
    """

    stage: str
    title: str
    way: str
    collects: tuple[str, ...] = ()
    reason: str = ""
    n_blocks: int = 0
    rows: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    projected_nbytes: int = 0
    measured_nbytes: int = 0
    n_readings: int = 1
    n_recalled: int = 0

    @property
    def read_share(self) -> float:
        """Share of the blocks that were read, and not recalled."""
        return 1 - self.n_recalled / self.n_blocks if self.n_blocks else 1.0


@dataclass(frozen=True)
class MemoryRecord:
    """Memory of the whole run, in bytes.

    Parameters
    ----------
    budget_nbytes : int or None
        What the user allowed; None without a budget.
    reserved_nbytes, projected_nbytes, measured_nbytes : int
        What the processes take before any block, the planned peak, and the peak that was seen.
    samples : tuple of (float, int)
        Seconds since the start, and resident bytes at that time.
    """

    budget_nbytes: int | None = None
    reserved_nbytes: int = 0
    projected_nbytes: int = 0
    measured_nbytes: int = 0
    samples: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True)
class CurveRecord:
    """A curve worth looking at: ROC, precision and recall, calibration, loss by epoch.

    Parameters
    ----------
    name : str
        Its title.
    x, y : tuple of float
        Of the same length; NaN makes a gap.
    x_label, y_label, note : str
        Texts beside the axes and below the title.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    x_label: str = ""
    y_label: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            lengths = f"{len(self.x)} x and {len(self.y)} y"
            raise InputError(f"Curve {self.name!r} has {lengths}; give as many of one as of the other.")


@dataclass(frozen=True)
class SearchLine:
    """One candidate of a search: its scores over its calls of `partial_fit`."""

    candidate: str
    bracket: int
    says: str
    """Its parameters, in words."""
    calls: tuple[int, ...]
    scores: tuple[float, ...]
    """NaN where it failed."""
    best: bool = False
    """Whether it is the one that was chosen."""

    @property
    def n_calls(self) -> int:
        """Calls that it made."""
        return max(self.calls, default=0)


@dataclass(frozen=True)
class SearchRecord:
    """All candidates of a search, by one metric."""

    metric: str
    lines: tuple[SearchLine, ...]

    @property
    def brackets(self) -> list[int]:
        """Numbers of the brackets, in ascending order."""
        return sorted({line.bracket for line in self.lines})


@dataclass(frozen=True)
class MachineRecord:
    """The machine that ran it."""

    cpus: int
    memory_nbytes: int
    python: str
    platform: str

    @classmethod
    def here(cls) -> Self:
        """Describe this machine."""
        return cls(
            cpus=os.cpu_count() or 1,
            memory_nbytes=psutil.virtual_memory().total,
            python=platform.python_version(),
            platform=platform.platform(),
        )


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that is remembered of one run.

    Parameters
    ----------
    name : str
        The pipeline's name.
    started : str
        ISO 8601, in UTC.
    seconds : float
        Wall time until the end, or until now.
    finished : bool
        False while it runs, and after it was killed.
    error : str
        What ended it; empty if nothing did.
    versions : dict of str to str
        Package versions.
    machine : MachineRecord
        Where it ran; this machine by default.
    workers, threads : int
        Worker processes, and threads in each.
    dashboard : str or None
        Address of Dask's dashboard while it ran.
    stages, passes, curves, searches : tuple
        In the order in which they ran.
    memory : MemoryRecord
        Peak and course of the memory.
    metrics, references, required : dict of str to float
        By the metric's name: what was reached, what another model reaches on the same rows,
        and what was asked for. Greater is better, as in scikit-learn's scorers.
    notes : tuple of str
        What was taken from the ledger, and why other things were not.

    Examples
    --------
    >>> run = RunRecord(name="tips", started="2024-05-01T08:00:00+00:00", seconds=2.0, finished=True,
    ...                 metrics={"roc_auc": 0.71}, required={"roc_auc": 0.6, "r2": 0.1})
    >>> run.unmet
    ('r2',)
    >>> RunRecord.from_json(run.to_json()) == run
    True
    """

    format_version: int = FORMAT_VERSION
    name: str
    started: str
    seconds: float
    finished: bool
    error: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    machine: MachineRecord = dataclasses.field(default_factory=MachineRecord.here)
    workers: int = 1
    threads: int = 1
    dashboard: str | None = None
    stages: tuple[StageRecord, ...] = ()
    passes: tuple[PassRecord, ...] = ()
    memory: MemoryRecord = MemoryRecord()
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    references: dict[str, float] = dataclasses.field(default_factory=dict)
    required: dict[str, float] = dataclasses.field(default_factory=dict)
    curves: tuple[CurveRecord, ...] = ()
    searches: tuple[SearchRecord, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def unmet(self) -> tuple[str, ...]:
        """Names of the required metrics that were missed or not measured; NaN is missed."""
        reached = {name: self.metrics.get(name, math.nan) for name in self.required}
        return tuple(name for name, least in self.required.items() if not reached[name] >= least)

    def to_json(self) -> str:
        """Return the record as strict JSON, with a line feed at its end."""
        return json.dumps(_plain(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make a record from `to_json`'s text.

        Raises
        ------
        RecordError
            If the text is not a run record, or one of another format version.
        """
        try:
            fields = json.loads(text)
        except ValueError as err:
            raise RecordError(f"The text is not a run record, as it is not JSON: {err}.") from err
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if version != FORMAT_VERSION:
            raise RecordError(
                f"The text is a run record of format version {version!r}; this dpipe reads version "
                f"{FORMAT_VERSION}. Read it with the dpipe that wrote it, or run the pipeline again."
            )
        try:
            record: Self = _decode(cls, fields, "record")
        except (TypeError, ValueError) as err:
            raise RecordError(f"The text is not a whole run record: {err}") from err
        return record

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the record as a file that appears whole or not at all, and return its path."""
        return write_whole(path, self.to_json())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `write` wrote.

        Raises
        ------
        RecordError
            If the file is missing, broken, or of another format version; it names the file.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as err:
            raise RecordError(f"There is no run record {os.fspath(path)!r}. Run the pipeline first.") from err
        except (OSError, UnicodeDecodeError, RecordError) as err:
            raise RecordError(f"Cannot read the run record {os.fspath(path)!r}. {err}") from err


def write_whole(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` to `path` so that no reader, and no crash, ever meets half of it.

    Parameters
    ----------
    path : str or path
        Replaced if it exists; its folder is made if it does not.
    text : str
        Written as UTF-8.

    Returns
    -------
    pathlib.Path
        `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _plain(value: Any) -> Any:
    """Return `value` as what strict JSON can hold; NumPy scalars become Python's."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _decode(hint: Any, value: Any, where: str) -> Any:
    """Rebuild a value of the annotated type `hint` from parsed JSON, checking as it goes."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:  # the only unions here are `X | None`
        return None if value is None else _decode(args[0], value, where)
    if dataclasses.is_dataclass(hint):
        return _decode_record(hint, _checked(value, dict, where), where)
    if origin is dict:
        items = _checked(value, dict, where).items()
        return {key: _decode(args[1], item, f"{where}[{key!r}]") for key, item in items}
    if origin is tuple:
        hints = itertools.repeat(args[0], len(_checked(value, list, where))) if args[-1] is Ellipsis else args
        pairs = enumerate(zip(hints, value, strict=True))
        return tuple(_decode(part, item, f"{where}[{i}]") for i, (part, item) in pairs)
    if hint is float and (type(value) is int or value in ("nan", "inf", "-inf")):
        return float(value)
    return _checked(value, hint, where)


def _decode_record(hint: Any, fields: dict[str, Any], where: str) -> Any:
    """Rebuild one dataclass; every field must be there, and nothing else."""
    hints = {field.name: field.type for field in dataclasses.fields(hint)}
    if fields.keys() != hints.keys():
        missing, unknown = sorted(hints.keys() - fields), sorted(fields.keys() - hints)
        raise ValueError(f"{where} lacks {missing} and has unknown {unknown}.")
    return hint(**{name: _decode(hints[name], fields[name], f"{where}.{name}") for name in hints})


def _checked(value: Any, kind: type, where: str) -> Any:
    """Return `value` if it is exactly of type `kind`: a bool is no int."""
    if type(value) is not kind:
        raise TypeError(f"{where} is {str(value)[:60]!r}, which is no {kind.__name__}.")
    return value
