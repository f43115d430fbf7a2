"""One estimator, fitted several times: for each class, each pair of classes, or each target."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import clone
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.validation import has_fit_parameter

from dpipe.blocks.statistics import LabelCounts
from dpipe.composites.inside import check_parts, fit_inside, rounds_of
from dpipe.composites.views import Against, Between, OneTarget, View
from dpipe.errors import InputError
from dpipe.families import refuse
from dpipe.families.asking import Asking, together
from dpipe.families.registry import Estimator, Meta, Refinement, Rounds, add, refined


@dataclass(frozen=True)
class TargetWidth:
    """How many columns y has; None if it has one dimension."""

    of_y: ClassVar[bool] = True
    n_targets: int | None

    @classmethod
    def of(cls, X: Any, y: Any, w: Any = None) -> Self:
        """Read one block."""
        return cls(None if np.ndim(y) == 1 else np.shape(y)[1])

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        return self


def parts_inside(estimator: Estimator, views: Sequence[View], meta: Meta) -> Asking:
    """Fit one estimator through several views; gives a list."""
    return together([fit_inside(estimator, meta, view) for view in views])


def with_names(outer: Estimator, part: Estimator) -> Estimator:
    """Copy what a composite tells of its input from its first part."""
    for name in ("n_features_in_", "feature_names_in_"):
        if hasattr(part, name):
            setattr(outer, name, getattr(part, name))
    return outer


def classes_of(estimator: Estimator, labels: LabelCounts) -> np.ndarray:
    """Give the classes, at least two."""
    refuse.unlabelled(estimator, labels.n_missing)
    if len(labels.counts) < 2:
        raise InputError(
            f"{type(estimator).__name__} needs at least two classes, but every label of y is "
            f"{', '.join(map(repr, labels.counts))}. Check the target column, or how the rows were chosen."
        )
    return labels.classes


def _refine_rest(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    labels: LabelCounts = stats[0]
    width: TargetWidth = stats[1]
    if width.n_targets is not None:
        raise InputError(
            f"OneVsRestClassifier: y has {width.n_targets} columns, and one of labels is supported. For several "
            "labels a row, use MultiOutputClassifier."
        )
    classes = classes_of(estimator, labels)
    positive = classes[1:] if len(classes) == 2 else classes
    fitted = clone(estimator)
    fitted.estimators_ = yield from parts_inside(
        estimator.estimator, [Against(label) for label in positive.tolist()], meta
    )
    fitted.label_binarizer_ = LabelBinarizer(sparse_output=True).fit(classes)
    fitted.classes_ = fitted.label_binarizer_.classes_
    return with_names(fitted, fitted.estimators_[0])


def _refine_pairs(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    classes = classes_of(estimator, stats[0])
    pairs = [(a, b) for i, a in enumerate(classes.tolist()) for b in classes.tolist()[i + 1 :]]
    # scikit-learn hands its parts an array: they know no names
    plain = Meta(n_columns=meta.width, dtype=meta.dtype, sparse=meta.sparse, weighted=meta.weighted)
    fitted = clone(estimator)
    found = yield from parts_inside(estimator.estimator, [Between(*pair) for pair in pairs], plain)
    fitted.estimators_ = tuple(found)
    fitted.classes_, fitted.pairwise_indices_ = classes, None
    fitted.n_features_in_ = meta.width
    if meta.frame is not None:
        fitted.feature_names_in_ = np.asarray(meta.frame.columns, dtype=object)
    return fitted


def _refine_targets(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    n_targets = stats[0].n_targets
    if n_targets is None:
        raise InputError(
            f"{type(estimator).__name__}: y must have at least two dimensions, but it has one. Give a frame or an "
            "array of several targets, or fit the estimator inside by itself."
        )
    fitted = clone(estimator)
    fitted.estimators_ = yield from parts_inside(
        estimator.estimator, [OneTarget(j) for j in range(n_targets)], meta
    )
    if isinstance(estimator, MultiOutputClassifier):
        fitted.classes_ = [part.classes_ for part in fitted.estimators_]
    return with_names(fitted, fitted.estimators_[0])


def _check(estimator: Estimator) -> None:
    check_parts(estimator, [estimator.estimator])


def _rounds(estimator: Estimator) -> Rounds:
    return rounds_of(estimator, [estimator.estimator])


def _no_weights(estimator: Estimator) -> bool:
    return False


_LIKE = "that of its parts"
_OPTIONS: dict[str, Any] = {"check": _check, "needs_y": True, "exact": _LIKE}
add(
    OneVsRestClassifier,
    refined(
        _refine_rest,
        _rounds,
        lambda est: (LabelCounts, TargetWidth),
        takes_weights=_no_weights,
        **_OPTIONS,
    ),
)
add(
    OneVsOneClassifier,
    refined(_refine_pairs, _rounds, lambda est: (LabelCounts,), takes_weights=_no_weights, **_OPTIONS),
)
for _cls in (MultiOutputClassifier, MultiOutputRegressor):
    add(
        _cls,
        refined(
            _refine_targets,
            _rounds,
            lambda est: (TargetWidth,),
            **_OPTIONS,
            takes_weights=lambda est: has_fit_parameter(est.estimator, "sample_weight"),
        ),
    )
