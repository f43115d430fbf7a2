"""Copies of a split network that learn side by side, and processes that hold several groups of layers."""

import functools

import numpy as np
import pytest

import dpipe
from dpipe.errors import InputError, MemoryLimitError
from dpipe.train.networks.chain import built, chain_of
from dpipe.train.networks.model_parallel import ModelParallel
from dpipe.train.networks.orders import in_flight
from dpipe.train.networks.profile import LayerProfile, Values, Weights
from dpipe.train.networks.split import RANK_NBYTES, Load, SplitPlan, plan_split
from dpipe.train.networks.splitter import Grid
from tests.helpers import raise_if_computes
from tests.train.networks.by_hand import largest_difference, losses_by_hand

torch = pytest.importorskip("torch", reason="networks need PyTorch: pip install 'dpipe[torch]'")
nn = torch.nn
MIB = 2**20

RNG = np.random.default_rng(0)
X = RNG.normal(size=(500, 6)).astype("float32")
Y = (X[:, 0] - 2 * X[:, 1] + 0.1 * RNG.normal(size=500)).astype("float32")
LAYERS = [
    functools.partial(nn.Linear, 6, 16),
    nn.Tanh,
    functools.partial(nn.Linear, 16, 16),
    nn.Tanh,
    functools.partial(nn.Linear, 16, 1),
    functools.partial(nn.Flatten, 0),
]


def estimator(layers=None, **given):
    how = {"batch_size": 128, "epochs": 2, "shares": 3, "stages": 2, "micro_batches": 4} | given
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    return ModelParallel(LAYERS if layers is None else layers, nn.functional.mse_loss, adam, **how)


def by_hand(network, X, y):
    """Give the losses and the weights of a plain loop over the same batches."""
    net = nn.Sequential(*built(chain_of(network.module).layers, 0))
    loader, _ = network.loaders(X, y, 0)
    optimizer = network.optimizer(net.parameters())
    return losses_by_hand(net, loader, optimizer, network.loss, network.epochs), net.state_dict()


@pytest.mark.timeout(240)
def test_copies_of_interleaved_stages_learn_what_the_whole_module_does(tmp_path):
    # of three shares one copy has two, and the last batch is shorter
    network = estimator(workers=4, order="interleaved", validation=(X[:90], Y[:90]))
    fitted = dpipe.fit(network, X, Y, workdir=tmp_path)
    losses, weights = by_hand(network, X, Y)
    np.testing.assert_allclose(fitted.losses_, losses, rtol=1e-5)
    assert largest_difference(fitted.state_dict(), weights) < 1e-6
    found = float(np.mean((fitted.predict(X[:90]) - Y[:90]) ** 2))
    assert fitted.validation_losses_[-1] == pytest.approx(found, rel=1e-5)
    assert "2 copies of 2 stages, interleaved, 4 times 22 rows a batch" in str(fitted.split_)
    assert len(fitted.measured_["peak_nbytes"]) == len(fitted.measured_["planned_nbytes"]) == 4
    # one copy has written for both
    assert len(list((tmp_path / "networks" / "fit-stages").glob("*.pt"))) == 2


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "given",
    [
        {"workers": 4},
        {"workers": 2, "stages": 1},
        {"order": "interleaved"},
        {"order": "interleaved", "micro_batches": 6, "stages": 3},
    ],
)
def test_any_grid_learns_the_same(given):
    network = estimator(**given)
    fitted = dpipe.fit(network, X, Y)
    losses, weights = by_hand(network, X, Y)
    np.testing.assert_allclose(fitted.losses_, losses, rtol=1e-5)
    assert largest_difference(fitted.state_dict(), weights) < 1e-6


@pytest.mark.timeout(240)
def test_partial_fit_goes_on_with_weights_and_what_the_optimizer_remembers():
    network = estimator(shuffle=None, epochs=7)
    parts = [(X[:256], Y[:256]), (X[256:], Y[256:])]
    for own, target in parts:
        assert network.partial_fit(own, target) is network
    net, losses = nn.Sequential(*built(chain_of(LAYERS).layers, 0)), []
    optimizer = network.optimizer(net.parameters())
    for own, target in parts:  # each of them once
        losses += losses_by_hand(net, network.loaders(own, target, 0)[0], optimizer, network.loss)
    np.testing.assert_allclose(network.losses_, losses, rtol=1e-5)
    assert largest_difference(network.state_dict(), net.state_dict()) < 1e-6
    assert (network.n_calls_, network.n_features_in_) == (2, 6)
    with pytest.raises(InputError, match=r"classes=\[1, 2\], but the network was given classes=None"):
        network.partial_fit(X, Y, classes=[1, 2])


@pytest.mark.parametrize(("m", "virtual"), [(2, 2), (8, 2), (6, 3), (12, 2)])
def test_micro_batches_in_flight_are_those_of_torch(m, virtual):
    from torch.distributed.pipelining.schedules import ScheduleInterleaved1F1B, _ComputationType

    n = 3 if m in (6, 12) else 2
    for process in range(n):
        # its order follows from these figures; no group of processes is needed to ask for it
        schedule = ScheduleInterleaved1F1B.__new__(ScheduleInterleaved1F1B)
        schedule.n_local_stages, schedule.pp_group_size, schedule._n_microbatches = virtual, n, m
        schedule.microbatches_per_round = m // max(1, m // n)
        counts, found = [0] * virtual, set()
        for action in schedule._calculate_single_rank_operations(process):
            if action is not None:
                onward = action.computation_type is _ComputationType.FORWARD
                counts[action.stage_index // n] += 1 if onward else -1
                if onward:
                    found.add(tuple(counts))
        assert in_flight("interleaved", process, n, m, virtual) == found


def made_up(n, nbytes):
    values = Values((2,), "float32", 8)
    return [
        LayerProfile(
            str(i), Weights(nbytes, nbytes, nbytes), values, 0.0, True, False, False, False, 1.0, 1.0, 1
        )
        for i in range(n)
    ]


def planned(profiles, n_stages, virtual, **given):
    load = Load(64, Values((2,), "float32", 8, False), 2.0, "interleaved", virtual)
    return plan_split(chain_of([nn.ReLU] * len(profiles)), profiles, load, n_stages, **given)


def test_an_interleaved_plan_gives_each_process_several_groups_of_layers():
    plan = planned(made_up(8, MIB), 2, 2)
    assert [[(part.start, part.stop) for part in stage.parts] for stage in plan.stages] == [
        [(0, 2), (4, 6)],
        [(2, 4), (6, 8)],
    ]
    assert plan.bubble == pytest.approx(1 / (2 * plan.micro_batches + 1))
    assert "stage 0  4 layers (0 to 1, then 4 to 5)" in str(plan)


def test_an_interleaved_plan_keeps_to_the_memory_of_a_process():
    profiles = [*made_up(1, 90 * MIB), *made_up(3, MIB), *made_up(1, 60 * MIB), *made_up(3, MIB)]
    free = planned(profiles, 2, 2)
    assert free.stages[0].peak_nbytes > RANK_NBYTES + 650 * MIB  # both large layers
    tight = planned(profiles, 2, 2, memory=RANK_NBYTES + 560 * MIB)
    assert max(stage.peak_nbytes for stage in tight.stages) <= RANK_NBYTES + 560 * MIB
    with pytest.raises(MemoryLimitError, match="2 stages cannot keep to"):
        planned(profiles, 2, 2, memory=RANK_NBYTES + 542 * MIB)


def test_what_is_left_of_a_grid_is_whole_copies():
    assert [Grid(2, 3).of(n) for n in (7, 5, 3, 1)] == [Grid(2, 3), Grid(2, 2), Grid(2, 1), Grid(1, 1)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"workers": 3}, "workers=3 cannot hold copies of 2 stages each. Give a multiple of 2"),
        ({"workers": 8}, "4 copies cannot read shares=3: each needs one"),
        ({"workers": 0}, "workers must be an integer of at least 1"),
        ({"order": "interleaved", "virtual": 0}, "virtual must be an integer of at least 1"),
        (
            {"order": "interleaved", "virtual": 4},
            "8 stages need as many layers, but the module can be cut into 6",
        ),
        (
            {"order": "interleaved", "micro_batches": 7},
            "micro_batches=7 is no multiple of 3. Give a multiple of 2",
        ),
    ],
)
def test_grids_that_cannot_be_are_refused_before_data_is_read(given, says):
    with raise_if_computes(), pytest.raises(InputError, match=says):
        dpipe.plan(estimator(**given), X, Y)


def test_a_plan_tells_what_all_copies_take():
    one, two = (dpipe.plan(estimator(workers=n), X, Y) for n in (2, 4))
    split = estimator(workers=4).plan(X, Y)
    assert isinstance(split, SplitPlan)
    assert (split.n_stages, split.n_processes, split.micro_rows) == (2, 4, 22)
    assert two.projected_nbytes > one.projected_nbytes + 2 * RANK_NBYTES - MIB
