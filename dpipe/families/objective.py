"""Objectives that are sums over rows, and how they are minimised: one reading for each evaluation.

L-BFGS is SciPy's, with the settings of scikit-learn, so that it takes the same steps. Where scikit-learn uses a solver
that visits single rows (SAG, SAGA, LIBLINEAR), Newton's method goes to the same minimum in fewer readings; a penalty of
absolute values is taken into its quadratic model, which is then minimised by coordinate descent.

References
----------
Lee, Sun, Saunders (2014), Proximal Newton-type methods for minimizing composite functions.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import scipy.linalg
import scipy.optimize
from sklearn.exceptions import ConvergenceWarning

from dpipe.blocks.side_by_side import SideBySide
from dpipe.blocks.table import Block, numbers
from dpipe.blocks.threads import single_threaded_blas
from dpipe.families.asking import Asking, asking


@dataclass(frozen=True)
class Sums:
    """An objective and its derivatives, added up over rows."""

    weight: float
    loss: float
    gradient: np.ndarray
    """float64 of shape (n_parameters,)."""
    hessian: np.ndarray | None
    """float64 of shape (n_parameters, n_parameters); None if it was not asked for."""
    dtype: np.dtype[Any]
    sparse: bool

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        hessian = None if self.hessian is None or other.hessian is None else self.hessian + other.hessian
        return replace(
            self,
            weight=self.weight + other.weight,
            loss=self.loss + other.loss,
            gradient=self.gradient + other.gradient,
            hessian=hessian,
            dtype=np.result_type(self.dtype, other.dtype),
        )

    @property
    def is_finite(self) -> bool:
        """Whether neither X nor y had NaN or infinity in it."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.gradient).all())


Terms = Callable[[Any, np.ndarray, np.ndarray | None, np.ndarray, bool], tuple[float, float, np.ndarray, Any]]


@dataclass(frozen=True, eq=False)
class Objective:
    """Wants an objective at some parameters."""

    terms: Terms
    """From X, y, weights, the parameters and whether second derivatives are wanted to the sums over one block: of
    the weights, the loss, its gradient and its Hessian. A function that can be pickled."""
    parameters: np.ndarray
    second: bool = False
    in_parts: bool = False
    """Whether `terms` only multiplies with X, so that one-hot codes need not be written out."""
    name: ClassVar[str] = "loss and gradient"

    def of(self, X: Block, y: np.ndarray, w: np.ndarray | None = None) -> Sums:
        """Read one block."""
        matrix = X if isinstance(X, SideBySide) else numbers(X)
        weights = None if w is None else np.asarray(w, dtype=np.float64)
        with single_threaded_blas(), np.errstate(over="ignore", invalid="ignore"):
            found = self.terms(matrix, y, weights, self.parameters, self.second)
        weight, loss, gradient, hessian = found
        return Sums(
            float(weight),
            float(loss),
            np.asarray(gradient, dtype=np.float64),
            None if hessian is None else np.asarray(hessian, dtype=np.float64),
            matrix.dtype,
            matrix.sparse if isinstance(matrix, SideBySide) else not isinstance(matrix, np.ndarray),
        )


@dataclass(frozen=True)
class Penalty:
    """What is added to the sum over rows."""

    l1: float
    l2: float
    penalised: np.ndarray
    """Which parameters are: boolean, of shape (n_parameters,)."""

    def smooth(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Give the quadratic part, and its gradient."""
        kept = np.where(self.penalised, parameters, 0.0)
        return 0.5 * self.l2 * float(kept @ kept), self.l2 * kept

    def absolute(self, parameters: np.ndarray) -> float:
        """Give the part of absolute values."""
        return self.l1 * float(np.abs(parameters[self.penalised]).sum())


@dataclass(frozen=True)
class Solved:
    """A minimum, and how it was found."""

    parameters: np.ndarray
    n_iter: int
    sums: Sums
    """Of the last evaluation."""


Check = Callable[[Sums], None]


#: What scikit-learn sets for its generalised linear models.
_SETTINGS = {"maxls": 50, "ftol": 64 * np.finfo(float).eps}


def lbfgs(
    terms: Terms,
    start: np.ndarray,
    penalty: Penalty,
    *,
    tol: float,
    max_iter: int,
    check: Check,
    mean: bool = True,
    in_parts: bool = False,
    **options: Any,
) -> Asking:
    """Minimise by L-BFGS, with scikit-learn's settings; gives `Solved`.

    `check` refuses what the first evaluation shows of the data. Without `mean` the sum is minimised, with SciPy's
    own settings; `in_parts` as for `Objective`; `options` go to `scipy.optimize.minimize`.
    """

    def solve(ask: Callable[..., Sequence[Any]]) -> Solved:
        last: list[Sums] = []

        def value(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            (sums,) = ask(Objective(terms, parameters.copy(), in_parts=in_parts))
            if not last:
                check(sums)
            last[:] = [sums]
            loss, gradient = penalty.smooth(parameters)
            scale = sums.weight if mean else 1.0
            return (sums.loss + loss) / scale, (sums.gradient + gradient) / scale

        settings = {"maxiter": max_iter, "gtol": tol, **(_SETTINGS if mean else {})}
        found = scipy.optimize.minimize(
            value, start, method="L-BFGS-B", jac=True, options=settings, **options
        )
        if found.status != 0:
            _warn(f"lbfgs failed to converge after {found.nit} iteration(s): {found.message}")
        return Solved(found.x, min(found.nit, max_iter), last[0])

    return asking(solve)


def _warn(what: str) -> None:
    warnings.warn(
        f"{what}. Increase max_iter, or scale the data (StandardScaler).", ConvergenceWarning, stacklevel=2
    )


#: A step is taken if it lowers the objective by this share of what its model promised.
_SUFFICIENT = 1e-4
_MOST_HALVINGS = 40


def newton(
    terms: Terms, start: np.ndarray, penalty: Penalty, *, tol: float, max_iter: int, check: Check
) -> Asking:
    """Minimise by Newton's method, one reading a step; gives `Solved`.

    Ends when no entry of the gradient of the mean loss, or of its smallest subgradient, exceeds `tol`.
    """
    parameters = np.array(start, dtype=np.float64)
    (sums,) = yield (Objective(terms, parameters, second=True),)
    check(sums)
    value = _value(sums, penalty, parameters)
    n_iter = 0
    while np.abs(_subgradient(sums, penalty, parameters)).max(initial=0.0) > tol * sums.weight:
        if n_iter >= max_iter:
            _warn(f"Newton's method has not converged after {n_iter} iteration(s)")
            break
        step, promised = _newton_step(sums, penalty, parameters)
        size = 1.0
        for _ in range(_MOST_HALVINGS):
            moved = parameters + size * step
            (tried,) = yield (Objective(terms, moved, second=True),)
            there = _value(tried, penalty, moved)
            # near the minimum, rounding hides what a step gains
            slack = 1e-14 * abs(value)
            if np.isfinite(there) and there <= value + _SUFFICIENT * size * promised + slack:
                break
            size /= 2
        else:
            _warn("Newton's method found no step that lowers the objective")
            break
        parameters, sums, value = moved, tried, there
        n_iter += 1
    return Solved(parameters, n_iter, sums)


def _value(sums: Sums, penalty: Penalty, parameters: np.ndarray) -> float:
    return sums.loss + penalty.smooth(parameters)[0] + penalty.absolute(parameters)


def _subgradient(sums: Sums, penalty: Penalty, parameters: np.ndarray) -> np.ndarray:
    """The subgradient of smallest norm: zero at the minimum."""
    gradient = sums.gradient + penalty.smooth(parameters)[1]
    if not penalty.l1:
        return gradient
    at_zero = np.sign(gradient) * np.maximum(np.abs(gradient) - penalty.l1, 0.0)
    elsewhere = gradient + penalty.l1 * np.sign(parameters)
    return np.where(penalty.penalised, np.where(parameters == 0, at_zero, elsewhere), gradient)


def _newton_step(sums: Sums, penalty: Penalty, parameters: np.ndarray) -> tuple[np.ndarray, float]:
    """The step to the minimum of the quadratic model, and the change that its slope promises."""
    assert sums.hessian is not None
    gradient = sums.gradient + penalty.smooth(parameters)[1]
    hessian = sums.hessian + np.diag(np.where(penalty.penalised, penalty.l2, 0.0))
    if penalty.l1:
        step = _coordinate_descent(hessian, gradient, penalty, parameters)
        gain = penalty.absolute(parameters + step) - penalty.absolute(parameters)
        return step, float(gradient @ step) + gain
    # a Hessian may be singular: classes that are separated, columns that repeat each other
    hessian[np.diag_indices_from(hessian)] += 1e-12 * max(float(np.trace(hessian)) / len(hessian), 1e-300)
    try:
        step = -scipy.linalg.solve(hessian, gradient, assume_a="pos")
    except (np.linalg.LinAlgError, ValueError):
        step = -scipy.linalg.lstsq(hessian, gradient)[0]
    return step, float(gradient @ step)


def _coordinate_descent(
    hessian: np.ndarray, gradient: np.ndarray, penalty: Penalty, parameters: np.ndarray
) -> np.ndarray:
    """Minimise the quadratic model plus the absolute values, one coordinate after another."""
    step = np.zeros_like(parameters)
    slope = gradient.copy()
    curvature = np.maximum(np.diag(hessian), 1e-12)
    threshold = np.where(penalty.penalised, penalty.l1, 0.0) / curvature
    active: np.ndarray = np.arange(len(step))
    for sweep in range(1000):
        largest = 0.0
        for j in active:
            wanted = parameters[j] + step[j] - slope[j] / curvature[j]
            wanted = np.sign(wanted) * max(abs(wanted) - threshold[j], 0.0)
            change = wanted - parameters[j] - step[j]
            if change:
                step[j] += change
                slope += change * hessian[j]
                largest = max(largest, abs(change) * curvature[j] ** 0.5)
        scale = max(float(np.abs((parameters + step) * curvature**0.5).max(initial=0.0)), 1e-300)
        if largest > 1e-12 * scale:
            # most coordinates stay at zero: they are looked at again when the others have settled
            active = np.flatnonzero(parameters + step) if sweep % 10 else np.arange(len(step))
        elif len(active) == len(step):
            break
        else:
            active = np.arange(len(step))
    return step
