"""The candidates of a search: whole estimators, and which of them can share their preprocessing."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sklearn.base import clone
from sklearn.model_selection import ParameterGrid, ParameterSampler
from sklearn.pipeline import Pipeline

from dpipe.errors import InputError
from dpipe.families.registry import Estimator
from dpipe.ledger.fingerprint import Fingerprinter, Unknowable

Params = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One choice of parameters."""

    ident: Any
    """Its number, or its bracket's and its own."""
    bracket: int
    number: int
    """Its place in its bracket."""
    params: Params
    preprocessing: int
    """Which of the distinct ways of preprocessing is its own."""
    learner: Estimator
    """The last step, unfitted."""


@dataclass(frozen=True, eq=False)
class Space:
    """All candidates of a search."""

    candidates: tuple[Candidate, ...]
    preprocessings: tuple[tuple[tuple[str, Any], ...], ...]
    """The named steps before the last one, unfitted, for each distinct way of preprocessing."""
    last: str
    """The name of the last step; empty where the estimator is no pipeline."""

    def assembled(self, candidate: Candidate, preprocessing: Sequence[Any], learner: Estimator) -> Estimator:
        """Put a candidate together from its fitted steps."""
        if not self.last:
            return learner
        names = [name for name, _ in self.preprocessings[candidate.preprocessing]]
        return Pipeline([*zip(names, preprocessing, strict=True), (self.last, learner)])


def check_space(estimator: Estimator, parameters: Any, *, sampled: bool = False) -> None:
    """Check the names and the values of a space of parameters, without drawing from it.

    Where a sampler draws, its own distributions will do, too.

    Raises
    ------
    InputError
        If it is empty, of another kind, or names a parameter that the estimator does not have.
    """
    spaces = [parameters] if isinstance(parameters, Mapping) else parameters
    if not isinstance(spaces, Sequence) or not all(isinstance(space, Mapping) for space in spaces):
        raise InputError(
            f"parameters must be a dict of lists or distributions by the name of the parameter, or a list of such "
            f"dicts, got {parameters!r}."
        )
    if not spaces or not any(spaces):
        raise InputError("parameters is empty: there is nothing to search. Name at least one parameter.")
    known = estimator.get_params()
    for name, values in (item for space in spaces for item in space.items()):
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
            meant = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise InputError(
                f"{type(estimator).__name__} has no parameter {name!r}.{meant} "
                f"estimator.get_params() lists them all."
            )
        if not (sampled and type(values).__module__.startswith("optuna.")):
            _check_values(name, values)


def _check_values(name: str, values: Any) -> None:
    if hasattr(values, "rvs"):
        return
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(
            f"parameters[{name!r}] is {values!r}; it must be a list of values, or a distribution with the method rvs, "
            "such as those of scipy.stats."
        )
    if not len(list(values)):
        raise InputError(f"parameters[{name!r}] is empty. Give at least one value.")


def grid(parameters: Any) -> list[Params]:
    """List all combinations.

    Raises
    ------
    InputError
        If the space holds distributions.
    """
    spaces = [parameters] if isinstance(parameters, Mapping) else parameters
    drawn = [name for space in spaces for name, values in space.items() if hasattr(values, "rvs")]
    if drawn:
        raise InputError(
            f"method='grid' goes through lists, but parameters[{drawn[0]!r}] is a distribution. Give a list of values, "
            "or use method='random'."
        )
    return [dict(params) for params in ParameterGrid(parameters)]


def drawn(parameters: Any, n: int, seed: int) -> list[Params]:
    """Draw candidates as scikit-learn does; as many as there are, where lists hold fewer than `n`."""
    spaces = [parameters] if isinstance(parameters, Mapping) else parameters
    if not any(hasattr(values, "rvs") for space in spaces for values in space.values()):
        n = min(n, len(ParameterGrid(parameters)))
    return [dict(params) for params in ParameterSampler(parameters, n, random_state=seed)]


def make_space(estimator: Estimator, brackets: Mapping[int, Sequence[Params]], *, named: bool) -> Space:
    """Set the parameters of each candidate, and group the candidates by their preprocessing.

    Parameters
    ----------
    estimator : scikit-learn estimator or pipeline
    brackets : mapping of int to sequence of dict
        The parameters of the candidates of each bracket.
    named : bool
        Whether a candidate is called by its bracket, too.

    Raises
    ------
    InputError
        If a parameter cannot be set.
    """
    is_pipeline = type(estimator) is Pipeline
    last = estimator.steps[-1][0] if is_pipeline else ""
    preprocessings: dict[str, tuple[tuple[str, Any], ...]] = {}
    candidates: list[Candidate] = []
    for bracket, chosen in brackets.items():
        for number, params in enumerate(chosen):
            made = _with_params(estimator, params)
            ident: Any = f"bracket={bracket}-{number}" if named else number
            key = _preprocessing_key(params, last, len(candidates)) if is_pipeline else ""
            preprocessing, learner = (made.steps[:-1], made.steps[-1][1]) if is_pipeline else ([], made)
            preprocessings.setdefault(key, tuple(preprocessing))
            place = list(preprocessings).index(key)
            candidates.append(Candidate(ident, bracket, number, params, place, learner))
    return Space(tuple(candidates), tuple(preprocessings.values()), last)


def _with_params(estimator: Estimator, params: Params) -> Estimator:
    try:
        # values may be estimators, which no two candidates must share
        return clone(estimator).set_params(**{name: clone(v, safe=False) for name, v in params.items()})
    except (ValueError, TypeError) as err:
        raise InputError(f"The parameters {params!r} cannot be set: {err}") from err


def _preprocessing_key(params: Params, last: str, number: int) -> str:
    """Tell which candidates preprocess alike: those whose parameters of the steps before the last are equal."""
    touched = {name: value for name, value in params.items() if name.split("__")[0] != last}
    if not touched:
        return ""
    try:
        return Fingerprinter().of(touched)
    except Unknowable:
        return f"candidate {number}"
