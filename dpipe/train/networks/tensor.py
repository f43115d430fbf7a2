"""Which layers several processes share, and how: tensor parallelism, planned from the kinds and shapes of layers.

A linear layer is cut by columns: each process computes some of its outputs. Two of them with nothing between but a
function of single numbers are cut by columns and by rows, and what each process has is added up; otherwise all get
the outputs of all. An embedding is cut by its dimensions, or its entries, and the attention of a transformer's layer by
its heads. What else there is each process has whole.

References
----------
Shoeybi et al., *Megatron-LM* (2019).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dpipe.errors import InputError
from dpipe.train.networks.chain import Chain, Layer, is_module
from dpipe.train.networks.shared_layers import COLUMNS, GATHERED, HEADS, ROWS, narrowed, recorded_layer
from dpipe.train.networks.traced import traced_links

#: Layers of fewer weights take longer to be put together than to be computed.
_SMALL = 256
#: What works on single numbers, as modules and as functions.
_MODULES = (
    "ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Tanh Sigmoid LogSigmoid Softplus Softsign Hardtanh Hardswish "
    "Hardsigmoid Tanhshrink Softshrink Hardshrink Identity"
)
_FUNCTIONS = "relu relu6 leaky_relu elu selu celu gelu silu mish tanh sigmoid softplus hardtanh"
_EACH, _EACH_FUNCTIONS = frozenset(_MODULES.split()), frozenset(_FUNCTIONS.split())


@dataclass(frozen=True)
class Shared:
    """A chain of which some layers are shared by so many processes."""

    chain: Chain
    """The layers as one process has them, to be measured; it cannot be cut between two that belong together."""
    styles: Mapping[int, Mapping[str, str]]
    """How the parts of a layer are cut, by the numbers of layers and the names of parts."""
    notes: tuple[str, ...]
    """Which layers are shared, and which are not, and why."""


@dataclass(frozen=True)
class _Unit:
    """A part of the chain that is called by itself."""

    layer: int
    path: str
    module: Any
    """None for a function."""
    kind: str
    """"linear", "embedding", "encoder", "each" for a function of single numbers, "inside" for a linear layer within
    what cannot be followed further, and "other"."""
    why: str = ""
    """Why it is whole in each process, if neither the kind nor the sizes tell."""


def share(chain: Chain, n: int) -> Shared:
    """Find the layers that some processes can share.

    Parameters
    ----------
    chain : Chain
    n : int
        Processes.

    Returns
    -------
    Shared
        Nothing is computed, and no weights are made.

    Raises
    ------
    InputError
        If there is none.
    """
    found = _Sharing(chain, n)
    styles = {index: own for index, own in found.styles.items() if own}
    whole = [f"{_named(chain.layers[index])}: {', '.join(why)}" for index, why in sorted(found.left.items())]
    if not styles:
        raise InputError(
            f"tensor={n} finds no layer that {n} processes could share ({'; '.join(whole) or 'none has weights'}). "
            f"They can share Linear, Embedding and TransformerEncoderLayer, themselves and no subclasses, of at least "
            f"{_SMALL} weights and of sizes that are multiples of {n}, where torch.fx can follow what calls them. Give "
            "tensor=1, or such layers."
        )
    layers = [
        Layer(each.index, each.name, partial(narrowed, each, styles[each.index], n))
        if each.index in styles
        else each
        for each in chain.layers
    ]
    said = [f"{_named(chain.layers[i])} {_said(own)}" for i, own in styles.items()]
    notes = [f"shared by {n} processes: {'; '.join(said)}"]
    notes += [f"whole in each of them: {'; '.join(whole)}"] * bool(whole)
    return Shared(Chain(tuple(layers), chain.together | found.together), styles, tuple(notes))


class _Sharing:
    """Finds how the layers of a chain are shared."""

    def __init__(self, chain: Chain, n: int) -> None:
        skeletons = [layer.skeleton for layer in chain.layers]
        self._n = n
        self._units = [u for i, each in enumerate(skeletons) for u in _units(i, "", each)]
        self.styles: dict[int, dict[str, str]] = {}
        self.left: dict[int, list[str]] = {}
        """Why a layer, or parts of it, are whole in each process."""
        self.together: set[int] = set()
        """Places before which the chain cannot be cut, as what is between is in parts."""
        for layer, skeleton in zip(chain.layers, skeletons, strict=True):
            if any(True for _ in skeleton.parameters()):
                self._look(layer)
        for index in _tied(skeletons):
            self.left[index] = ["has a weight in several places"]
        self._closed = set(self.left)
        done: set[int] = set()
        for i, unit in enumerate(self._units):
            if i in done or unit.layer in self._closed:
                continue
            j = self._partner(i)
            if j is None:
                self._take(unit)
                continue
            other = self._units[j]
            self._keep(unit, {unit.path: COLUMNS})
            self._keep(other, {other.path: ROWS})
            self.together.update(range(unit.layer + 1, other.layer + 1))
            done.add(j)

    def _look(self, layer: Layer) -> None:
        """Leave whole what cannot be made in parts."""
        if is_module(layer.source) and not any(each.is_meta for each in layer.source.parameters()):
            return  # it is made, and sent in parts
        unknown = recorded_layer(layer).unknown
        if unknown:
            self._leave(layer.index, f"how its weights are made cannot be repeated in parts ({unknown})")

    def _leave(self, index: int, reason: str) -> None:
        known = self.left.setdefault(index, [])
        known += [reason] * (reason not in known)

    def _keep(self, unit: _Unit, styles: Mapping[str, str]) -> None:
        self.styles.setdefault(unit.layer, {}).update(styles)

    def _partner(self, i: int) -> int | None:
        """Find the linear layer after this one, if there are only functions of single numbers between them."""
        unit, units, n = self._units[i], self._units, self._n
        if unit.kind != "linear" or unit.module.out_features % n or unit.module.weight.numel() < _SMALL:
            return None
        j = i + 1
        while j < len(units) and units[j].kind == "each":
            j += 1
        follows = j < len(units) and units[j].kind == "linear" and units[j].layer not in self._closed
        return j if follows else None

    def _take(self, unit: _Unit) -> None:
        """Share what stands by itself, if that can be."""
        module, n = unit.module, self._n
        if unit.kind == "encoder":
            styles, reason = _encoder(unit.path, module, n)
        elif unit.kind in ("linear", "inside", "embedding"):
            styles, reason = _alone(unit, n)
        else:
            held = module is not None and any(True for _ in module.parameters())
            styles, reason = {}, unit.why or (f"{type(module).__name__} cannot be shared" if held else "")
        self._keep(unit, styles)
        if reason:
            self._leave(unit.layer, reason)


def _alone(unit: _Unit, n: int) -> tuple[dict[str, str], str]:
    """Cut a linear layer or an embedding, if its sizes allow that; else say why not."""
    module = unit.module
    if module.weight.numel() < _SMALL:
        return {}, f"{module.weight.numel()} weights are few"
    if unit.kind != "embedding":
        if module.out_features % n:
            return {}, f"{module.out_features} outputs are no multiple of {n}"
        return {unit.path: GATHERED}, ""
    if module.embedding_dim % n == 0:
        return {unit.path: GATHERED}, ""
    if module.num_embeddings % n == 0:
        return {unit.path: ROWS}, ""
    return (
        {},
        f"neither {module.num_embeddings} entries nor {module.embedding_dim} dimensions are a multiple of {n}",
    )


def _encoder(path: str, module: Any, n: int) -> tuple[dict[str, str], str]:
    """Cut a layer of a transformer: its attention by heads, and the two linear layers after it."""
    found, reasons, prefix = {}, [], f"{path}." if path else ""
    attention, inner = module.self_attn, module.linear1.out_features
    if attention.num_heads % n:
        reasons.append(f"{attention.num_heads} heads are no multiple of {n}")
    elif attention.dropout:
        reasons.append(f"the attention drops {attention.dropout:g} of all heads at once")
    else:
        found[f"{prefix}self_attn"] = HEADS
    if inner % n:
        reasons.append(f"{inner} inner outputs are no multiple of {n}")
    elif module.dropout.p == 0 and _is_each(module.activation):
        found |= {f"{prefix}linear1": COLUMNS, f"{prefix}linear2": ROWS}
    else:
        found |= {f"{prefix}linear1": GATHERED}
        found |= {f"{prefix}linear2": GATHERED} if module.linear2.out_features % n == 0 else {}
    return found, ", ".join(reasons)


def _units(index: int, path: str, module: Any) -> Iterator[_Unit]:
    """Take a layer apart as far as its calls are known."""
    from torch import fx, nn

    if type(module).forward is nn.Sequential.forward:
        for name, child in module.named_children():
            yield from _units(index, f"{path}.{name}" if path else name, child)
    elif isinstance(module, fx.GraphModule):
        yield from _traced_units(index, path, module)
    elif type(module).__module__.startswith("torch.nn.") or not any(True for _ in module.parameters()):
        yield _Unit(index, path, module, _kind(module))
    else:
        yield from _block_units(index, path, module)


def _block_units(index: int, path: str, module: Any) -> Iterator[_Unit]:
    """Take a module with a forward of its own apart."""
    try:
        links = traced_links(module)
    except InputError:
        why = f"torch.fx cannot follow the forward() of {type(module).__name__}"
        yield _Unit(index, path, module, "other", why)
        return
    if _tied(links):
        yield _Unit(index, path, module, "other", "has a weight in several places")
        return
    for link in links:
        yield from _traced_units(index, path, link)


def _traced_units(index: int, path: str, module: Any) -> Iterator[_Unit]:
    nodes = [node for node in module.graph.nodes if node.op not in ("placeholder", "output")]
    called = [node for node in nodes if node.op == "call_module"]
    used = {str(node.target) for node in nodes if node.op == "get_attr"}
    looked = {name.rpartition(".")[0] for name in used}
    if len(nodes) == len(called) == 1 and len(called[0].args) == 1 and not called[0].kwargs:
        target = called[0].target
        yield from _units(index, f"{path}.{target}" if path else target, module.get_submodule(target))
        return
    if (
        len(nodes) == 1
        and not called
        and len(nodes[0].all_input_nodes) == 1
        and not nodes[0].kwargs.get("inplace")
        and not any(each is True for each in nodes[0].args)
        and _is_each(nodes[0].target)
    ):
        yield _Unit(index, path, None, "each")
        return
    for target in dict.fromkeys(node.target for node in called if node.target not in looked):
        part = module.get_submodule(target)
        if _kind(part) in ("linear", "embedding"):
            yield _Unit(index, f"{path}.{target}" if path else target, part, "inside")
        else:
            yield _Unit(index, path, part, "other")
    own = used.intersection(name for name, _ in module.named_parameters(remove_duplicate=False))
    yield _Unit(index, path, None, "other", "computes with weights by itself" if own else "")


def _name_of(function: Any) -> str:
    """Name a function, a method or a module."""
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)


def _is_each(function: Any) -> bool:
    """Tell whether a function, a method or a module of torch works on single numbers, and gives others for them."""
    # what changes its input in place would change what the layer before it has kept
    return _name_of(function) in _EACH | _EACH_FUNCTIONS and not getattr(function, "inplace", False)


def _kind(module: Any) -> str:
    from torch import nn

    kind = type(module)
    if kind is nn.Linear:
        return "linear"
    if kind is nn.Embedding and module.max_norm is None and not (module.sparse or module.scale_grad_by_freq):
        return "embedding"
    if kind is nn.TransformerEncoderLayer:
        return "encoder"
    each = kind.__module__.startswith("torch.nn.") and _is_each(module)
    return "each" if each or (kind is nn.Dropout and module.p == 0) else "other"


def _tied(skeletons: Sequence[Any]) -> set[int]:
    """Find the layers with a weight that stands in several places."""
    held = [[id(each) for _, each in module.named_parameters(remove_duplicate=False)] for module in skeletons]
    counts = Counter(each for own in held for each in own)
    return {index for index, own in enumerate(held) if any(counts[each] > 1 for each in own)}


def _said(styles: Mapping[str, str]) -> str:
    if set(styles) == {""}:
        return styles[""]
    return "(" + ", ".join(f"{path} {style}" for path, style in styles.items()) + ")"


def _named(layer: Layer) -> str:
    kind = type(layer.skeleton).__name__
    return (layer.name or f"layer {layer.index}") if kind == "GraphModule" else f"{layer.name} {kind}"
