"""The report: one page, whole by itself, with the run's figures and none of its markup."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from dpipe.monitor.record import CurveRecord, MachineRecord, MemoryRecord, PassRecord, RunRecord, StageRecord
from dpipe.monitor.report import render_report, write_report

GIB = 2**30
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
ATTRIBUTES_THAT_FETCH = {"src", "href", "srcset", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """What a browser would make of the page: its tags, their attributes, and its words."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words, self._in_code = [], [], [], False
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._in_code = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._in_code = False

    def handle_data(self, data):
        if not self._in_code:
            self.words.append(data)


def an_empty_run(**changes):
    fields = {"name": "taxi-tips", "started": "2024-05-01T08:30:00+00:00", "seconds": 52.0, "finished": True}
    return RunRecord(**fields | changes)


def a_run(**changes):
    fields = {
        "versions": {"dask": "2026.6.0"},
        "machine": MachineRecord(16, 64 * GIB, "3.11.9", "Linux"),
        "dashboard": "http://127.0.0.1:8787/status",
        "stages": (
            StageRecord("rides", "collect", 3.0, 2_000_000, 1_998_733, "some broke the schema"),
            StageRecord("tips", "train", 40.0),
        ),
        "passes": (
            PassRecord("tips", "Scale and encode", "merge", ("StandardScaler", "OneHotEncoder"),
                       "They share it", 50, 1_600_000, 3 * GIB, 8.0, GIB, GIB // 2),
            PassRecord("tips", "SGDClassifier, epoch 1", "stream", ("SGDClassifier",), "Needs scaled columns",
                       50, 1_600_000, 3 * GIB, 32.0, GIB, 2 * GIB),
        ),
        "memory": MemoryRecord(4 * GIB, GIB // 8, GIB, 2 * GIB, ((0.0, GIB // 4), (1.0, 2 * GIB))),
        "metrics": {"roc_auc": 0.7123, "r2": -0.25},
        "references": {"roc_auc": 0.5},
        "required": {"roc_auc": 0.6},
        "curves": (
            CurveRecord("ROC", (0.0, 1.0), (0.0, 1.0), "false positives", "true positives", "area 0.71"),
            CurveRecord("No points", (), ()),
        ),
    }  # fmt: skip
    return an_empty_run(**fields | changes)


def test_the_page_tells_names_and_figures():
    text = Page(render_report(a_run())).text
    for words in (
        "taxi-tips", "1 May 2024, 08:30 UTC", "52.0 s", "Passed", "at least 0.6000", "0.7123", "+0.2123",
        "1,998,733", "6.00 GiB", "2.00 GiB of a budget of 4.00 GiB", "80,000 rows/s, 153.60 MiB/s",
        "Scale and encode", "StandardScaler, OneHotEncoder", "They share it", "some broke the schema",
        "Ordered passes took 80%", "area 0.71", "It has no points.", "measured above projected",
        "projected 1.00 GiB", "dask 2026.6.0", "Linux · Python 3.11.9 · 16 CPUs",
    ):  # fmt: skip
        assert words in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Passed The model reaches the required metric."),
        ({"required": {"roc_auc": 0.9}}, "Failed The model misses the required metric."),
        ({"required": {"roc_auc": 0.6, "f1": 0.1}}, "Failed The model misses 1 of 2 required metrics."),
        ({"required": {"roc_auc": 0.6, "r2": -1.0}}, "Passed The model reaches all 2 required metrics."),
        ({"required": {}}, "Finished No metric was required."),
        ({"finished": False}, "Not finished The figures stop where the run stopped."),
    ],
)
def test_the_verdict(changes, words):
    assert words in Page(render_report(a_run(**changes))).text


def test_a_required_metric_that_was_not_measured_is_said_so():
    assert "✗ not measured / at least 0.1000" in Page(render_report(a_run(required={"f1": 0.1}))).text


def test_the_page_asks_no_host_for_anything():
    html = render_report(a_run())
    page = Page(html)
    assert not [name for name, _ in page.attributes if name in ATTRIBUTES_THAT_FETCH]
    assert not {"link", "iframe", "img", "object", "embed", "base"} & set(page.tags)
    assert "cdn.bokeh" not in html
    assert not re.search(r"@import|url\(", html[: html.index("</style>")])
    (policy,) = [value for name, value in page.attributes if name == "content" and "default-src" in value]
    assert "default-src 'none'" in policy
    assert "http" not in policy


def every_text(record, text):
    """Replace each free text of `record`, at any depth, by `text`."""
    if isinstance(record, str):
        return text
    if isinstance(record, tuple):
        return tuple(every_text(item, text) for item in record)
    if isinstance(record, dict):
        return dict.fromkeys([text], every_text(next(iter(record.values())), text))
    if dataclasses.is_dataclass(record):
        fields = [field.name for field in dataclasses.fields(record) if field.name != "kind"]
        return dataclasses.replace(
            record, **{name: every_text(getattr(record, name), text) for name in fields}
        )
    return record


def test_no_text_becomes_markup():
    harmless, evil = (Page(render_report(every_text(a_run(), text))) for text in ("harmless", EVIL))
    assert evil.tags == harmless.tags
    assert "alert(1)" in evil.text
    names = {name for name, _ in evil.attributes}
    assert "onerror" not in names


def test_script_blocks_hold_no_text_that_ends_them():
    html = render_report(every_text(a_run(), EVIL))
    assert "<script>alert" not in html
    assert html.count("</script>") == Page(html).tags.count("script")


@pytest.mark.parametrize(
    "run",
    [
        an_empty_run(),
        an_empty_run(started="some day", finished=False, seconds=0.0),
        an_empty_run(required={"auc": 0.5}),
        an_empty_run(references={"auc": 0.5}),
        an_empty_run(memory=MemoryRecord(GIB)),
        an_empty_run(memory=MemoryRecord(samples=((0.0, 0), (0.0, 0)))),
        an_empty_run(passes=(PassRecord("a", "b", "odd way"),)),
        an_empty_run(stages=(StageRecord("a", "deploy", 0.0),)),
        an_empty_run(metrics={"a": float("nan"), "b": float("inf"), "c": 1e-12, "d": 0.0}),
        an_empty_run(curves=(CurveRecord("nan", (float("nan"),), (float("nan"),)),)),
    ],
)
def test_runs_with_little_in_them(run):
    assert "taxi-tips" in Page(render_report(run)).text


@pytest.mark.parametrize(("peak", "red"), [(GIB // 2, False), (2 * GIB, True)])
def test_a_peak_over_the_budget_is_marked(peak, red):
    html = render_report(an_empty_run(memory=MemoryRecord(GIB, measured_nbytes=peak)))
    assert ('class="over"' in html) is red


@pytest.mark.parametrize(
    ("started", "shown"),
    [
        ("2024-05-01T08:30:00Z", "1 May 2024, 08:30 UTC"),
        ("2024-05-01T08:30:00+02:00", "1 May 2024, 06:30 UTC"),
        ("2024-05-01T08:30:00", "1 May 2024, 08:30 UTC"),
        ("yesterday", "yesterday"),
    ],
)
def test_the_start_is_told_in_utc(started, shown):
    assert f"{shown} · 52.0 s" in Page(render_report(an_empty_run(started=started))).text


def test_a_page_without_figures_carries_no_program():
    html = render_report(an_empty_run())
    assert "<script" not in html
    assert len(html) < 20_000


def test_a_hundred_passes_are_all_in_the_table():
    passes = tuple(PassRecord("glm", f"step {i}", "merge", seconds=1.0, rows=10) for i in range(100))
    text = Page(render_report(an_empty_run(passes=passes))).text
    assert all(f"step {i}" in text for i in range(100))


def test_many_collected_states_are_counted():
    one = PassRecord("a", "b", "merge", tuple(f"s{i}" for i in range(40)))
    assert "s6, s7 and 32 more" in Page(render_report(an_empty_run(passes=(one,)))).text


@pytest.mark.parametrize(
    ("rows", "shown"),
    [(9_999_999, "9,999,999"), (12_345_678, "12.3 million"), (7_200_000_000_000, "7.2 trillion")],
)
def test_large_counts_are_shortened_in_tiles(rows, shown):
    run = an_empty_run(passes=(PassRecord("a", "b", "merge", rows=rows),))
    assert f"Rows {shown}" in Page(render_report(run)).text


def test_write_report_writes_the_page_and_replaces_the_last(tmp_path):
    path = write_report(an_empty_run(name="first"), tmp_path / "new" / "report.html")
    assert path == tmp_path / "new" / "report.html"
    write_report(an_empty_run(name="second"), str(path))
    assert "second" in path.read_text("utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
