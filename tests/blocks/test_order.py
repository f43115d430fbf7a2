"""The order of an epoch: every row once, another one each time, and as well mixed as is said."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from dpipe.blocks.order import gathered, mixed_rows, neighbours_apart, visits
from dpipe.blocks.rows import Rows
from dpipe.families.epochs import Epochs


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    shuffle=st.sampled_from([None, "blocks", "rows"]),
    mix=st.integers(1, 14),
    epoch=st.integers(0, 3),
)
def test_every_row_is_visited_once(lengths, shuffle, mix, epoch):
    epochs = Epochs(4, shuffle=shuffle, mix=mix, random_state=epoch)
    steps = list(epochs.order(lengths, epoch))
    assert sorted(np.concatenate([np.arange(0), *steps]).tolist()) == list(range(sum(lengths)))
    assert sorted(map(len, steps)) == sorted(n for n in lengths if n)


def test_orders_follow_from_the_seed_and_the_epoch():
    lengths = [50] * 12

    def order(seed, epoch, shuffle="rows"):
        return np.concatenate(list(Epochs(shuffle=shuffle, random_state=seed).order(lengths, epoch))).tolist()

    assert order(0, 0) == order(0, 0)
    orders = [order(seed, epoch, how) for seed in (0, 1) for epoch in (0, 1) for how in ("rows", "blocks")]
    assert len({tuple(each) for each in orders}) == 8


def test_mixing_all_blocks_is_a_whole_shuffle():
    """Over many seeds each row comes first about as often as any other."""
    firsts = [next(Epochs(shuffle="rows", mix=9, random_state=s).order([4] * 5, 0))[0] for s in range(4000)]
    counts = np.bincount(firsts, minlength=20)
    assert np.sum((counts - 200) ** 2 / 200) < 45.3  # chi-squared of 19 degrees of freedom, one in a thousand


@pytest.mark.parametrize(("n", "mix"), [(40, 1), (40, 4), (40, 10), (12, 12)])
def test_mixing_is_as_good_as_is_said(n, mix):
    length = 30
    apart, left = neighbours_apart([length] * n, mix)
    found_apart, found_left = [], []
    of_block = np.repeat(np.arange(n), length)
    values = np.random.default_rng(0).normal(size=n)  # one for each block, so that rows of a block are alike
    values -= values.mean()
    for seed in range(120):
        steps = list(Epochs(shuffle="rows", mix=mix, random_state=seed).order([length] * n, 0))
        for group in np.split(np.array(steps), np.arange(mix, n, mix)):
            blocks = of_block[group.reshape(-1)]
            found_apart.append(np.mean(blocks[1:] != blocks[:-1]))
            found_left.append(values[blocks].mean() ** 2)
    assert np.mean(found_apart) == pytest.approx(apart, abs=0.01)
    assert np.mean(found_left) / np.mean(values**2) == pytest.approx(left, abs=0.03)


def test_uneven_blocks_and_few_rows_have_a_quality_too():
    assert neighbours_apart([5], 8) == (0.0, 0.0)
    assert neighbours_apart([0, 0], 2) == (0.0, 0.0)
    apart, left = neighbours_apart([10, 0, 50, 1], 4)
    assert 0 < apart < 0.5
    assert left == 0


@pytest.mark.parametrize("kind", ["array", "csr", "frame"])
def test_rows_are_gathered_from_several_blocks(kind):
    values = np.arange(36.0).reshape(12, 3)
    lengths = (5, 0, 4, 3)
    made = {
        "array": np.asarray,
        "csr": sp.csr_matrix,
        "frame": lambda X: pd.DataFrame(X, columns=list("abc")),
    }
    ends = np.cumsum(lengths)
    parts = [
        Rows(made[kind](values[end - n : end]), np.arange(end - n, end), None)
        for n, end in zip(lengths, ends, strict=True)
    ]
    (visit, *_) = visits(4, 0, shuffle="rows", mix=4, random_state=0)
    for chosen in mixed_rows(lengths, visit, 0):
        found = gathered(parts, chosen)
        X = found.X.toarray() if kind == "csr" else np.asarray(found.X)
        np.testing.assert_array_equal(X, values[chosen])
        np.testing.assert_array_equal(found.y, chosen)
        assert found.w is None
