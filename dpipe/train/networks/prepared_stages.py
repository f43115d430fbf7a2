"""The fit of a network that is split across processes: its plan, its stages, and what came of them."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from distributed import Client
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from dpipe.blocks.rows import Tally
from dpipe.cluster.local import WORKER_RESERVED_NBYTES
from dpipe.families.registry import Estimator
from dpipe.ledger.fingerprint import Fingerprinter, joined
from dpipe.run.recorded import Recorded
from dpipe.sizes import counted, format_bytes
from dpipe.train.loading.loader import Loader
from dpipe.train.networks.chain import Chain, chain_of, is_module, whole
from dpipe.train.networks.costs import check_loss
from dpipe.train.networks.pieces import gathered_parts, put_together
from dpipe.train.networks.planned import largest_block, network_pass, reading_nbytes, with_network
from dpipe.train.networks.prepared import (
    PreparedNetwork,
    check_given,
    is_far,
    module_fingerprint,
    prepare_before,
    with_epochs,
    y_kind,
)
from dpipe.train.networks.shared_layers import SharedLayer
from dpipe.train.networks.split import SplitPlan
from dpipe.train.networks.splitter import Splitter
from dpipe.train.networks.stage_files import StageFiles
from dpipe.train.networks.stages import Part, StageRecipe
from dpipe.train.networks.team import run_here, run_on
from dpipe.train.networks.training import Trained
from dpipe.train.prepare import Prepared


@dataclass(frozen=True)
class Staged:
    """What is to be trained by stages together; each is given its own."""

    network: Any
    loader: Loader
    validation: Loader | None
    classes: tuple[int, ...] | None
    splitter: Splitter | None = None
    folder: str | None = None
    identity: str = ""

    def usable(self, n_ranks: int) -> int:
        """Count the processes that can take part, of so many."""
        assert self.splitter is not None
        return self.splitter.grid.of(n_ranks).n_processes

    def of_rank(self, rank: int, n_ranks: int) -> StageRecipe:
        """Give what one stage is told, of so many."""
        assert self.splitter is not None
        grid = self.splitter.grid.of(n_ranks)
        network, plan = self.network, self.splitter.split(grid)
        copy, stage, shard = grid.place(rank)
        layers, styles = self.splitter.chain.layers, self.splitter.shared(grid.n_shards).styles
        own = [
            Part(
                tuple(
                    SharedLayer.of(layers[i], styles[i], shard, grid.n_shards) if i in styles else layers[i]
                    for i in range(part.start, part.stop)
                ),
                part.input,
                part.output,
            )
            for part in plan.stages[stage].parts
        ]

        def reads(loader: Loader | None) -> Loader | None:
            """Have one process of the first stage read."""
            return None if loader is None or stage or shard else loader.of_rank(copy, grid.n_copies)

        return StageRecipe(
            parts=tuple(own),
            stage=stage,
            n_stages=grid.n_stages,
            copy=copy,
            n_copies=grid.n_copies,
            shard=shard,
            n_shards=grid.n_shards,
            loss=network.loss,
            optimizer=network.optimizer,
            epochs=network.epochs,
            schedule=network.schedule,
            order=plan.order,
            micro_batches=plan.micro_batches,
            micro_rows=plan.micro_rows,
            seed=network.random_state,
            loader=reads(self.loader),
            validation=reads(self.validation),
            watched=self.validation is not None,
            patience=network.patience,
            tol=network.tol,
            folder=self.folder,
            every=network.checkpoint_every,
            identity=self.identity,
            weights=None if network.weights is None else str(network.weights),
            classes=self.classes,
            timeout_s=network.timeout_s,
        )


@dataclass(frozen=True, kw_only=True)
class PreparedStages(PreparedNetwork):
    """A network that is split, alone or as the last step of a pipeline, and the rows that it learns."""

    split: SplitPlan | None
    """As far as the number of features is known."""

    @contextmanager
    def _recipe(
        self, fitted: Any, lengths: Sequence[int], recorded: Recorded | None
    ) -> Iterator[tuple[Any, str]]:
        """Say what is to be done, and by which key it is recorded; without a workdir there is none."""
        staged = self.network.recipe(*self.data, transform=fitted)
        staged.loader.tell_lengths(lengths)
        splitter = splitter_of(self.network, staged.loader, self, staged.loader.width)
        _check(self.network, splitter, self.source.y, staged.classes)
        key = "" if recorded is None else self._key(recorded, staged)
        with self._folder(recorded, key) as folder:
            path = None if folder is None else f"{folder}-stages"
            staged = replace(staged, splitter=splitter, folder=path, identity=key or "this run")
            yield staged, with_epochs(key, self.network)

    def run(
        self, client: Client | None, recorded: Recorded | None, tell: Callable[[dict[str, Any]], None] | None
    ) -> tuple[Estimator, tuple[Tally, ...]]:
        """Fit the preprocessing, then train; say how it went."""
        fitted, tallies = super().run(client, recorded, tell)
        network = fitted if self.pipeline is None else fitted.steps[-1][1]
        if recorded is not None and network.measured_:
            recorded.say(compared(network.split_, network.measured_))
        return fitted, tallies

    def more(self, weights: dict[str, Any] | None, memory: bytes) -> tuple[Any, bytes]:
        """Go on from weights, and from what their optimizers remember, without a workdir.

        Returns
        -------
        estimator
            A clone with what was learned.
        bytes
            What the optimizers remember now.
        """
        import torch

        begun = {"epoch": 0, "step": 0, "losses": [], "scores": []}
        with self._recipe(None, (), None) as (recipe, _):
            files = StageFiles(recipe.folder, recipe.identity)
            if weights is not None:
                nothing: dict[str, Any] = {"optimizer": {}, "groups": None, "schedule": None}
                held = torch.load(io.BytesIO(memory), weights_only=True) if memory else nothing
                files.write({**held, "module": weights, "best": None}, begun, 0, 1, lambda: None)
            trained = self._trained(None, recipe)
            trained.weights = {name: value.clone() for name, value in trained.weights.items()}  # the files go
            written, kept = files.last(self.network.epochs), io.BytesIO()
            assert written is not None
            told = {"optimizer": written.tensors("optimizer")}
            torch.save(told | {name: written.first(name) for name in ("groups", "schedule")}, kept)
            return self._learned(trained, recipe), kept.getvalue()

    def _fingerprint(self) -> str:
        """Give the fingerprint of a network and of how it learns, but for the number of epochs and the cut."""
        network, taker = self.network, Fingerprinter()
        parts = network.module if isinstance(network.module, list | tuple) else [network.module]
        layers = [module_fingerprint(each, taker) if is_module(each) else taker.of(each) for each in parts]
        names = [
            "loss",
            "optimizer",
            "schedule",
            "classes",
            "patience",
            "tol",
            "random_state",
            "micro_batches",
            "workers",
            "tensor",
        ]
        told = {name: getattr(network, name) for name in names}
        beside = str(network.weights), str(network.validation is None)
        return joined("stages", *layers, taker.of(told), taker.of(beside))

    def _trained(self, client: Client | None, recipe: Any) -> Trained:
        """Train; the weights are mapped from the files of the stages, where there are any."""
        network, n = self.network, recipe.splitter.grid.n_processes
        check_given(recipe.loader)
        if client is not None and is_far(client):
            found = run_on(client, recipe, n, network.timeout_s, network.device, least=n)
        else:
            found = run_here(recipe, n, network.timeout_s, network.device)
        stages = [Trained.unpacked(each) for each in found]
        held = gathered_parts(each.weights for each in stages)
        weights = {name: put_together(parts) for name, parts in held.items()}
        peak = max(each.peak_nbytes for each in stages)
        figures = {name: [each.figures[name] for each in stages] for name in stages[0].figures}
        figures["peak_nbytes"] = [each.peak_nbytes for each in stages]
        trained = replace(stages[0], weights=weights, peak_nbytes=peak, figures=figures)
        return trained if recipe.folder is None else self._mapped(trained, recipe) or trained

    def _mapped(self, trained: Trained, recipe: Any) -> Trained | None:
        """Take the weights out of the files of the stages; None if they are of another training."""
        written = StageFiles(recipe.folder, recipe.identity).last(self.network.epochs)
        if written is None or len(written.told["losses"]) != len(trained.losses):
            return None
        return replace(trained, weights=written.tensors("best") or written.tensors("module"))

    def _record(self, trained: Trained) -> bytes:
        return replace(trained, weights={}).packed()  # they stand in the files of the stages

    def _recalled(self, recorded: Recorded | None, key: str, recipe: Any) -> Trained | None:
        found = super()._recalled(recorded, key, recipe)
        return None if found is None else self._mapped(replace(found, figures={}), recipe)

    def _learned(self, trained: Trained, recipe: Any) -> Any:
        splitter, figures = recipe.splitter, trained.figures
        learned = clone(self.network)
        learned.module_ = whole(self.network.module, splitter.chain, trained.weights)
        learned.validation = None  # the rows are not part of what was learned
        learned.losses_, learned.validation_losses_ = trained.losses, trained.scores
        grid = splitter.grid
        learned.split_ = splitter.split(grid.of(len(figures["busy_s"])) if figures else grid)
        learned.measured_ = _measured(learned.split_, figures) if figures and trained.rows else {}
        return learned


def _measured(plan: SplitPlan, figures: dict[str, Any]) -> dict[str, Any]:
    """Put what was measured beside what was planned."""
    planned = [stage.peak_nbytes for stage in plan.stages for _ in range(plan.n_shards)] * plan.n_copies
    n = len(planned) // plan.n_copies
    # of each batch, and each process
    busy_s, span_s = np.array(figures["busy_s"]).T, np.array(figures["span_s"]).T
    waited = 1 - busy_s.sum(axis=1) / span_s[:, ::n].repeat(n, axis=1).sum(axis=1)
    # with the first batch begins what all others find ready
    later = waited[1:] if len(waited) > 1 else waited
    return {
        "bubble": float(np.median(later)),
        "planned_bubble": plan.bubble,
        "busy_s": busy_s.sum(axis=0).tolist(),
        "span_s": float(span_s[:, 0].sum()),
        "peak_nbytes": figures["peak_nbytes"],
        "planned_nbytes": planned,
    }


def compared(plan: SplitPlan, measured: dict[str, Any]) -> str:
    """Say how a training went beside what was expected of it."""
    pairs = zip(measured["peak_nbytes"], measured["planned_nbytes"], strict=True)
    copies = "" if plan.n_copies == 1 else f"{plan.n_copies} copies of "
    shared = "" if plan.n_shards == 1 else f" of {plan.n_shards} processes each"
    peaks = ", ".join(f"{format_bytes(own)} ({format_bytes(planned)} planned)" for own, planned in pairs)
    return (
        f"the network in {copies}{counted(plan.n_stages, 'stage')}{shared}: waited {measured['bubble']:.0%} of the "
        f"time ({plan.bubble:.0%} planned); peak memory {peaks}"
    )


def splitter_of(network: Any, loader: Loader, before: Prepared, width: int) -> Splitter:
    """Give what cuts a network whose input has so many columns."""

    def reading(n_copies: int) -> int:
        return reading_nbytes(before.source, loader.n_buffers_of(n_copies))

    return Splitter(network, width, before.place, reading)


def _check(network: Any, splitter: Splitter, y: Any, classes: tuple[int, ...] | None) -> SplitPlan:
    """Cut a network, and try its loss on what its last layer gives.

    Raises
    ------
    InputError, MemoryLimitError
        If it cannot be cut, or the loss does not do.
    """
    plan = splitter.split()
    shape, dtype = y_kind(y)
    if dtype is not None and dtype.kind in "iufb":
        output = splitter.output.empty(2, "cpu").detach().zero_().requires_grad_()
        check_loss(network.loss, output, shape, dtype, classes)
    return plan


def prepare_stages(
    pipeline: Pipeline | None, network: Any, X: Any, y: Any, sample_weight: Any, **place: Any
) -> PreparedStages:
    """Plan the fit of a network that is split; each of its layers is tried on some made-up rows, and no data is read.

    Raises
    ------
    DpipeError
        If data, parameters or budget do not do, or the network cannot be split.
    """
    before = prepare_before(pipeline, network, X, y, sample_weight, **place)
    source, staged = before.source, network.recipe(X, y)
    width = source.n_columns if pipeline is None else _likely_width(chain_of(network.module))
    split, lines, rules = None, ["stages: cut when the number of features is known"], []
    if width is not None:
        splitter = splitter_of(network, staged.loader, before, width)
        split = _check(network, splitter, source.y, staged.classes)
        lines = str(split).splitlines()
        rules = ["no process has all layers"] if split.n_stages > 1 else []
        rules += ["no process has a whole layer of those that are shared"] if split.n_shards > 1 else []
    step = network_pass(network, before, lines, rules)
    if split is not None and largest_block(source) is not None:
        far = is_far(before.place.client)
        peaks = [stage.peak_nbytes for stage in split.stages]
        taken = (
            WORKER_RESERVED_NBYTES + max(peaks)
            if far
            else before.place.reserved + split.n_copies * split.n_shards * sum(peaks)
        )
        step = replace(step, projected_nbytes=taken)
    name = type(network if pipeline is None else pipeline).__name__
    plan = with_network(name, before, step)
    return PreparedStages(
        source,
        replace(before.program, plan=plan),
        before.place,
        before.epochs,
        pipeline=pipeline,
        network=network,
        before=before,
        data=(X, y),
        split=split,
    )


def _likely_width(chain: Chain) -> int | None:
    """Guess how many features a chain takes: what its first layer does."""
    parts = chain.layers[0].skeleton.modules()
    widths = (getattr(part, "in_features", None) for part in parts)
    return next((width for width in widths if isinstance(width, int)), None)
