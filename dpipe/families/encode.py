"""OneHotEncoder and OrdinalEncoder: one pass, from the counts of the distinct values."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from dpipe.blocks.matrix import OneHot
from dpipe.blocks.statistics import Nonzeros, ValueCounts
from dpipe.blocks.table import Block, Codes, codes, n_columns
from dpipe.errors import UnsupportedEstimatorError
from dpipe.families import stand_in
from dpipe.families.registry import Derivation, Estimator, Meta, Way, add


def _check(estimator: Estimator) -> None:
    for name in ("min_frequency", "max_categories"):
        if getattr(estimator, name, None) is not None:
            raise UnsupportedEstimatorError(
                f"{type(estimator).__name__}({name}={getattr(estimator, name)!r}) cannot be fitted block by "
                f"block. Use {name}=None."
            )


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    counts: ValueCounts = stats[0]
    return clone(estimator).fit(stand_in.of_values(counts, meta))


def _distinct(fitted: Estimator, block: Block) -> tuple[list[np.ndarray], Any]:
    """Codes of each column into the rows of a small table of the distinct values of this block.

    The encoder itself then transforms that table, with all of its options, instead of the block.
    """
    found, columns, dtypes = [], [], []
    for j in range(n_columns(block)):
        column = codes(block, j)
        index, values = _used(column, fitted.categories_[j])
        if len(index) and index.min() < 0:
            index = np.where(index < 0, len(values), index)
            values = [*values, column.missing]
        found.append(index)
        columns.append(values)
        floats = column.dtype.kind not in "fO" and bool(len(column.codes)) and column.codes.min() < 0
        dtypes.append(np.dtype("float64") if floats else column.dtype)
    names = getattr(fitted, "feature_names_in_", None)
    return found, stand_in.padded(columns, dtypes, names)


def _used(column: Codes, categories: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    """Leave out values that no row has, where the encoder does not know them."""
    if set(categories.tolist()).issuperset(column.values):
        return column.codes, column.values
    used = np.bincount(column.codes[column.codes >= 0], minlength=len(column.values)) > 0
    index = np.append(np.where(used, np.cumsum(used) - 1, -1), -1)
    return index[column.codes], [value for value, is_used in zip(column.values, used, strict=True) if is_used]


def _transform_one_hot(fitted: Estimator, block: Block) -> OneHot:
    found, table = _distinct(fitted, block)
    encoded = fitted.transform(table)
    encoded = encoded.toarray() if hasattr(encoded, "toarray") else encoded
    widths = tuple(_output_widths(fitted))
    out = np.empty((len(found[0]), len(found)), dtype=np.int32, order="F")
    start = 0
    for j, (index, width) in enumerate(zip(found, widths, strict=True)):
        part = encoded[:, start : start + width] != 0
        code = np.where(part.any(axis=1), part.argmax(axis=1), -1) if width else np.full(len(part), -1)
        out[:, j] = code.astype(np.int32)[index]
        start += width
    return OneHot(out, widths, np.dtype(fitted.dtype), fitted.sparse_output)


def _output_widths(fitted: Estimator) -> list[int]:
    dropped = fitted.drop_idx_
    if dropped is None:
        return [len(categories) for categories in fitted.categories_]
    return [
        len(categories) - (drop is not None)
        for categories, drop in zip(fitted.categories_, dropped, strict=True)
    ]


def _transform_ordinal(fitted: Estimator, block: Block) -> np.ndarray:
    found, table = _distinct(fitted, block)
    encoded = fitted.transform(table)
    out = np.empty((len(found[0]), len(found)), dtype=encoded.dtype, order="F")
    for j, index in enumerate(found):
        out[:, j] = encoded[:, j][index]
    return out


def _one_hot_nonzeros(fitted: Estimator, counts: ValueCounts) -> Nonzeros:
    """Every row stores one entry a column, less those of the dropped category."""
    dropped = 0
    if fitted.drop_idx_ is not None:
        for categories, drop, column, n_missing in zip(
            fitted.categories_, fitted.drop_idx_, counts.counts, counts.n_missing, strict=True
        ):
            if drop is not None:
                value = categories[drop]
                value = value.item() if isinstance(value, np.generic) else value
                dropped += n_missing if value != value or value is None else column.get(value, 0)
    return Nonzeros(counts.n_rows, counts.n_rows * len(counts.counts) - dropped)


def _nonzeros_rule(estimator: Estimator) -> Derivation | None:
    return Derivation(ValueCounts, _one_hot_nonzeros, "one entry a row and column")


def _output_one_hot(estimator: Estimator, meta: Meta) -> Meta:
    return Meta(n_columns=None, dtype=np.dtype(estimator.dtype), sparse=estimator.sparse_output)


def _output_ordinal(estimator: Estimator, meta: Meta) -> Meta:
    return Meta(n_columns=meta.width, dtype=np.dtype(estimator.dtype))


add(
    OneHotEncoder,
    Way(
        "merge",
        _finish,
        lambda est: (ValueCounts,),
        _transform_one_hot,
        {Nonzeros: _nonzeros_rule},
        _check,
        _output_one_hot,
    ),
)
add(
    OrdinalEncoder,
    Way("merge", _finish, lambda est: (ValueCounts,), _transform_ordinal, {}, _check, _output_ordinal),
)
