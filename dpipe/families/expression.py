"""Expressions: what a fit is fitted on, as a value computed from one block.

Frozen and hashable, so that two fits on the same input share its computation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import scipy.sparse as sp

from dpipe.blocks.matrix import (
    OneHot,
    RowOrder,
    RowWise,
    hstack,
    is_sparse,
    learner_matrix,
    stack_rows,
    to_matrix,
)
from dpipe.blocks.rows import Rows
from dpipe.blocks.side_by_side import SideBySide, side_by_side
from dpipe.blocks.table import Block, n_rows, one_column, select, take_rows
from dpipe.families.registry import Fitted


@dataclass(frozen=True)
class Raw:
    """X as it is read."""


@dataclass(frozen=True)
class Columns:
    """Some columns of another value, by position."""

    source: "Expression"
    positions: tuple[int, ...]
    flat: bool = False
    """Whether it is one column, as a series or an array of one dimension."""


@dataclass(frozen=True)
class Output:
    """What a fitted transformer makes of a value."""

    source: "Expression"
    fit: int
    """The transformer's place in the list of fits."""


@dataclass(frozen=True)
class Stack:
    """Values side by side: the output of a ColumnTransformer or a FeatureUnion."""

    parts: tuple["Expression", ...]
    fit: int


@dataclass(frozen=True)
class InFolds:
    """A value, and the fold of each of its rows: a pair."""

    source: "Expression"
    fit: int
    """The fit that has found the folds."""


Expression = Raw | Columns | Output | Stack | InFolds
RAW = Raw()


def needed_fits(expression: Expression) -> frozenset[int]:
    """List the fits that must be finished before an expression can be computed."""
    if isinstance(expression, Raw):
        return frozenset()
    if isinstance(expression, Columns):
        return needed_fits(expression.source)
    if isinstance(expression, Output | InFolds):
        return needed_fits(expression.source) | {expression.fit}
    return frozenset({expression.fit}).union(*map(needed_fits, expression.parts))


def needed_columns(expression: Expression) -> frozenset[int] | None:
    """List the raw columns that an expression reads, by position; None for all of them."""
    if isinstance(expression, Raw):
        return None
    if isinstance(expression, Columns) and isinstance(expression.source, Raw):
        return frozenset(expression.positions)
    if isinstance(expression, Columns | Output | InFolds):
        return needed_columns(expression.source)
    parts = [needed_columns(part) for part in expression.parts]
    if any(part is None for part in parts):
        return None
    return frozenset().union(*(part for part in parts if part is not None))


def narrowed(expression: Expression, position_of: Mapping[int, int]) -> Expression:
    """Rewrite an expression for a block of which only some raw columns were read."""
    if isinstance(expression, Columns):
        if isinstance(expression.source, Raw):
            return replace(expression, positions=tuple(position_of[j] for j in expression.positions))
        return replace(expression, source=narrowed(expression.source, position_of))
    if isinstance(expression, Output | InFolds):
        return replace(expression, source=narrowed(expression.source, position_of))
    if isinstance(expression, Stack):
        return Stack(tuple(narrowed(part, position_of) for part in expression.parts), expression.fit)
    return expression


def is_matrix(expression: Expression) -> bool:
    """Tell whether a value has rows and columns: not one dimension, and no folds beside it."""
    return not (isinstance(expression, InFolds) or (isinstance(expression, Columns) and expression.flat))


def evaluate(
    expression: Expression, rows: Rows, fitted: Mapping[int, Fitted], memo: dict[Any, Block]
) -> Block:
    """Compute an expression on one block; equal parts are computed once."""
    if isinstance(expression, Raw) and expression not in memo:
        return rows.X
    if expression not in memo:
        memo[expression] = _evaluate(expression, rows, fitted, memo)
    return memo[expression]


def _evaluate(
    expression: Expression, rows: Rows, fitted: Mapping[int, Fitted], memo: dict[Any, Block]
) -> Block:
    if isinstance(expression, Columns):
        source = evaluate(expression.source, rows, fitted, memo)
        value = written_out(source) if isinstance(source, SideBySide) else source
        if expression.flat:
            return one_column(value, expression.positions[0])
        return select(value, expression.positions)
    if isinstance(expression, Output):
        value = evaluate(expression.source, rows, fitted, memo)
        return apply(fitted[expression.fit], value)
    if isinstance(expression, InFolds):
        value = evaluate(expression.source, rows, fitted, memo)
        return written_out(value), fitted[expression.fit].estimator.of(rows.y, rows.at)
    assert isinstance(expression, Stack)
    parts = [evaluate(part, rows, fitted, memo) for part in expression.parts]
    return hstack(parts, sparse=_is_sparse(expression, fitted, parts))


def _is_sparse(stack: Stack, fitted: Mapping[int, Fitted], parts: Sequence[Block]) -> bool:
    # a FeatureUnion is sparse as soon as one part is; a ColumnTransformer decided when it was fitted
    return getattr(fitted[stack.fit].estimator, "sparse_output_", any(map(is_sparse, parts)))


def evaluate_in_parts(
    expression: Expression, rows: Rows, fitted: Mapping[int, Fitted], memo: dict[Any, Block]
) -> Block:
    """Compute a value for those who only multiply with it: one-hot codes are not written out."""
    if isinstance(expression, Stack) and expression not in memo:
        parts = [evaluate(part, rows, fitted, memo) for part in expression.parts]
        found = side_by_side(parts, sparse=_is_sparse(expression, fitted, parts))
        if found is not None:
            memo[expression] = found
    return evaluate(expression, rows, fitted, memo)


def evaluate_for_learner(
    expression: Expression, rows: Rows, fitted: Mapping[int, Fitted], order: RowOrder | None
) -> Block:
    """Compute what an ordered learner is given: a row-major array or CSR, its rows in a given order."""
    if not isinstance(expression, Stack):
        return learner_matrix(_by_rows(expression, rows, fitted), order)
    parts = [_by_rows(part, rows, fitted) for part in expression.parts]
    return stack_rows(parts, sparse=_is_sparse(expression, fitted, parts), order=order)


def _by_rows(expression: Expression, rows: Rows, fitted: Mapping[int, Fitted]) -> Block:
    """Leave a value to be computed a slice of rows at a time, if that makes no difference to it.

    What lies between its steps then stays in the processor's cache, and never takes a block's memory.
    """
    if not _is_row_wise(expression, fitted) or sp.issparse(rows.X):
        return evaluate(expression, rows, fitted, {})
    # what is computed by rows looks at X alone
    return RowWise(
        lambda some: evaluate(expression, Rows(take_rows(rows.X, some), None, None), fitted, {}),
        n_rows(rows.X),
    )


def _is_row_wise(expression: Expression, fitted: Mapping[int, Fitted]) -> bool:
    if not isinstance(expression, Output):
        return False
    made_by = fitted[expression.fit]
    source = expression.source
    read = isinstance(source, Raw) or (isinstance(source, Columns) and isinstance(source.source, Raw))
    return made_by.way.by_rows(made_by.estimator) and (read or _is_row_wise(source, fitted))


def written_out(value: Block) -> Block:
    """Write out one-hot codes; leave any other block as it is."""
    if isinstance(value, SideBySide):
        return value.written_out()
    return to_matrix(value) if isinstance(value, OneHot) else value


def apply(fitted: Fitted, value: Block) -> Block:
    """Transform one block with a fitted estimator: by its kernel, or by its own `transform`."""
    if fitted.way.transform is not None:
        return fitted.way.transform(fitted.plain, written_out(value))
    return fitted.plain.transform(to_matrix(value))
