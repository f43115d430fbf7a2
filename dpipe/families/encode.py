"""OneHotEncoder and OrdinalEncoder: one pass, from the counts of the distinct values."""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from sklearn.base import clone
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from dpipe.blocks.matrix import OneHot
from dpipe.blocks.statistics import Nonzeros, ValueCounts
from dpipe.blocks.table import Block, Codes, codes, n_columns, n_rows
from dpipe.families import stand_in
from dpipe.families.registry import Derivation, Estimator, Meta, Way, add


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    counts: ValueCounts = stats[0]
    fitted = clone(estimator)
    if _groups(estimator):
        # the stand-in has each value once: which are rare must come from the real counts
        fitted._identify_infrequent = _RareByCounts(fitted, counts)
    fitted.fit(stand_in.of_values(counts, meta))
    vars(fitted).pop("_identify_infrequent", None)
    return fitted


def _groups(estimator: Estimator) -> bool:
    """Tell whether an encoder puts rare values together."""
    return estimator.min_frequency is not None or estimator.max_categories is not None


class _RareByCounts:
    """Stands in for the method by which an encoder finds its rare categories."""

    def __init__(self, fitted: Estimator, counts: ValueCounts) -> None:
        self.fitted = fitted
        self.counts = counts

    def __call__(self, category_count: np.ndarray, n_samples: int, col_idx: int) -> np.ndarray | None:
        found, n_missing = self.counts.counts[col_idx], self.counts.n_missing[col_idx]
        categories = self.fitted.categories_[col_idx].tolist()[: len(category_count)]
        real = [n_missing if _is_missing(value) else found.get(value, 0) for value in categories]
        find = type(self.fitted)._identify_infrequent
        return find(self.fitted, np.array(real), self.counts.n_rows, col_idx)


class _Lookup:
    """What an encoder makes of each value of one column, found out once: its categories stand in every block."""

    def __init__(self, categories: np.ndarray) -> None:
        self.categories = frozenset(categories.tolist())
        self.markers = frozenset(_marker(value) for value in categories[-2:].tolist() if _is_missing(value))
        self.rows: dict[Any, Any] = {}

    def keeps(self, key: Any) -> bool:
        """Tell whether a value may come again; there is no end of values that are no category."""
        return key in self.markers if isinstance(key, _Marker) else key in self.categories


class _Marker(Enum):
    """What stands for a missing value: NaN is no key of a dictionary, and not what None is."""

    NAN = "nan"
    NONE = "none"


def _marker(missing: Any) -> _Marker:
    return _Marker.NONE if missing is None else _Marker.NAN


_lookups: WeakKeyDictionary[Estimator, tuple[list[np.ndarray], dict[Any, list[_Lookup]]]] = (
    WeakKeyDictionary()
)


def _is_missing(value: Any) -> bool:
    return value is None or value != value


def _lookups_of(fitted: Estimator, dtypes: Sequence[np.dtype[Any]]) -> list[_Lookup]:
    """Give the look-ups of a fitted encoder for columns of these types (1 and True are equal keys)."""
    categories, by_types = _lookups.get(fitted, (None, {}))
    if categories is not fitted.categories_:  # it was fitted again
        by_types = {}
        _lookups[fitted] = (fitted.categories_, by_types)
    return by_types.setdefault(tuple(map(str, dtypes)), [_Lookup(found) for found in fitted.categories_])


def encoded(
    fitted: Estimator, block: Block, read: Callable[[np.ndarray], list[np.ndarray]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Encode the distinct values of each column of a block: codes into them, and what each becomes.

    The encoder itself transforms a small table of the values that it has not met yet, with all of its
    options. `read` takes the encoded table apart, into one entry a value for each column.
    """
    columns = [codes(block, j) for j in range(n_columns(block))]
    dtypes = [_dtype(column) for column in columns]
    lookups = _lookups_of(fitted, dtypes)
    used = [_used(column, lookup.categories) for column, lookup in zip(columns, lookups, strict=True)]
    keys = [
        [*values, _marker(column.missing)] if len(index) and index.min() < 0 else values
        for column, (index, values) in zip(columns, used, strict=True)
    ]
    new = [
        [key for key in mine if key not in lookup.rows] for mine, lookup in zip(keys, lookups, strict=True)
    ]
    found: list[dict[Any, Any]] = [{} for _ in columns]
    if any(new):
        asked = [unknown or mine[:1] for unknown, mine in zip(new, keys, strict=True)]
        values = [
            [column.missing if isinstance(key, _Marker) else key for key in mine]
            for column, mine in zip(columns, asked, strict=True)
        ]
        table = stand_in.padded(values, dtypes, getattr(fitted, "feature_names_in_", None))
        encoded = fitted.transform(table)
        parts = read(encoded.toarray() if hasattr(encoded, "toarray") else encoded)
        for lookup, mine, part, answer in zip(lookups, asked, parts, found, strict=True):
            answer.update(zip(mine, part.tolist(), strict=False))
            lookup.rows.update((key, row) for key, row in answer.items() if lookup.keeps(key))
    made = []
    for (index, _), mine, lookup, answer in zip(used, keys, lookups, found, strict=True):
        rows = [answer[key] if key in answer else lookup.rows[key] for key in mine]
        made.append((index, np.array(rows)))
    return made


def _dtype(column: Codes) -> np.dtype[Any]:
    floats = column.dtype.kind not in "fO" and bool(len(column.codes)) and column.codes.min() < 0
    return np.dtype("float64") if floats else column.dtype


def _used(column: Codes, categories: frozenset[Any]) -> tuple[np.ndarray, list[Any]]:
    """Leave out values that no row has, where the encoder does not know them; missing is -1, the last."""
    if categories.issuperset(column.values):
        return column.codes, column.values
    used = np.bincount(column.codes[column.codes >= 0], minlength=len(column.values)) > 0
    index = np.append(np.where(used, np.cumsum(used) - 1, -1), -1)
    return index[column.codes], [value for value, is_used in zip(column.values, used, strict=True) if is_used]


def _transform_one_hot(fitted: Estimator, block: Block) -> OneHot:
    widths = tuple(_output_widths(fitted))

    def read(encoded: np.ndarray) -> list[np.ndarray]:
        parts = np.split(encoded != 0, np.cumsum(widths)[:-1], axis=1)
        return [
            np.where(part.any(axis=1), part.argmax(axis=1), -1) if part.shape[1] else np.full(len(part), -1)
            for part in parts
        ]

    columns = encoded(fitted, block, read)
    out = np.empty((n_rows(block), len(columns)), dtype=np.int32, order="F")
    for j, (index, rows) in enumerate(columns):
        if len(index):
            np.take(rows.astype(np.int32), index, out=out[:, j], mode="wrap")  # -1 is the last: missing
    return OneHot(out, widths, np.dtype(fitted.dtype), fitted.sparse_output)


def _output_widths(fitted: Estimator) -> list[int]:
    widths = [len(categories) for categories in fitted.categories_]
    if _groups(fitted):
        rare = fitted.infrequent_categories_
        widths = [n if r is None else n - len(r) + 1 for n, r in zip(widths, rare, strict=True)]
    if fitted.drop_idx_ is None:
        return widths
    return [n - (drop is not None) for n, drop in zip(widths, fitted.drop_idx_, strict=True)]


def _transform_ordinal(fitted: Estimator, block: Block) -> np.ndarray:
    columns = encoded(fitted, block, lambda table: list(table.T))
    out = np.empty((n_rows(block), len(columns)), dtype=np.dtype(fitted.dtype), order="F")
    for j, (index, rows) in enumerate(columns):
        if len(index):
            out[:, j] = rows.astype(out.dtype)[index]
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
    if _groups(estimator) and estimator.drop is not None:
        return None  # a dropped category can stand for several values
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
        output=_output_one_hot,
    ),
)
add(
    OrdinalEncoder,
    Way("merge", _finish, lambda est: (ValueCounts,), _transform_ordinal, output=_output_ordinal),
)
