"""Which rows are held out follows from the seed and the place of their block."""

import numpy as np
import pytest

from dpipe.blocks.held_out import HeldOut


def mask(n, block, share=0.1, seed=0, held=True):
    return HeldOut(share, seed, block, held).mask(n)


def test_shares_are_kept_and_blocks_and_seeds_differ():
    masks = [mask(20_000, block) for block in range(3)]
    assert all(found.mean() == pytest.approx(0.1, abs=0.001) for found in masks)
    assert (masks[0] & masks[1]).mean() == pytest.approx(0.01, abs=0.005)
    assert (mask(20_000, 0, seed=1) != masks[0]).any()


def test_both_sides_make_the_block_and_are_counted_without_it():
    for n in (0, 1, 7, 1000):
        held, others = mask(n, 5, 0.3), mask(n, 5, 0.3, held=False)
        np.testing.assert_array_equal(held, ~others)
        assert HeldOut(0.3, 0, 5, True).n_of(n) == held.sum()
        assert HeldOut(0.3, 0, 5, False).n_of(n) == others.sum()


def test_small_blocks_add_up_to_the_share():
    assert sum(mask(3, block).sum() for block in range(2000)) == pytest.approx(600, rel=0.1)
