"""Pipeline, ColumnTransformer and FeatureUnion: flattened into single fits, and put together again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, NamedTuple

from sklearn import get_config
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import has_fit_parameter

from dpipe.blocks.statistics import Nonzeros
from dpipe.errors import InputError
from dpipe.families.expression import RAW, Columns, Expression, InFolds, Output, Stack
from dpipe.families.registry import CustomWant, Estimator, Meta, Unweighted, Way, Weighted, way_of
from dpipe.families.selectors import columns_of, is_one, resolve_columns, width_of


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
    classes: tuple[Any, ...] | None = None
    """The labels that it will meet, where they are given beforehand."""
    may_fail: bool = False
    """Whether an error of this fit stands in the place of what is fitted, as a `Failed`, and all others go on."""


@dataclass(frozen=True)
class Walk:
    """A whole estimator, flattened: its fits, each after those that it waits for."""

    fits: tuple[Fit, ...]
    root: int
    output: Expression


def walk(
    estimator: Estimator, meta: Meta, *, weighted: bool = False, takers: Callable[[Fit], bool] | None = None
) -> Walk:
    """Flatten an estimator into its single fits.

    Weights go to the estimator itself, or to the last step of a pipeline; transformers on the way see
    every row once. That is what ``pipeline.fit(X, y, last__sample_weight=w)`` does.

    Parameters
    ----------
    estimator : scikit-learn estimator or pipeline
    meta : Meta
    weighted : bool, default False
        Whether there are weights.
    takers : callable ``(fit) -> bool``, optional
        Which parts take the weights in its place, as if each of them were alone.

    Raises
    ------
    UnsupportedEstimatorError
        If a part of it cannot be fitted block by block.
    InputError
        If a ColumnTransformer selects columns that do not exist, or weights have no taker.
    """
    fits: list[Fit] = []
    root, output, _ = _visit(estimator, RAW, meta, type(estimator).__name__, fits)
    if weighted and _routes(estimator):
        for i in _requesting(fits):
            fits[i] = _with_weights(fits[i])
    elif weighted:
        for each in [root] if takers is None else [fit.index for fit in fits if takers(fit)]:
            last = _taker_of_weights(fits, each)
            fits[last] = _with_weights(fits[last])
    return Walk(tuple(map(_without_marks, fits)), root, output)


def _with_weights(fit: Fit) -> Fit:
    return replace(fit, wants=tuple((weighted_want(want), value) for want, value in fit.wants), weighted=True)


def _routes(estimator: Estimator) -> bool:
    """Tell whether scikit-learn's metadata routing decides who is given the weights."""
    several = isinstance(estimator, Pipeline | ColumnTransformer | FeatureUnion)
    return bool(several and get_config()["enable_metadata_routing"])


def _requesting(fits: Sequence[Fit]) -> list[int]:
    """List the fits that have requested weights: `set_fit_request(sample_weight=True)`."""
    asked = {
        fit.index: fit.estimator.get_metadata_routing().fit.requests.get("sample_weight")
        for fit in fits
        if fit.is_leaf and "sample_weight" in signature(fit.estimator.fit).parameters
    }
    unset = [type(fits[i].estimator).__name__ for i, request in asked.items() if request is None]
    if unset:
        raise InputError(
            f"sample_weight is given, but {', '.join(unset)} has not said whether it wants it. Call "
            "set_fit_request(sample_weight=True) or set_fit_request(sample_weight=False) on it."
        )
    takers = [i for i, request in asked.items() if request is True]
    if not takers:
        raise InputError(
            "sample_weight is given, but no step requests it: set_fit_request(sample_weight=True)."
        )
    return takers


def _without_marks(fit: Fit) -> Fit:
    wants = ((want.want if isinstance(want, Unweighted) else want, value) for want, value in fit.wants)
    return replace(fit, wants=tuple(wants))


def final_fit(tree: Walk) -> Fit:
    """Give the last step of nested pipelines."""
    return _final(tree.fits, tree.root)


def _final(fits: Sequence[Fit], root: int) -> Fit:
    fit = fits[root]
    while isinstance(fit.estimator, Pipeline) and fit.children[-1] is not None:
        fit = fits[fit.children[-1]]
    return fit


def _taker_of_weights(fits: Sequence[Fit], root: int) -> int:
    fit = _final(fits, root)
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
    if way.wants_of is not None:
        wants = way.wants_of(est, meta, source)
    else:
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
    if meta.one_dimensional and not way.one_dimensional:
        texts = meta.frame is None and meta.dtype.kind in "OSU"
        what = "one column of texts, lists or records" if texts else "of one dimension"
        raise InputError(
            f"{name} takes a table, but X is {what}; it must be a Dask DataFrame or Array, a pandas DataFrame or a "
            "NumPy array of two dimensions, as X[['a']] or X[:, None] is."
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
        parts.append(_times(value, shape, (est.transformer_weights or {}).get(part_name), fits))
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
    _in_its_dimensions(_COMPOSITE, source, meta, name)
    chosen = [
        (n, part, Columns(source, resolve_columns(c, meta, f"{name} / {n}"), flat=is_one(c)))
        for n, part, c in est.transformers
    ]
    taken = {j for _, _, columns in chosen for j in columns.positions}
    rest = Columns(source, tuple(j for j in range(width_of(meta, name)) if j not in taken))
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
    factors = est.transformer_weights or {}
    names = [*(n for n, _, _ in chosen), "remainder"]
    kept = [part for part in parts if part.value is not None]
    weighted = [
        _times(part.value, part.shape, factors.get(n), fits)
        for n, part in zip(names, parts, strict=True)
        if part.value is not None
    ]
    stack = Stack(tuple(weighted), fit.index)
    return fit.index, stack, _side_by_side([part.shape for part in kept])


def _multiplied(X: Any, factor: float) -> Any:
    return X * factor


def _times(value: Expression, shape: Meta, factor: float | None, fits: list[Fit]) -> Expression:
    """Multiply what a part gives by its weight."""
    if factor is None:
        return value
    made = FunctionTransformer(
        _multiplied, kw_args={"factor": factor}, accept_sparse=True, feature_names_out="one-to-one"
    )
    fits.append(Fit(len(fits), "weights of the parts", made, value, shape, way_of(made)))
    return Output(value, fits[-1].index)


class _Part(NamedTuple):
    """One part of a ColumnTransformer."""

    child: int | None
    value: Any
    """What it gives; None for nothing."""
    shape: Meta


def _visit_part(part: Any, columns: Columns, meta: Meta, name: str, fits: list[Fit]) -> _Part:
    if not columns.positions or (isinstance(part, str) and part == "drop"):
        return _Part(None, None, Meta(n_columns=0))
    shape = columns_of(meta, columns.positions)
    if isinstance(part, str):
        if columns.flat:
            raise InputError(f"{name}: a series cannot be passed through. Put its name into a list.")
        return _Part(None, columns, shape)
    return _Part(*_visit(part, columns, shape, name, fits))
