"""`fit` and `plan`: an unfitted scikit-learn estimator and lazy data, in the fewest passes."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from dask.delayed import Delayed
from dask.task_spec import TaskRef
from distributed import Client

from dpipe.blocks.heap import give_back
from dpipe.blocks.rows import RowsAt, Tally
from dpipe.cluster.cluster import Cluster, takes_cluster
from dpipe.cluster.local import compute, compute_keys, running, short_collections
from dpipe.collect.grids import Grid
from dpipe.errors import DpipeError, InputError
from dpipe.families.epochs import Epochs
from dpipe.families.program import (
    Collector,
    Keeper,
    Known,
    ProgramPass,
    finish_pass,
    finish_stream,
)
from dpipe.families.refinement import Refinements
from dpipe.families.registry import Estimator
from dpipe.ledger.book import Ledger, Reading
from dpipe.monitor.events import listening
from dpipe.monitor.session import Session, make_workdir
from dpipe.plan_record import Plan
from dpipe.planner import needs_places
from dpipe.run.graph import GraphBuilder, Input, add_inputs, graph_token
from dpipe.run.keep import add_keep, kept_inputs
from dpipe.run.recorded import Recorded, recalled_root
from dpipe.run.scan import add_scan
from dpipe.run.state import states_of
from dpipe.train.boosting.job import add_boosted
from dpipe.train.boosting.team import train_together
from dpipe.train.early_stop import Stopping
from dpipe.train.prepare import OwnFit, Prepared, prepare, window_of
from dpipe.train.stream import Learning


def _token(prepared: Prepared) -> str:
    source, program = prepared.source, prepared.program
    estimator = program.walk.fits[program.walk.root].estimator
    held = prepared.held_out
    beside = (*source.parts, *(() if held is None else (held.X, held.y, held.w)))
    return graph_token(estimator, source.X, source.y, source.w, prepared.epochs, *beside)


@short_collections()  # of a graph nothing is garbage yet
def _build(
    prepared: Prepared, passes: range, known: Known | None = None, recorded: Recorded | None = None
) -> tuple[GraphBuilder, Any]:
    """Build the graph of some passes, counted from 0, and the key of the last `Known`."""
    program = prepared.program
    graph = GraphBuilder(graph_token(_token(prepared), passes.start) if passes.start else _token(prepared))
    if known is None:
        last = graph.add("start", finish_pass, program.at_once, Known(), None)
    else:
        last = graph.hold("known", known).key
    for number in passes:
        last = _add_pass(graph, prepared, program.passes[number], number + 1, last, known, recorded)
    return graph, last


def _add_pass(
    graph: GraphBuilder,
    prepared: Prepared,
    step: ProgramPass,
    number: int,
    known: Any,
    before: Known | None,
    recorded: Recorded | None,
) -> Any:
    # no dash before the number: Dask would take all that follows for a hash, and all tasks for alike
    if step.learner is None:
        held = graph.hold(f"pass{number}", step)
        finish = f"pass{number}-finish"
        with_X = any(not getattr(want, "of_y", False) for want, _ in step.collects)
        name = f"pass{number}-merge"
        inputs = _inputs(graph, prepared, step, before, recorded, with_X=with_X)[step.sampled]
        slots = prepared.place.threads * prepared.place.workers
        pages = None if recorded is None else recorded.pages(inputs, step.collects, f"pass {number}")
        how: dict[str, Any] = {"slots": slots, "pages": pages, "chained": step.chained}
        merged = add_scan(graph, inputs, Collector(step), known, name=name, **how)
        return graph.add(finish, finish_pass, held, TaskRef(known), TaskRef(merged))
    inputs = _inputs(graph, prepared, step, before, recorded)
    if step.learner.way.kind == "boost":
        held, finish = graph.hold(f"pass{number}", step), f"pass{number}-finish"
        options = prepared.held_out, known, step, number, prepared.room, recorded, prepared.shares
        learned = add_boosted(graph, inputs, *options)
        return graph.add(finish, finish_stream, held, TaskRef(known), TaskRef(learned))
    return _learning(prepared, step, number).add(graph, inputs, known, recorded)


def _learning(prepared: Prepared, step: ProgramPass, number: int) -> Learning:
    return Learning(step, number, prepared.epochs, prepared.source.rows, window_of(prepared.place))


def _inputs(
    graph: GraphBuilder,
    prepared: Prepared,
    step: ProgramPass,
    before: Known | None,
    recorded: Recorded | None,
    *,
    with_X: bool = True,
) -> list[Input]:
    """Give what loads the blocks of a pass, where they stand, and what they are for the ledger."""
    shared = set(graph.tasks)
    inputs = _placed(add_inputs(graph, prepared.source, step.columns, with_X=with_X), before or Known())
    if recorded is None:
        return inputs
    return recorded.keyed(inputs, {key: task for key, task in graph.tasks.items() if key not in shared})


def _estimator_of(known: Known, root: int) -> Estimator:
    return known.fitted[root].estimator


def delayed_fit(prepared: Prepared) -> Delayed:
    """Give the fitted estimator as a Delayed."""
    if (
        isinstance(prepared, OwnFit)
        or _counts_first(prepared)
        or any(_is_led(prepared, step) for step in prepared.program.passes)
    ):
        # how many readings there will be is not known beforehand, so that all of it is one task
        graph = GraphBuilder(_token(prepared))
        key = graph.add("fitted", _fit_in_task, graph.hold("fit", prepared))
        return Delayed(key, graph.tasks)
    graph, known = _build(prepared, range(len(prepared.program.passes)))
    key = graph.add("fitted", _estimator_of, TaskRef(known), prepared.program.walk.root)
    return Delayed(key, graph.tasks)


def _counts_first(prepared: Prepared) -> bool:
    return prepared.source.n_rows is None and needs_places(prepared.program.walk)


def _is_led(prepared: Prepared, step: ProgramPass) -> bool:
    """Tell whether a pass reads the blocks as often as what it has found asks for."""
    return _leader(prepared, step, None) is not None


def _leader(prepared: Prepared, step: ProgramPass, client: Client | None) -> Callable[..., Known] | None:
    """Give what carries out a pass that is more than one graph; None if it is one."""
    if step.refines:
        return _run_refinements
    if _stops_early(prepared, step):
        return _run_epochs
    boosts = step.learner is not None and step.learner.way.kind == "boost"
    if boosts and client is not None and prepared.shares > 1 and prepared.place.workers > 1:
        return _run_together
    return None


def _stops_early(prepared: Prepared, step: ProgramPass) -> bool:
    found = prepared.validation
    return found is not None and step.learner is not None and step.learner.index == found.fit.index


def _fit_in_task(prepared: Prepared) -> Estimator:
    if isinstance(prepared, OwnFit):
        return prepared.run(None, None, None)[0]
    return _estimator_of(run_passes(prepared, None), prepared.program.walk.root)


def run_passes(prepared: Prepared, client: Client | None, recorded: Recorded | None = None) -> Known:
    """Run all passes: those whose number is known as one graph, the others reading after reading."""
    passes = prepared.program.passes
    known: Known | None = None
    start = 0
    # places of rows are told when a graph is built, so that a first pass which counts them has one of its own
    counts_first = _counts_first(prepared)
    while start < len(passes) or known is None:
        lead = _leader(prepared, passes[start], client) if start < len(passes) else None
        if lead is not None:
            known = known or finish_pass(prepared.program.at_once, Known(), None)
            known = lead(prepared, start, known, client, recorded)
            start += 1
            continue
        led = (i for i in range(start, len(passes)) if _leader(prepared, passes[i], client) is not None)
        end = next(led, len(passes))
        end = min(end, 1) if counts_first and start == 0 else end
        graph, key = _build(prepared, range(start, end), known, recorded)
        known = compute(Delayed(key, graph.tasks), client, prepared.place.threads)
        start = end
    if recorded is not None:
        recorded.told()
    return known


def _placed(inputs: list[Input], known: Known) -> list[Input]:
    """Say where blocks of unknown length stand, once a pass has counted their rows."""
    lengths = known.tallies[0].lengths if known.tallies else ()
    if len(lengths) != len(inputs) or all(each.at is not None for each in inputs):
        return inputs
    firsts = accumulate(lengths, initial=0)
    return [
        replace(each, at=RowsAt(first, sum(lengths))) for each, first in zip(inputs, firsts, strict=False)
    ]


def _run_epochs(
    prepared: Prepared, i: int, known: Known, client: Client | None, recorded: Recorded | None
) -> Known:
    """Learn epoch after epoch, until scores get no better."""
    step, validation = prepared.program.passes[i], prepared.validation
    assert validation is not None

    def inputs(graph: GraphBuilder) -> list[Input]:
        return _inputs(graph, prepared, step, known, recorded)

    learning, token = _learning(prepared, step, i + 1), graph_token(_token(prepared), i)
    stopping = Stopping(learning, validation, known, inputs, recorded, token)
    return stopping.run(client, prepared.place.threads)


def _run_together(
    prepared: Prepared, i: int, known: Known, client: Client | None, recorded: Recorded | None
) -> Known:
    """Train a boosted model on several workers."""
    step = prepared.program.passes[i]
    assert client is not None
    graph = GraphBuilder(graph_token(_token(prepared), i))
    held = graph.hold("known", known).key
    inputs = _inputs(graph, prepared, step, known, recorded)
    options = (held, known), step, i + 1, prepared.room, recorded, prepared.shares, client
    return finish_stream(step, known, train_together(graph, inputs, prepared.held_out, *options))


def _run_refinements(
    prepared: Prepared, i: int, known: Known, client: Client | None, recorded: Recorded | None
) -> Known:
    """Read the blocks for the refining fits of a pass, as often as they ask."""
    step = prepared.program.passes[i]
    running = Refinements(step, known)
    token = graph_token(_token(prepared), i)
    name = f"pass{i + 1}-refine"
    inputs: list[Input] = []
    while asked := running.asked:
        graph = GraphBuilder(graph_token(token, running.n_rounds))
        # what the fits started from stays here: blocks need what is fitted, and not even that once they are kept
        held = graph.hold("known", Known() if inputs else replace(known, starts={})).key
        reading = inputs or _inputs(graph, prepared, step, known, recorded)
        keys: list[Any] = []
        collect = Collector(replace(step, collects=asked))
        title = f"pass {i + 1}, reading {running.n_rounds + 1}"
        pages = None if recorded is None else recorded.pages(reading, asked, title, step.run)
        state = recalled_root(pages, collect)
        if state is not None:
            running.answer(states_of(state, "fit"), state.tally)
            continue
        # other statistics of the first round are not of what is kept
        if (step.scratch or step.held) and not inputs and (running.n_rounds or not step.collects):
            keys = add_keep(
                graph, reading, Keeper(step), held, name=name, folder=None if step.held else step.scratch
            )
            reading = kept_inputs(reading, list(map(TaskRef, keys)))
        how: dict[str, Any] = {"pages": pages, "run": step.run, "chained": step.chained}
        merged = add_scan(graph, reading, collect, held, name=name, counted=False, **how)
        found, kept = compute_keys(graph.tasks, merged, keys, client, prepared.place.threads)
        inputs = inputs or (kept_inputs(reading, kept) if kept else [])
        running.answer(states_of(found, "fit"), found.tally)
    return running.finished()


def on_record(prepared: Prepared, workdir: Path, name: str) -> tuple[str, ...]:
    """Tell what a run of a stage in a workdir would not have to read, and why other things; computes nothing.

    What a refining fit will ask in its later readings is known only once it has its first answers.
    """
    notes: list[str] = []
    recorded = prepared.recorded(Reading(workdir), name, notes.append)
    if isinstance(prepared, OwnFit):
        prepared.tell(recorded)
    else:
        tell_passes(prepared, recorded)
    return tuple(notes)


def tell_passes(prepared: Prepared, recorded: Recorded) -> bool:
    """Say what is on record of the passes of which that is known beforehand; tell whether these are all."""
    if _counts_first(prepared):
        return False
    passes = prepared.program.passes
    static = next((i for i, step in enumerate(passes) if _is_led(prepared, step)), len(passes))
    _build(prepared, range(static), None, recorded)
    recorded.told()
    return static == len(passes)


def run_fit(
    prepared: Prepared,
    listener: Callable[[dict[str, Any]], None] | None = None,
    started: Callable[[Client | None], None] | None = None,
    recorded: Recorded | None = None,
) -> tuple[Estimator, tuple[Tally, ...]]:
    """Run a planned fit; give the fitted estimator, and what each pass read.

    `listener` is told of each block, and `started` of the client, if there is one. What is `recorded` is not
    done again.
    """
    with running(prepared.place, watched=started is not None) as client, listening(listener, client):
        if started is not None:
            started(client)
        try:
            if isinstance(prepared, OwnFit):
                return prepared.run(client, recorded, listener)
            known = run_passes(prepared, client, recorded)
        except InputError as err:
            if err.columns is None or not isinstance(prepared.source.X, Grid):
                raise
            raise type(err)(f"{err} {prepared.source.X.told(err.columns)}") from err
        finally:
            give_back()
    check_rows(prepared, known.tallies)
    return _estimator_of(known, prepared.program.walk.root), known.tallies


def n_rows_read(prepared: Prepared, tallies: Sequence[Tally]) -> int | None:
    """Give the rows that the first pass has read in each of its readings; None if there was none."""
    if not tallies:
        return None
    rows, times = tallies[0].rows, tallies[0].n_readings or prepared.plan.passes[0].epochs
    if prepared.epochs.share is not None and _stops_early(prepared, prepared.program.passes[0]):
        rows += tallies[1].rows  # those that were held out
    return rows // times


def check_rows(prepared: Prepared, tallies: Sequence[Tally]) -> None:
    """Compare the rows that each pass has read with those that the source said it has."""
    lengths = prepared.source.rows
    for number, (made, tally) in enumerate(zip(prepared.program.passes, tallies, strict=False)):
        step, rows = prepared.plan.passes[number], tally.rows
        times = step.epochs if tally.n_readings is None else tally.n_readings
        chosen = lengths[made.sampled]
        expected = None if None in chosen else sum(n or 0 for n in chosen)
        if prepared.epochs.share is not None and _stops_early(prepared, made):
            rows += tallies[number + 1].rows  # those that were held out
        if expected is None or rows == expected * times:
            continue
        said = f"pass {step.number} read {rows:,} rows of {expected * times:,}"
        if not prepared.source.may_skip:
            raise DpipeError(f"{said}. Files changed during the run, or a block was lost; run it again.")
        warnings.warn(f"{said}: what could not be read was left out.", stacklevel=3)


def plan(
    estimator: Estimator,
    X: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    epochs: int | Epochs = 1,
    validation: Any = None,
    qid: Any = None,
    shares: int | None = None,
    sample_dims: Any = None,
    missing: str = "all",
    memory: int | str | None = None,
    client: Client | Cluster | None = None,
) -> Plan:
    """Tell what `fit` would do: its passes, what each collects and why, bytes and peak memory.

    Takes the arguments of `fit`, and computes nothing.

    Returns
    -------
    Plan
        A frozen record; prints as a table, and as HTML in Jupyter.

    Raises
    ------
    DpipeError
        As `fit` does for what metadata can tell; MemoryLimitError if the budget cannot be kept.

    Examples
    --------
    >>> import dask.array as da
    >>> from sklearn.preprocessing import StandardScaler
    >>> plan(StandardScaler(), da.ones((1000, 3), chunks=(250, 3))).n_passes
    1
    """
    samples = {"sample_dims": sample_dims, "missing": missing}
    beside = {"validation": validation, "qid": qid, "shares": shares, **samples}
    return prepare(estimator, X, y, sample_weight, epochs=epochs, memory=memory, client=client, **beside).plan


@takes_cluster
def fit(
    estimator: Estimator,
    X: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    epochs: int | Epochs = 1,
    validation: Any = None,
    qid: Any = None,
    shares: int | None = None,
    sample_dims: Any = None,
    missing: str = "all",
    memory: int | str | None = None,
    client: Client | Cluster | None = None,
    workdir: str | os.PathLike[str] | None = None,
    compute: bool = True,
) -> Any:
    """Fit a scikit-learn estimator on data larger than memory, and give plain scikit-learn back.

    Parameters
    ----------
    estimator : scikit-learn estimator or pipeline
        Unfitted; it is not changed. `dpipe.estimators()` lists what can be fitted. A `dpipe.Search` gives the best
        of its candidates, and holds its results afterwards.
    X : dask DataFrame or Array, pandas.DataFrame, numpy.ndarray, CSR matrix, xarray.DataArray or Dataset
        Of shape (n_samples, n_features). Arrays may have unknown row counts. Of xarray objects `sample_dims` are
        the samples; the other dims, or the variables of a Dataset, are features.
    y, sample_weight : series, array, or str, optional
        Of the same blocks as X, or the name of a column of X, so that all come from one read. Beside an xarray
        object a DataArray: y with its sample dims, weights with some of them (one for each latitude, say).
    epochs : int or Epochs, default 1
        How often an estimator that learns in order (SGD) sees the data; `dpipe.Epochs` also tells in which order.
    validation : tuple or float, optional
        Rows to watch a boosted model (XGBoost, LightGBM) on, for early stopping: (X, y) or (X, y, sample_weight)
        of the same kinds, or a share of the rows, which a hash of all their columns then holds out of training.
    qid : str or collection, optional
        For XGBRanker and LGBMRanker: the column of X that numbers the group of each row, or a series or array of the
        same blocks. Rows of a group must stand together.
    shares : int, optional
        For XGBoost: into how many shares the rows are dealt, each with a learner of its own; as many as workers put
        all to work. The trees depend on the blocks and on this number, not on the workers. Default: one.
    sample_dims : str or sequence of str, optional
        For xarray objects: which dims are samples.
    missing : {"all", "any", "keep"}, default "all"
        Of an xarray object, leave out samples that lack all features (land in a field of the sea), or any feature, and
        those without target or weight; or keep all.
    memory : int or str, optional
        Memory budget, such as "2 GiB": for the whole run on this machine, per worker on a cluster.
    client : distributed.Client or Cluster, optional
        Default: the current client; without one, dpipe runs in this process and cleans up after.
    workdir : path, optional
        Leave a record and a report of the fit there, and show its progress.
    compute : bool, default True
        False gives a `dask.delayed.Delayed` of the fitted estimator instead.

    Returns
    -------
    estimator
        A fitted clone, as ``estimator.fit(X.compute(), y.compute())`` would give. What learns row after
        row equals `partial_fit` called on the same blocks in the same order.

    Raises
    ------
    UnsupportedEstimatorError, InputError, BlockMismatchError, MemoryLimitError, SourceError
        If estimator, input, blocks, budget or files do not do; each message says what would.

    Examples
    --------
    >>> import numpy as np, dask.array as da
    >>> from sklearn.preprocessing import StandardScaler
    >>> fit(StandardScaler(), da.from_array(np.arange(12.0).reshape(6, 2), chunks=(2, 2))).mean_
    array([5., 6.])
    """
    samples = {"sample_dims": sample_dims, "missing": missing}
    beside = {"validation": validation, "qid": qid, "shares": shares, **samples}
    prepared = prepare(estimator, X, y, sample_weight, epochs=epochs, memory=memory, client=client, **beside)
    if not compute:
        return delayed_fit(prepared)
    return run_fit(prepared)[0] if workdir is None else _fit_on_record(prepared, estimator, Path(workdir))


def _fit_on_record(prepared: Prepared, estimator: Estimator, workdir: Path) -> Any:
    """Fit with a ledger, a report and progress."""
    name = type(estimator).__name__
    with (
        Ledger(make_workdir(workdir)) as ledger,
        Session(f"fit {name}", workdir, budget_nbytes=prepared.plan.memory_nbytes) as session,
    ):
        recorded = prepared.recorded(ledger, "fit", session.note)
        fitted, tallies = run_fit(prepared, session.listener, session.started, recorded)
        session.add_passes("train", prepared.plan, tallies)
    return fitted
