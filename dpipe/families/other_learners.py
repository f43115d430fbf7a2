"""Any other class that learns block after block: by `partial_fit`, or as models of Keras do, by `train_on_batch`."""

from inspect import signature
from typing import Any

from sklearn.cluster import Birch
from sklearn.feature_selection import SelectFromModel

from dpipe.blocks.statistics import LabelCounts
from dpipe.families.gradient import EXACT, check_learner, finish_learner
from dpipe.families.learner_calls import learns_in_order, takes
from dpipe.families.registry import Estimator, Meta, Way, add_fallback

#: What has `partial_fit`, but learns nothing of its own by it; and what does not survive being copied: the nodes of
#: Birch's tree look into each other's arrays.
_NOT = (SelectFromModel, Birch)


def _labels(estimator: Estimator) -> tuple[Any, ...]:
    return (LabelCounts,) if takes(estimator, "classes") else ()


def _any_width(estimator: Estimator, meta: Meta) -> Meta:
    return Meta(dtype=meta.dtype)


def _needs_y(cls: type) -> bool:
    if not hasattr(cls, "partial_fit"):
        return True
    y = signature(cls.partial_fit).parameters.get("y")
    return y is not None and y.default is y.empty


def way_to_learn(cls: type) -> Way | None:
    """Give the way of a class that is not registered, if its instances learn in order.

    Examples
    --------
    >>> from sklearn.linear_model import SGDOneClassSVM
    >>> from sklearn.svm import SVC
    >>> way_to_learn(SGDOneClassSVM).kind, way_to_learn(SVC)
    ('stream', None)
    """
    if not learns_in_order(cls) or issubclass(cls, _NOT):
        return None
    return Way(
        "stream",
        finish_learner,
        _labels,
        check=check_learner,
        output=_any_width,
        needs_y=_needs_y(cls),
        exact=EXACT,
        takes_weights=lambda estimator: takes(estimator, "sample_weight"),
    )


add_fallback(way_to_learn)
