"""What several families refuse in the data, said in one way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from dpipe.errors import DpipeError, InputError
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


def gaps(estimator: Estimator, *, finite: bool, what: str = "X", sums: np.ndarray | None = None) -> None:
    """Refuse data that is not finite; `sums`, one for each feature, tell which features those are.

    Raises
    ------
    InputError
        If it is not.
    """
    if finite:
        return
    err = InputError(
        f"{type(estimator).__name__}: {what} holds NaN or infinity. Put a SimpleImputer before it, or drop "
        "those rows."
    )
    err.columns = None if sums is None else np.flatnonzero(~np.isfinite(sums))
    raise err


@contextmanager
def unreadable(estimator: Estimator, X: Any) -> Iterator[None]:
    """Refuse documents, records or sets of labels that are missing, or that the estimator cannot read.

    Raises
    ------
    InputError
        On entry if any is missing; at any error of reading that comes up inside.
    """
    name = type(estimator).__name__
    missing = int(np.count_nonzero(pd.isna(X)))
    if missing:
        raise InputError(
            f"{name}: {missing:,} values of a block are missing. Fill them, as by X.fillna(''), or drop those rows."
        )
    try:
        yield
    except DpipeError:
        raise
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as err:
        raise InputError(
            f"{name} cannot read its X: {type(err).__name__}: {err}. Look at its parameters, and at the values: "
            f"the first one of the block is {_short(X)}."
        ) from err


def _short(X: Any) -> str:
    first = repr(next(iter(X), None))
    return first if len(first) <= 60 else f"{first[:60]}..."
