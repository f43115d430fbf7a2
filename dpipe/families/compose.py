"""Pipeline, ColumnTransformer and FeatureUnion: flattened into single fits, and put together again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from dask.dataframe.utils import meta_nonempty
from sklearn.base import BaseEstimator, clone
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import has_fit_parameter

from dpipe.blocks.statistics import Nonzeros
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families.expression import RAW, Columns, Expression, InFolds, Output, Stack
from dpipe.families.registry import CustomWant, Estimator, Fitted, Meta, Unweighted, Way, Weighted, way_of


@dataclass(frozen=True, eq=False)
class Fit:
    """One estimator of the tree: what it is fitted on, how, and what it waits for."""

    index: int
    name: str
    """Its path in the tree, such as "pipeline / columntransformer / num / standardscaler"."""
    estimator: Estimator
    source: Expression
    meta: Meta
    way: Way
    children: tuple[int | None, ...] = ()
    """The parts of a composite, in order; None for "passthrough" and "drop"."""
    wants: tuple[tuple[Any, Expression], ...] = ()
    """Statistics that it needs, each of some value."""
    is_leaf: bool = True
    sparse_children: tuple[int, ...] = ()
    """Which of the children give sparse matrices; `wants` asks for the density of each."""
    widths: tuple[int | None, ...] = ()
    """Output columns of each part, where they are known beforehand."""
    weighted: bool = False
    """Whether it is given the weights of the rows."""


@dataclass(frozen=True)
class Walk:
    """A whole estimator, flattened: its fits, each after those that it waits for."""

    fits: tuple[Fit, ...]
    root: int
    output: Expression


def walk(estimator: Estimator, meta: Meta, *, weighted: bool = False) -> Walk:
    """Flatten an estimator into its single fits.

    Weights go to the estimator itself, or to the last step of a pipeline; transformers on the way see
    every row once. That is what ``pipeline.fit(X, y, last__sample_weight=w)`` does.

    Raises
    ------
    UnsupportedEstimatorError
        If a part of it cannot be fitted block by block.
    InputError
        If a ColumnTransformer selects columns that do not exist, or weights have no taker.
    """
    fits: list[Fit] = []
    root, output, _ = _visit(estimator, RAW, meta, type(estimator).__name__, fits)
    if weighted:
        last = _taker_of_weights(fits, root)
        wants = tuple((weighted_want(want), value) for want, value in fits[last].wants)
        fits[last] = replace(fits[last], wants=wants, weighted=True)
    return Walk(tuple(map(_without_marks, fits)), root, output)


def _without_marks(fit: Fit) -> Fit:
    wants = ((want.want if isinstance(want, Unweighted) else want, value) for want, value in fit.wants)
    return replace(fit, wants=tuple(wants))


def _taker_of_weights(fits: Sequence[Fit], root: int) -> int:
    fit = fits[root]
    while isinstance(fit.estimator, Pipeline) and fit.children[-1] is not None:
        fit = fits[fit.children[-1]]
    registered = any(isinstance(want, CustomWant) for want, _ in fit.wants)
    if fit.is_leaf and fit.way.takes_weights is not None:
        takes = fit.way.takes_weights(fit.estimator)
    else:
        takes = fit.is_leaf and (registered or has_fit_parameter(fit.estimator, "sample_weight"))
    if not takes:
        raise InputError(f"{type(fit.estimator).__name__} takes no sample_weight. Leave the weights out.")
    return fit.index


def weighted_want(want: Any) -> Any:
    """Have a statistic given the weights, unless it counts every row once."""
    if isinstance(want, Unweighted):
        return want.want
    counts_rows = getattr(want, "of_y", False) and not getattr(want, "takes_weights", False)
    return want if counts_rows else Weighted(want)


def _unused(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    raise AssertionError("a composite is finished from its parts")


_COMPOSITE = Way("merge", _unused)

_Visited = tuple[int, Expression, Meta]


def _visit(est: Estimator, source: Expression, meta: Meta, name: str, fits: list[Fit]) -> _Visited:
    if isinstance(est, Pipeline):
        return _visit_pipeline(est, source, meta, name, fits)
    if isinstance(est, ColumnTransformer):
        return _visit_columns(est, source, meta, name, fits)
    if isinstance(est, FeatureUnion):
        return _visit_union(est, source, meta, name, fits)
    way = way_of(est)
    if way.of_labels and " / " in name:
        raise InputError(
            f"{name}: {type(est).__name__} takes labels, and no place in a pipeline. Use an OrdinalEncoder or a "
            "OneHotEncoder for a column of X; labels that are given as y need no encoding."
        )
    source = _in_its_dimensions(way, source, meta, name)
    wants = tuple((want, source) for want in way.wants(est))
    fit = Fit(len(fits), name, est, source, meta, way, wants=wants)
    fits.append(fit)
    return fit.index, Output(source, fit.index), way.output(est, meta)


def _in_its_dimensions(way: Way, source: Expression, meta: Meta, name: str) -> Expression:
    """Give an estimator its X as one column or as a table, whichever it takes."""
    flat = isinstance(source, Columns) and source.flat
    if way.one_dimensional and not flat:
        if meta.one_dimensional:
            return Columns(source, (0,), flat=True)
        raise InputError(
            f"{name} takes one column, of one dimension, but is given a table. Pass a series, as X['review'], or "
            "name the column without a list in a ColumnTransformer: (transformer, 'review')."
        )
    if flat and not way.one_dimensional:
        raise InputError(
            f"{name}: a column that is named without a list is a series, but columns are needed. Write "
            f"{_listed(source, meta)}."
        )
    if meta.one_dimensional and meta.frame is None and meta.dtype.kind in "OSU" and not way.one_dimensional:
        raise InputError(
            f"{name} takes a table, but X is one column of texts, lists or records; it must be a Dask DataFrame or "
            "Array, a pandas DataFrame or a NumPy array of two dimensions."
        )
    return source


def _listed(source: Expression, meta: Meta) -> str:
    name = meta.frame.columns[0] if meta.frame is not None else getattr(source, "positions", (0,))[0]
    return f"[{name!r}]"


def _visit_pipeline(est: Pipeline, source: Expression, meta: Meta, name: str, fits: list[Fit]) -> _Visited:
    children: list[int | None] = []
    value, shape = source, meta
    for step_name, step in est.steps:
        if step is None or (isinstance(step, str) and step == "passthrough"):
            children.append(None)
            continue
        value = _fitted_on(value, fits)
        child, value, shape = _visit(step, value, shape, f"{name} / {step_name}", fits)
        children.append(child)
    fit = Fit(len(fits), name, est, source, meta, _COMPOSITE, tuple(children), is_leaf=False)
    fits.append(fit)
    return fit.index, value, shape


def _fitted_on(value: Expression, fits: list[Fit]) -> Expression:
    """Give what the next step is fitted on, which of some transformers is not the output of `transform`."""
    if isinstance(value, Stack):
        return replace(value, parts=tuple(_fitted_on(part, fits) for part in value.parts))
    if not isinstance(value, Output) or fits[value.fit].way.cross_fit is None:
        return value
    fit, ways = fits[value.fit], fits[value.fit].way.cross_fit
    assert ways is not None
    folds = replace(
        fit,
        index=len(fits),
        name=f"{fit.name} (its folds)",
        way=ways.folds,
        wants=tuple((want, RAW) for want in ways.folds.wants(fit.estimator)),
    )
    in_folds = InFolds(fit.source, folds.index)
    crossed = replace(
        fit,
        index=len(fits) + 1,
        name=f"{fit.name} (cross-fitted)",
        source=in_folds,
        way=ways.crossed,
        wants=tuple((want, in_folds) for want in ways.crossed.wants(fit.estimator)),
    )
    fits += [folds, crossed]
    return Output(in_folds, crossed.index)


def _visit_union(est: FeatureUnion, source: Expression, meta: Meta, name: str, fits: list[Fit]) -> _Visited:
    if est.transformer_weights:
        raise UnsupportedEstimatorError("FeatureUnion(transformer_weights=...) is not supported. Use None.")
    children: list[int | None] = []
    parts: list[Expression] = []
    shapes: list[Meta] = []
    for part_name, part in est.transformer_list:
        if isinstance(part, str) and part == "drop":
            children.append(None)
            continue
        if isinstance(part, str) and part == "passthrough":
            part = FunctionTransformer(feature_names_out="one-to-one")  # as scikit-learn does
        child, value, shape = _visit(part, source, meta, f"{name} / {part_name}", fits)
        children.append(child)
        parts.append(value)
        shapes.append(shape)
    fit = Fit(len(fits), name, est, source, meta, _COMPOSITE, tuple(children), is_leaf=False)
    fits.append(fit)
    return fit.index, Stack(tuple(parts), fit.index), _side_by_side(shapes)


def _side_by_side(shapes: Sequence[Meta]) -> Meta:
    widths = [shape.width for shape in shapes]
    known = None if any(width is None for width in widths) else sum(width or 0 for width in widths)
    return Meta(n_columns=known, sparse=any(shape.sparse for shape in shapes))


def _visit_columns(
    est: ColumnTransformer, source: Expression, meta: Meta, name: str, fits: list[Fit]
) -> _Visited:
    if est.transformer_weights:
        raise UnsupportedEstimatorError(
            "ColumnTransformer(transformer_weights=...) is not supported. Use None."
        )
    _in_its_dimensions(_COMPOSITE, source, meta, name)
    chosen = [
        (n, part, Columns(source, resolve_columns(c, meta, f"{name} / {n}"), flat=_is_one(c)))
        for n, part, c in est.transformers
    ]
    taken = {j for _, _, columns in chosen for j in columns.positions}
    rest = Columns(source, tuple(j for j in range(_width(meta, name)) if j not in taken))
    parts = [
        _visit_part(part, columns, meta, f"{name} / {n}", fits)
        for n, part, columns in [*chosen, ("remainder", est.remainder, rest)]
    ]
    sparse = tuple(j for j, part in enumerate(parts) if part.shape.sparse)
    fit = Fit(
        len(fits),
        name,
        est,
        source,
        meta,
        _COMPOSITE,
        children=tuple(part.child for part in parts),
        wants=tuple((Nonzeros, parts[j].value) for j in sparse),
        is_leaf=False,
        sparse_children=sparse,
        widths=tuple(part.shape.width for part in parts),
    )
    fits.append(fit)
    kept = [part for part in parts if part.value is not None]
    stack = Stack(tuple(part.value for part in kept), fit.index)
    return fit.index, stack, _side_by_side([part.shape for part in kept])


class _Part(NamedTuple):
    """One part of a ColumnTransformer."""

    child: int | None
    value: Any
    """What it gives; None for nothing."""
    shape: Meta


def _visit_part(part: Any, columns: Columns, meta: Meta, name: str, fits: list[Fit]) -> _Part:
    if not columns.positions or (isinstance(part, str) and part == "drop"):
        return _Part(None, None, Meta(n_columns=0))
    shape = _columns_of(meta, columns.positions)
    if isinstance(part, str):
        if columns.flat:
            raise InputError(f"{name}: a series cannot be passed through. Put its name into a list.")
        return _Part(None, columns, shape)
    return _Part(*_visit(part, columns, shape, name, fits))


def _width(meta: Meta, name: str) -> int:
    if meta.width is None:
        raise UnsupportedEstimatorError(
            f"{name}: a ColumnTransformer after a step whose number of columns is not known before it is "
            "fitted cannot be planned. Select the columns first, and transform them after."
        )
    return meta.width


def _columns_of(meta: Meta, positions: tuple[int, ...]) -> Meta:
    if meta.frame is not None:
        return Meta(frame=meta.frame.iloc[:, list(positions)])
    return Meta(n_columns=len(positions), dtype=meta.dtype, sparse=meta.sparse)


def _is_one(columns: Any) -> bool:
    """Tell whether a selector names a column without a list, which selects a series."""
    return isinstance(columns, str | int | np.integer) and not isinstance(columns, bool)


def resolve_columns(columns: Any, meta: Meta, where: str) -> tuple[int, ...]:
    """Turn any column selector of a ColumnTransformer into positions.

    Names, positions, slices of either, boolean masks, and callables of the (empty) frame are
    accepted.

    Raises
    ------
    InputError
        If a column does not exist; the message lists those that do.
    """
    if callable(columns):
        if meta.frame is None:
            raise InputError(f"{where}: a callable column selector needs a frame, but X is an array.")
        columns = columns(meta.frame)
    width = _width(meta, where)
    if isinstance(columns, slice):
        return _resolve_slice(columns, meta, where)
    columns = [columns] if _is_one(columns) else list(columns)
    if columns and all(isinstance(column, bool | np.bool_) for column in columns):
        if len(columns) != width:
            raise InputError(f"{where}: the mask has {len(columns)} entries, but X has {width} columns.")
        return tuple(np.flatnonzero(columns).tolist())
    return tuple(_position(column, meta, where) for column in columns)


def _resolve_slice(columns: slice, meta: Meta, where: str) -> tuple[int, ...]:
    ends = [columns.start, columns.stop]
    if any(isinstance(end, str) for end in ends):
        first = 0 if ends[0] is None else _position(ends[0], meta, where)
        # a slice of names includes its end, as in pandas
        last = _width(meta, where) if ends[1] is None else _position(ends[1], meta, where) + 1
        return tuple(range(first, last, columns.step or 1))
    return tuple(range(_width(meta, where))[columns])


def _position(column: Any, meta: Meta, where: str) -> int:
    width = _width(meta, where)
    if isinstance(column, int | np.integer):
        if not -width <= column < width:
            raise InputError(f"{where}: there is no column {column}; X has {width} columns.")
        return int(column) % width
    if meta.frame is None:
        raise InputError(f"{where}: column {column!r} is a name, but X is an array. Use positions.")
    names = list(meta.frame.columns)
    if column not in names:
        raise InputError(
            f"{where}: there is no column {column!r}. X has: {', '.join(map(repr, names))}. "
            "Correct the name in the transformer, or add the column to X."
        )
    return names.index(column)


class _Finished(BaseEstimator):  # type: ignore[misc]
    """Takes the place of a fitted part while scikit-learn fits the composite around it."""

    def __init__(self, fitted: Estimator, width: int):
        self.fitted = fitted
        self.width = width

    def __sklearn_clone__(self) -> "_Finished":
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: Any, y: Any = None) -> "_Finished":
        return self

    def transform(self, X: Any) -> np.ndarray:
        return np.zeros((len(X), self.width))


def _finish_named(fit: Fit, children: Sequence[Fitted | None], stats: Sequence[Any]) -> Estimator:
    """Put fitted parts into the list of named parts that a Pipeline or a FeatureUnion keeps."""
    fitted = clone(fit.estimator)
    attribute = "steps" if isinstance(fitted, Pipeline) else "transformer_list"
    parts = [
        (name, part if child is None else child.estimator)
        for (name, part), child in zip(getattr(fitted, attribute), children, strict=True)
    ]
    setattr(fitted, attribute, parts)
    return fitted


def _finish_columns(fit: Fit, children: Sequence[Fitted | None], stats: Sequence[Any]) -> Estimator:
    """Fit a ColumnTransformer around parts that are fitted already, on one made-up row."""
    X = _made_up_row(fit.meta)
    parts = [
        child and _Finished(child.estimator, n_outputs(child.estimator) if width is None else width)
        for child, width in zip(children, fit.widths, strict=True)
    ]
    outer = clone(fit.estimator).set_params(n_jobs=None, verbose=False)
    outer.transformers = [
        (name, part or original, columns)
        for (name, original, columns), part in zip(fit.estimator.transformers, parts[:-1], strict=True)
    ]
    outer.remainder = parts[-1] or fit.estimator.remainder
    outer.fit(X)
    outer.transformers_ = [
        (name, part.fitted if isinstance(part, _Finished) else part, columns)
        for name, part, columns in outer.transformers_
    ]
    given = clone(fit.estimator)
    for name in ("transformers", "remainder", "n_jobs", "verbose"):
        setattr(outer, name, getattr(given, name))
    _restore_remainder(outer)
    names = [*(name for name, _, _ in outer.transformers), "remainder"]
    outer.sparse_output_ = (
        _density(outer, [names[j] for j in fit.sparse_children], stats) < outer.sparse_threshold
    )
    return outer


def _density(outer: ColumnTransformer, sparse_parts: Sequence[str], stats: Sequence[Nonzeros]) -> float:
    """The share of entries that scikit-learn would have stored: all of a dense part, some of a sparse one."""
    if not stats:
        return float("inf")  # never sparse without a sparse part
    width_of = {name: indices.stop - indices.start for name, indices in outer.output_indices_.items()}
    width = sum(width_of.values())
    dense = stats[0].n_rows * (width - sum(width_of[name] for name in sparse_parts))
    return (dense + sum(found.stored for found in stats)) / (stats[0].n_rows * width)


def _restore_remainder(outer: ColumnTransformer) -> None:
    """scikit-learn keeps the remainder it was given a second time; put the original back there, too."""
    name, _, columns = outer._remainder
    outer._remainder = (name, outer.remainder, columns)


def _made_up_row(meta: Meta) -> Any:
    if meta.frame is None:
        return np.zeros((1, meta.width or 0), dtype=meta.dtype)
    return meta_nonempty(meta.frame).iloc[:1]


def n_outputs(fitted: Estimator) -> int:
    """Count the output columns of a fitted transformer."""
    if isinstance(fitted, HashingVectorizer | FeatureHasher):
        return int(fitted.n_features)
    if isinstance(fitted, FeatureUnion) and not any(
        isinstance(part, str) for _, part in fitted.transformer_list
    ):
        return sum(n_outputs(part) for _, part in fitted.transformer_list)
    if isinstance(fitted, Pipeline):
        last = next((step for _, step in reversed(fitted.steps) if hasattr(step, "transform")), None)
        return n_outputs(last)
    try:
        return len(fitted.get_feature_names_out())
    except (AttributeError, ValueError) as err:
        if isinstance(fitted, FunctionTransformer | FeatureUnion) and not _keeps_width(fitted):
            raise InputError(
                f"{type(fitted).__name__}: how many columns it gives cannot be told. Name them, by "
                "feature_names_out=... of its FunctionTransformer."
            ) from err
        return int(fitted.n_features_in_)


def _keeps_width(fitted: Estimator) -> bool:
    return isinstance(fitted, FunctionTransformer) and fitted.func is None


Finish = Callable[[Fit, Sequence[Fitted | None], Sequence[Any]], Estimator]


_BY_TYPE: Mapping[type, Finish] = {
    Pipeline: _finish_named,
    FeatureUnion: _finish_named,
    ColumnTransformer: _finish_columns,
}


def finish_composite(fit: Fit, children: Sequence[Fitted | None], stats: Sequence[Any]) -> Estimator:
    """Put a composite together from its fitted parts."""
    return next(f for cls, f in _BY_TYPE.items() if isinstance(fit.estimator, cls))(fit, children, stats)
