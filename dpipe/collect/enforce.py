"""Contracts on lazy frames: each block is checked by the task that reads it, in no pass of its own."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.dataframe.dask_expr.io.io import FromMap

from dpipe.blocks.table import table_to_pandas
from dpipe.collect.contract import Broken, Contract, arrow_rows, complaint, judged
from dpipe.collect.csv import CsvReader
from dpipe.collect.files import find_files
from dpipe.collect.footers import Footer, Listing, read_footers
from dpipe.collect.parquet import (
    BlockSpec,
    ParquetReader,
    block_limit,
    blocks_of_files,
    may_have_nulls,
    plain_type,
    read_parquet,
)
from dpipe.collect.quarantine import REASON, Quarantine
from dpipe.errors import ContractError, InputError

WAYS = ("raise", "quarantine", "coerce")


@dataclass(frozen=True)
class Policy:
    """What is done with rows that break a contract."""

    on_violation: str = "raise"
    quarantine: Quarantine | None = None

    def settle(self, label: str, rows: pa.Table, broken: Sequence[Broken]) -> np.ndarray:
        """Raise, or set the broken rows apart; give which rows are to be kept."""
        if self.quarantine is not None:
            return self.quarantine.put(label, rows, broken)
        if broken:
            raise ContractError(complaint(label, broken))
        return np.ones(rows.num_rows, dtype=bool)


def policy_for(on_violation: str, folder: str | os.PathLike[str]) -> Policy:
    """Make a policy; `folder` is where refused rows go.

    Raises
    ------
    InputError
        If there is no such way.
    """
    if on_violation not in WAYS:
        raise InputError(f"on_violation must be one of {', '.join(map(repr, WAYS))}, got {on_violation!r}.")
    apart = Quarantine(os.path.abspath(folder)) if on_violation == "quarantine" else None
    return Policy(on_violation, apart)


@dataclass(frozen=True)
class CheckedReader:
    """Decodes a block of a Parquet source and holds it against a contract."""

    reader: ParquetReader
    contract: Contract
    policy: Policy

    def __call__(self, block: BlockSpec) -> pd.DataFrame:
        """Read one block for Dask: the rows that keep the contract."""
        wanted = self.contract.schema.names
        found, given = self.reader.raw(block, wanted)
        lacking = pa.nulls(given.num_rows)
        columns = [
            given.column(spelled) if spelled else pa.chunked_array([lacking]) for spelled in found.values()
        ]
        raw = pa.table(columns, names=list(found))
        label = block_label(block)
        made, broken = judged(raw, self.contract, exact=self.policy.on_violation != "raise")
        keep = self.policy.settle(label, raw, broken)
        kept = made if keep.all() else made.filter(pa.array(keep))
        return table_to_pandas(self.reader.with_types(kept, block.path))


def block_label(block: BlockSpec) -> str:
    """Say which block this is, in words that are the same in every run.

    Examples
    --------
    >>> block_label(BlockSpec("/data/a.parquet", (0, 1, 2), 300))
    '/data/a.parquet, row groups 0-2'
    """
    path = block.path if "://" in block.path else os.path.abspath(block.path)
    if not block.row_groups:
        return f"{path}, without rows"
    return f"{path}, row groups {block.row_groups[0]}-{block.row_groups[-1]}"


def read_contracted(
    source: Any,
    contract: Contract,
    policy: Policy,
    *,
    block_nbytes: int | str | None = None,
    storage_options: dict[str, Any] | None = None,
    on_corrupt: str = "raise",
    listing: Listing | None = None,
) -> dd.DataFrame:
    """Open Parquet files under a contract, by reading their footers only.

    What the footers prove is not checked again: where they prove all, this is `read_parquet`.

    Parameters
    ----------
    source : path, glob, folder, URL, or a sequence of them
    contract : Contract
    policy : Policy
    block_nbytes, storage_options, on_corrupt
        As in `read_parquet`.
    listing : Listing, optional
        What is known of the footers already.

    Returns
    -------
    dask.dataframe.DataFrame
        Lazy, with the columns of the contract.

    Raises
    ------
    ContractError
        If the footers show that a file breaks the contract, and no row could be blamed or rows may not be set
        apart.
    SourceError
        As `read_parquet` does.
    """
    options = dict(storage_options or {})
    known = Listing() if listing is None else listing
    paths = find_files(source, options, ".parquet")
    plain = read_parquet(
        paths,
        schema=contract.schema,
        block_nbytes=block_nbytes,
        storage_options=options,
        on_corrupt=on_corrupt,
        listing=known,
    )
    paths, footers = read_footers(paths, options, on_corrupt, known)
    _check_footers(paths, footers, contract, policy)
    if not _needs_checking(footers, contract, policy):
        return plain
    types = _output_types(contract, footers)
    blocks = blocks_of_files(paths, footers, types, block_limit(block_nbytes, None))
    texts = tuple(item.name for item in types if pa.types.is_string(item.type))
    reader = CheckedReader(ParquetReader(types, texts, options, on_corrupt), contract, policy)
    meta = table_to_pandas(types.empty_table())
    return dd.from_map(reader, blocks, meta=meta, label="read-contracted", enforce_metadata=False)


def _check_footers(
    paths: Sequence[str], footers: Sequence[Footer], contract: Contract, policy: Policy
) -> None:
    """Refuse what metadata can tell: all files at once, each by its name."""
    said = []
    for path, footer in zip(paths, footers, strict=True):
        found = _wrong_columns(footer, contract, policy)
        said += [f"{path}: {'; '.join(found)}"] if found else []
    if said:
        more = f" (and {len(said) - 5} more files)" if len(said) > 5 else ""
        raise ContractError(
            f"The source breaks its contract. {' | '.join(said[:5])}{more}. Write these files again, leave them "
            "out of the source, or change the contract."
        )


def _wrong_columns(footer: Footer, contract: Contract, policy: Policy) -> list[str]:
    types = {item.name.lower(): plain_type(item.type) for item in footer.schema}
    lower = {name.lower() for name in contract.schema.names}
    has_rows = footer.metadata.num_rows > 0
    said = []
    if contract.strict:
        said += [
            f"it also has column {item.name!r}" for item in footer.schema if item.name.lower() not in lower
        ]
    for item in contract.schema:
        kind, wanted = types.get(item.name.lower()), plain_type(item.type)
        if kind is None:
            if contract.strict or (not item.nullable and has_rows):
                said.append(f"it lacks column {item.name!r}")
        elif (
            contract.strict
            and policy.on_violation == "raise"
            and kind != wanted
            and not pa.types.is_null(kind)
        ):
            said.append(f"column {item.name!r} is {kind} instead of {wanted}")
        elif not item.nullable and policy.quarantine is None and (nulls := _known_nulls(footer, item.name)):
            said.append(f"column {item.name!r} has {nulls:,} nulls, which the contract forbids")
    return said


def _known_nulls(footer: Footer, name: str) -> int:
    """Nulls of a column that the statistics show; 0 where they show nothing."""
    total = 0
    for group in range(footer.metadata.num_row_groups):
        row_group = footer.metadata.row_group(group)
        for j in range(row_group.num_columns):
            column = row_group.column(j)
            if column.path_in_schema.lower() == name.lower() and column.statistics is not None:
                total += (column.statistics.null_count or 0) if column.statistics.has_null_count else 0
    return total


def _needs_checking(footers: Sequence[Footer], contract: Contract, policy: Policy) -> bool:
    if contract.categories:
        return True
    for item in contract.schema:
        if not item.nullable and any(may_have_nulls(footer.metadata, item.name) for footer in footers):
            return True
        if policy.on_violation == "raise":
            continue  # what cannot be cast is refused by the reader
        for footer in footers:
            kinds = [plain_type(f.type) for f in footer.schema if f.name.lower() == item.name.lower()]
            if kinds and kinds[0] != plain_type(item.type):
                return True
    return False


def _output_types(contract: Contract, footers: Sequence[Footer]) -> pa.Schema:
    """Types that every block is given: pandas has no null among integers, so those are floats."""
    fields = []
    for item in contract.schema:
        kind = plain_type(item.type)
        if item.nullable and _narrow(kind) and any(may_have_nulls(f.metadata, item.name) for f in footers):
            kind = pa.float64()
        fields.append(pa.field(item.name, kind))
    return pa.schema(fields)


def _narrow(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def enforce(frame: dd.DataFrame, contract: Any, policy: Policy) -> dd.DataFrame:
    """Hold each block of a lazy frame against a contract, when it is computed.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
    contract : Contract or pandera.pandas.DataFrameSchema
    policy : Policy

    Returns
    -------
    dask.dataframe.DataFrame
        Lazy, with as many partitions; refused rows are missing, indexes stay.

    Raises
    ------
    ContractError
        If metadata shows that the frame breaks the contract.
    InputError
        If a pandera schema asks for what blocks cannot tell.
    """
    if not isinstance(frame, dd.DataFrame):
        raise InputError(
            f"A contract is for the columns of a Dask DataFrame, and the source is a {type(frame).__name__}."
        )
    if REASON in frame.columns:
        raise InputError(f"The source has a column {REASON!r}, which a quarantine adds itself. Rename it.")
    check: Any
    if isinstance(contract, Contract):
        check = FrameCheck(contract, policy, _checked_meta(frame._meta, contract, policy))
    else:
        from dpipe.collect.pandera_check import pandera_check

        check = pandera_check(contract, frame._meta, policy)
    labels = dd.from_map(_label_frame, block_labels(frame), meta=_label_frame(""), label="contract-label")
    return frame.map_partitions(
        check, labels, meta=check.meta, align_dataframes=False, enforce_metadata=False, token="contract"
    )


def block_labels(frame: dd.DataFrame) -> list[str]:
    """Name each partition: by its part of a file where it is read straight from Parquet or CSV, else by number.

    What others are appended to keeps its name.

    Nothing is computed.
    """
    blocks = parquet_blocks(frame)
    if blocks is not None:
        return [block_label(block) for block in blocks]
    for found in frame.expr.find_operations(FromMap):
        texts = found.operand("iterables")[0]
        if isinstance(found.operand("func"), CsvReader) and len(texts) == frame.npartitions:
            return [f"{block.path}, from byte {block.start:,} on" for block in texts]
    return [f"block {j} of {frame.npartitions}" for j in range(frame.npartitions)]


def parquet_blocks(frame: dd.DataFrame) -> list[BlockSpec] | None:
    """Give the parts of Parquet files that the partitions of a frame are read from; None if it is read otherwise."""
    for found in frame.expr.find_operations(FromMap):
        reader, blocks = found.operand("func"), found.operand("iterables")[0]
        if isinstance(reader, ParquetReader | CheckedReader) and len(blocks) == frame.npartitions:
            return list(blocks)
    return None


def is_checked(frame: dd.DataFrame) -> bool:
    """Tell whether a frame that `read_contracted` gave is checked while it is read."""
    return any(
        isinstance(found.operand("func"), CheckedReader) for found in frame.expr.find_operations(FromMap)
    )


def _label_frame(label: str) -> pd.DataFrame:
    return pd.DataFrame({"label": [label]})


@dataclass(frozen=True, eq=False)
class FrameCheck:
    """Holds one pandas block against a contract of Arrow types."""

    contract: Contract
    policy: Policy
    meta: pd.DataFrame

    def __call__(self, block: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
        """Give the rows that keep the contract."""
        label = labels["label"].iloc[0]
        raw = arrow_rows(block[self.contract.schema.names], label)
        made, broken = judged(raw, self.contract, exact=self.policy.on_violation != "raise")
        keep = self.policy.settle(label, raw, broken)
        kept = table_to_pandas(made if keep.all() else made.filter(pa.array(keep))).astype(
            self.meta.dtypes.to_dict()
        )
        return kept.set_axis(block.index[keep], axis=0)


def _checked_meta(meta: pd.DataFrame, contract: Contract, policy: Policy) -> pd.DataFrame:
    """Compare the columns, and give the empty frame of what comes out."""
    missing = [name for name in contract.schema.names if name not in meta.columns]
    extra = [name for name in meta.columns if name not in contract.schema.names] if contract.strict else []
    said = [f"it lacks column {name!r}" for name in missing] + [
        f"it also has column {name!r}" for name in extra
    ]
    if contract.strict and policy.on_violation == "raise" and not missing:
        given = inferred_from_frame(meta[contract.schema.names]).schema
        said += [
            f"column {item.name!r} is {given.field(item.name).type} instead of {plain_type(item.type)}"
            for item in contract.schema
            if given.field(item.name).type != plain_type(item.type) and meta[item.name].dtype != object
        ]
    if said:
        raise ContractError(
            f"The source breaks its contract: {'; '.join(said)}. Change the source, or change the contract."
        )
    types = pa.schema(
        [
            # what is an integer in the source has no nulls; elsewhere pandas needs a float for them
            item.with_type(pa.float64())
            if item.nullable
            and _narrow(item.type)
            and getattr(meta[item.name].dtype, "kind", "O") not in "iub"
            else item.with_type(plain_type(item.type))
            for item in contract.schema
        ]
    )
    return table_to_pandas(types.empty_table()).set_axis(meta.index, axis=0)


def inferred_from_frame(meta: pd.DataFrame) -> Contract:
    """Infer a contract from the columns of a frame: names and types; nulls are allowed.

    Raises
    ------
    InputError
        If a column holds objects, whose type only the data would tell.
    """
    vague = [name for name, dtype in meta.dtypes.items() if pd.api.types.is_object_dtype(dtype)]
    if vague:
        raise InputError(
            f"schema='infer': the type of {', '.join(map(repr, vague))} is object, which says nothing. Give these "
            "columns a type, or pass a pyarrow schema."
        )
    schema = pa.Schema.from_pandas(meta, preserve_index=False)
    return Contract(pa.schema([item.with_type(plain_type(item.type)) for item in schema]), strict=True)


def inferred_from_footers(
    source: Any, *, storage_options: dict[str, Any] | None = None, on_corrupt: str = "raise"
) -> Contract:
    """Infer a strict contract from Parquet footers: a column without any null so far may have none later.

    Raises
    ------
    SourceError
        As `read_parquet` does; files must agree in their types.
    """
    options = dict(storage_options or {})
    plain = read_parquet(source, storage_options=options, on_corrupt=on_corrupt)
    _, footers = read_footers(find_files(source, options, ".parquet"), options, on_corrupt)
    nulls = {name: any(may_have_nulls(f.metadata, name) for f in footers) for name in plain.columns}
    first = {
        item.name: plain_type(item.type) for footer in footers for item in footer.schema if not _is_null(item)
    }
    fields = [pa.field(name, first.get(name, pa.null()), nullable=nulls[name]) for name in plain.columns]
    return replace(Contract(pa.schema(fields)), strict=True)


def _is_null(item: pa.Field) -> bool:
    return bool(pa.types.is_null(item.type))


def contract_path(workdir: Path, name: str) -> Path:
    """Name the file that a contract is frozen in."""
    return workdir / "contracts" / f"{name}.json"
