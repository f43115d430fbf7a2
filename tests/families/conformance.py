"""The conformance suite: an estimator fitted from blocks, compared with scikit-learn in memory."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from dpipe.blocks.matrix import to_matrix
from dpipe.blocks.table import plain_strings
from dpipe.collect.loads import as_objects
from dpipe.families.expression import apply
from dpipe.families.registry import Fitted, way_of
from dpipe.train.fit import fit
from tests.kernel_cases import (
    SEEN,
    UNEVEN,
    array_blocks,
    assert_same,
    assert_same_array,
    awkward_frame,
    columns_of_one_dimension,
    csr_blocks,
    in_blocks,
    parquet_blocks,
)

NUMBERS = ("plain", "offset", "whole", "small", "flag")
HOLES = ("plain", "holes", "offset", "single_holes")
NULLABLE = ("Whole", "Single")
FULL = ("plain", "offset")
REGULAR = ("plain", "more", "whole", "small", "flag")
SINGLE = ("single", "single_holes")
TEXTS = ("text", "kind", "whole", "flag")
TEXT_HOLES = ("text_holes", "kind_holes")
OBJECTS = ("object_none",)

SERIES = ("series", "parquet series", "pandas series")
OBJECT_SERIES = ("series", "pandas series")
LISTS = ("object array", "list", "bag")
FRAMES = ("frame", "object frame", "parquet", "pandas")
ARRAYS = ("array", "array?", "numpy")
CSR = ("csr", "scipy")


@dataclass(frozen=True)
class Case:
    """One estimator, on some columns, as every kind of input."""

    estimator: Any
    columns: tuple[str, ...]
    inputs: tuple[str, ...] = FRAMES
    y: str | None = None
    weighted: bool = False
    rtol: float = 1e-9
    own_steps: bool = False
    """Whether another solver than scikit-learn's goes to the same minimum, in fewer steps."""
    align: Callable[[Any, Any], None] | None = None
    """Takes our fit and theirs: checks what is free in both, such as signs, and makes it the same in ours."""

    @property
    def params(self):
        for kind in self.inputs:
            # a function by its name: processes that share the tests must agree on what they are called
            named = re.sub(r"<function (\S+) at 0x\w+>", r"\1", str(self.estimator).replace("\n", ""))
            words = [named, "+".join(self.columns), kind]
            words += [self.y] * (self.y is not None) + ["weighted"] * self.weighted
            yield pytest.param(self, kind, id=" ".join(" ".join(words).split()))


def open_column(kind, column, folder):
    """One column as one dimension, and in memory as scikit-learn takes it."""
    if kind == "pandas series":
        return column, column
    if kind == "object array":
        values = column.to_numpy(dtype=object)
        return array_blocks(values), values
    if kind in ("list", "bag"):
        values = column.tolist()
        return (values if kind == "list" else db.from_sequence(values, npartitions=4)), values
    if kind == "series":
        # otherwise Dask would write lists and records down as texts
        with dask.config.set({"dataframe.convert-string": column.dtype != object}):
            blocks = in_blocks(column)
    else:
        assert kind == "parquet series"
        blocks = parquet_blocks(column.to_frame(), folder)[column.name]
    held = plain_strings(blocks.compute().to_frame())
    return blocks, held[column.name]


def open_input(kind, frame, folder, sizes=UNEVEN):
    """The same rows as one kind of input, and in memory as scikit-learn takes them."""
    if kind in SERIES + LISTS:
        return open_column(kind, frame.iloc[:, 0], folder)
    if kind == "frame":
        X = in_blocks(frame, sizes)
        return X, plain_strings(X.compute())
    if kind == "object frame":
        with dask.config.set({"dataframe.convert-string": False}):
            X = dd.from_pandas(
                frame.astype({n: object for n in frame if frame[n].dtype == "str"}), npartitions=5
            )
        return X, X.compute()
    if kind == "parquet":
        X = parquet_blocks(frame, folder)
        return X, plain_strings(X.compute())
    if kind == "pandas":
        return frame, frame
    values = frame.to_numpy()
    if kind == "array":
        return array_blocks(values, sizes), values
    if kind == "array?":
        X = in_blocks(frame, sizes).to_dask_array()
        return X, X.compute(scheduler="sync")
    if kind == "csr":
        X = csr_blocks(np.nan_to_num(values.astype(float)))
        return X, X.compute(scheduler="sync")
    if kind == "scipy":
        X = csr_blocks(np.nan_to_num(values.astype(float))).compute(scheduler="sync")
        return X, X
    assert kind == "numpy"
    return values, values


def targets(kind, like, sizes=UNEVEN):
    """Targets (or None) for the rows of `awkward_frame`, as blocks beside X and in memory."""
    frame = awkward_frame()
    rng = np.random.default_rng(7)
    y = {
        "number": lambda: pd.Series(
            2 * frame["plain"] - frame["whole"] + rng.normal(size=len(frame)), name="y"
        ),
        "two": lambda: pd.DataFrame(
            {"p": frame["plain"] - rng.normal(size=len(frame)), "q": rng.normal(size=len(frame))}
        ),
        "flag": lambda: pd.Series(frame["plain"] > 0, name="y"),
        "label": lambda: pd.Series(rng.integers(0, 3, len(frame)), name="y"),
        "two labels": lambda: pd.DataFrame(rng.integers(0, 3, (len(frame), 2)), columns=["p", "q"]),
        "text": lambda: pd.Series(rng.choice(["no", "yes", "maybe"], len(frame)), name="y"),
        "weight": lambda: pd.Series(rng.random(len(frame)) * 3, name="w"),
    }[kind]()
    if like in ("frame", "parquet"):
        return in_blocks(y, sizes), y
    if like == "object frame":
        return dd.from_pandas(y, npartitions=5), y
    if like == "pandas":
        return y, y
    values = y.to_numpy()
    return (values if like in ("numpy", "scipy") else array_blocks(values, sizes)), values


def check(case, kind, folder, sizes=UNEVEN):
    frame = awkward_frame() if case.columns[0] in awkward_frame() else columns_of_one_dimension()
    X, X_memory = open_input(kind, frame[list(case.columns)], folder, sizes)
    y, y_memory = (None, None) if case.y is None else targets(case.y, kind, sizes)
    w, w_memory = (None, None) if not case.weighted else targets("weight", kind, sizes)
    weights = {} if w is None else {"sample_weight": w_memory}
    expected = clone(case.estimator).fit(X_memory, *([] if y is None else [y_memory]), **weights)
    result = fit(case.estimator, X, y, w)
    compare(case, result, expected, y_memory)
    return result, expected, X_memory


def compare(case, result, expected, y_memory):
    """Compare two fits, but for what the case leaves free; ours is changed there."""
    if hasattr(expected, "dual_gap_"):
        # a difference of two objectives that are nearly equal: of its digits only the size means anything
        assert abs(result.dual_gap_ - expected.dual_gap_) <= 1e-10 * np.var(np.asarray(y_memory))
        result.dual_gap_ = expected.dual_gap_
    if hasattr(expected, "_stop_words_id"):
        # where in memory the estimator's own stop words lie
        assert result._stop_words_id == id(result.stop_words)
        result._stop_words_id = expected._stop_words_id
    if case.own_steps:
        assert np.shape(result.n_iter_) == np.shape(expected.n_iter_)
        assert np.max(result.n_iter_) <= np.max(expected.n_iter_)
        result.n_iter_ = expected.n_iter_
    if case.align is not None:
        case.align(result, expected)
    SEEN.estimators.add(type(case.estimator))
    SEEN.cases += 1
    assert_same(result, expected, case.rtol, type(case.estimator).__name__)


def check_outputs(result, expected, X, rtol):
    """Compare predictions, or transformed blocks by the kernel that a pass uses."""
    for method in ("predict", "predict_proba"):
        if hasattr(expected, method):
            assert_same(getattr(result, method)(X), getattr(expected, method)(X), max(rtol, 1e-7))
    if not hasattr(expected, "transform") or getattr(expected, "solver", None) == "lsqr":
        return  # a discriminant by least squares says by an error that it does not transform
    wanted = expected.transform(X)
    if isinstance(X, list):
        X = as_objects(X) if isinstance(X[0], str | list | dict) else np.array(X)
    made = to_matrix(apply(Fitted(result, way_of(result)), X))
    if hasattr(made, "toarray"):
        assert made.format == "csr"
        made, wanted = made.toarray(), wanted.toarray()
    # what is far from zero loses digits when its mean is taken off, in scikit-learn as well
    assert_same_array(np.asarray(made), np.asarray(wanted), rtol, atol=rtol)


def each(estimators, *choices, **options):
    """Every choice of columns and inputs for the first estimator; one frame and one array for its variants."""
    first, *variants = estimators
    for columns, inputs in choices:
        yield Case(first, columns, inputs, **options)
        few = tuple(kind for kind in ("frame", "array") if kind in inputs)
        for variant in variants:
            yield Case(variant, columns, few, **options)
