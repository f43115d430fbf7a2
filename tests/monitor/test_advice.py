"""Each rule of advice speaks when its figures say so, and is silent otherwise."""

import re

import pytest

from dpipe.monitor.advice import advise
from dpipe.monitor.record import MemoryRecord, PassRecord, RunRecord, StageRecord

GIB = 2**30


def a_run(**changes):
    fields = {"name": "tips", "started": "", "seconds": 60.0, "finished": True, "workers": 2, "threads": 2}
    return RunRecord(**fields | changes)


def a_pass(**changes):
    return PassRecord(
        **{"stage": "tips", "title": "Fit", "way": "merge", "n_blocks": 50, "seconds": 5.0} | changes
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"finished": False}, "figures stop where it stopped"),
        ({"memory": MemoryRecord(GIB, measured_nbytes=2 * GIB)}, "2.00 GiB went over the budget of 1.00 GiB"),
        (
            {"memory": MemoryRecord(10 * GIB, measured_nbytes=GIB), "passes": (a_pass(),)},
            "used 10% of the budget",
        ),
        (
            {"passes": (a_pass(projected_nbytes=GIB, measured_nbytes=2 * GIB),) * 3},
            r"Pass 1 took 2.00 GiB, and 1.00 GiB were projected \(and 2 more like it\)",
        ),
        (
            {"passes": (a_pass(), a_pass(way="stream", seconds=15.0))},
            "Ordered passes took 75% of the reading",
        ),
        ({"passes": (a_pass(nbytes=GIB),) * 7}, "decoded about 7 times, 7.00 GiB in all"),
        ({"passes": (a_pass(n_blocks=1),)}, "Pass 1 had 1 block for 4 threads, so"),
        (
            {"passes": (a_pass(),), "stages": (StageRecord("a", "train", 100.0),)},
            "1 min 35 s of 1 min 40 s were spent outside passes",
        ),
        (
            {"stages": (StageRecord("rides", "collect", 1.0, 200, 199),)},
            r"Stage rides left out 1 of 200 rows \(0.50%\)",
        ),
    ],
)
def test_each_rule_speaks_alone(changes, said):
    (line,) = advise(a_run(**changes))
    assert re.search(said, line), line


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"memory": MemoryRecord(GIB, measured_nbytes=GIB // 2), "passes": (a_pass(),)},
        {
            "memory": MemoryRecord(10 * GIB, measured_nbytes=GIB),
            "passes": (a_pass(n_blocks=4),),
        },  # no more to gain
        {"passes": (a_pass(projected_nbytes=100, measured_nbytes=110),)},
        {"passes": (a_pass(n_blocks=1, seconds=0.1),)},
        {"passes": (a_pass(way="stream", n_blocks=1, seconds=0.1),)},
        {"stages": (StageRecord("split", "split", 1.0, 100, 80),)},
        {"metrics": {"r2": float("nan")}, "references": {"r2": 0.0}},
        {"references": {"r2": 0.0}},
    ],
)
def test_nothing_is_said_without_cause(changes):
    assert advise(a_run(**changes)) == ()


def test_the_most_pressing_comes_first():
    lines = advise(
        a_run(
            finished=False,
            memory=MemoryRecord(GIB, measured_nbytes=2 * GIB),
            passes=(a_pass(way="stream"),),
        )
    )
    assert [line.split()[0] for line in lines] == ["This", "The", "Ordered"]
