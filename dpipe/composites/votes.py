"""VotingClassifier and VotingRegressor: their parts are fitted side by side, in the same readings."""

from collections.abc import Sequence
from typing import Any

from sklearn.base import clone
from sklearn.ensemble import VotingClassifier, VotingRegressor
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import Bunch
from sklearn.utils.validation import has_fit_parameter

from dpipe.blocks.statistics import LabelCounts
from dpipe.composites.inside import check_parts, fit_inside, rounds_of
from dpipe.composites.several import classes_of
from dpipe.composites.views import Encoded, View
from dpipe.errors import InputError
from dpipe.families.asking import Asking, together
from dpipe.families.registry import Estimator, Meta, Refinement, Rounds, add, refined


def kept_parts(estimator: Estimator) -> list[Estimator]:
    """List the parts that are not dropped."""
    return [part for _, part in estimator.estimators if not _is_dropped(part)]


def _is_dropped(part: Any) -> bool:
    return isinstance(part, str) and part == "drop"


def fit_parts(estimator: Estimator, meta: Meta, view: View | None) -> Asking:
    """Fit all parts on the same rows; gives the composite with `estimators_` and their names."""
    fitted = clone(estimator)
    fitted.estimators_ = yield from together([fit_inside(part, meta, view) for part in kept_parts(estimator)])
    found = iter(fitted.estimators_)
    fitted.named_estimators_ = Bunch()
    for name, part in estimator.estimators:
        fitted.named_estimators_[name] = part if _is_dropped(part) else next(found)
        if hasattr(fitted.named_estimators_[name], "feature_names_in_"):
            fitted.feature_names_in_ = fitted.named_estimators_[name].feature_names_in_
    return fitted


def _refine_classifier(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    classes = classes_of(estimator, stats[0])
    fitted = yield from fit_parts(estimator, meta, Encoded(classes))
    fitted.le_ = LabelEncoder().fit(classes)
    fitted.classes_ = fitted.le_.classes_
    return fitted


def _refine_regressor(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    return (yield from fit_parts(estimator, meta, None))


def check_named_parts(estimator: Estimator) -> None:
    """Refuse a composite without parts, or with one that cannot be fitted inside."""
    if not kept_parts(estimator):
        raise InputError(f"{type(estimator).__name__}: all estimators are dropped. Keep at least one.")
    check_parts(estimator, kept_parts(estimator))


def _check(estimator: Estimator) -> None:
    check_named_parts(estimator)
    if estimator.weights is not None and len(estimator.weights) != len(estimator.estimators):
        raise InputError(
            f"{type(estimator).__name__}: there are {len(estimator.weights)} weights for "
            f"{len(estimator.estimators)} estimators. Give one for each."
        )


def _rounds(estimator: Estimator) -> Rounds:
    return rounds_of(estimator, kept_parts(estimator))


def all_take_weights(estimator: Estimator) -> bool:
    """Tell whether every part can be given the weights of the rows."""
    return all(has_fit_parameter(part, "sample_weight") for part in kept_parts(estimator))


_OPTIONS: dict[str, Any] = {
    "check": _check,
    "needs_y": True,
    "exact": "that of its parts",
    "takes_weights": all_take_weights,
}
add(VotingClassifier, refined(_refine_classifier, _rounds, lambda est: (LabelCounts,), **_OPTIONS))
add(VotingRegressor, refined(_refine_regressor, _rounds, **_OPTIONS))
