"""Watch how much memory a run takes, from a thread beside it."""

import contextlib
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import psutil

from dpipe.errors import InputError
from dpipe.monitor.record import MemoryRecord

# Finding the children reads all of /proc, which is slow on a busy login node.
_SECONDS_BETWEEN_SEARCHES = 2.0


class MemorySampler:
    """Sample the resident memory of this process and its workers while a block of code runs.

    Parameters
    ----------
    pids : iterable of int, optional
        Worker processes on this machine to count beside this process. By default all its
        child processes, those that start later too.
    interval_s : float, default=0.25
        Seconds between samples, at first.
    max_samples : int, default=2000
        When there are as many, neighbours are joined and the interval doubles, so that a run of
        days costs no more memory than one of minutes.

    Notes
    -----
    Resident memory counts pages that processes share once for each of them; the sum is at
    most too large. What is allocated and freed between two samples is not seen.

    Examples
    --------
    >>> with MemorySampler() as sampler:
    ...     block = bytearray(1000)
    >>> sampler.peak_nbytes >= max(nbytes for _, nbytes in sampler.samples) > 0
    True
    """

    def __init__(
        self, pids: Iterable[int] | None = None, *, interval_s: float = 0.25, max_samples: int = 2000
    ) -> None:
        if interval_s <= 0 or max_samples < 2:
            raise InputError(
                f"interval_s is {interval_s} and max_samples {max_samples}; use more than 0, and 2 or more."
            )
        self._pids = None if pids is None else frozenset(pids)
        self._interval_s = interval_s
        self._max_samples = max_samples
        self._samples: list[tuple[float, int]] = []
        self._peak_nbytes = 0
        self._processes: list[psutil.Process] = []
        self._searched_s = -_SECONDS_BETWEEN_SEARCHES
        self._started_s = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dpipe-memory", daemon=True)

    def __enter__(self) -> Self:
        self._started_s = time.monotonic()
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    @property
    def peak_nbytes(self) -> int:
        """The largest sample so far, in bytes."""
        with self._lock:
            return self._peak_nbytes

    @property
    def samples(self) -> tuple[tuple[float, int], ...]:
        """Seconds since the start, and bytes, so far."""
        with self._lock:
            return tuple(self._samples)

    def memory(
        self, *, budget_nbytes: int | None = None, reserved_nbytes: int = 0, projected_nbytes: int = 0
    ) -> MemoryRecord:
        """Return what was seen so far, beside what was planned, as a record."""
        return MemoryRecord(budget_nbytes, reserved_nbytes, projected_nbytes, self.peak_nbytes, self.samples)

    def _watch(self) -> None:
        """Sample until told to stop."""
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        """Take one sample, and thin them out when there are too many."""
        now_s = time.monotonic() - self._started_s
        if now_s - self._searched_s >= _SECONDS_BETWEEN_SEARCHES:
            self._processes, self._searched_s = self._search(), now_s
        nbytes = sum(map(_resident_nbytes, self._processes))
        with self._lock:
            self._peak_nbytes = max(self._peak_nbytes, nbytes)
            self._samples.append((round(now_s, 3), nbytes))
            if len(self._samples) >= self._max_samples:
                # The larger of two neighbours stays, so that no peak is lost from the picture.
                pairs = zip(self._samples[::2], self._samples[1::2], strict=False)
                self._samples = [max(pair, key=lambda sample: sample[1]) for pair in pairs]
                self._interval_s *= 2

    def _search(self) -> list[psutil.Process]:
        """Find the processes to count: this one first, and each once."""
        me = psutil.Process()
        if self._pids is None:
            return [me, *me.children(recursive=True)]
        found = [me]
        for pid in sorted(self._pids - {me.pid}):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended already
                found.append(psutil.Process(pid))
        return found


def _resident_nbytes(process: psutil.Process) -> int:
    """Resident bytes of `process`, and 0 once it has ended."""
    try:
        return int(process.memory_info().rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # ZombieProcess is a NoSuchProcess
        return 0
