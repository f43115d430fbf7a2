"""Splits by the hash of a key."""

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from dpipe.collect.split import split
from dpipe.errors import InputError
from tests.helpers import raise_if_computes


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"key": rng.integers(0, 300, 4000), "x": rng.normal(size=4000), "s": ["a", "b"] * 2000}
    )


@pytest.mark.parametrize("npartitions", [1, 3, 40])
def test_split_gives_every_row_one_side_whatever_the_blocks(frame, npartitions):
    whole = split(dd.from_pandas(frame, npartitions=1), by="key")
    with raise_if_computes():
        train, test = split(dd.from_pandas(frame, npartitions=npartitions), by="key")
    train, test = train.compute(), test.compute()
    assert len(train) + len(test) == len(frame)
    assert not set(train["key"]) & set(test["key"])
    pd.testing.assert_frame_equal(train, whole[0].compute())
    pd.testing.assert_frame_equal(test, whole[1].compute())


def test_split_without_a_key_takes_whole_rows_and_keeps_the_share(frame):
    train, test = split(dd.from_pandas(frame, npartitions=5), test_size=0.25)
    assert len(test) / len(frame) == pytest.approx(0.25, abs=0.03)
    other, _ = split(dd.from_pandas(frame, npartitions=5), test_size=0.25, random_state=1)
    assert not train.compute().equals(other.compute())


def test_appended_rows_do_not_move_others(frame):
    more = pd.concat([frame, frame.assign(key=frame["key"] + 1000)], ignore_index=True)
    _, test = split(dd.from_pandas(frame, npartitions=2), by="key")
    _, longer = split(dd.from_pandas(more, npartitions=7), by="key")
    assert set(test.compute()["key"]) <= set(longer.compute()["key"])


def test_split_of_empty_blocks(frame):
    whole = dd.from_pandas(frame, npartitions=4)
    train, test = split(whole[whole["x"] > 100], by="key")
    assert len(train) == len(test) == 0
    assert list(train.columns) == list(frame.columns)


@pytest.mark.parametrize("test_size", [0, 1, -0.5, "half", True])
def test_split_refuses_a_share_out_of_range(frame, test_size):
    with pytest.raises(InputError, match="test_size must lie between 0 and 1"):
        split(dd.from_pandas(frame, npartitions=2), test_size=test_size)


def test_split_names_a_missing_key(frame):
    with pytest.raises(InputError, match="no column 'kee' to split by.*'key'"):
        split(dd.from_pandas(frame, npartitions=2), by="kee")
