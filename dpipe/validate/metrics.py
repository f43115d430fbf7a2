"""Metrics under scikit-learn's scorer names, each a function of one merged state.

Greater is better for all of them. Metrics that read the same state share it, and all metrics of a
pass share one call of each method of the model for a block.
"""

import difflib
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.base import is_classifier, is_regressor

from dpipe.errors import InputError
from dpipe.validate.curves import ScoreRuns
from dpipe.validate.states import Confusion, ProbabilityLosses, Residuals, Want


@dataclass(frozen=True)
class Metric:
    """A metric: the state that it is computed from, and how."""

    task: Literal["classification", "regression"]
    state: type
    methods: tuple[str, ...]
    """Methods of the model that would do, the best first."""
    value: Callable[[Any], float]
    """From the merged state, or the `Ranking` of merged runs; raises InputError where it is not defined."""
    takes_one: bool = False
    """Whether 1 must be one of two labels: it is the positive one."""
    binary: bool = False
    """Whether the model must know exactly two labels."""


def _share(part: float, whole: float) -> float:
    if whole == 0:
        raise InputError("The weights of all rows add up to 0. Give some rows a weight.")
    return float(part / whole)


def _accuracy(confusion: Confusion) -> float:
    matrix = confusion.matrix
    return _share(np.trace(matrix), matrix.sum())


def _balanced_accuracy(confusion: Confusion) -> float:
    matrix = confusion.matrix
    rows = matrix.sum(axis=1)
    present = rows > 0  # labels that are only predicted have no recall
    _share(0.0, rows.sum())
    return float(np.mean(np.diag(matrix)[present] / rows[present]))


def _divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; 0 where the denominator is 0, as scikit-learn's `zero_division` has it."""
    safe = np.where(denominator == 0, 1.0, denominator)
    return np.where(denominator == 0, 0.0, numerator / safe)


def _label_score(confusion: Confusion, *, kind: str, average: str) -> float:
    """Precision, recall or F1, of the label 1 or averaged over labels."""
    matrix = confusion.matrix
    hits, said, true = np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)
    if average == "binary":
        at = [i for i, label in enumerate(confusion.labels) if label == 1]
        hits, said, true = hits[at], said[at], true[at]
    elif average == "micro":
        hits, said, true = (part.sum(keepdims=True) for part in (hits, said, true))
    if kind == "precision":
        scores = _divided(hits, said)
    elif kind == "recall":
        scores = _divided(hits, true)
    else:
        scores = _divided(2 * hits, said + true)
    if average == "weighted" and true.sum() != 0:
        return float(np.average(scores, weights=true))
    return float(scores.mean()) if len(scores) else 0.0


def _neg_log_loss(losses: ProbabilityLosses) -> float:
    return -_share(losses.log_loss, losses.weight)


def _neg_brier_score(losses: ProbabilityLosses) -> float:
    return -_share(losses.brier, losses.weight)


def _thirds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split what was found of targets, errors and sizes of errors."""
    true, errors, sizes = np.split(values, 3)
    return true, errors, sizes


def _mean_square(residuals: Residuals) -> np.ndarray:
    """Mean squared error of each output."""
    moments = residuals.moments
    _share(0.0, float(moments.count[0]))
    _, mean, _ = _thirds(moments.mean)
    _, variance, _ = _thirds(moments.variance)
    return variance + mean**2


def _variances(residuals: Residuals) -> tuple[np.ndarray, np.ndarray]:
    """Variance of targets and of errors, exactly 0 where all values are the same."""
    constant = residuals.extremes.low == residuals.extremes.high
    true, errors, _ = _thirds(np.where(constant, 0.0, residuals.moments.variance))
    return true, errors


def _explained(unexplained: np.ndarray, variance: np.ndarray) -> float:
    """Give the explained share, averaged over outputs; for constant targets as scikit-learn does."""
    scores = np.where(unexplained == 0, 1.0, 0.0)
    varies = variance > 0
    scores[varies] = 1 - unexplained[varies] / variance[varies]
    return float(scores.mean())


def _r2(residuals: Residuals) -> float:
    if residuals.moments.n_rows < 2:
        return float("nan")
    return _explained(_mean_square(residuals), _variances(residuals)[0])


def _explained_variance(residuals: Residuals) -> float:
    _mean_square(residuals)
    true, errors = _variances(residuals)
    return _explained(errors, true)


def _neg_mean_squared_error(residuals: Residuals) -> float:
    return -float(_mean_square(residuals).mean())


def _neg_root_mean_squared_error(residuals: Residuals) -> float:
    return -float(np.sqrt(_mean_square(residuals)).mean())


def _neg_mean_absolute_error(residuals: Residuals) -> float:
    _mean_square(residuals)
    return -float(_thirds(residuals.moments.mean)[2].mean())


def _neg_max_error(residuals: Residuals) -> float:
    largest = _thirds(residuals.extremes.high)[2]
    if len(largest) > 1:
        raise InputError(
            f"neg_max_error takes one target, but y has {len(largest)} columns. Score each apart."
        )
    return -float(largest[0])


def _of_labels(value: Callable[[Any], float], *, takes_one: bool = False) -> Metric:
    return Metric("classification", Confusion, ("predict",), value, takes_one, takes_one)


def _of_probabilities(value: Callable[[Any], float]) -> Metric:
    return Metric("classification", ProbabilityLosses, ("predict_proba",), value)


def _of_ranks(name: str, *, takes_one: bool) -> Metric:
    methods = ("decision_function", "predict_proba")
    return Metric("classification", ScoreRuns, methods, operator.attrgetter(name), takes_one, binary=True)


def _of_residuals(value: Callable[[Any], float]) -> Metric:
    return Metric("regression", Residuals, ("predict",), value)


METRICS: Mapping[str, Metric] = {
    "accuracy": _of_labels(_accuracy),
    "balanced_accuracy": _of_labels(_balanced_accuracy),
    **{
        kind if average == "binary" else f"{kind}_{average}": _of_labels(
            functools.partial(_label_score, kind=kind, average=average), takes_one=average == "binary"
        )
        for kind in ("precision", "recall", "f1")
        for average in ("binary", "macro", "micro", "weighted")
    },
    "neg_log_loss": _of_probabilities(_neg_log_loss),
    "neg_brier_score": _of_probabilities(_neg_brier_score),
    "roc_auc": _of_ranks("roc_auc", takes_one=False),
    "average_precision": _of_ranks("average_precision", takes_one=True),
    "r2": _of_residuals(_r2),
    "explained_variance": _of_residuals(_explained_variance),
    "neg_mean_squared_error": _of_residuals(_neg_mean_squared_error),
    "neg_root_mean_squared_error": _of_residuals(_neg_root_mean_squared_error),
    "neg_mean_absolute_error": _of_residuals(_neg_mean_absolute_error),
    "neg_max_error": _of_residuals(_neg_max_error),
}


def check_scoring(scoring: Any, estimator: Any, also: Sequence[str] = ()) -> list[str]:
    """Resolve `scoring` to names of metrics that suit an estimator, fitted or not.

    Parameters
    ----------
    scoring : str, sequence of str, or None
        None: accuracy for a classifier, r2 for a regressor, as in scikit-learn's `score`.
    estimator : scikit-learn estimator or pipeline
    also : sequence of str
        More names, which are put after those of `scoring`.

    Returns
    -------
    list of str
        Each name once.

    Raises
    ------
    InputError
        If a name is unknown (with those that are known), does not suit the kind of the estimator, or
        needs a method that it lacks.

    Examples
    --------
    >>> from sklearn.linear_model import LinearRegression
    >>> check_scoring(None, LinearRegression(), ["neg_max_error"])
    ['r2', 'neg_max_error']
    """
    if scoring is None:
        scoring = [_default(estimator)]
    names = [scoring] if isinstance(scoring, str) else scoring
    if not isinstance(names, Sequence | set | frozenset) or not all(isinstance(name, str) for name in names):
        raise InputError(f"scoring must be a name or a list of names, got {scoring!r}. Known: {_known()}.")
    found = list(dict.fromkeys([*(sorted(names) if isinstance(names, set | frozenset) else names), *also]))
    if not found:
        raise InputError(f"scoring names no metric. Known: {_known()}.")
    for name in found:
        _check_suits(name, _metric(name), estimator)
    return found


def _known() -> str:
    return ", ".join(sorted(METRICS))


def _default(estimator: Any) -> str:
    if is_classifier(estimator):
        return "accuracy"
    if is_regressor(estimator):
        return "r2"
    raise InputError(
        f"{type(estimator).__name__} is neither a classifier nor a regressor, so no metric is its own. "
        f"Name one with scoring=...: {_known()}."
    )


def _metric(name: str) -> Metric:
    if name not in METRICS:
        close = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.5)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(f"There is no metric {name!r}.{meant} Known: {_known()}.")
    return METRICS[name]


def _check_suits(name: str, metric: Metric, estimator: Any) -> None:
    kind = type(estimator).__name__
    if metric.task == "classification" and is_regressor(estimator):
        raise InputError(f"{name} is a metric for classifiers, but {kind} is a regressor. Use r2, for one.")
    if not any(hasattr(estimator, method) for method in metric.methods):
        raise InputError(
            f"{name} needs {' or '.join(metric.methods)}, which {kind} does not have. Use a metric of "
            "predicted labels, such as accuracy, or another estimator."
        )


def want_of(name: str, fitted: Any, labels: Sequence[Any]) -> Want:
    """Tell what a pass must collect for a metric of a fitted estimator.

    Raises
    ------
    InputError
        If the metric is not defined for the estimator's labels.
    """
    metric = METRICS[name]
    method = next(method for method in metric.methods if hasattr(fitted, method))
    if metric.binary and len(labels) != 2:
        instead = f"{name}_macro" if metric.state is Confusion else "neg_log_loss"
        known = ", ".join(map(repr, labels[:10]))
        raise InputError(
            f"{name} is for two labels, but the model knows {len(labels)}: {known}. Use {instead}."
        )
    if metric.takes_one and 1 not in labels:
        instead = f"{name}_macro" if metric.state is Confusion else "roc_auc"
        raise InputError(
            f"{name} takes 1 for the positive label, as in scikit-learn, but the model's labels are "
            f"{', '.join(map(repr, labels))}. Use {instead}, or a target of 0 and 1."
        )
    if metric.state is ProbabilityLosses and not labels:
        raise InputError(f"{name} needs a classifier, but {type(fitted).__name__} has no classes_.")
    if metric.state is not ScoreRuns:
        return Want(metric.state, method)
    return Want(ScoreRuns, method, list(labels).index(1) if metric.takes_one else 1)
