"""What the tests of the kernel share: awkward data, inputs of every kind, strict comparison of fits."""

import functools
import math
from dataclasses import dataclass, field

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import BaseEstimator

from dpipe.collect.parquet import read_parquet

#: Rows of each block: uneven, one row, none at all at the start, in the middle and at the end.
UNEVEN = (0, 17, 1, 0, 42, 0)
N_ROWS = sum(UNEVEN)


@functools.lru_cache
def awkward_frame(n=N_ROWS, seed=0):
    """A frame with a column of every kind that scikit-learn takes; no column is constant."""
    rng = np.random.default_rng(seed)

    def gaps(values, missing, share=0.2):
        values = pd.Series(values)
        return values.mask(pd.Series(rng.random(len(values)) < share), missing)

    words = np.array(["red", "green", "blue", "pink"])
    frame = pd.DataFrame(
        {
            "plain": rng.normal(size=n),
            "more": rng.normal(2.0, 3.0, size=n),
            "offset": rng.normal(1e6, 1.0, size=n),
            "holes": gaps(rng.normal(3.0, 2.0, size=n), np.nan),
            "single": rng.normal(size=n).astype(np.float32),
            "single_more": rng.normal(size=n).astype(np.float32),
            "single_holes": gaps(rng.normal(5.0, 1.0, size=n).astype(np.float32), np.nan).astype(np.float32),
            "whole": rng.integers(-5, 50, size=n),
            "small": rng.integers(0, 4, size=n).astype(np.int8),
            "flag": rng.random(n) < 0.3,
            "Whole": pd.array(gaps(rng.integers(0, 9, size=n).astype(float), np.nan), dtype="Float64").astype(
                "Int64"
            ),
            "Single": pd.array(gaps(rng.normal(size=n), np.nan), dtype="Float32"),
            "text": pd.Series(rng.choice(words, n), dtype="str"),
            "text_holes": gaps(rng.choice(words, n), None).astype("str"),
            "object_none": gaps(rng.choice(words, n), None).astype(object).where(lambda s: s.notna(), None),
            "kind": pd.Categorical(rng.choice(words[:3], n), categories=["red", "never", "green", "blue"]),
            "kind_holes": pd.Categorical(gaps(rng.choice(words[:3], n), None)),
            "positive": np.abs(rng.normal(size=n)),
            "whole_positive": rng.integers(1, 5, size=n),
            "positive_more": rng.exponential(2.0, size=n),
            "day": pd.Timestamp("2024-02-28") + pd.to_timedelta(rng.integers(0, 4, size=n), unit="D"),
        }
    )
    return frame


@functools.lru_cache
def columns_of_one_dimension(n=N_ROWS, seed=1):
    """A frame with columns of documents, records, sets of labels and labels."""
    rng = np.random.default_rng(seed)
    words = np.array(["apple", "Banana", "cherry", "date", "Élan", "fig", "the", "and", "x1", "two-three"])

    def some():
        return rng.choice(words, rng.integers(0, 7)).tolist()

    def record():
        return {"colour": str(rng.choice(words)), "size": float(rng.random()), "also": some()[:2]}

    records = [{k: v for k, v in record().items() if rng.random() < 0.7} for _ in range(n)]
    columns = {
        "document": [" ".join(some()) for _ in range(n)],
        "tokens": [some() for _ in range(n)],
        "pairs": [[(word, i + 1.0) for i, word in enumerate(some())] for _ in range(n)],
        "record": records,
        "plain_record": [{k: v for k, v in found.items() if k != "also"} for found in records],
        "numbers": [rng.integers(0, 9, rng.integers(0, 4)).tolist() for _ in range(n)],
    }
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    return frame.astype({"document": "str"})


def in_blocks(frame, sizes=UNEVEN):
    """A Dask frame whose partitions have the given numbers of rows, with unknown divisions."""
    ends = np.cumsum(sizes)
    assert ends[-1] == len(frame)
    parts = [frame.iloc[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    return dd.from_map(_nth(parts), range(len(parts)), meta=frame.iloc[:0])


def _nth(parts):
    return functools.partial(_take, parts)


def _take(parts, i):
    return parts[i]


def array_blocks(values, sizes=UNEVEN):
    """A Dask array in row blocks of the given sizes."""
    return da.from_array(values, chunks=(sizes, *((n,) for n in values.shape[1:])))


def csr_blocks(values, sizes=UNEVEN):
    """A Dask array whose blocks are CSR matrices."""
    return array_blocks(values, sizes).map_blocks(sp.csr_matrix, dtype=values.dtype)


def parquet_blocks(frame, folder, sizes=UNEVEN):
    """A Parquet source, one file a block."""
    ends = np.cumsum(sizes)
    for i, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        frame.iloc[end - size : end].to_parquet(folder / f"{i:03d}.parquet", index=False)
    return read_parquet(folder)


@dataclass
class Seen:
    """What the comparisons of a session came to; printed after its tests."""

    estimators: set = field(default_factory=set)
    cases: int = 0
    worst: float = 0.0
    worst_of: str = ""

    def note(self, ours, theirs, path):
        """Keep the largest deviation of double precision, relative to the largest entry."""
        scale = np.nanmax(np.abs(theirs), initial=0.0) if theirs.size else 0.0
        if theirs.dtype == np.float64 and np.isfinite(scale) and scale > 0:
            deviation = float(np.nanmax(np.abs(ours - theirs), initial=0.0) / scale)
            if deviation > self.worst:
                self.worst, self.worst_of = deviation, path


SEEN = Seen()


def assert_same(ours, theirs, rtol=1e-9, path="result"):
    """Compare two fitted estimators, or two attributes of them, with everything they hold."""
    assert type(ours) is type(theirs), f"{path}: {type(ours)} instead of {type(theirs)}"
    if isinstance(theirs, BaseEstimator):
        missing, added = set(vars(theirs)) - set(vars(ours)), set(vars(ours)) - set(vars(theirs))
        assert not missing, f"{path} lacks {sorted(missing)}"
        assert not added, f"{path} also has {sorted(added)}"
        for name, value in vars(theirs).items():
            assert_same(vars(ours)[name], value, rtol, f"{path}.{name}")
    elif isinstance(theirs, dict):
        assert list(map(repr, ours)) == list(map(repr, theirs)), path
        for (key, mine), value in zip(ours.items(), theirs.values(), strict=True):
            assert_same(mine, value, rtol, f"{path}[{key!r}]")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), f"{path}: {ours} instead of {theirs}"
        for i, (mine, value) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, value, rtol, f"{path}[{i}]")
    elif isinstance(theirs, np.ndarray):
        assert_same_array(ours, theirs, rtol, path)
    elif isinstance(theirs, pd.DataFrame):
        pd.testing.assert_frame_equal(ours, theirs, rtol=rtol)
    elif sp.issparse(theirs):
        assert ours.format == theirs.format, path
        assert_same_array(ours.toarray(), theirs.toarray(), rtol, path)
    elif isinstance(theirs, float | np.floating):
        assert math.isclose(ours, theirs, rel_tol=rtol, abs_tol=1e-300) or (
            ours != ours and theirs != theirs
        ), f"{path}: {ours!r} instead of {theirs!r}"
    elif isinstance(theirs, pd.api.extensions.ExtensionDtype | np.dtype):
        assert ours == theirs, path
    elif callable(theirs) or isinstance(theirs, int | str | slice | type(None) | np.generic):
        assert _callable_key(ours) == _callable_key(theirs), f"{path}: {ours!r} instead of {theirs!r}"
    else:
        state, expected = (getattr(v, "__dict__", None) or v.__reduce__()[1:] for v in (ours, theirs))
        assert_same(state, expected, rtol, path)


def _callable_key(value):
    """Callables that are copied compare by what they hold."""
    state = getattr(value, "__dict__", None)
    if callable(value) and state and not isinstance(value, type):
        return type(value), {name: repr(_callable_key(held)) for name, held in state.items()}
    return type(value) if type(value).__module__.startswith("sklearn._loss") else value


def assert_same_array(ours, theirs, rtol, path="result", atol=0.0):
    """Compare dtype, shape and values; NaN equals NaN, None equals None only."""
    assert ours.dtype == theirs.dtype, f"{path}: dtype {ours.dtype} instead of {theirs.dtype}"
    assert ours.shape == theirs.shape, f"{path}: shape {ours.shape} instead of {theirs.shape}"
    if theirs.dtype.kind == "O":
        for i, (mine, value) in enumerate(zip(ours.ravel(), theirs.ravel(), strict=True)):
            assert type(mine) is type(value), f"{path}[{i}]: {mine!r} instead of {value!r}"
            if isinstance(value, np.ndarray):
                assert_same_array(mine, value, rtol, f"{path}[{i}]", atol)
                continue
            same = mine == value or (mine != mine and value != value)
            if isinstance(value, float):
                same = same or math.isclose(mine, value, rel_tol=rtol, abs_tol=atol)
            assert same, f"{path}[{i}]: {mine!r} instead of {value!r}"
    elif theirs.dtype.kind in "fc":
        scale = np.nanmax(np.abs(theirs), initial=0.0) if theirs.size else 0.0
        rounding = (
            0.0
            if rtol == 0
            else float(np.finfo(theirs.dtype).eps) * 4 * (scale if np.isfinite(scale) else 0.0)
        )
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=max(rounding, atol), err_msg=path)
        SEEN.note(ours, theirs, path)
    else:
        np.testing.assert_array_equal(ours, theirs, err_msg=path)
