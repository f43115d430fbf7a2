"""Sigmoids of scores, as Platt fits them: one reading for each step.

References
----------
Platt (1999), Probabilistic outputs for support vector machines and comparisons to regularized likelihood methods.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import scipy.optimize
from sklearn._loss import HalfBinomialLoss  # the loss that scikit-learn minimises
from sklearn.calibration import _SigmoidCalibration

from dpipe.blocks.rows import Rows, RowsAt
from dpipe.blocks.table import Block, n_rows
from dpipe.blocks.threads import single_threaded_blas
from dpipe.composites.scores import Scores
from dpipe.families.asking import Asking, asking, together

#: Scores beyond this are scaled down before the fit, as scikit-learn does.
_LARGE_SCORE = 30


@dataclass(frozen=True)
class PlattSums:
    """What the rows give to each sigmoid."""

    largest: np.ndarray
    """Largest absolute score of each; of shape (n_scores,)."""
    negative: np.ndarray
    positive: np.ndarray
    """Weights of the rows of other classes, and of its own."""
    loss: np.ndarray
    gradient: np.ndarray
    """Of shape (n_scores, 2)."""

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        return type(self)(
            np.maximum(self.largest, other.largest),
            self.negative + other.negative,
            self.positive + other.positive,
            self.loss + other.loss,
            self.gradient + other.gradient,
        )


@dataclass(frozen=True, eq=False)
class Platt:
    """Wants the loss of sigmoids of the scores; at first, without parameters, what they start from."""

    scores: Scores
    own: np.ndarray
    """The class that each score stands for."""
    sigmoids: tuple["_Sigmoid | None", ...]
    placed: ClassVar[bool] = True
    name: ClassVar[str] = "loss of the sigmoids"

    def of(self, X: Block, y: Any, w: Any = None, at: RowsAt | None = None) -> PlattSums:
        """Read one block."""
        n = len(self.own)
        nothing = np.zeros(n)
        with single_threaded_blas():
            found, seen = self.scores(Rows(X, y, w, at=at))
        if not n_rows(seen.X):
            return PlattSums(nothing, nothing, nothing, nothing, np.zeros((n, 2)))
        weights = np.ones(len(found)) if seen.w is None else np.asarray(seen.w, dtype=np.float64)
        positive = np.asarray(seen.y)[:, None] == self.own
        loss, gradient = np.zeros(n), np.zeros((n, 2))
        for j, sigmoid in enumerate(self.sigmoids):
            if sigmoid is not None:
                loss[j], gradient[j] = sigmoid.loss(found[:, j], positive[:, j], weights)
        return PlattSums(np.abs(found).max(axis=0), weights @ ~positive, weights @ positive, loss, gradient)


@dataclass(frozen=True)
class _Sigmoid:
    """A sigmoid in the making: its parameters, the scale of the scores, and the targets of both classes."""

    a: float
    b: float
    scale: float
    low: float
    high: float

    def loss(self, scores: np.ndarray, positive: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = scores.astype(np.float64) / self.scale
        wanted = np.where(positive, self.high, self.low)
        losses, slopes = HalfBinomialLoss().loss_gradient(
            y_true=wanted, raw_prediction=-(self.a * scaled + self.b), sample_weight=w
        )
        return float(losses.sum()), np.array([-slopes @ scaled, -slopes.sum()])


def fit_sigmoids(scores: Scores, own: np.ndarray) -> Asking:
    """Fit one sigmoid for each score; gives scikit-learn's calibrators."""
    (start,) = yield (Platt(scores, own, (None,) * len(own)),)
    return (yield from together([asking(partial(_minimise, scores, own, j, start)) for j in range(len(own))]))


def _minimise(
    scores: Scores, own: np.ndarray, j: int, start: PlattSums, ask: Callable[..., Sequence[Any]]
) -> _SigmoidCalibration:
    negative, positive = float(start.negative[j]), float(start.positive[j])
    scale = float(start.largest[j]) if start.largest[j] >= _LARGE_SCORE else 1.0
    low, high = 1.0 / (negative + 2.0), (positive + 1.0) / (positive + 2.0)

    def value(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        sigmoid = _Sigmoid(float(parameters[0]), float(parameters[1]), scale, low, high)
        given = tuple(sigmoid if i == j else None for i in range(len(own)))
        (sums,) = ask(Platt(scores, own, given))
        return float(sums.loss[j]), sums.gradient[j]

    found = scipy.optimize.minimize(
        value,
        np.array([0.0, np.log((negative + 1.0) / (positive + 1.0))]),
        method="L-BFGS-B",
        jac=True,
        options={"gtol": 1e-6, "ftol": 64 * np.finfo(float).eps},
    )
    calibrator = _SigmoidCalibration()
    calibrator.a_, calibrator.b_ = found.x[0] / scale, found.x[1]
    return calibrator
