"""The main job, small."""

import numpy as np
import pandas as pd
import pytest

import dpipe
from dpipe.monitor.record import RunRecord
from recipes.made_rides import made_rides
from recipes.taxi_tips import taxi_tips
from tests.helpers import raise_if_computes

TRUSTED = ["recipes.ride_features.ride_features"]


@pytest.fixture
def rides(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made_rides(30_000)


def test_the_recipe_is_lazy_until_run_and_comes_close_to_the_truth(rides, tmp_path):
    with raise_if_computes():
        pipe = taxi_tips(rows=30_000, workdir=str(tmp_path / "work"), block_nbytes="1 MiB")
        plan = pipe.plan()
    assert plan.fits[0][1].n_passes == 2
    run = pipe.run(progress=False)
    assert run.metrics["roc_auc"] > 0.65
    # the truth is the best there is, but for the luck of some thousand test rides
    assert run.metrics["roc_auc"] < run.references["roc_auc"] + 0.01
    assert run.metrics["neg_log_loss"] < run.references["neg_log_loss"] + 0.01
    record = RunRecord.read(tmp_path / "work" / "run.json")
    assert {curve.name.split()[0].lower() for curve in record.curves} & {"roc"}


def test_the_recipe_runs_on_files_of_ones_own_and_its_bundle_predicts_raw_rides(rides, tmp_path):
    pipe = taxi_tips([str(path) for path in rides], workdir=str(tmp_path / "work"), block_nbytes="1 MiB")
    run = pipe.run(progress=False)
    assert run.references == {}
    raw = pd.read_parquet(rides[0]).head(100)
    bundle = dpipe.load(run.bundle, trusted=TRUSTED)
    chance = bundle.predict(raw, method="predict_proba")
    np.testing.assert_allclose(np.asarray(chance), run.model.predict_proba(raw[list(bundle.schema.names)]))


def test_the_same_seed_gives_the_same_bits_whatever_the_workers(rides, tmp_path):
    coefficients = []
    for workers in (1, 2):
        pipe = taxi_tips(rows=30_000, workdir=str(tmp_path / f"work-{workers}"), block_nbytes="1 MiB")
        coefficients.append(pipe.run(progress=False, workers=workers).model[-1].coef_)
    np.testing.assert_array_equal(*coefficients)
