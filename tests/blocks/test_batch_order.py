"""The batches of an epoch: every row once, for any cut into shares, and the order of `Epochs` with one share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpipe.blocks.batch_order import BatchOrder, shares_of
from dpipe.errors import InputError
from dpipe.families.epochs import Epochs


def order_of(lengths, **given):
    how = {"batch_size": 4, "shuffle": "rows", "mix": 2, "shares": 2, "random_state": 0, "drop_last": False}
    return BatchOrder(tuple(lengths), **(how | given))


def epoch_of(order, epoch=0, shares=None):
    return [order.numbers(epoch, step, shares) for step in range(order.n_steps)]


@settings(deadline=None, max_examples=150)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=7),
    batch_size=st.integers(1, 12),
    shares=st.integers(1, 5),
    mix=st.integers(1, 6),
    shuffle=st.sampled_from([None, "blocks", "rows"]),
    drop_last=st.booleans(),
    seed=st.integers(0, 3),
)
def test_an_epoch_has_every_row_once(lengths, batch_size, shares, mix, shuffle, drop_last, seed):
    how = {"batch_size": batch_size, "shares": shares, "mix": mix, "shuffle": shuffle, "random_state": seed}
    try:
        order = order_of(lengths, drop_last=drop_last, **how)
    except InputError:
        assert batch_size < shares or sum(lengths) < max(batch_size if drop_last else shares * 2, 1)
        return
    for epoch in (0, 1):
        batches = epoch_of(order, epoch)
        given_rows = np.concatenate(batches)
        assert len(set(given_rows.tolist())) == len(given_rows)
        assert all(len(batch) == batch_size for batch in batches[:-1])
        left_out = sum(lengths) - len(given_rows)
        assert left_out < (batch_size if drop_last else 2 * shares)
        assert all(n > 0 for step in range(order.n_steps) for n in order.counts(step))


@pytest.mark.parametrize("shuffle", [None, "blocks", "rows"])
@pytest.mark.parametrize("mix", [1, 3, 8])
def test_one_share_has_the_order_of_epochs(shuffle, mix):
    lengths = [5, 1, 2, 7, 4]
    order = order_of(lengths, shares=1, shuffle=shuffle, mix=mix, random_state=3)
    for epoch in (0, 2):
        theirs = Epochs(shuffle=shuffle, mix=mix, random_state=3).order(lengths, epoch)
        assert np.concatenate(epoch_of(order, epoch)).tolist() == np.concatenate(list(theirs)).tolist()


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4])
def test_ranks_have_the_batches_of_one_process_between_them(n_ranks):
    order = order_of([11, 3, 8, 9, 1, 14], batch_size=9, shares=4, mix=4)
    parts = [epoch_of(order, 1, shares_of(rank, n_ranks, 4)) for rank in range(n_ranks)]
    assert [np.concatenate(step).tolist() for step in zip(*parts, strict=True)] == [
        batch.tolist() for batch in epoch_of(order, 1)
    ]


def test_a_share_reads_few_blocks():
    order = order_of([10] * 40, batch_size=16, shares=4, mix=4)
    blocks = [{p.block for group in own for p in group.pieces} for own in order.groups(0)]
    assert [len(each) for each in blocks] == [10] * 4
    assert len(set.union(*blocks)) == 40


def test_groups_of_different_shares_end_at_different_times():
    order = order_of([10] * 64, batch_size=16, shares=4, mix=16)
    ends = [[group.stop for group in own] for own in order.groups(0)]
    # whoever reads ahead has one group to read at a time, not those of all shares
    assert ends == [
        [40, 80, 120, 160],
        [20, 60, 100, 140, 160],
        [30, 70, 110, 150, 160],
        [10, 50, 90, 130, 160],
    ]


def test_another_seed_and_another_epoch_have_another_order():
    found = {
        tuple(np.concatenate(epoch_of(order_of([9] * 6, random_state=seed), epoch)).tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(found) == 4


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"batch_size": 1}, r"batch_size=1 .*shares=2"),
        ({"batch_size": 100, "drop_last": True}, "too few for a batch of 100"),
        ({"lengths": [1]}, "There are 1 rows"),
        ({"lengths": [0, 0]}, "There are 0 rows"),
    ],
)
def test_too_few_rows_are_refused(given, match):
    with pytest.raises(InputError, match=match):
        order_of(given.pop("lengths", [3, 4]), **given)
