"""Score one Parquet file into another, batch by batch, in one task.

A batch is some neighbouring row groups, or a part of a large one, read through small buffers: the
memory that a task takes depends on the batch only, never on the file.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dpipe.blocks.table import nbytes
from dpipe.deploy.results import apply_block
from dpipe.errors import DpipeError
from dpipe.families.registry import Estimator
from dpipe.monitor.events import emit

#: Name of the pass in progress events.
PASS = "score-files"
#: Key of the fingerprint in the metadata of an output file.
FINGERPRINT = b"dpipe.scored"
_BUFFER_NBYTES = 2**20
_PREFIXES = {
    "predict": "prediction_",
    "predict_proba": "probability_",
    "predict_log_proba": "log_probability_",
}


@dataclass(frozen=True, eq=False)
class Scoring:
    """What all files of a run have in common: the one value that their tasks share."""

    model: Estimator
    method: str
    schema: pa.Schema
    """The columns that the model takes, and the types that they are given."""
    keep: tuple[str, ...]
    predictions: pa.Schema
    """The columns that come out."""
    batch_rows: int
    n_batches: int
    """Of all files together."""


@dataclass(frozen=True)
class FileJob:
    """One file to score."""

    source: str
    destination: str
    fingerprint: str
    first_batch: int
    """Number of batches in the files before this one."""


@dataclass(frozen=True)
class FileOutcome:
    """How scoring a file has ended."""

    source: str
    n_rows: int = 0
    error: str = ""
    """What went wrong; empty if nothing did."""


def open_file(path: str) -> Any:
    """Open a file, or what a URL stands for, to read it."""
    return fsspec.open(path, "rb").open() if "://" in path else open(path, "rb")


def told(err: Exception) -> str:
    """Write an error on one line."""
    return f"{type(err).__name__}: {' '.join(str(err).split())}"


def spelled(names: Sequence[str], present: Sequence[str]) -> dict[str, str]:
    """Find columns in a file: as written, or else by a spelling that differs in case only.

    Examples
    --------
    >>> spelled(["Airport_fee", "tip"], ["airport_fee"])
    {'Airport_fee': 'airport_fee'}
    """
    lower = {name.lower(): name for name in present}
    found = {name: name if name in present else lower.get(name.lower()) for name in names}
    return {name: spelling for name, spelling in found.items() if spelling is not None}


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Give a type without its encoding: strings for dictionaries of strings, and for large strings."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


def prediction_schema(meta: pd.Series | pd.DataFrame, method: str) -> pa.Schema:
    """Name and type the columns of predictions, from the empty result.

    Examples
    --------
    >>> prediction_schema(pd.DataFrame({"no": [0.5], "yes": [0.5]}), "predict_proba").names
    ['probability_no', 'probability_yes']
    """
    single = isinstance(meta, pd.Series)
    prefix = "" if single or method == "transform" else _PREFIXES.get(method, f"{method}_")
    fields = pa.Schema.from_pandas(meta.to_frame() if single else meta, preserve_index=False)
    # Python objects of any kind are written as text
    kinds = [pa.string() if pa.types.is_null(item.type) else plain_type(item.type) for item in fields]
    return pa.schema([(prefix + name, kind) for name, kind in zip(fields.names, kinds, strict=True)])


def row_group_batches(rows: Sequence[int], batch_rows: int) -> list[tuple[list[int], int]]:
    """Join neighbouring row groups up to `batch_rows`; give each with its number of batches.

    Examples
    --------
    >>> row_group_batches([40, 60, 250], batch_rows=100)
    [([0, 1], 1), ([2], 3)]
    """
    joined: list[tuple[list[int], int]] = []
    for group, n in enumerate(rows):
        if joined and joined[-1][1] + n <= batch_rows:
            joined[-1] = ([*joined[-1][0], group], joined[-1][1] + n)
        else:
            joined.append(([group], n))
    return [(groups, -(-n // batch_rows)) for groups, n in joined if n]


def score_file(scoring: Scoring, job: FileJob) -> FileOutcome:
    """Score one file; a failure is told and not raised, so that it does not stop the other files."""
    try:
        return FileOutcome(job.source, _scored(scoring, job))
    except Exception as err:
        return FileOutcome(job.source, error=told(err))


def _scored(scoring: Scoring, job: FileJob) -> int:
    destination = Path(job.destination)
    temporary = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open_file(job.source) as file:
            n_rows = _write(scoring, job, file, temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(destination)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return n_rows


def _write(scoring: Scoring, job: FileJob, file: Any, path: Path) -> int:
    metadata = pq.read_metadata(file)
    present = metadata.schema.to_arrow_schema()
    names = spelled([*scoring.schema.names, *scoring.keep], present.names)
    texts = [names[item.name] for item in scoring.schema if pa.types.is_string(item.type)]
    parquet = pq.ParquetFile(
        file, metadata=metadata, read_dictionary=texts, pre_buffer=False, buffer_size=_BUFFER_NBYTES
    )
    kept = [pa.field(name, plain_type(present.field(names[name]).type)) for name in scoring.keep]
    schema = pa.schema([*kept, *scoring.predictions], metadata={FINGERPRINT: job.fingerprint})
    n_rows = 0
    with pq.ParquetWriter(path, schema) as writer:
        for number, table in enumerate(_batches(parquet, names, scoring.batch_rows), start=job.first_batch):
            columns = [_cast(table[names[item.name]], item.type) for item in kept]
            writer.write_table(pa.table([*columns, *_predicted(scoring, table, names)], schema=schema))
            n_rows += table.num_rows
            emit(_event(scoring, number, table))
    if n_rows != metadata.num_rows:
        raise DpipeError(f"{n_rows:,} rows came out for {metadata.num_rows:,} rows that went in")
    return n_rows


def _batches(parquet: Any, names: Mapping[str, str], batch_rows: int) -> Iterator[pa.Table]:
    rows = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
    for groups, n in row_group_batches(rows, batch_rows):
        batches = parquet.iter_batches(
            batch_rows, row_groups=groups, columns=list(dict.fromkeys(names.values())), use_threads=False
        )
        if n == 1:
            # Arrow ends a batch with each row group whose columns are dictionary codes
            yield pa.Table.from_batches(batches)
        else:
            yield from (pa.Table.from_batches([batch]) for batch in batches if batch.num_rows)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return column if column.type == kind else column.cast(kind)


def _typed(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Give a column the model's type; strings stay dictionary codes."""
    if not pa.types.is_dictionary(column.type):
        return _cast(column, kind)
    return column if pa.types.is_string(kind) else _cast(column.cast(column.type.value_type), kind)


def _predicted(scoring: Scoring, table: pa.Table, names: Mapping[str, str]) -> list[pa.Array]:
    columns = [_typed(table[names[item.name]], item.type) for item in scoring.schema]
    values = apply_block(scoring.model, pa.table(columns, names=scoring.schema.names), scoring.method)
    kinds = [item.type for item in scoring.predictions]
    if isinstance(values, pd.DataFrame):
        return [pa.Array.from_pandas(values.iloc[:, j], type=kind) for j, kind in enumerate(kinds)]
    matrix = np.asarray(values).reshape(table.num_rows, len(kinds))
    return [_arrow(matrix[:, j], kind) for j, kind in enumerate(kinds)]


def _arrow(column: np.ndarray, kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        column = column.astype(str)
    return pa.array(np.ascontiguousarray(column), type=kind)


def _event(scoring: Scoring, number: int, table: pa.Table) -> dict[str, Any]:
    return {
        "pass": PASS,
        "block": number,
        "n_blocks": scoring.n_batches,
        "rows": table.num_rows,
        "nbytes": nbytes(table),
    }
