"""XGBoost trained by several learners: who has which rows, and that only that decides what comes out."""

from itertools import pairwise

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightgbm import LGBMClassifier
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from xgboost import XGBClassifier, XGBRanker, XGBRegressor

import dpipe
from dpipe.blocks.rows import Tally
from dpipe.errors import InputError, MemoryLimitError
from dpipe.planner import Resources
from dpipe.train.boosting.shares import Extent, deal, pieces
from dpipe.train.boosting.team import hosted
from tests.helpers import raise_if_computes
from tests.train.boosting.rows import (
    frame,
    groups,
    lazy,
    numbers,
    partitions,
    three_classes,
    trees,
    two_classes,
    values,
    weights,
)

SMALL = {"n_jobs": 1, "max_depth": 3}


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 6))
def test_shares_are_contiguous_and_leave_nothing_out(lengths, n):
    dealt = deal(lengths, n)
    filled = [i for i, length in enumerate(lengths) if length]
    assert len(dealt) == n
    assert [i for share in dealt for i in share] == filled
    assert sum(map(bool, dealt)) == min(n, len(filled))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 6))
def test_shares_of_equal_blocks_are_even(n_blocks, n):
    sizes = [len(share) for share in deal([7] * n_blocks, n)]
    assert max(sizes) - min(sizes) <= 1


def _extents(ids, lengths):
    ends = np.cumsum([0, *lengths])
    found = []
    for begin, end in pairwise(ends):
        own = ids[begin:end]
        starts = np.flatnonzero(np.append(True, own[1:] != own[:-1])) if len(own) else np.empty(0, int)
        n_first = int([*starts, len(own)][1]) if len(own) else 0
        found.append(Extent((len(own), 2), Tally(), own[starts] if len(own) else None, n_first))
    return found, ends


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_no_group_is_split_between_shares(sizes, lengths, n):
    ids = np.repeat(np.arange(len(sizes), dtype=float), sizes)
    lengths = [*lengths, max(len(ids) - sum(lengths), 0)]
    extents, ends = _extents(ids, lengths)
    rows = [
        [j for piece in share for j in range(ends[piece.block] + piece.start, ends[piece.block] + piece.stop)]
        for share in pieces(extents, n)
    ]
    assert [j for share in rows for j in share] == list(range(min(sum(lengths), len(ids))))
    held = [set(ids[share].tolist()) for share in rows]
    assert sum(map(len, held)) == len(set().union(*held))


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=5), st.integers(5, 8))
def test_few_blocks_are_cut(lengths, n):
    found = pieces([Extent((length, 2), Tally()) for length in lengths], n)
    rows = [[(p.block, j) for p in share for j in range(p.start, p.stop)] for share in found]
    assert [row for share in rows for row in share] == [
        (i, j) for i, n_rows in enumerate(lengths) for j in range(n_rows)
    ]
    if sum(map(bool, lengths)) < n:
        sizes = [len(share) for share in rows]
        assert max(sizes) - min(sizes) <= 1


def test_a_group_that_begins_twice_in_two_shares():
    X, y = values(), two_classes()
    ids = np.arange(len(X)) // 2000 % 1
    ids[:1000] = 1
    ids[3000:] = 1
    with pytest.raises(InputError, match="some group begins twice"):
        dpipe.fit(XGBRanker(**SMALL, n_estimators=2), lazy(X), lazy(y), qid=lazy(ids), shares=2)


def test_workers_have_neighbours_and_as_many_as_can_be():
    assert hosted(2, ["a", "b", "c"]) == {"a": range(1), "b": range(1, 2)}
    assert hosted(4, ["a"]) == {"a": range(4)}
    assert [len(ranks) for ranks in hosted(5, ["a", "b"]).values()] == [3, 2]


@pytest.mark.parametrize("n", [2, 4])
def test_as_good_as_one_learner(n):
    X, y = values(), two_classes()
    estimator = XGBClassifier(**SMALL, n_estimators=10)
    rows = da.from_array(X[:3000], chunks=(500, 6)), da.from_array(y[:3000], chunks=500)
    one, many = (dpipe.fit(estimator, *rows, shares=shares) for shares in (1, n))
    scores = [roc_auc_score(y[3000:], model.predict_proba(X[3000:])[:, 1]) for model in (one, many)]
    assert abs(scores[0] - scores[1]) < 0.01
    assert set(vars(many)) == set(vars(one))
    assert trees(many) == trees(dpipe.fit(estimator, *rows, shares=n))


def test_the_same_bins_give_the_same_trees():
    """Sums of gradients that are exact do not depend on who adds them up."""
    X = np.random.default_rng(0).integers(0, 20, size=(2000, 3)).astype(float)
    y = (X[:, 0] > 8).astype(float) * 4 + (X[:, 1] > 3)
    estimator = XGBRegressor(n_jobs=1, n_estimators=1, max_depth=3, learning_rate=1.0, base_score=0.0)
    rows = da.from_array(X, chunks=(500, 3)), da.from_array(y, chunks=500)
    alone, together = (dpipe.fit(estimator, *rows, shares=n) for n in (1, 3))
    assert together.get_booster().get_dump() == alone.get_booster().get_dump()
    np.testing.assert_array_equal(alone.predict(X), estimator.fit(X, y).predict(X))


def test_weights_categories_and_rows_to_watch():
    made = frame().assign(w=weights())
    estimator = XGBClassifier(**SMALL, n_estimators=30, early_stopping_rounds=3, enable_categorical=True)
    found = dpipe.fit(estimator, partitions(made), "y", "w", validation=0.25, shares=3)
    assert found.best_iteration < 29
    assert len(found.evals_result()["validation_0"]["logloss"]) <= 30
    X = made.drop(columns=["y", "w"])
    assert list(found.feature_names_in_) == list(X.columns)
    assert roc_auc_score(made["y"], found.predict_proba(X)[:, 1]) > 0.95


def test_groups_that_shares_would_cut():
    made = pd.DataFrame(values(), columns=list("abcdef")).assign(y=three_classes(), query=groups())
    estimator = XGBRanker(**SMALL, n_estimators=4)
    found = dpipe.fit(estimator, partitions(made), "y", qid="query", shares=3, validation=0.2)
    alone = dpipe.fit(estimator, partitions(made), "y", qid="query", validation=0.2)
    X = made[list("abcdef")]
    assert np.corrcoef(found.predict(X), alone.predict(X))[0, 1] > 0.9


def test_fewer_blocks_with_rows_than_shares():
    made = frame()
    rows = partitions(made, (4000, 0, 0))
    estimator = XGBClassifier(**SMALL, n_estimators=3, enable_categorical=True)
    found = dpipe.fit(estimator, rows, "y", validation=(rows, "y"), shares=2)
    again = dpipe.fit(estimator, partitions(made, (2000, 2000)), "y", validation=(rows, "y"), shares=2)
    assert trees(found) == trees(again)


def test_a_share_without_rows():
    made = pd.DataFrame(values(), columns=list("abcdef")).assign(y=three_classes(), query=0)
    estimator = XGBRanker(**SMALL, n_estimators=3)
    found = dpipe.fit(estimator, partitions(made), "y", qid="query", shares=2)
    alone = dpipe.fit(estimator, partitions(made), "y", qid="query")
    X = made[list("abcdef")]
    np.testing.assert_allclose(found.predict(X), alone.predict(X), rtol=1e-4)


def test_the_last_step_of_a_pipeline():
    made = frame()[["a", "n", "yes", "y"]]
    for model in (
        make_pipeline(StandardScaler(), XGBClassifier(**SMALL, n_estimators=2)),
        make_pipeline(OneHotEncoder(handle_unknown="ignore"), XGBClassifier(**SMALL, n_estimators=2)),
    ):
        rows = partitions(made if model[0].__class__ is StandardScaler else made[["n", "yes", "y"]])
        found = dpipe.fit(model, rows, "y", shares=2)
        assert found[-1].get_booster().num_boosted_rounds() == 2


def test_in_a_pipeline_object(tmp_path):
    pipe = dpipe.Pipeline("shares", workdir=tmp_path)
    rows = pipe.collect(partitions(frame().drop(columns="kind")))
    pipe.train(XGBClassifier(**SMALL, n_estimators=3), rows, target="y", shares=2)
    assert "by 2 learners together" in str(pipe.plan())
    first = pipe.run(progress=False)
    assert "pass 2 on record" in str(pipe.plan())
    assert trees(pipe.run(progress=False).model) == trees(first.model)


def test_the_plan_shares_memory_among_workers():
    X, y = da.random.random((10_000_000, 20), chunks=(100_000, 20)), da.zeros(10_000_000, chunks=100_000)
    estimator = XGBRegressor(n_jobs=1, n_estimators=50)
    with raise_if_computes():
        plan = dpipe.plan(estimator, X, y, shares=4)
        alone = dpipe.plan(estimator, X, y)
    assert "50 boosting rounds over a binned copy, by 4 learners together" in str(plan)
    assert "on 1 worker" in str(plan)
    assert "learners" not in str(alone)
    with raise_if_computes(), pytest.raises(MemoryLimitError, match="2,500,000 rows of 20 columns needs"):
        dpipe.plan(estimator, X, y, memory="600 MiB", shares=4)


def test_a_learner_of_its_own_for_each_worker_needs_less():
    from dpipe.families.boosting import describe, projected
    from dpipe.planner import DataShape

    shape = DataShape("made", tuple("abcd"), (1_000_000,) * 4, (8,) * 4, 8)
    estimator = XGBRegressor(n_estimators=50)
    one = projected(estimator, shape, 4, Resources(1, 1, 4 << 30))
    many = projected(estimator, shape, 4, Resources(1, 4, 4 << 30, shares=4))
    crowded = projected(estimator, shape, 4, Resources(1, 2, 4 << 30, shares=4))
    assert many < one / 2
    assert crowded == 2 * many
    assert "on 2 workers" in describe(estimator, Resources(1, 2, shares=4))


@pytest.mark.parametrize(
    ("estimator", "shares", "said"),
    [
        (XGBClassifier(), 0, "shares must be an integer of at least 1, got 0"),
        (XGBClassifier(), True, "got True"),
        (XGBClassifier(), 6, "shares=6, but the rows stand in 5 blocks. Give at most that many"),
        (LGBMClassifier(), 2, "shares=2 is for the estimators of XGBoost, not for LGBMClassifier"),
        (Ridge(), 2, "not for Ridge"),
        (
            dpipe.Search(Ridge(), {"alpha": [1.0]}),
            2,
            "epochs, validation, qid and shares are not for a Search",
        ),
    ],
)
def test_shares_that_cannot_be(estimator, shares, said):
    with raise_if_computes(), pytest.raises(InputError, match=said):
        dpipe.plan(estimator, lazy(values()), lazy(two_classes()), shares=shares)


def test_what_one_learner_complains_of_is_said():
    X = values()
    X[5, 2] = np.inf
    with pytest.raises(InputError, match=r"XGBRegressor: Input data contains `inf`"):
        dpipe.fit(XGBRegressor(**SMALL, n_estimators=2), lazy(X), lazy(numbers()), shares=3)
