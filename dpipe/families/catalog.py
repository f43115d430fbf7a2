"""All families together, and the table of what can be fitted."""

from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline

# imported for what they register
from dpipe.families import (
    bayes,
    centroid,
    covariance,
    decompose,
    dummy,
    encode,
    gradient,
    impute,
    linear,
    scale,
    select,
    stateless,
)
from dpipe.families.registry import registered

FAMILIES = (
    bayes,
    centroid,
    covariance,
    decompose,
    dummy,
    encode,
    gradient,
    impute,
    linear,
    scale,
    select,
    stateless,
)
_PASSES = {"stateless": "0", "merge": "1", "stream": "1 an epoch"}


@dataclass(frozen=True)
class EstimatorRow:
    """How one estimator class is fitted."""

    name: str
    module: str
    way: str
    passes: str
    exact: str


class EstimatorTable(tuple[EstimatorRow, ...]):
    """The rows of `estimators()`, printed as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        """Draw the table."""
        cells = [("estimator", "way", "passes", "same answer"), *map(_cells, self)]
        widths = [max(len(row[j]) for row in cells) for j in range(4)]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr>{''.join(f'<td>{text}</td>' for text in _cells(row))}</tr>" for row in self)
        return (
            f"<table><tr><th>estimator</th><th>way</th><th>passes</th><th>same answer</th></tr>{rows}</table>"
        )


def _cells(row: EstimatorRow) -> Sequence[str]:
    return row.name, row.way, row.passes, row.exact


def estimators() -> EstimatorTable:
    """List every estimator that dpipe can fit, how, and in how many passes.

    Returns
    -------
    tuple of EstimatorRow
        Sorted by name; prints as a table. Includes what was added with `register`.

    Examples
    --------
    >>> [row.passes for row in estimators() if row.name == "StandardScaler"]
    ['1']
    """
    rows = [
        EstimatorRow(cls.__name__, cls.__module__, way.kind, _PASSES[way.kind], way.exact)
        for cls, way in registered().items()
    ]
    rows += [
        EstimatorRow(
            cls.__name__, cls.__module__, "composite", "those of its parts, shared", "that of its parts"
        )
        for cls in (Pipeline, ColumnTransformer, FeatureUnion)
    ]
    return EstimatorTable(sorted(rows, key=lambda row: row.name))
