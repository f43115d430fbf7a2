"""What the tests of the kernel share: awkward data, inputs of every kind, strict comparison of fits."""

import functools

import numpy as np
import pandas as pd

from dpipe import testing
from dpipe.collect.parquet import read_parquet
from dpipe.testing import Seen

#: Rows of each block: uneven, one row, none at all at the start, in the middle and at the end.
UNEVEN = (0, 17, 1, 0, 42, 0)
N_ROWS = sum(UNEVEN)


def in_blocks(frame, sizes=UNEVEN):
    """A Dask frame in blocks of these sizes."""
    return testing.in_blocks(frame, sizes)


def array_blocks(values, sizes=UNEVEN):
    """A Dask array in blocks of these sizes."""
    return testing.array_blocks(values, sizes)


def csr_blocks(values, sizes=UNEVEN):
    """A Dask array of CSR matrices of these sizes."""
    return testing.csr_blocks(values, sizes)


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


def parquet_blocks(frame, folder, sizes=UNEVEN):
    """A Parquet source, one file a block."""
    ends = np.cumsum(sizes)
    for i, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        frame.iloc[end - size : end].to_parquet(folder / f"{i:03d}.parquet", index=False)
    return read_parquet(folder)


SEEN = Seen()


def assert_same(ours, theirs, rtol=1e-9, path="result"):
    """Compare, and keep the largest deviation of the session."""
    testing.assert_same(ours, theirs, rtol, path, seen=SEEN)


def assert_same_array(ours, theirs, rtol, path="result", atol=0.0):
    """Compare two arrays, and keep the largest deviation of the session."""
    testing.assert_same_array(ours, theirs, rtol, path, atol, seen=SEEN)
