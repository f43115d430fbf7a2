"""What one process does when a network is trained: its part of every batch, and the same weights as the others.

The batches are those of a `Loader`, which are the same for any number of processes. A gradient is the mean over all
rows of a batch, whoever has computed it: what comes out is what one process would learn, up to rounding.
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpipe.blocks.batch_order import shares_of
from dpipe.errors import InputError
from dpipe.train.loading.loader import Loader
from dpipe.train.networks import shards
from dpipe.train.networks.nets import Net
from dpipe.train.networks.ranks import Ranks, own_peak_nbytes
from dpipe.train.networks.targets import Targets


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
    path: str | None = None
    """The file of checkpoints."""
    every: int = 100
    """Batches from one checkpoint to the next."""
    identity: str = ""
    """What a checkpoint must be of, to go on from it."""
    classes: tuple[Any, ...] | None = None
    """Labels, in the order of the outputs."""
    precision: str = "float32"
    sharded: bool = False
    """Whether each process keeps a part of the parameters only."""

    def run(self, ranks: Ranks) -> bytes:
        """Train as one rank; give what was learned as bytes."""
        trained = train(self, ranks)
        return trained.packed() if ranks.rank == 0 else b""


@dataclass
class Trained:
    """How far training has come."""

    weights: dict[str, Any]
    losses: list[float] = field(default_factory=list)
    """The mean loss of each batch, of all processes together."""
    scores: list[float] = field(default_factory=list)
    """The mean loss of each epoch on the rows that are held out."""
    rows: int = 0
    """Rows that were learned since training began, or went on."""
    peak_nbytes: int = 0
    """Of the process that took most."""
    optimizer: bytes = b""
    """What the optimizer remembers, of training in this process."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What else was measured."""

    def packed(self) -> bytes:
        """Give it as bytes: plain tensors and numbers, without what the optimizer remembers."""
        import torch

        held = io.BytesIO()
        torch.save({name: value for name, value in vars(self).items() if name != "optimizer"}, held)
        return held.getvalue()

    @classmethod
    def unpacked(cls, content: bytes) -> "Trained":
        """Give what `packed` was called on."""
        import torch

        return cls(**torch.load(io.BytesIO(content), weights_only=True))


def train(recipe: Recipe, ranks: Ranks, memory: bytes = b"") -> Trained:
    """Train to the end, from the last checkpoint if there is one, or with what an optimizer remembers.

    Raises
    ------
    InputError
        If a loss or a gradient is no longer finite: it names the epoch and the batch.
    """
    return _Training(recipe, ranks, memory).run()


class _Training:
    """A network in the making, in one process."""

    def __init__(self, recipe: Recipe, ranks: Ranks, memory: bytes = b"") -> None:
        import torch

        self._torch, self._recipe, self._ranks = torch, recipe, ranks
        self._device = ranks.device
        self._net = Net(recipe.module, ranks, self._device, sharded=recipe.sharded)
        self._targets = Targets(recipe.classes)
        self._optimizer = recipe.optimizer(self._net.module.parameters())
        self._schedule = None if recipe.schedule is None else recipe.schedule(self._optimizer)
        self._losses: list[float] = []
        self._scores: list[float] = []
        self._best: dict[str, Any] | None = None
        self._sums: list[Any] = []
        self._rows = 0
        if memory:
            self._optimizer.load_state_dict(torch.load(io.BytesIO(memory), weights_only=True))
        self._recall()
        self._net.join()

    def run(self) -> Trained:
        loader, recipe = self._recipe.loader, self._recipe
        while loader.state_dict()["epoch"] < recipe.epochs and not self._stopped:
            position = loader.state_dict()
            epoch, step = position["epoch"], position["step"]
            self._net.module.train()
            for X, y, *_ in loader:
                self._learn(X, y, epoch, step)
                step += 1
                if step % recipe.every == 0 and step < len(loader):
                    self._write()
            self._tell()
            if recipe.validation is not None:
                self._score(recipe.validation)
            self._write()
        weights = self._best or self._net.weights()
        memory = self._memory()
        # what is given away lies beside the weights: it may take the place of what is needed no longer
        self._optimizer.zero_grad()
        self._optimizer.state.clear()
        whole = self._net.whole(weights)
        peak = int(self._ranks.largest(own_peak_nbytes()))
        return Trained(whole, self._losses, self._scores, self._rows, peak, memory)

    def _memory(self) -> bytes:
        """Give what the optimizer remembers, where somebody may go on with it."""
        if self._recipe.path is not None or self._recipe.sharded or self._ranks.n_ranks > 1:
            return b""
        held = io.BytesIO()
        self._torch.save(self._optimizer.state_dict(), held)
        return held.getvalue()

    def _learn(self, X: Any, y: Any, epoch: int, step: int) -> None:
        torch, ranks = self._torch, self._ranks
        counts = self._recipe.loader.order.counts(step)
        n_all = sum(counts)
        shares = [shares_of(rank, ranks.n_ranks, len(counts)) for rank in range(ranks.n_ranks)]
        # all processes must meet equally often
        n_parts = min(self._recipe.accumulate, *(sum(counts[i] for i in own) for own in shares))
        # what a layer draws must not depend on where training was interrupted
        seed = int(np.random.SeedSequence([epoch, step, ranks.rank]).generate_state(1)[0])
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)
        self._optimizer.zero_grad()
        total = torch.zeros((), device=self._device)
        parts = list(zip(X.tensor_split(n_parts), y.tensor_split(n_parts), strict=True))
        for i, (X_part, y_part) in enumerate(parts):
            with self._net.apart(i < len(parts) - 1):
                loss = self._loss(X_part, y_part) * (len(X_part) / n_all)
                # gradients are divided by the number of processes, and rows are what counts
                (loss * ranks.n_ranks).backward()
            total += loss.detach()
        self._check_finite(total, epoch, step)
        self._optimizer.step()
        if self._schedule is not None:
            self._schedule.step()
        self._sums.append(total)
        self._rows += n_all

    def _loss(self, X: Any, y: Any) -> Any:
        X, y = X.to(self._device, non_blocking=True), y.to(self._device, non_blocking=True)
        with self._autocast():
            output = self._net(X)
            return self._recipe.loss(output, self._targets(output, y))

    def _autocast(self) -> Any:
        if self._recipe.precision == "float32":
            return contextlib.nullcontext()
        return self._torch.autocast(self._device.type, dtype=self._torch.bfloat16)

    def _check_finite(self, loss: Any, epoch: int, step: int) -> None:
        """Stop all processes at the same batch."""
        if self._net.gradients_are_finite():
            return
        raise not_finite(float(loss), epoch, step)

    def _tell(self) -> None:
        """Add up the losses of the batches since the last time."""
        if self._sums:
            self._losses += self._ranks.added(self._torch.stack(self._sums)).tolist()
            self._sums = []

    def _score(self, validation: Loader) -> None:
        """Score the held-out rows; keep the best weights."""
        torch = self._torch
        self._net.module.eval()
        found = torch.zeros(2, dtype=torch.float64, device=self._device)
        validation.seek(0)
        with torch.no_grad():
            for X, y, *_ in validation:
                loss = self._loss(X, y)
                found += torch.tensor([float(loss) * len(X), len(X)], device=self._device)
        total, n = self._ranks.added(found).tolist()
        self._scores.append(total / n)
        if self._since_best == 0:
            self._best = self._net.weights(copied=True)

    @property
    def _since_best(self) -> int:
        """Epochs since the last one that was better."""
        return epochs_since_best(self._scores, self._recipe.tol)

    @property
    def _stopped(self) -> bool:
        return self._recipe.validation is not None and self._since_best >= self._recipe.patience

    def _write(self) -> None:
        """Write a checkpoint, whole or not at all."""
        self._tell()
        if self._recipe.path is None:
            return
        tree = {
            "identity": self._recipe.identity,
            "position": self._recipe.loader.state_dict(),
            "schedule": None if self._schedule is None else self._schedule.state_dict(),
            "losses": self._losses,
            "scores": self._scores,
        }
        path, optimizer, best = Path(self._recipe.path), self._optimizer, self._best
        if self._recipe.sharded:
            tensors = shards.held(self._net.module, optimizer, best)
            shards.write(path, tree | {"groups": shards.groups_of(optimizer)}, tensors, self._ranks)
            return
        if self._ranks.rank:
            return
        unfinished = path.with_suffix(".tmp")
        tree |= {
            "module": self._net.whole(self._net.weights()),
            "optimizer": optimizer.state_dict(),
            "best": None if best is None else self._net.whole(best),
        }
        self._torch.save(tree, unfinished)
        unfinished.replace(path)

    def _recall(self) -> None:
        """Go on from the last checkpoint, if it is of the same training; the first process reads it for all."""
        found = _content(self._recipe) if self._ranks.rank == 0 else b""
        tree = _tree(self._ranks.told(found), self._device)
        self._recipe.loader.seek(0)
        if tree is None:
            return
        self._recipe.loader.load_state_dict(tree["position"])
        if self._recipe.sharded:
            path = Path(self._recipe.path or "")
            self._best = shards.load(path, tree, self._net.module, self._optimizer, self._ranks)
        else:
            self._net.module.load_state_dict(tree["module"])
            self._optimizer.load_state_dict(tree["optimizer"])
            self._best = tree["best"]
        if self._schedule is not None:
            self._schedule.load_state_dict(tree["schedule"])
        self._losses, self._scores = tree["losses"], tree["scores"]


def not_finite(loss: float, epoch: int, step: int) -> InputError:
    """Make the error of a batch after which nothing could be learned."""
    return InputError(
        f"The loss is no longer finite: batch {step} of epoch {epoch}, counted from 0 (here {loss:g}). Give a smaller "
        "learning rate, scale the features, or look for values that are not finite. The last checkpoint is of before."
    )


def epochs_since_best(scores: Sequence[float], tol: float) -> int:
    """Count the epochs since the last one that was better.

    Examples
    --------
    >>> epochs_since_best([3.0, 2.0, 2.5, 2.0], 0.1)
    2
    """
    best, found = float("inf"), 0
    for score in scores:
        best, found = (score, 0) if score < best - tol else (best, found + 1)
    return found


def _content(recipe: Recipe) -> bytes:
    """Read the last checkpoint; nothing if there is none, or it is of another training."""
    path = None if recipe.path is None else Path(recipe.path)
    if path is None or not path.exists():
        return b""
    content = shards.rest(path) if recipe.sharded else path.read_bytes()
    tree = _tree(content, "cpu")
    return content if tree is not None and tree["identity"] == recipe.identity else b""


def _tree(content: bytes, device: Any) -> Mapping[str, Any] | None:
    """Build a checkpoint: plain tensors and numbers, never code."""
    import torch

    return torch.load(io.BytesIO(content), weights_only=True, map_location=device) if content else None
