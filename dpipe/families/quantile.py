"""What is learned from quantiles: RobustScaler, QuantileTransformer, KBinsDiscretizer, SplineTransformer.

Quantiles are exact: values at ranks, found in a few passes (`blocks/ranks.py`). Where scikit-learn looks at a random
sample of the rows only, the same rows are fetched, and its own `fit` is called on them.
"""

import warnings
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy import stats as distributions
from sklearn.base import BaseEstimator, clone
from sklearn.preprocessing import KBinsDiscretizer, QuantileTransformer, RobustScaler, SplineTransformer
from sklearn.utils import check_random_state, resample

from dpipe.blocks.picked import BlockWeights, Draw, Pick, Picked, WeighBlocks
from dpipe.blocks.ranks import Sample, Sampling, first_look, select
from dpipe.blocks.table import Block, owned_numbers
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import scale, stand_in
from dpipe.families.registry import (
    INFINITE,
    Estimator,
    Meta,
    Refinement,
    Rounds,
    add,
    refined,
)

#: Gives what it has found when it is driven as a refinement.
Asking = Generator[tuple[Any, ...], Sequence[Any], Any]

#: A quantile between 0 and 1, and numpy's method for it; or "median", the mean of the two middle values.
Cut = tuple[float, str]

#: The methods that a quantile can be asked for by name.
METHODS = (
    "linear",
    "inverted_cdf",
    "averaged_inverted_cdf",
    "closest_observation",
    "interpolated_inverted_cdf",
    "hazen",
    "weibull",
    "median_unbiased",
    "normal_unbiased",
)
#: The parameters (alpha, beta) of numpy's continuous methods, after Hyndman and Fan (1996).
_CONTINUOUS = {
    "interpolated_inverted_cdf": (0.0, 1.0),
    "hazen": (0.5, 0.5),
    "weibull": (0.0, 0.0),
    "median_unbiased": (1 / 3, 1 / 3),
    "normal_unbiased": (3 / 8, 3 / 8),
}
#: The methods that are defined for rows that count by their weights.
_WEIGHTED = ("averaged_inverted_cdf", "inverted_cdf")
MEDIAN: Cut = (0.5, "median")


def quantiles(sample: Sample, cuts: Sequence[Cut], *, weighted: bool = False) -> Asking:
    """Find quantiles of each column, exactly.

    Returns
    -------
    numpy.ndarray of shape (len(cuts), n_columns)
        float64, interpolated as numpy does, or of weighted rows as scikit-learn does; NaN where nothing was observed.
    Sample
        Of all blocks; the first pass may have left some out.
    """
    looked, place = None, _weighted_place if weighted else _place
    if not sample.is_complete:
        look = first_look(sample, [q for q, _ in cuts])
        (found,) = yield (look,)
        sample = found.sample
        looked = look, found
    places = [[place(float(n), *cut) for cut in cuts] if n else [] for n in sample.amount]
    amounts = [sorted({amount for low, high, _ in column for amount in (low, high)}) for column in places]
    found = yield from select(sample, amounts, looked)
    out = np.full((len(cuts), len(places)), np.nan)
    for j, column in enumerate(places):
        for i, (low, high, share) in enumerate(column):
            ends = [sample.dtype.type(found[j][amount]) for amount in (low, high)]
            out[i, j] = _between(ends[0], ends[1], share)
    return out, sample


def completed(sample: Sample) -> Asking:
    """Give the sample of all blocks; its counts and extremes are those of the data."""
    if sample.is_complete:
        return sample
    (sample,) = yield (Sampling(),)
    return sample


def _weighted_place(total: float, q: float, method: str) -> tuple[float, float, float]:
    """Give up to which weight a quantile lies, by the definitions of scikit-learn's `_weighted_percentile`."""
    amount = float(q * total) or np.nextafter(0.0, 1.0)
    if method == "inverted_cdf":
        return amount, amount, 0.0
    # the mean with the next value, where the weight up to this one is no more than that
    return amount, np.nextafter(amount + np.finfo(np.float64).eps, np.inf), np.nan


def _place(n: float, q: float, method: str) -> tuple[float, float, float]:
    """Give the two ranks that a quantile lies between, from 1 on, and how far from the first, as numpy defines it."""
    if method == "median":
        return (n + 1) // 2, n // 2 + 1, np.nan
    if method == "linear":
        place = (n - 1) * q
    elif method in ("averaged_inverted_cdf", "inverted_cdf"):
        place = n * q - 1
    elif method == "closest_observation":
        place = n * q - 1.5
    else:
        alpha, beta = _CONTINUOUS[method]
        place = n * q + (alpha + q * (1 - alpha - beta)) - 1
    low = int(np.floor(place))
    share = place - low
    if method == "averaged_inverted_cdf":
        share = 0.5 if share == 0 else 1.0
    elif method == "inverted_cdf":
        share = 0.0 if share == 0 else 1.0
    elif method == "closest_observation":
        share = 0.0 if share == 0 and low % 2 == 1 else 1.0
    return min(max(low, 0), n - 1) + 1, min(max(low + 1, 0), n - 1) + 1, share


def _between(low: Any, high: Any, share: float) -> float:
    """Interpolate as numpy does: from the nearer end; a median is the mean of two values."""
    if np.isnan(share):
        return float(np.mean([low, high], dtype=low.dtype))
    with np.errstate(invalid="ignore"):  # infinity is refused when all is known
        rise = high - low
    return float(high - rise * (1 - share) if share >= 0.5 else low + rise * share)


def check_sample(estimator: Estimator, sample: Sample, meta: Meta, *, missing: bool = True) -> None:
    """Refuse infinity, and missing values where they are not allowed."""
    meta.refuse(sample.infinite, INFINITE)
    if not missing:
        meta.refuse(
            sample.observed < sample.n_rows,
            f"values are missing there, which {type(estimator).__name__} refuses. Impute them first (SimpleImputer).",
        )


def _refine_robust(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    sample: Sample = stats[0]
    X = stand_in.numeric(meta, len(sample.observed), sample.dtype, rows=2, sparse=sample.sparse)
    fitted = clone(estimator).fit(X)
    q_min, q_max = estimator.quantile_range
    cuts = [(q_min / 100, "linear"), (q_max / 100, "linear")] if estimator.with_scaling else []
    found, sample = yield from quantiles(sample, [*cuts, *([MEDIAN] if estimator.with_centering else [])])
    check_sample(estimator, sample, meta)
    if estimator.with_centering:
        fitted.center_ = found[-1].astype(sample.dtype)
    if estimator.with_scaling:
        scale = found[1] - found[0]
        scale[scale < 10 * np.finfo(scale.dtype).eps] = 1.0
        if estimator.unit_variance:
            scale /= distributions.norm.ppf(q_max / 100) - distributions.norm.ppf(q_min / 100)
        fitted.scale_ = scale.astype(fitted.scale_.dtype)
    return fitted


def _transform_robust(fitted: Estimator, block: Block) -> Block:
    out = owned_numbers(block)
    if sp.issparse(out):
        return fitted.transform(out)
    if fitted.with_centering:
        out -= fitted.center_.astype(out.dtype)
    if fitted.with_scaling:
        out /= fitted.scale_.astype(out.dtype)
    return out


def _chosen_rows(n_rows: int, subsample: int, random_state: Any, *, replace: bool) -> np.ndarray:
    """Give the rows that scikit-learn would sample; without a seed, always the same."""
    seed = 0 if random_state is None else random_state
    return resample(np.arange(n_rows), replace=replace, n_samples=subsample, random_state=seed)


def _in_order(picked: Picked, positions: np.ndarray) -> Any:
    """Give the fetched rows in the order in which they were asked for, some of them more than once."""
    at = np.searchsorted(picked.positions, positions)
    return picked.X.iloc[at] if isinstance(picked.X, pd.DataFrame) else picked.X[at]


def _fit_on_sample(estimator: Estimator, n_rows: int, *, replace: bool) -> Asking:
    """Fetch the rows that scikit-learn would look at, and have it look at all of them."""
    positions = _chosen_rows(n_rows, estimator.subsample, estimator.random_state, replace=replace)
    (picked,) = yield (Pick(positions),)
    fitted = clone(estimator).set_params(subsample=None).fit(_in_order(picked, positions))
    return fitted.set_params(subsample=estimator.subsample)


def _fit_on_draws(estimator: Estimator) -> Asking:
    """Draw the rows by their weights, as scikit-learn would, and have it look at all of them."""
    blocks: BlockWeights
    (blocks,) = yield (WeighBlocks(),)
    if not blocks.total.sum():
        raise ZeroDivisionError  # the engine says whose weights they are
    seed = 0 if estimator.random_state is None else estimator.random_state
    (picked,) = yield (Draw(check_random_state(seed).random_sample(estimator.subsample), blocks),)
    order = np.argsort(picked.positions)
    X = picked.X.iloc[order] if isinstance(picked.X, pd.DataFrame) else picked.X[order]
    return clone(estimator).set_params(subsample=None).fit(X).set_params(subsample=estimator.subsample)


def _refine_transformer(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    sample: Sample = stats[0]
    if sample.sparse:
        raise InputError("QuantileTransformer: sparse input is not supported. Pass a dense array or a frame.")
    subsample = estimator.subsample
    if subsample is not None and estimator.n_quantiles > subsample:
        raise InputError(
            f"QuantileTransformer(n_quantiles={estimator.n_quantiles}) is more than subsample={subsample}. "
            "Lower n_quantiles, or raise subsample."
        )
    n_rows = sample.n_total
    if subsample is not None and subsample < n_rows:
        check_sample(estimator, sample, meta)
        return (yield from _fit_on_sample(estimator, n_rows, replace=False))
    n_quantiles = max(1, min(estimator.n_quantiles, n_rows))
    if estimator.n_quantiles > n_rows:
        warnings.warn(
            f"n_quantiles ({estimator.n_quantiles}) is greater than the total number of samples ({n_rows}). "
            "n_quantiles is set to n_samples.",
            stacklevel=2,
        )
    references = np.linspace(0, 1, n_quantiles, endpoint=True)
    found, sample = yield from quantiles(sample, [(share, "linear") for share in references * 100 / 100])
    check_sample(estimator, sample, meta)
    X = stand_in.numeric(meta, len(sample.observed), sample.dtype)
    fitted = clone(estimator).set_params(n_quantiles=1, subsample=None).fit(X)
    fitted.set_params(n_quantiles=estimator.n_quantiles, subsample=subsample)
    fitted.n_quantiles_, fitted.references_, fitted.quantiles_ = n_quantiles, references, found
    return fitted


def _check_bins(estimator: Estimator) -> None:
    if estimator.strategy == "kmeans" and estimator.subsample is None:
        raise UnsupportedEstimatorError(
            "KBinsDiscretizer(strategy='kmeans', subsample=None) cannot be fitted block by block. Give a subsample, "
            "such as the default of 200,000 rows, or use strategy='quantile'."
        )


def _check_method(estimator: Estimator) -> None:
    method = estimator.quantile_method
    if estimator.strategy == "quantile" and method not in _WEIGHTED:
        raise InputError(
            f"KBinsDiscretizer(quantile_method={method!r}) takes no sample_weight. Use one of "
            f"{', '.join(map(repr, _WEIGHTED))}."
        )


def _refine_bins(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    """Fetch what scikit-learn samples; of all rows, ask for their quantiles or extremes."""
    sample: Sample = stats[0]
    subsample = estimator.subsample
    if subsample is not None and subsample < sample.n_total:
        check_sample(estimator, sample, meta, missing=False)
        if meta.weighted:
            return (yield from _fit_on_draws(estimator))
        return (yield from _fit_on_sample(estimator, sample.n_total, replace=True))
    sample = yield from completed(sample)
    check_sample(estimator, sample, meta, missing=False)
    if meta.weighted and not sample.amount.all():
        raise ZeroDivisionError
    if estimator.strategy == "kmeans":
        positions = np.arange(sample.n_rows)
        (picked,) = yield (Pick(positions),)
        return clone(estimator).fit(picked.X, sample_weight=picked.w)
    n_bins = clone(estimator)._validate_n_bins(len(sample.observed))
    if estimator.strategy == "uniform":
        ends = zip(sample.low, sample.high, n_bins, strict=True)
        return _fitted_bins(estimator, [np.linspace(low, high, n + 1) for low, high, n in ends], meta, sample)
    if meta.weighted:
        _check_method(estimator)
    levels = [
        [(share / 100, estimator.quantile_method) for share in np.linspace(0, 100, n + 1)] for n in n_bins
    ]
    cuts = list(dict.fromkeys(cut for column in levels for cut in column))
    found, _ = yield from quantiles(sample, cuts, weighted=meta.weighted)
    if meta.weighted:
        found = found.astype(sample.dtype)  # as scikit-learn's
    edges = [found[[cuts.index(cut) for cut in column], j] for j, column in enumerate(levels)]
    # as scikit-learn does: bins that are too narrow are left out
    edges = [column[np.ediff1d(column, to_begin=np.inf) > 1e-8] for column in edges]
    return _fitted_bins(estimator, edges, meta, sample)


def _fitted_bins(estimator: Estimator, edges: list[np.ndarray], meta: Meta, sample: Sample) -> Estimator:
    """Let scikit-learn cut stand-ins into as many bins, and put the real edges in their place."""
    n_bins = np.array([len(column) - 1 for column in edges])
    X = stand_in.numeric(meta, len(edges), sample.dtype, rows=2)
    rising = stand_in.spread(X)
    one_bin = np.flatnonzero((n_bins < 2) | (sample.low == sample.high))
    if isinstance(X, pd.DataFrame):
        rising.iloc[:, one_bin] = X.iloc[:, one_bin]  # scikit-learn gives a constant column one bin
    else:
        rising[:, one_bin] = X[:, one_bin]
    given = {name: getattr(estimator, name) for name in ("n_bins", "strategy", "subsample")}
    fitted = clone(estimator).set_params(n_bins=np.maximum(n_bins, 2), strategy="uniform", subsample=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of stand-ins
        fitted.fit(rising)
    _warn_of_bins(estimator, n_bins, sample)
    for j in np.flatnonzero(sample.low < sample.high):
        fitted.bin_edges_[j] = edges[j]
    return fitted.set_params(**given)


def _warn_of_bins(estimator: Estimator, n_bins: np.ndarray, sample: Sample) -> None:
    """Warn of constant columns and of bins that were left out, as scikit-learn does."""
    wanted = np.broadcast_to(estimator.n_bins, n_bins.shape)
    for j, (found, asked) in enumerate(zip(n_bins, wanted, strict=True)):
        if sample.low[j] == sample.high[j]:
            warnings.warn(f"Feature {j} is constant and will be replaced with 0.", stacklevel=2)
        elif found < asked:
            warnings.warn(
                f"Bins whose width are too small (i.e., <= 1e-8) in feature {j} are removed. Consider decreasing the "
                "number of bins.",
                stacklevel=2,
            )


def _refine_splines(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    """Have scikit-learn fit on the knots themselves: they are their own extremes and quantiles."""
    sample: Sample = stats[0]
    if estimator.knots == "quantile":
        shares = 100 * np.linspace(0, 1, estimator.n_knots)
        method = "inverted_cdf" if meta.weighted else "linear"
        cuts = [(share / 100, method) for share in shares]
        knots, sample = yield from quantiles(sample, cuts, weighted=meta.weighted)
    else:
        sample = yield from completed(sample)
        knots = np.stack([sample.low, sample.high])
    check_sample(estimator, sample, meta, missing=estimator.handle_missing != "error")
    if meta.weighted and not sample.amount.all():
        raise ZeroDivisionError
    rows = knots if meta.frame is None else pd.DataFrame(knots, columns=meta.frame.columns)
    return clone(estimator).fit(rows)


def _expanded(estimator: Estimator, meta: Meta) -> Meta:
    return Meta(n_columns=None, dtype=meta.dtype, sparse=getattr(estimator, "sparse_output", False))


def _binned(estimator: Estimator, meta: Meta) -> Meta:
    if estimator.encode == "ordinal":
        return Meta(n_columns=meta.width)
    return Meta(n_columns=None, sparse=estimator.encode == "onehot")


def _rounds(estimator: Estimator) -> Rounds:
    n_cuts = len(getattr(estimator, "cuts", ())) or getattr(estimator, "n_quantiles", 2)
    sampled = getattr(estimator, "subsample", None) is not None
    return Rounds(2 if n_cuts > 100 and not sampled else 1, "values near the quantiles", least=0)


def _bin_rounds(estimator: Estimator) -> Rounds:
    return Rounds(2, "values near the quantiles, or the rows of a sample", least=0)


def _sample(estimator: Estimator) -> tuple[Any, ...]:
    return (Sampling(),)


class Quantiles(BaseEstimator):  # type: ignore[misc]
    """What `dpipe.quantile` has fitted: an estimator only in that it shares passes as others do."""

    def __init__(self, cuts: Sequence[Cut]) -> None:
        self.cuts = cuts

    def fit(self, X: Any, y: Any = None) -> "Quantiles":
        """Take the values from dpipe; nothing is learned from X."""
        return self


def _refine_quantiles(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    fitted = clone(estimator)
    fitted.quantiles_, _ = yield from quantiles(stats[0], estimator.cuts)
    return fitted


def _bins_take_weights(estimator: Estimator) -> bool:
    if estimator.subsample is None:  # otherwise the number of rows decides
        _check_method(estimator)
    return True


add(Quantiles, refined(_refine_quantiles, _rounds, _sample))

# RobustScaler maps moments and extremes as the other scalers do, see `scale`
add(
    RobustScaler,
    refined(
        _refine_robust,
        _rounds,
        _sample,
        transform=_transform_robust,
        derive=scale.DERIVE,
        by_rows=lambda est: True,
    ),
)
add(QuantileTransformer, refined(_refine_transformer, _rounds, _sample))
add(
    KBinsDiscretizer,
    refined(
        _refine_bins,
        _bin_rounds,
        _sample,
        check=_check_bins,
        output=_binned,
        takes_weights=_bins_take_weights,
    ),
)
add(
    SplineTransformer,
    refined(_refine_splines, _rounds, _sample, output=_expanded),
)
