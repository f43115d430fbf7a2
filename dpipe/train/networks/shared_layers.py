"""Layers that several processes share: as one of them has them, on the meta device, in memory, and in a DTensor.

Torch's `parallelize_module` cuts the weights and has outputs put together. No process makes a whole weight first.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from dpipe.train.networks.chain import Layer, built, drawn, is_module, reset
from dpipe.train.networks.drawing import Recorded, draw, recorded
from dpipe.train.networks.pieces import Cut, local

#: How a part of a layer is cut.
COLUMNS, GATHERED, ROWS, HEADS = "by columns", "by columns, put together", "by rows", "by heads"
#: The projection of an attention to its queries, keys and values: as torch names it, and as a layer of its own.
_PROJECTION, _PROJECTION_LAYER = "in_proj_", "in_proj."


def recorded_layer(layer: Layer) -> Recorded:
    """Record how a layer without weights makes them.

    Parameters
    ----------
    layer : Layer
        Its module is on the meta device, or a function makes it.

    Returns
    -------
    Recorded
        No memory is taken for the weights.
    """
    import torch

    if is_module(layer.source):

        def made() -> Any:
            return reset(layer, _copied(layer.source, lambda each: torch.empty(each.shape, dtype=each.dtype)))

        return recorded(made)
    return recorded(layer.source)


def bare(layer: Layer) -> Any:
    """Give a copy of a layer on the meta device."""
    import torch

    return _copied(layer.skeleton, partial(torch.empty_like, device="meta"))


def _copied(module: Any, empty: Callable[[Any], Any]) -> Any:
    """Copy a module, but for its weights."""
    import torch

    held: dict[int, Any] = {id(each): empty(each) for each in module.buffers()}
    held |= {id(each): torch.nn.Parameter(empty(each), each.requires_grad) for each in module.parameters()}
    # what is copied looks first for what stands for an object
    return copy.deepcopy(module, held)


def cuts_of(module: Any, styles: Mapping[str, str]) -> dict[str, Cut]:
    """Tell how the weights of a layer are cut, by name.

    Parameters
    ----------
    module : torch.nn.Module
        The whole layer; its weights may be on the meta device.
    styles : mapping of str to str
        How parts of it are cut, by their paths; "" is the layer itself.

    Returns
    -------
    dict of str to Cut
        Weights that each process has whole are not in it.

    Examples
    --------
    >>> import pytest
    >>> nn = pytest.importorskip("torch").nn
    >>> cuts_of(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)), {"0": COLUMNS, "1": ROWS})
    {'0.weight': Cut(dim=0, groups=1), '0.bias': Cut(dim=0, groups=1), '1.weight': Cut(dim=1, groups=1)}
    """
    from torch import nn

    found: dict[str, Cut] = {}
    for path, style in styles.items():
        part, prefix = module.get_submodule(path), f"{path}." if path else ""
        if style == HEADS:
            own = {"in_proj_weight": Cut(0, 3), "in_proj_bias": Cut(0, 3), "out_proj.weight": Cut(1)}
        elif style == ROWS:
            own = {"weight": Cut(0 if isinstance(part, nn.Embedding) else 1)}
        else:
            own = {"weight": Cut(1 if isinstance(part, nn.Embedding) else 0), "bias": Cut(0)}
        names = {name for name, _ in part.named_parameters()}
        found |= {prefix + name: cut for name, cut in own.items() if name in names}
    return found


def _heads(attention: Any, n: int = 1) -> Any:
    """Make the attention of 1/n of the heads, whose projections are layers that can be shared."""
    from torch import nn
    from torch.nn.functional import scaled_dot_product_attention

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width, bias = attention.embed_dim, attention.in_proj_bias is not None
            self.in_proj = _like(attention.in_proj_weight, nn.Linear(width, 3 * width // n, bias, "meta"))
            self.out_proj = _like(attention.out_proj.weight, nn.Linear(width // n, width, bias, "meta"))
            self.batch_first, self.width_of_head = attention.batch_first, attention.head_dim

        def forward(self, query: Any, key: Any, value: Any, **how: Any) -> tuple[Any, None]:
            swapped = query.dim() == 3 and not self.batch_first
            rows = query.transpose(0, 1) if swapped else query
            parts = self.in_proj(rows).chunk(3, -1)
            parts = [each.unflatten(-1, (-1, self.width_of_head)).transpose(-2, -3) for each in parts]
            found = self.out_proj(scaled_dot_product_attention(*parts).transpose(-2, -3).flatten(-2))
            return found.transpose(0, 1) if swapped else found, None

    return Heads()


def _like(weight: Any, module: Any) -> Any:
    """Have a module be of the type of a weight, and learn if that does."""
    return module.to(weight.dtype).requires_grad_(weight.requires_grad)


def narrowed(layer: Layer, styles: Mapping[str, str], n: int) -> Any:
    """Make a layer as small as each of some processes has it, of made-up weights; to be measured alone.

    Parameters
    ----------
    layer : Layer
        The whole one.
    styles : mapping of str to str
        How parts of it are cut, by their paths.
    n : int
        Processes.

    Returns
    -------
    torch.nn.Module
        It takes and gives what the whole layer does, or its part of that between layers that belong together.
    """
    import torch

    module = bare(layer)
    for path, style in styles.items():
        small = _narrow(module.get_submodule(path), style, n)
        if not path:
            module = small
        else:
            module.set_submodule(path, small)
    device = torch.empty(0).device
    if device.type != "meta":
        module.to_empty(device=device)
        with torch.no_grad():
            for each in (*module.parameters(), *module.buffers()):
                if each.is_floating_point():
                    each.uniform_(-0.1, 0.1)
                else:
                    each.zero_()
    return module


def _narrow(part: Any, style: str, n: int) -> Any:
    from torch import nn

    if style == HEADS:
        return _heads(part, n)
    if isinstance(part, nn.Embedding):
        rows, columns = (n, 1) if style == ROWS else (1, n)
        made: Any = nn.Embedding(part.num_embeddings // rows, part.embedding_dim // columns, device="meta")
        if style == ROWS:
            made.register_forward_pre_hook(lambda module, given: (given[0] % module.num_embeddings,))
    else:
        rows, columns = (1, n) if style != ROWS else (n, 1)
        bias = part.bias is not None
        made = nn.Linear(part.in_features // rows, part.out_features // columns, bias, "meta")
    if style == GATHERED:
        made.register_forward_hook(_repeated(n))
        # layers that look alike are measured once
        made.extra_repr = lambda: f"{tuple(made.weight.shape)}, outputs of {n}"
    if style != COLUMNS:
        made.register_forward_hook(_copied_output)
    return _like(part.weight, made)


def _copied_output(_: Any, __: Any, output: Any) -> Any:
    """Have what follows get a tensor of its own: torch lets nothing change a view of a DTensor in place."""
    return output.clone()


def _repeated(n: int) -> Any:
    import torch

    return lambda _, __, output: torch.cat([output] * n, -1)


@dataclass(frozen=True)
class SharedLayer(Layer):
    """A layer of which a process has its part."""

    styles: Mapping[str, str]
    shard: int
    n_shards: int
    own: Mapping[str, Any] | None = None
    """The part of its weights, if there are any."""

    @classmethod
    def of(cls, layer: Layer, styles: Mapping[str, str], shard: int, n_shards: int) -> "SharedLayer":
        """Give the part of one process, with its weights, if the layer has any."""
        made = cls(layer.index, layer.name, layer.source, styles, shard, n_shards)
        if not is_module(layer.source) or any(each.is_meta for each in layer.source.parameters()):
            return made
        cuts, own = cuts_of(layer.source, styles), {}
        for name, value in _held(layer.source).items():
            part = value.detach()
            part = cuts[name].of(part, shard, n_shards) if name in cuts else part
            own[name] = part.clone()  # only the numbers themselves are sent
        return replace(made, source=bare(layer), own=own)

    @cached_property
    def cuts(self) -> dict[str, Cut]:
        """How its weights are cut, by their names in the whole module."""
        found = cuts_of(self.skeleton, self.styles)
        return {self.full_name(name): cut for name, cut in found.items()}

    def full_name(self, name: str) -> str:
        """Name a weight as the whole module names it."""
        return super().full_name(self._plain(name))

    def _plain(self, name: str) -> str:
        for path, style in self.styles.items():
            before = f"{path}.{_PROJECTION_LAYER}"
            if style == HEADS and name.startswith(before):
                return f"{path}.{_PROJECTION}{name.removeprefix(before)}"
        return name

    def build(self, seed: int, device: Any, mesh: Any) -> Any:
        """Make the layer on one process; all that share it must do so."""
        import torch
        from torch.distributed.tensor.parallel import parallelize_module

        module = bare(self)
        cuts = cuts_of(module, self.styles)
        plan: dict[str, Any] = {}
        for path, style in self.styles.items():
            if style == HEADS:
                module.set_submodule(path, _heads(module.get_submodule(path)))
                plan |= {f"{path}.in_proj": _style(COLUMNS), f"{path}.out_proj": _style(ROWS)}
            else:
                plan[path] = _style(style, isinstance(module.get_submodule(path), torch.nn.Embedding))
        parallelize_module(module, mesh, plan.get("", plan))
        for path, style in self.styles.items():
            if style in (GATHERED, ROWS):  # after others stands nothing that works in place
                module.get_submodule(path).register_forward_hook(_copied_output)
        module.to_empty(device=device)
        held = {self._plain(name): local(value.detach()) for name, value in _held(module).items()}
        torch.manual_seed(drawn(seed, self.index))
        with torch.no_grad():
            if self.own is None:
                draw(recorded_layer(self).steps, held, cuts, self.shard, self.n_shards)
            else:
                for name, value in held.items():
                    value.copy_(self.own[name])
        return module


def _held(module: Any) -> dict[str, Any]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _style(style: str, is_embedding: bool = False) -> Any:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    if style == ROWS:
        return RowwiseParallel(input_layouts=Replicate()) if is_embedding else RowwiseParallel()
    return ColwiseParallel(output_layouts=Replicate()) if style == GATHERED else ColwiseParallel()


def built_shared(layers: Sequence[Layer], seed: int, device: Any, mesh: Any) -> list[Any]:
    """Make the layers of one process, some of which others share.

    Parameters
    ----------
    layers : sequence of Layer
    seed : int
        What the weights are drawn from, if there are none.
    device : torch.device
    mesh : torch.distributed.device_mesh.DeviceMesh
        Of the processes that share them; all of these must make them.

    Returns
    -------
    list of torch.nn.Module
    """
    alone = [layer for layer in layers if not isinstance(layer, SharedLayer)]
    made = dict(zip((layer.index for layer in alone), built(alone, seed, device), strict=True))
    return [
        layer.build(seed, device, mesh) if isinstance(layer, SharedLayer) else made[layer.index]
        for layer in layers
    ]


def all_cuts(layers: Iterable[Layer]) -> dict[str, Cut]:
    """Tell how the weights of some layers are cut, by their names in the whole module.

    Parameters
    ----------
    layers : iterable of Layer

    Returns
    -------
    dict of str to Cut
        Of those that are shared.
    """
    return {
        name: cut for layer in layers if isinstance(layer, SharedLayer) for name, cut in layer.cuts.items()
    }
