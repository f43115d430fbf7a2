"""Regressions that choose their penalty by folds: one pass, from the cross products of each fold.

The folds of `KFold` follow from the place of a row among all rows, so each block adds to the folds that it
reaches. scikit-learn then cross-validates on made-up rows of each fold, which have its moments: they train
and they are scored as the real ones, because a squared error looks at no more than moments.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import ElasticNetCV, LassoCV, MultiTaskElasticNetCV, MultiTaskLassoCV, RidgeCV
from sklearn.model_selection import KFold

from dpipe.blocks.groups import ByFold, Grouped
from dpipe.blocks.regression import CrossProducts
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import stand_in
from dpipe.families.leave_one_out import LEAVE_ONE_OUT
from dpipe.families.made_rows import made_rows, refuse_targets
from dpipe.families.registry import Estimator, Meta, Way, add

#: What RidgeCV can score from moments of y and of its prediction.
_SCORES = (None, "r2", "explained_variance", "neg_mean_squared_error", "neg_root_mean_squared_error")


def _n_folds(estimator: Estimator) -> int:
    """Give the number of folds; only what follows from the place of a row can be had in one pass."""
    name, cv = type(estimator).__name__, estimator.cv
    if cv is None:
        return 5
    if isinstance(cv, Integral):
        return int(cv)
    if type(cv) is KFold and not cv.shuffle:
        return int(cv.n_splits)
    raise UnsupportedEstimatorError(
        f"{name}(cv={cv!r}) cannot be fitted block by block: the fold of a row must follow from its place. "
        "Use a number of folds, or KFold without shuffling."
    )


def _check_path(estimator: Estimator) -> None:
    _n_folds(estimator)


def _check_ridge(estimator: Estimator) -> None:
    if estimator.cv is None:
        LEAVE_ONE_OUT.check(estimator)
        return
    _n_folds(estimator)
    if estimator.scoring not in _SCORES:
        raise UnsupportedEstimatorError(
            f"RidgeCV(scoring={estimator.scoring!r}) cannot be had from moments. Use one of "
            f"{', '.join(map(repr, _SCORES))}."
        )
    for name in ("store_cv_results", "alpha_per_target"):
        if getattr(estimator, name):
            raise InputError(f"RidgeCV({name}=True) goes with cv=None alone. Use {name}=False.")


def _finish_ridge(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    smallest = min(products.n_rows for products in stats[0].by_group.values())
    if smallest < 2 and estimator.scoring in (None, "r2"):
        raise InputError(
            f"RidgeCV(cv={estimator.cv!r}): a fold has one row, for which r2 is not defined. Use fewer folds, or "
            "scoring='neg_mean_squared_error'."
        )
    return _finish(estimator, stats, meta)


def _finish_one(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    for products in stats[0].by_group.values():
        refuse_targets(estimator, products)
    return _finish(estimator, stats, meta)


def _finish_several(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    name = type(estimator).__name__
    if any(products.y_is_1d for products in stats[0].by_group.values()):
        raise InputError(
            f"{name} learns several targets together, but y has one. Use {name.removeprefix('MultiTask')}."
        )
    return _finish(estimator, stats, meta)


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    folds: Grouped = stats[0]
    n_folds = _n_folds(estimator)
    if len(folds.by_group) < n_folds:
        raise InputError(
            f"{type(estimator).__name__}: {len(folds.by_group)} rows cannot be cut into {n_folds} folds. Use "
            "fewer folds, or give more rows."
        )
    made = [made_rows(estimator, folds.by_group[fold]) for fold in range(n_folds)]
    X, y, w = (np.concatenate(parts) for parts in zip(*made, strict=True))
    fold_of = np.repeat(np.arange(n_folds), [len(weights) for _, _, weights in made])
    splits = [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(n_folds)]
    fitted = clone(estimator)
    given = {name: value for name, value in fitted.get_params().items() if name in ("cv", "precompute")}
    fitted.set_params(cv=splits)
    if isinstance(given.get("precompute"), np.ndarray):
        fitted.set_params(precompute=True)  # what was given is of the real rows
    return fitted.fit(stand_in.filled(meta, X), y, sample_weight=w).set_params(**given)


def _leave_one_out(estimator: Estimator) -> Way | None:
    return LEAVE_ONE_OUT if estimator.cv is None else None


def _wants(estimator: Estimator) -> tuple[Any, ...]:
    return (ByFold(CrossProducts, _n_folds(estimator)),)


for _cls in (LassoCV, ElasticNetCV):
    add(_cls, Way("merge", _finish_one, _wants, check=_check_path, needs_y=True, exact="within its tol"))
for _cls in (MultiTaskLassoCV, MultiTaskElasticNetCV):
    add(_cls, Way("merge", _finish_several, _wants, check=_check_path, needs_y=True, exact="within its tol"))
add(
    RidgeCV,
    Way(
        "merge",
        _finish_ridge,
        _wants,
        check=_check_ridge,
        needs_y=True,
        exact="1e-9 relative, for well-conditioned X",
        variant=_leave_one_out,
    ),
)
