"""One learner out of several that have learned from different rows: the mean of all that they have learned."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import SGDOneClassSVM
from sklearn.linear_model._stochastic_gradient import BaseSGD
from sklearn.neural_network import MLPClassifier, MLPRegressor

from dpipe.errors import UnsupportedEstimatorError
from dpipe.families.registry import Estimator

#: Arrays of the linear ones: weights; and with `average`, beside those of the last step the mean of all steps.
_LINEAR = (
    "coef_",
    "intercept_",
    "offset_",
    "_standard_coef",
    "_standard_intercept",
)
_MEANS = ("_average_coef", "_average_intercept")
#: What an optimizer of a network remembers: momentum, or the moments of the gradient.
_OPTIMIZERS = ("velocities", "ms", "vs")

Mean = Callable[[Sequence[Any]], Any]


def check_averaged(estimator: Estimator) -> None:
    """Refuse a learner whose weights mean nothing when they are averaged.

    Raises
    ------
    UnsupportedEstimatorError
        With what can be averaged.
    """
    if not isinstance(estimator, BaseSGD | MLPClassifier | MLPRegressor):
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__} cannot be averaged: its parts do not stand for the same thing in two "
            "learners. SGD estimators, Perceptron, passive-aggressive estimators and MLPs can. Leave average out."
        )


def averaged(before: Estimator, learners: Sequence[Estimator], weights: Sequence[float]) -> Estimator:
    """Give a learner with the weighted mean of what some have learned; those are left as they are.

    Parameters
    ----------
    before : estimator
        What all of them have started from.
    learners : sequence of estimators
        Of one class, with the same parameters.
    weights : sequence of float
        The rows that each has learned from; whoever has learned from none does not count.

    Notes
    -----
    Steps are counted through all learners, so that their length falls with the rows that all have learned from, as
    it does in a single stream. Where `average` of the SGD estimators asks for the mean of the weights after all
    steps, that mean goes over the steps of all learners, each counted once. Moments that Adam keeps are averaged as
    weights are, and so is its count: they are of gradients, whose size does not depend on the number of learners.

    References
    ----------
    Zinkevich, Weimer, Li, Smola (2010), Parallelized Stochastic Gradient Descent.
    McMahan et al. (2017), Communication-Efficient Learning of Deep Networks from Decentralized Data.

    Examples
    --------
    >>> from sklearn.linear_model import SGDRegressor
    >>> a, b = (SGDRegressor(random_state=0).partial_fit([[1.0], [2.0]], [0.0, y]) for y in (1.0, 2.0))
    >>> bool(averaged(SGDRegressor(), [a, b], [1, 3]).coef_ == (a.coef_ + 3 * b.coef_) / 4)
    True
    """
    taking = [(each, weight) for each, weight in zip(learners, weights, strict=True) if weight > 0]
    if len(taking) < 2:
        return taking[0][0] if taking else before
    given = [each for each, _ in taking]
    shares = np.array([weight for _, weight in taking], dtype=np.float64)
    shares /= shares.sum()

    def mean(values: Sequence[Any]) -> Any:
        return _combined(values, shares)

    found = copy.deepcopy(given[0])
    if isinstance(found, BaseSGD):
        _average_linear(found, before, given, mean)
    else:
        _average_network(found, given, mean)
    return found


def _combined(values: Sequence[Any], factors: Iterable[float]) -> np.ndarray:
    """Add up arrays, each times a factor, in double precision; the sum is of the type of the first."""
    total = sum(f * np.asarray(value, dtype=np.float64) for f, value in zip(factors, values, strict=True))
    return np.asarray(total).astype(np.asarray(values[0]).dtype)


def _average_linear(found: Estimator, before: Estimator, given: Sequence[Estimator], mean: Mean) -> None:
    for name in _LINEAR:
        if getattr(found, name, None) is not None:
            setattr(found, name, mean([getattr(each, name) for each in given]))
    begun = getattr(before, "t_", 1.0)
    found.t_ = begun + sum(each.t_ - begun for each in given)
    if not found.average:
        return

    def n_meant(t: float) -> float:
        return max(t - found.average, 0.0)

    counts = [n_meant(each.t_) for each in given]
    total = sum(counts) - (len(given) - 1) * n_meant(begun)
    for name in _MEANS:
        values, factors = [getattr(each, name) for each in given], list(counts)
        if n_meant(begun):  # what was there before stands in each of them
            values.append(getattr(before, name))
            factors.append(-(len(given) - 1) * n_meant(begun))
        if total > 0:
            setattr(found, name, _combined(values, [factor / total for factor in factors]))
    # scikit-learn writes into these arrays, and shows one of them
    shown = "_average" if found.average <= found.t_ - 1.0 else "_standard"
    found.coef_ = getattr(found, f"{shown}_coef")
    shift = getattr(found, f"{shown}_intercept")
    if isinstance(found, SGDOneClassSVM):
        found.offset_ = 1 - np.atleast_1d(shift)
    else:
        found.intercept_ = shift


def _average_network(found: Estimator, given: Sequence[Estimator], mean: Mean) -> None:
    for name in ("coefs_", "intercepts_"):
        setattr(found, name, _each(given, name, mean))
    for name in _OPTIMIZERS:
        if hasattr(found._optimizer, name):
            setattr(found._optimizer, name, _each([each._optimizer for each in given], name, mean))
    if hasattr(found._optimizer, "t"):
        found._optimizer.t = round(float(mean([float(each._optimizer.t) for each in given])))
    found.loss_ = float(mean([each.loss_ for each in given]))
    found.t_ = round(float(mean([float(each.t_) for each in given])))


def _each(given: Sequence[Any], name: str, mean: Mean) -> list[np.ndarray]:
    """Average lists of arrays, place by place."""
    return [mean(values) for values in zip(*(getattr(each, name) for each in given), strict=True)]
