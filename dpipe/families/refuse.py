"""What several families refuse in the data, said in one way."""

from typing import Any

import numpy as np

from dpipe.errors import InputError
from dpipe.families.registry import Estimator


def unlabelled(estimator: Estimator, n_missing: int) -> None:
    """Refuse labels that are missing.

    Raises
    ------
    InputError
        If any is.
    """
    if n_missing:
        name = type(estimator).__name__
        raise InputError(f"{name}: {n_missing:,} labels are missing in y. Drop those rows first.")


def is_finite(*sums: Any) -> bool:
    """Tell whether sums are free of NaN and infinity, which stay in all that they have entered."""
    return all(bool(np.isfinite(found).all()) for found in sums)


def gaps(estimator: Estimator, *, finite: bool, what: str = "X") -> None:
    """Refuse data that is not finite.

    Raises
    ------
    InputError
        If it is not.
    """
    if not finite:
        raise InputError(
            f"{type(estimator).__name__}: {what} holds NaN or infinity. Put a SimpleImputer before it, or drop "
            "those rows."
        )
