"""The fit of a network that is planned and can be run: its preprocessing in shared passes, then the network itself."""

import copy
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from dpipe.blocks.rows import Tally
from dpipe.cluster.local import WORKER_RESERVED_NBYTES, scratch_folder
from dpipe.cluster.workers import addresses
from dpipe.collect.source import open_source
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families.registry import Estimator
from dpipe.ledger.fingerprint import Fingerprinter, Unknowable, joined
from dpipe.run.graph import GraphBuilder, add_inputs
from dpipe.run.recorded import Recorded
from dpipe.train.fit import check_rows, run_passes
from dpipe.train.loading.loader import Loader
from dpipe.train.networks.costs import check_network, cost_of
from dpipe.train.networks.planned import network_plan
from dpipe.train.networks.ranks import Ranks
from dpipe.train.networks.team import run_here, run_on
from dpipe.train.networks.training import Recipe, Trained, train
from dpipe.train.prepare import OwnFit, Prepared, prepare_source


@dataclass(frozen=True, kw_only=True)
class PreparedNetwork(OwnFit):
    """A network, alone or as the last step of a pipeline, and the rows that it learns."""

    pipeline: Pipeline | None
    network: Any
    before: Prepared
    data: tuple[Any, Any]
    """X and y, as they were given."""

    def run(
        self, client: Client | None, recorded: Recorded | None, tell: Callable[[dict[str, Any]], None] | None
    ) -> tuple[Estimator, tuple[Tally, ...]]:
        """Fit the preprocessing, then train."""
        known = run_passes(self.before, client, recorded)
        check_rows(self.before, known.tallies)
        walk = self.before.program.walk
        fitted: Any = None if self.pipeline is None else known.fitted[walk.root].estimator
        began = time.time()
        lengths = known.tallies[0].lengths if known.tallies else ()
        with self._recipe(fitted, lengths, recorded) as (recipe, key):
            trained = self._recalled(recorded, key, recipe)
            if trained is None:
                trained = self._trained(client, recipe)
                if recorded is not None and key and recorded.ledger.pen is not None:
                    recorded.ledger.pen.write(end_of(key), self._record(trained), what=recorded.name)
        learned = self._learned(trained, recipe)
        learned.n_features_in_, names = recipe.loader.width, self._names(fitted)
        if names is not None:
            learned.feature_names_in_ = names
        if tell is not None:
            for epoch, score in enumerate(trained.scores, start=1):
                tell({"curve": "loss of the network", "epoch": epoch, "score": score})
        tallies = (*known.tallies, self._tally(recipe.loader, trained, began))
        if self.pipeline is None:
            return learned, tallies
        whole = copy.copy(self.pipeline)
        whole.steps = [*fitted.steps, (self.pipeline.steps[-1][0], learned)]
        return whole, tallies

    def n_rows_of(self, tallies: Sequence[Tally]) -> int | None:
        """Count the rows of its data."""
        return sum(tallies[-1].lengths) or None

    def _record(self, trained: Trained) -> bytes:
        return trained.packed()

    def _learned(self, trained: Trained, recipe: Any) -> Any:
        return learned_network(self.network, trained)

    def _names(self, fitted: Any) -> np.ndarray | None:
        frame = self.source.frame
        if fitted is not None or frame is None or not all(isinstance(name, str) for name in frame.columns):
            return None
        return np.asarray(frame.columns, dtype=object)

    def _trained(self, client: Client | None, recipe: Recipe) -> Trained:
        network, timeout_s = self.network, self.network.timeout_s
        far, n_ranks = ranks_of(network, self.place.workers if client is not None else 1, client)
        if far or n_ranks > 1 or network.sharded:
            check_given(recipe.loader)
        if client is not None and far:
            found = Trained.unpacked(run_on(client, recipe, n_ranks, timeout_s, network.device)[0])
            # beside the process that trains there is the worker that watches it
            return replace(found, peak_nbytes=found.peak_nbytes + WORKER_RESERVED_NBYTES)
        if n_ranks > 1 or network.sharded:
            return Trained.unpacked(run_here(recipe, n_ranks, timeout_s, network.device)[0])
        return replace(train(recipe, Ranks(wanted=network.device)), optimizer=b"")

    @contextmanager
    def _recipe(
        self, fitted: Any, lengths: Sequence[int], recorded: Recorded | None
    ) -> Iterator[tuple[Recipe, str]]:
        """Say what is to be done, and by which key it is recorded; without a workdir there is none."""
        network = self.network
        recipe = network.recipe(*self.data, transform=fitted)
        recipe.loader.tell_lengths(lengths)
        check_network(
            network.module,
            network.loss,
            network.optimizer,
            recipe.loader.width,
            *y_kind(self.source.y),
            recipe.classes,
        )
        key = "" if recorded is None else self._key(recorded, recipe)
        with self._folder(recorded, key) as folder:
            path = None if folder is None else f"{folder}.pt"
            yield replace(recipe, path=path, identity=key or "this run"), with_epochs(key, network)

    @contextmanager
    def _folder(self, recorded: Recorded | None, key: str) -> Iterator[str | None]:
        """Name a place for checkpoints: in the workdir, else in scratch; None where the workers would not see it."""
        if key and recorded is not None and recorded.ledger.pen is not None:
            folder = Path(recorded.ledger.pen.folder).parent / "networks"
            folder.mkdir(exist_ok=True)
            yield str(folder / re.sub(r"[^a-z0-9]+", "-", recorded.name.lower()).strip("-"))
        elif self.place.near:
            # so that a process that dies costs no more than the batches since
            with tempfile.TemporaryDirectory(dir=scratch_folder(), prefix="dpipe-network-") as made:
                yield str(Path(made) / "network")
        else:
            yield None

    def _key(self, recorded: Recorded, recipe: Recipe) -> str:
        """Give the fingerprint of all that the weights follow from; empty if something cannot be looked into."""
        graph = GraphBuilder("network")
        inputs = add_inputs(graph, self.source)
        inputs = recorded.keyed(inputs, graph.tasks)
        try:
            beside = [self._fingerprint(), recipe.loader.state_dict()["order"]]
        except Unknowable as err:
            recorded.say(f"the network is not recorded, a stopped run trains it anew: {err}")
            return ""
        if self.network.validation is not None:
            held, graph = open_source(*self.network.validation), GraphBuilder("held-out")
            beside += recorded.keys_of(add_inputs(graph, held), graph.tasks) or ()
        if not recorded.works:
            return ""
        return joined("network", recorded.history, *beside, *(each.key for each in inputs))

    def _fingerprint(self) -> str:
        return network_fingerprint(self.network)

    def _recalled(self, recorded: Recorded | None, key: str, recipe: Any) -> Trained | None:
        """Give what was learned, if that is on record."""
        place = None if recorded is None or not key else recorded.ledger.find(end_of(key))
        if place is None or recorded is None:
            return None
        recorded.say("the network is on record")
        return replace(Trained.unpacked(place.read()), rows=0, peak_nbytes=0)

    def _tally(self, loader: Loader, trained: Trained, began: float) -> Tally:
        lengths, now = loader.order.lengths, time.time()
        width = sum(self.source.row_nbytes.values()) + 8
        times = -(-trained.rows // max(sum(lengths), 1))
        return Tally(
            len(lengths) * times,
            trained.rows,
            trained.rows * width,
            now - began if trained.rows else 0.0,
            began,
            now,
            trained.peak_nbytes,
            n_readings=times,
            lengths=lengths,
            n_recalled=0 if trained.rows else len(lengths),
        )


def end_of(key: str) -> str:
    """Name the record of a training that has come to its end."""
    return joined("network end", key)


def with_epochs(key: str, network: Any) -> str:
    """Name the training of so many epochs; empty if it has no name."""
    return joined(key, str(network.epochs)) if key else ""


def network_fingerprint(network: Any) -> str:
    """Give the fingerprint of a network and of how it learns, but for the number of epochs.

    Raises
    ------
    Unknowable
        If a part of it cannot be looked into.
    """
    taker = Fingerprinter()
    names = "loss optimizer schedule accumulate patience tol classes precision sharded random_state checkpoint_every"
    told = {name: getattr(network, name) for name in names.split()[:-1]}
    return joined(module_fingerprint(network.module, taker), taker.of(told), str(network.validation is None))


def module_fingerprint(module: Any, taker: Fingerprinter) -> str:
    """Give the fingerprint of a module and its weights; those on the meta device have a shape only.

    Raises
    ------
    Unknowable
        If a part of it cannot be looked into.
    """
    weights = {
        name: (
            str(value.dtype),
            tuple(value.shape),
            b"" if value.is_meta else value.detach().cpu().reshape(-1).numpy().tobytes(),
        )
        for name, value in module.state_dict().items()
    }
    kinds = [taker.of(type(each)) for each in module.modules()]
    return joined(repr(module), *kinds, taker.of(weights))


def learned_network(network: Any, trained: Trained) -> Any:
    """Give a clone of a network's estimator with what was learned."""
    learned = clone(network)
    learned.module_ = copy.deepcopy(network.module).cpu()
    learned.module_.load_state_dict(trained.weights)
    learned.module_.eval()
    learned.validation = None  # the rows are not part of what was learned
    learned.losses_, learned.validation_losses_ = trained.losses, trained.scores
    return learned


def ranks_of(network: Any, workers: int, client: Client | None) -> tuple[bool, int]:
    """Tell whether the ranks are on the workers of a cluster, and how many there are."""
    far = is_far(client)
    return far, network.ranks or (min(workers, network.shares) if far else 1)


def check_given(loader: Loader) -> None:
    """Refuse to send other processes what only a cluster has.

    Raises
    ------
    InputError
        If the loader reads what is persisted.
    """
    if loader.of_cluster:
        raise InputError(
            "X or y is held by the cluster (persisted), where processes that train cannot have it. Write it with "
            "dpipe.write_parquet, and read it from there; or do not persist it."
        )


def is_far(client: Client | None) -> bool:
    """Tell whether a client's workers are processes of their own."""
    return client is not None and any(not address.startswith("inproc://") for address in addresses(client))


def y_kind(y: Any) -> tuple[tuple[int, ...], np.dtype[Any] | None]:
    """Tell the shape of one target, and its type, as far as metadata does."""
    shape = getattr(y, "shape", (0,))[1:]
    dtypes = (
        [getattr(y, "dtype", None)] if getattr(y, "ndim", 1) == 1 or hasattr(y, "dtype") else list(y.dtypes)
    )
    known = all(isinstance(dtype, np.dtype) for dtype in dtypes) and all(isinstance(n, int) for n in shape)
    if not known or len(shape) != getattr(y, "ndim", 1) - 1:
        return (), None
    return tuple(shape), np.result_type(*dtypes)


def prepare_before(
    pipeline: Pipeline | None, network: Any, X: Any, y: Any, sample_weight: Any, **place: Any
) -> Prepared:
    """Plan what comes before a network: the steps of its pipeline, and nothing without one.

    Raises
    ------
    DpipeError
        If data or steps do not do.
    """
    source = open_source(X, y)
    if sample_weight is not None or source.w is not None:
        raise InputError(f"{type(network).__name__} takes no sample_weight. Leave the weights out.")
    if source.y is None:
        raise InputError(
            f"{type(network).__name__} learns from targets, but y is None. Pass y as a series, an array, or the "
            "name of a column of X."
        )
    steps = FunctionTransformer() if pipeline is None else Pipeline(pipeline.steps[:-1])
    before = prepare_source(steps, source, **place)
    for fit in before.program.walk.fits:
        if fit.way.cross_fit is not None:
            raise UnsupportedEstimatorError(
                f"{fit.name} gives the rows that it was fitted on by folds, and a network sees rows as new ones are "
                "seen. Use an OrdinalEncoder or a OneHotEncoder before a network."
            )
    return before


def prepare_network(
    pipeline: Pipeline | None,
    network: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    memory: int | None,
    client: Client | None,
    workers: int | None,
) -> PreparedNetwork:
    """Plan the fit of a network, alone or as the last step of a pipeline; nothing is computed.

    Raises
    ------
    DpipeError
        If data, parameters or budget do not do.
    """
    before = prepare_before(
        pipeline, network, X, y, sample_weight, memory=memory, client=client, workers=workers
    )
    source = before.source
    recipe = network.recipe(X, y)
    width = source.n_columns if pipeline is None else None
    check_network(network.module, network.loss, network.optimizer, width, *y_kind(source.y), recipe.classes)
    far, n_ranks = ranks_of(network, before.place.workers, before.place.client)
    if n_ranks > network.shares:
        raise InputError(
            f"{n_ranks} processes cannot read shares={network.shares}: each needs one. Give shares={n_ranks} or more, "
            "or fewer ranks."
        )
    name = type(network if pipeline is None else pipeline).__name__
    apart = far or n_ranks > 1 or network.sharded
    n_buffers = recipe.loader.n_buffers_of(n_ranks)
    cost = cost_of(network.module, network.optimizer, width)
    plan = network_plan(name, network, before, cost, n_ranks, apart, n_buffers)
    program = replace(before.program, plan=plan)
    return PreparedNetwork(
        before.source,
        program,
        before.place,
        before.epochs,
        pipeline=pipeline,
        network=network,
        before=before,
        data=(X, y),
    )
