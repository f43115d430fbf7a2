"""A module as a chain of layers, each of which takes what the one before it gives: what can be cut into stages.

A layer may be a module with its weights, a module on the meta device (which has shapes and no memory), or a function
that builds one. The last two are made where they are needed: nobody has to hold all of them.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpipe.errors import InputError
from dpipe.sizes import counted


@dataclass(frozen=True)
class Layer:
    """One link of the chain."""

    index: int
    name: str
    """What its weights are called by, before the dot; empty if they have their full names."""
    source: Any
    """A module, or a function that builds one."""

    def full_name(self, name: str) -> str:
        """Name a weight as the whole module names it."""
        return f"{self.name}.{name}" if self.name else name

    @property
    def skeleton(self) -> Any:
        """The layer with shapes, and without memory if it need not have its weights."""
        import torch

        if is_module(self.source):
            return self.source
        with torch.device("meta"):
            return _checked(self, self.source())


@dataclass(frozen=True)
class Chain:
    """The layers of a module, in the order in which they are called."""

    layers: tuple[Layer, ...]
    together: frozenset[int] = frozenset()
    """Places before which the chain cannot be cut, as layers on both sides have a weight in common."""

    @property
    def cuts(self) -> list[int]:
        """Layers before which the chain can be cut."""
        return [i for i in range(1, len(self.layers)) if i not in self.together]


def is_module(value: Any) -> bool:
    """Tell a module from a function that builds one."""
    import torch

    return isinstance(value, torch.nn.Module)


def chain_of(module: Any) -> Chain:
    """Take a module apart.

    Parameters
    ----------
    module : torch.nn.Sequential, torch.nn.Module, or sequence of modules and functions that build them
        Of a module that is no Sequential, torch.fx finds out what is called in which order.

    Raises
    ------
    InputError
        If it is no chain: what is called depends on the data, or weights on the meta device are shared.
    """
    if isinstance(module, list | tuple):
        found = [Layer(i, str(i), each) for i, each in enumerate(module)]
    elif is_module(module):
        found = [Layer(i, name, each) for i, (name, each) in enumerate(_links(module))]
    else:
        raise InputError(
            f"module must be a torch.nn.Module, or a list of functions that build its layers, got {module!r}."
        )
    for layer in found:
        if not is_module(layer.source) and not callable(layer.source):
            raise InputError(
                f"Layer {layer.index} is {layer.source!r}: give a torch.nn.Module, or a function that builds one."
            )
    if not found:
        raise InputError("The module has no layers. Give one that has weights to learn.")
    return Chain(tuple(found), _together(found))


def _links(module: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    import torch

    if type(module).forward is torch.nn.Sequential.forward:
        for name, child in module.named_children():
            inner = type(child).forward is torch.nn.Sequential.forward
            yield from _links(child, f"{prefix}{name}.") if inner else [(f"{prefix}{name}", child)]
        return
    from dpipe.train.networks.traced import traced_links

    yield from (("", link) for link in traced_links(module))


def _together(layers: Sequence[Layer]) -> frozenset[int]:
    """Find the places that stand between two layers with a weight in common.

    Raises
    ------
    InputError
        If such a weight is on the meta device: it would be made twice.
    """
    first: dict[int, int] = {}
    found: set[int] = set()
    for layer in layers:
        if not is_module(layer.source):
            continue
        for name, weight in layer.source.named_parameters():
            begun = first.setdefault(id(weight), layer.index)
            if begun != layer.index and weight.is_meta:
                raise InputError(
                    f"The weight {layer.full_name(name)} belongs to layer {begun}, too, and is on the meta device: it "
                    "would be made twice. Give a module with weights."
                )
            found.update(range(begun + 1, layer.index + 1))
    return frozenset(found)


def built(layers: Sequence[Layer], seed: int, device: Any = "cpu") -> list[Any]:
    """Make layers, as one process needs them; the caller's are copied.

    What has no weights yet draws them from the seed and the place of the layer, whoever makes it.
    """
    import torch

    ready = [layer for layer in layers if is_module(layer.source)]
    # in one go, so that a weight that two of them have remains one
    copies = dict(
        zip((e.index for e in ready), copy.deepcopy([layer.source for layer in ready]), strict=True)
    )
    made = []
    for layer in layers:
        torch.manual_seed(drawn(seed, layer.index))
        module = copies.get(layer.index)
        made.append(_checked(layer, layer.source()) if module is None else _filled(layer, module))
    return [module.to(device) for module in made]


def drawn(*numbers: int) -> int:
    """Draw a seed for torch out of some numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _checked(layer: Layer, module: Any) -> Any:

    if not is_module(module):
        raise InputError(
            f"Layer {layer.index}: its function gives {module!r}, and must give a torch.nn.Module."
        )
    return module


def _filled(layer: Layer, module: Any) -> Any:
    """Give weights to what is on the meta device."""
    if not any(each.is_meta for each in (*module.parameters(), *module.buffers())):
        return module
    return reset(layer, module.to_empty(device="cpu"))


def reset(layer: Layer, module: Any) -> Any:
    """Have all parts of a layer make their weights anew.

    Parameters
    ----------
    layer : Layer
        Is named in errors.
    module : torch.nn.Module
        What its weights are made of, in place; they have memory.

    Returns
    -------
    torch.nn.Module
        The same one.

    Raises
    ------
    InputError
        If a part of it does not say how.
    """
    # inner parts first: what contains them may change what they have drawn
    for part in reversed(list(module.modules())):
        own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        begin: Callable[[], None] | None = getattr(part, "reset_parameters", None) or getattr(
            part, "_reset_parameters", None
        )
        if own and begin is None:
            raise InputError(
                f"Layer {layer.index} is on the meta device, and its {type(part).__name__} with "
                f"{counted(len(own), 'weight')} has no reset_parameters() to make them. Give a list of functions that "
                "build the layers."
            )
        if own and begin is not None:
            begin()
    return module


def whole(module: Any, chain: Chain, weights: dict[str, Any]) -> Any:
    """Put the module together from weights; it has theirs, without a copy.

    Parameters
    ----------
    module
        As given to `chain_of`.
    chain : Chain
        What that has given.
    weights : dict of tensors
        By their names in the whole module.
    """
    import torch

    if is_module(module):
        made = copy.deepcopy(module)
        made.load_state_dict(
            weights, strict=False, assign=True
        )  # what forward() does not call keeps its weights
        return made.eval()
    parts = []
    for layer in chain.layers:  # one at a time: a layer gives its first weights back at once
        part = built([layer], 0)[0]
        own = {name: weights[layer.full_name(name)] for name in part.state_dict()}
        part.load_state_dict(own, assign=True)
        parts.append(part)
    return torch.nn.Sequential(*parts).eval()
