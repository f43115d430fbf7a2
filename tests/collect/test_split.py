"""Splits by the hash of a key."""

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from dpipe.collect.leaks import check_leaks
from dpipe.collect.split import folds, hashes, split
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


KEYS = {
    "text": lambda n: pd.Series([f"key {i % 97}" for i in range(n)], dtype="str"),
    "number": lambda n: pd.Series(np.arange(n) % 97),
    "day": lambda n: pd.Series(pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(n) % 97, unit="D")),
}


def alike(kind, values):
    """The same keys, stored in other ways."""
    if kind == "text":
        yield from (values.astype(object), values.astype("category"), values.astype("string[pyarrow]"))
        yield values.astype(pd.CategoricalDtype(sorted(set(values), reverse=True)))
    elif kind == "number":
        yield from (
            values.astype(float),
            values.astype("Int64"),
            values.astype(np.int16),
            values.astype("category"),
        )
    else:
        yield from (values.dt.as_unit("ns"), values.astype("datetime64[s]"), values.dt.tz_localize("UTC"))


@pytest.mark.parametrize("kind", KEYS)
def test_the_side_of_a_key_does_not_depend_on_how_it_is_stored(kind):
    values = KEYS[kind](500)
    wanted = hashes(values.to_frame("k"))
    assert len(np.unique(wanted)) == 97
    for other in alike(kind, values):
        np.testing.assert_array_equal(hashes(other.to_frame("k")), wanted, err_msg=str(other.dtype))


def test_missing_keys_are_one_key_however_they_are_marked():
    for values in (["a", None], ["a", np.nan], pd.array(["a", pd.NA], dtype="string")):
        assert hashes(pd.DataFrame({"k": values}))[1] == hashes(pd.DataFrame({"k": ["b", None]}))[1]
    first, second = hashes(pd.DataFrame({"k": [0.0, -0.0]}))
    assert first == second


@pytest.mark.parametrize("kind", KEYS)
def test_splits_of_other_seeds_are_independent(kind):
    keys = pd.DataFrame({"k": pd.concat([KEYS[kind](97)])})
    sides = np.array([hashes(keys, seed) < np.uint64(2**63) for seed in range(40)])
    assert 0.4 < sides.mean() < 0.6
    shared = np.corrcoef(sides)[np.triu_indices(40, 1)]
    assert abs(shared.mean()) < 0.05


def test_a_nested_split_keeps_its_share(frame):
    train, _ = split(dd.from_pandas(frame, npartitions=3), by="key")
    inner, validation = split(train, test_size=0.25, by="key", random_state=1)
    n = validation["key"].nunique().compute() / train["key"].nunique().compute()
    assert 0.15 < n < 0.35
    assert len(inner) + len(validation) == len(train)


@pytest.mark.parametrize("npartitions", [1, 7])
def test_stratified_sides_keep_the_share_of_each_class(npartitions):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"id": np.arange(30_000), "c": rng.choice(["a", "b", None], 30_000, p=[0.9, 0.09, 0.01])}
    )
    with raise_if_computes():
        train, test = split(
            dd.from_pandas(rows, npartitions=npartitions), by="id", stratify="c", test_size=0.3
        )
    shares = test.compute()["c"].value_counts(dropna=False) / rows["c"].value_counts(dropna=False)
    np.testing.assert_allclose(shares, 0.3, atol=0.005)
    assert len(train) + len(test) == len(rows)


def test_sides_by_time_leave_a_gap_and_missing_times_out():
    times = pd.Series(pd.date_range("2024-01-01", periods=10, freq="D")).mask(pd.Series(range(10)) == 3)
    rows = dd.from_pandas(pd.DataFrame({"t": times}), npartitions=3)
    train, test = split(rows, time="t", test_from="2024-01-08", gap="2D")
    assert train.compute()["t"].dt.day.tolist() == [1, 2, 3, 5]
    assert test.compute()["t"].dt.day.tolist() == [8, 9, 10]


@pytest.mark.parametrize("options", [{}, {"by": "key"}, {"by": "key", "stratify": "parity"}])
def test_folds_test_each_row_once(frame, options):
    rows = dd.from_pandas(frame.assign(row=range(len(frame)), parity=frame["key"] % 2), npartitions=4)
    seen = []
    for train, test in folds(rows, 4, **options):
        train, test = train.compute(), test.compute()
        assert len(train) + len(test) == len(frame)
        assert 0.1 < len(test) / len(frame) < 0.4
        if options:
            assert not set(train["key"]) & set(test["key"])
        seen += test["row"].tolist()
    assert sorted(seen) == list(range(len(frame)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"time": "key"}, "needs test_from"),
        ({"time": "s", "test_from": 1}, "must hold times or numbers"),
        ({"time": "key", "test_from": "soon"}, "do not go with 'key'"),
        ({"time": "key", "test_from": 5, "by": "x"}, "Choose one way"),
        ({"test_from": 5}, "go with time"),
        ({"stratify": "sex"}, "no column 'sex'"),
    ],
)
def test_split_refuses_what_does_not_go_together(frame, options, says):
    with pytest.raises(InputError, match=says):
        split(dd.from_pandas(frame, npartitions=2), **options)


@pytest.mark.parametrize("options", [{"n_splits": 1}, {"n_splits": 2.5}, {"time": "key"}, {"cuts": [1]}])
def test_folds_refuses_what_cannot_be(frame, options):
    with pytest.raises(InputError):
        folds(dd.from_pandas(frame, npartitions=2), **options)


def test_leaks_are_found_and_named(frame):
    rows = dd.from_pandas(frame, npartitions=5)
    train, test = split(rows, by="key")
    clean = check_leaks(train, test, by=["key"])
    assert (clean.n_groups, clean.found) == (0, False)
    leaking = dd.concat([train, test.partitions[:1]])
    keys = set(test.partitions[0].compute()["key"])
    found = check_leaks(leaking, test, by="key")
    assert found.n_groups == len(keys)
    assert set(found.groups) <= keys
    assert len(found.groups) == 10
    assert "groups on both sides" in str(found)


def test_times_that_overlap_are_counted(frame):
    rows = dd.from_pandas(frame, npartitions=5)
    early, late = split(rows, time="key", test_from=200)
    assert check_leaks(early, late, time="key").n_late == 0
    found = check_leaks(early, dd.concat([late, early.partitions[:1]]), time="key", by=["key", "x"])
    begins = early.partitions[0].compute()["key"].min()
    assert found.n_late == (frame["key"].between(begins, 199)).sum()
    assert found.n_groups == len(early.partitions[0])


@pytest.mark.parametrize("options", [{}, {"by": "kee"}, {"time": "when"}])
def test_check_leaks_refuses_what_is_not_there(frame, options):
    rows = dd.from_pandas(frame, npartitions=2)
    with pytest.raises(InputError, match="check_leaks"):
        check_leaks(rows, rows, **options)
