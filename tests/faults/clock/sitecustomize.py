"""Puts the clock of a process into the hands of a test: what stands in the file CLOCK, in seconds, is added.

Python imports a module of this name before all others, so that whoever holds `time.time` holds this one.
"""

import os
import time

_now, _path = time.time, os.environ["CLOCK"]


def _shifted() -> float:
    with open(_path, encoding="ascii") as file:
        return _now() + float(file.read() or 0)


time.time = _shifted
time.time_ns = lambda: int(_shifted() * 1e9)
