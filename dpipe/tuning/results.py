"""What a search gives, with the names and the shapes of dask-ml and scikit-learn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from dpipe.tuning.space import Candidate, Params


def histories(
    candidates: Sequence[Candidate], records: Sequence[Mapping[str, Any]], *, named: bool
) -> tuple[list[dict[str, Any]], dict[Any, list[dict[str, Any]]]]:
    """Give the records in the order of time, and those of each candidate.

    Parameters
    ----------
    candidates : sequence of Candidate
    records : sequence of dict
    named : bool
        Whether records tell their bracket, too.
    """
    by_ident = {candidate.ident: candidate for candidate in candidates}
    history = []
    for one in records:
        candidate = by_ident[one["model_id"]]
        bracket = {"bracket": candidate.bracket} if named else {}
        history.append({**one, "params": candidate.params, **bracket})
    of_each: dict[Any, list[dict[str, Any]]] = {candidate.ident: [] for candidate in candidates}
    for one in history:
        of_each[one["model_id"]].append(one)
    return history, {ident: own for ident, own in of_each.items() if own}


def searched(
    candidates: Sequence[Candidate], of_each: Mapping[Any, Sequence[Mapping[str, Any]]], *, named: bool
) -> dict[str, np.ndarray]:
    """Give `cv_results_` as dask-ml does: a row for each candidate, its last score on the held-out rows."""
    kept = [candidate for candidate in candidates if candidate.ident in of_each]
    rows = []
    for candidate in kept:
        history = of_each[candidate.ident]
        fits = [one["partial_fit_time"] for one in history]
        scores = [one["score_time"] for one in history]
        rows.append(
            {
                "mean_partial_fit_time": np.mean(fits),
                "mean_score_time": np.mean(scores),
                "std_partial_fit_time": np.std(fits),
                "std_score_time": np.std(scores),
                "test_score": history[-1]["score"],
                "model_id": candidate.ident,
                "partial_fit_calls": history[-1]["partial_fit_calls"],
            }
        )
    found = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    found |= params_columns([candidate.params for candidate in kept])
    if named:
        found["bracket"] = np.array([candidate.bracket for candidate in kept])
    found["rank_test_score"] = ranks(found["test_score"])
    return found


def cross_validated(params: Sequence[Params], scores: np.ndarray) -> dict[str, np.ndarray]:
    """Give `cv_results_` as GridSearchCV does, without times: no candidate has one of its own.

    Parameters
    ----------
    params : sequence of dict
    scores : numpy.ndarray of shape (n_candidates, n_folds)
    """
    found = params_columns(params)
    for fold in range(scores.shape[1]):
        found[f"split{fold}_test_score"] = scores[:, fold]
    found["mean_test_score"] = scores.mean(axis=1)
    found["std_test_score"] = scores.std(axis=1)
    found["rank_test_score"] = ranks(found["mean_test_score"])
    return found


def ranks(scores: np.ndarray) -> np.ndarray:
    """Rank scores, the best first; candidates that have failed come last.

    Examples
    --------
    >>> ranks(np.array([0.5, np.nan, 0.7])).tolist()
    [2, 3, 1]
    """
    worst = np.nan_to_num(scores, nan=np.nanmin(scores) - 1 if np.isfinite(scores).any() else 0.0)
    return rankdata(-worst, method="min").astype(int)


def params_columns(params: Sequence[Params]) -> dict[str, np.ndarray]:
    """Give the parameters of all candidates, together and each apart; None where a candidate has no such one."""
    names = list(dict.fromkeys(name for one in params for name in one))
    found = {"params": np.array([*params, None], dtype=object)[:-1]}
    for name in names:
        values = [one.get(name) for one in params]
        column = np.empty(len(values), dtype=object)
        column[:] = values
        plain = all(isinstance(value, bool | int | float | str | np.generic) for value in values)
        alike = len({type(value) for value in values}) == 1
        found[f"param_{name}"] = np.array(values) if plain and alike else column
    return found
