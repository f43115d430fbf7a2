"""Optuna samplers propose the candidates of one bracket from the scores of those before."""

import dask.array as da
import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.errors import InputError
from tests.helpers import raise_if_computes

optuna = pytest.importorskip("optuna", reason="samplers are of Optuna, an extra")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(480, 4))
Y = (X[:, 0] + X[:, 1] + RNG.normal(size=480) > 0).astype(int)
DX, DY = da.from_array(X, chunks=(60, 4)), da.from_array(Y, chunks=60)
SPACE = {"alpha": optuna.distributions.FloatDistribution(1e-6, 1e2, log=True), "average": [True, False]}


def searched(**options):
    sampler = optuna.samplers.TPESampler(seed=1, n_startup_trials=5)
    return dpipe.search(SGDClassifier(random_state=0), SPACE, DX, DY, max_iter=9, sampler=sampler, **options)


def test_what_was_scored_decides_what_is_proposed(tmp_path):
    found = searched()
    assert found.metadata_["n_models"] == found.metadata["n_models"] == 17
    assert found.metadata_["partial_fit_calls"] == found.metadata["partial_fit_calls"]
    alphas = {b: [] for b in (0, 1, 2)}
    for params, bracket in zip(found.cv_results_["params"], found.cv_results_["bracket"], strict=True):
        alphas[bracket].append(params["alpha"])
        assert isinstance(params["average"], bool)
    alone = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=5))
    kinds = {**SPACE, "average": optuna.distributions.CategoricalDistribution(range(2))}
    untold = [alone.ask(kinds).params["alpha"] for _ in range(17)]
    assert alphas[2] == untold[:9]
    assert alphas[1] + alphas[0] != untold[9:]
    assert found.best_score_ == max(own[-1]["score"] for own in found.model_history_.values() if len(own) > 1)
    # the blocks that the first bracket has made ready serve the others, too
    assert found.read_.blocks == 2 * 8


def test_it_can_be_repeated_and_is_on_record(tmp_path):
    one, two = searched(), searched(workdir=tmp_path)
    again = searched(workdir=tmp_path)
    for found in (two, again):
        assert found.best_params_ == one.best_params_
        np.testing.assert_array_equal(found.cv_results_["test_score"], one.cv_results_["test_score"])
        np.testing.assert_array_equal(found.best_estimator_.coef_, one.best_estimator_.coef_)


@pytest.mark.parametrize(
    ("model", "space", "options", "says"),
    [
        (SGDClassifier(), SPACE, {"sampler": "tpe"}, "must be one of optuna.samplers, got 'tpe'"),
        (SGDClassifier(), {"alpha": scipy.stats.uniform()}, {}, "FloatDistribution"),
        (SGDClassifier(), [{"alpha": [1.0]}], {}, "must be one dict"),
        (SGDClassifier(), {"alpha": [1.0]}, {"method": "grid"}, "no sampler"),
        (
            make_pipeline(StandardScaler(), SGDClassifier()),
            {"standardscaler__with_mean": [True, False]},
            {},
            "preprocessing is not searched",
        ),
    ],
)
def test_what_does_not_do_is_told_before_anything_is_read(model, space, options, says):
    options = {"sampler": optuna.samplers.RandomSampler(seed=0), **options}
    with raise_if_computes(), pytest.raises(InputError, match=says):
        dpipe.search(model, space, DX, DY, max_iter=3, **options)
