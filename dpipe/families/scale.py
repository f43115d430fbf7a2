"""StandardScaler, MinMaxScaler and MaxAbsScaler: one pass, from moments and extremes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from dpipe.blocks.groups import ByClass, ByFold, Grouped
from dpipe.blocks.quartic import Quartic
from dpipe.blocks.regression import CrossProducts, Scatter
from dpipe.blocks.statistics import Extremes, Moments, Nonzeros
from dpipe.blocks.table import Block, numbers, owned_numbers
from dpipe.errors import InputError
from dpipe.families import stand_in
from dpipe.families.registry import INFINITE, Derivation, Estimator, Meta, Way, add, unchanged


def finish_standard(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    """Fit a StandardScaler from moments."""
    moments: Moments = stats[0]
    meta.refuse(~np.isfinite(moments.mean), INFINITE)
    fitted = stand_in.fitted_on_zeros(
        estimator, meta, len(moments.mean), moments.dtype, sparse=moments.sparse, weighted=moments.weighted
    )
    # scikit-learn overlooks the weights if there is no mean to weigh
    counted = moments.count if moments.sparse or fitted.with_mean or fitted.with_std else moments.observed
    seen = counted.astype(fitted.n_samples_seen_.dtype)
    fitted.n_samples_seen_ = seen[0] if (seen == seen[0]).all() else seen
    nothing = moments.observed == 0
    if fitted.mean_ is not None:
        fitted.mean_ = np.where(nothing, np.nan, moments.mean)
    if fitted.with_std:
        fitted.var_ = moments.variance
        mean = fitted.mean_ if fitted.mean_ is not None else moments.mean
        fitted.scale_ = _standard_scale(mean, fitted.var_, fitted.n_samples_seen_)
    return fitted


def _standard_scale(mean: np.ndarray, var: np.ndarray, n_samples: Any) -> np.ndarray:
    """Standard deviations, 1 for columns that are constant."""
    scale = np.sqrt(var)
    scale[is_constant(mean, var, n_samples)] = 1.0
    return scale


def is_constant(mean: np.ndarray, var: np.ndarray, n_samples: Any) -> np.ndarray:
    """Tell which columns are constant up to rounding, as scikit-learn bounds it."""
    eps = np.finfo(np.float64).eps
    with np.errstate(invalid="ignore"):
        return var <= n_samples * eps * var + (n_samples * mean * eps) ** 2


def _transform_standard(fitted: Estimator, block: Block) -> Block:
    matrix = numbers(block)
    if sp.issparse(matrix):
        return fitted.transform(matrix.copy())
    # the first operation makes the result: a copy beforehand would go over the block once more
    shift = fitted.mean_.astype(matrix.dtype) if fitted.with_mean else matrix.dtype.type(0)
    out = np.subtract(matrix, shift, order="F")
    if fitted.with_std:
        out /= fitted.scale_.astype(out.dtype)
    return out


def _check_minmax(estimator: Estimator) -> None:
    low, high = estimator.feature_range
    if low >= high:
        raise InputError(
            f"MinMaxScaler(feature_range={estimator.feature_range!r}): the first end must be the smaller one."
        )


def _finish_minmax(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    extremes: Extremes = stats[0]
    low, high = extremes.low, extremes.high
    meta.refuse(np.isinf(low) | np.isinf(high), INFINITE)
    fitted = stand_in.fitted_on_zeros(estimator, meta, len(low), low.dtype)
    bottom, top = (low.dtype.type(bound) for bound in fitted.feature_range)
    span = high - low
    safe = np.where(span < 10 * np.finfo(span.dtype).eps, span.dtype.type(1), span)
    fitted.scale_ = (top - bottom) / safe
    fitted.min_ = bottom - low * fitted.scale_
    fitted.data_min_, fitted.data_max_, fitted.data_range_ = low, high, span
    fitted.n_samples_seen_ = extremes.n_rows
    return fitted


def _transform_minmax(fitted: Estimator, block: Block) -> Block:
    out = owned_numbers(block)
    if sp.issparse(out):
        raise InputError("MinMaxScaler does not take sparse input. Use MaxAbsScaler, or a dense array.")
    out *= fitted.scale_
    out += fitted.min_
    if fitted.clip:
        np.clip(out, *fitted.feature_range, out=out)
    return out


def _finish_maxabs(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    extremes: Extremes = stats[0]
    low, high = extremes.low, extremes.high
    meta.refuse(np.isinf(low) | np.isinf(high), INFINITE)
    fitted = stand_in.fitted_on_zeros(estimator, meta, len(low), low.dtype, sparse=meta.sparse)
    fitted.max_abs_ = np.fmax(np.abs(low), np.abs(high))
    constant = fitted.max_abs_ < 10 * np.finfo(low.dtype).eps
    fitted.scale_ = np.where(constant, low.dtype.type(1), fitted.max_abs_)
    fitted.n_samples_seen_ = extremes.n_rows
    return fitted


def _transform_maxabs(fitted: Estimator, block: Block) -> Block:
    out = owned_numbers(block)
    if sp.issparse(out):
        return fitted.transform(out)
    out /= fitted.scale_
    if getattr(fitted, "clip", False):
        np.clip(out, -1.0, 1.0, out=out)
    return out


def _affine_moments(scale: np.ndarray, shift: np.ndarray, moments: Moments) -> Moments:
    """Moments of ``scale * x + shift``."""
    return Moments(
        moments.n_rows,
        moments.count,
        moments.observed,
        moments.mean * scale + shift,
        moments.m2 * scale**2,
        moments.dtype,
    )


def _affine_extremes(scale: np.ndarray, shift: np.ndarray, extremes: Extremes) -> Extremes:
    """Extremes of ``scale * x + shift`` for a positive scale."""
    dtype = extremes.low.dtype
    low, high = extremes.low * scale + shift, extremes.high * scale + shift
    return Extremes(extremes.n_rows, extremes.observed, low.astype(dtype), high.astype(dtype))


def _as_affine(fitted: Estimator) -> tuple[np.ndarray, np.ndarray]:
    """What a fitted scaler does, as factors and summands of the columns."""
    width = fitted.n_features_in_
    if isinstance(fitted, MinMaxScaler):
        return fitted.scale_, fitted.min_
    if isinstance(fitted, RobustScaler):
        scale = np.ones(width) if fitted.scale_ is None else 1 / fitted.scale_.astype(np.float64)
        return scale, np.zeros(width) if fitted.center_ is None else -fitted.center_ * scale
    if isinstance(fitted, MaxAbsScaler):
        return 1 / fitted.scale_.astype(np.float64), np.zeros(width)
    scale = 1 / fitted.scale_ if fitted.with_std else np.ones(width)
    return scale, (-fitted.mean_ * scale if fitted.with_mean else np.zeros(width))


def _moments_of_scaled(fitted: Estimator, moments: Moments) -> Moments:
    return _affine_moments(*_as_affine(fitted), moments)


def _extremes_of_scaled(fitted: Estimator, extremes: Extremes) -> Extremes:
    return _affine_extremes(*_as_affine(fitted), extremes)


# a clipped column can leave the line only on unseen rows
def _scaled_moments(estimator: Estimator) -> Derivation | None:
    return Derivation(Moments, _moments_of_scaled, "scaling maps moments linearly")


def _scaled_extremes(estimator: Estimator) -> Derivation | None:
    return Derivation(Extremes, _extremes_of_scaled, "scaling keeps the order of values")


def _scaled_nonzeros(estimator: Estimator) -> Derivation | None:
    return Derivation(Nonzeros, unchanged, "scaling keeps what is stored")


def _scaled_products(fitted: Estimator, products: CrossProducts) -> CrossProducts:
    scale, shift = _as_affine(fitted)
    return replace(
        products,
        x_mean=products.x_mean * scale + shift,
        xx=products.xx * np.outer(scale, scale),
        xy=products.xy * scale[:, None],
    )


def _scaled_quartic(fitted: Estimator, sums: Quartic) -> Quartic:
    scale, shift = _as_affine(fitted)
    return replace(
        sums,
        x_mean=sums.x_mean * scale + shift,
        xx=sums.xx * np.outer(scale, scale),
        xxy=sums.xxy * np.outer(scale**2, scale),
        xxyy=sums.xxyy * np.outer(scale**2, scale**2),
    )


def _scaled_groups(fitted: Estimator, groups: Grouped) -> Grouped:
    scaled = {
        group: (_scaled_quartic if isinstance(found, Quartic) else _scaled_products)(fitted, found)
        for group, found in groups.by_group.items()
    }
    return replace(groups, by_group=scaled)


def _products_rule(
    want: Any, function: Callable[[Estimator, Any], Any] = _scaled_products
) -> Callable[[Estimator], Derivation | None]:
    def rule(estimator: Estimator) -> Derivation | None:
        return Derivation(want, function, "scaling maps products of columns linearly")

    return rule


#: Of how many folds a regression behind a scaler is fitted in the scaler's pass.
_FOLDS = range(2, 21)
_GROUPED = (ByClass(Scatter), ByClass(Quartic), *(ByFold(CrossProducts, n) for n in _FOLDS))


#: How statistics pass through a scaler; also through one that learns from quantiles.
DERIVE = {
    Moments: _scaled_moments,
    Extremes: _scaled_extremes,
    Nonzeros: _scaled_nonzeros,
    CrossProducts: _products_rule(CrossProducts),
    Scatter: _products_rule(Scatter),
    Quartic: _products_rule(Quartic, _scaled_quartic),
    **{want: _products_rule(want, _scaled_groups) for want in _GROUPED},
}

add(
    StandardScaler,
    Way(
        "merge",
        finish_standard,
        lambda est: (Moments,),
        _transform_standard,
        DERIVE,
        exact="1e-9 relative",
        by_rows=lambda est: True,
    ),
)
add(
    MinMaxScaler,
    Way(
        "merge",
        _finish_minmax,
        lambda est: (Extremes,),
        _transform_minmax,
        DERIVE,
        _check_minmax,
        by_rows=lambda est: True,
    ),
)
add(
    MaxAbsScaler,
    Way(
        "merge",
        _finish_maxabs,
        lambda est: (Extremes,),
        _transform_maxabs,
        DERIVE,
        by_rows=lambda est: True,
    ),
)
