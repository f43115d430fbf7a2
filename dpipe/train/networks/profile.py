"""What each layer of a chain costs on one micro-batch: weights, seconds, and what is kept until gradients come back."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dpipe.errors import InputError
from dpipe.train.networks.chain import Chain, Layer, built

#: How often a layer is timed; the quickest time counts, as all others waited for something.
_TIMES = 3


@dataclass(frozen=True)
class Values:
    """What stands between two layers, for one row."""

    shape: tuple[int, ...]
    dtype: str
    """Such as "float32"."""
    nbytes: int
    learns: bool = True
    """Whether gradients go back through it."""

    def empty(self, rows: int, device: Any = "meta") -> Any:
        """Give a tensor of such values."""
        import torch

        made = torch.empty((rows, *self.shape), dtype=getattr(torch, self.dtype), device=device)
        return made.requires_grad_(self.learns)


@dataclass(frozen=True)
class Weights:
    """Bytes of a layer's parameters and buffers."""

    nbytes: int = 0
    learned_nbytes: int = 0
    """Of those that have gradients."""
    largest_nbytes: int = 0

    @classmethod
    def of(cls, module: Any) -> "Weights":
        """Add up, also on the meta device."""
        learned = [each.nbytes for each in module.parameters() if each.requires_grad]
        every = [each.nbytes for each in (*module.parameters(), *module.buffers())]
        return cls(sum(every), sum(learned), max(learned, default=0))


@dataclass(frozen=True)
class LayerProfile:
    """One layer, on a micro-batch."""

    name: str
    weights: Weights
    output: Values
    kept_nbytes: float
    """Bytes a row, apart from input and output, that it keeps for its gradients."""
    keeps_input: bool
    keeps_output: bool
    is_view: bool
    """Whether its output is its input, as it is or changed in place."""
    in_place: bool
    """Whether it changes its input, which then cannot be what a stage is sent."""
    forward_s: float
    backward_s: float
    rows: int
    """Of the micro-batch that it was timed on."""

    @property
    def seconds(self) -> float:
        """Forward and backward together, for a row."""
        return (self.forward_s + self.backward_s) / self.rows


def weigh(chain: Chain) -> list[Weights]:
    """Weigh all layers, without making those that are not made."""
    return [Weights.of(layer.skeleton) for layer in chain.layers]


def profile(chain: Chain, width: int, rows: int) -> list[LayerProfile]:
    """Measure all layers, one at a time, on a micro-batch of made-up rows with values between 0 and 1.

    Layers that are alike are measured once.

    Raises
    ------
    InputError
        If a layer fails on such rows, or does not give a tensor with a row for each of them.
    """
    import torch

    found: list[LayerProfile] = []
    known: dict[Any, LayerProfile] = {}
    given = torch.rand((rows, width), generator=torch.Generator().manual_seed(0))
    with _one_thread(torch):
        for layer in chain.layers:
            skeleton = layer.skeleton
            shapes = tuple((name, tuple(each.shape)) for name, each in skeleton.state_dict().items())
            code = getattr(skeleton, "code", "")  # of what torch.fx has found, which may be a function alone
            alike = repr(skeleton), code, shapes, given.shape, given.dtype, given.requires_grad
            if alike not in known:
                known[alike] = _measured(layer, given, torch)
            made = LayerProfile(**{**vars(known[alike]), "name": _name(layer, skeleton)})
            found.append(made)
            given = torch.rand((rows, *made.output.shape)).to(getattr(torch, made.output.dtype))
            given.requires_grad_(made.output.learns)
    return found


def _name(layer: Layer, module: Any) -> str:
    kind = type(module).__name__
    if kind == "GraphModule":
        inner = [name for name, _ in module.named_modules() if name]
        return inner[-1] if inner else "function"
    return f"{layer.name} {kind}"


@contextmanager
def _one_thread(torch: Any) -> Iterator[None]:
    """Compute as a rank does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)


def _measured(layer: Layer, given: Any, torch: Any) -> LayerProfile:
    module = built([layer], 0)[0]
    weights = {each.untyped_storage().data_ptr() for each in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    in_place = False
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = _called(layer, module, given)
    except InputError as err:
        if "in-place" not in str(err) or not given.requires_grad:
            raise
        in_place, given = True, given.clone()
        output = _called(layer, module, given)
    source, target = given.untyped_storage().data_ptr(), output.untyped_storage().data_ptr()
    rows = len(given)
    inner = sum(nbytes for pointer, nbytes in kept.items() if pointer not in (source, target))
    made = Values(
        tuple(output.shape[1:]),
        str(output.dtype).removeprefix("torch."),
        output.nbytes // rows,
        output.requires_grad,
    )
    upstream = torch.ones_like(output)
    del output
    start = given.detach().clone().requires_grad_(given.requires_grad).clone if in_place else lambda: given
    forward_s = _quickest(lambda: _called(layer, module, start()))
    both_s = _quickest(lambda: _learned(_called(layer, module, start()), upstream))
    return LayerProfile(
        "",
        Weights.of(module),
        made,
        inner / rows,
        source in kept,
        target in kept,
        source == target,
        in_place,
        forward_s,
        max(both_s - forward_s, 0.0),
        rows,
    )


def _learned(output: Any, upstream: Any) -> None:
    if output.requires_grad:
        output.backward(upstream)


def _quickest(call: Callable[[], Any]) -> float:
    found = []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return min(found)


def _called(layer: Layer, module: Any, given: Any) -> Any:
    import torch

    try:
        output = module(given)
    except Exception as err:  # whatever the layer's own code raises
        raise InputError(
            f"Layer {layer.index} ({_name(layer, module)}) fails on a micro-batch of shape {tuple(given.shape)}: {err} "
            "Each layer must take what the one before it gives; the first takes rows of X as float32."
        ) from err
    if not isinstance(output, torch.Tensor) or output.ndim == 0 or len(output) != len(given):
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise InputError(
            f"Layer {layer.index} ({_name(layer, module)}) gives {shape} for {len(given)} rows, and must give one "
            "tensor with a row for each. Put it and what follows it into one layer."
        )
    return output
