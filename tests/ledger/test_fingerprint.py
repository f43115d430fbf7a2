"""Equal fingerprints for what computes the same, in any process; others for all else."""

import functools
import os
import random
import re
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass, field

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from dask.task_spec import Task, TaskRef
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from dpipe.ledger.fingerprint import Fingerprinter, Unknowable


def of(value):
    return Fingerprinter().of(value)


@dataclass(frozen=True)
class Reader:
    path: str
    secret: str = field(default="", compare=False)


DIFFERENT = [
    None,
    0,
    0.0,
    -0.0,
    False,
    "",
    b"",
    "0",
    [],
    (),
    {},
    set(),
    [0, 1],
    [1, 0],
    {"a": 1},
    {"a": 2},
    {1},
    np.zeros(3),
    np.zeros(3, dtype=int),
    np.zeros((3, 1)),
    np.array(["a", None], dtype=object),
    np.float32(0),
    np.dtype("f4"),
    pd.DataFrame({"a": [1]}),
    pd.DataFrame({"b": [1]}),
    pd.Series([1.0]),
    pd.Index([1]),
    pd.Timestamp("2024-01-01"),
    pa.schema([("a", pa.int8())]),
    pa.table({"a": [1]}),
    sp.csr_matrix(np.eye(2)),
    sp.csc_matrix(np.eye(2)),
    np.random.RandomState(0),
    np.random.RandomState(1),
    np.random.default_rng(0),
    re.compile("a"),
    Reader("a"),
    Reader("b"),
    len,
    np.abs,
    np.mean,
    StandardScaler,
    StandardScaler(),
    Ridge(1.0),
    Ridge(2.0),
    Ridge().fit([[0.0], [1.0]], [0, 1]),
    make_pipeline(StandardScaler(), Ridge()),
    functools.partial(round, ndigits=1),
    functools.partial(round, ndigits=2),
    "abc".upper,
    slice(1, 2),
    range(3),
    os.path,
]


def test_different_values_have_different_fingerprints():
    found = [of(value) for value in DIFFERENT]
    assert len(set(found)) == len(found)
    assert [of(value) for value in DIFFERENT] == found


PROGRAM = """
import functools, numpy as np, pandas as pd
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from dpipe.ledger.fingerprint import Fingerprinter
import dask.dataframe as dd
from dpipe.collect.source import open_source
{before}
def inner(x):
    {inner}
def outer(x, k=2):
    names = {{"b", "a", "c"}}
    return inner(x) * k if "a" in names else [inner(i) for i in x]
class Mine:
    def __init__(self):
        self.scale = {scale}
    def apply(self, x):
        return outer(x) * self.scale
frame = dd.from_pandas(pd.DataFrame({{"a": range(6)}}), npartitions=2).map_partitions(outer)
(_, loads) = open_source(frame).loads(None)
taker = Fingerprinter()
known = {{}}
for key, task in loads[1].tasks.items():
    known[key] = taker.of_task(task, known)
in_model = taker.of(make_pipeline(FunctionTransformer(outer)))
print(taker.of(outer), taker.of(Mine().apply), in_model, known[loads[1].output])
"""


def fingerprints(before="", inner="return x + 1", scale="1.5", seed="0"):
    program = PROGRAM.format(before=before, inner=inner, scale=scale)
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    return done.stdout.split()


def test_another_process_finds_the_same_and_a_change_deep_inside_counts():
    first = fingerprints()
    assert fingerprints(seed="1", before="x = 17  # not used") == first
    changed = fingerprints(inner="return x + 2")
    assert not set(changed) & set(first)
    scaled = fingerprints(scale="2.5")
    assert [a == b for a, b in zip(scaled, first, strict=True)] == [True, False, True, True]


def test_names_of_keys_do_not_count():
    taker = Fingerprinter()
    a = Task("one", np.add, TaskRef("x"), 1)
    b = Task("two", np.add, TaskRef("y"), 1)
    assert taker.of_task(a, {"x": "same"}) == taker.of_task(b, {"y": "same"})
    assert taker.of_task(a, {"x": "same"}) != taker.of_task(b, {"y": "other"})


@pytest.mark.parametrize(
    "make",
    [
        lambda: da.from_array(np.arange(6), chunks=3) + 1,
        lambda: dd.from_pandas(pd.DataFrame({"a": range(6)}), npartitions=2).assign(b=1).query("a > 1"),
    ],
)
def test_fused_graphs_are_looked_into(make):
    def blocks():
        taker, graph = (
            Fingerprinter(),
            dict(make().optimize(fuse=True).__dask_graph__())
            if hasattr(make(), "columns")
            else dict(make().__dask_graph__()),
        )
        known = {}
        for key, task in graph.items():
            if isinstance(task, Task):
                known[key] = taker.of_task(task, known)
        return sorted(known.values())

    found = blocks()
    assert found == blocks()
    assert len(set(found)) == len(found)


def test_a_text_that_names_a_file_stands_for_its_content(tmp_path):
    path = tmp_path / "data.csv"
    before = of(str(path))
    path.write_text("1")
    there = of(str(path))
    path.write_text("12")
    assert len({before, there, of(str(path)), of(path)}) == 4


def test_what_is_not_compared_does_not_count():
    assert of(Reader("a", "password")) == of(Reader("a"))


def test_circles_end():
    circle = [1]
    circle.append(circle)
    other = [1]
    other.append(other)
    assert of(circle) == of(other)

    def calls_itself(n):
        return n and calls_itself(n - 1)

    assert of(calls_itself)


@pytest.mark.parametrize("value", [(i for i in ()), [(i for i in ())], threading.Lock()])
def test_what_cannot_be_looked_into_has_no_fingerprint(value):
    with pytest.raises(Unknowable, match="cannot be looked into"):
        of(value)


def test_functions_that_were_met_are_told():
    taker = Fingerprinter()
    taker.of(FunctionTransformer(DIFFERENT_FUNCTION))
    assert f"{__name__}.used_elsewhere" in taker.functions


def used_elsewhere(x):
    return x + random.seed(0)


DIFFERENT_FUNCTION = functools.partial(used_elsewhere)
