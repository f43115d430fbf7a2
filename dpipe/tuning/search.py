"""`search`: the best of many candidates, which learn from the same readings of the data."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client
from sklearn.base import BaseEstimator, is_classifier
from sklearn.exceptions import FitFailedWarning
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from dpipe.cluster.cluster import Cluster, takes_cluster
from dpipe.collect.source import Source, held_out, open_source
from dpipe.deploy.apply import predict, transform
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families.registry import Estimator, registered
from dpipe.ledger.book import Ledger
from dpipe.monitor.record import write_whole
from dpipe.monitor.report import render_search
from dpipe.monitor.session import Session, make_workdir
from dpipe.plan_record import Plan
from dpipe.train.fit import run_fit
from dpipe.train.prepare import Prepared, held_out_samples, prepare
from dpipe.tuning.crossed import prepare_crossed
from dpipe.tuning.foundation import lay_foundation
from dpipe.tuning.prepared import metadata_of, prepared_search, search_plan, search_record
from dpipe.tuning.results import cross_validated, histories, searched
from dpipe.tuning.sampled import OneSearch, Proposals, SampledSearch
from dpipe.tuning.schedule import EARLY, HALVING, METHODS, Bracket, Settings
from dpipe.tuning.scoring import held_nbytes, scoring_of
from dpipe.tuning.setup import Setup
from dpipe.tuning.sides import with_folds
from dpipe.tuning.space import Space, check_space, drawn, grid, make_space
from dpipe.tuning.streamed import Outcome
from dpipe.validate.metrics import METRICS
from dpipe.validate.score import score


def _has(method: str) -> Callable[[Any], bool]:
    """Offer a method where the estimator has it."""
    return lambda search: hasattr(getattr(search, "best_estimator_", search.estimator), method)


class Search(BaseEstimator):  # type: ignore[misc]
    """A search for the best parameters of an estimator, as an estimator.

    Parameters
    ----------
    estimator : scikit-learn estimator or pipeline
        Unfitted. Steps before the last one may have parameters in the search, too; what they share is fitted once.
    parameters : dict, or sequence of dicts
        By the name of the parameter a list of values, or a distribution of scipy.stats.
    method : str, default "hyperband"
        "hyperband", "halving" (successive halving) and "inverse_decay" stop candidates early by dask-ml's rules;
        "random" and "grid" do not. What has no `partial_fit`, or can be merged, is cross-validated instead, by
        "random" or "grid".
    max_iter : int, optional
        The most calls of `partial_fit` of a candidate, each of one block. Default 81 for hyperband, none for
        halving, else 100.
    aggressiveness : float, default 3
        One in so many candidates is kept where a bracket decides.
    n_initial_parameters : int, default 10
        Candidates; hyperband chooses their number by itself, and "grid" takes all.
    n_initial_iter : int, optional
        For halving: calls before it decides for the first time; default 1.
    decay_rate : float, default 1.0
        For inverse_decay: how fast candidates become fewer.
    patience : int or bool, default False
        Stop candidates whose score has not grown by `tol` over so many calls.
    tol : float, default 0.001
    fits_per_score : int, optional
        For inverse_decay, random and grid: calls between two scores.
    scoring : str, optional
        One of scikit-learn's names; default accuracy for classifiers, r2 for regressors, else the estimator's own
        `score` of each block, averaged over the rows.
    validation : frame, or pair of X and y, optional
        Rows to compare the candidates by. A frame holds the columns of X and of y.
    test_size : float, default 0.2
        Without `validation`: the share of each block's rows, drawn at random, that is held out for that.
    cv : int, KFold or StratifiedKFold, default 5
        Folds, for what is cross-validated; as in GridSearchCV.
    classes : array-like, optional
        Labels of a classifier that learns in order; without them, the first pass finds them.
    random_state : int, default 0
        Draws the candidates, the rows that are held out, and the order of the blocks.
    sampler : optuna.samplers.BaseSampler, optional
        Proposes the candidates, by lists or `optuna.distributions` of the last step's parameters; those of a bracket
        from the scores of the brackets before, which run one after another then. Give it a seed. Extra:
        `dpipe[optuna]`.

    Attributes
    ----------
    best_estimator_ : estimator
        Plain scikit-learn, fitted.
    best_params_, best_score_, best_index_
        Of the best candidate; the index is its row of `cv_results_`.
    cv_results_ : dict of str to numpy.ndarray
        A row for each candidate, with dask-ml's names, or GridSearchCV's for what is cross-validated.
    history_, model_history_ : list of dict, and dict of such lists by candidate
        Each score of each candidate that learns in order; a candidate that has failed has NaN and the reason
        (`error`) in its last record.
    failed_ : dict of str
        Why candidates were dropped.
    read_ : Read
        The blocks and bytes that were read, and those that a stream for each candidate would have read.

    Examples
    --------
    See `dpipe.search`.
    """

    def __init__(
        self,
        estimator: Estimator,
        parameters: Any,
        *,
        method: str = "hyperband",
        max_iter: int | None = None,
        aggressiveness: float = 3,
        n_initial_parameters: int = 10,
        n_initial_iter: int | None = None,
        decay_rate: float = 1.0,
        patience: int | bool = False,
        tol: float | None = 1e-3,
        fits_per_score: int | None = None,
        scoring: str | None = None,
        validation: Any = None,
        test_size: float = 0.2,
        cv: Any = 5,
        classes: Any = None,
        random_state: int = 0,
        sampler: Any = None,
    ) -> None:
        self.estimator = estimator
        self.parameters = parameters
        self.method = method
        self.max_iter = max_iter
        self.aggressiveness = aggressiveness
        self.n_initial_parameters = n_initial_parameters
        self.n_initial_iter = n_initial_iter
        self.decay_rate = decay_rate
        self.patience = patience
        self.tol = tol
        self.fits_per_score = fits_per_score
        self.scoring = scoring
        self.validation = validation
        self.test_size = test_size
        self.cv = cv
        self.classes = classes
        self.random_state = random_state
        self.sampler = sampler

    def __sklearn_tags__(self) -> Any:
        """Be what the estimator is: a classifier, a regressor."""
        tags, own = super().__sklearn_tags__(), get_tags(self.estimator)
        tags.estimator_type = own.estimator_type
        tags.classifier_tags, tags.regressor_tags = own.classifier_tags, own.regressor_tags
        return tags

    @takes_cluster
    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        memory: int | str | None = None,
        client: Client | Cluster | None = None,
        workdir: str | os.PathLike[str] | None = None,
    ) -> "Search":
        """Search; the arguments are those of `dpipe.fit`.

        Raises
        ------
        DpipeError
            As `dpipe.search` does.
        """
        prepared = prepare(self, X, y, sample_weight, memory=memory, client=client)
        if workdir is None:
            run_fit(prepared)
            return self
        with (
            Ledger(make_workdir(workdir)) as ledger,
            Session(
                f"search {type(self.estimator).__name__}",
                Path(workdir),
                budget_nbytes=prepared.plan.memory_nbytes,
            ) as session,
        ):
            recorded = prepared.recorded(ledger, "search", session.note)
            _, tallies = run_fit(prepared, session.listener, session.started, recorded)
            session.add_passes("search", prepared.plan, tallies)
        return self

    def plan(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        memory: int | str | None = None,
        client: Client | Cluster | None = None,
    ) -> Plan:
        """Tell what `fit` would do; computes nothing."""
        return prepare(self, X, y, sample_weight, memory=memory, client=client).plan

    def plan_own_fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        *,
        memory: int | None,
        client: Client | None,
        workers: int | None,
    ) -> Prepared:
        """Plan the search, where it is fitted like any estimator; see `dpipe.train.fit.OwnFit`."""
        settings = self._checked()
        source = open_source(X, y, sample_weight)
        place: dict[str, Any] = {"memory": memory, "client": client, "workers": workers}
        if self._is_crossed():
            if self.sampler is not None:
                raise InputError("What is cross-validated takes no sampler. Leave it out.")
            return prepare_crossed(
                self, source, self._params(), self._take_crossed, each_fit=self._take_each, **place
            )
        _check_learner(self.estimator, source)
        brackets = settings.brackets(self.estimator, self.parameters, self._propose())
        chosen = {bracket.number: bracket.params for bracket in brackets}
        space = make_space(self.estimator, chosen, named=self._is_named)
        for candidate in space.candidates:
            _check_partial_fit(candidate.learner, self.method)
        metric = scoring_of(self.scoring, self.estimator)
        train, held = self._sides(source)
        if held.w is not None and held_nbytes(metric, 1, 1):
            raise InputError(
                f"{metric} does not take sample_weight: pairs of rows are counted, each once. Compare by another "
                "metric, such as neg_log_loss, or give validation=... without weights."
            )
        classes = None if self.classes is None else np.asarray(self.classes)
        foundation = lay_foundation(space, train, classes_known=classes is not None, **place)
        before = foundation.prepared.plan
        plan = search_plan(self.estimator, before, foundation, space, settings, train, held, metric)

        def setup(space: Space, brackets: Sequence[Bracket]) -> Setup:
            return Setup(space, brackets, foundation, train, held, metric, self.random_state, classes)

        def own_brackets() -> list[Bracket]:
            return settings.brackets(
                self.estimator, self.parameters, None if self.sampler is None else _empty
            )

        def sampled(bracket: Bracket) -> Setup:
            params = {bracket.number: bracket.params}
            return setup(make_space(self.estimator, params, named=self._is_named), [bracket])

        searches: OneSearch | SampledSearch = OneSearch(lambda: setup(space, own_brackets()))
        if self.sampler is not None:
            searches = SampledSearch(lambda: Proposals(self.sampler, self.parameters), own_brackets, sampled)
        return prepared_search(foundation, plan, searches, self._take)

    def _propose(self) -> Callable[[int], list[dict[str, Any]]] | None:
        """Give what proposes candidates, if that is a sampler; as many as are planned, told of nothing."""
        if self.sampler is None:
            return None
        if self.method == "grid":
            raise InputError("method='grid' takes all combinations, and no sampler. Use another method.")
        last = self.estimator.steps[-1][0] if type(self.estimator) is Pipeline else ""
        early = [name for name in self.parameters if last and name.split("__")[0] != last]
        if early:
            raise InputError(
                f"With a sampler, preprocessing is not searched, but parameters names {early[0]!r}. Leave it out, or "
                "leave the sampler out."
            )
        return Proposals(self.sampler, self.parameters).ask

    @property
    def _is_named(self) -> bool:
        return self.method == "hyperband"

    def _checked(self) -> Settings:
        if self.method not in METHODS:
            raise InputError(f"There is no method {self.method!r}. Known: {', '.join(METHODS)}.")
        if isinstance(self.estimator, type) or not hasattr(self.estimator, "get_params"):
            raise InputError(f"estimator must be an unfitted estimator, got {self.estimator!r}.")
        check_space(self.estimator, self.parameters, sampled=self.sampler is not None)
        settings = Settings(self)
        size = self.test_size
        if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < 1:
            raise InputError(f"test_size must lie between 0 and 1, got {size!r}.")
        return settings

    def _is_crossed(self) -> bool:
        """Whether candidates are cross-validated: those that can be merged, or learn in no order."""
        learner = _last(self.estimator)
        way = registered().get(type(learner))
        return self.method not in EARLY and way is not None and way.kind in ("merge", "refine")

    def compared_by(self) -> tuple[str, ...]:
        """Give the metrics that folds are scored by; the first one compares."""
        return (scoring_of(self.scoring, self.estimator),)

    def _params(self) -> list[dict[str, Any]]:
        if self.method == "grid":
            return grid(self.parameters)
        return drawn(self.parameters, self.n_initial_parameters, self.random_state)

    def _sides(self, source: Source) -> tuple[Source, Source]:
        """Give the rows to learn from, and those to compare by."""
        if self.validation is None:
            return held_out(source, self.test_size, self.random_state)
        given = self.validation
        if isinstance(given, tuple | list):
            held = open_source(*given)
        else:
            name = getattr(source.y, "name", None)
            if source.frame is None or not isinstance(given, dd.DataFrame | pd.DataFrame) or name is None:
                raise InputError(
                    "validation must be a pair of X and y where X is no frame with a named target."
                )
            missing = [column for column in (*source.names, name) if column not in given.columns]
            if missing:
                raise InputError(f"validation lacks the columns {', '.join(map(repr, missing))}.")
            held = open_source(given[list(source.names)], given[name])
        if held.names != source.names:
            raise InputError(f"validation has the columns {held.names}, but X has {source.names}.")
        return source, held

    def _take(self, outcome: Outcome, setup: Setup) -> Estimator:
        """Keep what came out."""
        space, known = setup.space, outcome.known
        assert known is not None
        candidates = space.candidates
        self.history_, self.model_history_ = histories(candidates, outcome.records, named=self._is_named)
        self.cv_results_ = searched(candidates, self.model_history_, named=self._is_named)
        rows = self.cv_results_["model_id"].tolist()
        self.best_index_ = rows.index(outcome.best)
        best = next(c for c in candidates if c.ident == outcome.best)
        learner = _with_names(outcome.learner, setup)
        self.best_estimator_ = space.assembled(
            best, setup.foundation.preprocessings(known)[best.preprocessing], learner
        )
        self.best_params_ = best.params
        self.best_score_ = float(self.cv_results_["test_score"][self.best_index_])
        self.failed_ = {one["model_id"]: one["error"] for one in outcome.records if "error" in one}
        self.read_ = outcome.read
        self.scorer_ = setup.metric
        self.n_splits_, self.multimetric_ = 1, False
        _warn(self.failed_, len(candidates))
        self._record = search_record(outcome, setup)
        self._brackets_ = metadata_of(outcome, setup)
        return self.best_estimator_

    def _take_crossed(
        self,
        estimator: Estimator,
        params: Sequence[Mapping[str, Any]],
        scores: np.ndarray,
        best: int,
        metric: str,
        failed: dict[int, str],
    ) -> None:
        """Keep what came out of folds."""
        self.cv_results_ = cross_validated([dict(one) for one in params], scores)
        self.best_index_, self.best_params_ = best, dict(params[best])
        self.best_score_ = float(self.cv_results_["mean_test_score"][best])
        self.best_estimator_ = estimator
        self.failed_ = failed
        _warn(failed, len(params))
        self.scorer_, self.n_splits_, self.multimetric_ = metric, scores.shape[1], False

    #: Called with what was fitted on each fold, where that is wanted.
    _take_each: Any = None

    @property
    def metadata(self) -> dict[str, Any] | None:
        """What hyperband or halving will do, with dask-ml's names; None for other methods."""
        return self._checked().metadata(self.estimator, self.parameters)

    @property
    def metadata_(self) -> dict[str, Any]:
        """What a search in brackets has done: candidates, calls of `partial_fit`, decisions."""
        check_is_fitted(self, "history_")
        planned = {one["bracket"]: one[HALVING] for one in (self.metadata or {}).get("brackets", ())}
        brackets = [
            {**self._brackets_[number], **({HALVING: planned[number]} if planned else {})}
            for number in sorted(self._brackets_)
        ]
        found = {
            "partial_fit_calls": sum(one["partial_fit_calls"] for one in brackets),
            "n_models": sum(one["n_models"] for one in brackets),
        }
        if self._is_named:
            return {**found, "brackets": brackets}
        return {**found, "max_iter": int(self.cv_results_["partial_fit_calls"].max())}

    def visualize(self, filename: str | os.PathLike[str]) -> Path:
        """Write the scores of the candidates over their calls, brackets in colours, as one HTML file."""
        check_is_fitted(self, "history_")
        return write_whole(filename, render_search(self._record))

    def predict(self, X: Any) -> Any:
        """Predict with the best estimator: lazily where X is a Dask collection."""
        return self._said(X, "predict")

    @available_if(_has("predict_proba"))  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Any:
        """Give the best estimator's probabilities: lazily where X is a Dask collection."""
        return self._said(X, "predict_proba")

    @available_if(_has("predict_log_proba"))  # type: ignore[untyped-decorator]
    def predict_log_proba(self, X: Any) -> Any:
        """Give the logarithms of the best estimator's probabilities."""
        return self._said(X, "predict_log_proba")

    @available_if(_has("decision_function"))  # type: ignore[untyped-decorator]
    def decision_function(self, X: Any) -> Any:
        """Give the best estimator's decision function: lazily where X is a Dask collection."""
        return self._said(X, "decision_function")

    @available_if(_has("transform"))  # type: ignore[untyped-decorator]
    def transform(self, X: Any) -> Any:
        """Transform with the best estimator: lazily where X is a Dask collection."""
        check_is_fitted(self, "best_estimator_")
        lazy = isinstance(X, dd.DataFrame | da.Array)
        return transform(self.best_estimator_, X) if lazy else self.best_estimator_.transform(X)

    def _said(self, X: Any, method: str) -> Any:
        check_is_fitted(self, "best_estimator_")
        lazy = isinstance(X, dd.DataFrame | da.Array)
        if lazy:
            return predict(self.best_estimator_, X, method=method)
        return getattr(self.best_estimator_, method)(X)

    def score(self, X: Any, y: Any) -> float:
        """Score the best estimator by the metric of the search."""
        check_is_fitted(self, "best_estimator_")
        if self.scorer_ not in METRICS:
            return float(self.best_estimator_.score(X, y))
        found = score(self.best_estimator_, X, y, scoring=self.scorer_)
        assert isinstance(found, float)
        return found


def _warn(failed: Mapping[Any, str], n: int) -> None:
    if failed:
        ident, why = next(iter(failed.items()))
        warnings.warn(
            f"{len(failed)} of {n} candidates were dropped; failed_ tells why. Candidate {ident}: {why}",
            FitFailedWarning,
            stacklevel=2,
        )


def _empty(n: int) -> list[dict[str, Any]]:
    return [{} for _ in range(n)]


def _last(estimator: Estimator) -> Estimator:
    return estimator.steps[-1][1] if type(estimator) is Pipeline else estimator


def _check_learner(estimator: Estimator, source: Source) -> None:
    learner = _last(estimator)
    if is_classifier(learner) and source.y is None:
        raise InputError(
            f"{type(learner).__name__} learns from targets, but y is None. Pass y as a series, an array, or the name "
            "of a column of X."
        )
    if source.w is not None and not has_fit_parameter(learner, "sample_weight"):
        raise InputError(f"{type(learner).__name__} takes no sample_weight. Leave the weights out.")


def _check_partial_fit(learner: Estimator, method: str) -> None:
    """Refuse what cannot learn one block after another."""
    name = type(learner).__name__
    if not hasattr(learner, "partial_fit"):
        raise UnsupportedEstimatorError(
            f"{name} has no partial_fit, which method={method!r} needs: candidates learn block after block, and are "
            "stopped on the way. Use an estimator that has it, such as SGDClassifier or MLPRegressor; or, for what "
            "`dpipe.estimators()` lists as merge or refine, method='grid' or method='random'."
        )
    way = registered().get(type(learner))
    if way is not None and way.kind == "stream":
        way.check(learner)


def _with_names(learner: Estimator, setup: Setup) -> Estimator:
    """Let a learner without preprocessing know the columns, as scikit-learn's does that was given a frame."""
    frame = setup.train.frame
    if setup.space.last and setup.space.preprocessings[0]:
        return learner
    if frame is not None and all(isinstance(name, str) for name in frame.columns):
        learner.feature_names_in_ = np.asarray(frame.columns, dtype=object)
    return learner


def search(
    estimator: Estimator,
    parameters: Any,
    X: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    sample_dims: Any = None,
    missing: str = "all",
    memory: int | str | None = None,
    client: Client | Cluster | None = None,
    workdir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Search:
    """Search for the best parameters on data larger than memory, and give plain scikit-learn back.

    All candidates that are still in the setup learn from the same reading of a block, and are compared in one
    reading of the held-out rows: a search over 81 candidates does not read the data 81 times.

    Parameters
    ----------
    estimator : scikit-learn estimator or pipeline
        Unfitted; it is not changed.
    parameters : dict, or sequence of dicts
        By the name of the parameter a list of values, or a distribution of scipy.stats.
    X : dask DataFrame or Array, pandas.DataFrame, numpy.ndarray or CSR matrix
        Of shape (n_samples, n_features).
    y, sample_weight : series, array, or str, optional
        Of the same blocks as X, or the name of a column of X.
    sample_dims, missing
        For xarray objects: as for `dpipe.fit`.
    memory : int or str, optional
        Memory budget, such as "2 GiB": for the whole run on this machine, per worker on a cluster.
    client : distributed.Client or Cluster, optional
        Default: the current client; without one, dpipe runs in this process and cleans up after.
    workdir : path, optional
        Leave a record and a report of the search there, and a ledger: a search that was stopped goes on.
    **options
        Of `dpipe.Search`: `method`, `max_iter`, `scoring`, `validation`, `test_size`, `cv`, `random_state` ...; `cv`
        may also be pairs of sides, as for `dpipe.cross_validate`.

    Returns
    -------
    Search
        With `best_estimator_`, `best_params_`, `best_score_`, `cv_results_`, `history_`.

    Raises
    ------
    UnsupportedEstimatorError
        If a method that stops early is given an estimator without `partial_fit`.
    InputError, BlockMismatchError, MemoryLimitError, SourceError
        If the space, options, input, blocks, budget or files do not do; each message says what would.
    DpipeError
        If all candidates have failed. One that diverges or raises is dropped, and the search goes on.

    Examples
    --------
    >>> import numpy as np, dask.array as da
    >>> from sklearn.linear_model import Ridge
    >>> X = da.from_array(np.arange(40.0).reshape(20, 2) % 7, chunks=(5, 2))
    >>> y = X[:, 0] - X[:, 1]
    >>> found = search(Ridge(), {"alpha": [0.001, 1000.0]}, X, y, method="grid")
    >>> found.best_params_
    {'alpha': 0.001}
    """
    X, y, sample_weight, cv = with_folds(X, y, sample_weight, options.get("cv", 5), sample_dims, missing)
    options["cv"] = cv
    if sample_dims is not None and isinstance(options.get("validation"), tuple):
        options["validation"] = held_out_samples(options["validation"], sample_dims, missing)
    asked = Search(estimator, parameters, **options)
    return asked.fit(X, y, sample_weight, memory=memory, client=client, workdir=workdir)
