"""Pipelines, ColumnTransformers and FeatureUnions, put together again around parts that are fitted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from dask.dataframe.utils import meta_nonempty
from sklearn.base import BaseEstimator, clone
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer

from dpipe.blocks.statistics import Nonzeros
from dpipe.errors import InputError
from dpipe.families.compose import Fit
from dpipe.families.registry import Estimator, Fitted, Meta, without_output_config


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
    outer = without_output_config(clone(fit.estimator)).set_params(n_jobs=None, verbose=False)
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
    if hasattr(given, "_sklearn_output_config"):
        outer._sklearn_output_config = given._sklearn_output_config
        _tell_passed_through(outer)
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


def _tell_passed_through(outer: ColumnTransformer) -> None:
    """Give what passes columns through the same kind of output, as scikit-learn does."""
    kind = outer._sklearn_output_config.get("transform") or "default"
    given = {name: part for name, part, _ in outer.transformers} | {"remainder": outer.remainder}
    for name, part, _ in outer.transformers_:
        if isinstance(given.get(name), str) and isinstance(part, FunctionTransformer):
            part.set_output(transform=kind)
    if kind != "default":
        named = [
            part.get_feature_names_out()
            for _, part, columns in outer.transformers_
            if not isinstance(part, str) and len(columns)
        ]
        outer._transformers_feature_names_out = np.hstack(named)


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
