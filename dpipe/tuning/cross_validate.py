"""`cross_validate`: how well an estimator does on rows that it has not seen, fold by fold."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from distributed import Client
from sklearn.pipeline import Pipeline

from dpipe.cluster.cluster import Cluster
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families.registry import Estimator, way_of
from dpipe.tuning.crossed import CrossValidated
from dpipe.tuning.scoring import scoring_of
from dpipe.tuning.search import Search
from dpipe.tuning.sides import with_folds
from dpipe.validate.metrics import check_scoring


def cross_validate(
    estimator: Estimator,
    X: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    cv: Any = 5,
    scoring: Any = None,
    return_estimator: bool = False,
    sample_dims: Any = None,
    missing: str = "all",
    memory: int | str | None = None,
    client: Client | Cluster | None = None,
    workdir: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Cross-validate on data larger than memory: all folds share each reading.

    Parameters
    ----------
    estimator : scikit-learn estimator or pipeline
        Unfitted, of a way that merges or refines; it is not changed.
    X : dask DataFrame or Array, pandas.DataFrame, numpy.ndarray, CSR matrix, xarray.DataArray or Dataset
        As for `dpipe.fit`.
    y, sample_weight : series, array, or str, optional
        As for `dpipe.fit`. Weights count in the fits and in the scores.
    cv : int, KFold, StratifiedKFold or sequence of pairs, default 5
        As scikit-learn takes it: an int stands for stratified folds where a classifier is scored; pairs hold the
        places of training and of test rows. For xarray objects, pairs of train and test from `dpipe.fields.folds`:
        blocks of time or space, with a gap between the sides.
    scoring : str, sequence of str, or dict of str to str, optional
        Scikit-learn's names of metrics, by names of your own in a dict; default accuracy for a classifier, r2 for a
        regressor.
    return_estimator : bool, default False
        Give the fitted estimator of each fold, too.
    sample_dims, missing
        For xarray objects: as for `dpipe.fit`.
    memory, client, workdir
        As for `dpipe.fit`.

    Returns
    -------
    dict of str to numpy.ndarray
        ``test_score``, of shape (n_folds,), or ``test_<name>`` where `scoring` holds several: as scikit-learn's
        `cross_validate` on all rows in their order, which is that of the blocks. ``estimator`` is a list, plain
        scikit-learn. Rows that follow each other, as cells of a grid do, are alike: folds of them in their order
        tell more than folds of rows that are drawn.

    Raises
    ------
    UnsupportedEstimatorError
        If the estimator learns in order: split the rows, as by `dpipe.split`, and fit and score it.
    InputError
        If `cv` is not of these rows or cells, or test and training side share some.
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
    names = _named(scoring, estimator)
    X, y, sample_weight, cv = with_folds(X, y, sample_weight, cv, sample_dims, missing)
    asked = _Folds(estimator, _as_it_is(estimator), method="grid", cv=cv)
    asked.metrics = tuple(dict.fromkeys(names.values()))
    asked.fit(X, y, sample_weight, memory=memory, client=client, workdir=workdir)
    found: dict[str, Any] = {f"test_{name}": asked.scores_[metric] for name, metric in names.items()}
    return {**found, **({"estimator": asked.estimators_} if return_estimator else {})}


class _Folds(Search):
    """A search with one candidate, of which all folds and metrics are kept."""

    metrics: tuple[str, ...] = ()

    def compared_by(self) -> tuple[str, ...]:
        """Give the metrics."""
        return self.metrics

    def _take_each(self, fitted: CrossValidated, estimators: list[Estimator]) -> None:
        (number,) = fitted.scores_
        self.scores_ = {
            metric: np.array(scores[number]) for metric, scores in fitted.scores_by_metric_.items()
        }
        self.estimators_ = estimators


def _named(scoring: Any, estimator: Estimator) -> dict[str, str]:
    """Give the metrics by the names that they have in the result."""
    if scoring is None or isinstance(scoring, str):
        return {"score": scoring_of(scoring, estimator)}
    if isinstance(scoring, Mapping):
        if not all(isinstance(name, str) for name in (*scoring, *scoring.values())):
            raise InputError(
                f"scoring must name metrics of scikit-learn, such as {{'error': 'neg_mean_squared_error'}}, got "
                f"{dict(scoring)!r}."
            )
        check_scoring(list(scoring.values()), estimator)
        return dict(scoring)
    return {name: name for name in check_scoring(scoring, estimator)}


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
