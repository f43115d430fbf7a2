"""How a learner is called: `partial_fit` of scikit-learn, `train_on_batch` of Keras; and what it may not give."""

import math
from collections.abc import Iterator
from inspect import signature
from typing import Any

import numpy as np

from dpipe.blocks.rows import Rows
from dpipe.blocks.table import n_rows
from dpipe.errors import InputError


def learns_in_order(learner: Any) -> bool:
    """Tell whether a class, or an instance, learns block after block."""
    return hasattr(learner, "partial_fit") or hasattr(learner, "train_on_batch")


def takes(learner: Any, name: str) -> bool:
    """Tell whether the method by which a learner learns has an argument of this name."""
    method = getattr(learner, "partial_fit", None) or getattr(learner, "train_on_batch", None)
    return method is not None and name in signature(method).parameters


def learn_rows(learner: Any, rows: Rows, classes: np.ndarray | None, batch_size: int) -> None:
    """Have a learner learn the rows of a block: it changes.

    Raises
    ------
    ValueError
        As the learner does; and if what it has learned is not finite.
    """
    weights = {} if rows.w is None else {"sample_weight": rows.w}
    if hasattr(learner, "partial_fit"):
        labels = {} if classes is None else {"classes": classes}
        learner.partial_fit(rows.X, *([] if rows.y is None else [rows.y]), **labels, **weights)
        if not type(learner).__module__.startswith("sklearn."):  # which looks itself
            _check_finite(learner)
        return
    X = rows.X.to_numpy() if hasattr(rows.X, "to_numpy") else rows.X
    for first in range(0, n_rows(X), batch_size):
        some = slice(first, first + batch_size)
        weights = {} if rows.w is None else {"sample_weight": rows.w[some]}
        loss = learner.train_on_batch(X[some], None if rows.y is None else rows.y[some], **weights)
        first_of = np.ravel(loss)[:1]
        if len(first_of) and first_of.dtype.kind == "f" and not math.isfinite(first_of[0]):
            raise ValueError(f"its loss is {first_of[0]}")


def _check_finite(learner: Any) -> None:
    """Look at what has been learned: arrays of floats, by names that end in "_"."""
    for name, value in vars(learner).items() if hasattr(learner, "__dict__") else ():
        if name.endswith("_") and not all(np.isfinite(array).all() for array in _floats(value)):
            raise ValueError(f"its {name} is no longer finite")


def _floats(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _floats(each)
    elif isinstance(value, float | np.floating) or (
        isinstance(value, np.ndarray) and value.dtype.kind == "f"
    ):
        yield np.asarray(value)


def check_labels(y: np.ndarray, classes: np.ndarray) -> None:
    """Refuse labels that are none of the classes that were given.

    Raises
    ------
    InputError
        It names them.
    """
    if y.ndim > 1:
        return  # of several labels to a row each is a column
    found = np.unique(y) if y.dtype.kind != "O" else np.array(list(dict.fromkeys(y.tolist())), dtype=object)
    known = set(classes.tolist())
    unknown = [label for label in found.tolist() if label not in known]
    if unknown:
        named = ", ".join(map(repr, unknown[:5])) + (
            f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        )
        raise InputError(
            f"y holds {named}, but classes={classes.tolist()!r} {'do' if len(unknown) > 1 else 'does'} not. Name all "
            "classes, or leave classes out: they are then found in an earlier pass."
        )
