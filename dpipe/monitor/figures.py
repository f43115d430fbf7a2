"""The Bokeh figures of a run report: one function for each, from records to a figure.

Words that come from users reach an axis through `_label` only, because Bokeh reads text such as
``$$x$$`` as mathematics and fetches a program from the web to set it. Titles and legends stand
in the page around the figures.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, Range1d
from bokeh.models.annotations import Span
from bokeh.models.renderers import DataRenderer
from bokeh.plotting import figure

from dpipe.monitor.record import CurveRecord, MemoryRecord, PassRecord, SearchRecord
from dpipe.sizes import format_bytes, format_seconds

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, MUTED, LINE = "#22303c", "#64727f", "#e3e7eb"
BLUE, PALE_BLUE, RED, AMBER = "#2f6f9f", "#c7dbea", "#b3423a", "#c98a1b"
WAY_COLOURS = {
    "merge": BLUE,
    "refine": "#3a8fa3",
    "stream": AMBER,
    "average": "#b0672a",
    "boost": "#a8603a",
    "score": "#4b8f6b",
    "write": "#7d6aa8",
    "search": "#a8577e",
}
BRACKET_COLOURS = (BLUE, AMBER, "#4b8f6b", "#7d6aa8", "#3a8fa3", "#a8577e", "#8c6d46", "#64727f")
OTHER_COLOUR = "#8b97a3"

# A bar for each pass up to here; beyond, the passes of one stage share a row.
_MOST_ROWS = 30
_MOST_POINTS = 2000
_LABEL_LENGTH = 34
# A line this many times above the rest is told in words instead.
_SQUEEZE = 6
_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))


def way_colour(way: str) -> str:
    """Colour of the passes of one way."""
    return WAY_COLOURS.get(way, OTHER_COLOUR)


def timeline(passes: Sequence[PassRecord]) -> figure:
    """Draw passes as bars along the seconds, one after another.

    Parameters
    ----------
    passes : sequence of PassRecord
        At least one. Up to 30 get a row each; more are drawn in one row for each stage.

    Returns
    -------
    bokeh.plotting.figure
        As wide as the page, and as high as its rows need.
    """
    ends = list(itertools.accumulate(one.seconds for one in passes))
    rows, labels = _timeline_rows(passes)
    source = ColumnDataSource(
        {
            "row": [-row for row in rows],
            "left": [0.0, *ends[:-1]],
            "right": ends,
            "colour": [way_colour(one.way) for one in passes],
            "number": list(range(1, len(passes) + 1)),
            "title": [one.title for one in passes],
            "stage": [one.stage for one in passes],
            "took": [format_seconds(one.seconds) for one in passes],
            "read": [
                f"{one.n_blocks:,} blocks, {one.rows:,} rows, {format_bytes(one.nbytes)}" for one in passes
            ],
        }
    )
    plot = _figure(58 + len(labels) * max(14, min(30, 420 // len(labels))))
    plot.x_range, plot.y_range = _range(0, ends[-1] * 1.01 or 1), _range(0.6 - len(labels), 0.6)
    bars = plot.hbar("row", 0.62, "right", "left", fill_color="colour", line_color="white", source=source)
    plot.add_tools(_hover(bars, "#@number @title", ["@stage, @took", "@read"]))
    plot.yaxis.ticker = FixedTicker(ticks=[-row for row in range(len(labels))])
    plot.yaxis.major_label_overrides = {-row: label for row, label in enumerate(labels)}
    plot.xaxis.axis_label = "seconds of reading"
    plot.ygrid.visible = False
    return plot


@dataclass(frozen=True)
class MemoryLimit:
    """A horizontal line in the course of the memory; not drawn where it would flatten the rest."""

    name: str
    nbytes: int
    colour: str
    drawn: bool


def memory_limits(memory: MemoryRecord) -> tuple[MemoryLimit, ...]:
    """Return the known limits of a run's memory."""
    peak = max([memory.measured_nbytes, *(nbytes for _, nbytes in memory.samples)])
    known = (("projected", memory.projected_nbytes, AMBER), ("budget", memory.budget_nbytes or 0, RED))
    return tuple(
        MemoryLimit(name, size, colour, size <= _SQUEEZE * peak) for name, size, colour in known if size
    )


def memory_course(memory: MemoryRecord) -> figure:
    """Draw resident memory over time, with lines for what was projected and allowed.

    Parameters
    ----------
    memory : MemoryRecord
        With at least one sample.

    Returns
    -------
    bokeh.plotting.figure
        As wide as the page.
    """
    samples = memory.samples
    limits = [limit for limit in memory_limits(memory) if limit.drawn]
    top = max([nbytes for _, nbytes in samples] + [limit.nbytes for limit in limits])
    scale, unit = _unit(top)
    source = ColumnDataSource(
        {
            "seconds": [seconds for seconds, _ in samples],
            "size": [nbytes / scale for _, nbytes in samples],
            "text": [format_bytes(nbytes) for _, nbytes in samples],
        }
    )
    plot = _figure(260)
    plot.x_range, plot.y_range = _range(0, samples[-1][0] or 1), _range(0, top / scale * 1.08 or 1)
    plot.varea("seconds", 0, "size", fill_color=PALE_BLUE, fill_alpha=0.6, source=source)
    line = plot.line("seconds", "size", line_color=BLUE, line_width=1.8, source=source)
    for limit in limits:
        dashes = Span(location=limit.nbytes / scale, line_color=limit.colour, line_dash="dashed")
        dashes.line_width = 1.5
        plot.add_layout(dashes)
    hover = _hover(line, "@text", ["after @seconds{0.0} s"])
    hover.mode = "vline"
    plot.add_tools(hover)
    plot.xaxis.axis_label = "seconds since the start"
    plot.yaxis.axis_label = unit
    return plot


def pass_memory(passes: Sequence[PassRecord]) -> figure:
    """Draw the projected peak of each pass as a pale bar, and the measured one inside it.

    Parameters
    ----------
    passes : sequence of PassRecord
        At least one.

    Returns
    -------
    bokeh.plotting.figure
        As wide as the page.
    """
    numbers = list(range(1, len(passes) + 1))
    top = max(max(one.projected_nbytes, one.measured_nbytes) for one in passes)
    scale, unit = _unit(top)
    source = _pass_sizes(passes, scale)
    plot = _figure(260)
    plot.x_range, plot.y_range = _range(0.4, len(passes) + 0.6), _range(0, top / scale * 1.08 or 1)
    # A single bar as wide as the page would say no more than a narrow one.
    width = 0.72 * min(1.0, len(passes) / 10)
    pale = plot.vbar("number", width, "projected", color=PALE_BLUE, line_color=None, source=source)
    inner = plot.vbar("number", 0.5 * width, "measured", color="colour", line_color=None, source=source)
    hover = _hover(pale, "#@number @title", ["projected @projected_text", "measured @measured_text"])
    hover.renderers = [pale, inner]
    plot.add_tools(hover)
    plot.xaxis.ticker = FixedTicker(ticks=numbers[:: math.ceil(len(numbers) / 25)])
    plot.xgrid.visible = False
    plot.xaxis.axis_label = "pass"
    plot.yaxis.axis_label = unit
    return plot


def curve(record: CurveRecord) -> figure:
    """Draw one curve; ROC and calibration curves get their diagonal.

    Parameters
    ----------
    record : CurveRecord
        With at least one point; of many points, 2000 are drawn.

    Returns
    -------
    bokeh.plotting.figure
        As wide as its place in the page; both axes go from 0 to 1 where all values do.
    """
    step = math.ceil(len(record.x) / _MOST_POINTS)
    x, y = [_thinned(values, step) for values in (record.x, record.y)]
    plot = _figure(300)
    if all(-1e-9 <= value <= 1 + 1e-9 for value in (*x, *y) if not math.isnan(value)):
        plot.x_range, plot.y_range = _range(-0.02, 1.02), _range(-0.02, 1.02)
        if any(word in record.name.lower() for word in ("roc", "calibration", "reliability")):
            plot.line([0, 1], [0, 1], line_color=MUTED, line_dash="dotted", line_width=1.2)
    line = plot.line(x, y, line_color=BLUE, line_width=2)
    if len(x) <= 30:
        plot.scatter(x, y, size=6, color=BLUE)
    plot.add_tools(_hover(line, "@x{0.000}, @y{0.000}", []))
    plot.xaxis.axis_label, plot.yaxis.axis_label = _label(record.x_label), _label(record.y_label)
    return plot


def bracket_colour(bracket: int) -> str:
    """Colour of the candidates of one bracket."""
    return BRACKET_COLOURS[bracket % len(BRACKET_COLOURS)]


def brackets(record: SearchRecord) -> figure:
    """Draw the score of each candidate of a search over its calls of `partial_fit`, brackets in colours.

    Parameters
    ----------
    record : SearchRecord
        With at least one score that is a number.

    Returns
    -------
    bokeh.plotting.figure
        As wide as the page. The chosen candidate is drawn thicker; calls are on a logarithmic axis.
    """
    plot = figure(height=360, sizing_mode="stretch_width", tools="", toolbar_location=None, x_axis_type="log")
    _dress(plot)
    lines = sorted(record.lines, key=lambda each: each.best)  # the chosen one is drawn last
    colours = [bracket_colour(line.bracket) for line in lines]
    drawn = {
        "x": [line.calls for line in lines],
        "y": [line.scores for line in lines],
        "colour": colours,
        "width": [3.0 if line.best else 1.2 for line in lines],
        "alpha": [1.0 if line.best else 0.45 for line in lines],
    }
    # one renderer for all lines: one for each would make the page slow
    plot.multi_line(
        "x", "y", line_color="colour", line_width="width", line_alpha="alpha", source=ColumnDataSource(drawn)
    )
    points: dict[str, list[Any]] = {name: [] for name in ("x", "y", "colour", "candidate", "says")}
    for line, colour in zip(lines, colours, strict=True):
        points["x"] += line.calls
        points["y"] += line.scores
        points["colour"] += [colour] * len(line.calls)
        points["candidate"] += [f"{line.candidate}{' (chosen)' if line.best else ''}"] * len(line.calls)
        points["says"] += [line.says] * len(line.calls)
    dots = plot.scatter("x", "y", size=5, color="colour", source=ColumnDataSource(points))
    plot.add_tools(_hover(dots, "@candidate", ["@says", "@y{0.0000} after @x calls"]))
    plot.xaxis.axis_label, plot.yaxis.axis_label = "calls of partial_fit", _label(record.metric)
    return plot


def _figure(height: int) -> figure:
    """Make an empty figure in the page's style."""
    plot = figure(height=height, sizing_mode="stretch_width", tools="", toolbar_location=None)
    _dress(plot)
    return plot


def _dress(plot: figure) -> None:
    """Give a figure the page's style."""
    plot.outline_line_color = None
    plot.min_border_right = 16
    plot.xgrid.grid_line_color = plot.ygrid.grid_line_color = LINE
    for axis in plot.axis:
        axis.axis_line_color = axis.major_tick_line_color = LINE
        axis.major_tick_in = 0
        axis.minor_tick_line_color = None
        axis.major_label_text_color = axis.axis_label_text_color = MUTED
        axis.major_label_text_font = axis.axis_label_text_font = FONT
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "12px"
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_standoff = 8


def _range(start: float, end: float) -> Range1d:
    """Make the range of an axis."""
    return Range1d(start=start, end=end)


def _hover(renderer: DataRenderer, title: str, lines: list[str]) -> HoverTool:
    """Make a tooltip; Bokeh escapes the values that it puts in."""
    body = "".join(f"<div style='color:{MUTED}'>{line}</div>" for line in lines)
    style = f"font:13px {FONT};color:{INK};max-width:22rem;white-space:normal".replace("'", "&quot;")
    return HoverTool(renderers=[renderer], tooltips=f"<div style='{style}'><b>{title}</b>{body}</div>")


def _timeline_rows(passes: Sequence[PassRecord]) -> tuple[list[int], list[str]]:
    """Return each pass's row, and the labels of the rows."""
    if len(passes) <= _MOST_ROWS:
        return list(range(len(passes))), _distinct([_label(one.title) for one in passes])
    stages = list(dict.fromkeys(one.stage for one in passes))
    return [stages.index(one.stage) for one in passes], [_label(stage) for stage in stages]


def _distinct(labels: Sequence[str]) -> list[str]:
    """Number labels that stand several times."""
    counts = Counter(labels)
    return [f"{label}  {n}" if counts[label] > 1 else label for n, label in enumerate(labels, 1)]


def _unit(top: int) -> tuple[int, str]:
    """Choose the unit in which `top` bytes are read most easily."""
    return next(((scale, unit) for scale, unit in _UNITS if top >= scale), _UNITS[-1])


def _thinned(values: Sequence[float], step: int) -> list[float]:
    """Keep every `step`-th value, and the last."""
    kept = list(values[::step])
    return kept if (len(values) - 1) % step == 0 else [*kept, values[-1]]


def _pass_sizes(passes: Sequence[PassRecord], scale: int) -> ColumnDataSource:
    """Return the peaks of the passes, in units of `scale` bytes and in words."""
    return ColumnDataSource(
        {
            "number": list(range(1, len(passes) + 1)),
            "title": [one.title for one in passes],
            "projected": [one.projected_nbytes / scale for one in passes],
            "measured": [one.measured_nbytes / scale for one in passes],
            "colour": [RED if exceeds_projection(one) else BLUE for one in passes],
            "projected_text": [_size_or_unknown(one.projected_nbytes) for one in passes],
            "measured_text": [_size_or_unknown(one.measured_nbytes) for one in passes],
        }
    )


def exceeds_projection(one: PassRecord) -> bool:
    """Whether a pass took more memory than was projected."""
    return 0 < one.projected_nbytes < one.measured_nbytes


def _size_or_unknown(nbytes: int) -> str:
    """Write a size that may not have been measured."""
    return format_bytes(nbytes) if nbytes else "not known"


def _label(text: str) -> str:
    """Shorten a user's words, so that a label leaves most of the page to its figure."""
    return _no_math(text if len(text) <= _LABEL_LENGTH else text[: _LABEL_LENGTH - 1] + "…")


def _no_math(text: str) -> str:
    """Break the marks of mathematics apart with a character that takes no room."""
    for mark in ("$$", "\\(", "\\["):
        text = text.replace(mark, f"{mark[0]}\N{ZERO WIDTH SPACE}{mark[1]}")
    return text
