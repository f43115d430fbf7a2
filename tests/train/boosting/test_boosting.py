"""XGBoost and LightGBM from blocks, compared with their own `fit` on all rows."""

import pickle
import subprocess
import sys

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import psutil
import pytest
import scipy.sparse
from distributed import Client, LocalCluster
from lightgbm import LGBMClassifier, LGBMRanker, LGBMRegressor
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import VotingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from xgboost import XGBClassifier, XGBRanker, XGBRegressor, XGBRFClassifier, XGBRFRegressor

import dpipe
from dpipe.errors import InputError, MemoryLimitError, UnsupportedEstimatorError
from dpipe.families.boosting import Footprint, histograms_nbytes
from tests.helpers import raise_if_computes
from tests.train.boosting.rows import (
    N_ROWS,
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

QUIET = {"verbose": -1, "n_jobs": 1}
CASES = [
    pytest.param(XGBClassifier(n_jobs=1, n_estimators=12), two_classes, id="xgb-binary"),
    pytest.param(XGBClassifier(n_jobs=1, n_estimators=4), three_classes, id="xgb-classes"),
    pytest.param(
        XGBClassifier(n_jobs=1, n_estimators=4, objective="multi:softmax"), three_classes, id="xgb-softmax"
    ),
    pytest.param(
        XGBClassifier(n_jobs=1, n_estimators=4, grow_policy="lossguide", max_leaves=9),
        two_classes,
        id="xgb-leaves",
    ),
    pytest.param(XGBRegressor(n_jobs=1, n_estimators=5, max_bin=64), numbers, id="xgb-regression"),
    pytest.param(
        XGBRegressor(n_jobs=1, n_estimators=4, objective="reg:absoluteerror"), numbers, id="xgb-absolute"
    ),
    pytest.param(XGBRFClassifier(n_jobs=1, n_estimators=5, random_state=3), two_classes, id="xgb-forest"),
    pytest.param(XGBRFRegressor(n_jobs=1, n_estimators=5), numbers, id="xgb-forest-regression"),
    pytest.param(LGBMClassifier(n_estimators=12, **QUIET), two_classes, id="lgbm-binary"),
    pytest.param(LGBMClassifier(n_estimators=4, **QUIET), three_classes, id="lgbm-classes"),
    pytest.param(
        LGBMClassifier(n_estimators=4, class_weight="balanced", **QUIET), three_classes, id="lgbm-balanced"
    ),
    pytest.param(
        LGBMClassifier(n_estimators=4, class_weight={0: 3.0}, **QUIET), two_classes, id="lgbm-weighted"
    ),
    pytest.param(LGBMRegressor(n_estimators=5, **QUIET), numbers, id="lgbm-regression"),
    pytest.param(
        LGBMRegressor(n_estimators=4, objective="quantile", alpha=0.8, **QUIET), numbers, id="lgbm-quantile"
    ),
]


@pytest.mark.parametrize(("estimator", "target"), CASES)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_the_same_trees_as_in_memory(estimator, target, weighted):
    X, y = values(), target()
    w = weights() if weighted else None
    found = dpipe.fit(estimator, lazy(X), lazy(y), None if w is None else lazy(w))
    expected = clone(estimator).fit(X, y, sample_weight=w)
    ordered = clone(estimator)
    if "num_leaves" in estimator.get_params():
        # LightGBM would try out which order of additions is faster, and take that one
        ordered.set_params(force_col_wise=True, deterministic=True)
    ordered.fit(X, y, sample_weight=w)
    assert trees(found) == trees(ordered)
    assert_array_equal(found.predict(X), ordered.predict(X))
    assert type(found) is type(estimator)
    assert found.get_params() == expected.get_params()
    assert set(vars(found)) == set(vars(expected))
    assert found.n_features_in_ == 6
    assert not hasattr(estimator, "_Booster") or estimator._Booster is None


@pytest.mark.parametrize(
    "estimator", [XGBClassifier(n_jobs=1, n_estimators=3), LGBMClassifier(n_estimators=3, **QUIET)]
)
def test_needs_no_dpipe_to_predict(estimator, tmp_path):
    X, y = values(), two_classes()
    fitted = dpipe.fit(estimator, lazy(X), lazy(y))
    (tmp_path / "model").write_bytes(pickle.dumps(fitted))
    np.save(tmp_path / "X.npy", X)
    program = (
        "import sys, pickle, numpy as np\n"
        "model = pickle.loads(open('model', 'rb').read())\n"
        "assert not any(name.startswith('dpipe') for name in sys.modules)\n"
        "np.save('p.npy', model.predict_proba(np.load('X.npy')))\n"
    )
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True)
    assert_array_equal(np.load(tmp_path / "p.npy"), fitted.predict_proba(X))


@pytest.mark.parametrize(
    "estimator",
    [
        XGBClassifier(n_jobs=1, n_estimators=6, enable_categorical=True),
        LGBMClassifier(n_estimators=6, **QUIET),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_categories_are_alike_in_all_blocks(estimator, known):
    made = frame()
    rows = partitions(made)
    if not known:
        texts = made.assign(kind=made["kind"].astype("str"))
        # each partition finds categories of its own
        rows = partitions(texts).astype({"kind": "category"})
    with raise_if_computes():
        plan = dpipe.plan(estimator, rows, "y")
    assert ("ValueCounts" in str(plan)) == (not known)
    found = dpipe.fit(estimator, rows, "y")
    X = made.drop(columns="y")
    expected = clone(estimator).fit(X, made["y"])
    assert list(found.feature_names_in_) == list(X.columns)
    assert_array_equal(found.predict_proba(X), expected.predict_proba(X))
    # other categories, in another order, are looked up by their names
    other = X.assign(kind=X["kind"].cat.set_categories(list("vwxyz")))
    assert_array_equal(found.predict_proba(other), expected.predict_proba(X))


@pytest.mark.parametrize(
    "estimator",
    [
        XGBClassifier(n_jobs=1, n_estimators=4, enable_categorical=True),
        LGBMClassifier(n_estimators=4, **QUIET),
    ],
)
def test_predicts_and_scores_in_blocks_whose_categories_differ(estimator, tmp_path):
    made = frame()
    made.to_parquet(tmp_path / "rows.parquet", index=False, row_group_size=1000)
    rows = dpipe.read_parquet(tmp_path, block_nbytes="64 KiB").astype({"kind": "category"})
    fitted = dpipe.fit(estimator, rows, "y")
    X = rows.drop(columns="y")
    expected = clone(estimator).fit(made.drop(columns="y"), made["y"])
    found = dpipe.predict(fitted, X, method="predict_proba").compute()
    assert_array_equal(np.asarray(found), expected.predict_proba(made.drop(columns="y")))
    assert dpipe.score(fitted, X, rows["y"]) == expected.score(made.drop(columns="y"), made["y"])


def test_the_last_step_of_a_pipeline():
    made = frame()
    columns = make_column_transformer(
        (StandardScaler(), ["a", "b", "n"]), (OneHotEncoder(handle_unknown="ignore"), ["kind"])
    )
    for estimator in (XGBClassifier(n_jobs=1, n_estimators=5), LGBMClassifier(n_estimators=5, **QUIET)):
        model = make_pipeline(columns, estimator)
        found = dpipe.fit(model, partitions(made), "y")
        X = made.drop(columns="y")
        expected = clone(model).fit(X, made["y"])
        assert_array_equal(found.predict(X), expected.predict(X))
        np.testing.assert_allclose(found.predict_proba(X), expected.predict_proba(X), rtol=1e-5)


@pytest.mark.parametrize(
    "estimator", [XGBRegressor(n_jobs=1, n_estimators=5), LGBMRegressor(n_estimators=5, **QUIET)]
)
def test_sparse_rows(estimator):
    made = frame()
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), estimator)
    found = dpipe.fit(model, partitions(made[["n", "yes"]]), partitions(made)["a"].fillna(0))
    expected = clone(model).fit(made[["n", "yes"]], made["a"].fillna(0))
    assert scipy.sparse.issparse(expected[0].transform(made[["n", "yes"]]))
    assert_array_equal(found.predict(made[["n", "yes"]]), expected.predict(made[["n", "yes"]]))


def test_names_of_the_columns_that_a_transformer_gives():
    model = make_pipeline(
        StandardScaler().set_output(transform="pandas"), XGBClassifier(n_jobs=1, n_estimators=2)
    )
    made = frame()[["a", "b", "y"]]
    found = dpipe.fit(model, partitions(made), "y")
    assert list(found[-1].feature_names_in_) == ["a", "b"]


@pytest.mark.parametrize(
    "estimator", [XGBRanker(n_jobs=1, n_estimators=12), LGBMRanker(n_estimators=12, **QUIET)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_groups_that_blocks_cut(estimator, weighted):
    made = pd.DataFrame(values(), columns=list("abcdef"))
    ids = groups()
    made = made.assign(y=three_classes(), query=ids, w=(1.0 + ids % 3))
    w = "w" if weighted else None
    rows = partitions(made if weighted else made.drop(columns="w"))
    found = dpipe.fit(estimator, rows, "y", w, qid="query")
    X = made[list("abcdef")]
    sizes = np.unique(ids, return_counts=True)[1]
    if isinstance(estimator, XGBRanker):
        weighing = {"sample_weight": 1.0 + np.unique(ids) % 3} if weighted else {}
        expected = clone(estimator).fit(X, made["y"], qid=ids, **weighing)
    else:
        weighing = {"sample_weight": made["w"]} if weighted else {}
        expected = clone(estimator).fit(X, made["y"], group=sizes, **weighing)
    # after ten rounds the pairs are drawn anew, in XGBoost
    first = {"iteration_range": (0, 10)} if isinstance(estimator, XGBRanker) else {}
    if isinstance(estimator, XGBRanker) and weighted:
        # XGBoost's bins of rows whose groups are weighted depend on the batches
        assert np.corrcoef(found.predict(X, **first), expected.predict(X, **first))[0, 1] > 0.98
        found = dpipe.fit(estimator, partitions(made, (N_ROWS,)), "y", w, qid="query")
    assert_array_equal(found.predict(X, **first), expected.predict(X, **first))


@pytest.mark.parametrize(
    "estimator", [XGBRanker(n_jobs=1, n_estimators=3), LGBMRanker(n_estimators=3, **QUIET)]
)
def test_groups_that_come_back_are_refused(estimator):
    X, y = values(), two_classes()
    ids = np.arange(N_ROWS) % 7
    with pytest.raises(InputError, match="some group begins twice"):
        dpipe.fit(estimator, lazy(X), lazy(y), qid=lazy(ids))


def test_rows_of_one_group_weigh_the_same():
    X, y = values(), two_classes()
    with pytest.raises(InputError, match="several weights"):
        dpipe.fit(XGBRanker(n_jobs=1, n_estimators=3), lazy(X), lazy(y), lazy(weights()), qid=lazy(groups()))


@pytest.mark.parametrize(
    "estimator",
    [
        XGBClassifier(
            n_jobs=1, n_estimators=60, early_stopping_rounds=3, eval_metric=["auc", "logloss"], max_depth=3
        ),
        XGBClassifier(n_jobs=1, n_estimators=60, early_stopping_rounds=3, eval_metric="auc"),
        XGBClassifier(n_jobs=1, n_estimators=8, eval_metric="logloss"),
        LGBMClassifier(n_estimators=60, early_stopping_round=3, **QUIET),
        LGBMClassifier(n_estimators=60, early_stopping_round=3, metric=["auc", "binary_logloss"], **QUIET),
        LGBMClassifier(
            n_estimators=60,
            early_stopping_round=3,
            metric=["auc", "binary_logloss"],
            first_metric_only=True,
            **QUIET,
        ),
        LGBMClassifier(n_estimators=3, early_stopping_round=3, **QUIET),
        LGBMClassifier(n_estimators=8, **QUIET),
    ],
)
@pytest.mark.filterwarnings("ignore:.*eval_set.*")
def test_stops_where_the_library_would(estimator):
    X, y = values(), two_classes()
    train, held_out = slice(None, 3000), slice(3000, None)
    expected = clone(estimator)
    if isinstance(estimator, XGBClassifier):
        expected.fit(X[train], y[train], eval_set=[(X[held_out], y[held_out])], verbose=False)
    else:
        expected.fit(X[train], y[train], eval_X=X[held_out], eval_y=y[held_out])
    split = [da.from_array(part, chunks=(700, *part.shape[1:])) for part in (X[train], y[train])]
    validation = tuple(
        da.from_array(part, chunks=(300, *part.shape[1:])) for part in (X[held_out], y[held_out])
    )
    found = dpipe.fit(estimator, *split, validation=validation)
    if isinstance(estimator, XGBClassifier):
        assert found.evals_result() == expected.evals_result()
        if estimator.early_stopping_rounds:
            assert (found.best_iteration, found.best_score) == (expected.best_iteration, expected.best_score)
            assert found.get_booster().num_boosted_rounds() < 60
    else:
        assert found.evals_result_ == {"valid_0": dict(expected.evals_result_["valid_0"])}
        assert found.best_iteration_ == expected.best_iteration_
        assert dict(found.best_score_["valid_0"]) == dict(expected.best_score_["valid_0"])
    assert trees(found) == trees(expected)
    assert_array_equal(found.predict_proba(X), expected.predict_proba(X))


def test_a_share_of_the_rows_is_held_out():
    made = frame().drop(columns="kind")
    estimator = XGBClassifier(n_jobs=1, n_estimators=50, early_stopping_rounds=2)
    found = dpipe.fit(estimator, partitions(made), "y", validation=0.25)
    train, held_out = dpipe.split(partitions(made), test_size=0.25)
    again = dpipe.fit(estimator, train, "y", validation=(held_out, "y"))
    assert trees(found) == trees(again)
    assert len(held_out) > 0.2 * N_ROWS


def test_a_held_out_share_of_a_ranker_keeps_groups_whole():
    made = pd.DataFrame(values(), columns=list("abcdef")).assign(y=three_classes(), query=groups())
    estimator = XGBRanker(n_jobs=1, n_estimators=20, early_stopping_rounds=3)
    found = dpipe.fit(estimator, partitions(made), "y", qid="query", validation=0.3)
    assert found.best_iteration >= 0


def test_bins_on_disk_give_the_same_trees(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    X, y = da.from_array(values(), chunks=(400, 6)), da.from_array(two_classes(), chunks=400)
    estimator = XGBClassifier(n_jobs=1, n_estimators=6, early_stopping_rounds=6)
    inside = dpipe.fit(estimator, X, y, validation=(X, y))
    # a budget in which the bins do not fit: nothing is left of it but what XGBoost takes with bins on disk
    monkeypatch.setattr("dpipe.families.boosting.Footprint.fits", lambda self, room: self.on_disk is None)
    seen = []
    monkeypatch.setattr(
        "dpipe.train.boosting.rounds.emit", lambda event: seen.append(list(tmp_path.rglob("*.page")))
    )
    outside = dpipe.fit(estimator, X, y, validation=(X, y))
    assert seen
    assert all(len(pages) == 2 for pages in seen)
    assert trees(inside) == trees(outside)
    assert not list(tmp_path.glob("dpipe-boosting-*"))


def test_what_a_killed_process_has_cached_is_removed(tmp_path):
    from dpipe.train.boosting.rounds import cache_folder

    program = (
        "import os, sys\n"
        "from dpipe.train.boosting.rounds import cache_folder\n"
        "with cache_folder(sys.argv[1]) as folder:\n"
        "    open(os.path.join(folder, 'bins'), 'wb').write(bytes(1000))\n"
        "    os._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    with cache_folder(str(tmp_path)) as folder:
        assert not left.exists()
        with cache_folder(str(tmp_path)) as other:
            assert folder != other
            assert {path.name for path in tmp_path.iterdir()} == {folder.split("/")[-1], other.split("/")[-1]}
    assert not list(tmp_path.iterdir())


@pytest.mark.cluster
@pytest.mark.parametrize(
    "estimator", [XGBClassifier(n_jobs=1, n_estimators=4), LGBMClassifier(n_estimators=4, **QUIET)]
)
def test_workers_of_a_cluster(estimator):
    X, y = lazy(values()), lazy(two_classes())
    here = dpipe.fit(estimator, X, y)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        there = dpipe.fit(estimator, X, y, client=client)
        assert_array_equal(there.predict_proba(values()), here.predict_proba(values()))


def test_the_plan_tells_what_training_takes():
    X, y = da.random.random((10_000_000, 20), chunks=(100_000, 20)), da.zeros(10_000_000, chunks=100_000)
    with raise_if_computes():
        taken = psutil.Process().memory_info().rss  # by the tests before this one, too
        roomy = dpipe.plan(XGBRegressor(n_jobs=1, n_estimators=50), X, y, memory=taken + (4 << 30))
        tight = dpipe.plan(XGBRegressor(n_jobs=1, n_estimators=50), X, y, memory=taken + (1 << 30))
        stopping = XGBRegressor(n_jobs=1, n_estimators=50, early_stopping_rounds=5)
        watched = dpipe.plan(stopping, X, y, validation=(X, y), memory=taken + (4 << 30))
    assert [step.way for step in roomy.passes] == ["boost"]
    assert "50 boosting rounds" in str(roomy)
    assert "bins are kept in memory" in roomy.passes[0].scratch
    assert "bins are cached there, up to" in tight.passes[0].scratch
    assert tight.projected_nbytes < roomy.projected_nbytes < watched.projected_nbytes
    assert "until 5 bring no progress" in str(watched)


@pytest.mark.parametrize("estimator", [XGBRegressor(), LGBMRegressor()])
def test_a_budget_that_is_too_small(estimator):
    X, y = da.random.random((10_000_000, 20), chunks=(100_000, 20)), da.zeros(10_000_000, chunks=100_000)
    with raise_if_computes(), pytest.raises(MemoryLimitError, match="10,000,000 rows of 20 columns needs"):
        dpipe.plan(estimator, X, y, memory="700 MiB")


@pytest.mark.parametrize(
    ("small", "large", "n_more"),
    [
        (LGBMRegressor(num_leaves=31), LGBMRegressor(num_leaves=1031), 1000 * 255),
        (LGBMRegressor(max_bin=63), LGBMRegressor(max_bin=255), 31 * 192),
        (LGBMRegressor(max_bins=63), LGBMRegressor(), 31 * 192),
        (XGBRegressor(), XGBRegressor(max_depth=9), (511 - 63) * 256),
        (XGBRegressor(max_depth=9, max_leaves=50), XGBRegressor(max_depth=9, max_leaves=60), 20 * 256),
        (XGBRegressor(max_depth=16), XGBRegressor(max_depth=0), 256),
    ],
)
def test_histograms_of_wide_data_and_large_trees_are_projected(small, large, n_more):
    few, many = (histograms_nbytes(estimator, 1_000_000, 1000) for estimator in (small, large))
    assert many - few == n_more * 16_000
    assert Footprint.of(large, 1_000_000, 1000).in_memory > many


def test_a_budget_that_is_too_small_for_the_histograms():
    X = da.random.random((1_000_000, 300), chunks=(100_000, 300))
    y = da.zeros(1_000_000, chunks=100_000)
    memory = psutil.Process().memory_info().rss + (2 << 30)
    dpipe.plan(LGBMRegressor(), X, y, memory=memory)
    with pytest.raises(MemoryLimitError, match="1,000,000 rows of 300 columns needs .* fewer leaves or bins"):
        dpipe.plan(LGBMRegressor(num_leaves=4095), X, y, memory=memory)


def test_a_budget_that_is_too_small_for_rows_that_are_counted_late():
    X = dd.from_dask_array(da.random.random((400_000, 3), chunks=(100_000, 3)), columns=list("abc"))
    X = X[X["a"] > 0].repartition(npartitions=4)
    import psutil

    memory = psutil.Process().memory_info().rss + 2**20
    with pytest.raises(MemoryLimitError, match="columns needs"):
        dpipe.fit(LGBMRegressor(n_estimators=2), X, X["a"], memory=memory)


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (XGBClassifier(booster="gblinear"), "booster='gblinear'"),
        (XGBClassifier(booster="dart"), "booster='dart'"),
        (XGBClassifier(tree_method="exact"), "tree_method='exact'"),
        (XGBClassifier(device="cuda"), "device='cuda'"),
        (XGBRegressor(objective=lambda y, p: (p - y, p * 0 + 1)), "objective='a function'"),
        (XGBClassifier(eval_metric=lambda y, p: 0.0), "eval_metric='a function'"),
        (XGBClassifier(updater="refresh"), "updater='refresh'"),
        (LGBMClassifier(boosting_type="dart"), "boosting_type='dart'"),
        (LGBMClassifier(boosting_type="rf"), "boosting_type='rf'"),
        (LGBMRegressor(linear_tree=True), "linear_tree=True"),
        (LGBMRegressor(device_type="gpu"), "device_type='gpu'"),
    ],
)
def test_parameters_that_cannot_be_trained_so(estimator, said):
    with raise_if_computes(), pytest.raises(UnsupportedEstimatorError, match=said):
        dpipe.plan(estimator, lazy(values()), lazy(two_classes()))


def test_estimators_of_the_libraries_own_dask_interfaces():
    import lightgbm.dask
    import xgboost.dask

    for cls, instead in (
        (xgboost.dask.DaskXGBClassifier, "XGBClassifier"),
        (lightgbm.dask.DaskLGBMRegressor, "LGBMRegressor"),
    ):
        with pytest.raises(
            UnsupportedEstimatorError, match=f"Use {instead}, which dpipe.fit trains out of core"
        ):
            dpipe.plan(cls(), lazy(values()), lazy(two_classes()))


def test_inside_of_other_estimators():
    voting = VotingClassifier([("a", XGBClassifier())])
    with pytest.raises(UnsupportedEstimatorError, match="as the last step of a Pipeline"):
        dpipe.plan(voting, lazy(values()), lazy(two_classes()))


@pytest.mark.parametrize("make", [XGBClassifier, LGBMClassifier])
def test_one_class_and_missing_labels(make):
    with pytest.raises(InputError, match="every label of y is 1"):
        dpipe.fit(make(), lazy(values()), lazy(np.ones(N_ROWS, dtype=int)))
    labels = two_classes().astype(float)
    labels[7] = np.nan
    with pytest.raises(InputError, match="1 labels are missing"):
        dpipe.fit(make(), lazy(values()), lazy(labels))


def test_labels_that_xgboost_does_not_take():
    for labels, said in (
        (two_classes() + 1, "1, 2"),
        (np.array(["no", "yes"])[two_classes()], "'no', 'yes'"),
    ):
        with pytest.raises(InputError, match=f"the labels 0 to 1, but y holds {said}"):
            dpipe.fit(XGBClassifier(), lazy(values()), lazy(labels))
    found = dpipe.fit(LGBMClassifier(n_estimators=2, **QUIET), lazy(values()), lazy(labels))
    assert found.classes_.tolist() == ["no", "yes"]


@pytest.mark.parametrize("make", [XGBRegressor, LGBMRegressor])
def test_targets_and_weights_that_cannot_be_learned_from(make):
    y, w = numbers(), weights()
    y[3000] = np.nan
    with pytest.raises(InputError, match="1 values of y are NaN or infinite"):
        dpipe.fit(make(n_estimators=2), lazy(values()), lazy(y))
    w[3] = -1
    with pytest.raises(InputError, match="sample_weight holds NaN, infinity or a negative weight"):
        dpipe.fit(make(n_estimators=2), lazy(values()), lazy(numbers()), lazy(w))


def test_infinity_is_what_xgboost_says_of_it():
    X = values()
    X[5, 2] = np.inf
    with pytest.raises(
        InputError, match=r"XGBRegressor: Input data contains `inf`.*Check its parameters"
    ) as found:
        dpipe.fit(XGBRegressor(n_jobs=1, n_estimators=2), lazy(X), lazy(numbers()))
    assert "Stack trace" not in str(found.value)


def test_a_parameter_that_the_library_refuses():
    with pytest.raises(InputError, match="XGBRegressor: .*learning_rate|eta"):
        dpipe.fit(XGBRegressor(n_jobs=1, n_estimators=2, learning_rate=-1), lazy(values()), lazy(numbers()))
    with pytest.raises(InputError, match="LGBMRegressor: "):
        dpipe.fit(LGBMRegressor(n_estimators=2, num_leaves=1, **QUIET), lazy(values()), lazy(numbers()))


def test_no_rows_at_all():
    empty = partitions(frame().iloc[:0].drop(columns="kind"), (0, 0))
    with pytest.raises(InputError, match="the data has no rows"):
        dpipe.fit(XGBClassifier(n_jobs=1, n_estimators=2), empty, "y")
    X = empty.drop(columns="y")
    with pytest.raises(InputError, match="the data has no rows"):
        dpipe.fit(LGBMRegressor(n_estimators=2), X, X["a"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"estimator": XGBClassifier(early_stopping_rounds=3)}, "there are no rows to watch it on"),
        ({"estimator": LGBMClassifier(early_stopping_round=3)}, "there are no rows to watch it on"),
        ({"estimator": XGBRanker()}, "Give qid="),
        ({"estimator": XGBClassifier(), "qid": "n"}, "takes no qid"),
        ({"estimator": XGBRanker(), "qid": "nothing"}, "qid='nothing' is not a column of X"),
        ({"estimator": XGBClassifier(), "validation": 1.5}, "must lie between 0 and 1"),
        ({"estimator": XGBClassifier(), "validation": "y"}, r"it must be \(X, y\)"),
        ({"estimator": StandardScaler(), "validation": 0.5}, "not for StandardScaler"),
        (
            {"estimator": XGBClassifier(random_state=np.random.RandomState(0))},
            "random_state is a RandomState",
        ),
        ({"estimator": XGBClassifier(n_jobs=1, n_estimators=0)}, "n_estimators must be at least 1"),
    ],
)
def test_arguments_that_do_not_fit(given, said):
    with raise_if_computes(), pytest.raises(InputError, match=said):
        dpipe.plan(X=partitions(frame().drop(columns="kind")), y="y", **given)


def test_columns_that_are_neither_numbers_nor_categories():
    made = frame()
    with pytest.raises(InputError, match="'kind' is categorical. Say XGBClassifier.enable_categorical=True"):
        dpipe.plan(XGBClassifier(), partitions(made), "y")
    texts = partitions(made.assign(kind=made["kind"].astype("str")))
    with pytest.raises(InputError, match="'kind' is of type .*astype"):
        dpipe.plan(LGBMClassifier(), texts, "y")


def test_other_columns_to_watch_it_on():
    made = frame().drop(columns="kind")
    other = partitions(made.drop(columns="a"))
    with pytest.raises(InputError, match="validation: X has the columns b, c, n, yes"):
        dpipe.plan(XGBClassifier(), partitions(made), "y", validation=(other, "y"))


def test_several_targets():
    Y = np.column_stack([numbers(), numbers() * 2])
    found = dpipe.fit(XGBRegressor(n_jobs=1, n_estimators=3), lazy(values()), lazy(Y))
    assert trees(found) == trees(XGBRegressor(n_jobs=1, n_estimators=3).fit(values(), Y))
    with pytest.raises(InputError, match="learns one target, but y has several columns"):
        dpipe.plan(LGBMRegressor(), lazy(values()), lazy(Y))
