"""Searches over candidates that learn in order: the same as by hand, in far fewer readings."""

import warnings

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import scipy.stats
from distributed import Client
from sklearn.base import BaseEstimator, clone
from sklearn.cluster import MiniBatchKMeans
from sklearn.compose import make_column_transformer
from sklearn.exceptions import FitFailedWarning
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier, SGDRegressor
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import dpipe
from dpipe.blocks.held_out import HeldOut
from dpipe.errors import DpipeError, InputError, MemoryLimitError, UnsupportedEstimatorError
from dpipe.monitor.record import RunRecord
from dpipe.tuning.learning import block_of
from tests.helpers import raise_if_computes
from tests.tuning import counters

N_BLOCKS, N = 8, 60
ALPHAS = {"alpha": np.logspace(-5, 3, 200)}


class Constant(BaseEstimator):
    """Learns nothing, and scores what it was told."""

    def __init__(self, value=0.0):
        self.value = value

    def partial_fit(self, X, y=None):
        self.n_calls_ = getattr(self, "n_calls_", 0) + 1
        return self

    def score(self, X, y=None):
        return self.value


class Touchy(SGDClassifier):
    """Raises, or comes to nothing, as it is told."""

    def __init__(self, mood="well", random_state=0):
        self.mood = mood
        super().__init__(random_state=random_state)

    def partial_fit(self, X, y, classes=None):
        if self.mood == "raises":
            raise RuntimeError("not in the mood")
        super().partial_fit(X, y, classes=classes)
        if self.mood == "diverges":
            self.coef_[:] = np.nan
        return self


def made_rows(n=N_BLOCKS * N, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4)) * [1, 2, 5, 0.1] + 3
    return X, (X[:, 0] + X[:, 1] / 2 + rng.normal(size=n) > 4.5).astype(int)


X, Y = made_rows()
DX, DY = da.from_array(X, chunks=(N, 4)), da.from_array(Y, chunks=N)


def without_times(history):
    return [{k: v for k, v in one.items() if not k.endswith("_time")} for one in history]


def sides(seed=0, share=0.2):
    """The rows that each block learns from, and all rows that are held out."""
    learned, held = [], []
    for i in range(N_BLOCKS):
        mask = HeldOut(share, seed, i, held=True).mask(N)
        rows = slice(i * N, (i + 1) * N)
        learned.append((X[rows][~mask], Y[rows][~mask]))
        held.append((X[rows][mask], Y[rows][mask]))
    return learned, tuple(np.concatenate(part) for part in zip(*held, strict=True))


@pytest.mark.parametrize("method", ["hyperband", "halving", "inverse_decay", "random"])
def test_the_best_candidate_is_what_partial_fit_by_hand_gives(method):
    model = SGDClassifier(random_state=0, loss="log_loss")
    found = dpipe.search(model, ALPHAS, DX, DY, method=method, max_iter=11, random_state=3)
    learned, (held_X, held_y) = sides(seed=3)
    by_hand = clone(model).set_params(**found.best_params_)
    for call in range(found.cv_results_["partial_fit_calls"][found.best_index_]):
        by_hand.partial_fit(*learned[block_of(3, call, N_BLOCKS)[1]], classes=[0, 1])
    np.testing.assert_array_equal(found.best_estimator_.coef_, by_hand.coef_)
    assert found.best_score_ == accuracy_score(held_y, by_hand.predict(held_X))
    assert found.best_score_ == found.cv_results_["test_score"][found.best_index_]
    assert type(found.best_estimator_) is SGDClassifier


def test_every_score_of_every_candidate_is_what_it_would_have_been_alone():
    model = SGDClassifier(random_state=0)
    found = dpipe.search(model, ALPHAS, DX, DY, max_iter=9)
    learned, (held_X, held_y) = sides()
    for own in found.model_history_.values():
        alone, calls = clone(model).set_params(**own[0]["params"]), 0
        for one in own:
            for call in range(calls, one["partial_fit_calls"]):
                alone.partial_fit(*learned[block_of(0, call, N_BLOCKS)[1]], classes=[0, 1])
            calls = one["partial_fit_calls"]
            assert one["score"] == accuracy_score(held_y, alone.predict(held_X))


@pytest.mark.parametrize(
    ("max_iter", "n_models", "n_calls"), [(1, 1, 1), (9, 17, 69), (15, 17, 101), (27, 49, 357)]
)
def test_hyperband_does_what_its_paper_says(max_iter, n_models, n_calls):
    space = {"value": scipy.stats.uniform(0, 1)}
    found = dpipe.search(Constant(), space, DX, DY, max_iter=max_iter, random_state=42)
    assert found.metadata == found.metadata_
    assert (found.metadata_["n_models"], found.metadata_["partial_fit_calls"]) == (n_models, n_calls)
    assert sum(own[-1]["partial_fit_calls"] for own in found.model_history_.values()) == n_calls
    assert found.best_score_ == max(found.cv_results_["test_score"]) == found.best_params_["value"]
    assert all(
        one["model_id"] == f"bracket={one['bracket']}-{one['model_id'].split('-')[1]}"
        for one in found.history_
    )
    assert found.cv_results_["rank_test_score"][found.best_index_] == 1


def test_each_bracket_of_hyperband_is_a_halving():
    space = {"value": scipy.stats.uniform(0, 1)}
    asked = dpipe.Search(Constant(), space, max_iter=9, random_state=1)
    for bracket in asked.metadata["brackets"]:
        params = bracket["SuccessiveHalvingSearchCV params"]
        alone = dpipe.search(Constant(), space, DX, DY, method="halving", **params)
        assert alone.metadata_["n_models"] == bracket["n_models"]
        assert alone.metadata_["partial_fit_calls"] == bracket["partial_fit_calls"]


@pytest.mark.parametrize(("n", "r"), [(9, 2), (22, 3)])
def test_halving_keeps_one_in_three(n, r):
    options = {"method": "halving", "n_initial_parameters": n, "n_initial_iter": r}
    found = dpipe.search(SGDClassifier(random_state=0), ALPHAS, DX, DY, **options)
    calls = found.cv_results_["partial_fit_calls"]
    assert min(set(calls) - {1}) == r
    assert (calls == max(calls)).sum() < 3
    assert found.metadata == found.metadata_


def test_inverse_decay_keeps_ever_fewer():
    options = {"method": "inverse_decay", "n_initial_parameters": 12, "max_iter": 20}
    found = dpipe.search(SGDClassifier(random_state=0), ALPHAS, DX, DY, **options)
    live = pd.DataFrame(found.history_).groupby("partial_fit_calls").size()
    assert live.iloc[0] == 12
    assert (np.diff(live) <= 0).all()
    assert live.iloc[-1] < 4


def test_patience_stops_who_learns_no_more():
    options = {"method": "random", "max_iter": 12, "patience": 3, "n_initial_parameters": 4}
    found = dpipe.search(Constant(), {"value": [1.0, 2.0, 3.0, 4.0]}, DX, DY, **options)
    assert max(found.cv_results_["partial_fit_calls"]) <= 4
    assert found.best_params_ == {"value": 4.0}
    hyper = dpipe.search(Constant(), {"value": scipy.stats.uniform()}, DX, DY, max_iter=27, patience=True)
    assert hyper.metadata_["partial_fit_calls"] < hyper.metadata["partial_fit_calls"]


def test_a_grid_takes_all_and_lists_are_drawn_without_repetition():
    space = {"alpha": [1e-4, 1e-2, 1.0], "average": [True, False]}
    found = dpipe.search(SGDClassifier(random_state=0), space, DX, DY, method="grid", max_iter=3)
    assert len({str(one) for one in found.cv_results_["params"]}) == 6
    drawn = dpipe.search(
        SGDClassifier(random_state=0), space, DX, DY, method="halving", n_initial_parameters=9
    )
    assert len(drawn.cv_results_["params"]) == 6


@pytest.mark.cluster
def test_the_result_does_not_depend_on_the_workers():
    model = make_pipeline(StandardScaler(), SGDClassifier())

    def searched(**options):
        space = {"sgdclassifier__alpha": scipy.stats.loguniform(1e-5, 1e2)}
        return dpipe.search(model, space, DX, DY, max_iter=9, scoring="roc_auc", **options)

    with dask.config.set(scheduler="synchronous"):
        wanted = searched()
    for n_workers in (1, 3):
        with Client(
            processes=False, n_workers=n_workers, threads_per_worker=1, dashboard_address=":0"
        ) as client:
            found = searched(client=client)
        assert without_times(found.history_) == without_times(wanted.history_)
        np.testing.assert_array_equal(found.best_estimator_[-1].coef_, wanted.best_estimator_[-1].coef_)
    assert without_times(searched().history_) == without_times(wanted.history_)  # threads of our own


def counted(block):
    if len(block):
        counters.READ.append(len(block))
        if len(counters.READ) > counters.STOP_AFTER[0]:
            raise RuntimeError("stopped")
    return block


def counted_frame(stop_after=10**9):
    frame = pd.DataFrame(X, columns=list("abcd")).assign(label=Y)
    counters.reset(stop_after)
    return dd.from_pandas(frame, npartitions=N_BLOCKS, sort=False).map_partitions(
        counted, meta=frame.iloc[:0]
    )


def test_one_reading_feeds_all_candidates():
    frame = counted_frame()
    model = make_pipeline(StandardScaler(), SGDClassifier(random_state=0))
    found = dpipe.search(model, {"sgdclassifier__alpha": ALPHAS["alpha"]}, frame, "label", max_iter=27)
    # preprocessing and classes, the held-out rows, and the rows to learn from, which are then kept
    assert len(counters.READ) == 3 * N_BLOCKS
    assert found.read_.blocks == 2 * N_BLOCKS
    alone = found.metadata_["partial_fit_calls"]
    assert found.read_.uses == alone > 5 * len(counters.READ)


def test_what_is_not_kept_is_read_once_for_all_candidates():
    words = np.array(["red", "green", "blue", "grey"])
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"text": [" ".join(rng.choice(words, 3)) for _ in range(240)]})
    frame["label"] = frame["text"].str.contains("red").astype(int)
    counters.reset()
    lazy = dd.from_pandas(frame, npartitions=4, sort=False).map_partitions(counted, meta=frame.iloc[:0])
    model = make_pipeline(HashingVectorizer(n_features=64), SGDClassifier(random_state=0))
    with dask.config.set({"dataframe.convert-string": False}):
        found = dpipe.search(
            model, {"sgdclassifier__alpha": ALPHAS["alpha"]}, lazy["text"], lazy["label"], max_iter=9
        )
    assert found.best_score_ > 0.9
    assert found.read_.uses == 69 > 2 * found.read_.blocks - 69 / 3


def test_preprocessing_is_searched_too_and_fitted_once_for_who_shares_it():
    frame = pd.DataFrame(X, columns=list("abcd")).assign(kind=np.where(X[:, 3] > 3, "u", "v"), label=Y)
    lazy = dd.from_pandas(frame, npartitions=4, sort=False)
    columns = make_column_transformer((StandardScaler(), list("abc")), (OneHotEncoder(), ["kind"]))
    model = make_pipeline(columns, SGDClassifier(random_state=0, loss="log_loss"))
    name = "columntransformer__standardscaler__with_std"
    space = {name: [True, False], "sgdclassifier__alpha": ALPHAS["alpha"]}
    asked = dpipe.Search(model, space, max_iter=9)
    with raise_if_computes():
        plan = asked.plan(lazy.drop(columns="label"), lazy["label"])
    assert plan.n_passes == 2
    assert [step.way for step in plan.passes] == ["merge", "search"]
    assert [what for what in plan.passes[0].collects if what.startswith("Moments")] == ["Moments of a, b, c"]
    found = asked.fit(lazy.drop(columns="label"), lazy["label"])
    assert len({str(one[name]) for one in found.cv_results_["params"]}) == 2
    scaler = found.best_estimator_[0].named_transformers_["standardscaler"]
    assert scaler.with_std == found.best_params_[name]
    learned = np.concatenate(
        [
            frame[list("abc")].to_numpy()[i * 120 : i * 120 + 120][HeldOut(0.2, 0, i, False).mask(120)]
            for i in range(4)
        ]
    )
    np.testing.assert_allclose(scaler.mean_, learned.mean(axis=0))
    assert found.best_estimator_.predict(frame).shape == (480,)


def test_kinds_of_input_give_the_same():
    space, options = {"alpha": [1e-4, 1e-1, 10.0]}, {"method": "grid", "max_iter": 5}
    model = SGDClassifier(random_state=0)
    wanted = dpipe.search(model, space, DX, DY, **options)
    frame = dd.from_pandas(
        pd.DataFrame(X, columns=list("abcd")).assign(label=Y), npartitions=N_BLOCKS, sort=False
    )
    found = dpipe.search(model, space, frame, "label", **options)
    np.testing.assert_array_equal(found.best_estimator_.coef_, wanted.best_estimator_.coef_)
    assert found.best_estimator_.feature_names_in_.tolist() == list("abcd")
    unknown = dd.from_dask_array(DX).to_dask_array(), dd.from_dask_array(DY).to_dask_array()
    found = dpipe.search(model, space, *unknown, **options)
    np.testing.assert_array_equal(found.best_estimator_.coef_, wanted.best_estimator_.coef_)
    inside = dpipe.search(model, space, X, Y, **options)
    assert inside.best_score_ > 0.6


def test_rows_to_compare_by_may_be_given():
    other_X, other_y = made_rows(100, seed=9)
    model, options = SGDClassifier(random_state=0), {"method": "grid", "max_iter": N_BLOCKS}
    found = dpipe.search(
        model,
        {"alpha": [1e-3, 1.0]},
        DX,
        DY,
        validation=(da.from_array(other_X, 50), da.from_array(other_y, 50)),
        **options,
    )
    by_hand = clone(model).set_params(**found.best_params_)
    for call in range(N_BLOCKS):
        rows = slice(block_of(0, call, N_BLOCKS)[1] * N, (block_of(0, call, N_BLOCKS)[1] + 1) * N)
        by_hand.partial_fit(X[rows], Y[rows], classes=[0, 1])
    assert found.best_score_ == by_hand.score(other_X, other_y)
    frame = pd.DataFrame(X, columns=list("abcd")).assign(label=Y)
    other = pd.DataFrame(other_X, columns=list("abcd")).assign(label=other_y)
    lazy = dd.from_pandas(frame, npartitions=N_BLOCKS, sort=False)
    again = dpipe.search(model, {"alpha": [1e-3, 1.0]}, lazy, "label", validation=other, **options)
    assert again.best_score_ == found.best_score_


def test_weights_classes_and_what_has_no_targets():
    w = da.from_array(np.where(Y == 1, 5.0, 0.2), chunks=N)
    heavy = dpipe.search(SGDClassifier(random_state=0), {"alpha": [1e-4, 1e-2]}, DX, DY, w, max_iter=3)
    assert heavy.best_estimator_.predict(X).mean() > 0.9
    given = dpipe.search(
        SGDClassifier(random_state=0), {"alpha": [1e-4, 1e-2]}, DX, DY, max_iter=3, classes=[0, 1, 2]
    )
    assert given.best_estimator_.classes_.tolist() == [0, 1, 2]
    assert len(given.plan(DX, DY).passes) == 1
    groups = dpipe.search(
        MiniBatchKMeans(random_state=0, n_init=1), {"n_clusters": [2, 3, 8]}, DX, method="grid", max_iter=4
    )
    assert groups.best_params_ == {"n_clusters": 8}
    assert groups.transform(DX).compute().shape == (N_BLOCKS * N, 8)


def test_sparse_rows_texts_as_labels_and_ranks():
    labels = DY.map_blocks(lambda y: np.array(["no", "yes"], dtype=object)[y], dtype=object)
    options = {"max_iter": 9, "scoring": "roc_auc"}
    found = dpipe.search(SGDClassifier(random_state=0), ALPHAS, DX, labels, **options)
    wanted = dpipe.search(SGDClassifier(random_state=0), ALPHAS, DX, DY, **options)
    assert found.best_estimator_.classes_.tolist() == ["no", "yes"]
    np.testing.assert_array_equal(found.best_estimator_.coef_, wanted.best_estimator_.coef_)
    sparse = DX.map_blocks(scipy.sparse.csr_matrix, dtype=float)
    assert dpipe.search(SGDClassifier(random_state=0), ALPHAS, sparse, DY, **options).best_score_ > 0.7
    _, (held_X, held_y) = sides()
    said = wanted.best_estimator_.decision_function(held_X)
    assert wanted.best_score_ == pytest.approx(roc_auc_score(held_y, said), abs=1e-12)


def test_a_candidate_that_raises_or_diverges_is_dropped_and_told_of():
    space = {"mood": ["well", "raises", "diverges"]}
    with pytest.warns(FitFailedWarning, match=r"2 of 3 candidates were dropped"):
        found = dpipe.search(Touchy(), space, DX, DY, method="grid", max_iter=6)
    assert found.best_params_ == {"mood": "well"}
    assert found.failed_ == {
        1: "RuntimeError: not in the mood",
        2: "Touchy, epoch 1, block 2: its coef_ is no longer finite. It has diverged: standardise its columns "
        "(StandardScaler), or take smaller steps (eta0, learning_rate_init).",
    }
    assert np.isnan(found.cv_results_["test_score"][1:]).all()
    assert found.cv_results_["rank_test_score"].tolist() == [1, 2, 2]
    assert [own[-1]["partial_fit_calls"] for own in found.model_history_.values()] == [6, 1, 1]


def test_a_step_that_is_too_long_diverges():
    space = {"eta0": [1e-3, 1e200]}
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        found = dpipe.search(
            SGDRegressor(random_state=0, learning_rate="constant"),
            space,
            DX,
            DX[:, 0],
            method="grid",
            max_iter=4,
        )
    assert found.best_params_ == {"eta0": 1e-3}
    assert list(found.failed_) == [1]


def test_if_all_fail_that_is_an_error():
    with pytest.raises(DpipeError, match=r"All 2 candidates have failed.*not in the mood"):
        dpipe.search(
            Touchy(), {"mood": ["raises"], "random_state": [0, 1]}, DX, DY, method="grid", max_iter=2
        )


def test_a_class_that_comes_late_and_empty_blocks():
    y = np.sort(Y)
    y[-20:] = 2  # all of it in the last block
    frame = pd.DataFrame(X, columns=list("abcd")).assign(label=y, block=np.arange(len(X)) // N)
    lazy = dd.from_pandas(frame, npartitions=N_BLOCKS, sort=False)
    found = dpipe.search(
        SGDClassifier(random_state=0),
        {"alpha": [1e-4, 1e-3]},
        lazy.drop(columns="label"),
        lazy["label"],
        max_iter=9,
    )
    assert found.best_estimator_.classes_.tolist() == [0, 1, 2]
    some = lazy[lazy["block"] != 3]
    found = dpipe.search(SGDClassifier(random_state=0), {"alpha": [1e-4, 1e-3]}, some, "label", max_iter=9)
    assert np.isfinite(found.cv_results_["test_score"]).all()
    none = lazy[lazy["block"] > 99]
    with pytest.raises(InputError, match="the data has no rows"):
        dpipe.search(SGDClassifier(), {"alpha": [1e-4]}, none, "label", max_iter=3)


@pytest.mark.parametrize(
    ("estimator", "space", "options", "error", "says"),
    [
        (
            LogisticRegression(),
            {"C": [1.0]},
            {},
            UnsupportedEstimatorError,
            "LogisticRegression has no partial_fit",
        ),
        (SGDClassifier(), {"alhpa": [1.0]}, {}, InputError, "no parameter 'alhpa'. Did you mean 'alpha'"),
        (SGDClassifier(), {}, {}, InputError, "parameters is empty"),
        (SGDClassifier(), {"alpha": []}, {}, InputError, r"parameters\['alpha'\] is empty"),
        (SGDClassifier(), {"alpha": 1.0}, {}, InputError, "must be a list of values"),
        (SGDClassifier(), "alpha", {}, InputError, "parameters must be a dict"),
        (SGDClassifier(), ALPHAS, {"method": "magic"}, InputError, "no method 'magic'. Known: hyperband"),
        (SGDClassifier(), ALPHAS, {"max_iter": 0}, InputError, "max_iter < 1 is not supported"),
        (
            SGDClassifier(),
            ALPHAS,
            {"method": "halving", "n_initial_parameters": 0},
            InputError,
            "at least 1, got 0",
        ),
        (SGDClassifier(), ALPHAS, {"aggressiveness": 1}, InputError, "a number above 1"),
        (SGDClassifier(), ALPHAS, {"patience": 1}, InputError, "patience >= 2"),
        (SGDClassifier(), ALPHAS, {"test_size": 1.5}, InputError, "between 0 and 1, got 1.5"),
        (SGDClassifier(), ALPHAS, {"random_state": None}, InputError, "random_state must be an integer"),
        (SGDClassifier(), ALPHAS, {"scoring": "acuracy"}, InputError, "Did you mean 'accuracy'"),
        (SGDClassifier(), ALPHAS, {"scoring": ["accuracy", "f1"]}, InputError, "compares by one metric"),
        (SGDClassifier(early_stopping=True), ALPHAS, {}, UnsupportedEstimatorError, "early_stopping=True"),
        (SGDClassifier, ALPHAS, {}, InputError, "must be an unfitted estimator"),
        (
            SGDClassifier(),
            {"alpha": scipy.stats.uniform()},
            {"method": "grid"},
            InputError,
            "is a distribution. Give a list",
        ),
    ],
)
def test_what_does_not_do_is_told_before_anything_is_read(estimator, space, options, error, says):
    with raise_if_computes(), pytest.raises(error, match=says):
        dpipe.search(estimator, space, DX, DY, **options)


def test_a_budget_that_is_too_small():
    with raise_if_computes(), pytest.raises(MemoryLimitError, match="Give at least"):
        dpipe.search(SGDClassifier(), ALPHAS, DX, DY, memory="1 MiB")


def test_epochs_are_its_own():
    with (
        raise_if_computes(),
        pytest.raises(InputError, match="epochs, validation, qid and shares are not for a Search"),
    ):
        dpipe.fit(dpipe.Search(SGDClassifier(), ALPHAS), DX, DY, epochs=3)


def test_ranks_take_no_weights():
    weights = da.ones(N_BLOCKS * N, chunks=N)
    with raise_if_computes(), pytest.raises(InputError, match="roc_auc does not take sample_weight"):
        dpipe.search(SGDClassifier(), ALPHAS, DX, DY, weights, scoring="roc_auc")


def test_targets_must_be_there():
    with raise_if_computes(), pytest.raises(InputError, match="y is None"):
        dpipe.search(SGDClassifier(), ALPHAS, DX)


def history_of(found):
    return without_times(found.history_), found.best_params_, found.best_score_


@pytest.mark.parametrize("after", [3, N_BLOCKS + 5, 2 * N_BLOCKS + 3, 2 * N_BLOCKS + 7])
def test_a_search_that_was_stopped_goes_on(tmp_path, after):
    model = make_pipeline(StandardScaler(), SGDClassifier(random_state=0))
    space, options = {"sgdclassifier__alpha": ALPHAS["alpha"]}, {"max_iter": 9}
    wanted = dpipe.search(model, space, counted_frame(), "label", **options)
    with pytest.raises(RuntimeError, match="stopped"):
        dpipe.search(model, space, counted_frame(stop_after=after), "label", workdir=tmp_path, **options)
    found = dpipe.search(model, space, counted_frame(), "label", workdir=tmp_path, **options)
    assert history_of(found) == history_of(wanted)
    np.testing.assert_array_equal(found.best_estimator_[-1].coef_, wanted.best_estimator_[-1].coef_)
    assert len(counters.READ) < 3 * N_BLOCKS
    lazy = counted_frame()
    again = dpipe.search(model, space, lazy, "label", workdir=tmp_path, **options)
    assert history_of(again) == history_of(wanted)
    assert not counters.READ
    record = RunRecord.read(tmp_path / "run.json")
    assert "search: the whole search is on record." in record.notes
    assert len(record.searches[0].lines) == 17


def test_another_search_on_the_same_workdir_is_another_one(tmp_path):
    model, space = SGDClassifier(random_state=0), {"alpha": [1e-4, 1e-1]}
    one = dpipe.search(model, space, DX, DY, max_iter=3, workdir=tmp_path)
    two = dpipe.search(model, space, DX, DY, max_iter=9, workdir=tmp_path)
    assert history_of(one) != history_of(two)
    assert history_of(two) == history_of(dpipe.search(model, space, DX, DY, max_iter=9))


def test_in_a_pipeline(tmp_path):
    frame = pd.DataFrame(X, columns=list("abcd")).assign(label=Y)
    (tmp_path / "data").mkdir()
    frame.to_parquet(tmp_path / "data" / "rows.parquet", row_group_size=N)
    pipe = dpipe.Pipeline("searched", workdir=tmp_path / "run")
    train, test = pipe.split(pipe.collect(str(tmp_path / "data")), test_size=0.25)
    model = make_pipeline(StandardScaler(), SGDClassifier(random_state=0))
    asked = dpipe.Search(model, {"sgdclassifier__alpha": ALPHAS["alpha"]}, max_iter=9)
    with raise_if_computes():
        trained = pipe.train(asked, train, target="label")
        scores = pipe.validate(trained, test, require={"accuracy": 0.6})
        pipe.deploy(trained, scores)
        assert "17 candidates by hyperband" in str(pipe.plan())
    run = pipe.run(progress=False)
    assert type(run.model) is type(model)
    assert run.metrics["accuracy"] > 0.6
    assert asked.best_params_["sgdclassifier__alpha"] == run.model[-1].alpha
    record = RunRecord.read(tmp_path / "run" / "run.json")
    assert [one.way for one in record.passes] == ["merge", "search", "score"]
    assert sum(line.best for line in record.searches[0].lines) == 1
    page = run.report.read_text()
    assert "Search by accuracy" in page
    assert "bracket 2" in page
    loaded = dpipe.load(tmp_path / "run" / "bundle")
    assert loaded is not None
    again = pipe.run(progress=False)
    assert again.metrics == run.metrics
    assert "train: the whole search is on record." in RunRecord.read(tmp_path / "run" / "run.json").notes


def test_it_is_an_estimator(tmp_path):
    asked = dpipe.Search(SGDClassifier(random_state=0, loss="log_loss"), ALPHAS, max_iter=3)
    found = clone(asked).fit(DX, DY)
    assert not hasattr(asked, "best_estimator_")
    np.testing.assert_array_equal(found.predict(DX).compute(), found.best_estimator_.predict(X))
    np.testing.assert_allclose(found.predict_proba(X), found.best_estimator_.predict_proba(X))
    assert found.decision_function(X).shape == (N_BLOCKS * N,)
    assert found.score(DX, DY) == pytest.approx(found.best_estimator_.score(X, Y))
    fitted = dpipe.fit(asked, DX, DY)
    np.testing.assert_array_equal(fitted.coef_, found.best_estimator_.coef_)
    np.testing.assert_array_equal(dpipe.fit(asked, DX, DY, compute=False).compute().coef_, fitted.coef_)
    assert dpipe.plan(asked, DX, DY).passes[-1].way == "search"
    page = found.visualize(tmp_path / "brackets.html").read_text()
    assert "calls of partial_fit" in page
    assert "<script src=" not in page


@pytest.mark.parametrize(
    ("search", "says"),
    [
        (
            dpipe.Search(
                make_pipeline(StandardScaler(), SGDClassifier()),
                {"sgdclassifier__alpha": [1e-4, 0.1]},
                max_iter=9,
            ),
            "the whole search is on record",
        ),
        (dpipe.Search(Ridge(), {"alpha": [0.1, 1.0]}, method="grid", cv=3), "pass 1 on record"),
    ],
    ids=["brackets", "folds"],
)
def test_the_plan_of_a_pipeline_says_what_is_on_record_of_it(search, says, tmp_path):
    pipe = dpipe.Pipeline("searched", workdir=tmp_path)
    frame = pd.DataFrame(X, columns=list("abcd")).assign(label=Y)
    pipe.train(search, pipe.collect(dd.from_pandas(frame, npartitions=4, sort=False)), target="label")
    with raise_if_computes():
        assert "on record" not in str(pipe.plan())
    pipe.run(progress=False)
    with raise_if_computes():
        assert says in str(pipe.plan())
