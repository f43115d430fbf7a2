"""The collect stage: open a source under its contract, freeze what was inferred, count what was refused."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dask.array as da
import dask.dataframe as dd
import pyarrow as pa

from dpipe.collect.columns import check_columns
from dpipe.collect.contract import Contract, read_contract, write_contract
from dpipe.collect.csv import read_csv
from dpipe.collect.drift import drift
from dpipe.collect.enforce import (
    block_labels,
    contract_path,
    enforce,
    inferred_from_footers,
    inferred_from_frame,
    is_checked,
    parquet_blocks,
    policy_for,
    read_contracted,
)
from dpipe.collect.footers import Listing
from dpipe.collect.parquet import read_parquet
from dpipe.collect.quarantine import Quarantine, quarantined
from dpipe.errors import ConservationError, InputError
from dpipe.monitor.session import Session
from dpipe.pipeline.arrays import open_arrays
from dpipe.pipeline.stages import Stage
from dpipe.sizes import counted

#: Files that a report names as drifted.
_MOST_DRIFTED = 10


@dataclass
class Contracted:
    """A collect stage's contract: as it was asked for, and what came of it."""

    name: str
    workdir: Path
    schema: Any
    on_violation: str
    block_nbytes: int | str | None
    storage_options: dict[str, Any] | None
    on_corrupt: str
    quarantine: Quarantine | None = None
    frozen: Contract | None = None
    """What was inferred and is to be frozen by the run."""
    blocks: tuple[str, ...] = field(default=())
    """Labels of the blocks that may have refused rows."""
    files: Any = None
    """Parquet files under a contract, as the caller named them."""
    n_rows: int | None = None
    """Rows of the files, before any is refused."""

    def __post_init__(self) -> None:
        """Take what an earlier run has kept of the footers."""
        self.listing = Listing(self.workdir / "listings" / f"{self.name}.arrow")

    @property
    def reading(self) -> dict[str, Any]:
        """What `read_parquet` is told in any case."""
        return {
            "block_nbytes": self.block_nbytes,
            "storage_options": self.storage_options,
            "on_corrupt": self.on_corrupt,
            "listing": self.listing,
        }


def collected_arrays(
    source: Any,
    names: Sequence[str] | None,
    block_nbytes: int | str | None,
    storage_options: dict[str, Any] | None,
    asked: Mapping[str, bool],
) -> tuple[Any, str]:
    """Open labelled arrays; refuse what is asked of them that only frames have."""
    wrong = [name for name, is_asked in asked.items() if is_asked]
    if wrong:
        raise InputError(
            f"{', '.join(f'{name}=' for name in wrong)} is for frames, and the source is of labelled arrays: what "
            "opens them checks coordinates, units and types by itself. Leave it out."
        )
    return open_arrays(source, names, block_nbytes, storage_options)


def collected(source: Any, columns: Sequence[str] | None, asked: Contracted) -> tuple[Any, str]:
    """Open a source of any kind under its contract; give it, and what it is in a few words."""
    policy = policy_for(asked.on_violation, asked.workdir / "quarantine" / asked.name)
    if isinstance(asked.schema, str) and asked.schema != "infer":
        raise InputError(
            f"schema={asked.schema!r}: the only text allowed is 'infer'. Else give a pyarrow.Schema, a "
            "dpipe.Contract or a pandera DataFrameSchema."
        )
    if asked.schema is None and asked.on_violation != "raise":
        raise InputError(
            f"on_violation={asked.on_violation!r} needs a contract that can be broken: give schema=..., or 'infer'."
        )
    if isinstance(source, dd.DataFrame | da.Array):
        opened = source
        says = f"a {type(source).__name__} in {counted(source.npartitions, 'block')}"
    elif not isinstance(source, str | os.PathLike | Sequence):
        raise InputError(
            f"source is a {type(source).__name__}; it must be a Dask DataFrame or Array, or name files. Data in "
            "memory becomes lazy with dask.dataframe.from_pandas(frame, npartitions=...)."
        )
    elif _is_csv(source):
        early = columns if asked.schema is None else None
        opened = read_csv(
            source, columns=early, block_nbytes=asked.block_nbytes, storage_options=asked.storage_options
        )
        says = f"CSV files in {counted(opened.npartitions, 'block')}"
    else:
        made = _parquet(source, columns, asked, policy)
        return _chosen(made, columns), f"Parquet files in {counted(made.npartitions, 'block')}"
    if asked.schema is None:
        return opened, says
    contract = _contract(asked, lambda: inferred_from_frame(_frame(opened)._meta))
    asked.quarantine, asked.blocks = policy.quarantine, _labels(opened)
    return _chosen(enforce(_frame(opened), contract, policy), columns), says


def _parquet(source: Any, columns: Sequence[str] | None, asked: Contracted, policy: Any) -> dd.DataFrame:
    if asked.schema is None or (
        # a contract that could refuse nothing is the types to read
        isinstance(asked.schema, pa.Schema)
        and policy.on_violation == "raise"
        and all(item.nullable for item in asked.schema)
    ):
        return read_parquet(source, columns=columns, schema=asked.schema, **asked.reading)
    contract = _contract(
        asked,
        lambda: inferred_from_footers(
            source, storage_options=asked.storage_options, on_corrupt=asked.on_corrupt
        ),
    )
    asked.quarantine = policy.quarantine
    asked.files = source if asked.on_corrupt == "raise" else None
    skips = asked.on_corrupt == "skip"
    if isinstance(contract, Contract):
        made = read_contracted(source, contract, policy, **asked.reading)
        # what the footers prove is read unchecked, and nothing of it is refused
        asked.blocks = tuple(block_labels(made)) if is_checked(made) else ()
        asked.n_rows = _rows_of(made, skips=skips)
        return made
    plain = read_parquet(source, **asked.reading)
    asked.blocks, asked.n_rows = tuple(block_labels(plain)), _rows_of(plain, skips=skips)
    return enforce(plain, contract, policy)


def _contract(asked: Contracted, infer: Any) -> Any:
    """Give the contract that a stage is to keep, as `Contract` or as pandera's schema."""
    if isinstance(asked.schema, pa.Schema):
        return Contract(asked.schema)
    if not isinstance(asked.schema, str):
        return asked.schema
    known = read_contract(contract_path(asked.workdir, asked.name))
    if known is None:
        known = asked.frozen = infer()
    return known


def _frame(opened: Any) -> dd.DataFrame:
    if isinstance(opened, dd.DataFrame):
        return opened
    raise InputError(
        f"A contract is for the columns of a Dask DataFrame, and the source is a {type(opened).__name__}. "
        "Leave schema= out, or give a frame."
    )


def _labels(opened: Any) -> tuple[str, ...]:
    return tuple(block_labels(_frame(opened)))


def _rows_of(frame: dd.DataFrame, *, skips: bool) -> int | None:
    blocks = parquet_blocks(frame)
    return None if blocks is None or skips else sum(block.n_rows for block in blocks)


def _chosen(frame: Any, columns: Sequence[str] | None) -> Any:
    if columns is None or not isinstance(frame, dd.DataFrame):
        return frame
    check_columns(columns, frame.columns)
    return frame if list(frame.columns) == list(columns) else frame[list(columns)]


def _is_csv(source: Any) -> bool:
    entries = [source] if isinstance(source, str | os.PathLike) else list(source)
    return bool(entries) and all(str(entry).endswith((".csv", ".csv.gz")) for entry in entries)


def begin_collect(stage: Stage, session: Session) -> None:
    """Freeze what a collect stage has inferred, tell of drift, and forget what was refused of other blocks."""
    asked = stage.settings.get("contracted")
    if asked is None:
        return
    asked.listing.save()
    if asked.frozen is not None:
        write_contract(asked.frozen, contract_path(asked.workdir, asked.name))
    if asked.files is not None:
        _tell_of_drift(asked, session)
    if asked.quarantine is not None:
        asked.quarantine.keep_only(asked.blocks)


def _tell_of_drift(asked: Contracted, session: Session) -> None:
    found = drift(asked.files, storage_options=asked.storage_options)
    drifted = [file for file in found.files if file.changes]
    for file in drifted[:_MOST_DRIFTED]:
        session.note(f"{asked.name}: {file.path} differs from the other files: {'; '.join(file.changes)}.")
    if len(drifted) > _MOST_DRIFTED:
        session.note(
            f"{asked.name}: {len(drifted) - _MOST_DRIFTED:,} more files differ from the others; dpipe.drift tells how."
        )


def count_refused(stages: Sequence[Stage], session: Session, rows: Mapping[int, int]) -> None:
    """Say in the records of the collect stages how many rows were refused, and why, and check that none is missing.

    Parameters
    ----------
    stages : sequence of Stage
    session : Session
    rows : mapping of int to int
        Rows of collections by their `id`, as far as passes have counted them.

    Raises
    ------
    ConservationError
        If rows are neither in quarantine nor were counted by a pass.
    """
    for i, (stage, record) in enumerate(zip(stages, session.stages, strict=True)):
        asked = stage.settings.get("contracted")
        if asked is None or asked.quarantine is None:
            continue
        found = quarantined(asked.workdir, asked.name)
        kept = rows.get(id(stage.outputs[0]))
        why = "; ".join(f"{n:,} for {reason}" for reason, n in found.reasons.items())
        note = f"{record.note}; {found.rows:,} rows refused" + (f": {why}" if why else "")
        session.stages[i] = replace(record, rows_in=asked.n_rows, rows_out=kept, note=note)
        if kept is not None and asked.n_rows is not None and kept + found.rows != asked.n_rows:
            raise ConservationError(
                f"{stage.name}: the source has {asked.n_rows:,} rows, but {kept:,} were kept and {found.rows:,} "
                "refused. Files changed during the run, or the quarantine was cleared; run it again in another workdir."
            )
