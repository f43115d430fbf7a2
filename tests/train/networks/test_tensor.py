"""Networks whose large layers several processes share, beside whole ones."""

import functools

import dask.array as da
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.errors import InputError, MemoryLimitError
from dpipe.train.networks.chain import Layer, built, chain_of, drawn
from dpipe.train.networks.drawing import draw, recorded
from dpipe.train.networks.model_parallel import ModelParallel
from dpipe.train.networks.own_parts import OwnParts
from dpipe.train.networks.pieces import Cut, local, put_together
from dpipe.train.networks.shared_layers import COLUMNS, GATHERED, HEADS, ROWS, SharedLayer, cuts_of
from dpipe.train.networks.splitter import Grid
from dpipe.train.networks.tensor import share
from tests.helpers import raise_if_computes
from tests.train.networks.by_hand import EndsItsProcess, largest_difference, losses_by_hand

torch = pytest.importorskip("torch", reason="networks need PyTorch: pip install 'dpipe[torch]'")
nn = torch.nn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(500, 16)).astype("float32")
Y = (X[:, 0] - 2 * X[:, 1] + 0.1 * RNG.normal(size=500)).astype("float32")
SGD = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)
ENCODER = functools.partial(nn.TransformerEncoderLayer, 8, 2, 32, dropout=0.0, batch_first=True)
LAYERS = [
    functools.partial(nn.Linear, 16, 32),
    nn.Tanh,
    functools.partial(nn.Linear, 32, 16),
    functools.partial(nn.Linear, 16, 32),
    functools.partial(nn.Linear, 32, 1),
    functools.partial(nn.Flatten, 0),
]


class Words(nn.Module):
    """All kinds of layers that can be shared, in a forward of its own."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(90, 5, padding_idx=0)
        self.first, self.second, self.third = nn.Linear(80, 32), nn.Linear(32, 16), nn.Linear(16, 16)
        self.encoder, self.norm, self.out = ENCODER(), nn.LayerNorm(16), nn.Linear(16, 1)

    def forward(self, x):
        x = self.words((x.abs() * 20).long().clamp(max=89)).flatten(1)
        x = nn.functional.leaky_relu(self.second(torch.relu(self.first(x))), inplace=True)
        x = x + torch.tanh_(self.third(self.norm(x)))
        return self.out(self.encoder(x.unflatten(1, (2, 8))).flatten(1)).flatten(0)


def estimator(module=None, **given):
    how = {
        "batch_size": 128,
        "epochs": 2,
        "stages": 1,
        "tensor": 2,
        "micro_batches": 4,
        "checkpoint_every": 3,
    }
    how |= {"module": LAYERS if module is None else module, "loss": nn.functional.mse_loss, "optimizer": SGD}
    return ModelParallel(**(how | given))


def by_hand(network, net, epochs):
    """Give the losses of a plain loop over the same batches, which trains the module."""
    loader, _ = network.loaders(X, Y, 0)
    return losses_by_hand(net, loader, network.optimizer(net.parameters()), network.loss, epochs)


def words():
    torch.manual_seed(1)
    return Words()


@pytest.mark.timeout(300)
def test_two_processes_that_share_layers_learn_what_the_whole_module_does(tmp_path):
    net, first, last = words(), estimator(words(), epochs=1), estimator(words(), epochs=3)
    with raise_if_computes():
        plan = str(dpipe.plan(last, X, Y))
    assert "1 stage of 2 processes each, 1f1b" in plan
    assert "no process has a whole layer of those that are shared" in plan
    dpipe.fit(first, X, Y, workdir=tmp_path)
    files = sorted((tmp_path / "networks" / "fit-stages").glob("*.pt"))
    held = [torch.load(path, weights_only=True)["module"] for path in files]
    assert [each["words.weight"]["own"].shape for each in held] == [(45, 5), (45, 5)]
    assert [each["encoder.self_attn.in_proj_weight"]["own"].shape for each in held] == [(12, 8), (12, 8)]
    assert [("norm.weight" in each, "second.bias" in each) for each in held] == [(True, True), (False, False)]
    fitted = dpipe.fit(last, X, Y, workdir=tmp_path)  # it goes on
    losses = by_hand(last, net, 3)
    np.testing.assert_allclose(fitted.losses_, losses, rtol=1e-5)
    assert largest_difference(fitted.state_dict(), net.state_dict()) < 1e-5
    np.testing.assert_allclose(fitted.predict(X), net(torch.from_numpy(X)).detach(), atol=1e-4)
    assert len(fitted.measured_["peak_nbytes"]) == len(fitted.measured_["planned_nbytes"]) == 2
    for own, planned in zip(fitted.measured_["peak_nbytes"], fitted.measured_["planned_nbytes"], strict=True):
        assert own == pytest.approx(planned, rel=0.25)


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    "given",
    [{"stages": 2}, {"workers": 4}, {"tensor": 4, "order": "gpipe"}, {"stages": 2, "order": "interleaved"}],
)
def test_any_grid_of_processes_learns_the_same(given):
    layers = [*LAYERS[:3], Block, *LAYERS[:3], functools.partial(Block, "residual"), *LAYERS[3:]]
    network = estimator(layers, validation=(X[:90], Y[:90]), **given)
    fitted = dpipe.fit(network, X, Y)
    net = nn.Sequential(*built(chain_of(layers).layers, 0))
    np.testing.assert_allclose(fitted.losses_, by_hand(network, net, 2), rtol=1e-5)
    assert largest_difference(fitted.state_dict(), net.state_dict()) < 1e-6
    found = float(np.mean((fitted.predict(X[:90]) - Y[:90]) ** 2))
    assert fitted.validation_losses_[-1] == pytest.approx(found, rel=1e-5)


class Deadly(EndsItsProcess, nn.Module):
    pass


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_process_that_dies_costs_the_batches_since_the_last_checkpoint(tmp_path):
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    deadly = [*LAYERS[:3], functools.partial(Deadly, tmp_path / "died", 22), *LAYERS[3:]]
    fitted = dpipe.fit(estimator(deadly, optimizer=adam), X, Y, workdir=tmp_path / "run")
    assert (tmp_path / "died").exists()
    whole = dpipe.fit(estimator(deadly, optimizer=adam), X, Y)  # it has died before
    assert fitted.losses_ == whole.losses_
    assert largest_difference(fitted.state_dict(), whole.state_dict()) == 0


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_workers_of_a_cluster_share_layers():
    network, where = estimator(), {"processes": True, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=2, threads_per_worker=1, **where) as cluster, Client(cluster) as client:
        fitted = dpipe.fit(network, X, Y, client=client)
    net = nn.Sequential(*built(chain_of(LAYERS).layers, 0))
    np.testing.assert_allclose(fitted.losses_, by_hand(network, net, 2), rtol=1e-5)
    assert largest_difference(fitted.state_dict(), net.state_dict()) < 1e-6


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_partial_fit_goes_on_after_fit_in_processes_that_share_layers():
    network = estimator(shuffle=None, optimizer=functools.partial(torch.optim.SGD, lr=0.01))
    network.fit(X, Y).partial_fit(X, Y).partial_fit(X, Y)
    net = nn.Sequential(*built(chain_of(LAYERS).layers, 0))
    np.testing.assert_allclose(network.losses_, by_hand(network, net, 4), rtol=1e-5)
    assert largest_difference(network.state_dict(), net.state_dict()) < 1e-6


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_networks_with_shared_layers_end_pipelines_and_are_searched():
    rates = [functools.partial(torch.optim.SGD, lr=lr) for lr in (1e-7, 0.01)]
    model = make_pipeline(StandardScaler(), estimator(epochs=1))
    lazy = da.from_array(X, chunks=(250, 16)), da.from_array(Y, chunks=250)
    found = dpipe.search(model, {"modelparallel__optimizer": rates}, *lazy, method="grid", max_iter=2, cv=2)
    assert found.best_params_["modelparallel__optimizer"] is rates[1]
    assert found.best_estimator_.predict(X).shape == (500,)


def test_a_plan_tells_which_layers_are_shared_and_why_others_are_not():
    found = share(chain_of(words()), 2)
    named = {name: style for own in found.styles.values() for name, style in own.items()}
    assert named == {
        "words": ROWS,
        "first": COLUMNS,
        "second": ROWS,
        "third": GATHERED,
        "encoder.self_attn": HEADS,
        "encoder.linear1": COLUMNS,
        "encoder.linear2": ROWS,
    }
    assert "16 weights are few" in found.notes[1]
    shared = (
        "shared by 2 processes: 0 Linear by columns; 2 Linear by rows; 3 Linear by columns; 4 Linear by rows"
    )
    assert shared in str(estimator().plan(X, Y))


@pytest.mark.parametrize(
    ("layers", "n", "styles", "says"),
    [
        # what drops numbers must see all of them
        ([nn.Linear(16, 32), nn.Dropout(0.5), nn.Linear(32, 16)], 2, {0: GATHERED, 2: GATHERED}, None),
        ([nn.Linear(16, 32), nn.ReLU(inplace=True), nn.Linear(32, 16)], 2, {0: GATHERED, 2: GATHERED}, None),
        ([nn.Linear(16, 32), nn.Dropout(0.0), nn.Linear(32, 9)], 2, {0: COLUMNS, 2: ROWS}, None),
        ([nn.Linear(16, 32), nn.Linear(32, 33)], 2, {0: COLUMNS, 1: ROWS}, None),
        (
            [nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 33)],
            2,
            {0: GATHERED},
            "33 outputs are no multiple of 2",
        ),
        ([nn.Linear(16, 32), nn.LSTM(32, 32)], 4, {0: GATHERED}, "1 LSTM: LSTM cannot be shared"),
        ([nn.Embedding(90, 8)], 2, {0: GATHERED}, None),
        (
            [nn.Embedding(90, 8, max_norm=1.0), nn.Linear(16, 32)],
            2,
            {1: GATHERED},
            "0 Embedding: Embedding cannot be shared",
        ),
    ],
)
def test_layers_are_shared_as_their_neighbours_allow(layers, n, styles, says):
    found = share(chain_of(layers), n)
    assert {index: own[""] for index, own in found.styles.items()} == styles
    assert says is None or says in found.notes[1]
    # what has a part of its numbers only cannot be sent
    assert [i for i, own in styles.items() if own == ROWS] == [i for i in styles if i in found.chain.together]


class Block(nn.Module):
    """Layers beside each other in a forward of its own, as those of most networks."""

    def __init__(self, kind="plain"):
        super().__init__()
        self.kind, self.up, self.down = kind, nn.Linear(16, 32), nn.Linear(32, 16)
        if kind == "weights":
            self.own = nn.Parameter(torch.zeros(16, 16))

    def forward(self, x):
        if self.kind == "branches" and x.sum() > 0:
            return x
        if self.kind == "weights":
            x = x @ self.own
        if self.kind == "looks":
            x = x + self.down.weight.mean()
        found = self.down(nn.functional.gelu(self.up(x)))
        if self.kind == "twice":
            return self.down(self.up(found))
        return x + found if self.kind == "residual" else found


@pytest.mark.parametrize(
    ("kind", "styles", "says"),
    [
        ("plain", {"up": COLUMNS, "down": ROWS}, None),
        ("residual", {"up": GATHERED, "down": GATHERED}, None),
        ("weights", {"up": COLUMNS, "down": ROWS}, "2 Block: computes with weights by itself"),
        ("looks", None, "2 Block: has a weight in several places"),
        ("twice", None, "2 Block: has a weight in several places"),
        ("branches", None, "2 Block: torch.fx cannot follow the forward() of Block"),
    ],
)
def test_blocks_are_shared_as_far_as_they_can_be_followed(kind, styles, says):
    found = share(chain_of([nn.Linear(16, 16), nn.LayerNorm(16), Block(kind)]), 2)
    assert found.styles.get(2) == styles
    assert says is None or says in found.notes[1]


def test_a_block_is_left_as_it_is_given():
    block = Block()
    block.up.eval()
    share(chain_of([block]), 2)
    assert (block.training, block.up.training, block.down.training) == (True, False, True)


def test_weights_of_a_module_by_itself_are_told_of():
    found = share(chain_of(Block("weights")), 2)
    assert found.notes[1] == "whole in each of them: layer 0: computes with weights by itself"


@pytest.mark.parametrize(
    ("given", "parts", "says"),
    [
        (
            (8, 2, 32, 0.1),
            {"linear1": GATHERED, "linear2": GATHERED},
            "the attention drops 0.1 of all heads at once",
        ),
        ((9, 3, 32, 0.0), {"linear1": COLUMNS, "linear2": ROWS}, "3 heads are no multiple of 2"),
        ((8, 2, 33, 0.0), {"self_attn": HEADS}, "33 inner outputs are no multiple of 2"),
    ],
)
def test_a_layer_of_a_transformer_is_shared_as_far_as_it_can_be(given, parts, says):
    found = share(chain_of([nn.TransformerEncoderLayer(*given)]), 2)
    assert found.styles == {0: parts}
    assert says in found.notes[1]


def of_its_own():
    module = nn.Linear(16, 32)
    nn.init.orthogonal_(module.weight)
    return module


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(nn.Linear, 300, 1700),
        functools.partial(nn.Linear, 2, 50, bias=False),
        functools.partial(nn.Embedding, 1234, 346, padding_idx=7),
        ENCODER,
    ],
)
@pytest.mark.parametrize("style", [COLUMNS, ROWS])
def test_parts_of_weights_are_those_of_the_whole(make, style):
    made, whole = recorded(make), built([Layer(3, "3", make)], 5)[0]
    assert not made.unknown
    styles = {"": style} if make is not ENCODER else {"self_attn": HEADS, "linear1": COLUMNS, "linear2": ROWS}
    cuts, found = cuts_of(whole, styles), []
    for shard in (0, 1):
        own = {
            name: torch.empty_like(cuts[name].of(each, shard, 2) if name in cuts else each)
            for name, each in whole.state_dict().items()
        }
        torch.manual_seed(drawn(5, 3))
        draw(made.steps, own, cuts, shard, 2)
        found.append({name: cuts[name].part(each) if name in cuts else each for name, each in own.items()})
    for name, each in whole.state_dict().items():
        assert torch.equal(put_together([part[name] for part in found]), each)


def smaller():
    module = nn.Linear(16, 32)
    module.weight.data = module.weight.data * 0.1
    return module


def halved():
    module = nn.Linear(16, 32)
    module.bias = nn.Parameter(torch.full((32,), 2.0))
    with torch.no_grad():
        module.bias.mul_(0.5)
    return module


def test_weights_that_are_made_otherwise_are_left_whole():
    assert recorded(of_its_own).unknown == "mul_, copy_"
    assert [recorded(smaller).unknown, recorded(halved).unknown] == ["weight", "bias"]
    assert recorded(lambda: nn.Linear(16, int(torch.ones(1)))).unknown == "DataDependentOutputException"
    found = share(chain_of([of_its_own, functools.partial(nn.Linear, 32, 16)]), 2)
    assert set(found.styles) == {1}
    assert "0 Linear: how its weights are made cannot be repeated in parts (mul_, copy_)" in found.notes[1]


def test_a_weight_in_two_places_is_left_whole():
    first, last = nn.Linear(16, 16), nn.Linear(16, 16)
    last.weight = first.weight
    found = share(chain_of([first, nn.Linear(16, 32), last]), 2)
    assert set(found.styles) == {1}
    assert "0 Linear: has a weight in several places" in found.notes[1]


@pytest.mark.parametrize("n_written", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("cut", [Cut(0), Cut(1), Cut(0, groups=3)])
def test_other_numbers_of_processes_go_on_with_what_was_written(cut, n, n_written):
    weight = torch.arange(24.0 * 8).reshape(24, 8)
    written = (
        [cut.part(cut.of(weight, i, n_written)) for i in range(n_written)] if n_written > 1 else [weight]
    )
    parts = [put_together(written, i, n, cut) for i in range(n)]
    assert torch.equal(cut.whole(parts), weight)
    assert torch.equal(put_together(written), weight)


@pytest.fixture
def mesh():
    """A group of one process, which is this one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("source", "styles", "given"),
    [
        (ENCODER, {"self_attn": HEADS, "linear1": COLUMNS, "linear2": ROWS}, torch.rand(5, 3, 8)),
        (ENCODER().to("meta"), {"self_attn": HEADS}, torch.rand(5, 3, 8)),
        (
            nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, norm_first=True, bias=False),
            {"self_attn": HEADS, "linear1": GATHERED},
            torch.rand(5, 3, 8),
        ),
        (nn.Embedding(90, 5), {"": ROWS}, torch.arange(20).reshape(4, 5)),
        (Block, {"up": COLUMNS, "down": ROWS}, torch.rand(5, 16)),
        (functools.partial(Block, "residual"), {"up": GATHERED, "down": GATHERED}, torch.rand(5, 16)),
    ],
)
def test_a_shared_layer_computes_what_the_whole_one_does(mesh, source, styles, given):
    layer = Layer(2, "2", source)
    (whole,), shared = built([layer], 0), SharedLayer.of(layer, styles, 0, 1).build(0, "cpu", mesh)
    for module in (whole, shared):
        module.train()(given).square().sum().backward()
    np.testing.assert_allclose(shared(given).detach(), whole(given).detach(), atol=1e-6)
    assert [SharedLayer.of(layer, styles, 0, 1).full_name(name) for name in shared.state_dict()] == [
        f"2.{name}" for name in whole.state_dict()
    ]
    for own, each in zip(shared.parameters(), whole.parameters(), strict=True):
        np.testing.assert_allclose(local(own.grad), each.grad, atol=1e-4)


@pytest.fixture
def updated(mesh):
    """Has optimizers make a step for weights of which one is shared."""
    layers = [Layer(0, "0", functools.partial(nn.Linear, 16, 32)), Layer(1, "1", nn.LayerNorm(32))]
    layers[0] = SharedLayer.of(layers[0], {"": GATHERED}, 0, 1)
    parts = OwnParts(0, 1, mesh.get_group(), torch.device("cpu"), layers)
    net = nn.Sequential(*parts.built(0))

    def once(make):
        net(torch.ones(8, 16)).sigmoid().sum().backward()
        parts.update(parts.optimizer(make, list(net.parameters())))
        return net.state_dict()

    return once


@pytest.mark.parametrize(
    "optimizer",
    [SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad],
)
@pytest.mark.parametrize("how", [{"fused": True}, {"foreach": True}, {}])
def test_optimizers_update_shared_weights_however_they_are_told_to(updated, optimizer, how):
    how = {} if optimizer is torch.optim.RMSprop and "fused" in how else how
    before = {name: local(value).clone() for name, value in updated(lambda held: SGD(held, lr=0.0)).items()}
    after = updated(functools.partial(optimizer, **how))
    assert all(float((local(after[name]) - value).detach().abs().max()) > 0 for name, value in before.items())


def test_an_optimizer_that_cannot_update_shared_weights_is_named(updated):
    with pytest.raises(
        InputError, match="optimizer=Adafactor cannot update weights that processes share: aten.*Give Adam"
    ):
        updated(torch.optim.Adafactor)
    with pytest.raises(InputError, match="optimizer=Rprop cannot .*, or tensor=1"):
        updated(torch.optim.Rprop)


@pytest.mark.parametrize("tensor", [1, 2])
def test_a_layer_that_is_too_large_for_one_process_is_shared(tensor):
    # its states are 384 MiB, and a process takes 600 by itself
    room = psutil.Process().memory_info().rss + tensor * 900 * 2**20
    wide = [functools.partial(nn.Linear, 16, 2**20), nn.ReLU, functools.partial(nn.Linear, 2**20, 16)]
    network, targets = estimator([*wide], tensor=tensor, micro_batches=64), X
    if tensor == 1:
        with pytest.raises(MemoryLimitError, match="1 stage cannot keep to .* each"):
            network.plan(X, targets, memory=room)
    else:
        assert network.plan(X, targets, memory=room).peak_nbytes < 900 * 2**20


@pytest.mark.parametrize(
    ("tensor", "width", "advised"), [(1, 2**21, 2), (2, 2**22, 4), (1, 2**21 + 1, None), (2, 2**22 + 2, None)]
)
def test_more_processes_are_advised_where_they_could_share_what_is_too_large(tensor, width, advised):
    layers = [nn.Linear(16, 32), nn.LayerNorm(32), functools.partial(nn.Linear, 32, width)]
    room = psutil.Process().memory_info().rss + tensor * 900 * 2**20
    with pytest.raises(MemoryLimitError, match="Layer 2 takes") as found:
        estimator(layers, tensor=tensor).plan(X, X, memory=room)
    assert [word for word in str(found.value).split() if "tensor" in word] == (
        [] if advised is None else [f"tensor={advised},"]
    )


def test_memory_is_that_of_the_parts():
    wide = [functools.partial(nn.Linear, 16, 4096), nn.ReLU, functools.partial(nn.Linear, 4096, 1)]
    wide.append(functools.partial(nn.Flatten, 0))
    whole, shared = (estimator(wide, tensor=n).plan(X, Y) for n in (1, 2))
    assert shared.stages[0].weights_nbytes == pytest.approx(whole.stages[0].weights_nbytes / 2, rel=0.01)
    assert shared.stages[0].activations_nbytes < 0.6 * whole.stages[0].activations_nbytes
    assert (shared.n_processes, shared.n_stages) == (2, 1)


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"tensor": 0}, InputError, "tensor must be an integer of at least 1"),
        (
            {"tensor": 5},
            InputError,
            "tensor=5 finds no layer .* 32 outputs are no multiple of 5.*Give tensor=1",
        ),
        ({"module": [functools.partial(nn.Flatten, 0)]}, InputError, "could share .none has weights."),
        ({"workers": 3}, InputError, "workers=3 cannot hold copies of 1 stage that 2 processes share each"),
        (
            {"stages": 6},
            InputError,
            "6 stages need as many layers, but the module can be cut into 3, as some stay",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_before_data_is_read(given, kind, says):
    with raise_if_computes(), pytest.raises(kind, match=says):
        dpipe.plan(estimator(**given), X, Y)


@pytest.mark.cluster
def test_more_processes_than_workers_are_refused():
    where = {"processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=2, threads_per_worker=1, **where) as cluster, Client(cluster) as client:
        with pytest.raises(
            InputError, match="1 stage that 4 processes share need .* has 2. Start more, or give tensor=2"
        ):
            estimator(tensor=4).plan(X, Y, client=client)
        assert estimator(stages=None).plan(X, Y, client=client).n_processes == 2


def test_what_is_left_of_a_grid_shares_as_before_if_it_can():
    assert [Grid(1, 2, 4).of(n) for n in (8, 7, 3, 1)] == [
        Grid(1, 2, 4),
        Grid(1, 1, 4),
        Grid(1, 1, 2),
        Grid(1),
    ]
    assert [Grid(2, 2, 2).place(rank) for rank in (0, 3, 6)] == [(0, 0, 0), (0, 1, 1), (1, 1, 0)]
