"""Pandera schemas as contracts: each block is validated by pandera itself, row by row."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dpipe.collect.contract import Broken, arrow_rows
from dpipe.errors import ContractError, InputError


@dataclass(frozen=True, eq=False)
class PanderaCheck:
    """Holds one pandas block against a pandera schema."""

    schema: Any
    policy: Any
    meta: pd.DataFrame

    def __call__(self, block: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
        """Give the rows that keep the contract, as pandera gives them."""
        label = labels["label"].iloc[0]
        index = block.index
        rows = block.reset_index(drop=True)
        broken: list[Broken] = []
        keep = np.ones(len(rows), dtype=bool)
        made = None
        while made is None:  # some checks are made only once the values that cannot be coerced are gone
            made, found = _validated(self.schema, rows[keep], label, len(rows))
            broken += found
            for item in found:
                keep &= ~item.rows
            if found and self.policy.quarantine is None:
                break
        keep = self.policy.settle(label, arrow_rows(rows, label), broken)
        assert made is not None
        return made.astype(self.meta.dtypes.to_dict()).set_axis(index[keep], axis=0)


def pandera_check(schema: Any, meta: pd.DataFrame, policy: Any) -> PanderaCheck:
    """Check a pandera schema by itself and against the columns of a frame; nothing is computed.

    Raises
    ------
    InputError
        If it is no pandera schema, pandera is not installed, or it asks for what blocks cannot tell.
    ContractError
        If the frame lacks a column, has one too many, or has one of another type.
    """
    try:
        import pandera.pandas as pandera
    except ImportError as err:
        raise InputError(
            f"schema is a {type(schema).__name__}; it must be a pyarrow.Schema, a dpipe.Contract, 'infer', or a "
            "pandera DataFrameSchema, for which pandera is missing: pip install 'dpipe[contracts]'."
        ) from err
    if not isinstance(schema, pandera.DataFrameSchema):
        raise InputError(
            f"schema is a {type(schema).__module__}.{type(schema).__name__}; it must be a pyarrow.Schema, a "
            "dpipe.Contract, 'infer', or a pandera.pandas.DataFrameSchema (Model.to_schema() gives one)."
        )
    unfit = _unfit(schema)
    if unfit:
        raise InputError(
            f"The pandera schema has {', '.join(unfit)}, which cannot be kept block by block. Take it out of the "
            "schema, and do it in a step of its own (pipe.preprocess)."
        )
    schema = copy.deepcopy(schema)
    if policy.on_violation == "coerce":
        schema.coerce = True
    said = _wrong_columns(schema, meta)
    if said:
        raise ContractError(
            f"The source breaks its contract: {'; '.join(said)}. Change the source or the contract, or let pandera "
            "cast: coerce=True in the schema, or on_violation='coerce'."
        )
    return PanderaCheck(schema, policy, _coerced_meta(schema, meta))


def _unfit(schema: Any) -> list[str]:
    """List settings that need all rows at once, or that change or drop rows in silence."""
    found = {
        "unique=...": schema.unique,
        "an index": schema.index is not None,
        "parsers": schema.parsers,
        "drop_invalid_rows=True": schema.drop_invalid_rows,
        "add_missing_columns=True": schema.add_missing_columns,
        "strict='filter'": schema.strict == "filter",
    }
    said = [name for name, there in found.items() if there]
    for name, column in schema.columns.items():
        own = {
            "unique=True": column.unique,
            "parsers": column.parsers,
            "drop_invalid_rows=True": column.drop_invalid_rows,
            "a default": column.default is not None,
        }
        said += [f"{what} in column {name!r}" for what, there in own.items() if there]
    return said


def _wrong_columns(schema: Any, meta: pd.DataFrame) -> list[str]:
    from pandera.engines.pandas_engine import Engine

    said, known = [], set()
    for name, column in schema.columns.items():
        if column.regex:
            known |= {given for given in meta.columns if pd.Series([str(given)]).str.match(name).all()}
        elif name not in meta.columns:
            said += [f"it lacks column {name!r}"] if column.required else []
        else:
            known.add(name)
            coerced = schema.coerce or column.coerce or column.dtype is None
            if (
                not coerced
                and meta[name].dtype != object
                and not column.dtype.check(Engine.dtype(meta[name].dtype))
            ):
                said.append(f"column {name!r} is {meta[name].dtype} instead of {column.dtype}")
    extra = [name for name in meta.columns if name not in known] if schema.strict else []
    return said + [f"it also has column {name!r}" for name in extra]


def _coerced_meta(schema: Any, meta: pd.DataFrame) -> pd.DataFrame:
    """Give the empty frame of what pandera gives; checks are not asked, as they may not like an empty one."""
    try:
        made: pd.DataFrame = schema.coerce_dtype(meta.iloc[:0])
    except Exception as err:  # pandera raises what the types raise
        raise ContractError(
            f"The source cannot be cast as the pandera schema says: {type(err).__name__}: {err}. Change the types "
            "in the schema."
        ) from err
    return made


def _validated(
    schema: Any, rows: pd.DataFrame, label: str, n_rows: int
) -> tuple[pd.DataFrame | None, list[Broken]]:
    """Let pandera validate rows; give what it made of them, or which rows break what."""
    from pandera.errors import SchemaErrors

    if rows.empty:
        return schema.coerce_dtype(rows), []
    try:
        return schema.validate(rows, lazy=True), []
    except SchemaErrors as err:
        cases: pd.DataFrame = err.failure_cases
    except Exception as err:
        raise ContractError(
            f"{label}: pandera cannot validate this block: {type(err).__name__}: {err}. Repair the schema or the data."
        ) from err
    whole, cases = cases[cases["index"].isna()], cases[cases["index"].notna()]
    # a check of a whole column fails, too, as long as some of its values could not be cast
    if cases.empty:
        raise ContractError(f"{label} breaks its contract as a whole, not in some rows: {_told(whole)}.")
    broken = []
    for (column, check), group in cases.groupby(["column", "check"], sort=False, dropna=False):
        refused = np.zeros(n_rows, dtype=bool)
        refused[group["index"].astype(int).to_numpy()] = True
        examples = tuple({repr(value): value for value in group["failure_case"]}.values())[:3]
        broken.append(Broken(column, f"fails {check}", refused, examples))
    return None, broken


def _told(cases: pd.DataFrame) -> str:
    rows: Sequence[tuple[Any, Any, Any]] = list(
        cases[["column", "check", "failure_case"]].itertuples(index=False, name=None)
    )
    said = [f"column {column!r} fails {check} ({case})" for column, check, case in rows[:3]]
    return "; ".join(said) + (
        ". No row could be set apart for that; repair the file, or ask for it by rows in the schema"
    )
