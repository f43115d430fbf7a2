"""PowerTransformer: the most likely exponent of each column, from its likelihood at several points a reading.

The log-likelihood is a smooth function of the exponent. Each reading evaluates it at the nodes of a polynomial, whose
maximum is where the next, narrower set of nodes lies: three or four readings give ten digits.

References
----------
Box, Cox (1964), An analysis of transformations. Yeo, Johnson (2000), A new family of power transformations to improve
normality or symmetry.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.polynomial import chebyshev
from scipy import special, stats
from sklearn.base import clone
from sklearn.preprocessing import PowerTransformer

from dpipe.blocks.statistics import Extremes, Moments
from dpipe.blocks.table import Block, double_columns
from dpipe.errors import InputError
from dpipe.families import scale, stand_in
from dpipe.families.registry import INFINITE, Estimator, Meta, Refinement, Rounds, add, refined

#: The first interval of exponents, and its nodes; then the width of the later ones.
_FIRST, _NODES, _LATER = (-3.0, 5.0), 17, (0.25, 0.004)
_MOST_MOVES = 40
#: Relative to the mean; below it, rounding is seen in the likelihood.
_LEAST_SPREAD = 1e-11


@dataclass(frozen=True)
class Transformed:
    """Moments of each column after several powers, and the sum of its logarithms."""

    moments: tuple[Moments, ...]
    """For each column, of as many columns as there are exponents."""
    logs: np.ndarray
    """Of shape (n_columns,): what the Jacobian of the transform is made of."""

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        joined = tuple(a.merge(b) for a, b in zip(self.moments, other.moments, strict=True))
        return type(self)(joined, self.logs + other.logs)


@dataclass(frozen=True)
class Powers:
    """Wants the moments of each column after some powers of its own."""

    method: str
    exponents: tuple[tuple[float, ...], ...]
    bare: tuple[bool, ...] = ()
    """Columns without negative values leave out the constant of the transform, beside which strong powers vanish."""
    name: ClassVar[str] = "moments after several powers"

    def of(self, X: Block, y: Any = None, w: np.ndarray | None = None) -> Transformed:
        """Read one block."""
        found, logs = [], []
        for j, (values, exponents) in enumerate(zip(_observed(X), self.exponents, strict=True)):
            power = _bare_power if self.bare and self.bare[j] else _power
            made = [power(self.method, values, exponent) for exponent in exponents]
            found.append(Moments.of(np.column_stack(made) if made else np.empty((len(values), 0))))
            logs.append(_log_sum(self.method, values) if exponents else 0.0)
        return Transformed(tuple(found), np.array(logs))


def _observed(X: Block) -> Iterator[np.ndarray]:
    _, columns = double_columns(X)
    return (np.delete(values, gaps) for values, gaps in columns)


def _power(method: str, values: np.ndarray, exponent: float) -> np.ndarray:
    transform = special.boxcox if method == "box-cox" else stats.yeojohnson
    return transform(values, exponent)


def _bare_power(method: str, values: np.ndarray, exponent: float) -> np.ndarray:
    logs = np.log(values) if method == "box-cox" else np.log1p(values)
    return logs if exponent == 0 else np.exp(exponent * logs) / exponent


def _log_sum(method: str, values: np.ndarray) -> float:
    if method == "box-cox":
        return float(np.log(values).sum())
    return float((np.sign(values) * np.log1p(np.abs(values))).sum())


def _likelihood(found: Transformed, j: int, exponents: np.ndarray) -> np.ndarray:
    """The log-likelihood of a column at each of its exponents, up to a constant."""
    moments = found.moments[j]
    with np.errstate(divide="ignore", invalid="ignore"):
        return -0.5 * moments.count * np.log(moments.variance) + (exponents - 1) * found.logs[j]


def _is_exact(found: Transformed, j: int) -> np.ndarray:
    """Tell at which exponents the values differ by more than their rounding: strong powers make them all alike."""
    moments = found.moments[j]
    return np.asarray(np.sqrt(moments.variance) > _LEAST_SPREAD * np.abs(moments.mean))


def _nodes(low: float, high: float) -> np.ndarray:
    return 0.5 * (low + high) + 0.5 * (high - low) * chebyshev.chebpts1(_NODES)


def _highest(values: np.ndarray, low: float, high: float) -> float:
    """Where the polynomial through the nodes of an interval is highest."""
    rise = np.polynomial.Chebyshev(chebyshev.chebfit(chebyshev.chebpts1(_NODES), values, _NODES - 1))
    roots = rise.deriv().roots()
    inner = np.real(roots[(np.abs(np.imag(roots)) < 1e-6) & (np.abs(np.real(roots)) <= 1)])
    places = np.concatenate([[-1.0, 1.0], inner])
    best = places[np.argmax(rise(places))]
    return float(0.5 * (low + high) + 0.5 * (high - low) * best)


def _refine(estimator: Estimator, stats_: Sequence[Any], meta: Meta) -> Refinement:
    moments: Moments = stats_[0]
    extremes: Extremes = stats_[1]
    meta.refuse(~np.isfinite(moments.mean), INFINITE)
    if estimator.method == "box-cox":
        meta.refuse(
            extremes.low <= 0,
            "Box-Cox takes positive values only. Use method='yeo-johnson', or leave the column out.",
        )
    meta.refuse(moments.observed == 0, "all values are missing. Leave the column out.")
    width = len(moments.mean)
    constant = scale.is_constant(moments.mean, moments.variance, np.float64(moments.n_rows))
    lambdas = np.ones(width)
    wanted = [j for j in range(width) if not (estimator.method == "yeo-johnson" and constant[j])]
    intervals = dict.fromkeys(wanted, _FIRST)
    for later in (*_LATER, None):
        yield from _search(estimator, intervals, lambdas, tuple((extremes.low >= 0).tolist()))
        if later is not None:
            intervals = {j: (lambdas[j] - later / 2, lambdas[j] + later / 2) for j in wanted}
    fitted = _stand_in(estimator, meta, moments)
    fitted.lambdas_ = lambdas.astype(fitted.lambdas_.dtype)
    if estimator.standardize:
        at = tuple((float(exponent),) for exponent in fitted.lambdas_)
        (found,) = yield (Powers(estimator.method, at),)
        columns = [each if j in intervals else _column(moments, j) for j, each in enumerate(found.moments)]
        fitted._scaler = scale.finish_standard(
            fitted._scaler, [_side_by_side(columns, moments)], Meta(n_columns=width)
        )
    return fitted


def _search(
    estimator: Estimator,
    intervals: dict[int, tuple[float, float]],
    lambdas: np.ndarray,
    bare: tuple[bool, ...],
) -> Any:
    """Find the highest place of each column in its interval, which moves as long as that is at an end."""
    intervals = dict(intervals)
    for _ in range(_MOST_MOVES):
        if not intervals:
            return
        nodes = {j: _nodes(*ends) for j, ends in intervals.items()}
        exponents = tuple(tuple(nodes[j].tolist()) if j in nodes else () for j in range(len(lambdas)))
        (found,) = yield (Powers(estimator.method, exponents, bare),)
        for j, (low, high) in list(intervals.items()):
            values = _likelihood(found, j, nodes[j])
            exact = np.isfinite(values) & _is_exact(found, j)
            if 2 < exact.sum() < len(values):  # only those exponents that keep the values apart tell anything
                intervals[j] = float(nodes[j][exact].min()), float(nodes[j][exact].max())
                continue
            if not np.isfinite(values).all():
                raise InputError(
                    f"PowerTransformer: the powers of column {j} overflow between {low:g} and {high:g}. Scale it first "
                    "(StandardScaler, RobustScaler)."
                )
            lambdas[j] = _highest(values, low, high)
            if lambdas[j] in (low, high):
                shift = (high - low) * (0.75 if lambdas[j] == high else -0.75)
                intervals[j] = low + shift, high + shift
            else:
                del intervals[j]


def _stand_in(estimator: Estimator, meta: Meta, moments: Moments) -> Estimator:
    rows = stand_in.spread(stand_in.numeric(meta, len(moments.mean), moments.dtype, rows=5))
    return clone(estimator).fit(rows + rows.dtype.type(1) if isinstance(rows, np.ndarray) else rows + 1)


def _column(moments: Moments, j: int) -> Moments:
    one = slice(j, j + 1)
    parts = (moments.count[one], moments.observed[one], moments.mean[one], moments.m2[one])
    return Moments(moments.n_rows, *parts, moments.dtype)


def _side_by_side(columns: Sequence[Moments], of: Moments) -> Moments:
    """Put the moments of single columns together, in which only observed values were counted."""
    count, observed, mean, m2 = (
        np.concatenate([getattr(column, name) for column in columns])
        for name in ("count", "observed", "mean", "m2")
    )
    return Moments(of.n_rows, count, observed, mean, m2, of.dtype)


add(
    PowerTransformer,
    refined(
        _refine,
        lambda est: Rounds(3 + bool(est.standardize) + 2, "moments after several powers", least=3),
        lambda est: (Moments, Extremes),
        exact="1e-6 relative: the search of scikit-learn ends there",
    ),
)
