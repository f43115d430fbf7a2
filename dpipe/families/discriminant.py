"""Linear and quadratic discriminant analysis: one pass, from the mean and the scatter of each class.

scikit-learn fits a few made-up rows of each class, which have the class's mean and covariance. Its
`shrinkage` is applied to the covariance before the rows are made.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import scipy.linalg
from sklearn.base import clone
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis

from dpipe.blocks.groups import ByClass, Grouped
from dpipe.blocks.quartic import Quartic
from dpipe.blocks.regression import Scatter
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import refuse, stand_in
from dpipe.families.covariance import ledoit_wolf_shrinkage
from dpipe.families.registry import Estimator, Meta, Way, add


def _check(estimator: Estimator) -> None:
    name = type(estimator).__name__
    if estimator.covariance_estimator is not None:
        raise UnsupportedEstimatorError(
            f"{name}(covariance_estimator={estimator.covariance_estimator!r}) cannot be fitted block by block: "
            "it would need the rows of each class. Use shrinkage='auto' or a number."
        )
    if estimator.solver == "svd" and estimator.shrinkage is not None:
        raise InputError(
            f"{name}(solver='svd', shrinkage={estimator.shrinkage!r}): this solver knows no shrinkage. "
            "Use solver='eigen', or shrinkage=None."
        )


def _wants(estimator: Estimator) -> tuple[Any, ...]:
    return (ByClass(Quartic if estimator.shrinkage == "auto" else Scatter),)


def _classes(estimator: Estimator, groups: Grouped) -> tuple[np.ndarray, list[Any]]:
    """Give the sorted labels, and the statistic of each."""
    refuse.unlabelled(estimator, groups.n_unlabelled)
    labels = np.array(sorted(groups.by_group), dtype=groups.label_dtype)
    parts = [groups.by_group[label] for label in labels.tolist()]
    refuse.gaps(estimator, finite=refuse.is_finite(*(part.xx for part in parts)))
    if any(part.sparse for part in parts):
        name = type(estimator).__name__
        raise InputError(f"{name} does not take sparse input. Use a dense array, or TruncatedSVD before it.")
    return labels, parts


def _covariance(part: Any, shrinkage: Any) -> np.ndarray:
    """The covariance of some rows, shrunk as scikit-learn does for a discriminant."""
    covariance = part.xx / part.n_rows
    if shrinkage is None:
        return covariance
    if shrinkage != "auto":
        return shrunk_covariance(covariance, shrinkage)
    scale = np.sqrt(np.diag(covariance))
    scale[scale == 0] = 1.0
    both = np.outer(scale, scale)
    share = ledoit_wolf_shrinkage(part.xx / both, part.xxyy / both**2, part.n_rows)
    return shrunk_covariance(covariance / both, share) * both


def _fitted_on_rows(
    estimator: Estimator,
    labels: np.ndarray,
    parts: Sequence[Any],
    covariances: Sequence[np.ndarray],
    meta: Meta,
) -> Estimator:
    """Fit on as many made-up rows of each class, so the shares of the classes are given as priors."""
    rows = [
        stand_in.rows_with_moments(part.x_mean, covariance)
        for part, covariance in zip(parts, covariances, strict=True)
    ]
    dtype = np.result_type(*(part.dtype for part in parts))
    counts = np.array([part.n_rows for part in parts])
    priors = counts / float(counts.sum()) if estimator.priors is None else estimator.priors
    X = stand_in.filled(meta, np.concatenate(rows).astype(dtype))
    fitted = clone(estimator).set_params(priors=priors, shrinkage=None)
    fitted.fit(X, np.repeat(labels, [len(made) for made in rows]))
    return fitted.set_params(priors=estimator.priors, shrinkage=estimator.shrinkage)


def _finish_linear(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    labels, parts = _classes(estimator, stats[0])
    n, width = sum(part.n_rows for part in parts), len(parts[0].x_mean)
    if n == len(labels):
        raise InputError(
            f"LinearDiscriminantAnalysis: {n:,} rows have {n:,} labels. It needs more rows than classes; "
            "give labels that repeat."
        )
    most = min(len(labels) - 1, width)
    if (estimator.n_components or 0) > most:
        raise InputError(
            f"LinearDiscriminantAnalysis(n_components={estimator.n_components}): {len(labels)} classes of {width} "
            f"features have at most {most} components. Ask for no more."
        )
    covariances = [_covariance(part, estimator.shrinkage) for part in parts]
    if estimator.solver == "svd":
        # it pools the rows of all classes, which are of one size here
        shares = np.array([part.n_rows for part in parts]) / n
        pooled = np.tensordot(shares, covariances, axes=1)
        fitted = _fitted_on_rows(estimator, labels, parts, [pooled] * len(parts), meta)
        if estimator.store_covariance:
            within = np.tensordot(fitted.priors_.astype(np.float64), covariances, axes=1)
            fitted.covariance_ = within.astype(fitted.covariance_.dtype)
        return fitted
    fitted = _fitted_on_rows(estimator, labels, parts, covariances, meta)
    if estimator.solver == "eigen":
        _put_eigen(fitted, parts)
    else:
        _put_least_squares(fitted, covariances)
    return fitted


def _put_least_squares(fitted: Estimator, covariances: Sequence[np.ndarray]) -> None:
    """Solve again: made-up rows lose the digits by which scikit-learn leaves out directions without spread."""
    within = np.tensordot(fitted.priors_.astype(np.float64), covariances, axes=1)
    cutoff = 10 * len(within) * np.finfo(np.float64).eps
    coef = scipy.linalg.lstsq(within, fitted.means_.T.astype(np.float64), cond=cutoff)[0].T
    intercept = np.log(fitted.priors_) - 0.5 * np.einsum("ij,ij->i", fitted.means_, coef)
    if len(coef) == 2:
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    fitted.covariance_ = within
    fitted.coef_ = coef.astype(fitted.coef_.dtype)
    fitted.intercept_ = intercept.astype(fitted.intercept_.dtype)


def _put_eigen(fitted: Estimator, parts: Sequence[Any]) -> None:
    """Solve again with the total covariance: on made-up rows the classes are of one size."""
    within = fitted.covariance_.astype(np.float64)
    total = _covariance(reduce(lambda one, other: one.merge(other), parts), fitted.shrinkage)
    values, vectors = scipy.linalg.eigh(total - within, within)
    order = np.argsort(values)[::-1]
    dtype = fitted.scalings_.dtype
    fitted.explained_variance_ratio_ = (values[order] / values.sum())[: fitted._max_components].astype(dtype)
    fitted.scalings_ = vectors[:, order].astype(dtype)


def _finish_quadratic(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    labels, parts = _classes(estimator, stats[0])
    name = type(estimator).__name__
    if len(labels) < 2:
        raise InputError(
            f"{name} needs at least two classes, but every label of y is {labels.tolist()[0]!r}."
        )
    width = len(parts[0].x_mean)
    for label, part in zip(labels.tolist(), parts, strict=True):
        least = width + 1 if estimator.solver == "svd" else 2
        if part.n_rows < least:
            raise InputError(
                f"{name}(solver={estimator.solver!r}): class {label!r} has {part.n_rows:,} rows of {width} "
                f"features, and needs at least {least}. Leave out that class, use fewer features, or "
                "solver='eigen' with shrinkage."
            )
    covariances = [_covariance(part, estimator.shrinkage) for part in parts]
    try:
        return _fitted_on_rows(estimator, labels, parts, covariances, meta)
    except np.linalg.LinAlgError as err:
        raise InputError(f"{name}: {err}") from err


def _output(estimator: Estimator, meta: Meta) -> Meta:
    return Meta(n_columns=estimator.n_components, dtype=meta.dtype)


_EXACT = "1e-7 relative, for well-conditioned X; vectors up to their signs"
add(
    LinearDiscriminantAnalysis,
    Way("merge", _finish_linear, _wants, check=_check, output=_output, needs_y=True, exact=_EXACT),
)
add(
    QuadraticDiscriminantAnalysis,
    Way("merge", _finish_quadratic, _wants, check=_check, needs_y=True, exact=_EXACT),
)
