"""The folds of a block's rows are those that scikit-learn deals out for all rows at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold, StratifiedKFold

from dpipe.blocks.folds import DrawnFolds, KFolds, LabelPlaces, StratifiedFolds
from dpipe.blocks.rows import RowsAt
from dpipe.errors import InputError

SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 10)
SEEDS = st.none() | st.integers(0, 2**32 - 1)


def dealt(splitter, y):
    folds = np.empty(len(y), dtype=int)
    for i, (_, rows) in enumerate(splitter.split(np.zeros(len(y)), y)):
        folds[rows] = i
    return folds


def blocks_of(y, sizes):
    ends = np.cumsum(sizes)
    return [(y[end - n : end], RowsAt(int(end - n), len(y))) for end, n in zip(ends, sizes, strict=True) if n]


@given(SIZES, st.integers(2, 7), SEEDS)
def test_k_folds(sizes, n_splits, seed):
    y = np.zeros(sum(sizes))
    found = np.concatenate([KFolds(n_splits, seed).of(*block) for block in blocks_of(y, sizes)])
    splitter = KFold(n_splits, shuffle=seed is not None, random_state=seed)
    assert found.tolist() == dealt(splitter, y).tolist()


@pytest.mark.filterwarnings("ignore:The least populated class")
@given(SIZES, st.integers(2, 5), SEEDS, st.randoms(use_true_random=False))
def test_stratified_folds(sizes, n_splits, seed, random):
    y = np.array([random.choice(["b", "a", "a", "c"]) for _ in range(sum(sizes))], dtype=object)
    blocks = blocks_of(y, sizes)
    places = LabelPlaces.of(None, blocks[0][0], None, blocks[0][1])
    for block, at in blocks[1:]:
        places = places.merge(LabelPlaces.of(None, block, None, at))
    if np.unique(y, return_counts=True)[1].max() < n_splits:
        with pytest.raises(InputError, match="more than the rows of each class"):
            StratifiedFolds(places, n_splits, seed)
        return
    folds = StratifiedFolds(places, n_splits, seed)
    found = np.concatenate([folds.of(*block) for block in blocks])
    splitter = StratifiedKFold(n_splits, shuffle=seed is not None, random_state=seed)
    assert found.tolist() == dealt(splitter, y).tolist()


@given(st.integers(1, 60), st.integers(2, 6), st.booleans())
def test_drawn_folds_are_even_and_come_again(n, n_splits, stratified):
    y = np.arange(n) % 3
    drawn = DrawnFolds(n_splits, stratified)
    folds = drawn.of(y, None)
    assert folds.tolist() == drawn.of(y, None).tolist()
    counts = np.bincount(folds, minlength=n_splits)
    assert counts.max() - counts.min() <= 1
    if stratified:
        for label in range(3):
            of_label = np.bincount(folds[y == label], minlength=n_splits)
            assert of_label.max() - of_label.min() <= 1


def test_numbers_that_are_not_whole_are_no_labels():
    whole = LabelPlaces.of(None, np.array([1.0, 2.0]), None, RowsAt(0, 4))
    rest = LabelPlaces.of(None, np.array([0.5, np.nan]), None, RowsAt(2, 4))
    assert not whole.continuous
    assert whole.merge(rest).continuous
    assert whole.merge(rest).blocks == {}
