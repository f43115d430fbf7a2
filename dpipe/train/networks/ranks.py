"""One process among those that train a network together: its number, its device, and what it tells the others."""

import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpipe.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, as one of them sees them; of one alone nothing is sent."""

    rank: int = 0
    n_ranks: int = 1
    local: int = 0
    """Its number among those of its machine."""
    n_local: int = 1
    host: str = "127.0.0.1"
    wanted: str | None = None
    """"cpu" or "cuda"; None for the GPU where there is one."""

    @property
    def device(self) -> Any:
        """The torch.device that it computes on.

        Raises
        ------
        InputError
            If there is no GPU for it.
        """
        import torch

        n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.wanted == "cpu" or (self.wanted is None and not n_gpus):
            return torch.device("cpu")
        if self.local >= n_gpus:
            raise InputError(
                f"{self.n_local} processes of one machine cannot share {n_gpus} GPUs: each needs one. Start as many "
                "workers there as it has GPUs, or give ranks=... or device='cpu'."
            )
        return torch.device("cuda", self.local)

    @property
    def backend(self) -> str:
        """What carries its messages."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    def added(self, values: Any) -> Any:
        """Add up what all processes have."""
        if self.n_ranks > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def largest(self, value: float) -> float:
        """Give the largest of what all processes have."""
        if self.n_ranks == 1:
            return value
        import torch
        import torch.distributed as dist

        held = torch.tensor(float(value), dtype=torch.float64, device=self.device)
        dist.all_reduce(held, op=dist.ReduceOp.MAX)
        return float(held)

    def told(self, content: bytes) -> bytes:
        """Give all processes what the first one has."""
        if self.n_ranks == 1:
            return content
        import torch
        import torch.distributed as dist

        n = torch.tensor(len(content), device=self.device)
        dist.broadcast(n, 0)
        held = torch.empty(int(n), dtype=torch.uint8, device=self.device)
        if content and self.rank == 0:
            held.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(held, 0)
        return bytes(held.cpu().numpy().tobytes())


def draw_from(seed: int, device: Any) -> None:
    """Have torch draw from a seed, on the CPU and on a device.

    `torch.manual_seed` would do so on all devices; without a GPU it keeps a stack trace of each call, in case that one
    should appear.
    """
    import torch

    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def own_peak_nbytes() -> int:
    """Give the peak memory of this process since its program was started.

    What `getrusage` says of a child begins with the peak of whoever started it.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
