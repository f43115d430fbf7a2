"""What a process has of the weights that several share: made, written, and taken from what others have written."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpipe.errors import InputError
from dpipe.train.networks.chain import Layer, built
from dpipe.train.networks.pieces import Cut, is_part, local, put_together
from dpipe.train.networks.shared_layers import all_cuts, built_shared

#: What torch speaks of where it cannot compute with tensors that are shared.
_OF_SHARED = ("DTensor", "placement", "sharding strategy")


class OwnParts:
    """The part of one process, of so many that share some layers; all of it, if it is alone.

    Parameters
    ----------
    shard, n_shards : int
    team : torch.distributed.ProcessGroup, optional
        Those that share them; None for one process alone.
    device : torch.device
    layers : sequence of Layer
    """

    def __init__(self, shard: int, n_shards: int, team: Any, device: Any, layers: Sequence[Layer]) -> None:
        self._shard, self._n_shards, self._device, self._layers = shard, n_shards, device, layers
        self._cuts, self._mesh = all_cuts(layers), None
        if team is not None:
            from torch.distributed.device_mesh import DeviceMesh

            self._mesh = DeviceMesh.from_group(team, device.type)

    def built(self, seed: int) -> list[Any]:
        """Make the layers."""
        if self._mesh is None:
            return built(self._layers, seed, self._device)
        import torch

        # it would look at the weights of a transformer's layer past its parts
        torch.backends.mha.set_fastpath_enabled(False)
        return built_shared(self._layers, seed, self._device, self._mesh)

    def optimizer(self, make: Callable[[Any], Any], weights: Sequence[Any]) -> Any:
        """Make the optimizer of some weights."""
        made, kinds = make(weights), {_is_shared(each) for each in weights}
        # torch does not update weights that are shared and others in one go, and many kernels know no shared ones
        unable = ["fused"] * (True in kinds) + ["foreach"] * (len(kinds) > 1)
        for group in made.param_groups:
            group |= {name: False for name in unable if name in group}
        return made

    def update(self, optimizer: Any) -> None:
        """Have an optimizer make a step.

        Raises
        ------
        InputError
            If it does what torch cannot do with weights that are shared.
        """
        try:
            optimizer.step()
        except RuntimeError as err:
            held = (each for group in optimizer.param_groups for each in group["params"])
            # memory may be short, and peers may be gone, as well
            if not any(map(_is_shared, held)) or not any(each in str(err) for each in _OF_SHARED):
                raise
            raise InputError(
                f"optimizer={type(optimizer).__name__} cannot update weights that processes share: "
                f"{str(err).partition(': ')[0]}. Give Adam, AdamW or SGD, or tensor=1."
            ) from err

    def own(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Give what this process writes of weights, by full name: what all have, the first of them."""
        found = {name: self._written(name, value) for name, value in weights.items()}
        return {name: value for name, value in found.items() if value is not None}

    def own_states(self, states: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Give what this process writes of what an optimizer remembers of each weight."""
        found = {
            name: {key: self._written(name, value) for key, value in state.items()}
            for name, state in states.items()
        }
        kept = {
            name: {key: value for key, value in state.items() if value is not None}
            for name, state in found.items()
        }
        return {name: state for name, state in kept.items() if state or not self._shard}

    def _written(self, name: str, value: Any) -> Any:
        placement = value.placements[0] if _is_shared(value) else None
        if placement is not None and placement.is_shard():
            cut = self._cuts.get(name)
            return (cut if cut is not None and cut.dim == placement.dim else Cut(placement.dim)).part(
                _here(value)
            )
        return None if self._shard else _here(value)

    def taken(self, parts: Sequence[Any], name: str, like: Any) -> Any:
        """Give a weight as this process has it, out of what processes have written."""
        own = put_together(parts, self._shard, self._n_shards, self._cuts.get(name))
        return self._as(own, like.placements) if _is_shared(like) else own

    def remembered(self, parts: Sequence[Mapping[str, Any]], name: str, weight: Any) -> dict[str, Any]:
        """Give what the optimizer remembers of a weight, out of what processes have written."""
        found: dict[str, Any] = {}
        for key, first in parts[0].items():
            held = [part[key] for part in parts if key in part]
            alike = is_part(first) or getattr(first, "shape", None) == weight.shape
            value = put_together(held, self._shard, self._n_shards, self._cuts.get(name) if alike else None)
            if hasattr(value, "clone"):
                value = value.clone()  # it is mapped from a file that the next checkpoint replaces
                if _is_shared(weight) and value.dim():
                    value = self._as(value, weight.placements if alike else None)
            found[key] = value
        return found

    def _as(self, own: Any, placements: Any) -> Any:
        from torch.distributed.tensor import DTensor, Replicate

        placements = (Replicate(),) if placements is None else placements
        return DTensor.from_local(own.to(self._device), self._mesh, placements, run_check=False)


def _is_shared(value: Any) -> bool:
    return hasattr(value, "placements")


def _here(value: Any) -> Any:
    return local(value).detach().cpu() if hasattr(value, "detach") else value
