"""All families together, and the table of what can be fitted."""

from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.utils import all_estimators

# imported for what they register
from dpipe.families import (
    bayes,
    bayesian,
    bisecting,
    boosting,
    centroid,
    cluster,
    covariance,
    cross_validated,
    decompose,
    discriminant,
    dummy,
    encode,
    glm,
    gradient,
    impute,
    labels,
    least_angle,
    linear,
    logistic,
    mixture,
    other_learners,
    power,
    quantile,
    records,
    scale,
    select,
    stateless,
    svm,
    target,
    text,
)
from dpipe.families.registry import registered, registered_by_name
from dpipe.families.unsupported import refusal_of

#: What the families above have registered, for those who need them to have been imported.
FAMILIES = frozenset(registered())
_HEAD = ("estimator", "way", "passes", "same answer, or why not")
_PASSES = {"stateless": "0", "merge": "1", "refine": "a few", "stream": "1 an epoch", "boost": "1 or 2"}


@dataclass(frozen=True)
class EstimatorRow:
    """How one estimator class is fitted."""

    name: str
    module: str
    way: str
    passes: str
    exact: str
    """What "the same answer" means for it; if there is no way, why not, and what would do instead."""


class EstimatorTable(tuple[EstimatorRow, ...]):
    """The rows of `estimators()`, printed as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        """Draw the table."""
        cells = [_HEAD, *map(_cells, self)]
        widths = [max(len(row[j]) for row in cells) for j in range(4)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in _cells(row))}</tr>" for row in self)
        head = "".join(f"<th>{cell}</th>" for cell in _HEAD)
        return f"<table><tr>{head}</tr>{rows}</table>"


def _cells(row: EstimatorRow) -> Sequence[str]:
    return row.name, row.way, row.passes, row.exact


def estimators() -> EstimatorTable:
    """List the estimators of scikit-learn: how each is fitted, in how many passes, or why not.

    Returns
    -------
    tuple of EstimatorRow
        Sorted by name, those without a way last; prints as a table. Includes what was added with
        `register`.

    Examples
    --------
    >>> [row.passes for row in estimators() if row.name == "StandardScaler"]
    ['1']
    """
    rows = [
        EstimatorRow(cls.__name__, cls.__module__, way.kind, _PASSES[way.kind], way.exact)
        for cls, way in registered().items()
        if cls is not quantile.Quantiles
    ]
    rows += [
        EstimatorRow(
            cls.__name__, cls.__module__, "composite", "those of its parts, shared", "that of its parts"
        )
        for cls in (Pipeline, ColumnTransformer, FeatureUnion)
    ]
    rows += [
        EstimatorRow(name, module, way.kind, _PASSES[way.kind], way.exact)
        for (module, name), way in registered_by_name().items()
    ]
    known = {row.name for row in rows}
    rows += [
        EstimatorRow(name, cls.__module__, way.kind, _PASSES[way.kind], way.exact)
        for name, cls in all_estimators()
        if name not in known and (way := other_learners.way_to_learn(cls)) is not None
    ]
    known = {row.name for row in rows}
    refused = [
        EstimatorRow(name, cls.__module__, "none", "-", _refused(cls))
        for name, cls in all_estimators()
        if name not in known
    ]
    return EstimatorTable(sorted(rows, key=lambda row: row.name) + refused)


def _refused(cls: type) -> str:
    why, instead = refusal_of(cls)
    return "; ".join(filter(None, [why, f"use {instead}" if instead else ""])) or "no way yet"
