"""Grids over what can be merged: the scores of GridSearchCV, in one reading for all candidates and folds."""

import warnings

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, RandomizedSearchCV, StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import dpipe
from dpipe.errors import InputError, UnsupportedEstimatorError
from tests.helpers import raise_if_computes
from tests.tuning import counters

RNG = np.random.default_rng(0)
X = RNG.normal(size=(330, 4)) * [1, 3, 0.2, 1] + 2
TARGET = X @ [1.0, -0.5, 3.0, 0.0] + RNG.normal(size=330)
LABELS = np.array(["no", "yes"])[(TARGET + RNG.normal(size=330) > np.median(TARGET)).astype(int)]
DX = da.from_array(X, chunks=((100, 1, 99, 130), 4))


def lazy(y):
    return da.from_array(y, chunks=(DX.chunks[0],))


def assert_same(found, wanted, tolerance=1e-9):
    names = [name for name in wanted.cv_results_ if "test_score" in name]
    for name in names:
        np.testing.assert_allclose(
            found.cv_results_[name], wanted.cv_results_[name], rtol=tolerance, atol=1e-12
        )
    assert list(found.cv_results_["params"]) == wanted.cv_results_["params"]
    assert found.best_params_ == wanted.best_params_
    assert found.best_index_ == wanted.best_index_
    assert found.best_score_ == pytest.approx(wanted.best_score_)


CASES = [
    (Ridge(), {"alpha": [0.01, 1.0, 100.0]}, TARGET, 5),
    (make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": [0.01, 10.0]}, TARGET, 3),
    (
        make_pipeline(StandardScaler(), PCA(), Ridge()),
        {"pca__n_components": [1, 3], "standardscaler__with_std": [True, False], "ridge__alpha": [0.1, 50.0]},
        TARGET,
        KFold(4, shuffle=True, random_state=1),
    ),
    (GaussianNB(), {"var_smoothing": [1e-9, 1e-2, 1.0]}, LABELS, 5),
    (GaussianNB(), {"var_smoothing": [1e-9, 1.0]}, LABELS, StratifiedKFold(3, shuffle=True, random_state=0)),
    (GaussianNB(), {"var_smoothing": [1e-9, 1.0]}, LABELS, KFold(3)),
]


@pytest.mark.parametrize(("estimator", "space", "y", "cv"), CASES)
def test_the_scores_are_those_of_grid_search(estimator, space, y, cv):
    wanted = GridSearchCV(estimator, space, cv=cv).fit(X, y)
    found = dpipe.search(estimator, space, DX, lazy(y), method="grid", cv=cv)
    assert_same(found, wanted)
    np.testing.assert_allclose(
        np.asarray(found.predict(X) == wanted.predict(X), dtype=float)
        if y is LABELS
        else found.predict(X) - wanted.predict(X),
        1.0 if y is LABELS else 0.0,
        atol=1e-8,
    )


def test_a_solver_that_reads_the_data_again_and_again():
    model = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-8, max_iter=200))
    space = {"logisticregression__C": [0.01, 1.0]}
    wanted = GridSearchCV(model, space, cv=3, scoring="neg_log_loss").fit(X, LABELS)
    found = dpipe.search(model, space, DX, lazy(LABELS), method="grid", cv=3, scoring="neg_log_loss")
    assert_same(found, wanted, tolerance=1e-5)


def test_drawn_candidates():
    space = {"alpha": scipy.stats.loguniform(1e-3, 1e3)}
    wanted = RandomizedSearchCV(Ridge(), space, n_iter=6, random_state=4).fit(X, TARGET)
    options = {"method": "random", "n_initial_parameters": 6, "random_state": 4}
    assert_same(dpipe.search(Ridge(), space, DX, lazy(TARGET), **options), wanted)


def test_frames_keep_their_names_and_unknown_lengths_are_counted():
    frame = pd.DataFrame(X, columns=list("abcd")).assign(kind=np.where(X[:, 0] > 2, "u", "v"))
    columns = make_column_transformer((StandardScaler(), list("abcd")), (OneHotEncoder(), ["kind"]))
    model = make_pipeline(columns, Ridge())
    space = {"ridge__alpha": [0.1, 10.0]}
    wanted = GridSearchCV(model, space, cv=3).fit(frame, TARGET)
    some = dd.from_pandas(frame.assign(target=TARGET), npartitions=3, sort=False)
    some = some.map_partitions(lambda block: block, meta=some._meta)
    found = dpipe.search(model, space, some, "target", method="grid", cv=3)
    assert_same(found, wanted)
    np.testing.assert_allclose(found.best_estimator_.predict(frame), wanted.predict(frame))


def counted(block):
    counters.READ.append(len(block))
    return block


def test_all_candidates_and_folds_share_their_readings():
    lazy_X = DX.map_blocks(counted, meta=np.empty((0, 4)), dtype=float)
    counters.reset()
    space = {"ridge__alpha": np.logspace(-3, 3, 20)}
    asked = dpipe.Search(make_pipeline(StandardScaler(), Ridge()), space, method="grid")
    with raise_if_computes():
        plan = asked.plan(lazy_X, lazy(TARGET))
    asked.fit(lazy_X, lazy(TARGET))
    n_blocks = len(DX.chunks[0])
    # one reading fits 20 candidates on 5 folds and on all rows, and keeps the blocks, of which another one scores them
    assert len(counters.READ) == n_blocks
    assert plan.n_passes == 2
    assert asked.cv_results_["split4_test_score"].shape == (20,)


def test_what_was_found_is_on_record(tmp_path):
    lazy_X = DX.map_blocks(counted, meta=np.empty((0, 4)), dtype=float)
    space, options = {"alpha": [0.1, 10.0]}, {"method": "grid", "cv": 3, "workdir": tmp_path}
    one = dpipe.search(Ridge(), space, lazy_X, lazy(TARGET), **options)
    counters.reset()
    two = dpipe.search(Ridge(), space, lazy_X, lazy(TARGET), **options)
    assert not counters.READ
    np.testing.assert_array_equal(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(one.best_estimator_.coef_, two.best_estimator_.coef_)


@pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.FitFailedWarning", "ignore:One or more of the test scores"
)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_candidate_that_the_data_does_not_suit_is_dropped(scaled):
    twice = X[:, [0, 1, 0]]
    quadratic, name = QuadraticDiscriminantAnalysis(), "reg_param"
    if scaled:
        quadratic, name = (
            make_pipeline(StandardScaler(), quadratic),
            "quadraticdiscriminantanalysis__reg_param",
        )
    space = {name: [0.3, 0.0, 0.6]}
    found = dpipe.search(
        quadratic,
        space,
        da.from_array(twice, chunks=(110, 3)),
        da.from_array(LABELS, chunks=110),
        method="grid",
        cv=3,
    )
    assert_same(found, GridSearchCV(quadratic, space, cv=3).fit(twice, LABELS))
    assert list(found.failed_) == [1]
    assert "not full rank" in found.failed_[1]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning")
def test_candidates_that_the_data_suits_in_no_case():
    with pytest.raises(InputError, match="QuadraticDiscriminantAnalysis: .*not full rank"):
        dpipe.search(
            QuadraticDiscriminantAnalysis(),
            {"reg_param": [0.0]},
            da.from_array(X[:, [0, 0]], chunks=(110, 2)),
            da.from_array(LABELS, chunks=110),
            method="grid",
        )


def test_a_candidate_that_cannot_be_fitted_is_dropped():
    space = {"alpha": [-1.0, 1.0]}
    with pytest.warns(FitFailedWarning, match="1 of 2 candidates were dropped"):
        found = dpipe.search(Ridge(), space, DX, lazy(TARGET), method="grid")
    assert found.best_params_ == {"alpha": 1.0}
    assert "alpha" in found.failed_[0]
    assert np.isnan(found.cv_results_["mean_test_score"][0])
    assert found.cv_results_["rank_test_score"].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("estimator", "options", "error", "says"),
    [
        (Ridge(), {"cv": 1}, InputError, "at least 2"),
        (Ridge(), {"cv": "five"}, InputError, "KFold or StratifiedKFold, got 'five'"),
        (Ridge(), {"cv": KFold(3, shuffle=True)}, UnsupportedEstimatorError, "integer random_state"),
        (Ridge(), {"scoring": "accuracy"}, InputError, "accuracy"),
        (Ridge(alpha=-1.0), {}, InputError, "alpha"),
    ],
)
def test_what_does_not_do_is_told_before_anything_is_read(estimator, options, error, says):
    space = {"fit_intercept": [True, False]}
    with raise_if_computes(), pytest.raises(error, match=says):
        dpipe.search(estimator, space, DX, lazy(TARGET), method="grid", **options)


def test_in_a_pipeline(tmp_path):
    frame = dd.from_pandas(
        pd.DataFrame(X, columns=list("abcd")).assign(target=TARGET), npartitions=3, sort=False
    )
    pipe = dpipe.Pipeline("grid", workdir=tmp_path)
    model = pipe.train(dpipe.Search(Ridge(), {"alpha": [0.1, 1.0]}, method="grid"), frame, target="target")
    pipe.validate(model, frame, scoring="r2")
    assert "Search of Ridge" in str(pipe.plan())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = pipe.run(progress=False)
    assert type(run.model) is Ridge
