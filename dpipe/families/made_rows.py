"""A few made-up rows of X and y that least squares cannot tell from all the real ones.

They have the means, the cross products and the weight of the real rows, so scikit-learn's own `fit` on them
gives what it would give on the data, with every attribute and every rule of its solver.
"""

import numpy as np
from sklearn.base import clone

from dpipe.blocks.regression import CrossProducts
from dpipe.errors import InputError
from dpipe.families import refuse, stand_in
from dpipe.families.registry import Estimator, Meta


def made_rows(estimator: Estimator, products: CrossProducts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make up X, y and the weights of as many rows as X and y have columns together, and one more.

    Parameters
    ----------
    estimator : estimator
        Named in errors.
    products : CrossProducts
        Of the real rows.

    Returns
    -------
    X : ndarray of shape (n_made, n_features)
        Dense, in the precision of the real one.
    y : ndarray of shape (n_made,) or (n_made, n_targets)
    sample_weight : ndarray of shape (n_made,)
        Equal shares of the weight of all rows.

    Raises
    ------
    InputError
        If X or y held NaN or infinity.
    """
    sums = products.xx, products.xy, products.yy
    refuse.gaps(estimator, finite=refuse.is_finite(*sums), what="X or y")
    both = np.block([[products.xx, products.xy], [products.xy.T, products.yy]])
    mean = np.concatenate([products.x_mean, products.y_mean])
    rows = stand_in.rows_with_moments(mean, both / (products.weight or 1.0))
    width = len(products.x_mean)
    y = rows[:, width] if products.y_is_1d else rows[:, width:]
    X = np.asfortranarray(rows[:, :width], dtype=products.dtype)
    return X, np.ascontiguousarray(y), np.full(len(rows), products.weight / len(rows))


def fitted_on_rows(estimator: Estimator, products: CrossProducts, meta: Meta) -> Estimator:
    """Fit a clone on made-up rows; it must take weights."""
    X, y, w = made_rows(estimator, products)
    fitted = clone(estimator)
    if not isinstance(getattr(estimator, "precompute", None), np.ndarray):
        return fitted.fit(stand_in.filled(meta, X), y, sample_weight=w)
    # what was given is of the real rows
    fitted.set_params(precompute=True).fit(stand_in.filled(meta, X), y, sample_weight=w)
    return fitted.set_params(precompute=estimator.precompute)


def refuse_targets(estimator: Estimator, products: CrossProducts) -> None:
    """Refuse more targets than one.

    Raises
    ------
    InputError
        If y has several columns.
    """
    if products.xy.shape[1] > 1:
        raise InputError(
            f"{type(estimator).__name__}: y has {products.xy.shape[1]} columns, and one is supported. "
            "Fit one estimator for each."
        )
