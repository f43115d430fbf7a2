"""Modules as chains of layers, what each layer costs, and where a chain is cut."""

import functools
import itertools

import cloudpickle
import pytest

from dpipe.errors import InputError, MemoryLimitError
from dpipe.train.networks.chain import built, chain_of, whole
from dpipe.train.networks.orders import bubble_of
from dpipe.train.networks.profile import LayerProfile, Values, Weights, profile
from dpipe.train.networks.split import RANK_NBYTES, Load, plan_split, state_ratio

torch = pytest.importorskip("torch", reason="networks need PyTorch: pip install 'dpipe[torch]'")
nn = torch.nn
MIB = 2**20


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.ReLU())

    def forward(self, x):
        return x + self.inner(x)


class Net(nn.Module):
    """Blocks called in a loop, and a function after them."""

    def __init__(self, width=8):
        super().__init__()
        self.blocks = nn.ModuleList([Residual(width) for _ in range(3)])
        self.out = nn.Linear(width, 1)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return torch.tanh(self.out(x)).flatten()


def called(layers, x):
    for layer in layers:
        x = layer(x)
    return x


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.Sequential(nn.Linear(8, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 1))), ["0", "1.0", "1.1"]),
        (Net(), [""] * 6),
        (Residual(8), [""]),
    ],
)
def test_the_layers_of_a_chain_compute_what_the_module_does(module, names):
    chain, x = chain_of(module), torch.rand(5, 8)
    assert [layer.name for layer in chain.layers] == names
    sent = cloudpickle.loads(cloudpickle.dumps(chain))
    made = built(sent.layers, 0)
    assert torch.equal(called(made, x), module(x))
    weights = {
        layer.full_name(name): value
        for layer, each in zip(chain.layers, made, strict=True)
        for name, value in each.state_dict().items()
    }
    assert list(weights) == list(module.state_dict())
    assert torch.equal(whole(module, chain, weights)(x), module(x))


def test_layers_that_are_functions_are_made_where_they_are_needed():
    factories = [functools.partial(nn.Linear, 8, 8), nn.ReLU, functools.partial(nn.Linear, 8, 1)]
    chain = chain_of(factories)
    assert chain.layers[0].skeleton.weight.is_meta
    apart = [built([layer], 3)[0] for layer in chain.layers]
    together = built(chain.layers, 3)
    assert torch.equal(apart[2].weight, together[2].weight)
    assert not torch.equal(apart[2].weight, built(chain.layers, 4)[2].weight)
    weights = {f"{i}.{name}": value for i in (0, 2) for name, value in apart[i].state_dict().items()}
    made = whole(factories, chain, weights)
    assert made[0].weight.data_ptr() == apart[0].weight.data_ptr()


def test_layers_on_the_meta_device_are_filled():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16))
    made = built(chain_of(module).layers, 0)
    assert not any(each.is_meta for part in made for each in part.parameters())
    assert not made[1].self_attn.out_proj.bias.any()  # as its constructor leaves it
    assert module[0].weight.is_meta


def test_a_weight_of_two_layers_keeps_them_together():
    first, last = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    last.weight = first.weight
    chain = chain_of(nn.Sequential(nn.ReLU(), first, nn.ReLU(), last, nn.ReLU()))
    assert chain.cuts == [1, 4]
    made = built(chain.layers, 0)
    assert made[1].weight is made[3].weight


class Branching(Net):
    def forward(self, x):
        return self.out(x) if x.sum() > 0 else x


class Two(Net):
    def forward(self, x, z):
        return self.out(x + z)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Branching(), "Branching cannot be split: .* control flow"),
        (Two(), "Two cannot be split: its forward.. must take one tensor"),
        (nn.Sequential(), "no layers"),
        ([nn.Linear(1, 1), 3], "Layer 1 is 3"),
        ("net", "module must be a torch.nn.Module"),
    ],
)
def test_what_is_no_chain_is_refused(module, says):
    with pytest.raises(InputError, match=says):
        chain_of(module)


def test_what_cannot_be_made_is_refused():
    with pytest.raises(InputError, match="Bare with 1 weight has no reset_parameters"):
        built(chain_of([Bare().to("meta")]).layers, 0)
    with pytest.raises(InputError, match="must give a torch.nn.Module"):
        built(chain_of([int]).layers, 0)
    tied = nn.Linear(4, 4, device="meta")
    with pytest.raises(InputError, match=r"weight 1.weight belongs to layer 0"):
        chain_of([tied, tied])


def test_a_profile_counts_what_layers_keep():
    module = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 1))
    found = profile(chain_of(module), 8, 32)
    linear, tanh, flat, dropout, last = found
    assert linear.weights == Weights((8 * 16 + 16) * 4, (8 * 16 + 16) * 4, 8 * 16 * 4)
    assert (linear.keeps_input, linear.keeps_output, linear.output.shape) == (True, False, (16,))
    assert (tanh.keeps_input, tanh.keeps_output) == (False, True)
    assert flat.is_view
    assert 16 <= dropout.kept_nbytes <= 4 * 16  # its mask
    assert last.output == Values((1,), "float32", 4)
    assert all(each.seconds > 0 for each in found)
    assert module[0].weight.grad is None  # the caller's module is left alone


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (
            nn.Sequential(nn.Linear(8, 4), nn.Linear(5, 1)),
            r"Layer 1 \(1 Linear\) fails on .* \(4, 4\)",
        ),
        (nn.Sequential(nn.Linear(8, 4), nn.LSTM(4, 4)), "Layer 1 .* gives tuple"),
        (nn.Sequential(nn.Flatten(0)), "Layer 0 .* for 4 rows"),
    ],
)
def test_layers_that_do_not_go_together_are_refused(module, says):
    with pytest.raises(InputError, match=says):
        profile(chain_of(module), 8, 4)


def made_up(seconds, nbytes=None):
    """Profiles of layers of some seconds for a row, and some bytes of weights."""
    sizes = [MIB] * len(seconds) if nbytes is None else nbytes
    values = Values((2,), "float32", 8)
    return [
        LayerProfile(str(i), Weights(n, n, n), values, 0.0, True, False, False, False, float(s), 0.0, 1)
        for i, (s, n) in enumerate(zip(seconds, sizes, strict=True))
    ]


def planned(profiles, n_stages, **given):
    load = Load(64, Values((2,), "float32", 8, False), 2.0)
    return plan_split(chain_of([nn.ReLU] * len(profiles)), profiles, load, n_stages, **given)


@pytest.mark.parametrize("n_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("seconds", [[1, 1, 1, 1, 1, 1, 1, 1], [9, 1, 1, 1, 5, 2], [1, 2, 3, 4, 5]])
def test_the_slowest_stage_is_as_quick_as_can_be(seconds, n_stages):
    plan = planned(made_up(seconds), n_stages)
    rows = plan.micro_rows
    cuts = itertools.combinations(range(1, len(seconds)), n_stages - 1)
    best = min(
        max(sum(seconds[a:b]) for a, b in itertools.pairwise([0, *some, len(seconds)])) for some in cuts
    )
    assert max(stage.seconds for stage in plan.stages) == pytest.approx(best * rows)
    assert [stage.stop for stage in plan.stages[:-1]] == [stage.start for stage in plan.stages[1:]]
    assert plan.micro_batches == 4 * n_stages


def test_budgets_move_the_cut():
    heavy = made_up([1, 1, 1, 1], [100 * MIB, MIB, MIB, MIB])
    free = planned(heavy, 2)
    assert free.stages[0].stop == 2
    # its states are four times its weights, and updating them takes as much as the optimizer keeps
    tight = planned(heavy, 2, memory=RANK_NBYTES + 603 * MIB)
    assert tight.stages[0].stop == 1
    assert tight.peak_nbytes <= RANK_NBYTES + 603 * MIB
    with pytest.raises(MemoryLimitError, match="2 stages cannot keep to .* layers 0 to 0 take"):
        planned(heavy, 2, memory=RANK_NBYTES + 500 * MIB)
    with pytest.raises(MemoryLimitError, match="Layer 0 takes .* No cut helps"):
        planned(heavy, 2, memory=RANK_NBYTES + 300 * MIB)


def test_smaller_micro_batches_keep_to_a_budget():
    wide = Values((), "float32", MIB)
    layers = [
        LayerProfile(str(i), Weights(), wide, 0.0, True, False, False, False, 1.0, 1.0, 1) for i in range(8)
    ]
    assert planned(layers, 2).micro_batches == 8
    tight = planned(layers, 2, memory=planned(layers, 2).peak_nbytes - 60 * MIB)
    assert tight.micro_batches > 8
    assert tight.stages[0].activations_nbytes < planned(layers, 2).stages[0].activations_nbytes


def test_bubbles_are_those_of_the_formula():
    for p, m in [(2, 4), (2, 8), (4, 16)]:
        assert bubble_of([2.0] * p, m) == pytest.approx((p - 1) / (m + p - 1))
    plan = planned(made_up([1] * 4), 2, micro_batches=4)
    assert plan.bubble == pytest.approx(1 / 5)
    text = str(plan)
    assert "2 stages, 1f1b, 4 times 16 rows a batch: bubble 20%" in text
    assert "stage 1  2 layers (2 to 3)" in text


def test_too_many_stages_and_micro_batches_are_refused():
    with pytest.raises(InputError, match="5 stages need as many layers, but the module can be cut into 4"):
        planned(made_up([1] * 4), 5)
    with pytest.raises(InputError, match="micro_batches=65 cannot be made of 64 rows"):
        planned(made_up([1] * 4), 2, micro_batches=65)


def test_in_place_layers_begin_no_stage():
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 1))
    chain = chain_of(module)
    profiles = profile(chain, 8, 16)
    assert [each.in_place for each in profiles] == [False, True, False]
    load = Load(16, Values((8,), "float32", 32, False), 0.0)
    assert plan_split(chain, profiles, load, 2).stages[1].start == 2
    with pytest.raises(InputError, match="changes its input in place"):
        plan_split(chain, profiles, load, 3)


def test_batch_normalisation_is_noted():
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    chain = chain_of(module)
    plan = plan_split(chain, profile(chain, 8, 4), Load(32, Values((8,), "float32", 32, False), 0.0), 2)
    assert "BatchNorm1d sees 4 rows at a time" in str(plan)


def test_what_an_optimizer_keeps_is_found_by_a_step():
    assert state_ratio(functools.partial(torch.optim.SGD, lr=0.1)) == 0
    assert state_ratio(functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)) == 1
    assert state_ratio(functools.partial(torch.optim.AdamW, amsgrad=True)) == 3
    with pytest.raises(InputError, match="fails on parameters"):
        state_ratio(torch.optim.LBFGS)
