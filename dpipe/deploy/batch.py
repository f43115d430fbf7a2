"""Score many Parquet files with a bundle: one output file for each, in parallel, in bounded memory.

An output appears when it is whole, and carries a fingerprint of what it was made from. So a run
that was stopped, or that met a corrupt file, is continued by being started again.
"""

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from dask.delayed import Delayed
from dask.task_spec import List, TaskRef
from distributed import Client
from sklearn.base import is_classifier

from dpipe.cluster.cluster import Cluster, takes_cluster
from dpipe.cluster.local import Place, compute, find_place, running
from dpipe.collect.parquet import row_nbytes
from dpipe.deploy.apply import check_present
from dpipe.deploy.bundle import Bundle, load
from dpipe.deploy.files import Input, inspected, listed, made_destination, only_writer
from dpipe.deploy.results import check_applicable, empty_result
from dpipe.deploy.score_file import (
    PASS,
    FileJob,
    FileOutcome,
    Scoring,
    plain_type,
    prediction_schema,
    row_group_batches,
    score_file,
    spelled,
)
from dpipe.errors import InputError, MemoryLimitError, SourceError
from dpipe.families.registry import Estimator
from dpipe.monitor.events import Listener, listening
from dpipe.outputs.manifest import MANIFEST, FileEntry, read_manifest, write_manifest
from dpipe.run.graph import GraphBuilder
from dpipe.sizes import DEFAULT_BLOCK_NBYTES, block_nbytes_for, format_bytes, parse_bytes

#: Decoding, transforming and writing hold about this many batches a thread.
_BATCHES_HELD = 10


@dataclass(frozen=True)
class BatchResult:
    """What a run of `score_files` has left behind."""

    n_files: int
    """Output files that are there and whole."""
    n_rows: int
    """Rows in them."""
    n_skipped: int
    """Those of them that had been there already."""
    failed: tuple[str, ...]
    """Input files without an output."""
    paths: tuple[Path, ...]
    """The output files, in the order of the inputs."""


class ScoringError(SourceError):
    """Some files could not be scored; all others are written.

    Attributes
    ----------
    result : BatchResult
        What was written, and which files have failed.
    """

    def __init__(self, message: str, result: BatchResult) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the result when the error travels between processes."""
        return type(self), (str(self), self.result)


@takes_cluster
def score_files(
    bundle: str | os.PathLike[str] | Bundle,
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    *,
    method: str | None = None,
    keep: Sequence[str] = (),
    block_nbytes: int | str | None = None,
    memory: int | str | None = None,
    client: Client | Cluster | None = None,
    workers: int | None = None,
    trusted: Sequence[str] = (),
    listener: Listener | None = None,
    started: Callable[[Client | None], None] | None = None,
) -> BatchResult:
    """Score Parquet files with a deployed model; files that are done already are not done again.

    Parameters
    ----------
    bundle : path or Bundle
    source : path, glob, folder, URL, or a sequence of them
        As in `read_parquet`. The files may differ in further columns and in their order.
    destination : path
        A folder on this machine, or shared with the workers; made if it is not there. An output has the
        name of its input; where several inputs have the same one, the name of their folder goes before it.
    method : str, optional
        Default: the bundle's own; instead of "predict", "predict_proba" of a classifier that has it.
    keep : sequence of str
        Columns of the input to copy to the output, before those of the predictions.
    block_nbytes : int or str, default "32 MiB", or less if `memory` asks for it
        Decoded size of the rows that are worked on at a time.
    memory, client
        As for `dpipe.fit`.
    workers : int, optional
        Files at a time without a client; default one a processor.
    trusted : sequence of str
        For `load`, if `bundle` is a path.
    listener, started : callables, optional
        Told of each batch, and of the client that runs them.

    Returns
    -------
    BatchResult

    Raises
    ------
    InputError
        If the destination cannot be written, holds other files of these names, or is being written by
        another run; or if a file lacks a column. Nothing is written then.
    MemoryLimitError, BundleError
        If the budget is too small, or the bundle cannot be opened.
    ScoringError
        A `SourceError`: some files are corrupt or do not suit the model. All others are written.

    Notes
    -----
    Rows are counted in and out. An output is done if its fingerprint is that of the work at hand: path, size and time
    of the input, checksum of the model, method, kept columns. When all files are done, a manifest says what they are:
    see `dpipe.verify`.
    """
    bundle = bundle if isinstance(bundle, Bundle) else load(bundle, trusted=trusted)
    method = _default_method(bundle) if method is None else method
    check_applicable(bundle.model, method)
    keep = _kept(keep)
    sources = listed(source)
    folder = made_destination(destination, source, sources)
    with only_writer(folder):
        made_from = {"model": bundle.sha256, "method": method, "keep": keep, "format": 1}
        inputs = inspected(sources, folder, made_from)
        todo = [item for item in inputs if item.done_rows is None and not item.error]
        outcomes = {item.source: FileOutcome(item.source, error=item.error) for item in inputs if item.error}
        if todo:
            budget = None if memory is None else parse_bytes(memory)
            place, limit = _resources(find_place(client, budget, len(todo), workers), block_nbytes)
            scoring, jobs = _prepared(bundle, method, keep, todo, limit)
            for outcome in _run(scoring, jobs, place, listener or _ignore, started or _ignore):
                outcomes[outcome.source] = outcome
        result = _result(inputs, outcomes, folder)
        _commit(folder, inputs, result)
    return result


def _commit(folder: Path, inputs: Sequence[Input], result: BatchResult) -> None:
    """Say in a manifest what the outputs are, beside those of earlier runs that are still there."""
    said = read_manifest(folder)["files"] if (folder / MANIFEST).exists() else {}
    known = {
        name: FileEntry(name, about["sha256"], about["nbytes"], about.get("rows"))
        for name, about in said.items()
    }
    entries = {name: entry for name, entry in known.items() if (folder / name).exists()}
    for item, path in zip(inputs, result.paths, strict=True):
        if item.done_rows is None or path.name not in entries:
            entries[path.name] = FileEntry.of(path, pq.read_metadata(path).num_rows)
    write_manifest(folder, list(entries.values()), [item.fingerprint for item in inputs])


def _kept(keep: Sequence[str]) -> tuple[str, ...]:
    if isinstance(keep, str):
        raise InputError(f"keep must be a sequence of names. Pass keep=[{keep!r}].")
    return tuple(dict.fromkeys(keep))


def _ignore(_: Any) -> None:
    return None


def _default_method(bundle: Bundle) -> str:
    if bundle.method != "predict":
        return bundle.method
    has_chances = is_classifier(bundle.model) and hasattr(bundle.model, "predict_proba")
    return "predict_proba" if has_chances else "predict"


def _resources(place: Place, block_nbytes: int | str | None) -> tuple[Place, int]:
    """Choose how many files to work on at a time, and how many bytes of each."""
    wanted = None if block_nbytes is None else parse_bytes(block_nbytes)
    if place.memory is None:
        return place, DEFAULT_BLOCK_NBYTES if wanted is None else wanted
    spare = place.memory - place.reserved
    for threads in range(place.threads, 0 if place.embedded else place.threads - 1, -1):
        limit = block_nbytes_for(max(spare, 0), threads) if wanted is None else wanted
        needed = threads * _BATCHES_HELD * limit
        if needed <= spare:
            return replace(place, threads=threads), limit
    raise MemoryLimitError(
        f"Scoring needs {format_bytes(place.reserved + needed)} of memory: the process takes "
        f"{format_bytes(place.reserved)}, and each of {threads} threads {_BATCHES_HELD} batches of "
        f"{format_bytes(limit)}; the budget is {format_bytes(place.memory)}. Give a larger memory=..., or a "
        "smaller block_nbytes=..."
    )


def _prepared(
    bundle: Bundle, method: str, keep: tuple[str, ...], todo: Sequence[Input], limit: int
) -> tuple[Scoring, list[FileJob]]:
    """Check the columns of all files, and cut the work into batches."""
    columns = bundle.columns
    if columns is None:
        raise InputError(
            f"{bundle.path} was trained on an array: its columns have no names by which files could be read. "
            "Use dpipe.predict on an array, or train on a frame."
        )
    for item in todo:
        assert item.schema is not None
        present = spelled([*columns, *keep], item.schema.names)
        check_present(columns, [*present, *item.schema.names], item.source)
        check_kept(keep, [*present, *item.schema.names], item.source)
    schema = _input_schema(columns, bundle.schema, todo[0].schema)
    predictions = _prediction_schema(bundle.model, method, schema)
    both = [name for name in keep if name in predictions.names]
    if both:
        raise InputError(
            f"keep names {', '.join(map(repr, both))}, which is a column of the predictions, too. "
            "Leave it out of keep."
        )
    batch_rows = max(limit // row_nbytes(schema), 1)
    jobs, n = [], 0
    for item in todo:
        jobs.append(FileJob(item.source, str(item.destination), item.fingerprint, n))
        n += sum(batches for _, batches in row_group_batches(item.row_groups, batch_rows))
    return Scoring(bundle.model, method, schema, keep, predictions, batch_rows, n), jobs


def check_kept(keep: Sequence[str], present: Sequence[str], where: str) -> None:
    """Check that a file has the columns to keep."""
    missing = [name for name in keep if name not in present]
    if missing:
        raise InputError(
            f"{where} has no column {', '.join(map(repr, missing))} to keep. "
            f"It has: {', '.join(map(repr, dict.fromkeys(present)))}."
        )


def _input_schema(columns: Sequence[str], schema: pa.Schema | None, file: pa.Schema) -> pa.Schema:
    """Type the model's columns as in training, or, where that is not known, as in the first file."""
    spelling = spelled(columns, file.names)
    kinds = {name: file.field(spelling[name]).type for name in columns}
    known = {item.name: item.type for item in schema or () if not pa.types.is_null(item.type)}
    return pa.schema([(name, plain_type(known.get(name, kinds[name]))) for name in columns])


def _prediction_schema(model: Estimator, method: str, schema: pa.Schema) -> pa.Schema:
    meta = empty_result(model, method, schema.empty_table().to_pandas())
    if sp.issparse(meta):
        raise InputError(
            f"{type(model).__name__}.{method} gives sparse matrices, which do not go into Parquet files. "
            "Use dpipe.transform."
        )
    return prediction_schema(meta, method)


def _run(
    scoring: Scoring,
    jobs: Sequence[FileJob],
    place: Place,
    listener: Listener,
    started: Callable[[Client | None], None],
) -> tuple[FileOutcome, ...]:
    # what a task does depends on the files as they are now: its key is never that of another run
    graph = GraphBuilder(uuid.uuid4().hex[:16])
    held = graph.hold("scoring", scoring)
    keys = [graph.add_block(PASS, i, score_file, held, job) for i, job in enumerate(jobs)]
    outcomes = graph.add("scored", _gather, List(*map(TaskRef, keys)))
    with running(place) as client, listening(listener, client):
        started(client)
        found: tuple[FileOutcome, ...] = compute(Delayed(outcomes, graph.tasks), client)
    return found


def _gather(outcomes: Sequence[FileOutcome]) -> tuple[FileOutcome, ...]:
    return tuple(outcomes)


def _result(inputs: Sequence[Input], outcomes: dict[str, FileOutcome], folder: Path) -> BatchResult:
    """Count what is there; raise if something is not."""
    failed = [outcome for item in inputs if (outcome := outcomes.get(item.source)) and outcome.error]
    names = {outcome.source for outcome in failed}
    done = [item for item in inputs if item.source not in names]
    skipped = [item.done_rows for item in done if item.done_rows is not None]
    n_rows = sum(skipped) + sum(outcome.n_rows for outcome in outcomes.values())
    paths = tuple(item.destination for item in done)
    result = BatchResult(len(done), n_rows, len(skipped), tuple(outcome.source for outcome in failed), paths)
    if failed:
        reasons = "; ".join(f"{outcome.source}: {outcome.error}" for outcome in failed[:5])
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise ScoringError(
            f"{len(failed)} of {len(inputs)} files could not be scored: {reasons}{more}. The other {len(done)} "
            f"are in {folder}. Repair or leave out what failed, and run this again: finished files stay.",
            result,
        )
    return result
