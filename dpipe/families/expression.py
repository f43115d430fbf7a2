"""Expressions: what a fit is fitted on, as a value computed from one block.

Frozen and hashable, so that two fits on the same input share its computation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpipe.blocks.matrix import OneHot, hstack, is_sparse, learner_matrix, to_matrix
from dpipe.blocks.table import Block, select
from dpipe.families.registry import Fitted


@dataclass(frozen=True)
class Raw:
    """X as it is read."""


@dataclass(frozen=True)
class Columns:
    """Some columns of another value, by position."""

    source: "Expression"
    positions: tuple[int, ...]


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


Expression = Raw | Columns | Output | Stack
RAW = Raw()


def needed_fits(expression: Expression) -> frozenset[int]:
    """List the fits that must be finished before an expression can be computed."""
    if isinstance(expression, Raw):
        return frozenset()
    if isinstance(expression, Columns):
        return needed_fits(expression.source)
    if isinstance(expression, Output):
        return needed_fits(expression.source) | {expression.fit}
    return frozenset({expression.fit}).union(*map(needed_fits, expression.parts))


def needed_columns(expression: Expression) -> frozenset[int] | None:
    """List the raw columns that an expression reads, by position; None for all of them."""
    if isinstance(expression, Raw):
        return None
    if isinstance(expression, Columns) and isinstance(expression.source, Raw):
        return frozenset(expression.positions)
    if isinstance(expression, Columns | Output):
        return needed_columns(expression.source)
    parts = [needed_columns(part) for part in expression.parts]
    if any(part is None for part in parts):
        return None
    return frozenset().union(*(part for part in parts if part is not None))


def narrowed(expression: Expression, position_of: Mapping[int, int]) -> Expression:
    """Rewrite an expression for a block of which only some raw columns were read."""
    if isinstance(expression, Columns):
        if isinstance(expression.source, Raw):
            return Columns(RAW, tuple(position_of[j] for j in expression.positions))
        return Columns(narrowed(expression.source, position_of), expression.positions)
    if isinstance(expression, Output):
        return Output(narrowed(expression.source, position_of), expression.fit)
    if isinstance(expression, Stack):
        return Stack(tuple(narrowed(part, position_of) for part in expression.parts), expression.fit)
    return expression


def evaluate(
    expression: Expression, block: Block, fitted: Mapping[int, Fitted], memo: dict[Any, Block]
) -> Block:
    """Compute an expression on one block; equal parts are computed once."""
    if isinstance(expression, Raw):
        return block
    if expression not in memo:
        memo[expression] = _evaluate(expression, block, fitted, memo)
    return memo[expression]


def _evaluate(
    expression: Expression, block: Block, fitted: Mapping[int, Fitted], memo: dict[Any, Block]
) -> Block:
    if isinstance(expression, Columns):
        return select(evaluate(expression.source, block, fitted, memo), expression.positions)
    if isinstance(expression, Output):
        value = evaluate(expression.source, block, fitted, memo)
        return apply(fitted[expression.fit], value)
    assert isinstance(expression, Stack)
    return _stacked(expression, block, fitted, memo, None)


def _stacked(
    stack: Stack, block: Block, fitted: Mapping[int, Fitted], memo: dict[Any, Block], order: np.ndarray | None
) -> Block:
    parts = [evaluate(part, block, fitted, memo) for part in stack.parts]
    # a FeatureUnion is sparse as soon as one part is; a ColumnTransformer decided when it was fitted
    sparse = getattr(fitted[stack.fit].estimator, "sparse_output_", any(map(is_sparse, parts)))
    return hstack(parts, sparse=sparse, order=order)


def evaluate_for_learner(
    expression: Expression, block: Block, fitted: Mapping[int, Fitted], order: np.ndarray | None
) -> Block:
    """Compute what an ordered learner is given: a row-major array or CSR, its rows in a given order."""
    if isinstance(expression, Stack) and order is not None:
        return learner_matrix(_stacked(expression, block, fitted, {}, order))
    return learner_matrix(evaluate(expression, block, fitted, {}), order)


def written_out(value: Block) -> Block:
    """Write out one-hot codes; leave any other block as it is."""
    return to_matrix(value) if isinstance(value, OneHot) else value


def apply(fitted: Fitted, value: Block) -> Block:
    """Transform one block with a fitted estimator: by its kernel, or by its own `transform`."""
    if fitted.way.transform is not None:
        return fitted.way.transform(fitted.estimator, written_out(value))
    return fitted.estimator.transform(to_matrix(value))
