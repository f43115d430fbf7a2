"""Labels, which are given as X: LabelEncoder and its relatives, in one pass over what is different in them."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Self

import numpy as np
from sklearn.base import clone
from sklearn.preprocessing import LabelBinarizer, LabelEncoder, MultiLabelBinarizer

from dpipe.blocks.rows import as_target
from dpipe.blocks.statistics import ValueCounts
from dpipe.blocks.terms import Distinct
from dpipe.families import refuse
from dpipe.families.registry import Estimator, Meta, Way, add


class Labels(ValueCounts):
    """How often each label stands in X, of one dimension."""

    @classmethod
    def of(cls, X: Any, y: Any = None, w: Any = None) -> Self:
        """Read one block; `X` of shape (n_rows,)."""
        return super().of(np.asarray(as_target(X)).reshape(-1, 1))


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    counts: Labels = stats[0]
    dtype = np.dtype(str) if meta.dtype.kind == "U" else counts.dtypes[0]
    if isinstance(estimator, LabelBinarizer):
        refuse.unlabelled(estimator, counts.n_missing[0])
        if meta.frame is not None:  # unlike its sibling, it does not take nullable whole numbers for floats
            dtype = getattr(meta.frame.dtypes.iloc[0], "numpy_dtype", dtype)
    values = list(counts.counts[0]) + [counts.missing[0]] * (counts.n_missing[0] > 0)
    # scikit-learn warns where more than half of the labels are different: where that is so in all of them
    copies = 1 if 2 * len(values) > counts.n_rows else 3
    return clone(estimator).fit(np.array(values * copies, dtype=dtype))


def _output(estimator: Estimator, meta: Meta) -> Meta:
    return Meta(dtype=np.dtype(np.int64), sparse=getattr(estimator, "sparse_output", False))


for _cls in (LabelEncoder, LabelBinarizer):
    add(
        _cls,
        Way("merge", _finish, lambda est: (Labels,), output=_output, one_dimensional=True, of_labels=True),
    )


class SetsOfLabels:
    """The labels that stand in sets of them."""

    @staticmethod
    def of(X: Any, y: Any = None, w: Any = None) -> Distinct:
        """Read one block; `X` of shape (n_rows,)."""
        with refuse.unreadable(MultiLabelBinarizer(), X):
            return Distinct.of(chain.from_iterable(X))


def _wanted_sets(estimator: Estimator) -> tuple[Any, ...]:
    return (SetsOfLabels,) if estimator.classes is None else ()


def _finish_sets(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    return clone(estimator).fit([list(found.found) for found in stats])


add(
    MultiLabelBinarizer,
    Way("merge", _finish_sets, _wanted_sets, output=_output, one_dimensional=True, of_labels=True),
)
