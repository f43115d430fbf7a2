"""Least angles and matching pursuit: one pass, from the cross products of X and y.

scikit-learn walks the path on made-up rows: which column enters next, and how far to go, follows from cross
products alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.linear_model import Lars, LassoLars, OrthogonalMatchingPursuit

from dpipe.blocks.regression import CrossProducts
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import stand_in
from dpipe.families.made_rows import made_rows
from dpipe.families.registry import Estimator, Meta, Way, add


def _check(estimator: Estimator) -> None:
    if getattr(estimator, "jitter", None) is not None:
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__}(jitter={estimator.jitter!r}) adds noise to each row, and cannot be "
            "fitted block by block. Use jitter=None."
        )


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    products: CrossProducts = stats[0]
    if products.sparse:
        raise InputError(
            f"{type(estimator).__name__} does not take sparse input. Use a dense array, or Lasso."
        )
    X, y, _ = made_rows(estimator, products)
    fitted = clone(estimator)
    given = fitted.get_params()
    if isinstance(given["precompute"], np.ndarray):
        fitted.set_params(precompute=True)  # what was given is of the real rows
    if given.get("tol") is not None:
        fitted.set_params(tol=given["tol"] * len(X) / products.n_rows)  # a sum over rows
    return fitted.fit(stand_in.filled(meta, X), y).set_params(**given)


for _cls in (Lars, LassoLars, OrthogonalMatchingPursuit):
    add(
        _cls,
        Way(
            "merge",
            _finish,
            lambda est: (CrossProducts,),
            check=_check,
            needs_y=True,
            exact="1e-9 relative, for well-conditioned X",
        ),
    )
