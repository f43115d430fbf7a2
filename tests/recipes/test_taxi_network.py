"""A network over rides, small: it learns more than how often rides are tipped."""

import numpy as np
import pandas as pd
import pytest

import dpipe
from recipes.made_rides import made_rides
from recipes.taxi_network import rides_network, taxi_network
from tests.helpers import raise_if_computes

torch = pytest.importorskip("torch", reason="networks need PyTorch: pip install 'dpipe[torch]'")
torch.set_num_threads(1)  # small layers gain nothing by more, and other tests want the processors, too

TRUSTED = ["recipes.ride_features.ride_features", "recipes.ride_layers.Embedded"]


@pytest.fixture
def rides(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made_rides(30_000)


@pytest.mark.parametrize("parallel", ["data", pytest.param("model", marks=pytest.mark.slow)])
def test_the_network_beats_the_base_rate_and_its_bundle_predicts_raw_rides(rides, tmp_path, parallel):
    with raise_if_computes():
        pipe = taxi_network(
            rows=30_000, parallel=parallel, workdir=str(tmp_path / "work"), block_nbytes="1 MiB"
        )
        assert "network, 3 epochs" in str(pipe.plan())
    run = pipe.run(progress=False)
    assert run.metrics["roc_auc"] > 0.66
    tipped = (pd.concat(map(pd.read_parquet, rides)).tip_amount > 0).mean()
    base = tipped * np.log(tipped) + (1 - tipped) * np.log(1 - tipped)
    assert run.metrics["neg_log_loss"] > base + 0.03
    # the truth is the best there is, but for the luck of some thousand test rides
    assert run.metrics["neg_log_loss"] < run.references["neg_log_loss"] + 0.01
    raw = pd.read_parquet(rides[0]).head(100)
    bundle = dpipe.load(run.bundle, trusted=TRUSTED)
    chance = bundle.predict(raw, method="predict_proba")
    np.testing.assert_allclose(
        np.asarray(chance), run.model.predict_proba(raw[list(bundle.schema.names)]), rtol=1e-5
    )


def test_another_way_of_sharing_is_refused():
    with pytest.raises(dpipe.DpipeError, match="parallel must be 'data' or 'model', got 'both'"):
        rides_network(parallel="both")
