"""What one process does when a module is split: its own layers, one micro-batch after another, and nobody else's.

The stages pass values on and gradients back by torch.distributed.pipelining. Each micro-batch is computed as the whole
module would compute it, so that the cut decides nothing but who computes what, and when.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import Any

import numpy as np

from dpipe.blocks.batch_order import shares_of
from dpipe.train.loading.loader import Loader
from dpipe.train.networks.chain import Layer, drawn
from dpipe.train.networks.own_parts import OwnParts
from dpipe.train.networks.pieces import local
from dpipe.train.networks.profile import Values
from dpipe.train.networks.ranks import Ranks, draw_from, own_peak_nbytes
from dpipe.train.networks.stage_files import StageFiles
from dpipe.train.networks.targets import Targets
from dpipe.train.networks.training import Trained, epochs_since_best, not_finite


@dataclass(frozen=True)
class Part:
    """Neighbouring layers, what they take and what they give."""

    layers: tuple[Layer, ...]
    input: Values
    output: Values


@dataclass(frozen=True)
class StageRecipe:
    """What a stage is, and how it is trained."""

    parts: tuple[Part, ...]
    """Its layers; more than one group of them in the interleaved order."""
    stage: int
    n_stages: int
    copy: int
    """Which network it is of, of those that learn side by side."""
    n_copies: int
    shard: int
    """Which part it has of the layers that processes of this stage share."""
    n_shards: int
    loss: Callable[[Any, Any], Any]
    optimizer: Callable[[Any], Any]
    epochs: int
    schedule: Callable[[Any], Any] | None
    """From an optimizer to a learning-rate schedule."""
    order: str
    """In which order micro-batches are worked on: "1f1b", "gpipe" or "interleaved"."""
    micro_batches: int
    micro_rows: int
    seed: int
    loader: Loader | None = None
    """Of the first process of each copy only."""
    validation: Loader | None = None
    """Of the first process of each copy only."""
    watched: bool = False
    """Whether there are rows held out."""
    patience: int = 5
    tol: float = 1e-4
    folder: str | None = None
    every: int = 100
    identity: str = ""
    weights: str | None = None
    """A file of weights to begin with."""
    classes: tuple[Any, ...] | None = None
    """Labels, in the order of the outputs."""
    timeout_s: float = 60.0

    def run(self, ranks: Ranks) -> bytes:
        """Train to the end; give the weights of this stage as bytes, unless they stand in a file."""
        return _Stage(self, ranks).run().packed()


@dataclass
class _Clock:
    """What this stage is at, and how long it has computed."""

    epoch: int = 0
    step: int = 0
    chunk: int = 0
    busy_s: list[float] = field(default_factory=list)
    """Of each batch."""
    span_s: list[float] = field(default_factory=list)
    n_rows: int = 0

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Count the time as that in which it computes."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.busy_s[-1] += time.perf_counter() - begun


@dataclass(frozen=True)
class _Rows:
    """How many rows the batches of an epoch have, and the part of one copy."""

    whole: list[int]
    """Of each share, in all batches but the last."""
    last: list[int]
    n_batches: int
    own: slice
    """The shares of this copy."""

    def of(self, step: int) -> tuple[int, int]:
        """Count those of this copy, and of all."""
        counts = self.last if step == self.n_batches - 1 else self.whole
        return sum(counts[self.own]), sum(counts)


class _Stage:
    """Some layers in the making, in one process of a group."""

    def __init__(self, recipe: StageRecipe, ranks: Ranks) -> None:
        import torch
        import torch.distributed as dist

        self._torch, self._dist, self._recipe, self._ranks = torch, dist, recipe, ranks
        self._base_nbytes = own_peak_nbytes()
        self._device = ranks.device
        self._is_first, self._is_last = recipe.stage == 0, recipe.stage == recipe.n_stages - 1
        self._clock, self._targets = _Clock(), Targets(recipe.classes)
        self._y: Any = None
        self._n_all = 0
        layers = [layer for part in recipe.parts for layer in part.layers]
        self._chain, self._alike, self._team = self._groups()
        self._parts_of = OwnParts(recipe.shard, recipe.n_shards, self._team, self._device, layers)
        made = self._parts_of.built(recipe.seed)
        # the parts are neighbours of one module here, so that the optimizer sees all of its weights
        self._net = torch.nn.Sequential(*made)
        self._parts = self._cut(made)
        self._names = {
            f"{i}.{name}": layer.full_name(name)
            for i, layer in enumerate(layers)
            for name in made[i].state_dict()
        }
        self._load_weights()
        for layer, module in zip(layers, made, strict=True):
            module.register_forward_pre_hook(self._seeding(layer.index))
        self._learned = [each for each in self._net.parameters() if each.requires_grad]
        self._optimizer = self._parts_of.optimizer(recipe.optimizer, self._learned) if self._learned else None
        scheduled = recipe.schedule is not None and self._optimizer is not None
        self._schedule = (
            recipe.schedule(self._optimizer) if recipe.schedule is not None and scheduled else None
        )
        self._losses: list[float] = []
        self._scores: list[float] = []
        self._best: dict[str, Any] | None = None
        self._recall()
        self._pipe = self._pipeline()
        self._y_shape, self._y_dtype, self._rows = self._told()

    def _cut(self, made: Sequence[Any]) -> list[Any]:
        """Give the parts as modules of their own."""
        left = iter(made)
        return [self._torch.nn.Sequential(*islice(left, len(part.layers))) for part in self._recipe.parts]

    def _groups(self) -> tuple[Any, Any, Any]:
        """Meet those with whom it passes values on, those that have the same weights, and those of the same stage."""
        recipe, found = self._recipe, []
        counts = recipe.n_copies, recipe.n_stages, recipe.n_shards
        ranks, wait = np.arange(np.prod(counts)).reshape(counts), timedelta(seconds=recipe.timeout_s)
        if recipe.n_copies == recipe.n_shards == 1:
            return None, None, None
        for axis in (1, 0, 2):
            rows = np.moveaxis(ranks, axis, -1).reshape(-1, counts[axis])
            needed = axis == 1 or counts[axis] > 1
            # all make all groups, in one order
            made = [self._dist.new_group(row.tolist(), timeout=wait) for row in rows] if needed else []
            own = [group for group, row in zip(made, rows, strict=bool(made)) if self._ranks.rank in row]
            found.append(own[0] if own else None)
        return found[0], found[1], found[2]

    def _load_weights(self) -> None:
        if self._recipe.weights is not None:
            given = self._torch.load(self._recipe.weights, mmap=True, weights_only=True)
            self._take({name: [value] for name, value in given.items()})

    def _take(self, parts: dict[str, list[Any]]) -> None:
        """Have weights out of those that processes have written, by their names in the whole module."""
        own = self._net.state_dict()
        self._net.load_state_dict(
            {name: self._parts_of.taken(parts[full], full, own[name]) for name, full in self._names.items()}
        )

    def _seeding(self, index: int) -> Callable[[Any, Any], None]:
        """Have what a layer draws follow from its place and the micro-batch: not from the cut."""
        clock, seed = self._clock, self._recipe.seed
        before = self._recipe.copy * self._recipe.micro_batches  # micro-batches of other copies

        def begin(module: Any, _: Any) -> None:
            if module.training:
                draw_from(drawn(seed, clock.epoch, clock.step, before + clock.chunk, index), self._device)

        return begin

    def _pipeline(self) -> Any:
        from torch.distributed import pipelining

        recipe, torch = self._recipe, self._torch
        stages: list[Any] = []
        for i, (part, module) in enumerate(zip(recipe.parts, self._parts, strict=True)):
            module.register_forward_hook(lambda _, __, output: output.contiguous())
            stage = pipelining.PipelineStage(
                module,
                recipe.stage + i * recipe.n_stages,
                len(recipe.parts) * recipe.n_stages,
                self._device,
                input_args=(part.input.empty(recipe.micro_rows),),
                output_args=(part.output.empty(recipe.micro_rows),),
                group=self._chain,
            )
            for name in ("forward_one_chunk", "backward_one_chunk"):
                setattr(stage, name, self._timed(getattr(stage, name)))
            stages.append(stage)
        torch.manual_seed(0)
        how: dict[str, Any] = {"loss_fn": self._loss, "scale_grads": False}
        if recipe.order == "interleaved":
            return pipelining.ScheduleInterleaved1F1B(stages, recipe.micro_batches, **how)
        kinds = {"1f1b": pipelining.Schedule1F1B, "gpipe": pipelining.ScheduleGPipe}
        return kinds[recipe.order](stages[0], recipe.micro_batches, **how)

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        clock = self._clock

        def call(chunk: int, *args: Any, **kwargs: Any) -> Any:
            clock.chunk = chunk
            with clock.computing():
                return method(chunk, *args, **kwargs)

        return call

    def _told(self) -> tuple[Any, Any, _Rows]:
        """Have the first stage, which reads, tell the others what is coming."""
        content, loader = b"", self._recipe.loader
        if loader is not None and not self._ranks.rank:
            _, (shape, dtype), *_ = loader.shapes
            content = json.dumps((shape, dtype.name)).encode()
        shape, name = json.loads(self._ranks.told(content))
        return shape, getattr(self._torch, name), self._rows_of(loader)

    def _rows_of(self, loader: Loader | None) -> _Rows:
        """Tell all how many rows the batches of a loader have."""
        content, recipe = b"", self._recipe
        if loader is not None and not self._ranks.rank:
            n, order = len(loader), loader.order
            content = json.dumps((order.counts(0), order.counts(n - 1), n)).encode()
        whole, last, n = json.loads(self._ranks.told(content))
        shares = shares_of(recipe.copy, recipe.n_copies, len(whole))
        return _Rows(whole, last, n, slice(shares.start, shares.stop))

    def run(self) -> Trained:
        recipe, clock = self._recipe, self._clock
        while clock.epoch < recipe.epochs and not self._stopped:
            for module in (self._net, *self._parts):
                module.train()
            for X, y in self._batches():
                self._learn(X, y)
                clock.step += 1
                if clock.step % recipe.every == 0 and clock.step < self._rows.n_batches:
                    self._write()
            clock.epoch, clock.step = clock.epoch + 1, 0
            if recipe.watched:
                self._score()
            self._write()
        weights = self._best or self._state()
        figures = {"busy_s": clock.busy_s, "span_s": clock.span_s, "base_nbytes": self._base_nbytes}
        # else they stand in files, or are those of the first copy
        given = recipe.folder is None and not recipe.copy
        kept = self._parts_of.own(weights) if given else {}
        peak = own_peak_nbytes()
        return Trained(kept, self._losses, self._scores, clock.n_rows, peak, figures=figures)

    def _batches(self) -> Iterator[tuple[Any, Any]]:
        """Give what is left of an epoch: rows to the first stage, targets to the last."""
        clock = self._clock
        if self._recipe.loader is not None:
            self._recipe.loader.seek(clock.epoch, clock.step)
            batches: Iterator[Any] = iter(self._recipe.loader)
        else:
            batches = iter([(None, None)] * (self._rows.n_batches - clock.step))
        for i, (X, y, *_) in enumerate(batches, start=clock.step):
            own, self._n_all = self._rows.of(i)
            yield self._read(X, own), self._passed(y, own)

    def _rank_of(self, stage: int, shard: int | None = None) -> int:
        """Give the rank of a stage of this copy: of those with the same part of its layers, or another one."""
        recipe = self._recipe
        before = recipe.copy * recipe.n_stages + stage % recipe.n_stages
        return before * recipe.n_shards + (recipe.shard if shard is None else shard)

    def _passed(self, y: Any, n: int) -> Any:
        """Pass targets from the first stage to the last."""
        if self._recipe.shard == 0 and self._is_first and not self._is_last:
            self._dist.send(y.to(self._device), self._rank_of(-1))
        if not self._is_last:
            return y
        y = self._torch.empty((n, *self._y_shape), dtype=self._y_dtype) if y is None else y
        y = y.to(self._device)
        if self._recipe.shard == 0 and not self._is_first:
            self._dist.recv(y, self._rank_of(0))
        return self._same(y)

    def _read(self, X: Any, n: int) -> Any:
        """Give rows that were read to all processes of the first stage."""
        if not self._is_first:
            return X
        X = self._recipe.parts[0].input.empty(n, "cpu") if X is None else X
        return self._same(X.to(self._device))

    def _same(self, values: Any) -> Any:
        """Give all processes of this stage what the first of them has."""
        if self._team is not None:
            self._dist.broadcast(values, self._rank_of(self._recipe.stage, 0), group=self._team)
        return values

    def _learn(self, X: Any, y: Any) -> None:
        torch, recipe, clock = self._torch, self._recipe, self._clock
        self._clear()
        n_rows = recipe.micro_rows * recipe.micro_batches
        given: list[Any] = []
        losses: list[Any] = []
        if self._is_first:
            # all micro-batches have as many rows: those that are missing are rows again, whose loss does not count
            given = [
                X.to(self._device) if len(X) == n_rows else X[torch.arange(n_rows) % len(X)].to(self._device)
            ]
        self._y = y
        places = torch.arange(n_rows, device=self._device) if self._is_last else None
        clock.busy_s.append(0.0)
        begun = time.perf_counter()
        self._pipe.step(*given, target=places, losses=losses, return_outputs=False)
        clock.span_s.append(time.perf_counter() - begun)
        self._add_up()
        self._check_finite(sum(losses) if self._tells else torch.zeros((), device=self._device))
        if self._optimizer is not None:
            self._parts_of.update(self._optimizer)
        if self._schedule is not None:
            self._schedule.step()
        clock.n_rows += self._n_all

    @property
    def _tells(self) -> bool:
        """Whether it tells the others the loss of its copy."""
        return self._is_last and self._recipe.shard == 0

    def _clear(self) -> None:
        """Have gradients of nothing, in memory of their own that is kept: what comes and goes leaves gaps."""
        if self._clock.busy_s:
            for each in self._learned:
                if each.grad is not None:
                    each.grad.zero_()
            return
        used: set[int] = set()
        for i, each in enumerate(self._learned):
            each.grad = self._torch.zeros_like(each)
            hooked: Any = each
            hooked.register_post_accumulate_grad_hook(lambda _, i=i: used.add(i))
        self._used = used

    def _add_up(self) -> None:
        """Add up the gradients of all copies."""
        for i, each in enumerate(self._learned):
            if i not in self._used:
                each.grad = None  # no optimizer should move what no layer uses
        if self._alike is not None:
            grads = [local(each.grad) for each in self._learned if each.grad is not None]
            waited = [self._dist.all_reduce(grad, group=self._alike, async_op=True) for grad in grads]
            for each in waited:
                each.wait()

    def _loss(self, output: Any, places: Any) -> Any:
        """Compute the part of a batch's loss that is of one micro-batch."""
        n = min(max(len(self._y) - int(places[0]), 0), len(places))
        if n == 0:
            return output.sum() * 0
        with self._clock.computing():
            y = self._targets(output[:n], self._y[places[:n]])
            return self._recipe.loss(output[:n], y) * (n / self._n_all)

    def _check_finite(self, loss: Any) -> None:
        """Tell all stages the loss, and stop all of them at the same batch."""
        torch = self._torch
        grads = [local(each.grad).sum() for each in self._net.parameters() if each.grad is not None]
        bad = bool(grads) and not bool(torch.isfinite(torch.stack(grads)).all())
        told = torch.stack(
            [loss.detach().double().reshape(()), torch.tensor(float(bad), device=self._device)]
        )
        self._dist.all_reduce(told)
        total, n_bad = told.tolist()
        if n_bad or not torch.isfinite(told[0]):
            raise not_finite(total, self._clock.epoch, self._clock.step)
        self._losses.append(total)

    def _score(self) -> None:
        """Score the held-out rows, forward only; keep the best weights."""
        torch, dist, recipe = self._torch, self._dist, self._recipe
        self._net.eval()
        for module in self._parts:
            module.eval()
        found = torch.zeros(2, dtype=torch.float64, device=self._device)
        held = recipe.validation
        if held is not None:
            held.seek(0)
        rows = self._rows_of(held)
        self._same_buffers()
        batches = iter([(None, None)] * rows.n_batches) if held is None else iter(held)
        with torch.no_grad():
            for step, (X, y, *_) in enumerate(batches):
                n, _ = rows.of(step)
                y = self._passed(y, n)
                output = self._forward(self._read(X, n), n)
                if self._tells:
                    loss = recipe.loss(output, self._targets(output, y))
                    found += torch.tensor([float(loss) * n, n], device=self._device)
        dist.all_reduce(found)
        self._scores.append(float(found[0] / found[1]))
        if self._since_best == 0:
            self._best = {name: value.clone() for name, value in self._state().items()}

    def _forward(self, X: Any, n: int) -> Any:
        """Have some rows go through the layers of this copy; give what comes out of those of this process last."""
        dist, recipe = self._dist, self._recipe
        output, n_parts = X, len(self._parts)
        for i, (part, module) in enumerate(zip(recipe.parts, self._parts, strict=True)):
            if self._is_first and i == 0:
                values = X.to(self._device)
            elif recipe.n_stages == 1:
                values = output
            else:
                values = self._torch.empty_like(part.input.empty(n), device=self._device, requires_grad=False)
                dist.recv(values, self._rank_of(recipe.stage - 1))
            output = module(values)
            if recipe.n_stages > 1 and not (self._is_last and i == n_parts - 1):
                dist.send(output, self._rank_of(recipe.stage + 1))
        return output

    def _same_buffers(self) -> None:
        """Have what layers count in training, such as the means of a BatchNorm, be that of the first copy."""
        if self._alike is not None:
            first = self._recipe.stage * self._recipe.n_shards + self._recipe.shard
            for each in self._net.buffers():
                self._dist.broadcast(local(each), first, group=self._alike)

    @property
    def _since_best(self) -> int:
        """Epochs since the last one that was better."""
        return epochs_since_best(self._scores, self._recipe.tol)

    @property
    def _stopped(self) -> bool:
        return self._recipe.watched and self._since_best >= self._recipe.patience

    def _state(self) -> dict[str, Any]:
        """Give the weights by their names in the whole module."""
        return {self._names[name]: value.detach() for name, value in self._net.state_dict().items()}

    def _learned_names(self) -> list[str]:
        """Name the weights in the order in which the optimizer knows them."""
        return [self._names[name] for name, each in self._net.named_parameters() if each.requires_grad]

    def _write(self) -> None:
        """Write a checkpoint, whole or not at all."""
        recipe = self._recipe
        if recipe.folder is None:
            return
        tree: dict[str, Any] = {
            "module": self._parts_of.own(self._state()),
            "best": None if self._best is None else self._parts_of.own(self._best),
            "schedule": None,
            "optimizer": {},
        }
        if self._optimizer is not None:
            held = self._optimizer.state_dict()
            names = self._learned_names()
            states = {names[i]: state for i, state in held["state"].items()}
            tree["optimizer"] = self._parts_of.own_states(states)
            tree["groups"] = [{**group, "params": []} for group in held["param_groups"]]
        if self._schedule is not None:
            tree["schedule"] = self._schedule.state_dict()
        clock = self._clock
        told = {"epoch": clock.epoch, "step": clock.step, "losses": self._losses, "scores": self._scores}
        # all copies have the same weights
        own = None if recipe.copy else recipe.stage * recipe.n_shards + recipe.shard
        files = StageFiles(recipe.folder, recipe.identity)
        files.write(tree, told, own, recipe.n_stages * recipe.n_shards, self._dist.barrier)

    def _recall(self) -> None:
        """Go on from the last checkpoint, whatever stages it was written by."""
        recipe = self._recipe
        found = (
            None if recipe.folder is None else StageFiles(recipe.folder, recipe.identity).last(recipe.epochs)
        )
        if found is None:
            return
        told = found.told
        self._clock.epoch, self._clock.step = told["epoch"], told["step"]
        self._losses, self._scores = list(told["losses"]), list(told["scores"])
        self._take(found.parts("module"))
        best = found.parts("best")
        if best:
            own = self._state()
            self._best = {name: self._parts_of.taken(best[name], name, own[name]).clone() for name in own}
        if self._optimizer is not None and found.first("groups") is not None:
            states, names = found.parts("optimizer"), self._learned_names()
            made = self._optimizer.state_dict()
            here = ("params", "foreach", "fused")  # how it computes is not what was learned
            groups = [
                kept | {name: own[name] for name in here if name in own}
                for kept, own in zip(found.first("groups"), made["param_groups"], strict=True)
            ]
            known = {
                i: self._parts_of.remembered(states[name], name, weight)
                for i, (name, weight) in enumerate(zip(names, self._learned, strict=True))
                if name in states
            }
            self._optimizer.load_state_dict({"state": known, "param_groups": groups})
        if self._schedule is not None and found.first("schedule") is not None:
            self._schedule.load_state_dict(found.first("schedule"))
