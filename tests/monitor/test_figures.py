"""Figures of the report: the right bars and lines, for few passes and for many."""

import math

import pytest

from dpipe.monitor import figures
from dpipe.monitor.record import CurveRecord, MemoryRecord, PassRecord

MIB = 2**20


def a_pass(stage="tips", title="Fit", seconds=1.0, **changes):
    return PassRecord(stage, title, "merge", seconds=seconds, **changes)


def data(plot, i=0):
    return plot.renderers[i].data_source.data


def test_timeline_puts_passes_one_after_another():
    plot = figures.timeline([a_pass(seconds=2.0), a_pass(title="Next", seconds=3.0)])
    assert data(plot)["left"] == [0.0, 2.0]
    assert data(plot)["right"] == [2.0, 5.0]
    assert plot.yaxis[0].major_label_overrides == {0: "Fit", -1: "Next"}


def test_timeline_of_many_passes_has_a_row_for_each_stage():
    plot = figures.timeline([a_pass(stage="ab"[i // 60]) for i in range(100)])
    assert set(data(plot)["row"]) == {0, -1}
    assert plot.height < 200


def test_timeline_of_passes_that_took_no_time():
    plot = figures.timeline([a_pass(seconds=0.0)])
    assert plot.x_range.end > plot.x_range.start


@pytest.mark.parametrize(
    ("memory", "drawn"),
    [
        (MemoryRecord(300, 0, 200, 100), {"projected": True, "budget": True}),
        (MemoryRecord(3000, 0, 200, 100), {"projected": True, "budget": False}),
        (MemoryRecord(None, 0, 0, 100), {}),
    ],
)
def test_limits_that_would_flatten_the_picture_are_not_drawn(memory, drawn):
    assert {limit.name: limit.drawn for limit in figures.memory_limits(memory)} == drawn


def test_memory_course_has_its_limits_inside():
    memory = MemoryRecord(300 * MIB, 0, 200 * MIB, 100 * MIB, ((0.0, 50 * MIB), (1.0, 100 * MIB)))
    plot = figures.memory_course(memory)
    assert [span.location for span in plot.center if hasattr(span, "location")] == [200.0, 300.0]
    assert plot.y_range.end > 300
    assert plot.yaxis[0].axis_label == "MiB"


def test_pass_memory_marks_what_went_above():
    passes = [a_pass(projected_nbytes=100, measured_nbytes=m) for m in (0, 90, 110)]
    plot = figures.pass_memory(passes)
    assert data(plot)["colour"] == [figures.BLUE, figures.BLUE, figures.RED]
    assert data(plot)["measured_text"][0] == "not known"


@pytest.mark.parametrize(("name", "n_lines"), [("ROC", 2), ("Loss", 1), ("Calibration of b", 2)])
def test_curve_gets_its_diagonal(name, n_lines):
    plot = figures.curve(CurveRecord(name, tuple(i / 99 for i in range(100)), (0.5,) * 99 + (math.nan,)))
    assert len(plot.renderers) == n_lines
    assert (plot.y_range.start, plot.y_range.end) == (-0.02, 1.02)


def test_curve_of_a_million_points_is_thinned_and_keeps_its_ends():
    values = tuple(map(float, range(1_000_000)))
    drawn = data(figures.curve(CurveRecord("Loss", values, values)))["x"]
    assert len(drawn) <= 2001
    assert (drawn[0], drawn[-1]) == (0.0, 999_999.0)


@pytest.mark.parametrize("text", ["$$x^2$$", r"\(x\)", r"\[x\]", "a $$b$$ c"])
def test_no_label_is_read_as_mathematics(text):
    label = figures.curve(CurveRecord("Loss", (1.0,), (2.0,), x_label=text)).xaxis[0].axis_label
    assert label.replace("\N{ZERO WIDTH SPACE}", "") == text
    assert not any(mark in label for mark in ("$$", r"\(", r"\["))


def test_long_labels_are_cut():
    plot = figures.timeline([a_pass(title="x" * 500)])
    assert len(plot.yaxis[0].major_label_overrides[0]) < 50
