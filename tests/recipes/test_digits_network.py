"""Real digits, learned by processes together, from pixels to a bundle."""

import pytest
from sklearn.datasets import load_digits

import dpipe
from recipes.digits_network import digits_model, digits_network
from tests.helpers import raise_if_computes

torch = pytest.importorskip("torch", reason="networks need PyTorch: pip install 'dpipe[torch]'")
torch.set_num_threads(1)  # small layers gain nothing by more, and other tests want the processors, too


@pytest.mark.parametrize("parallel", ["data", pytest.param("model", marks=pytest.mark.slow)])
def test_digits_are_read_and_the_bundle_reads_them_too(tmp_path, parallel):
    with raise_if_computes():
        pipe = digits_network(workdir=str(tmp_path), parallel=parallel)
        assert "network, 12 epochs" in str(pipe.plan())
    run = pipe.run(progress=False)
    assert run.metrics["accuracy"] >= 0.97
    bundle = dpipe.load(run.bundle, trusted=["recipes.digits_network.scaled"])
    frame = load_digits(as_frame=True).frame
    assert (bundle.predict(frame.drop(columns="target")) == frame.target).mean() > 0.97
    assert "digits-network" in repr(bundle)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_digits_are_read_whatever_the_seed(tmp_path, seed):
    run = digits_network(workdir=str(tmp_path), random_state=seed).run(progress=False)
    assert run.metrics["accuracy"] >= 0.97


def test_another_way_of_sharing_is_refused():
    with pytest.raises(dpipe.DpipeError, match="parallel must be 'data' or 'model', got 'both'"):
        digits_model(parallel="both")
