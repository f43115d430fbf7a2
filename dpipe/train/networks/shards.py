"""Checkpoints of a network whose states are in shards: written and read tensor by tensor, so that no process holds all.

A file is a zip archive with an entry for each tensor, whole, and one for the rest: another number of processes can go
on from it. All processes walk through the tensors in the same order, and meet at each of them; the first one has the
file.
"""

import functools
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dpipe.train.networks.ranks import Ranks

_REST = "rest"


def gathered(values: Any) -> Any:
    """Give a tensor whole; all processes must ask."""
    return (values.full_tensor() if hasattr(values, "full_tensor") else values).detach().cpu()


def held(module: Any, optimizer: Any, best: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """List what is kept of a network in training, each with its name, in the same order everywhere."""
    found = [(f"module {name}", value) for name, value in module.state_dict().items()]
    for name, parameter in module.named_parameters():
        kept = optimizer.state.get(parameter, {})
        found += [(f"optimizer {key} {name}", kept[key]) for key in sorted(kept)]
    return found + [(f"best {name}", value) for name, value in (best or {}).items()]


def write(path: Path, tree: Mapping[str, Any], tensors: list[tuple[str, Any]], ranks: Ranks) -> None:
    """Write a checkpoint, whole or not at all."""
    import torch

    unfinished = path.with_suffix(".tmp")
    archive = None if ranks.rank else zipfile.ZipFile(unfinished, "w")
    for name, values in tensors:
        whole = gathered(values)
        if archive is not None:
            _put(archive, name, whole)
        del whole
    if archive is not None:
        shapes = {name: tuple(values.shape) for name, values in tensors}
        dtypes = {name: str(values.dtype).removeprefix("torch.") for name, values in tensors}
        with archive:
            _put(archive, _REST, {**tree, "shapes": shapes, "dtypes": dtypes})
        unfinished.replace(path)
    if ranks.n_ranks > 1:
        torch.distributed.barrier()


def _put(archive: zipfile.ZipFile, name: str, content: Any) -> None:
    import torch

    with archive.open(name, "w", force_zip64=True) as file:
        torch.save(content, file)


def rest(path: Path) -> bytes:
    """Read what is no tensor of the network."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(_REST)


def tensors_of(
    path: Path, tree: Mapping[str, Any], ranks: Ranks
) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Give the names in a checkpoint, each with what makes its tensor one like another; all processes must ask.

    What it is given is a tensor of the network, or None for one that each process has whole.
    """
    import torch

    archive = None if ranks.rank else zipfile.ZipFile(path)
    for name, shape in tree["shapes"].items():
        if archive is None:
            whole = torch.empty(tuple(shape), dtype=getattr(torch, tree["dtypes"][name]))
        else:
            whole = torch.load(io.BytesIO(archive.read(name)), weights_only=True)
        yield name, functools.partial(_shared, whole, ranks=ranks)
    if archive is not None:
        archive.close()


def _shared(whole: Any, like: Any, ranks: Ranks) -> Any:
    """Give each process its part of what the first one has."""
    import torch

    whole = whole.to(ranks.device)
    if hasattr(like, "placements") and whole.shape == like.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole, like.device_mesh, like.placements)
    if ranks.n_ranks > 1:
        torch.distributed.broadcast(whole, 0)
    return whole if whole.dim() else whole.cpu()  # optimizers count their steps there


def load(
    path: Path, tree: Mapping[str, Any], module: Any, optimizer: Any, ranks: Ranks
) -> dict[str, Any] | None:
    """Go on from a checkpoint; give the best weights so far, if there are any."""
    import torch

    own, parameters = module.state_dict(), dict(module.named_parameters())
    best: dict[str, Any] = {}
    for name, part in tensors_of(path, tree, ranks):
        kind, _, rest_of = name.partition(" ")
        if kind == "optimizer":
            key, _, of = rest_of.partition(" ")
            optimizer.state[parameters[of]][key] = part(parameters[of])
        elif kind == "best":
            best[rest_of] = part(own[rest_of])
        else:
            with torch.no_grad():
                own[rest_of].copy_(part(own[rest_of]))
    for group, saved in zip(optimizer.param_groups, tree["groups"], strict=True):
        group.update(saved)
    return best or None


def groups_of(optimizer: Any) -> list[dict[str, Any]]:
    """Give what an optimizer is set to, such as its learning rate."""
    return [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
