"""What a pipeline is made of: its stages, and the records of what it would do and of what it did."""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pyarrow as pa
import xarray as xr

from dpipe.collect.labelled import as_samples, needed_variables
from dpipe.collect.split import split
from dpipe.errors import InputError
from dpipe.families.registry import Estimator
from dpipe.plan_record import Plan
from dpipe.sizes import format_seconds


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of a pipeline: what it does, and the lazy collections it takes and gives."""

    kind: str
    name: str
    says: str
    """What it does, in a few words."""
    inputs: tuple[Any, ...] = ()
    outputs: tuple[Any, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    again: Callable[..., tuple[Any, ...]] | None = None
    """Makes the outputs anew from other inputs, where these are labelled arrays."""


@dataclass(frozen=True)
class PipelinePlan:
    """What a run would do: its stages, and the passes of each model."""

    name: str
    stages: tuple[tuple[str, str], ...]
    """Name and description of each."""
    fits: tuple[tuple[str, Plan], ...]
    """Each training stage, with its plan."""
    n_scorings: int
    """Validation stages; each reads the test rows once for each scored model."""
    stores: tuple[tuple[str, str], ...] = ()
    """Each stage that is written to a store, and how."""
    recorded: tuple[str, ...] = ()
    """What earlier runs have done of it already, why other things must be done anew, and what else is to be known."""

    def __str__(self) -> str:
        """Draw it."""
        lines = [f"Pipeline {self.name!r}", ""]
        lines += [f"  {i}. {name:12s} {says}" for i, (name, says) in enumerate(self.stages, start=1)]
        for name, plan in (*self.stores, *self.fits):
            lines += ["", f"{name}: {plan}"]
        if self.n_scorings:
            lines += [
                "",
                f"validate: {self.n_scorings} more pass{'es' * (self.n_scorings > 1)} over the test rows",
            ]
        return "\n".join([*lines, *([""] if self.recorded else []), *self.recorded])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<li><b>{html.escape(name)}</b> {html.escape(says)}</li>" for name, says in self.stages
        )
        plans = "".join(f"<pre>{html.escape(f'{name}: {said}')}</pre>" for name, said in self.stores)
        plans += "".join(plan._repr_html_() for _, plan in self.fits)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.recorded)
        return f"<h4>Pipeline {html.escape(self.name)}</h4><ol>{rows}</ol>{plans}{notes}"


@dataclass(frozen=True)
class PipelineRun:
    """What a finished run has given."""

    name: str
    seconds: float
    model: Estimator | None
    """The fitted scikit-learn estimator of the last training stage."""
    metrics: dict[str, float]
    references: dict[str, float]
    """The same metrics for what the model is compared with."""
    workdir: Path
    report: Path
    bundle: Path | None

    def __str__(self) -> str:
        """Say what came out and where it is."""
        lines = [f"{self.name}: finished in {format_seconds(self.seconds)}"]
        for name, value in self.metrics.items():
            beside = f"  (reference {self.references[name]:.4f})" if name in self.references else ""
            lines.append(f"  {name:24s} {value:.4f}{beside}")
        lines.append(f"  report   {self.report}")
        if self.bundle is not None:
            lines.append(f"  bundle   {self.bundle}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{value:.4f}</td></tr>"
            for name, value in self.metrics.items()
        )
        where = html.escape(self.report.resolve().as_uri(), quote=True)
        return (
            f"<b>{html.escape(self.name)}</b>: finished in {format_seconds(self.seconds)}; "
            f'<a href="{where}">report</a><table><tr><th>metric</th><th>value</th></tr>{rows}</table>'
        )


def edges(stages: Sequence[Stage]) -> list[tuple[int, int]]:
    """Tell which stage, by its position, gives something to which other one."""
    producers = {id(out): i for i, stage in enumerate(stages) for out in stage.outputs}
    return [
        (producers[id(taken)], i)
        for i, stage in enumerate(stages)
        for taken in stage.inputs
        if id(taken) in producers
    ]


def columns_of(
    frame: Any,
    target: Any,
    features: Sequence[str] | None,
    sample_weight: Any,
    samples: Mapping[str, Any] | None = None,
) -> tuple[Any, Any, Any]:
    """Take the model's columns, the target and the weights out of one frame; of labelled arrays, the samples."""
    if isinstance(frame, xr.DataArray | xr.Dataset):
        chosen = needed_variables(frame, features, (target, sample_weight))
        return as_samples(chosen, target, sample_weight, **(samples or {"sample_dims": None}))
    if not isinstance(frame, dd.DataFrame):
        return frame, target, sample_weight
    for role, name in (("target", target), ("sample_weight", sample_weight)):
        if isinstance(name, str) and name not in frame.columns:
            raise InputError(
                f"{role}={name!r} is not a column of the frame. It has: {', '.join(map(repr, frame.columns))}."
            )
    named = [name for name in (target, sample_weight) if isinstance(name, str)]
    chosen = [name for name in frame.columns if name not in named] if features is None else list(features)
    missing = [name for name in chosen if name not in frame.columns]
    if missing:
        raise InputError(
            f"features: there is no column {', '.join(map(repr, missing))}. "
            f"The frame has: {', '.join(map(repr, frame.columns))}."
        )
    y = frame[target] if isinstance(target, str) else target
    w = frame[sample_weight] if isinstance(sample_weight, str) else sample_weight
    return frame[chosen], y, w


def fit_input(settings: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Give the arguments of a fit: estimator, X, y and weights."""
    X, y, w = columns_of(
        settings["frame"],
        settings["target"],
        settings["features"],
        settings["sample_weight"],
        settings["samples"],
    )
    return settings["estimator"], X, y, w


def fit_arguments(settings: Mapping[str, Any]) -> tuple[tuple[Any, Any, Any, Any], dict[str, Any]]:
    """Give all arguments of a fit: those of `fit_input`, and by name epochs, rows to watch it on, and groups."""
    frame, validation, qid = settings["frame"], settings["validation"], settings["qid"]
    if isinstance(validation, float) and isinstance(frame, dd.DataFrame):
        frame, validation = split(frame, test_size=validation, by=qid)
    settings = {**settings, "frame": frame}
    if isinstance(validation, dd.DataFrame):
        _, *held_out = _with_groups({**settings, "frame": validation})
        validation = tuple(part for part in held_out if part is not None)
    beside = {
        "epochs": settings["epochs"],
        "validation": validation,
        "qid": qid,
        "shares": settings["shares"],
        **(settings["samples"] or {}),
    }
    return _with_groups(settings), beside


def _with_groups(settings: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Leave the groups of a ranker among the columns of X: a fit takes them out itself."""
    qid, features = settings["qid"], settings["features"]
    if isinstance(qid, str) and features is not None:
        settings = {**settings, "features": (*features, qid)}
    return fit_input(settings)


def bundle_input(trained: Stage) -> tuple[pa.Schema | None, str | None]:
    """Give the columns that a model takes, with their types, and the name of its target."""
    settings = trained.settings
    X, _, _ = columns_of(
        settings["frame"], settings["target"], settings["features"], None, settings["samples"]
    )
    schema = pa.Schema.from_pandas(X._meta, preserve_index=False) if isinstance(X, dd.DataFrame) else None
    return schema, settings["target"] if isinstance(settings["target"], str) else None
