"""Check the input of a fit, and plan it: from an estimator and lazy data to a program of passes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dask
import pandas as pd
import psutil
from distributed import Client
from sklearn.base import is_regressor
from sklearn.pipeline import Pipeline

from dpipe.blocks.rows import Tally
from dpipe.blocks.scratch import free_nbytes
from dpipe.cluster.local import Place, find_place, scratch_folder
from dpipe.cluster.specification import Specification
from dpipe.collect.labelled import as_samples
from dpipe.collect.source import Source, open_source, source_name
from dpipe.composites import catalog as composites
from dpipe.errors import InputError, MemoryLimitError
from dpipe.families import catalog
from dpipe.families.compose import Walk, walk
from dpipe.families.epochs import Epochs
from dpipe.families.expression import RAW
from dpipe.families.registry import Estimator, Meta
from dpipe.fields.plans import made_by
from dpipe.ledger.book import Ledger, Reading
from dpipe.plan_record import Plan
from dpipe.planner import DataShape, Program, Resources, make_program
from dpipe.run.recorded import Recorded
from dpipe.sizes import parse_bytes
from dpipe.train.average import check_average
from dpipe.train.boosting.inputs import check_given, check_shares, take_apart
from dpipe.train.early_stop import Validation, open_validation, with_scoring
from dpipe.train.resume import recorded_fit
from dpipe.train.stream import told_classes

assert catalog.FAMILIES, "the families register themselves when they are imported"
assert composites.COMPOSITES, "and so do the composites"


@dataclass(frozen=True)
class Prepared:
    """A fit that is planned and can be run."""

    source: Source
    program: Program
    place: Place
    epochs: Epochs
    validation: Validation | None = None
    held_out: Source | None = None
    """The rows that a boosted model is watched on."""
    shares: int = 1
    """Into how many shares the rows are dealt that a boosted model learns."""

    @property
    def plan(self) -> Plan:
        """The record of what it will do."""
        return self.program.plan

    @property
    def room(self) -> int | None:
        """Bytes that a worker may take beside what its process does; None if no budget is given."""
        return None if self.place.memory is None else self.place.memory - self.place.reserved

    def recorded(self, ledger: Ledger | Reading, name: str, note: Callable[[str], None]) -> Recorded:
        """Look up in a ledger what is done already."""
        return recorded_fit(ledger, name, self.source, self.program.walk, self.epochs, note)


class OwnFit(Prepared):
    """A fit that its estimator carries out by itself, such as a search: planned like others, and run otherwise.

    An estimator that has a method `plan_own_fit`, with the arguments of `prepare`, gives one; the last step of a
    pipeline by `plan_own_fit_of`, with the pipeline before them.
    """

    def run(
        self, client: Client | None, recorded: Recorded | None, tell: Callable[[dict[str, Any]], None] | None
    ) -> tuple[Estimator, tuple[Tally, ...]]:
        """Carry it out; give the fitted estimator, and what each pass of the plan has read."""
        raise NotImplementedError

    def tell(self, recorded: Recorded) -> None:
        """Say what is on record of it; computes nothing."""

    def n_rows_of(self, tallies: Sequence[Tally]) -> int | None:
        """Count the rows of its data, from what its passes have read; None if they do not tell."""
        return tallies[0].rows if tallies else None


def prepare(
    estimator: Estimator,
    X: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    epochs: int | Epochs = 1,
    memory: int | str | None = None,
    client: Client | Specification | None = None,
    workers: int | None = None,
    validation: Any = None,
    qid: Any = None,
    shares: int | None = None,
    sample_dims: Any = None,
    missing: Any = "all",
) -> Prepared:
    """Check the input of a fit and plan it; nothing is computed."""
    if isinstance(estimator, type):
        raise InputError(
            f"estimator is the class {estimator.__name__}; pass an instance: {estimator.__name__}()."
        )
    X, y, sample_weight = as_samples(X, y, sample_weight, sample_dims, missing)
    if sample_dims is not None and isinstance(validation, tuple):
        validation = held_out_samples(validation, sample_dims, missing)
    seen = Epochs.of(epochs)
    if sample_dims is not None and isinstance(seen.validation, tuple):
        seen = replace(seen, validation=held_out_samples(seen.validation, sample_dims, missing))
    budget = None if memory is None else parse_bytes(memory)
    own = _own_plan(estimator)
    if own is not None:
        if epochs != 1 or any(each is not None for each in (validation, qid, shares)):
            raise InputError(
                f"epochs, validation, qid and shares are not for a {type(estimator).__name__}, whose own parameters "
                "say how long it learns, and what it is scored on. Leave them out."
            )
        planned: Prepared = own(X, y, sample_weight, memory=budget, client=client, workers=workers)
        return planned
    given = take_apart(X, y, sample_weight, validation, qid)
    source = open_source(given.X, given.y, given.w)
    prepared = prepare_source(
        estimator,
        source,
        epochs=seen,
        memory=budget,
        client=client,
        workers=workers,
        held_out=given.held_out,
        grouped=qid is not None,
        shares=shares,
    )
    _check_list(prepared.program.walk, X)
    return prepared


def _own_plan(estimator: Estimator) -> Callable[..., Prepared] | None:
    """Give what plans an estimator that carries its fit out by itself, or a pipeline that ends in one."""
    if type(estimator) is Pipeline and hasattr(estimator.steps[-1][1], "plan_own_fit_of"):
        own: Callable[..., Prepared] = estimator.steps[-1][1].plan_own_fit_of
        return partial(own, estimator)
    return getattr(estimator, "plan_own_fit", None)


def held_out_samples(given: tuple[Any, ...], sample_dims: Any, missing: Any) -> tuple[Any, ...]:
    """Take rows to watch a learner on, `(X, y)` or `(X, y, sample_weight)`, as those to learn from are taken."""
    X, y, w = (*given, None, None)[:3]
    held, y, w = as_samples(X, y, w, sample_dims, missing)
    return (held, y) if w is None else (held, y, w)


def prepare_source(
    estimator: Estimator,
    source: Source,
    *,
    epochs: int | Epochs = 1,
    memory: int | None = None,
    client: Client | Specification | None = None,
    workers: int | None = None,
    weighted: bool | None = None,
    held_out: Source | None = None,
    grouped: bool = False,
    shares: int | None = None,
) -> Prepared:
    """Plan a fit on a source that is open; `weighted` tells whether it is given the weights, if there are any."""
    seen = Epochs.of(epochs)
    meta = Meta(
        source.frame,
        source.n_columns,
        source.dtype,
        source.sparse,
        one_dimensional=source.one_dimensional,
    )
    tree = walk(estimator, meta, weighted=source.w is not None if weighted is None else weighted)
    tree = told_classes(tree, seen)
    check_average(tree, seen)
    watched = open_validation(tree, seen, source)
    _check_target(tree, source)
    check_given(tree, source, held_out, grouped=grouped)
    place = find_place(client, memory, source.n_blocks, workers)
    n_shares = check_shares(tree, shares, source.n_blocks)
    shape = _shape(source)
    if held_out is not None:
        shape = replace(shape, held_out=held_out.rows)
    program, place = _fitting_program(tree, shape, place, seen, n_shares)
    watched_program = with_scoring(program, watched, source, seen)
    return Prepared(source, watched_program, place, seen, watched, held_out, n_shares)


def _check_list(tree: Walk, X: Any) -> None:
    """Take a list for documents, records or labels only."""
    for fit in tree.fits:
        if isinstance(X, list) and fit.is_leaf and fit.source == RAW and not fit.way.one_dimensional:
            raise InputError(
                f"X is a list; for {type(fit.estimator).__name__} it must be a Dask DataFrame or Array, a pandas "
                "DataFrame or a NumPy array. Read files with dpipe.read_parquet or dpipe.read_csv."
            )


def _check_target(tree: Walk, source: Source) -> None:
    for fit in tree.fits:
        if fit.way.needs_y and source.y is None:
            raise InputError(
                f"{type(fit.estimator).__name__} learns from targets, but y is None. Pass y as a series, an "
                "array, or the name of a column of X."
            )
        if fit.way.needs_y and hasattr(fit.estimator, "__sklearn_tags__") and is_regressor(fit.estimator):
            _check_numbers(type(fit.estimator).__name__, source.y)


def _check_numbers(name: str, y: Any) -> None:
    """Refuse texts as the target of a regression, if metadata can tell."""
    dtypes = getattr(y, "dtypes", None) if getattr(y, "ndim", 1) == 2 else [getattr(y, "dtype", None)]
    for dtype in [] if dtypes is None else dtypes:
        if dtype is not None and not pd.api.types.is_numeric_dtype(dtype):
            raise InputError(
                f"{name} predicts numbers, but y is of type {dtype}. Give a numeric column, or use a classifier."
            )


def _shape(source: Source) -> DataShape:
    targets = 8 * ((source.y is not None) + (source.w is not None))
    return DataShape(
        source_name(source) + made_by(v.data for v in getattr(source.X, "parts", ())),
        tuple(map(str, source.names)),
        source.rows,
        tuple(source.row_nbytes.values()),
        targets,
        source.overhead,
        source.likely_block_rows,
        source.hidden_row_nbytes,
        in_memory=source.decoded == "memory",
        whole=source.whole,
    )


def _fitting_program(
    tree: Walk, shape: DataShape, place: Place, epochs: Epochs, shares: int
) -> tuple[Program, Place]:
    """Plan with as many threads as the budget allows, where it is ours to choose them."""
    while True:
        folder = scratch_folder()
        resources = Resources(
            place.threads,
            place.workers,
            place.memory,
            place.reserved,
            window=window_of(place),
            scratch=folder,
            scratch_free=free_nbytes(folder) if place.near else None,
            available=psutil.virtual_memory().available if place.near else None,
            shares=shares,
            may_hold=place.inside and dask.config.get("scheduler", None) != "processes",
        )
        try:
            return make_program(tree, shape, resources, epochs=epochs), place
        except MemoryLimitError:
            if not place.embedded or place.threads == 1:
                raise
            place = replace(place, threads=place.threads - 1)


def window_of(place: Place) -> int:
    """Give the blocks that are in flight ahead of a learner."""
    return 2 * place.threads * place.workers
