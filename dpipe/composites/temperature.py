"""Temperature scaling of scores: one factor for all, found by Newton's method, a reading for each step.

References
----------
Guo, Pleiss, Sun, Weinberger (2017), On calibration of modern neural networks.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from scipy.special import softmax
from sklearn.calibration import _TemperatureScaling

from dpipe.blocks.rows import Rows, RowsAt
from dpipe.blocks.table import Block, n_rows
from dpipe.blocks.threads import single_threaded_blas
from dpipe.composites.scores import Scores
from dpipe.families.asking import Asking

#: Between these lies the logarithm of the factor, as in scikit-learn.
_BOUNDS = (-10.0, 10.0)
#: Added to probabilities before their logarithm is taken, as scikit-learn does.
_LEAST = 1e-12
_MOST_STEPS = 100


@dataclass(frozen=True)
class TemperatureSums:
    """What the rows give to one factor."""

    slope: float
    curvature: float
    """First and second derivative of the loss by the factor."""
    probabilities: bool
    """Whether all scores lie between 0 and 1 and add up to 1."""

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        return type(self)(
            self.slope + other.slope,
            self.curvature + other.curvature,
            self.probabilities and other.probabilities,
        )


@dataclass(frozen=True, eq=False)
class Temperature:
    """Wants the derivatives of the loss at one factor."""

    scores: Scores
    classes: np.ndarray
    factor: float
    are_probabilities: bool
    """Whether the logarithms of the scores are scaled, and not they themselves."""
    complement: bool
    """Whether the one score is the probability of the second class."""
    placed: ClassVar[bool] = True
    name: ClassVar[str] = "loss of the temperature"

    def of(self, X: Block, y: Any, w: Any = None, at: RowsAt | None = None) -> TemperatureSums:
        """Read one block."""
        with single_threaded_blas():
            found, seen = self.scores(Rows(X, y, w, at=at))
        if not n_rows(seen.X):
            return TemperatureSums(0.0, 0.0, True)
        weights = np.ones(len(found)) if seen.w is None else np.asarray(seen.w, dtype=np.float64)
        found = found.astype(np.float64)
        if found.shape[1] == 1:
            found = np.hstack([1.0 - found if self.complement else -found, found])
        logits = np.log(found + _LEAST) if self.are_probabilities else found
        said = softmax(self.factor * logits, axis=1)
        mean = (said * logits).sum(axis=1)
        true = logits[np.arange(len(logits)), np.searchsorted(self.classes, np.asarray(seen.y))]
        spread = (said * (logits - mean[:, None]) ** 2).sum(axis=1)
        likely = bool(((found >= 0) & (found <= 1)).all() and np.isclose(found.sum(axis=1), 1.0).all())
        return TemperatureSums(float(weights @ (mean - true)), float(weights @ spread), likely)


def fit_temperature(scores: Scores, classes: np.ndarray, *, complement: bool) -> Asking:
    """Find the factor that makes the loss least; gives scikit-learn's calibrator."""
    want = Temperature(scores, classes, 1.0, False, complement)
    (sums,) = yield (want,)
    if sums.probabilities:
        want = Temperature(scores, classes, 1.0, True, complement)
        (sums,) = yield (want,)
    low, high, at = *_BOUNDS, 0.0
    for _ in range(_MOST_STEPS):
        # the loss is convex in the factor: its slope tells on which side the least lies
        low, high = (at, high) if sums.slope < 0 else (low, at)
        factor = np.exp(at)
        step = sums.slope / sums.curvature if sums.curvature > 0 else np.inf
        wanted = np.log(factor - step) if np.isfinite(step) and factor > step else np.nan
        after = wanted if low < wanted < high else (low + high) / 2
        if not sums.slope or abs(after - at) <= 64 * np.finfo(float).eps * max(1.0, abs(at)):
            break
        at = float(after)
        (sums,) = yield (Temperature(scores, classes, float(np.exp(at)), want.are_probabilities, complement),)
    calibrator = _TemperatureScaling()
    calibrator.beta_ = np.exp(np.asarray(at))
    return calibrator
