"""Networks that are split across processes, beside the whole ones that a plain loop of torch trains."""

import functools
import os
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.cluster.local import find_place
from dpipe.errors import InputError, LedgerError, MemoryLimitError
from dpipe.train.loading.loader import Loader
from dpipe.train.networks.chain import built, chain_of
from dpipe.train.networks.model_parallel import ModelParallel
from dpipe.train.networks.ranks import Ranks
from dpipe.train.networks.splitter import Splitter
from dpipe.train.networks.stage_files import MANIFEST, StageFiles
from dpipe.train.networks.training import Trained
from tests.helpers import raise_if_computes
from tests.train.networks.by_hand import EndsItsProcess, largest_difference, losses_by_hand

torch = pytest.importorskip("torch", reason="networks need PyTorch: pip install 'dpipe[torch]'")
nn = torch.nn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1000, 6)).astype("float32")
Y = (X[:, 0] - 2 * X[:, 1] + 0.1 * RNG.normal(size=1000)).astype("float32")
ADAM = functools.partial(torch.optim.Adam, lr=0.01)
LAYERS = [
    functools.partial(nn.Linear, 6, 16),
    nn.Tanh,
    functools.partial(nn.Linear, 16, 16),
    functools.partial(nn.Dropout, 0.0),
    functools.partial(nn.Linear, 16, 1),
    functools.partial(nn.Flatten, 0),
]


def estimator(module=None, loss=nn.functional.mse_loss, **given):
    how = {"batch_size": 128, "epochs": 2, "checkpoint_every": 3, "stages": 2, "micro_batches": 6}
    return ModelParallel(LAYERS if module is None else module, loss, ADAM, **(how | given))


def by_hand(net, X=X, y=Y, loss=nn.functional.mse_loss, epochs=2):
    """Give the losses of a plain loop, which trains the module."""
    return losses_by_hand(net, Loader(X, y, batch_size=128), ADAM(net.parameters()), loss, epochs)


def test_two_processes_learn_what_the_whole_module_does_and_keep_it(tmp_path):
    net = nn.Sequential(*built(chain_of(LAYERS).layers, 0))
    losses = by_hand(net)
    network = estimator()
    fitted = dpipe.fit(network, X, Y, workdir=tmp_path)
    np.testing.assert_allclose(fitted.losses_, losses, rtol=1e-5)
    assert largest_difference(fitted.state_dict(), net.state_dict()) < 1e-6
    np.testing.assert_allclose(fitted.predict(X), net(torch.from_numpy(X)).detach(), atol=1e-5)
    assert [len(stage.layers) for stage in fitted.split_.stages] != [6]
    assert 0 < fitted.measured_["bubble"] < 1
    # as the plan says, if small: a process is nearly all of it
    for own, planned in zip(fitted.measured_["peak_nbytes"], fitted.measured_["planned_nbytes"], strict=True):
        assert own == pytest.approx(planned, rel=0.25)
    assert "waited" in (tmp_path / "report.html").read_text()
    # each stage has written its own weights, and nobody all of them
    files = sorted((tmp_path / "networks" / "fit-stages").glob("*.pt"))
    held = [set(torch.load(path, weights_only=True)["module"]) for path in files]
    assert len(held) == 2
    assert held[0].isdisjoint(held[1])
    assert held[0] | held[1] == set(fitted.state_dict())
    again = dpipe.fit(network, X, Y, workdir=tmp_path)  # nothing is left to be learned
    assert again.measured_ == {}
    assert largest_difference(again.state_dict(), fitted.state_dict()) == 0


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.never_called = nn.Linear(2, 2)

    def forward(self, x):
        return x + torch.relu(self.inner(x))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = Residual(), Residual(), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.second(self.first(x)))


def test_a_module_with_a_forward_of_its_own_ends_a_pipeline():
    torch.manual_seed(0)
    net, labels = Classifier(), np.digitize(Y, [-1.0, 1.0]) * 10
    network = estimator(net, nn.functional.cross_entropy, classes=[0, 10, 20], order="gpipe", epochs=3)
    model = make_pipeline(StandardScaler(), network)
    assert "2 stages, gpipe, 6 times 22 rows a batch" in str(dpipe.plan(model, X, labels))
    fitted = dpipe.fit(model, X, labels)
    scaled = StandardScaler().fit_transform(X).astype("float32")
    losses = by_hand(net, scaled, labels // 10, nn.functional.cross_entropy, 3)
    np.testing.assert_allclose(fitted.steps[-1][1].losses_, losses, rtol=1e-4)
    assert largest_difference(fitted.steps[-1][1].state_dict(), net.state_dict()) < 1e-5
    assert set(fitted.predict(X)) <= {0, 10, 20}
    np.testing.assert_allclose(fitted.predict_proba(X).sum(axis=1), 1)


@pytest.fixture(scope="module")
def alone():
    """A group of one process, which is this one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def run_alone(network, folder, X=X, y=Y):
    """Train in this process, as the only stage."""
    place = find_place(None, None, 1)
    given = network.recipe(X, y)
    staged = replace(
        given, splitter=Splitter(network, 6, place, lambda n_copies: 0), folder=str(folder), identity="it"
    )
    return Trained.unpacked(staged.of_rank(0, 1).run(Ranks()))


def weights_in(folder, epochs=2):
    return StageFiles(str(folder), "it").last(epochs).tensors("module")


def counted_loss(output, y):
    """Compute the loss of so many micro-batches as the environment allows."""
    left = int(os.environ["STOP_AFTER"])
    if not left:
        raise KeyboardInterrupt
    os.environ["STOP_AFTER"] = str(left - 1)
    return nn.functional.mse_loss(output, y)


@pytest.mark.parametrize("stop", [8, 61])
def test_training_that_was_stopped_goes_on_to_the_same_bits(alone, tmp_path, monkeypatch, stop):
    layers = [*LAYERS[:3], functools.partial(nn.Dropout, 0.5), *LAYERS[4:]]
    whole = run_alone(estimator(layers, stages=1), tmp_path / "whole")
    monkeypatch.setenv("STOP_AFTER", str(stop))
    network = estimator(layers, counted_loss, stages=1)
    with pytest.raises(KeyboardInterrupt):
        run_alone(network, tmp_path / "stopped")
    monkeypatch.setenv("STOP_AFTER", "1000")
    trained = run_alone(network, tmp_path / "stopped")
    assert trained.losses == whole.losses
    expected = weights_in(tmp_path / "whole")
    assert largest_difference(weights_in(tmp_path / "stopped"), expected) == 0


def test_both_orders_learn_the_same_bits(alone, tmp_path):
    first = run_alone(estimator(stages=1), tmp_path / "a")
    second = run_alone(estimator(stages=1, order="gpipe"), tmp_path / "b")
    assert first.losses == second.losses
    assert largest_difference(weights_in(tmp_path / "a"), weights_in(tmp_path / "b")) == 0


def test_how_the_optimizer_computes_is_not_recalled(alone, tmp_path):
    run_alone(estimator(stages=1, epochs=1), tmp_path)
    network = estimator(stages=1)
    network.optimizer = functools.partial(ADAM, foreach=False)
    run_alone(network, tmp_path)
    assert StageFiles(str(tmp_path), "it").last(2).first("groups")[0]["foreach"] is False


def test_a_loss_that_is_not_finite_names_the_batch_and_leaves_the_last_checkpoint(alone, tmp_path):
    bad = Y.copy()
    order = Loader(X, Y, batch_size=128).order
    bad[order.numbers(0, 4)[0]] = np.nan
    with pytest.raises(InputError, match="no longer finite: batch 4 of epoch 0"):
        run_alone(estimator(stages=1), tmp_path, y=bad)
    written = StageFiles(str(tmp_path), "it").last(2)
    assert (written.told["epoch"], written.told["step"]) == (0, 3)
    assert all(torch.isfinite(value).all() for value in written.tensors("module").values())


def test_training_stops_early_and_gives_the_best_weights(alone, tmp_path):
    # no later epoch is better than the first one by so much
    network = estimator(stages=1, epochs=50, validation=(X[:200], Y[:200]), patience=2, tol=10.0)
    trained = run_alone(network, tmp_path, X[200:], Y[200:])
    assert len(trained.scores) == 3
    written = StageFiles(str(tmp_path), "it").last(50)
    net = nn.Sequential(*built(chain_of(LAYERS).layers, 0)).eval()
    net.load_state_dict(written.tensors("best"))
    found = float(nn.functional.mse_loss(net(torch.from_numpy(X[:200])), torch.from_numpy(Y[:200])).detach())
    assert found == pytest.approx(trained.scores[0], rel=1e-5)
    assert largest_difference(written.tensors("module"), written.tensors("best")) > 0


def test_weights_are_read_from_a_file(alone, tmp_path):
    net = nn.Sequential(*built(chain_of(LAYERS).layers, 5))
    torch.save(net.state_dict(), tmp_path / "given.pt")
    run_alone(estimator(stages=1, epochs=1, weights=tmp_path / "given.pt"), tmp_path / "run")
    by_hand(net, epochs=1)
    assert largest_difference(weights_in(tmp_path / "run"), net.state_dict()) < 1e-6


def test_a_checkpoint_that_lacks_a_file_is_refused(alone, tmp_path):
    run_alone(estimator(stages=1), tmp_path)
    assert StageFiles(str(tmp_path), "other").last(2) is None
    assert StageFiles(str(tmp_path), "it").last(1) is None  # it is of more epochs
    next(tmp_path.glob("*.pt")).unlink()
    with pytest.raises(LedgerError, match=f"lacks stage-0-of-1.* remove {MANIFEST}"):
        StageFiles(str(tmp_path), "it").last(2)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(6, 1), nn.Linear(6, 1)

    def forward(self, x):
        return self.one(x) if x.sum() > 0 else self.other(x)


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        (
            {"module": Branches()},
            InputError,
            "Branches cannot be split: .* Branches that depend on data break",
        ),
        ({"stages": 7}, InputError, "7 stages need as many layers, but the module can be cut into 6"),
        ({"stages": 0}, InputError, "stages must be an integer of at least 1"),
        ({"order": "zigzag"}, InputError, "order must be one of 1f1b, gpipe, interleaved, got 'zigzag'"),
        ({"micro_batches": 500}, InputError, "micro_batches=500 cannot be made of 128 rows"),
        ({"module": LAYERS[:-1]}, InputError, r"an output of shape \(1,\), but its target is of shape \(\)"),
        ({"module": [functools.partial(nn.Linear, 7, 1)], "stages": 1}, InputError, "Layer 0 .* fails"),
        ({"validation": 0.1}, InputError, "validation must be rows of their own"),
        ({"room": 600 * 2**20}, MemoryLimitError, "Layer 0 takes .* and a process may take"),
    ],
)
def test_what_cannot_be_split_or_learned_is_refused_before_data_is_read(given, kind, says):
    room = given.get("room")
    memory = None if room is None else psutil.Process().memory_info().rss + room
    given = {name: value for name, value in given.items() if name != "room"}
    with raise_if_computes(), pytest.raises(kind, match=says):
        dpipe.plan(estimator(**given), X, Y, memory=memory)


def test_fewer_rows_than_are_read_side_by_side_are_refused():
    with (
        raise_if_computes(),
        pytest.raises(InputError, match="There are 3 rows: too few for a batch of 128 out of 4"),
    ):
        dpipe.plan(estimator(workers=4), X[:3], Y[:3])


def test_it_is_an_estimator():
    copy = clone(estimator(batch_size=70))
    assert copy.batch_size == 70
    assert copy.set_params(epochs=3).epochs == 3


def slow_loss(output, y):
    time.sleep(0.02)
    return nn.functional.mse_loss(output, y)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [1, 3])
def test_any_number_of_stages_learns_the_same(stages):
    layers = [*LAYERS[:3], functools.partial(nn.Dropout, 0.5), *LAYERS[4:]]
    two = estimator(layers).fit(X, Y)
    found = estimator(layers, stages=stages).fit(X, Y)
    np.testing.assert_allclose(found.losses_, two.losses_, rtol=1e-6)
    assert largest_difference(found.state_dict(), two.state_dict()) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"workers": 4}])
def test_all_processes_stop_where_the_loss_is_not_finite(tmp_path, given):
    bad = Y.copy()
    bad[Loader(X, Y, batch_size=128).order.numbers(0, 4)[0]] = np.nan
    with pytest.raises(InputError, match="no longer finite: batch 4 of epoch 0"):
        dpipe.fit(estimator(**given), X, bad, workdir=tmp_path)
    written = torch.load(next((tmp_path / "networks" / "fit-stages").glob("stage-0-*.pt")), weights_only=True)
    assert all(torch.isfinite(value).all() for value in written["module"].values())


class Looks(nn.Module):
    """Looks for what is not there when rows are large: those that layers are tried on are not."""

    def forward(self, x):
        try:
            return x if x.min() < 500 else open("/no/such/table")
        except FileNotFoundError as err:
            raise ValueError("the table of this layer is not there") from err


def test_what_a_layer_complains_of_is_told_at_once():
    with pytest.raises(
        InputError, match="has failed: ValueError: the table of this layer is not there. It would"
    ):
        dpipe.fit(estimator([Looks, *LAYERS], stages=1), X + 1000, Y)


class Deadly(EndsItsProcess, nn.Module):
    pass


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("place", [1, 5])
def test_a_process_that_dies_costs_the_batches_since_the_last_checkpoint(tmp_path, place):
    mark = tmp_path / "died"
    deadly = [*LAYERS[:place], functools.partial(Deadly, mark, 35), *LAYERS[place:]]
    fitted = dpipe.fit(estimator(deadly), X, Y, workdir=tmp_path / "run")
    assert mark.exists()
    net = nn.Sequential(*[part for part in built(chain_of(deadly).layers, 0) if not isinstance(part, Deadly)])
    np.testing.assert_allclose(fitted.losses_, by_hand(net), rtol=1e-5)
    weights = [*fitted.module_.parameters()]
    assert all(
        torch.allclose(own, each, atol=1e-6) for own, each in zip(weights, net.parameters(), strict=True)
    )
    assert fitted.measured_["span_s"] > 0


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", [0, 1])
def test_training_goes_on_when_a_worker_dies(tmp_path, victim):
    given = {"epochs": 6, "checkpoint_every": 2}
    expected = estimator(**given).fit(X, Y)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        with pytest.raises(InputError, match="3 stages need as many workers, and the cluster has 2"):
            estimator(stages=3).plan(X, Y, client=client)
        pids = client.run(os.getpid)
        victim_pid = pids[sorted(pids)[victim]]

        def kill():
            while not list(tmp_path.rglob(MANIFEST)):
                time.sleep(0.05)
            for process in [*psutil.Process(victim_pid).children(), psutil.Process(victim_pid)]:
                process.kill()

        killing = threading.Thread(target=kill, daemon=True)
        killing.start()
        fitted = estimator(None, slow_loss, **given).fit(X, Y, client=client, workdir=tmp_path)
        killing.join()
    np.testing.assert_allclose(fitted.losses_, expected.losses_, rtol=1e-6)
    assert largest_difference(fitted.state_dict(), expected.state_dict()) < 1e-6
