"""`cross_validate`: how well an estimator does on rows that it has not seen, fold by fold."""

import os
from typing import Any

import numpy as np
from distributed import Client
from sklearn.pipeline import Pipeline

from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families.registry import Estimator, way_of
from dpipe.tuning.search import search


def cross_validate(
    estimator: Estimator,
    X: Any,
    y: Any = None,
    *,
    cv: Any = 5,
    scoring: str | None = None,
    sample_dims: Any = None,
    missing: str = "all",
    memory: int | str | None = None,
    client: Client | None = None,
    workdir: str | os.PathLike[str] | None = None,
) -> dict[str, np.ndarray]:
    """Cross-validate on data larger than memory: all folds share each reading.

    Parameters
    ----------
    estimator : scikit-learn estimator or pipeline
        Unfitted, of a way that merges or refines; it is not changed.
    X : dask DataFrame or Array, pandas.DataFrame, numpy.ndarray, CSR matrix, xarray.DataArray or Dataset
        As for `dpipe.fit`.
    y : series, array, or str, optional
        As for `dpipe.fit`.
    cv : int, KFold or StratifiedKFold, default 5
        As scikit-learn takes it: an int stands for stratified folds where a classifier is scored.
    scoring : str, optional
        Scikit-learn's name of a metric; default accuracy for a classifier, r2 for a regressor.
    sample_dims, missing
        For xarray objects: as for `dpipe.fit`.
    memory, client, workdir
        As for `dpipe.fit`.

    Returns
    -------
    dict of str to numpy.ndarray
        ``test_score``, of shape (n_folds,): as scikit-learn's `cross_validate` on all rows in their order, which is
        that of the blocks. Rows that follow each other, as cells of a grid do, are alike: folds of them in their
        order tell more than folds of rows that are drawn.

    Raises
    ------
    UnsupportedEstimatorError
        If the estimator learns in order: split the rows, as by `dpipe.split`, and fit and score it.
    DpipeError
        As `dpipe.search` does.

    Examples
    --------
    >>> import dask.array as da
    >>> from sklearn.linear_model import Ridge
    >>> X = da.from_array(np.arange(40.0).reshape(20, 2) % 7, chunks=(5, 2))
    >>> cross_validate(Ridge(alpha=1e-6), X, X[:, 0] - X[:, 1], cv=3)["test_score"].round(6)
    array([1., 1., 1.])
    """
    found = search(
        estimator,
        _as_it_is(estimator),
        X,
        y,
        sample_dims=sample_dims,
        missing=missing,
        memory=memory,
        client=client,
        workdir=workdir,
        method="grid",
        cv=cv,
        scoring=scoring,
    )
    results = found.cv_results_
    n_folds = sum(name.startswith("split") and name.endswith("_test_score") for name in results)
    return {"test_score": np.array([results[f"split{i}_test_score"][0] for i in range(n_folds)])}


def _as_it_is(estimator: Estimator) -> dict[str, list[Any]]:
    """Give a grid of one candidate: a parameter of the last step, with the value that it has."""
    if isinstance(estimator, type) or not hasattr(estimator, "get_params"):
        raise InputError(f"estimator must be an unfitted estimator, got {estimator!r}.")
    prefix, last = "", estimator
    while isinstance(last, Pipeline):
        name, last = last.steps[-1]
        prefix += f"{name}__"
    kind = type(last).__name__
    if way_of(last).kind not in ("merge", "refine"):
        raise UnsupportedEstimatorError(
            f"cross_validate takes what merges or refines, but {kind} learns in its own order. Split the rows, as by "
            "dpipe.split, then fit and score it."
        )
    own = last.get_params(deep=False)
    if not own:
        raise InputError(f"{kind} has no parameters, which a search by folds needs. Use scikit-learn's own.")
    name, value = next(iter(own.items()))
    return {f"{prefix}{name}": [value]}
