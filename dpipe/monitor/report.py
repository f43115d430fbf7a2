"""The report of a run: one HTML page that holds all it needs and asks no host for anything."""

import html
import importlib.resources
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
from bokeh.embed import components, file_html
from bokeh.models import Model
from bokeh.resources import Resources

from dpipe.monitor import figures
from dpipe.monitor.advice import advise
from dpipe.monitor.record import RunRecord, SearchRecord, write_whole
from dpipe.sizes import counted, format_bytes, format_rows, format_seconds

_MOST_COLLECTS = 8
_NOTHING = "\N{EN DASH}"
_COUNTS = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"))


@dataclass(frozen=True)
class Tile:
    """One figure at the top of the page; `share` draws a bar below it, a red one above 1."""

    label: str
    value: str
    note: str
    share: float | None = None


@dataclass(frozen=True)
class MetricLine:
    """One row of the metrics table; `met` is None where nothing was required."""

    name: str
    value: str
    reference: str
    gain: str
    required: str
    met: bool | None


@dataclass(frozen=True)
class Verdict:
    """The run in one word, and why."""

    state: str
    title: str
    text: str


def write_report(record: RunRecord, path: str | os.PathLike[str]) -> Path:
    """Write a run's report as one HTML file.

    Parameters
    ----------
    record : RunRecord
        Of a finished run, or of one that goes on.
    path : str or path
        Replaced if it exists; it appears whole or not at all.

    Returns
    -------
    pathlib.Path
        `path`.
    """
    return write_whole(path, render_report(record))


def render_report(record: RunRecord) -> str:
    """Return a run's report as HTML; all texts of the record are escaped."""
    plots = _plots(record)
    script, divs = components(plots) if plots else ("", {})
    return _template().render(
        run=record,
        started=_moment(record.started),
        verdict=_verdict(record),
        tiles=_tiles(record),
        advice=advise(record),
        notes=record.notes,
        metrics=_metric_lines(record),
        most_collects=_MOST_COLLECTS,
        stage_seconds=sum(stage.seconds for stage in record.stages),
        ways=_ways(record),
        limits=figures.memory_limits(record.memory),
        exceeded=any(map(figures.exceeds_projection, record.passes)),
        divs=divs,
        script=script,
        bokeh="\n".join(Resources(mode="inline", components=["bokeh"]).js_raw) if plots else "",
        figures=figures,
    )


def _template() -> jinja2.Template:
    """Load the page's template; it escapes every text that is not marked as safe."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"size": format_bytes, "rows": format_rows, "seconds": format_seconds}
    page = importlib.resources.files("dpipe.monitor").joinpath("report.html")
    return environment.from_string(page.read_text("utf-8"))


def _plots(record: RunRecord) -> dict[str, Model]:
    """Draw what there is to draw."""
    plots: dict[str, Model] = {}
    if record.passes:
        plots["timeline"] = figures.timeline(record.passes)
        if any(one.projected_nbytes or one.measured_nbytes for one in record.passes):
            plots["pass_memory"] = figures.pass_memory(record.passes)
    if len(record.memory.samples) > 1:
        plots["memory_course"] = figures.memory_course(record.memory)
    plots |= {f"curve_{i}": figures.curve(one) for i, one in enumerate(record.curves) if one.x}
    plots |= {
        f"search_{i}": figures.brackets(one)
        for i, one in enumerate(record.searches)
        if any(math.isfinite(score) for line in one.lines for score in line.scores)
    }
    return plots


def render_search(record: SearchRecord) -> str:
    """Return the picture of a search as a page of its own, which asks no host for anything."""
    plot = figures.brackets(record)
    page: str = file_html(plot, Resources(mode="inline"), title=f"Search by {html.escape(record.metric)}")
    return page


def _moment(started: str) -> str:
    """Write an ISO time for people; what is no ISO time stays as it is."""
    try:
        moment = datetime.fromisoformat(started)
    except ValueError:
        return started
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _verdict(record: RunRecord) -> Verdict:
    """Say whether the run gave what was required of it."""
    unmet, count = record.unmet, len(record.required)
    required = "the required metric" if count == 1 else f"all {count} required metrics"
    if record.error:
        return Verdict("failed", "Failed", record.error)
    if not record.finished:
        return Verdict("open", "Not finished", "The figures stop where the run stopped.")
    if not count:
        return Verdict("plain", "Finished", "No metric was required.")
    if not unmet:
        return Verdict("passed", "Passed", f"The model reaches {required}.")
    missed = "the required metric" if count == 1 else f"{len(unmet)} of {count} required metrics"
    return Verdict("failed", "Failed", f"The model misses {missed}.")


def _tiles(record: RunRecord) -> list[Tile]:
    """Choose the figures for the top of the page."""
    passes, memory = record.passes, record.memory
    rows = sum(round(one.rows * one.read_share) for one in passes)
    nbytes = sum(round(one.nbytes * one.read_share) for one in passes)
    recalled = sum(one.n_recalled for one in passes)
    seconds = sum(one.seconds for one in passes)
    collected = [stage.rows_out for stage in record.stages if stage.kind == "collect" and stage.rows_out]
    of_data = (
        collected[0] if collected else max((one.rows // max(one.n_readings, 1) for one in passes), default=0)
    )
    budget, peak = memory.budget_nbytes, memory.measured_nbytes
    return [
        Tile("Rows", _count(of_data), f"{_count(rows)} read in all passes"),
        Tile("Read", format_bytes(nbytes), "decoded, in all passes"),
        Tile("Passes", f"{len(passes):,}", _of_blocks(sum(one.n_blocks for one in passes), recalled)),
        Tile(
            "Peak memory",
            format_bytes(peak) if peak else _NOTHING,
            f"of a budget of {format_bytes(budget)}" if budget else "no budget was given",
            peak / budget if budget and peak else None,
        ),
        Tile(
            "Throughput",
            _count(round(rows / seconds)) if seconds else _NOTHING,
            f"rows/s, {format_bytes(nbytes / seconds)}/s" if seconds else "nothing was read",
        ),
    ]


def _of_blocks(n: int, n_recalled: int) -> str:
    return f"over {counted(n, 'block')}" + (f", {n_recalled:,} of them on record" if n_recalled else "")


def _metric_lines(record: RunRecord) -> list[MetricLine]:
    """Bring metrics, references and requirements together, each metric once."""
    lines = []
    for name in {**record.metrics, **record.required, **record.references}:
        value, reference, least = (
            record.metrics.get(name),
            record.references.get(name),
            record.required.get(name),
        )
        gain = math.nan if value is None or reference is None else value - reference
        met = None if least is None else name not in record.unmet
        required = "" if least is None else f"at least {_number(least)}"
        lines.append(MetricLine(name, _number(value), _number(reference), _gain(gain), required, met))
    return lines


def _gain(value: float) -> str:
    """Write a difference with its sign, and nothing where it is not known."""
    return "" if math.isnan(value) else f"{'+' if value >= 0 else ''}{_number(value)}"


def _ways(record: RunRecord) -> Mapping[str, str]:
    """Return the ways of the passes, in order, with their colours."""
    return {one.way: figures.way_colour(one.way) for one in record.passes}


def _number(value: float | None) -> str:
    """Write a metric with four decimals, or four digits where those would hide it."""
    if value is None:
        return ""
    plain = value == 0 or 1e-3 <= abs(value) < 1e6
    return f"{value:,.4f}" if plain and math.isfinite(value) else f"{value:.4g}"


def _count(value: int) -> str:
    """Write a count, shortened when it is too long for a tile."""
    if value < 10**7:
        return f"{value:,}"
    scale, word = next(unit for unit in _COUNTS if value >= unit[0])
    return f"{value / scale:,.1f} {word}"
