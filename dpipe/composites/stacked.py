"""StackingClassifier and StackingRegressor: the parts on all rows and on each fold's, in the same readings.

The final estimator then learns from what the parts that have not seen a row say of it. Nothing of that is kept: the
predictions are made again in each reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import clone, is_classifier
from sklearn.ensemble import StackingClassifier, StackingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import Bunch
from sklearn.utils.validation import has_fit_parameter

from dpipe.blocks.folds import Folds
from dpipe.blocks.matrix import to_matrix
from dpipe.blocks.rows import Rows
from dpipe.blocks.side_by_side import SideBySide
from dpipe.blocks.statistics import LabelCounts
from dpipe.blocks.table import Block
from dpipe.blocks.threads import single_threaded_blas
from dpipe.composites.folds import check_folds, folds_of, outside
from dpipe.composites.inside import check_parts, fit_inside, rounds_of
from dpipe.composites.several import TargetWidth, classes_of
from dpipe.composites.views import Encoded, View
from dpipe.composites.votes import check_named_parts, kept_parts
from dpipe.errors import InputError
from dpipe.families.asking import together
from dpipe.families.registry import Estimator, Meta, Refinement, Rounds, add, refined


@dataclass(frozen=True, eq=False)
class Stacked:
    """What the parts say of each row, as a matrix to be learned from."""

    parts: Sequence[Sequence[Estimator]]
    """For each part its fits, one for each fold; a single one speaks for all rows."""
    methods: Sequence[str]
    folds: Folds | None
    n_classes: int
    passthrough: bool
    then: View | None

    def __call__(self, rows: Rows) -> Rows:
        """See the rows."""
        X = rows.X.written_out() if isinstance(rows.X, SideBySide) else to_matrix(rows.X)
        with single_threaded_blas():
            columns = [
                self._said(fits, method, X, rows)
                for fits, method in zip(self.parts, self.methods, strict=True)
            ]
        made = concatenated(columns, self.methods, X if self.passthrough else None, self.n_classes)
        seen = Rows(made, rows.y, rows.w)
        return seen if self.then is None else self.then(seen)

    def _said(self, fits: Sequence[Estimator], method: str, X: Any, rows: Rows) -> np.ndarray:
        if self.folds is None:
            return getattr(fits[0], method)(as_given(fits[0], X))
        mine = self.folds.of(np.asarray(rows.y), rows.at)
        out: np.ndarray | None = None
        for fold, fit in enumerate(fits):
            places = np.flatnonzero(mine == fold)
            if len(places):
                mine_of = X.iloc[places] if hasattr(X, "iloc") else X[places]
                said = getattr(fit, method)(as_given(fit, mine_of))
                out = np.empty((len(mine), *said.shape[1:]), dtype=said.dtype) if out is None else out
                out[places] = said
        assert out is not None
        return out


def as_given(fit: Estimator, block: Block) -> Any:
    """Give a block as the methods of a fitted estimator take it: with names, if it was fitted with names."""
    value = block.written_out() if isinstance(block, SideBySide) else to_matrix(block)
    names = getattr(fit, "feature_names_in_", None)
    if names is None:
        return value.to_numpy() if isinstance(value, pd.DataFrame) else value
    return pd.DataFrame(value, columns=names) if isinstance(value, np.ndarray) else value


def concatenated(said: Sequence[np.ndarray], methods: Sequence[str], X: Any, n_classes: int) -> Any:
    """Put predictions side by side, and X beside them; of two probabilities the first is left out."""
    columns = []
    for each, method in zip(said, methods, strict=True):
        if each.ndim == 1:
            columns.append(each.reshape(-1, 1))
        else:
            columns.append(each[:, 1:] if method == "predict_proba" and n_classes == 2 else each)
    if X is None:
        return np.hstack(columns)
    return sp.hstack([*columns, X], format="csr") if sp.issparse(X) else np.hstack([*columns, X])


def _final(estimator: Estimator) -> Estimator:
    if estimator.final_estimator is not None:
        return clone(estimator.final_estimator)
    return LogisticRegression() if isinstance(estimator, StackingClassifier) else RidgeCV()


def _method(estimator: Estimator, part: Estimator) -> str:
    wanted = estimator.stack_method
    tried = ["predict_proba", "decision_function", "predict"] if wanted == "auto" else [wanted]
    found = next((name for name in tried if hasattr(part, name)), None)
    if found is None:
        raise InputError(
            f"{type(estimator).__name__}(stack_method={wanted!r}): {type(part).__name__} has no such method. "
            "Use 'auto'."
        )
    return found


def _refine(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    classifies = isinstance(estimator, StackingClassifier)
    classes = classes_of(estimator, stats[0]) if classifies else np.empty(0)
    view = Encoded(classes) if classifies else None
    kept = kept_parts(estimator)
    fitted = clone(estimator)
    folds: Folds | None = None
    if estimator.cv == "prefit":
        fitted.estimators_ = kept
        by_fold: list[Sequence[Estimator]] = [[part] for part in kept]
    else:
        folds, n_splits = yield from folds_of(estimator, classifies=classifies)
        views = [view, *outside(folds, n_splits, view)]
        found = yield from together([fit_inside(part, meta, each) for part in kept for each in views])
        fitted.estimators_ = found[:: len(views)]
        by_fold = [found[i + 1 : i + len(views)] for i in range(0, len(found), len(views))]
    _name_parts(fitted, estimator)
    fitted.stack_method_ = [_method(estimator, part) for part in fitted.estimators_]
    if classifies:
        fitted._label_encoder = LabelEncoder().fit(classes)
        fitted.classes_ = fitted._label_encoder.classes_
    stacked = Stacked(by_fold, fitted.stack_method_, folds, len(classes), estimator.passthrough, view)
    widths = _widths(fitted, len(classes))
    fitted._n_feature_outs = widths
    width = sum(widths) + (estimator.passthrough and (meta.width or 0))
    inner = Meta(n_columns=width, weighted=meta.weighted)
    fitted.final_estimator_ = yield from fit_inside(_final(estimator), inner, stacked)
    return fitted


def _widths(fitted: Estimator, n_classes: int) -> list[int]:
    """Tell how many columns each part gives."""
    both = {"predict": 1, "decision_function": 1 if n_classes == 2 else n_classes}
    both["predict_proba"] = 1 if n_classes == 2 else n_classes
    return [both[method] for method in fitted.stack_method_]


def _name_parts(fitted: Estimator, estimator: Estimator) -> None:
    found = iter(fitted.estimators_)
    fitted.named_estimators_ = Bunch()
    for name, part in estimator.estimators:
        dropped = isinstance(part, str)
        fitted.named_estimators_[name] = part if dropped else next(found)
        if hasattr(fitted.named_estimators_[name], "feature_names_in_"):
            fitted.feature_names_in_ = fitted.named_estimators_[name].feature_names_in_


def _check(estimator: Estimator) -> None:
    classifies = isinstance(estimator, StackingClassifier)
    if classifies and not is_classifier(_final(estimator)):
        raise InputError(f"StackingClassifier: the final estimator {_final(estimator)!r} is no classifier.")
    if estimator.cv == "prefit":
        if not kept_parts(estimator):
            raise InputError(f"{type(estimator).__name__}: all estimators are dropped. Keep at least one.")
    else:
        check_named_parts(estimator)
        check_folds(estimator, classifies=classifies)
    check_parts(estimator, [_final(estimator)])


def _rounds(estimator: Estimator) -> Rounds:
    parts = [] if estimator.cv == "prefit" else kept_parts(estimator)
    return rounds_of(estimator, [_final(estimator)], more=rounds_of(estimator, parts).most)


def _wants(estimator: Estimator) -> tuple[Any, ...]:
    # a pass over y also counts the rows of each block, from which the folds follow
    return (LabelCounts if isinstance(estimator, StackingClassifier) else TargetWidth,)


def _take_weights(estimator: Estimator) -> bool:
    return all(
        has_fit_parameter(part, "sample_weight") for part in [*kept_parts(estimator), _final(estimator)]
    )


for _cls in (StackingClassifier, StackingRegressor):
    add(
        _cls,
        refined(
            _refine,
            _rounds,
            _wants,
            check=_check,
            needs_y=True,
            exact="that of its parts",
            takes_weights=_take_weights,
        ),
    )
