"""XGBoost, fed from scratch through `xgboost.DataIter`, its bins in memory or cached on disk.

The parameters and the fitted object are those of XGBoost's own scikit-learn interface.
"""

import ctypes
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone, is_classifier

from dpipe.errors import InputError
from dpipe.families.boosting import Start, is_ranker, rounds_of, stops_early
from dpipe.families.registry import Estimator, Meta
from dpipe.train.boosting.batches import Batch, Batches, group_weights
from dpipe.train.boosting.libraries import imported
from dpipe.train.boosting.progress import STRETCH, GroupBroken, Progress, Watched, best_round, seed_of

_SAMPLING = ("subsample", "colsample_bytree", "colsample_bylevel", "colsample_bynode")
#: What the scikit-learn interface calls the rows that are held out.
_WATCHED = "validation_0"
#: Metrics of which more is better, by the beginning of their names: XGBoost's own rule.
_MAXIMIZED = ("auc", "aucpr", "pre", "map", "ndcg")


class XGBoostModel:
    """A booster of XGBoost that learns round after round.

    Parameters
    ----------
    estimator : XGBModel
        Unfitted.
    start : Start
    meta : Meta
        Of what it is trained on.
    train : Batches
    held_out : Batches, optional
    begun : Progress
        What is on record of it.
    folder : str, optional
        Where its bins are cached; None keeps them in memory.
    threads : int, optional
        Where the estimator does not say.
    """

    resumable: bool

    def __init__(
        self,
        estimator: Estimator,
        start: Start,
        meta: Meta,
        train: Batches,
        held_out: Batches | None,
        begun: Progress,
        folder: str | None,
        threads: int | None,
    ) -> None:
        xgboost = imported("xgboost")
        self._estimator = estimator
        self._params = _params(estimator, start)
        if threads is not None and self._params.get("n_jobs") is None:
            self._params["n_jobs"] = threads
        self._seed = self._params.pop("random_state", None)
        self.sampled = is_ranker(estimator) or any(
            self._params.get(name) not in (None, 1) for name in _SAMPLING
        )
        # what the unbiased ranking has found of positions is not part of a model
        self.resumable = not self._params.get("lambdarank_unbiased", False)
        self.history = list(begun.history)
        reader = _Reader(estimator, start, meta)
        with _explained(estimator):
            self._train = reader.matrix(train, None, folder)
            self._evals = []
            if held_out is not None:
                self._evals = [(reader.matrix(held_out, self._train, folder), _WATCHED)]
            seeded = {**self._params, "seed": self._seed_at(begun.n_rounds)}
            self._booster = xgboost.Booster(seeded, [self._train, *(each for each, _ in self._evals)])
            if begun.n_rounds:
                self._booster.load_model(bytearray(begun.model))
                self._booster.set_param(_pairs(seeded))

    def _seed_at(self, i: int) -> int:
        return seed_of(self._seed, i - i % STRETCH if self.sampled else 0)

    def update(self, i: int) -> None:
        """Learn round `i`, counted from 0."""
        with _explained(self._estimator):
            if self.sampled and i and i % STRETCH == 0:
                self._draw_anew(i)
            self._booster.update(self._train, i)
            if self._evals:
                self.history.append(_watched(self._booster.eval_set(self._evals, i)))

    def _draw_anew(self, i: int) -> None:
        """Begin the random numbers of a stretch, as in a booster that is read from its record there.

        The updater keeps the state of its draws; to change the method, and back, makes another one.
        """
        self._booster.set_param({"tree_method": "approx", "seed": self._seed_at(i) + 1})
        self._booster.save_config()
        method = self._params.get("tree_method") or "hist"
        params = {**self._params, "tree_method": method, "seed": self._seed_at(i)}
        self._booster.set_param(_pairs(params))

    def stop(self, i: int) -> bool:
        """Tell whether training ends after round `i`."""
        rounds = stops_early(self._estimator)
        if i + 1 >= rounds_of(self._estimator):
            return True
        return rounds is not None and bool(self.history) and i - _best(self.history) >= rounds

    def model(self) -> bytes:
        """Give all rounds so far as UBJSON."""
        return bytes(self._booster.save_raw("ubj"))


def fitted(estimator: Estimator, start: Start, meta: Meta, progress: Progress) -> Estimator:
    """Give the estimator as its own `fit` would leave it."""
    xgboost = imported("xgboost")
    made = clone(estimator)
    params = _params(estimator, start)
    booster = xgboost.Booster(params)
    booster.load_model(bytearray(progress.model))
    booster.set_param(_pairs(params))
    if progress.history and stops_early(estimator):
        best = _best(progress.history)
        booster.set_attr(best_score=str(progress.history[best][-1].value), best_iteration=str(best))
    made._Booster = booster
    if start.classes is not None:
        made.n_classes_ = len(start.classes)
    if start.classes is not None or is_ranker(estimator):
        made.objective = params["objective"]
    if progress.history:
        names = [watched.metric for watched in progress.history[0]]
        made.evals_result_ = {
            _WATCHED: {name: [each[j].value for each in progress.history] for j, name in enumerate(names)}
        }
    return made


def _best(history: Any) -> int:
    # XGBoost looks at the last metric
    return best_round([each[-1].value for each in history], maximize=history[0][-1].maximize)


def _params(estimator: Estimator, start: Start) -> dict[str, Any]:
    """Give the booster's parameters, as the scikit-learn interface makes them."""
    params: dict[str, Any] = estimator.get_xgb_params()
    n_classes = 0 if start.classes is None else len(start.classes)
    if is_classifier(estimator) and n_classes > 2:
        if params.get("objective") != "multi:softmax":
            params["objective"] = "multi:softprob"
        params["num_class"] = n_classes
    return params


def _pairs(params: dict[str, Any]) -> list[tuple[str, Any]]:
    """Give parameters one after another, as a booster takes several metrics."""
    metrics = params.get("eval_metric")
    pairs = [(name, value) for name, value in params.items() if name != "eval_metric" and value is not None]
    listed = metrics if isinstance(metrics, list | tuple) else [] if metrics is None else [metrics]
    return pairs + [("eval_metric", metric) for metric in listed]


def _watched(text: str) -> tuple[Watched, ...]:
    r"""Read what XGBoost says after a round.

    Examples
    --------
    >>> _watched("[3]\tvalidation_0-logloss:0.25\tvalidation_0-auc:0.875")
    (Watched(metric='logloss', value=0.25, maximize=False), Watched(metric='auc', value=0.875, maximize=True))
    """
    found = []
    for part in text.split()[1:]:
        name, _, value = part.rpartition(":")
        metric = name.removeprefix(f"{_WATCHED}-")
        maximize = metric.startswith(_MAXIMIZED) and metric != "mape"
        found.append(Watched(metric, float(value), maximize))
    return tuple(found)


class _Reader:
    """Makes XGBoost's matrices from batches."""

    def __init__(self, estimator: Estimator, start: Start, meta: Meta) -> None:
        self._estimator = estimator
        self._categories = start.categories or {}
        self._names = None if meta.frame is None else [str(name) for name in meta.frame.columns]
        self._types = estimator.feature_types
        if self._types is None and meta.frame is not None:
            self._types = [_type_of(dtype) for dtype in meta.frame.dtypes]

    def matrix(self, batches: Batches, like: Any, folder: str | None) -> Any:
        """Bin all rows; `like` is a matrix of which the bins are taken."""
        xgboost = imported("xgboost")
        options = {
            "ref": like,
            "max_bin": self._estimator.max_bin,
            "missing": self._estimator.missing,
            "nthread": self._estimator.n_jobs,
            "enable_categorical": bool(self._estimator.enable_categorical),
        }
        if folder is None:
            return xgboost.QuantileDMatrix(self._iterator(batches, None), **options)
        prefix = os.path.join(folder, "train" if like is None else "held-out")
        return xgboost.ExtMemQuantileDMatrix(self._iterator(batches, prefix), **options)

    def _iterator(self, batches: Batches, prefix: str | None) -> Any:
        given = self._given

        class FromScratch(imported("xgboost").DataIter):  # type: ignore[misc]
            """Goes through the batches, as often as XGBoost asks."""

            def __init__(self) -> None:
                self._left: Iterator[Batch] = iter(())
                super().__init__(cache_prefix=prefix)

            def reset(self) -> None:
                self._left = iter(batches)

            def next(self, input_data: Any) -> bool:
                batch = next(self._left, None)
                if batch is None:
                    return False
                input_data(**given(batch))
                return True

        return FromScratch()

    def _given(self, batch: Batch) -> dict[str, Any]:
        X = self._with_categories(batch.X) if self._categories else batch.X
        given: dict[str, Any] = {"data": X, "label": batch.y, "weight": group_weights(batch)}
        if batch.groups is not None:
            given["qid"] = batch.groups
        if not self._categories:
            given |= {"feature_names": self._names, "feature_types": self._types}
        return given

    def _with_categories(self, X: np.ndarray) -> pd.DataFrame:
        """Give a frame whose categorical columns have the same categories in each batch."""
        assert self._names is not None
        columns: dict[str, Any] = {}
        for j, name in enumerate(self._names):
            values = X[:, j]
            if j in self._categories:
                codes = np.where(np.isnan(values), -1, values).astype(np.int32)
                values = pd.Categorical.from_codes(codes, categories=list(self._categories[j]))
            columns[name] = values
        return pd.DataFrame(columns)


def _type_of(dtype: Any) -> str:
    """Name a column's type as XGBoost does for a frame."""
    if pd.api.types.is_bool_dtype(dtype):
        return "i"
    return "int" if pd.api.types.is_integer_dtype(dtype) else "float"


def _say(message: bytes) -> None:
    """Say what XGBoost says, but for who has which rank: it cannot be told not to."""
    if b" got rank " not in message:
        print(message.decode(errors="replace").rstrip(), file=sys.stderr)


_log = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_say)


@contextmanager
def joined(arguments: Mapping[str, Any], rank: int, timeout_s: int) -> Iterator[None]:
    """Join the learners that train one model together, in this thread, which must have been made for that.

    Raises
    ------
    GroupBroken
        If one of them is lost, or the group does not come about.
    """
    xgboost = imported("xgboost")
    xgboost.core._LIB.XGBRegisterLogCallback(_log)  # of this thread
    try:
        # ranks are given out in the order of the names
        with xgboost.collective.CommunicatorContext(
            **arguments, dmlc_task_id=f"{rank:06d}", dmlc_timeout=timeout_s
        ):
            yield
    except xgboost.core.XGBoostError as err:
        raise GroupBroken(str(err).partition("Stack trace:")[0].strip()) from err


@contextmanager
def _explained(estimator: Estimator) -> Iterator[None]:
    """Say what XGBoost refuses, without the addresses of its functions; tell apart a lost connection to others."""
    try:
        yield
    except imported("xgboost").core.XGBoostError as err:
        said = str(err).partition("Stack trace:")[0].strip()
        if "/collective/" in said:
            raise GroupBroken(said) from err
        # without the time and the line of its source; it may list all objectives that there are
        said = re.sub(r"^(\[[^\]]*\] )?(/\S+:\d+: )?(Check failed: [^:]*: )?", "", said)
        said = textwrap.shorten(said, 300, placeholder=" ...")
        raise InputError(
            f"{type(estimator).__name__}: {said.rstrip('.')}. Check its parameters and the values of X and y."
        ) from err
