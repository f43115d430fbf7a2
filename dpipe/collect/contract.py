"""Contracts: what the columns of a source promise, and which rows of a block break it.

Nothing here reads files or knows Dask: a block is an Arrow table. `dpipe.collect.enforce` applies
contracts to lazy frames, `dpipe.collect.quarantine` keeps the rows that were set apart.
"""

import base64
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dpipe.collect.parquet import plain_type
from dpipe.errors import ContractError, InputError

_FORMAT = 1
_MOST_EXAMPLES = 3


@dataclass(frozen=True)
class Contract:
    """What the columns of a source promise: names, types, nulls, categories.

    Parameters
    ----------
    schema : pyarrow.Schema
        Names and types; a field with ``nullable=False`` forbids nulls. In Parquet files NaN is a number, in
        pandas frames it is a null.
    categories : mapping of str to sequence, optional
        The only values that a column may have, beside null.
    strict : bool, default False
        Whether a source must have these columns with these very types, and no others. By default other columns
        are left out, a column that a file lacks is null, and types are cast.

    Raises
    ------
    InputError
        If the schema has no columns or one twice, or the categories do not fit it.

    Examples
    --------
    >>> rides = Contract(pa.schema([pa.field("kind", pa.string(), nullable=False)]), {"kind": ["day", "night"]})
    >>> rides.schema.names, rides.categories["kind"]
    (['kind'], ('day', 'night'))
    """

    schema: pa.Schema
    categories: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    strict: bool = False

    def __post_init__(self) -> None:
        """Check it, and make the categories plain tuples."""
        if not isinstance(self.schema, pa.Schema) or not self.schema.names:
            raise InputError(
                f"The schema of a contract is {self.schema!r}; it must be a pyarrow.schema of at least one column."
            )
        doubled = sorted({name for name in self.schema.names if self.schema.names.count(name) > 1})
        if doubled:
            raise InputError(
                f"The contract has several columns {', '.join(map(repr, doubled))}. Keep one of each."
            )
        object.__setattr__(self, "schema", self.schema.remove_metadata())
        object.__setattr__(self, "categories", {name: self._values(name) for name in self.categories})

    def _values(self, name: str) -> tuple[Any, ...]:
        values = self.categories[name]
        if name not in self.schema.names:
            raise InputError(
                f"categories: there is no column {name!r} in the contract. "
                f"It has: {', '.join(map(repr, self.schema.names))}."
            )
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(
                f"categories[{name!r}] is {values!r}; it must be a sequence of at least one value."
            )
        kind = plain_type(self.schema.field(name).type)
        try:
            pa.array(values, type=kind)
        except (pa.ArrowException, TypeError, ValueError) as err:
            raise InputError(f"categories[{name!r}] has values that are not {kind}: {err}.") from err
        return tuple(values)

    def to_json(self) -> str:
        """Write it as JSON: readable columns, and the exact types as Arrow's own message."""
        told = {
            "format": _FORMAT,
            "strict": self.strict,
            "columns": _told(self.schema),
            "categories": {name: list(values) for name, values in self.categories.items()},
            "arrow": base64.b64encode(self.schema.serialize()).decode(),
        }
        return json.dumps(told, indent=1)

    @classmethod
    def from_json(cls, text: str, where: str = "the contract") -> "Contract":
        """Read what `to_json` wrote.

        Raises
        ------
        ContractError
            If the text is broken, of another format, or was edited so that it contradicts itself.
        """
        try:
            told = json.loads(text)
            if told["format"] != _FORMAT:
                raise ValueError(f"format {told['format']!r} instead of {_FORMAT}")
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(told["arrow"], validate=True)))
            if _told(schema) != told["columns"]:
                raise ValueError("its columns and its Arrow schema differ: it was edited by hand")
            return cls(schema, told["categories"], bool(told["strict"]))
        except (ValueError, KeyError, TypeError, AttributeError, OSError, pa.ArrowException) as err:
            raise ContractError(
                f"{where} cannot be read as a contract: {type(err).__name__}: {err}. Delete it, so that the next run "
                "infers it again, or pass a pyarrow schema."
            ) from err


def _told(schema: pa.Schema) -> list[dict[str, Any]]:
    return [{"name": item.name, "type": str(item.type), "nullable": item.nullable} for item in schema]


def write_contract(contract: Contract, path: Path) -> None:
    """Freeze a contract into a file, whole or not at all; one that is there already is kept."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        made.write_text(contract.to_json(), encoding="utf-8")
        os.replace(made, path)
    finally:
        made.unlink(missing_ok=True)


def read_contract(path: Path) -> Contract | None:
    """Read a frozen contract; None if there is none yet.

    Raises
    ------
    ContractError
        If the file is broken.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as err:
        raise ContractError(f"{path} cannot be read as a contract: {err}. Repair or delete it.") from err
    return Contract.from_json(text, str(path))


@dataclass(frozen=True, eq=False)
class Broken:
    """One rule that some rows of a block break."""

    column: Any
    rule: str
    """Without values, so that counts of the same rule can be added."""
    rows: np.ndarray
    """Which rows, bool of shape (n_rows,)."""
    examples: tuple[Any, ...] = ()


def judged(table: pa.Table, contract: Contract, *, exact: bool) -> tuple[pa.Table, list[Broken]]:
    """Cast a block to its contract, and find the rows that break it.

    Parameters
    ----------
    table : pyarrow.Table
        With the columns of the contract, in any types.
    contract : Contract
    exact : bool
        Whether floats that lose digits break it, too.

    Returns
    -------
    pyarrow.Table, list of Broken
        The block as the contract says, null where a value cannot be cast; and what is broken.
    """
    columns, broken = [], []
    for item in contract.schema:
        given = table.column(item.name)
        made, lost = _cast_rows(given, plain_type(item.type), exact)
        columns.append(made)
        found = [(lost, f"{plain_type(given.type)} that cannot be cast to {item.type} unchanged")]
        if not item.nullable:
            found.append((_mask(given.is_null()), "null where the contract forbids it"))
        if item.name in contract.categories:
            found.append((_unseen(made, contract.categories[item.name]), "a category never seen"))
        broken += [
            Broken(item.name, rule, rows, _examples(given, rows))
            for rows, rule in found
            if rows is not None and rows.any()
        ]
    return pa.table(columns, names=contract.schema.names), broken


def arrow_rows(block: pd.DataFrame, label: str) -> pa.Table:
    """Convert the rows of a pandas block, which may hold objects of several kinds, to Arrow."""
    columns = []
    for _, values in block.items():
        try:
            columns.append(pa.chunked_array([pa.Array.from_pandas(values)]))
        except (pa.ArrowException, TypeError):  # objects of several kinds: their texts can be kept together
            texts = [
                None if missing else str(value) for value, missing in zip(values, values.isna(), strict=True)
            ]
            columns.append(pa.chunked_array([pa.array(texts, pa.string())]))
    if not columns:
        raise ContractError(f"{label} has no columns.")
    return pa.table(columns, names=[str(name) for name in block.columns])


def _mask(values: Any) -> np.ndarray:
    return values.to_numpy() if isinstance(values, pa.ChunkedArray) else values.to_numpy(zero_copy_only=False)


def _examples(column: pa.ChunkedArray, rows: np.ndarray) -> tuple[Any, ...]:
    """Give the first different values that break a rule."""
    found = column.take(pa.array(np.flatnonzero(rows)[:1000])).to_pylist()
    return tuple({repr(value): value for value in found}.values())[:_MOST_EXAMPLES]


def _unseen(column: pa.ChunkedArray, values: Sequence[Any]) -> np.ndarray:
    plain = _decoded(column)
    known = pc.is_in(plain, value_set=pa.array(values, type=plain.type))
    return ~_mask(known) & ~_mask(column.is_null())


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _cast_rows(
    column: pa.ChunkedArray, kind: pa.DataType, exact: bool
) -> tuple[pa.ChunkedArray, np.ndarray | None]:
    """Cast each value that can be; give the others as null, and where they are."""
    if plain_type(column.type) == kind:
        return column, None
    column = _decoded(column)
    try:
        made = column.cast(kind)
    except pa.ArrowNotImplementedError:  # there is no such cast for any value
        return pa.chunked_array([pa.nulls(len(column), kind)]), ~_mask(column.is_null())
    except pa.ArrowException:
        # each different value once: a column of millions of texts has few that fail in few ways
        bad = _uncastable(column.unique(), kind)
        rows = pc.is_in(column, value_set=bad)
        made = pc.if_else(rows, pa.scalar(None, column.type), column).cast(kind)
        return made, _mask(rows)
    if exact and pa.types.is_floating(kind) and pa.types.is_floating(column.type):
        before, after = _mask(column), _mask(made.cast(column.type))
        changed = (before != after) & ~(np.isnan(before) & np.isnan(after))
        return made, changed
    return made, None


def _uncastable(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Find the values that cannot be cast, by halves."""
    try:
        values.cast(kind)
    except pa.ArrowException:
        if len(values) == 1:
            return values
        half = len(values) // 2
        return pa.concat_arrays([_uncastable(values[:half], kind), _uncastable(values[half:], kind)])
    return values[:0]


def complaint(label: str, broken: Sequence[Broken]) -> str:
    """Say in one message what a block breaks, and what to do."""
    said = [
        f"column {item.column!r}: {item.rule}, in {int(item.rows.sum()):,} of {len(item.rows):,} rows"
        + (f" (such as {', '.join(map(repr, item.examples))})" if item.examples else "")
        for item in broken
    ]
    return (
        f"{label} breaks its contract: {'; '.join(said)}. Repair the data, change the contract, or set such rows "
        "apart: on_violation='quarantine'."
    )
