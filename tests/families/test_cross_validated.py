"""Folds that follow from the places of rows, and what the regressions that choose their penalty refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import ElasticNetCV, LassoCV, MultiTaskLassoCV, RidgeCV
from sklearn.model_selection import KFold, ShuffleSplit

from dpipe.blocks.groups import ByFold, fold_ends
from dpipe.blocks.regression import CrossProducts
from dpipe.blocks.rows import RowsAt
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.train.fit import fit
from tests.kernel_cases import array_blocks, assert_same, awkward_frame, in_blocks, parquet_blocks

BLOCKS = (4, 4, 2)
X = np.random.default_rng(0).normal(size=(10, 2))
Y = X @ [1.0, -2.0]


def fit_blocks(estimator, values=X, target=Y):
    return fit(estimator, array_blocks(values, BLOCKS), array_blocks(target, BLOCKS))


@pytest.mark.parametrize("estimator", [LassoCV(), RidgeCV(cv=4)])
def test_files_know_the_places_of_their_rows(estimator, tmp_path):
    frame = awkward_frame()[["plain", "more", "whole"]]
    result = fit(estimator, parquet_blocks(frame, tmp_path), "whole")
    X_memory = frame[["plain", "more"]]
    assert_same(result, estimator.fit(X_memory, frame["whole"]), rtol=1e-7)


def test_blocks_of_unknown_length_are_counted_first():
    frame = awkward_frame()[["plain", "more", "whole"]]
    found = fit(LassoCV(), in_blocks(frame), "more")
    assert_same(found, LassoCV().fit(frame[["plain", "whole"]], frame["more"]), 1e-7)


@given(n=st.integers(2, 40), folds=st.integers(2, 9))
def test_folds_end_where_those_of_kfold_do(n, folds):
    if folds <= n:
        tests = [test for _, test in KFold(folds).split(np.empty((n, 1)))]
        assert fold_ends(n, folds).tolist() == [int(test[-1]) + 1 for test in tests]


@given(cuts=st.lists(st.integers(0, 10), max_size=4), folds=st.integers(2, 10))
def test_each_row_is_in_one_fold_wherever_the_blocks_are_cut(cuts, folds):
    want = ByFold(CrossProducts, folds)
    whole = want.of(X, Y, None, RowsAt(0, 10))
    starts, joined = [0, *sorted(cuts)], None
    for start, end in zip(starts, [*starts[1:], 10], strict=True):
        part = want.of(X[start:end], Y[start:end], None, RowsAt(start, 10))
        joined = part if joined is None else joined.merge(part)
    assert sorted(joined.by_group) == sorted(whole.by_group) == list(range(folds))
    for fold, products in whole.by_group.items():
        assert joined.by_group[fold].n_rows == products.n_rows
        np.testing.assert_allclose(joined.by_group[fold].xx, products.xx, atol=1e-12)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (LassoCV(cv=KFold(3, shuffle=True)), "must follow from its place.*KFold without shuffling"),
        (ElasticNetCV(cv=ShuffleSplit(3)), "must follow from its place"),
        (RidgeCV(scoring="r2"), "scores the predictions of all rows together.*squared error"),
        (RidgeCV(store_cv_results=True), "keeps an error for each row and penalty"),
        (RidgeCV(cv=5, scoring="neg_median_absolute_error"), "cannot be had from moments.*'r2'"),
    ],
)
def test_what_needs_the_rows_themselves_is_refused(estimator, message):
    with pytest.raises(UnsupportedEstimatorError, match=message):
        fit_blocks(estimator)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (LassoCV(cv=11), "10 rows cannot be cut into 11 folds"),
        (RidgeCV(cv=6), "a fold has one row, for which r2 is not defined"),
        (RidgeCV(cv=5, alpha_per_target=True), "alpha_per_target=True.* goes with cv=None"),
        (RidgeCV(cv=5, store_cv_results=True), "store_cv_results=True.* goes with cv=None"),
        (MultiTaskLassoCV(), "y has one. Use LassoCV"),
    ],
)
def test_wrong_folds_and_targets_are_refused(estimator, message):
    with pytest.raises(InputError, match=message):
        fit_blocks(estimator)


def test_several_targets_for_one_are_refused():
    with pytest.raises(InputError, match="LassoCV: y has 2 columns"):
        fit_blocks(LassoCV(), X, X)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_gaps_in_one_fold_are_refused(value):
    holes = X.copy()
    holes[7, 1] = value
    for estimator in (LassoCV(), RidgeCV(cv=5)):
        with pytest.raises(InputError, match="X or y holds NaN or infinity"):
            fit_blocks(estimator, holes)


def test_a_gram_matrix_of_the_rows_is_not_asked_for():
    centred = X - X.mean(axis=0)
    given = LassoCV(precompute=centred.T @ centred, cv=2)
    result = fit_blocks(given, centred)
    np.testing.assert_allclose(result.coef_, LassoCV(cv=2).fit(centred, Y).coef_, rtol=1e-6)
    assert isinstance(result.precompute, np.ndarray)
