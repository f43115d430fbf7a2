"""`quantile`: exact quantiles of data larger than memory."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from distributed import Client

from dpipe.cluster.cluster import Cluster
from dpipe.collect.source import open_source
from dpipe.errors import InputError
from dpipe.families.quantile import METHODS, Quantiles
from dpipe.train.fit import fit


def quantile(
    X: Any,
    q: float | Sequence[float] = 0.5,
    *,
    method: str = "linear",
    memory: int | str | None = None,
    client: Client | Cluster | None = None,
    workdir: str | os.PathLike[str] | None = None,
) -> Any:
    """Give quantiles of each column, exactly, in two or three passes and bounded memory.

    Parameters
    ----------
    X : dask DataFrame or Array, pandas.DataFrame, numpy.ndarray or CSR matrix
        Of shape (n_samples, n_features), numbers only. Missing values are left out.
    q : float or sequence of float, default 0.5
        Between 0 and 1.
    method : str, default "linear"
        How to interpolate between two values: one of numpy.quantile's methods.
    memory, client, workdir
        As for `dpipe.fit`.

    Returns
    -------
    pandas.Series or pandas.DataFrame
        For a frame: indexed by its columns, or by `q` if that is a sequence.
    numpy.ndarray of shape (n_features,) or (len(q), n_features)
        For an array. float64; NaN for a column in which nothing was observed.

    Raises
    ------
    InputError
        If `q` or `method` is not allowed, or a column is not numeric.

    Notes
    -----
    The first pass samples the blocks, the second one counts what lies below an interval that all but certainly holds
    the value, and keeps what lies inside (Munro and Paterson, 1980). As few rows as the sample holds need one pass.

    Examples
    --------
    >>> import dask.array as da
    >>> quantile(da.arange(1001, chunks=100).reshape(-1, 1), [0.25, 0.5]).tolist()
    [[250.0], [500.0]]
    """
    shares = np.atleast_1d(np.asarray(q, dtype=np.float64))
    if shares.ndim != 1 or not len(shares) or not ((shares >= 0) & (shares <= 1)).all():
        raise InputError(f"q must be between 0 and 1, or a list of such numbers; got {q!r}.")
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    cuts = [(float(share), method) for share in shares]
    found = fit(Quantiles(cuts), X, memory=memory, client=client, workdir=workdir).quantiles_
    frame = open_source(X).frame
    if frame is None:
        return found[0] if np.ndim(q) == 0 else found
    table = pd.DataFrame(found, index=shares, columns=frame.columns)
    return table.iloc[0].rename(float(shares[0])) if np.ndim(q) == 0 else table
