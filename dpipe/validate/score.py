"""`score`: a fitted model on rows that it has not seen, all metrics in one pass."""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dask.delayed import Delayed
from distributed import Client
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from dpipe.blocks.rows import Rows, Tally
from dpipe.cluster.cluster import Cluster, takes_cluster
from dpipe.cluster.local import Place, compute, find_place, running
from dpipe.cluster.specification import Specification
from dpipe.collect.labelled import as_samples, needed_variables
from dpipe.collect.source import Source, open_source
from dpipe.errors import DpipeError, InputError, MemoryLimitError
from dpipe.families.fitted import final_estimator, input_names, predictions
from dpipe.families.registry import Estimator
from dpipe.monitor.events import Listener, listening
from dpipe.monitor.record import CurveRecord
from dpipe.monitor.session import make_workdir
from dpipe.run.graph import GraphBuilder, add_inputs, graph_token
from dpipe.run.recorded import Recorded
from dpipe.run.scan import add_scan
from dpipe.run.state import states_of
from dpipe.sizes import format_bytes, parse_bytes
from dpipe.validate.curves import WALK_ROWS, ScoreRuns, calibration_curve, ranking, ranking_curves
from dpipe.validate.metrics import METRICS, check_scoring, want_of
from dpipe.validate.states import Calibration, ScoredBlock, Want

__all__ = ["Scores", "check_scoring", "score", "score_source"]


@dataclass(frozen=True)
class Scores:
    """What one scoring pass has found."""

    metrics: dict[str, float]
    curves: tuple[CurveRecord, ...]
    """ROC, precision and recall, calibration: where ranks were scored."""
    tally: Tally
    projected_nbytes: int | None
    """Projected peak memory of a worker; None for blocks of unknown size."""


@dataclass(frozen=True)
class _Collector:
    """Scores one block: every method of the model once, then all states."""

    wants: tuple[Want, ...]
    labels: tuple[Any, ...]
    scratch: str | None

    def __call__(self, rows: Rows, fitted: Estimator) -> tuple[Any, ...]:
        methods = list(dict.fromkeys(want.method for want in self.wants))
        try:
            answers = predictions(fitted, rows.X, methods)
        except DpipeError:
            raise
        except (ValueError, TypeError) as err:
            raise InputError(f"{type(fitted).__name__} cannot score a block: {err}") from err
        assert rows.y is not None
        block = ScoredBlock(rows.y, rows.w, answers, self.labels, self.scratch)
        return tuple(want.state.of(block, want) for want in self.wants)

    def revived(self, states: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        """Give states that the ledger has kept, if the scores that they list are still there.

        Raises
        ------
        LedgerError
            If they are not.
        """
        for state in states or ():
            if isinstance(state, ScoreRuns):
                state.check()
        return states


@takes_cluster
def score(
    fitted: Estimator,
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    scoring: str | Sequence[str] | None = None,
    sample_dims: Any = None,
    missing: str = "all",
    memory: int | str | None = None,
    client: Client | Cluster | None = None,
    workdir: str | os.PathLike[str] | None = None,
) -> float | dict[str, float]:
    """Score a fitted model on data larger than memory, in one pass.

    Parameters
    ----------
    fitted : scikit-learn estimator or pipeline
        Fitted, by dpipe or by scikit-learn.
    X : dask DataFrame or Array, pandas.DataFrame, numpy.ndarray or CSR matrix
        Of shape (n_samples, n_features). Columns of a frame are found by name; others are not read. Or an
        xarray object, with y and weights, as for `dpipe.fit`.
    y, sample_weight : series, array, or str
        Of the same blocks as X, or the name of a column of X. The ranking metrics (roc_auc and
        average_precision) take no weights.
    scoring : str or sequence of str, optional
        Scikit-learn's names; default accuracy for a classifier, r2 for a regressor.
    sample_dims, missing
        For xarray objects: as for `dpipe.fit`.
    memory : int or str, optional
        Memory budget, such as "2 GiB": for the whole run on this machine, per worker on a cluster.
    client : distributed.Client or Cluster, optional
        Default: the current client; without one, dpipe runs in this process and cleans up after.
    workdir : path, optional
        The ranking metrics keep the scores of all rows: in files under this folder while they are
        computed (8 bytes a row; workers must be able to write there), else in memory.

    Returns
    -------
    float or dict of str to float
        A float for one name or none. As scikit-learn's scorers on all rows at once: counts and ranks
        exact, sums to 1e-9. Greater is better.

    Raises
    ------
    InputError, BlockMismatchError, MemoryLimitError, SourceError
        If model, metrics, input, budget or files do not do; each message says what would.

    Examples
    --------
    >>> import dask.array as da
    >>> from sklearn.linear_model import LinearRegression
    >>> X = da.arange(12, chunks=4).reshape(-1, 1)
    >>> y = 2 * X[:, 0] + 1
    >>> model = LinearRegression().fit(X.compute(), y.compute())
    >>> round(score(model, X, y), 9)
    1.0
    """
    if sample_dims is not None:
        X = needed_variables(X, input_names(fitted), (y, sample_weight))
    X, y, sample_weight = as_samples(X, y, sample_weight, sample_dims, missing)
    found = score_source(
        fitted,
        X,
        y,
        sample_weight,
        scoring=scoring,
        memory=None if memory is None else parse_bytes(memory),
        client=client,
        scratch=None if workdir is None else make_workdir(workdir) / "scratch",
    )
    if scoring is None or isinstance(scoring, str):
        return next(iter(found.metrics.values()))
    return found.metrics


def score_source(
    fitted: Estimator,
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    scoring: str | Sequence[str] | None = None,
    memory: int | None = None,
    client: Client | Specification | None = None,
    workers: int | None = None,
    scratch: Path | None = None,
    listener: Listener | None = None,
    started: Callable[[Client | None], None] | None = None,
    recorded: Callable[[Mapping[str, Any]], Recorded] | None = None,
) -> Scores:
    """Score a fitted model: metrics, curves for the report, and what was read.

    Parameters
    ----------
    scratch : Path, optional
        Folder for the scores of ranking metrics, which are held in memory without one. What is
        written is removed in the end.
    listener, started : callable
        Called with each progress event (its pass is "score"), and with the client once it runs.
    recorded : callable, optional
        Looks up in a ledger what is done already, given what the scoring follows from, each by name.

    The others are those of `score`.

    Raises
    ------
    DpipeError
        As `score` does.
    """
    source = open_source(X, y, sample_weight)
    columns = _check_input(fitted, source)
    names = check_scoring(scoring, fitted)
    labels = tuple(np.asarray(fitted.classes_).tolist()) if hasattr(fitted, "classes_") else ()
    wants = {name: want_of(name, fitted, labels) for name in names}
    collected = _with_calibration(list(dict.fromkeys(wants.values())), fitted)
    _check_weights(wants, source)
    place = find_place(client, memory, source.n_blocks, workers)
    place, projected = _fitting_place(fitted, source, columns, collected, place, scratch)
    token = graph_token(fitted, source.X, source.y, source.w, names)
    # what a stopped run has left there is named by its content, and removed after the next one
    folder = None if scratch is None else scratch / ("scores" if recorded else f"scores-{token}")
    collector = _Collector(tuple(collected), labels, None if folder is None else str(folder))
    graph = GraphBuilder(token)
    inputs, pages, known = add_inputs(graph, source, columns), None, None
    if recorded is not None:
        book = recorded({"the model": fitted, "the metrics": names, "the columns of X": columns})
        inputs = book.keyed(inputs, graph.tasks)
        pages = book.pages(inputs, collector.wants, "the scoring")
        known = book.result()
    if known is not None:
        metrics, curves, tally = known
        _remove(folder)
        return Scores(metrics, curves, tally.recalled(), projected)
    model = graph.hold("score-model", fitted).key
    key = add_scan(graph, inputs, collector, model, name="score", pages=pages)
    try:
        with running(place, watched=started is not None) as chosen, listening(listener, chosen):
            if started is not None:
                started(chosen)
            state = compute(Delayed(key, graph.tasks), chosen, place.threads)
        found = dict(zip(collected, states_of(state, "score"), strict=True))
        metrics, curves = _finished(wants, found, labels)
        if recorded is not None:
            book.conclude((metrics, curves, state.tally))
    except BaseException:
        if recorded is None:
            _remove(folder)
        raise
    _remove(folder)
    return Scores(metrics, curves, state.tally, projected)


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def _check_input(fitted: Estimator, source: Source) -> tuple[int, ...] | None:
    """Check model, targets and columns by what is known without reading; give the columns to read."""
    name = type(fitted).__name__
    if isinstance(fitted, type):
        raise InputError(f"fitted is the class {fitted.__name__}; pass a fitted instance.")
    try:
        check_is_fitted(fitted)
    except (NotFittedError, TypeError) as err:
        raise InputError(f"{name} is not fitted. Fit it first, with dpipe.fit or its own fit.") from err
    if source.y is None:
        raise InputError(
            f"{name} is scored against targets, but y is None. Pass y as a series, an array, or the name of "
            "a column of X."
        )
    needed = input_names(fitted)
    if needed is not None and source.frame is not None:
        return _positions(needed, source, name)
    width = getattr(fitted, "n_features_in_", source.n_columns)
    if width != source.n_columns:
        raise InputError(f"X has {source.n_columns} columns, but {name} was fitted on {width}.")
    if needed is not None:
        raise InputError(
            f"X is an array without column names, but {name} was fitted on a frame with the columns "
            f"{', '.join(map(repr, needed))}. Give X as a frame."
        )
    return None


def _positions(needed: Sequence[str], source: Source, name: str) -> tuple[int, ...] | None:
    missing = [column for column in needed if column not in source.names]
    if missing:
        raise InputError(
            f"X lacks {', '.join(map(repr, missing))}, which {name} was fitted on. "
            f"X has: {', '.join(map(repr, source.names))}. Add what is missing, or fit the model without it."
        )
    # a model that reads no column still needs rows
    return tuple(source.names.index(column) for column in needed) or None


def _check_weights(wants: dict[str, Want], source: Source) -> None:
    ranks = [name for name, want in wants.items() if want.state is ScoreRuns]
    if ranks and source.w is not None:
        raise InputError(
            f"{ranks[0]} does not take sample_weight: pairs of rows are counted, each once. Leave the "
            "weights out, or use neg_log_loss."
        )


def _with_calibration(collected: list[Want], fitted: Estimator) -> list[Want]:
    """Add the calibration curve where ranks are scored, and the model gives probabilities."""
    ranks = [want for want in collected if want.state is ScoreRuns]
    if ranks and hasattr(fitted, "predict_proba"):
        collected = [*collected, Want(Calibration, "predict_proba", ranks[0].positive)]
    return collected


def _finished(
    wants: dict[str, Want], found: dict[Want, Any], labels: Sequence[Any]
) -> tuple[dict[str, float], tuple[CurveRecord, ...]]:
    """Compute metrics and curves from the merged states."""
    metrics: dict[str, float] = {}
    curves: list[CurveRecord] = []
    for name, want in wants.items():
        if isinstance(found[want], ScoreRuns):
            found[want] = ranking(found[want], name)
            curves += ranking_curves(found[want], labels[want.positive])
        metrics[name] = METRICS[name].value(found[want])
    for want, state in found.items():
        if isinstance(state, Calibration):
            curves.append(calibration_curve(state, labels[want.positive]))
    return metrics, tuple(curves)


def _fitting_place(
    fitted: Estimator,
    source: Source,
    columns: Sequence[int] | None,
    wants: Sequence[Want],
    place: Place,
    scratch: Path | None,
) -> tuple[Place, int | None]:
    """Use as many threads as the budget allows, where it is ours to choose; give the projected peak."""
    ranked = any(want.state is ScoreRuns for want in wants)
    while True:
        projected = _projected(fitted, source, columns, place, ranked, scratch)
        if projected is None:
            _check_process(place)
        if projected is None or place.memory is None or projected <= place.memory:
            return place, projected
        if not place.embedded or place.threads == 1:
            break
        place = replace(place, threads=place.threads - 1)
    held = " Give workdir=..., so that scores are kept in files." if ranked and scratch is None else ""
    raise MemoryLimitError(
        f"Scoring needs {format_bytes(projected)} a worker, but the budget is {format_bytes(place.memory)}, "
        f"of which {format_bytes(place.reserved)} is for the process itself. Give at least memory='"
        f"{-(-projected // 2**20)} MiB', or read with smaller blocks (block_nbytes=...).{held}"
    )


def _check_process(place: Place) -> None:
    """Of blocks of unknown size, only what the process itself takes can be checked."""
    if place.memory is not None and place.reserved >= place.memory:
        raise MemoryLimitError(
            f"Scoring needs more than {format_bytes(place.reserved)} a worker, which the process takes by itself, "
            f"but the budget is {format_bytes(place.memory)}. Give at least memory='"
            f"{-(-2 * place.reserved // 2**20)} MiB', twice that."
        )


def _projected(
    fitted: Estimator,
    source: Source,
    columns: Sequence[int] | None,
    place: Place,
    ranked: bool,
    scratch: Path | None,
) -> int | None:
    """Bytes of one worker at the worst: its blocks, what they are transformed to, and scores."""
    if source.n_rows is None:
        return None
    widths = tuple(source.row_nbytes.values())
    read = sum(widths if columns is None else (widths[j] for j in columns))
    # transforming holds the parts and their stack
    n_columns = len(widths) if columns is None else len(columns)
    matrix = 2 * 12 * n_columns if _gives_sparse(fitted) else 2 * 8 * _final_width(fitted, n_columns)
    answers = 8 * (6 + 2 * len(getattr(fitted, "classes_", ())))
    block_rows = max((n or 0 for n in source.rows), default=0)
    block_nbytes = block_rows * (read * source.overhead + matrix + answers)
    walked = 64 * min(source.n_rows, WALK_ROWS) if ranked else 0
    held = 8 * source.n_rows if ranked and scratch is None else 0
    return int(place.reserved + max(place.threads * block_nbytes, walked) + held)


def _final_width(fitted: Estimator, n_columns: int) -> int:
    return int(getattr(final_estimator(fitted), "n_features_in_", n_columns))


def _gives_sparse(fitted: Estimator) -> bool:
    """Tell whether the last estimator is given a sparse matrix, as far as a tree shows it."""
    if isinstance(fitted, Pipeline):
        return any(_gives_sparse(step) for _, step in fitted.steps[:-1])
    return isinstance(fitted, ColumnTransformer) and getattr(fitted, "sparse_output_", False)
