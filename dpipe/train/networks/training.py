"""What one process does when a network is trained: its part of every batch, and the same weights as the others.

The batches are those of a `Loader`, which are the same for any number of processes. A gradient is the mean over all
rows of a batch, whoever has computed it: what comes out is what one process would learn, up to rounding.
"""

import contextlib
import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpipe.errors import InputError
from dpipe.train.loading.loader import Loader


@dataclass(frozen=True)
class Recipe:
    """What is to be trained, and how."""

    module: Any
    """A torch.nn.Module in its first state; copied, never changed."""
    loss: Callable[[Any, Any], Any]
    optimizer: Callable[[Any], Any]
    loader: Loader
    epochs: int
    schedule: Callable[[Any], Any] | None = None
    """From an optimizer to a learning-rate schedule, which goes on after each batch."""
    accumulate: int = 1
    validation: Loader | None = None
    patience: int = 5
    tol: float = 1e-4
    folder: str | None = None
    """Where checkpoints are written."""
    every: int = 100
    """Batches from one checkpoint to the next."""
    identity: str = ""
    """What a checkpoint must be of, to go on from it."""


@dataclass
class Trained:
    """How far training has come."""

    weights: dict[str, Any]
    losses: list[float] = field(default_factory=list)
    """The mean loss of each batch, of all processes together."""
    scores: list[float] = field(default_factory=list)
    """The mean loss of each epoch on the rows that are held out."""


class Ranks:
    """The processes that train together; of one alone nothing is sent."""

    def __init__(self, rank: int = 0, n_ranks: int = 1) -> None:
        self.rank, self.n_ranks = rank, n_ranks

    def added(self, values: Any) -> Any:
        """Add up what all processes have."""
        if self.n_ranks > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def wrapped(self, module: Any) -> Any:
        """Have gradients averaged over the processes."""
        if self.n_ranks == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(module)


def train(recipe: Recipe, ranks: Ranks) -> Trained:
    """Train to the end, from the last checkpoint if there is one.

    Raises
    ------
    InputError
        If a loss or a gradient is no longer finite: it names the epoch and the batch.
    """
    return _Training(recipe, ranks).run()


class _Training:
    """A network in the making, in one process."""

    def __init__(self, recipe: Recipe, ranks: Ranks) -> None:
        import torch

        self._torch, self._recipe, self._ranks = torch, recipe, ranks
        self._device = (
            torch.device("cuda", ranks.rank % torch.cuda.device_count())
            if (torch.cuda.is_available())
            else torch.device("cpu")
        )
        self._module = copy.deepcopy(recipe.module).to(self._device)
        self._optimizer = recipe.optimizer(self._module.parameters())
        self._schedule = None if recipe.schedule is None else recipe.schedule(self._optimizer)
        self._losses: list[float] = []
        self._scores: list[float] = []
        self._best: dict[str, Any] | None = None
        self._sums: list[Any] = []
        self._recall()
        self._net = ranks.wrapped(self._module)

    def run(self) -> Trained:
        loader, recipe = self._recipe.loader, self._recipe
        while loader.state_dict()["epoch"] < recipe.epochs and not self._stopped:
            position = loader.state_dict()
            epoch, step = position["epoch"], position["step"]
            self._net.train()
            for X, y, *_ in loader:
                self._learn(X, y, epoch, step)
                step += 1
                if step % recipe.every == 0 and step < len(loader):
                    self._write()
            self._tell()
            if recipe.validation is not None:
                self._score(recipe.validation)
            self._write()
        weights = self._best or self._module.state_dict()
        return Trained({name: value.cpu() for name, value in weights.items()}, self._losses, self._scores)

    def _learn(self, X: Any, y: Any, epoch: int, step: int) -> None:
        torch, loader = self._torch, self._recipe.loader
        # what a layer draws must not depend on where training was interrupted
        torch.manual_seed(int(np.random.SeedSequence([epoch, step, self._ranks.rank]).generate_state(1)[0]))
        n_all = sum(loader.order.counts(step))
        parts = list(zip(X.chunk(self._recipe.accumulate), y.chunk(self._recipe.accumulate), strict=True))
        self._optimizer.zero_grad()
        total = torch.zeros((), device=self._device)
        for i, (X_part, y_part) in enumerate(parts):
            with self._apart(i < len(parts) - 1):
                X_here, y_here = (part.to(self._device, non_blocking=True) for part in (X_part, y_part))
                output = self._net(X_here)
                _check_output(output, y_here)
                loss = self._recipe.loss(output, y_here) * (len(X_part) / n_all)
                # DistributedDataParallel divides by the number of processes, and rows are what counts
                (loss * self._ranks.n_ranks).backward()
            total += loss.detach()
        self._check_finite(total, epoch, step)
        self._optimizer.step()
        if self._schedule is not None:
            self._schedule.step()
        self._sums.append(total)

    def _apart(self, apart: bool) -> Any:
        """Leave the gradients of a part of a batch unsent."""
        return self._net.no_sync() if apart and self._ranks.n_ranks > 1 else contextlib.nullcontext()

    def _check_finite(self, loss: Any, epoch: int, step: int) -> None:
        """Stop all processes at the same batch: all of them have the same gradients."""
        grads = [each.grad for each in self._module.parameters() if each.grad is not None]
        if self._torch.isfinite(self._torch.stack([grad.sum() for grad in grads])).all():
            return
        raise InputError(
            f"The loss is no longer finite: batch {step} of epoch {epoch}, counted from 0 (here {float(loss):g}). "
            "Give a smaller learning rate, scale the features, or look for values that are not finite. The last "
            "checkpoint is of before."
        )

    def _tell(self) -> None:
        """Add up the losses of the batches since the last time."""
        if self._sums:
            self._losses += self._ranks.added(self._torch.stack(self._sums)).tolist()
            self._sums = []

    def _score(self, validation: Loader) -> None:
        """Score the held-out rows; keep the best weights."""
        torch = self._torch
        self._net.eval()
        found = torch.zeros(2, dtype=torch.float64, device=self._device)
        validation.seek(0)
        with torch.no_grad():
            for X, y, *_ in validation:
                loss = self._recipe.loss(self._module(X.to(self._device)), y.to(self._device))
                found += torch.tensor([float(loss) * len(X), len(X)], device=self._device)
        total, n = self._ranks.added(found).tolist()
        self._scores.append(total / n)
        if self._since_best == 0:
            self._best = {name: value.detach().clone() for name, value in self._module.state_dict().items()}

    @property
    def _since_best(self) -> int:
        """Epochs since the last one that was better."""
        best, found = float("inf"), 0
        for score in self._scores:
            better = score < best - self._recipe.tol
            best, found = (score, 0) if better else (best, found + 1)
        return found

    @property
    def _stopped(self) -> bool:
        return self._recipe.validation is not None and self._since_best >= self._recipe.patience

    def _write(self) -> None:
        """Write a checkpoint, whole or not at all."""
        self._tell()
        if self._recipe.folder is None or self._ranks.rank:
            return
        tree = {
            "identity": self._recipe.identity,
            "position": self._recipe.loader.state_dict(),
            "module": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": None if self._schedule is None else self._schedule.state_dict(),
            "best": self._best,
            "losses": self._losses,
            "scores": self._scores,
        }
        path = Path(self._recipe.folder) / CHECKPOINT
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        self._torch.save(tree, unfinished)
        unfinished.replace(path)

    def _recall(self) -> None:
        """Go on from the last checkpoint, if it is of the same training."""
        tree = read_checkpoint(self._recipe)
        self._recipe.loader.seek(0)
        if tree is None:
            return
        self._recipe.loader.load_state_dict(tree["position"])
        self._module.load_state_dict(tree["module"])
        self._optimizer.load_state_dict(tree["optimizer"])
        if self._schedule is not None:
            self._schedule.load_state_dict(tree["schedule"])
        self._best, self._losses, self._scores = tree["best"], tree["losses"], tree["scores"]


#: The file of the last checkpoint.
CHECKPOINT = "network.pt"


def read_checkpoint(recipe: Recipe) -> Mapping[str, Any] | None:
    """Read the last checkpoint of this training: plain tensors and numbers, never code."""
    import torch

    path = Path(recipe.folder or "") / CHECKPOINT
    if recipe.folder is None or not path.exists():
        return None
    tree = torch.load(path, weights_only=True)
    return tree if tree["identity"] == recipe.identity else None


def _check_output(output: Any, y: Any) -> None:
    """Refuse targets that would be stretched silently to another shape.

    Raises
    ------
    InputError
        It names both shapes.
    """
    if y.is_floating_point() and output.shape != y.shape:
        raise InputError(
            f"The module gives {tuple(output.shape)} for targets of shape {tuple(y.shape)}: a loss would pair each row "
            "with all others. Give it an output of the shape of y, such as torch.nn.Flatten(0) after one unit."
        )
