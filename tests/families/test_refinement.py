"""Fits that read the data several times: how often they read, what they share, what they keep, what they refuse."""

import os

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import GammaRegressor, HuberRegressor, LogisticRegression, PoissonRegressor
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import LinearSVC, LinearSVR

import dpipe
import dpipe.train.prepare as fitting
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families.asking import asking, together
from tests.helpers import raise_if_computes
from tests.kernel_cases import array_blocks, assert_same, awkward_frame, in_blocks

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 3))
Y = (X @ [1.0, -2.0, 0.5] + RNG.normal(size=400) > 0).astype(int)
BLOCKS = (0, 150, 1, 249)


def blocks(reads=None):
    """X and y as blocks that note when they are read."""

    def seen(block):
        if reads is not None and len(block):
            reads.append(len(block))
        return block

    return array_blocks(X, BLOCKS).map_blocks(seen, dtype=float, meta=np.empty((0, 3))), array_blocks(
        Y, BLOCKS
    )


def n_readings(estimator, y=None):
    """How often `fit` reads the longest block."""
    reads = []
    lazy, labels = blocks(reads)
    dpipe.fit(estimator, lazy, None if y is None else labels)
    return reads.count(249)


@pytest.mark.parametrize(
    ("estimator", "readings"),
    [
        (RobustScaler(), 1),
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), 2),
        (make_pipeline(RobustScaler(), StandardScaler()), 2),
        (make_union(RobustScaler(), QuantileTransformer(n_quantiles=9), SimpleImputer(strategy="median")), 1),
        (KMeans(2, random_state=0), 2),
        (make_union(KMeans(2, random_state=0), KMeans(5, random_state=1), KMeans(3, init="random")), 2),
    ],
    ids=[
        "few rows",
        "algebra after a median",
        "algebra after a scaler",
        "shared",
        "scratch",
        "shared scratch",
    ],
)
def test_fits_share_readings_and_keep_blocks(estimator, readings):
    assert n_readings(estimator) == readings


def test_labels_are_read_first_and_the_rest_kept():
    assert n_readings(make_pipeline(StandardScaler(), LogisticRegression()), Y) == 2


@pytest.fixture
def no_room(monkeypatch):
    """Take the memory for full, so that blocks go to scratch."""
    monkeypatch.setattr("dpipe.families.keeping._SHARE_OF_FREE", 0.0)


@pytest.mark.parametrize(
    "estimator",
    [LogisticRegression(), KMeans(3, n_init=2, random_state=0), QuantileTransformer(n_quantiles=9)],
)
def test_it_does_not_matter_where_blocks_are_kept(estimator, request):
    lazy, labels = blocks()
    held = dpipe.fit(estimator, lazy, labels)
    request.getfixturevalue("no_room")
    kept = dpipe.fit(estimator, lazy, labels)
    for name, value in vars(kept).items():
        np.testing.assert_array_equal(getattr(held, name), value, err_msg=name)


def test_without_room_for_scratch_the_blocks_are_read_again(monkeypatch, no_room):
    monkeypatch.setattr(fitting, "free_nbytes", lambda folder: 1000)
    lazy, labels = blocks()
    plan = dpipe.plan(LogisticRegression(), lazy, labels)
    assert "no scratch" in str(plan)
    assert "TMPDIR" in plan.passes[-1].scratch
    assert n_readings(LogisticRegression(), Y) > 5


def test_the_plan_tells_how_often_and_what_is_kept(no_room):
    lazy, labels = blocks()
    with raise_if_computes():
        plan = dpipe.plan(LogisticRegression(max_iter=7), lazy, labels)
    assert (plan.n_passes, plan.most_passes) == (2, 9)
    assert [step.way for step in plan.passes] == ["merge", "refine"]
    assert plan.passes[1].scratch_nbytes == 400 * (3 * 8 + 8)
    for said in (
        "2 to 9 passes",
        "1 to 8 readings",
        "loss and gradient of X, each time",
        "scratch: transformed blocks",
    ):
        assert said in str(plan)
    assert "refine, 1 to 8 readings" in plan._repr_html_()


def test_nothing_of_the_scratch_is_left(tmp_path, no_room):
    lazy, labels = blocks()
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        assert str(tmp_path) in str(dpipe.plan(LogisticRegression(), lazy, labels))
        dpipe.fit(LogisticRegression(), lazy, labels)
    assert os.listdir(tmp_path) == []


def test_scratch_holds_what_the_transformers_give(no_room):
    frame = awkward_frame()
    model = make_pipeline(
        make_column_transformer(
            (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), ["plain", "holes"]),
            (OneHotEncoder(handle_unknown="ignore"), ["text", "kind"]),
        ),
        LogisticRegression(),
    )
    found = dpipe.fit(model, in_blocks(frame), "flag")
    expected = model.fit(frame.drop(columns="flag"), frame["flag"])
    np.testing.assert_allclose(found[-1].coef_, expected[-1].coef_, rtol=1e-6)
    rows = frame.drop(columns="flag")
    np.testing.assert_allclose(found.predict_proba(rows), expected.predict_proba(rows), rtol=1e-6)


def test_texts_beside_a_refining_fit_stay_out_of_scratch():
    frame = awkward_frame()
    model = make_column_transformer(
        (PowerTransformer(), ["plain"]),
        (
            make_pipeline(SimpleImputer(strategy="most_frequent"), FunctionTransformer(), OrdinalEncoder()),
            ["text"],
        ),
        (make_pipeline(FunctionTransformer(), OrdinalEncoder(), OneHotEncoder()), ["text"]),
    )
    found = dpipe.fit(model, in_blocks(frame))
    np.testing.assert_allclose(
        found.transform(frame), model.fit(frame).transform(frame), rtol=1e-6, atol=1e-9
    )


def test_a_delayed_fit_takes_all_readings_in_one_task():
    lazy, labels = blocks()
    with raise_if_computes():
        delayed = dpipe.fit(LogisticRegression(), lazy, labels, compute=False)
    assert_same(delayed.compute(), LogisticRegression().fit(X, Y), 1e-6)


@pytest.mark.cluster
@pytest.mark.parametrize("processes", [True, False])
def test_workers_keep_their_own_scratch(processes):
    lazy, labels = blocks()
    model = make_pipeline(StandardScaler(), LogisticRegression())
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=processes, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        found = dpipe.fit(model, lazy, labels, client=client)
    assert_same(found, model.fit(X, Y), 1e-6)


def test_weights_reach_every_reading():
    w = RNG.random(400)
    lazy, labels = blocks()
    found = dpipe.fit(LogisticRegression(), lazy, labels, array_blocks(w, BLOCKS))
    np.testing.assert_allclose(found.coef_, LogisticRegression().fit(X, Y, w).coef_, rtol=1e-6)
    found = dpipe.fit(KMeans(3, random_state=0), lazy, None, array_blocks(w, BLOCKS))
    expected = KMeans(3, random_state=0).fit(X, sample_weight=w)
    np.testing.assert_allclose(found.cluster_centers_, expected.cluster_centers_)


def test_solvers_that_call_and_solvers_that_yield_advance_in_step():
    def doubling(n):
        total = 0
        for i in range(n):
            (answer,) = yield (i,)
            total += answer
        return total

    def answered(refinement):
        """Counts the rounds; a generator, to catch what another one returns."""
        found = yield from refinement
        assert found == [10, 30, 0]

    both = answered(
        together([doubling(2), asking(lambda ask: sum(ask(i)[0] for i in range(3))), doubling(0)])
    )
    wants = next(both)
    assert wants == (0, 0)
    wants = both.send([0, 0])
    assert wants == (1, 1)
    wants = both.send([10, 10])
    assert wants == (2,)
    with pytest.raises(StopIteration):
        both.send([20])


def test_a_solver_that_nobody_asks_any_more_ends():
    search = asking(lambda ask: [ask(i) for i in range(9)])
    next(search)
    search.close()  # waits for the solver's thread


def test_an_error_in_a_solver_is_raised_where_it_is_asked():
    def broken(ask):
        ask("first")
        raise ValueError("no step")

    search = asking(broken)
    next(search)
    with pytest.raises(ValueError, match="no step"):
        search.send([1])


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (LogisticRegression(warm_start=True), "warm_start"),
        (LogisticRegression(solver="lbfgs", l1_ratio=1.0), "supports only"),
        (LinearSVC(loss="hinge"), "squared_hinge"),
        (LinearSVC(multi_class="crammer_singer"), "ovr"),
        (LinearSVR(), "squared_epsilon_insensitive"),
        (KMeans(2, init=lambda X, k, random_state: X[:k]), "k-means"),
        (KBinsDiscretizer(strategy="kmeans", subsample=None), "subsample"),
        (GaussianMixture(2, init_params="random"), "kmeans"),
        (GaussianMixture(2, warm_start=True), "warm_start"),
        (HuberRegressor(warm_start=True), "warm_start"),
    ],
)
def test_what_has_no_way_is_refused_before_anything_is_read(estimator, message):
    lazy, labels = blocks()
    with raise_if_computes(), pytest.raises((UnsupportedEstimatorError, InputError), match=message):
        dpipe.plan(estimator, lazy, labels)


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        LogisticRegression(solver="newton-cholesky"),
        PoissonRegressor(),
        HuberRegressor(),
        LinearSVC(),
        LinearSVR(loss="squared_epsilon_insensitive"),
        KMeans(2),
        GaussianMixture(2),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_missing_and_infinite_values_are_refused(estimator, value):
    values = X.copy()
    values[3, 1] = value
    with pytest.raises(InputError, match=r"missing|infinite|infinity|NaN"):
        dpipe.fit(estimator, array_blocks(values, BLOCKS), array_blocks(Y, BLOCKS))


@pytest.mark.parametrize(
    "transformer", [RobustScaler(), QuantileTransformer(n_quantiles=5), PowerTransformer()]
)
def test_infinity_is_refused_with_the_name_of_the_column(transformer):
    values = X.copy()
    values[3, 1] = np.inf
    with pytest.raises(InputError, match="'x1'.*infinite"):
        dpipe.fit(transformer, array_blocks(values, BLOCKS))


def test_one_class_and_wrong_weights_of_classes_are_named():
    lazy, labels = blocks()
    with pytest.raises(InputError, match="at least two classes"):
        dpipe.fit(LogisticRegression(), lazy, da.zeros_like(labels))
    with pytest.raises(InputError, match="class_weight names 'maybe'"):
        dpipe.fit(LogisticRegression(class_weight={"maybe": 2.0}), lazy, labels)


@pytest.mark.parametrize(
    ("estimator", "y"),
    [(PoissonRegressor(), Y - 1.0), (GammaRegressor(), Y + 0.0), (GammaRegressor(), Y - 5.0)],
)
def test_targets_out_of_range_are_named(estimator, y):
    with pytest.raises(InputError, match="range of its loss"):
        dpipe.fit(estimator, array_blocks(X, BLOCKS), array_blocks(y, BLOCKS))


def test_too_few_rows_for_the_clusters():
    with pytest.raises(InputError, match="500 clusters, but there are only 400 rows"):
        dpipe.fit(KMeans(500), array_blocks(X, BLOCKS))


@pytest.mark.parametrize(
    "estimator", [LogisticRegression(max_iter=1), LogisticRegression(solver="newton-cholesky", max_iter=1)]
)
def test_who_does_not_converge_warns_as_scikit_learn_does(estimator):
    lazy, labels = blocks()
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        dpipe.fit(estimator.set_params(tol=1e-12), lazy, labels)


def test_box_cox_names_the_column_that_is_not_positive():
    with pytest.raises(InputError, match="'x0'.*'x1'.*positive"):
        dpipe.fit(PowerTransformer("box-cox"), array_blocks(X, BLOCKS))


@pytest.mark.parametrize("low", [43.0, 1000.0, 0.5])
def test_strong_powers_that_make_all_values_alike_do_not_mislead(low):
    x = low * (1 + np.random.default_rng(0).gamma(3.0, 0.05, size=(3000, 1)))
    logs = np.log1p(x.ravel())

    def likelihood(exponent):
        # without the constant of the transform, beside which strong powers are lost to rounding
        powers = np.exp(exponent * (logs - logs.mean())) / exponent
        spread = np.log(powers.var()) + 2 * exponent * logs.mean()
        return -0.5 * len(logs) * spread + (exponent - 1) * logs.sum()

    found, wanted = dpipe.fit(PowerTransformer(), x), PowerTransformer().fit(x)
    assert likelihood(found.lambdas_[0]) >= likelihood(wanted.lambdas_[0]) - 1e-6
    np.testing.assert_allclose(found.lambdas_, wanted.lambdas_, rtol=0.02)
