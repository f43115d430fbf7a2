"""Networks that several processes train, beside one that a plain loop of torch trains."""

import copy
import functools
import os
import pickle
import threading
import time
from importlib.util import find_spec

import dask.array as da
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from sklearn.base import clone, is_classifier, is_regressor

import dpipe
from dpipe.deploy.bundle import write_bundle
from dpipe.errors import InputError
from dpipe.train.loading.loader import Loader
from dpipe.train.networks.data_parallel import DataParallel

torch = pytest.importorskip("torch", reason="networks need PyTorch: pip install 'dpipe[torch]'")
torch.set_num_threads(1)  # small layers gain nothing by more, and other tests want the processors, too

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


def constant(optimizer):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", [{"ranks": 4}, {"ranks": 3, "accumulate": 2}, {"ranks": 2, "accumulate": 3, "sharded": True}]
)
def test_several_processes_of_this_machine_learn_the_same(by_hand, given, tmp_path):
    fitted = estimator(**given).fit(X, Y, workdir=tmp_path)
    assert_same(fitted, by_hand)


@pytest.mark.cluster
def test_workers_of_a_cluster_learn_the_same(by_hand, tmp_path):
    where = {"processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    lazy = da.from_array(X, chunks=(130, 6)), da.from_array(Y, chunks=130)
    with LocalCluster(n_workers=2, threads_per_worker=1, **where) as cluster, Client(cluster) as client:
        plan = dpipe.plan(estimator(validation=(X, Y)), *lazy, client=client)
        fitted = estimator(validation=(X, Y)).fit(*lazy, client=client, workdir=tmp_path)
    assert "added up over 2 processes" in str(plan)
    assert plan.workers == 2
    alone = estimator().fit(*lazy)
    np.testing.assert_allclose(fitted.losses_, alone.losses_, rtol=1e-5)
    assert len(fitted.validation_losses_) == 2
    # there is nothing left to be learned, with or without workers
    again = estimator(validation=(X, Y)).fit(*lazy, workdir=tmp_path)
    assert again.losses_ == fitted.losses_


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch could use")
@pytest.mark.parametrize("given", [{}, {"sharded": True}, {"accumulate": 2, "schedule": constant}])
def test_a_gpu_learns_the_same(by_hand, given):
    fitted = estimator(device="cuda", **given).fit(X, Y)
    np.testing.assert_allclose(fitted.losses_, by_hand[0], rtol=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_used():
    with pytest.raises(InputError, match="cannot share 0 GPUs"):
        estimator(device="cuda").fit(X, Y)


def test_bfloat16_learns_nearly_the_same(by_hand):
    fitted = estimator(precision="bfloat16").fit(X, Y)
    np.testing.assert_allclose(fitted.losses_, by_hand[0], rtol=0.05)
    assert fitted.losses_ != by_hand[0]
    assert {value.dtype for value in fitted.state_dict().values()} == {torch.float32}


def halved(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)


def test_a_schedule_goes_on_after_each_batch_and_after_a_stop(tmp_path):
    expected = estimator(schedule=halved, epochs=3).fit(X, Y)
    estimator(schedule=halved, epochs=1).fit(X, Y, workdir=tmp_path)
    fitted = estimator(schedule=halved, epochs=3).fit(X, Y, workdir=tmp_path)
    assert fitted.losses_ == expected.losses_
    assert fitted.losses_ != estimator(epochs=3).fit(X, Y).losses_


def test_a_network_is_kept_by_bundles_and_copies(tmp_path):
    fitted = estimator(validation=(X, Y)).fit(X, Y)
    found = pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)
    folder = write_bundle(tmp_path / "bundle", fitted)
    for each in (*found, dpipe.load(folder).model):
        np.testing.assert_array_equal(each.predict(X), fitted.predict(X))
        assert each.module_[0].weight.requires_grad
    assert list(fitted.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_network_is_written_as_onnx(tmp_path):
    pytest.importorskip("onnxscript", reason="torch writes ONNX with onnxscript")
    onnx = pytest.importorskip("onnx.reference", reason="onnx reads it")
    fitted = estimator().fit(X, Y)
    path = fitted.export_onnx(tmp_path / "network.onnx")
    (found,) = onnx.ReferenceEvaluator(str(path)).run(None, {"X": X[:5].astype("float32")})
    np.testing.assert_allclose(found, fitted.predict(X[:5]), rtol=1e-5)


@pytest.mark.skipif(bool(find_spec("onnxscript")), reason="onnxscript is installed")
def test_what_onnx_needs_is_named(tmp_path):
    with pytest.raises(InputError, match="pip install onnx onnxscript"):
        estimator().fit(X, Y).export_onnx(tmp_path / "network.onnx")


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


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_shards_go_on_with_another_number_of_processes(by_hand, tmp_path):
    given = {"sharded": True, "schedule": constant, "validation": (X[:200], Y[:200])}
    first = estimator(ranks=2, epochs=1, **given).fit(X, Y, workdir=tmp_path)
    assert len(first.losses_) == 8
    fitted = estimator(ranks=1, **given).fit(X, Y, workdir=tmp_path)
    assert fitted.losses_[:8] == first.losses_
    assert fitted.validation_losses_[1] < fitted.validation_losses_[0] == first.validation_losses_[0]
    assert_same(fitted, by_hand)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_shards_survive_processes_that_die(by_hand, tmp_path, monkeypatch):
    monkeypatch.setenv("STOP_AFTER", "5")  # of each group of processes; checkpoints are made after 3, 6 and 8
    fitted = estimator(loss=counted_loss, ranks=2, sharded=True).fit(X, Y, workdir=tmp_path)
    assert_same(fitted, by_hand)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_names_the_batch(ranks, tmp_path):
    bad = Y.copy()
    bad[Loader(X, Y, batch_size=128).order.numbers(0, 5)[0]] = np.nan
    with pytest.raises(InputError, match=r"no longer finite: batch 5 of epoch 0"):
        estimator(ranks=ranks, checkpoint_every=1).fit(X, bad, workdir=tmp_path)
    (checkpoint,) = (tmp_path / "networks").glob("*.pt")
    tree = torch.load(checkpoint, weights_only=True)
    assert all(torch.isfinite(value).all() for value in tree["module"].values())
    assert np.isfinite(tree["losses"]).all()
    assert tree["position"]["step"] == 5


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
        ranks: list = []

        def kill():
            while not list(tmp_path.glob("networks/*.pt")):
                time.sleep(0.05)
            worker = psutil.Process(victim_pid)
            ranks.extend(worker.children())
            # with its rank, as a machine that is lost would; or alone
            for process in [*(ranks if victim == 0 else ()), worker]:
                process.kill()

        killing = threading.Thread(target=kill, daemon=True)
        killing.start()
        fitted = estimator(slow_loss, **given).fit(X, Y, client=client, workdir=tmp_path)
        killing.join()
    assert not psutil.wait_procs(ranks, timeout=60)[1], "a rank ends with its worker"
    np.testing.assert_allclose(fitted.losses_, expected.losses_, rtol=1e-4)


def test_targets_of_another_shape_and_too_many_ranks_are_refused():
    with pytest.raises(InputError, match=r"output of shape \(\), but its target is of shape \(1,\)"):
        estimator().fit(X, Y[:, None])
    with pytest.raises(InputError, match="9 processes cannot read shares=4"):
        estimator(ranks=9).fit(X, Y)
    with pytest.raises(InputError, match="There are 3 rows: too few"):
        estimator(ranks=2).fit(X[:3], Y[:3])


def unimportable(output, y):
    return torch.nn.functional.mse_loss(output, y)


def test_a_loss_that_others_cannot_have_says_what_to_do():
    lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be sent to another process: .* open files, locks"):
        estimator(lambda output, y: unimportable(output, y) if lock else 0, ranks=2).fit(X, Y)


def test_it_is_an_estimator():
    made = clone(estimator(batch_size=7))
    assert made.batch_size == 7
    assert made.set_params(epochs=3).epochs == 3
    assert is_regressor(made)
    assert is_classifier(made.set_params(classes=[0, 1]))
    assert not hasattr(estimator(), "predict_proba")
