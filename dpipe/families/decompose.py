"""PCA and TruncatedSVD: one pass, from the cross products of X; or, where X is wide, a few readings without them.

The eigenvectors of X'X are found to rounding, or to the tolerance of `dpipe.families.subspace`, whatever solver was
asked for: they are what the approximate solvers approach. Squaring halves the digits of the smallest singular values.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
from sklearn.base import clone
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.decomposition._pca import _infer_dimension  # Minka's rule stands nowhere else
from sklearn.utils.extmath import svd_flip

from dpipe.blocks.regression import Scatter
from dpipe.errors import InputError, MemoryLimitError
from dpipe.families import refuse, stand_in
from dpipe.families.registry import Estimator, Extent, Meta, Refinement, Rounds, Way, add, refined
from dpipe.families.subspace import MOST_READINGS, Products, Spectrum, leading, n_directions, nbytes_held
from dpipe.sizes import format_bytes

#: Up to so many features cross products are cheap, also in memory; scikit-learn draws the same line.
_NARROW = 1000
#: Cross products up to this size fit into any budget that is worth setting.
_LARGE_NBYTES = 32 * 2**20
#: Readings that the leading components usually take.
_USUAL_READINGS = 5
#: Measured costs, in operations of a large product: to move a value through memory, to multiply one by a direction and
#: back, and to find a value of an eigenvector.
_MOVING, _SLENDER, _EIGEN = 120, 8, 7


def _of_scatter(scatter: Scatter, *, centred: bool) -> Spectrum:
    """Give all eigenvalues, and the eigenvectors."""
    n, mean = scatter.n_rows, scatter.x_mean
    values, vectors = scipy.linalg.eigh(scatter.xx if centred else scatter.xx + n * np.outer(mean, mean))
    values, rows = np.clip(values[::-1], 0.0, None), vectors[:, ::-1].T
    spread = values if centred else np.einsum("ki,ij,kj->k", rows, scatter.xx, rows)
    total = values.sum() if centred else np.trace(scatter.xx)
    return Spectrum(n, mean, values, rows, spread, float(total), scatter.dtype, scatter.sparse)


def _finish_pca(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    scatter: Scatter = stats[0]
    refuse.gaps(estimator, finite=refuse.is_finite(scatter.xx), sums=scatter.x_mean)
    return _as_pca(estimator, _of_scatter(scatter, centred=True), meta)


def _as_pca(estimator: Estimator, found: Spectrum, meta: Meta) -> Estimator:
    n, width, dtype = found.n_rows, len(found.mean), found.dtype
    variance, total = found.values / (n - 1), found.total / (n - 1)
    ratio = variance / total
    solver = _solver(estimator, n, width, found.sparse)
    kept = _n_components(estimator, found, ratio, solver)
    fitted = _stand_in(estimator, found, meta)
    fitted.set_params(n_components=estimator.n_components, svd_solver=estimator.svd_solver)
    fitted._fit_svd_solver = solver
    fitted.n_samples_, fitted.n_components_ = n, kept
    fitted.mean_ = found.mean.astype(dtype)
    fitted.components_ = _signed(found.rows[:kept], dtype)
    fitted.explained_variance_ = variance[:kept].astype(dtype)
    fitted.explained_variance_ratio_ = ratio[:kept].astype(dtype)
    fitted.singular_values_ = np.sqrt(found.values[:kept]).astype(dtype)
    # scikit-learn counts all eigenvalues of a covariance, also those that are zero for want of rows
    n_all = width if solver == "covariance_eigh" else min(n, width)
    left = max(total - float(variance[:kept].sum()), 0.0)
    fitted.noise_variance_ = dtype.type(left / (n_all - kept)) if kept < min(n, width) else 0.0
    return fitted


def _stand_in(estimator: Estimator, found: Spectrum, meta: Meta) -> Estimator:
    """Fit one component of rows of zeros."""
    width = len(found.mean)
    X, solver = stand_in.numeric(meta, width, found.dtype, rows=2, sparse=found.sparse), "full"
    if found.sparse and width <= _NARROW:
        solver = "covariance_eigh"
    elif found.sparse:
        X, solver = stand_in.spread(X), "arpack"  # which finds nothing in zeros
    with np.errstate(divide="ignore", invalid="ignore"):
        return clone(estimator).set_params(n_components=1, svd_solver=solver).fit(X)


def _signed(rows: np.ndarray, dtype: Any) -> np.ndarray:
    """Give components the signs that scikit-learn gives them."""
    return np.ascontiguousarray(svd_flip(None, rows, u_based_decision=False)[1], dtype=dtype)


def _n_components(estimator: Estimator, found: Spectrum, ratio: np.ndarray, solver: str) -> Any:
    """Work out how many components are kept, in any of the forms that PCA takes."""
    n, width = found.n_rows, len(found.mean)
    wanted, most = estimator.n_components, min(n, width)
    if wanted is None:
        return most - (solver == "arpack")
    if wanted == "mle":
        return _infer_dimension(found.values / (n - 1), n)
    if 0 < wanted < 1:
        return np.searchsorted(np.cumsum(ratio), wanted, side="right") + 1
    _check_most(estimator, n, width)
    return wanted


def _check_most(estimator: Estimator, n: int, width: int) -> None:
    if estimator.n_components > min(n, width):
        raise InputError(
            f"PCA(n_components={estimator.n_components}): there are {n:,} rows of {width:,} features. Ask for at "
            f"most {min(n, width)}."
        )


def _solver(estimator: Estimator, n: int, width: int, sparse: bool) -> str:
    """Name the solver that scikit-learn would have chosen."""
    if estimator.svd_solver != "auto":
        return str(estimator.svd_solver)
    if sparse:
        return "arpack"
    if width <= 1000 and n >= 10 * width:
        return "covariance_eigh"
    wanted = estimator.n_components
    if max(n, width) > 500 and wanted is not None and wanted != "mle" and 1 <= wanted < 0.8 * min(n, width):
        return "randomized"
    return "full"


def _finish_svd(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    scatter: Scatter = stats[0]
    refuse.gaps(estimator, finite=refuse.is_finite(scatter.xx), sums=scatter.x_mean)
    width, kept = len(scatter.x_mean), estimator.n_components
    if kept > width:
        raise InputError(
            f"TruncatedSVD(n_components={kept}): there are {width} features. Ask for at most {width}."
        )
    return _as_svd(estimator, _of_scatter(scatter, centred=False), meta)


def _as_svd(estimator: Estimator, found: Spectrum, meta: Meta) -> Estimator:
    kept, dtype = estimator.n_components, found.dtype
    fitted = clone(estimator).set_params(n_components=1, algorithm="randomized")
    with np.errstate(divide="ignore", invalid="ignore"):
        fitted.fit(stand_in.numeric(meta, len(found.mean), dtype, rows=2, sparse=found.sparse))
    fitted.set_params(n_components=kept, algorithm=estimator.algorithm)
    variance = found.spread[:kept] / found.n_rows
    fitted.components_ = _signed(found.rows[:kept], dtype)
    fitted.explained_variance_ = variance.astype(dtype)
    fitted.explained_variance_ratio_ = (variance / (found.total / found.n_rows)).astype(dtype)
    fitted.singular_values_ = np.sqrt(found.values[:kept]).astype(dtype)
    return fitted


def _refine(estimator: Estimator, stats: Sequence[Any], meta: Meta, *, pca: bool) -> Refinement:
    width = meta.width
    assert width is not None

    def check(found: Products) -> None:
        refuse.gaps(estimator, finite=refuse.is_finite(found.total, found.products), sums=found.mean)
        if pca:
            _check_most(estimator, found.n_rows, width)

    seed = estimator.random_state
    found = yield from leading(
        width,
        estimator.n_components,
        oversamples=estimator.n_oversamples,
        seed=int(seed) if isinstance(seed, int | np.integer) else 0,
        centred=pca,
        sparse=meta.sparse,
        check=check,
    )
    return (_as_pca if pca else _as_svd)(estimator, found, meta)


def _scatter_nbytes(estimator: Estimator, width: int) -> tuple[int, int]:
    # eigenvectors, and what LAPACK needs for them
    return 8 * width**2, 4 * 8 * width**2


def _leading_nbytes(estimator: Estimator, width: int) -> tuple[int, int]:
    return nbytes_held(width, estimator.n_components, estimator.n_oversamples)


def _by_size(estimator: Estimator, extent: Extent, *, pca: bool) -> Way | None:
    """Choose the way of wide rows where cross products of all features cost more, or are large."""
    wanted, width, name = estimator.n_components, extent.width, type(estimator).__name__
    if width <= _NARROW:
        return None
    products = f"the cross products of {width:,} features take {format_bytes(8 * width**2)}"
    if not isinstance(wanted, int | np.integer):
        held = extent.held(_scatter_nbytes(estimator, width))
        limit = extent.available if extent.memory is None else extent.memory // 2
        if limit is not None and held > limit:
            given = f"{format_bytes(limit)} of memory are free"
            if extent.memory is not None:
                given = f"the budget is {format_bytes(extent.memory)}"
            raise MemoryLimitError(
                f"{name}(n_components={wanted!r}) needs all components: {products}, and several of them are held, "
                f"{format_bytes(held)} in all, but {given}. Ask for a number of components, as n_components=20, which "
                "are found without them, or coarsen the features."
            )
        return None
    # of rows that are not counted, there may be many
    n = extent.n_rows or 10 * width
    exact = n * width**2 + _EIGEN * width**3
    k = n_directions(int(wanted), estimator.n_oversamples)
    approached = _USUAL_READINGS * n * width * (_SLENDER * k + _MOVING)
    # by the shape alone: a budget that decided would make another answer of it
    if 8 * width**2 <= _LARGE_NBYTES and exact <= approached:
        return None
    why = f"{products}: only the leading {wanted} components are sought, {k} directions at a time"
    return replace(_WIDE[pca], because=f"{name}: {why}")


def _output_pca(estimator: Estimator, meta: Meta) -> Meta:
    wanted = estimator.n_components
    known = int(wanted) if isinstance(wanted, int | np.integer) else None
    return Meta(n_columns=known, dtype=meta.dtype)


def _output_svd(estimator: Estimator, meta: Meta) -> Meta:
    return Meta(n_columns=estimator.n_components, dtype=meta.dtype)


def _wide(*, pca: bool) -> Way:
    return refined(
        partial(_refine, pca=pca),
        lambda est: Rounds(MOST_READINGS, "products with the leading directions", least=2),
        output=_output_pca if pca else _output_svd,
        footprint=_leading_nbytes,
    )


_WIDE = {pca: _wide(pca=pca) for pca in (True, False)}

add(
    PCA,
    Way(
        "merge",
        _finish_pca,
        lambda est: (Scatter,),
        output=_output_pca,
        exact="1e-7 relative",
        by_size=partial(_by_size, pca=True),
        footprint=_scatter_nbytes,
    ),
)
add(
    TruncatedSVD,
    Way(
        "merge",
        _finish_svd,
        lambda est: (Scatter,),
        output=_output_svd,
        exact="1e-7 relative of the exact one",
        by_size=partial(_by_size, pca=False),
        footprint=_scatter_nbytes,
    ),
)
