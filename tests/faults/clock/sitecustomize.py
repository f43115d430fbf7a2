"""Puts the clock of a process into the hands of a test: what stands in the file CLOCK, in seconds, is added.

Python imports a module of this name before all others, so that whoever holds `time.time` holds this one.
"""

import os
import time

_now = time.time


def _shifted() -> float:
    with open(os.environ["CLOCK"], encoding="ascii") as file:
        return _now() + float(file.read() or 0)


if "CLOCK" in os.environ:
    time.time = _shifted
    time.time_ns = lambda: int(_shifted() * 1e9)
