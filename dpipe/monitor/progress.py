"""Progress bars in terminals and notebooks: one bar for each pass over the data."""

import sys
import threading
import time
import warnings
from types import TracebackType
from typing import Any, Self, TextIO

_TITLE_LENGTH = 24
# Without tqdm's own rate, of blocks: in 80 columns it would leave no room for the bar.
_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Progress:
    """One progress bar for each pass, safe to advance from any thread.

    Parameters
    ----------
    show : bool, optional
        Whether to show bars. By default they are shown in a terminal and in Jupyter, and not
        where standard error goes to a file or a pipe.
    file : text stream, optional
        Where a terminal's bars go; standard error by default.

    Examples
    --------
    >>> with Progress(show=False) as progress:
    ...     progress.start("Fit StandardScaler", n_blocks=2)
    ...     progress.advance(rows=1000, nbytes=8000)
    ...     progress.advance(rows=500, nbytes=4000)
    """

    def __init__(self, show: bool | None = None, *, file: TextIO | None = None) -> None:
        self._show = show
        self._file = file
        self._lock = threading.RLock()
        self._bar: Any = None
        self._rows = 0
        self._nbytes = 0
        self._started_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, title: str, n_blocks: int | None) -> None:
        """Close the bar of the last pass, if any, and open one for the next.

        Parameters
        ----------
        title : str
            Shown before the bar; long titles are cut.
        n_blocks : int or None
            Blocks in the pass; None where that is not known, which shows a count without a bar.
        """
        with self._lock:
            self.close()
            self._rows = self._nbytes = 0
            self._started_s = time.monotonic()
            stream = self._file or sys.stderr
            if self._show or (self._show is None and (_in_jupyter() or _is_terminal(stream))):
                self._bar = _tqdm()(
                    total=n_blocks, desc=_short(title), bar_format=_FORMAT, file=stream, dynamic_ncols=True
                )

    def advance(self, rows: int, nbytes: int) -> None:
        """Count one more finished block of `rows` rows and `nbytes` decoded bytes."""
        with self._lock:
            self._rows += rows
            self._nbytes += nbytes
            if self._bar is not None:
                self._bar.set_postfix_str(self._rates(), refresh=False)
                self._bar.update(1)

    def close(self) -> None:
        """Leave the bar as it stands; does nothing when there is none."""
        with self._lock:
            bar, self._bar = self._bar, None
            if bar is not None:
                bar.close()

    def _rates(self) -> str:
        """Rows and megabytes per second since the pass began."""
        seconds = max(time.monotonic() - self._started_s, 1e-9)
        return f"{_count(self._rows / seconds)} rows/s, {self._nbytes / 1e6 / seconds:,.0f} MB/s"


def _count(rows: float) -> str:
    """Write a number of rows in a few characters."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rows >= scale:
            return f"{rows / scale:.1f}{letter}"
    return f"{rows:.0f}"


def _short(title: str) -> str:
    """Put a title on one line, and cut it where it would leave no room for the bar."""
    title = " ".join(title.split())
    return title if len(title) <= _TITLE_LENGTH else title[: _TITLE_LENGTH - 1] + "…"


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether a person may be watching `stream`; a process without any (pythonw) has None."""
    return stream is not None and not stream.closed and stream.isatty()


def _in_jupyter() -> bool:
    """Whether this is the kernel of a notebook; IPython in a terminal is not."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


def _tqdm() -> Any:
    """Return the bar for this place; imported late because it looks for widgets, and warns without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    return tqdm
