"""A network in one process: alone, as one of equal copies (DDP), or as a shard of one (FSDP)."""

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

from dpipe.train.networks.pieces import local
from dpipe.train.networks.ranks import Ranks
from dpipe.train.networks.shards import gathered


class Net:
    """A copy of a module on a device, which shares its gradients with those of other processes.

    Parameters
    ----------
    module : torch.nn.Module
    ranks : Ranks
    device : torch.device
    sharded : bool
        Whether each process keeps a part of parameters, gradients and optimizer state only.
    """

    def __init__(self, module: Any, ranks: Ranks, device: Any, *, sharded: bool) -> None:
        self._ranks, self._sharded = ranks, sharded
        self.module = copy.deepcopy(module).to(device)
        self._called: Any = self.module
        if sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(device.type, (ranks.n_ranks,))
            for part in self.module.children():
                if any(True for _ in part.parameters()):
                    fully_shard(part, mesh=mesh)
            fully_shard(self.module, mesh=mesh)

    def join(self) -> None:
        """Have gradients averaged over the processes, and begin with the weights of the first one."""
        if self._ranks.n_ranks == 1 or self._sharded:
            return
        from torch.nn.parallel import DistributedDataParallel

        # gradients lie in the buffers that are sent, not beside them
        self._called = DistributedDataParallel(self.module, gradient_as_bucket_view=True)

    def __call__(self, X: Any) -> Any:
        """Compute the output."""
        return self._called(X) if self.module.training else self.module(X)

    @contextlib.contextmanager
    def apart(self, apart: bool) -> Any:
        """Leave the gradients of a part of a batch unsent."""
        if self._sharded:
            self.module.set_requires_gradient_sync(not apart)
            yield
        elif apart and self._ranks.n_ranks > 1:
            with self._called.no_sync():
                yield
        else:
            yield

    def gradients_are_finite(self) -> bool:
        """Look at the gradients; all processes see the same."""
        import torch

        grads = [local(each.grad) for each in self.module.parameters() if each.grad is not None]
        bad = not torch.isfinite(torch.stack([grad.sum() for grad in grads])).all()
        return not (self._ranks.largest(float(bad)) if self._sharded else bad)

    def weights(self, *, copied: bool = False) -> dict[str, Any]:
        """Give the weights, or the part of them that is here."""
        found = self.module.state_dict()
        return {name: value.detach().clone() if copied else value for name, value in found.items()}

    def whole(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Give weights as plain tensors in main memory; all processes must ask, and the first has what is sharded."""
        found = ((name, gathered(value)) for name, value in weights.items())
        return {name: value for name, value in found if not self._sharded or self._ranks.rank == 0}
