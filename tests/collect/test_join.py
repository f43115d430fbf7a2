"""Joins give what pandas gives, and stop where rows are lost."""

import itertools

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

import dpipe
from dpipe.blocks.flows import counting
from dpipe.collect.join import Expected, Join
from dpipe.errors import ConservationError, InputError
from dpipe.train.fit import prepare, run_fit

HOWS = ("inner", "left", "right", "outer")
LEFT = pd.DataFrame(
    {
        "k": np.random.default_rng(0).integers(0, 40, 300),
        "s": np.random.default_rng(1).choice(["a", "b", None, ""], 300),
        "v": np.arange(300),
        "flag": True,
    }
)
RIGHT = pd.DataFrame(
    {
        "k": np.random.default_rng(2).integers(20, 60, 100),
        "s": np.random.default_rng(3).choice(["a", "b", None, ""], 100),
        "w": np.arange(100),
    }
)


def plain(frame):
    """Sort rows, and give texts one type with one mark for missing."""
    texts = [name for name in frame if frame[name].dtype in ("string", "str", object)]
    frame = frame.astype(dict.fromkeys(texts, object)).fillna(dict.fromkeys(texts, "missing"))
    return frame.sort_values(list(frame.columns)).reset_index(drop=True)


@pytest.mark.parametrize("n_blocks", [(5, 3), (5, 1), (1, 4), (4, None)])
@pytest.mark.parametrize("on", ["k", ["k", "s"]])
@pytest.mark.parametrize("how", HOWS)
def test_a_join_is_that_of_pandas(how, on, n_blocks):
    right = RIGHT if n_blocks[1] is None else dd.from_pandas(RIGHT, npartitions=n_blocks[1])
    joined = dpipe.merge(dd.from_pandas(LEFT, npartitions=n_blocks[0]), right, on=on, how=how)
    parts = dask.compute(*joined.to_delayed(), scheduler="sync")
    wanted = plain(LEFT.merge(RIGHT, on=on, how=how))
    pd.testing.assert_frame_equal(plain(pd.concat(parts)), wanted)
    for part in parts:  # every block is of the types that were promised
        assert dict(part.dtypes) == dict(joined.dtypes)


@given(
    left=st.lists(st.sampled_from([0.0, 1.0, 2.0, np.nan]), min_size=1, max_size=30),
    right=st.lists(st.sampled_from([1.0, 2.0, 3.0, np.nan]), min_size=1, max_size=30),
    cuts=st.tuples(st.integers(1, 4), st.integers(2, 4)),
    how=st.sampled_from(HOWS),
)
@settings(max_examples=25, deadline=None)
def test_any_keys_are_conserved(left, right, cuts, how):
    mine = pd.DataFrame({"k": left, "v": range(len(left))})
    other = pd.DataFrame({"q": right, "w": range(len(right))})
    joined = dpipe.merge(
        dd.from_pandas(mine, npartitions=cuts[0]),
        dd.from_pandas(other, npartitions=cuts[1]),
        left_on="k",
        right_on="q",
        how=how,
    )
    wanted = mine.merge(other, left_on="k", right_on="q", how=how)
    got = joined.compute(scheduler="sync")
    pd.testing.assert_frame_equal(plain(got), plain(wanted), check_dtype=False)


def test_many_blocks_lose_nothing():
    # Dask 2026.1 and before lost rows of a merge at more than 128 partitions
    left = pd.DataFrame({"k": np.arange(5000), "v": np.arange(5000)})
    right = pd.DataFrame({"k": np.arange(4000, 9000), "w": np.arange(5000)})
    joined = dpipe.merge(
        dd.from_pandas(left, npartitions=140), dd.from_pandas(right, npartitions=139), on="k", how="outer"
    )
    assert joined.npartitions == 140
    assert sorted(joined["k"].compute(scheduler="sync")) == list(range(9000))


def test_large_keys_are_told_apart():
    big = 2**53
    left = pd.DataFrame({"k": [big, big + 1], "v": [1, 2]})
    right = pd.DataFrame({"k": [big + 1, big + 2], "w": [1, 2]})
    joined = dpipe.merge(dd.from_pandas(left, npartitions=2), dd.from_pandas(right, npartitions=2), on="k")
    assert joined.compute(scheduler="sync").to_dict("list") == {"k": [big + 1], "v": [2], "w": [1]}


def test_keys_of_two_types_meet():
    left = dd.from_pandas(pd.DataFrame({"k": [1, 2, 3], "v": [1, 2, 3]}), npartitions=3)
    right = dd.from_pandas(pd.DataFrame({"k": [2.0, 3.0, np.nan], "w": [1, 2, 3]}), npartitions=3)
    assert sorted(dpipe.merge(left, right, on="k").compute(scheduler="sync")["v"]) == [2, 3]


def test_a_small_right_side_keeps_blocks_and_order():
    left = dd.from_pandas(LEFT, npartitions=4)
    joined = dpipe.merge(left, RIGHT.drop_duplicates("k")[["k", "w"]], on="k", how="left", validate="m:1")
    assert joined.npartitions == 4
    assert list(joined["v"].compute(scheduler="sync")) == list(range(300))


def test_a_block_without_rows():
    left = dd.from_pandas(LEFT, npartitions=3)
    none = left[left["v"] < 0]
    for how in HOWS:
        got = dpipe.merge(none, dd.from_pandas(RIGHT, npartitions=2), on="k", how=how)
        assert len(got.compute(scheduler="sync")) == (100 if how in ("right", "outer") else 0)


@pytest.mark.parametrize("validate", ["1:1", "m:1", "1:m"])
def test_validate_is_checked_over_all_blocks(validate):
    # equal keys stand in different blocks
    twice = dd.from_pandas(pd.DataFrame({"k": [1, 2, 3, 1], "v": range(4)}), npartitions=2)
    with pytest.raises(InputError, match=f"validate='{validate}' does not hold in a block"):
        dpipe.merge(twice, twice, on="k", validate=validate).compute(scheduler="sync")
    once = pd.DataFrame({"k": [1, 2], "w": [1, 2]})
    with pytest.raises(InputError, match="does not hold"):
        dpipe.merge(twice, once, on="k", validate="1:1").compute(scheduler="sync")


@pytest.mark.parametrize("lost", ["row", "key"])
def test_a_loss_is_noticed(lost, monkeypatch):
    real = pd.DataFrame.merge

    def faulty(self, *args, **kwargs):
        merged = real(self, *args, **kwargs)
        return merged.iloc[1:] if lost == "row" else merged.assign(k=merged["k"].iloc[0])

    join = Join(("k",), ("k",), "inner", ("_x", "_y"), None)
    monkeypatch.setattr(pd.DataFrame, "merge", faulty)
    with pytest.raises(ConservationError, match=r"merge on 'k': block 7 has"), counting(7):
        join(LEFT, RIGHT)


def test_what_must_come_out_is_told():
    left = pd.DataFrame({"k": [1, 1, 2, 9]})
    right = pd.DataFrame({"k": [1, 1, 1, 2, 5]})
    told = Expected.of(left, right, "outer").told(4, 9, "outer")
    assert (told["rows in"], told["repeated, as they match several rows"], told["of the right alone"]) == (
        4,
        4,
        1,
    )
    assert sum(n for name, n in told.items() if name != "rows out") == told["rows out"]
    inner = Expected.of(left, right, "inner")
    assert inner.rows == 7
    assert inner.told(4, 7, "inner")["left out, as they match nothing"] == -1


def test_a_fit_reads_a_join_and_says_what_came_of_it():
    left = dd.from_pandas(LEFT[["k", "v"]], npartitions=4)
    joined = dpipe.merge(left, dd.from_pandas(RIGHT[["k", "w"]], npartitions=3), on="k")
    whole = LEFT[["k", "v"]].merge(RIGHT[["k", "w"]], on="k")
    fitted, (tally,) = run_fit(prepare(LinearRegression(), joined[["k", "v"]], joined["w"]))
    wanted = LinearRegression().fit(whole[["k", "v"]], whole["w"])
    np.testing.assert_allclose(fitted.coef_, wanted.coef_, rtol=1e-9)
    flow = tally.flows["merge on 'k'"]
    assert (flow.n_blocks, flow.total("rows in"), flow.total("rows out")) == (4, 300, len(whole))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"on": "nothing"}, "merge: left: there is no column 'nothing'"),
        ({}, "name the keys"),
        ({"left_on": "k"}, "name the keys"),
        ({"on": "k", "left_on": "k", "right_on": "k"}, "name the keys|Choose one way"),
        ({"on": "k", "left_on": "k"}, "Choose one way"),
        ({"left_on": ["k", "v"], "right_on": "k"}, "left_on names 2 columns, right_on 1"),
        ({"left_on": "k", "right_on": "s"}, "Convert the keys of one side"),
        ({"on": "k", "how": "cross"}, "how='cross' is unknown"),
        ({"on": "k", "validate": "one"}, "validate='one' is unknown"),
        ({"on": "k", "blocks": 0}, "blocks must be a positive integer, got 0"),
        ({"on": []}, "there is no column named to go by"),
    ],
)
def test_arguments_that_cannot_be(arguments, says):
    with pytest.raises(InputError, match=says):
        dpipe.merge(dd.from_pandas(LEFT, npartitions=2), dd.from_pandas(RIGHT, npartitions=2), **arguments)


def test_other_inputs_are_refused():
    with pytest.raises(InputError, match="takes a Dask DataFrame, got a DataFrame"):
        dpipe.merge(LEFT, RIGHT, on="k")
    with pytest.raises(InputError, match="takes a Dask DataFrame, got a list"):
        dpipe.merge(dd.from_pandas(LEFT, npartitions=2), [1], on="k")


def test_each_combination_names_itself():
    names = {Join((a,), (b,), "inner", ("", ""), None).name for a, b in itertools.product("kq", repeat=2)}
    assert names == {"merge on 'k'", "merge on 'q'", "merge on 'k' and 'q'", "merge on 'q' and 'k'"}
