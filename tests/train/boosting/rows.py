"""Made-up rows, with gaps, in blocks of several lengths; and what tells two models apart."""

from itertools import pairwise

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd

N_ROWS = 4000
CHUNKS = (1500, 1, 0, 1499, 1000)


def values():
    """Numbers with gaps."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_ROWS, 6))
    X[rng.random(X.shape) < 0.05] = np.nan
    return X


def two_classes():
    """Labels 0 and 1 for `values`."""
    X = np.nan_to_num(values())
    return (X[:, 0] + X[:, 1] * X[:, 2] + np.random.default_rng(1).normal(size=N_ROWS) > 0).astype(int)


def three_classes():
    """Labels 0, 1 and 2 for `values`."""
    return np.clip(np.round(np.nan_to_num(values())[:, 1]), -1, 1).astype(int) + 1


def numbers():
    """Targets of a regression for `values`."""
    return np.nan_to_num(values())[:, 3] + np.random.default_rng(2).normal(size=N_ROWS)


def weights():
    """Weights for `values`."""
    return np.random.default_rng(3).random(N_ROWS)


def groups():
    """Groups of ten rows and of one, which no block respects."""
    return np.repeat(np.arange(N_ROWS), 1 + 9 * (np.arange(N_ROWS) % 2))[:N_ROWS]


def lazy(array):
    """The same in blocks, one of a single row and one of none."""
    return da.from_array(array, chunks=(CHUNKS, *((n,) for n in array.shape[1:])))


def frame():
    """Columns of numbers, integers, truth values and categories, with a target."""
    X = values()
    rng = np.random.default_rng(4)
    made = pd.DataFrame(X[:, :3], columns=list("abc"))
    made["n"] = rng.integers(0, 9, N_ROWS)
    made["yes"] = X[:, 4] > 0
    made["kind"] = pd.Series(rng.choice(list("zyxwv"), N_ROWS)).mask(rng.random(N_ROWS) < 0.05)
    made["kind"] = made["kind"].astype("category")
    made["y"] = ((X[:, 0] > 0) ^ made["kind"].isin(["x", "v"])).astype(int)
    return made


def partitions(made, lengths=CHUNKS):
    """The same in partitions."""
    ends = np.cumsum((0, *lengths))
    parts = [made.iloc[begin:end] for begin, end in pairwise(ends)]
    return dd.from_map(lambda part: part, parts, meta=made.iloc[:0])


def trees(model):
    """The trees of a model: their splits, gains and leaves, and its intercept."""
    if hasattr(model, "get_booster"):
        return bytes(model.get_booster().save_raw("ubj"))
    text = model.booster_.model_to_string()
    # among the parameters are those that keep the order of additions
    return text[: text.index("\nparameters:")]
