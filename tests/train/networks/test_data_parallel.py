"""Networks that several processes train, beside one that a plain loop of torch trains."""

import functools
import os
import threading
import time

import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from sklearn.base import clone

from dpipe.errors import InputError
from dpipe.train.loading.loader import Loader
from dpipe.train.networks.data_parallel import DataParallel

torch = pytest.importorskip("torch", reason="networks need PyTorch: pip install 'dpipe[torch]'")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1000, 6))
Y = (X[:, 0] - 2 * X[:, 1] + 0.1 * RNG.normal(size=1000)).astype("float32")


def module():
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1), torch.nn.Flatten(0)
    return torch.nn.Sequential(*layers)


def estimator(loss=torch.nn.functional.mse_loss, **given):
    how = {"batch_size": 128, "epochs": 2, "checkpoint_every": 3}
    optimizer = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    return DataParallel(module(), loss, optimizer, **(how | given))


@pytest.fixture(scope="module")
def by_hand():
    """Losses and weights of a plain loop over the same batches."""
    net = module()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    loader, losses = Loader(X, Y, batch_size=128), []
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses, net.state_dict()


def counted_loss(output, y):
    """Compute the loss of so many batches as the environment allows."""
    if len(y) == 2:  # it is tried first
        return torch.nn.functional.mse_loss(output, y)
    left = int(os.environ["STOP_AFTER"])
    if not left:
        raise KeyboardInterrupt
    os.environ["STOP_AFTER"] = str(left - 1)
    return torch.nn.functional.mse_loss(output, y)


def assert_same(fitted, by_hand):
    losses, weights = by_hand
    np.testing.assert_allclose(fitted.losses_, losses, rtol=1e-5)
    for name, value in fitted.module_.state_dict().items():
        np.testing.assert_allclose(value, weights[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("given", [{}, {"accumulate": 3}])
def test_one_process_learns_as_a_plain_loop(by_hand, given):
    assert_same(estimator(**given).fit(X, Y), by_hand)


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_learn_the_same(by_hand, ranks):
    assert_same(estimator(ranks=ranks).fit(X, Y), by_hand)


@pytest.mark.parametrize(
    ("stop", "ranks"), [(2, 1), (5, 1), (11, 1), pytest.param(5, 2, marks=pytest.mark.slow)]
)
def test_training_that_was_stopped_goes_on_to_the_same_weights(by_hand, tmp_path, monkeypatch, stop, ranks):
    monkeypatch.setenv("STOP_AFTER", str(stop))
    with pytest.raises(KeyboardInterrupt):
        estimator(loss=counted_loss).fit(X, Y, workdir=tmp_path)
    monkeypatch.setenv("STOP_AFTER", "100")
    fitted = estimator(loss=counted_loss, ranks=ranks).fit(X, Y, workdir=tmp_path)
    assert_same(fitted, by_hand)
    monkeypatch.setenv("STOP_AFTER", "0")
    again = estimator(loss=counted_loss).fit(X, Y, workdir=tmp_path)  # nothing is left to be learned
    assert again.losses_ == fitted.losses_


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_names_the_batch(ranks, tmp_path):
    bad = Y.copy()
    bad[500] = np.nan
    with pytest.raises(InputError, match=r"no longer finite: batch \d of epoch 0"):
        estimator(ranks=ranks).fit(X, bad, workdir=tmp_path)


def test_training_stops_early_and_gives_the_best_weights():
    # no later epoch is better than the first one by so much
    fitted = estimator(epochs=50, validation=(X[:200], Y[:200]), patience=2, tol=10.0).fit(X[200:], Y[200:])
    scores = fitted.validation_losses_
    assert len(scores) == 3
    found = np.mean((fitted.predict(X[:200]) - Y[:200]) ** 2)
    np.testing.assert_allclose(found, scores[0], rtol=1e-4)
    assert scores[2] < scores[0]


def slow_loss(output, y):
    time.sleep(0.1)
    return torch.nn.functional.mse_loss(output, y)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", [0, 1])
def test_training_goes_on_with_the_workers_that_are_left(tmp_path, victim):
    given = {"epochs": 6, "checkpoint_every": 2}
    expected = estimator(**given).fit(X, Y)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        pids = client.run(os.getpid)
        victim_pid = pids[sorted(pids)[victim]]

        def kill():
            while not list(tmp_path.glob("networks/*.pt")):
                time.sleep(0.05)
            # with its rank, as a machine that is lost would
            for process in [*psutil.Process(victim_pid).children(), psutil.Process(victim_pid)]:
                process.kill()

        killing = threading.Thread(target=kill, daemon=True)
        killing.start()
        fitted = estimator(slow_loss, **given).fit(X, Y, client=client, workdir=tmp_path)
        killing.join()
    np.testing.assert_allclose(fitted.losses_, expected.losses_, rtol=1e-4)


def test_targets_of_another_shape_and_too_many_ranks_are_refused():
    with pytest.raises(InputError, match=r"output of shape \(\), but its target is of shape \(1,\)"):
        estimator().fit(X, Y[:, None])
    with pytest.raises(InputError, match="9 processes cannot read shares=4"):
        estimator(ranks=9).fit(X, Y)


def test_it_is_an_estimator():
    copy = clone(estimator(batch_size=7))
    assert copy.batch_size == 7
    assert copy.set_params(epochs=3).epochs == 3
