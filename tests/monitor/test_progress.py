"""Progress bars: shown to people only, right from any thread."""

import io
import sys
import threading
import types

import pytest

from dpipe.monitor.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def carry_out(progress, title="Fit", n_blocks=2):
    with progress:
        progress.start(title, n_blocks)
        for _ in range(n_blocks or 2):
            progress.advance(rows=1000, nbytes=8_000_000)


def test_a_terminal_sees_the_bar_and_its_rates():
    stream = Terminal()
    carry_out(Progress(file=stream))
    last = stream.getvalue().split("\r")[-1]
    assert last.startswith("Fit: 100%")
    assert "2/2" in last
    assert "rows/s" in last
    assert "MB/s" in last
    assert last.endswith("\n")


@pytest.mark.parametrize(
    ("show", "stream", "shown"),
    [
        (None, io.StringIO, False),
        (None, Terminal, True),
        (True, io.StringIO, True),
        (False, Terminal, False),
    ],
)
def test_who_sees_it(show, stream, shown):
    file = stream()
    carry_out(Progress(show, file=file))
    assert bool(file.getvalue()) is shown


def test_standard_error_is_where_it_goes(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    carry_out(Progress())
    assert "Fit" in sys.stderr.getvalue()


def test_no_standard_error_at_all_is_silent(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stderr", None)
    carry_out(Progress())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("config", "shown"), [({"IPKernelApp": {}}, True), ({}, False)])
def test_jupyter_is_known_by_its_kernel(monkeypatch, config, shown):
    ipython = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(config=config))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    file = io.StringIO()
    carry_out(Progress(file=file))
    assert bool(file.getvalue()) is shown


def test_one_bar_for_each_pass():
    stream = Terminal()
    with Progress(file=stream) as progress:
        progress.start("First", 3)
        progress.advance(1, 1)
        progress.start("Second", None)
        progress.advance(1, 1)
    first, second = [line.split("\r")[-1] for line in stream.getvalue().rstrip("\n").split("\n")]
    assert first.startswith("First:  33%")
    assert "1/3 [" in first
    assert second.startswith("Second: ")
    assert "1/? [" in second


def test_advance_and_close_do_nothing_without_a_bar():
    file = io.StringIO()
    progress = Progress(True, file=file)
    progress.advance(1, 1)
    progress.close()
    assert file.getvalue() == ""
    progress.start("Fit", 1)
    progress.close()
    progress.close()


def test_long_titles_and_line_breaks_stay_on_one_line():
    stream = Terminal()
    carry_out(Progress(file=stream), title="a\nb " + "x" * 200)
    assert "a b xxx" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1
    assert "x" * 24 not in stream.getvalue()


def test_many_threads_lose_no_block():
    stream = Terminal()
    progress = Progress(file=stream)
    progress.start("Fit", 800)
    threads = [
        threading.Thread(target=lambda: [progress.advance(1, 10) for _ in range(100)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress._rows == 800
    progress.close()
    assert "800/800" in stream.getvalue().split("\r")[-1]
