"""Score many Parquet files with a bundle: one output file for each, in parallel, in bounded memory.

An output appears when it is whole, and carries a fingerprint of what it was made from. So a run
that was stopped, or that met a corrupt file, is continued by being started again.
"""

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from dask.delayed import Delayed
from dask.task_spec import List, TaskRef
from distributed import Client
from sklearn.base import is_classifier

from dpipe.cluster.local import Place, compute, find_place, running
from dpipe.collect.parquet import find_files, row_nbytes
from dpipe.deploy.apply import check_present
from dpipe.deploy.bundle import Bundle, load
from dpipe.deploy.results import check_applicable, empty_result
from dpipe.deploy.score_file import (
    FINGERPRINT,
    PASS,
    FileJob,
    FileOutcome,
    Scoring,
    open_file,
    plain_type,
    prediction_schema,
    row_group_batches,
    score_file,
    spelled,
)
from dpipe.errors import InputError, MemoryLimitError, SourceError
from dpipe.families.registry import Estimator
from dpipe.monitor.events import Listener, listening
from dpipe.run import GraphBuilder
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


@dataclass(frozen=True)
class _Input:
    """An input file: where its output goes, and what its footer says."""

    source: str
    destination: Path
    fingerprint: str
    done_rows: int | None = None
    """Rows of a finished output; None if there is work to do."""
    schema: pa.Schema | None = None
    row_groups: tuple[int, ...] = ()
    """Rows of each."""
    error: str = ""


def score_files(
    bundle: str | os.PathLike[str] | Bundle,
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    *,
    method: str | None = None,
    keep: Sequence[str] = (),
    block_nbytes: int | str | None = None,
    memory: int | str | None = None,
    client: Client | None = None,
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
        Default: what the bundle was written for; where that is "predict", "predict_proba" of a classifier
        that has it.
    keep : sequence of str
        Columns of the input to copy to the output, before those of the predictions: "prediction", or
        "probability_no" and "probability_yes" and the like.
    block_nbytes : int or str, default "64 MiB", or less if `memory` asks for it
        Decoded size of the rows that are worked on at a time.
    memory : int or str, optional
        Memory budget, such as "2 GiB": for the whole run on this machine, per worker on a cluster.
    client : distributed.Client, optional
        Default: the current client; without one, dpipe runs in this process and cleans up after.
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
    MemoryLimitError
        If the budget is too small.
    BundleError
        If the bundle cannot be opened.
    ScoringError
        A `SourceError`: some files are corrupt or do not suit the model. All others are written.

    Notes
    -----
    Rows are counted in and out of every file. An output is done if its fingerprint (path, size and time of
    the input, checksum of the model, method, kept columns) is that of the work at hand.
    """
    bundle = bundle if isinstance(bundle, Bundle) else load(bundle, trusted=trusted)
    method = _default_method(bundle) if method is None else method
    check_applicable(bundle.model, method)
    if isinstance(keep, str):
        raise InputError(f"keep must be a sequence of names. Pass keep=[{keep!r}].")
    sources = list(dict.fromkeys(find_files(source, {}, ".parquet")))
    folder = _destination(destination, source, sources)
    with _only_writer(folder):
        made_from = {"model": bundle.sha256, "method": method, "keep": list(keep), "format": 1}
        inputs = _inspected(sources, folder, made_from)
        todo = [item for item in inputs if item.done_rows is None and not item.error]
        outcomes = {item.source: FileOutcome(item.source, error=item.error) for item in inputs if item.error}
        if todo:
            budget = None if memory is None else parse_bytes(memory)
            place, limit = _resources(find_place(client, budget, len(todo), workers), block_nbytes)
            scoring, jobs = _prepared(bundle, method, tuple(keep), todo, limit)
            for outcome in _run(scoring, jobs, place, listener or _ignore, started or _ignore):
                outcomes[outcome.source] = outcome
    return _result(inputs, outcomes, folder)


def _ignore(_: Any) -> None:
    return None


def _default_method(bundle: Bundle) -> str:
    if bundle.method != "predict":
        return bundle.method
    has_chances = is_classifier(bundle.model) and hasattr(bundle.model, "predict_proba")
    return "predict_proba" if has_chances else "predict"


def _destination(destination: str | os.PathLike[str], source: Any, sources: Sequence[str]) -> Path:
    """Make the folder of the outputs, check that it can be written, and that it is no source."""
    folder = Path(destination).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{uuid.uuid4().hex[:8]}"
        probe.touch()
        probe.unlink()
    except OSError as err:
        raise InputError(
            f"The destination {folder} cannot be written: {err}. Choose a folder that you may write."
        ) from err
    here = folder.resolve()
    entries = [source] if isinstance(source, str | os.PathLike) else list(source)
    folders = [Path(entry).expanduser() for entry in entries if "://" not in str(entry)]
    inside = [str(entry) for entry in folders if entry.is_dir() and here.is_relative_to(entry.resolve())]
    inside += [path for path in sources if "://" not in path and Path(path).resolve().is_relative_to(here)]
    if inside:
        raise InputError(
            f"The destination {folder} and the source {inside[0]} lie in each other: the next run would take "
            "outputs for inputs. Choose a folder apart from the source."
        )
    return folder


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Keep other runs out of the destination, and delete what killed ones left there."""
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise InputError(
                f"Another run is writing to {folder}. Wait for its end, or choose another destination."
            ) from err
        except OSError:
            pass  # a file system without locks: what seems left over may be in use
        else:
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(held)


def _inspected(sources: Sequence[str], folder: Path, made_from: dict[str, Any]) -> list[_Input]:
    """Look for finished outputs, and read the footers of the other inputs."""
    names = output_names(sources)
    found = []
    for source in sources:
        path = folder / names[source]
        try:
            fingerprint = json.dumps({"source": _identity(source), **made_from}, sort_keys=True)
        except OSError as err:
            found.append(_Input(source, path, "", error=f"{type(err).__name__}: {err}"))
            continue
        found.append(_Input(source, path, fingerprint, _done_rows(path, fingerprint)))
    with ThreadPoolExecutor(min(16, len(found))) as pool:
        return list(pool.map(_with_footer, found))


def output_names(sources: Sequence[str]) -> dict[str, str]:
    """Name the output of each input.

    Examples
    --------
    >>> output_names(["2024/a.parquet", "2025/a.parquet", "2025/b.parquet"])
    {'2024/a.parquet': '2024-a.parquet', '2025/a.parquet': '2025-a.parquet', '2025/b.parquet': 'b.parquet'}
    """
    names = {source: os.path.basename(source) for source in sources}
    for longer in (_with_folder, _with_hash):
        taken = list(names.values())
        names = {source: longer(source) if taken.count(name) > 1 else name for source, name in names.items()}
    return names


def _with_folder(source: str) -> str:
    folder, name = os.path.split(os.path.abspath(source))
    return f"{os.path.basename(folder)}-{name}"


def _with_hash(source: str) -> str:
    stem, ending = os.path.splitext(os.path.basename(source))
    return f"{stem}-{sha256(os.path.abspath(source).encode()).hexdigest()[:12]}{ending}"


def _identity(source: str) -> list[Any]:
    """Tell a file, as it stands now, from any other."""
    if "://" in source:
        fs, path = fsspec.core.url_to_fs(source)
        info = fs.info(path)
        stamps = [info.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "last_modified")]
        return [source, info.get("size"), str(next((stamp for stamp in stamps if stamp), None))]
    status = os.stat(source)
    return [os.path.abspath(source), status.st_size, status.st_mtime_ns]


def _done_rows(path: Path, fingerprint: str) -> int | None:
    """Give the rows of an output that needs not be made again; else None."""
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return None  # not there, or damaged since
    mine = (metadata.metadata or {}).get(FINGERPRINT)
    if mine is None:
        raise InputError(
            f"{path} is there already, and was not written by score_files. Move it away, or choose another "
            "destination."
        )
    return int(metadata.num_rows) if mine == fingerprint.encode() else None


def _with_footer(item: _Input) -> _Input:
    if item.error or item.done_rows is not None:
        return item
    try:
        with open_file(item.source) as file:
            metadata = pq.read_metadata(file)
            schema = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as err:
        return replace(item, error=f"{type(err).__name__}: {err}")
    groups = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    return replace(item, schema=schema, row_groups=groups)


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
        f"Scoring needs {format_bytes(place.reserved + needed)} of memory: {format_bytes(place.reserved)} for the "
        f"process, and {_BATCHES_HELD} batches of {format_bytes(limit)} in each of {threads} threads; the budget "
        f"is {format_bytes(place.memory)}. Give a larger memory=..., or a smaller block_nbytes=..."
    )


def _prepared(
    bundle: Bundle, method: str, keep: tuple[str, ...], todo: Sequence[_Input], limit: int
) -> tuple[Scoring, list[FileJob]]:
    """Check the columns of all files, and cut the work into batches."""
    columns = bundle.columns
    if columns is None:
        raise InputError(
            f"{bundle.path} was trained on an array: its columns have no names by which they could be found in "
            "files. Use dpipe.predict on an array, or train on a frame."
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
            f"keep names {', '.join(map(repr, both))}, which is a column of the predictions. Leave it out of keep."
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
            f"{where} has no column {', '.join(map(repr, missing))} to keep. It has: {', '.join(map(repr, present))}."
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


def _result(inputs: Sequence[_Input], outcomes: dict[str, FileOutcome], folder: Path) -> BatchResult:
    """Count what is there; raise if something is not."""
    failed = [outcome for item in inputs if (outcome := outcomes.get(item.source)) and outcome.error]
    names = {outcome.source for outcome in failed}
    done = [item for item in inputs if item.source not in names]
    skipped = [item.done_rows for item in done if item.done_rows is not None]
    n_rows = sum(skipped) + sum(outcome.n_rows for outcome in outcomes.values())
    paths = tuple(item.destination for item in done)
    result = BatchResult(len(done), n_rows, len(skipped), tuple(outcome.source for outcome in failed), paths)
    if failed:
        told = "; ".join(f"{outcome.source}: {outcome.error}" for outcome in failed[:5])
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise ScoringError(
            f"{len(failed)} of {len(inputs)} files could not be scored: {told}{more}. The other {len(done)} are in "
            f"{folder}. Repair or leave out what failed, and run this again: finished files are not done again.",
            result,
        )
    return result
