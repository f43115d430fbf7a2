"""TransformedTargetRegressor: its transformer is fitted on the targets, its regressor on what that makes of them."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import has_fit_parameter

from dpipe.blocks.picked import Pick
from dpipe.blocks.statistics import TargetMoments
from dpipe.composites.inside import check_parts, fit_inside, rounds_of
from dpipe.composites.views import TargetAsX, TargetBy, two_dimensional
from dpipe.errors import InputError
from dpipe.families import refuse
from dpipe.families.asking import Asking
from dpipe.families.registry import Estimator, Meta, Refinement, Rounds, Unweighted, add, refined


def _transformer(estimator: Estimator) -> Estimator:
    if estimator.transformer is not None:
        return clone(estimator.transformer)
    made = FunctionTransformer(
        func=estimator.func,
        inverse_func=estimator.inverse_func,
        validate=True,
        check_inverse=estimator.check_inverse,
    )
    return made.set_output(transform="default")


def _regressor(estimator: Estimator) -> Estimator:
    return LinearRegression() if estimator.regressor is None else clone(estimator.regressor)


def _refine(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Refinement:
    moments: TargetMoments = stats[0]
    refuse.gaps(estimator, finite=refuse.is_finite(moments.mean), what="y")
    fitted = clone(estimator)
    fitted._training_dim = 1 if moments.y_is_1d else 2
    if estimator.transformer is None:
        fitted.transformer_ = _transformer(estimator).fit(np.zeros((1, len(moments.mean))))
    else:
        targets = Meta(n_columns=len(moments.mean))
        fitted.transformer_ = yield from fit_inside(_transformer(estimator), targets, TargetAsX())
    if estimator.check_inverse:
        yield from _check_inverse(fitted.transformer_, moments.n_rows)
    fitted.regressor_ = yield from fit_inside(_regressor(estimator), meta, TargetBy(fitted.transformer_))
    if hasattr(fitted.regressor_, "feature_names_in_"):
        fitted.feature_names_in_ = fitted.regressor_.feature_names_in_
    return fitted


def _check_inverse(transformer: Estimator, n_rows: int) -> Asking:
    """Try a few targets, as scikit-learn does."""
    (picked,) = yield (Pick(np.arange(0, n_rows, max(1, n_rows // 10))),)
    y = two_dimensional(picked.y)
    if not np.allclose(y, transformer.inverse_transform(transformer.transform(y))):
        warnings.warn(
            "The provided functions or transformer are not strictly inverse of each other. If you are sure you want "
            "to proceed regardless, set 'check_inverse=False'",
            UserWarning,
            stacklevel=2,
        )


def _check(estimator: Estimator) -> None:
    functions = (estimator.func, estimator.inverse_func)
    if estimator.transformer is not None and any(function is not None for function in functions):
        raise InputError("TransformedTargetRegressor: give a transformer or func and inverse_func, not both.")
    if (estimator.func is None) != (estimator.inverse_func is None):
        raise InputError(
            "TransformedTargetRegressor: func and inverse_func go together. Give both, if need be the identity."
        )
    check_parts(estimator, [_regressor(estimator), _transformer(estimator)])


def _rounds(estimator: Estimator) -> Rounds:
    both = [_regressor(estimator), _transformer(estimator)]
    return rounds_of(estimator, [both[0]], more=rounds_of(estimator, [both[1]]).most + 1)


add(
    TransformedTargetRegressor,
    refined(
        _refine,
        _rounds,
        lambda est: (Unweighted(TargetMoments),),
        check=_check,
        needs_y=True,
        exact="that of its parts",
        takes_weights=lambda est: has_fit_parameter(_regressor(est), "sample_weight"),
    ),
)
