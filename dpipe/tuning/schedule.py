"""Who goes on learning: the decisions are dask-ml's own, made from the scores that dpipe has found.

A bracket is a group of candidates that are compared with each other. Hyperband runs several; each other method, one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpipe.errors import InputError
from dpipe.families.registry import Estimator
from dpipe.tuning.space import Params, drawn, grid

#: Methods that stop candidates early.
EARLY = ("hyperband", "halving", "inverse_decay")
METHODS = (*EARLY, "random", "grid")

#: What dask-ml calls the parameters with which halving alone would do what a bracket does.
HALVING = "SuccessiveHalvingSearchCV params"
_HALVING_PARAMS = (
    "n_initial_parameters",
    "n_initial_iter",
    "aggressiveness",
    "max_iter",
    "patience",
    "tol",
    "random_state",
)

History = list[dict[str, Any]]


class Bracket:
    """The candidates of one bracket, and what is decided about them.

    Parameters
    ----------
    number : int
    rule : object with `_additional_calls`
        One of dask-ml's searches.
    params : sequence of dict
        Of each candidate.
    """

    def __init__(self, number: int, rule: Any, params: Sequence[Params]) -> None:
        self.number = number
        self.params = list(params)
        self.most = getattr(rule, "max_iter", None)
        self.rule = rule
        named = (
            "max_iter",
            "patience",
            "tol",
            "aggressiveness",
            "n_initial_iter",
            "decay_rate",
            "fits_per_score",
        )
        self.says = (type(rule).__name__, number, *(str(getattr(rule, name, None)) for name in named))
        """What its decisions follow from, beside the scores."""
        self._info: dict[int, History] = {i: [] for i in range(len(params))}
        self.round = dict.fromkeys(self._info, 1)
        """Calls of `partial_fit` that each candidate of this round still has to make."""
        self._calls = dict.fromkeys(self._info, 0)

    @property
    def live(self) -> list[int]:
        """The candidates that were not dropped."""
        return list(self._info)

    def calls(self, i: int) -> int:
        """Give the calls that a candidate had made when it was scored last."""
        return self._calls[i]

    def decide(self, found: Mapping[int, dict[str, Any]]) -> None:
        """Take the last record of each candidate of the round, and choose those of the next one.

        A record without a finite score is that of a candidate that has failed: it is dropped.
        """
        for i, record in found.items():
            self._calls[i] = record["partial_fit_calls"]
            if math.isfinite(record["score"]):
                self._info[i].append(dict(record))
            else:
                del self._info[i]
        self.round = {}
        if not self._info:
            return
        chosen = self.rule._additional_calls(self._info)
        self._info = {i: history for i, history in self._info.items() if i in chosen}
        # halving goes by its own figures; the others would go past the most by what lies between two scores
        left = dict.fromkeys(chosen, math.inf)
        if self.most is not None and not hasattr(self.rule, "n_initial_iter"):
            left = {i: self.most - self._calls[i] for i in chosen}
        self.round = {i: int(min(calls, left[i])) for i, calls in chosen.items() if min(calls, left[i]) > 0}

    def scores(self) -> dict[int, float]:
        """Give the last score of each candidate that was not dropped."""
        return {i: history[-1]["score"] for i, history in self._info.items()}


class Settings:
    """What a search with brackets is asked for, in dask-ml's words; checked.

    Raises
    ------
    InputError
        If a number is out of its range, or a method lacks what it needs.
    """

    def __init__(self, search: Any) -> None:
        self.method: str = search.method
        self.max_iter = search.max_iter
        self.n_initial_parameters = search.n_initial_parameters
        self.n_initial_iter = search.n_initial_iter
        self.aggressiveness = search.aggressiveness
        self.decay_rate = search.decay_rate
        self.patience = search.patience
        self.tol = search.tol
        self.fits_per_score = search.fits_per_score
        self.seed = search.random_state
        self._check()

    def _check(self) -> None:
        if self.max_iter is None and self.method != "halving":
            self.max_iter = 81 if self.method == "hyperband" else 100
        for name in ("max_iter", "n_initial_parameters", "n_initial_iter", "fits_per_score"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(
                    f"{name} must be an integer of at least 1, got {value!r} ({name} < 1 is not supported): a search "
                    "needs one candidate that learns from one block."
                )
        if not isinstance(self.aggressiveness, int | float) or not self.aggressiveness > 1:
            raise InputError(f"aggressiveness must be a number above 1, got {self.aggressiveness!r}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(
                f"random_state must be an integer of at least 0, got {self.seed!r}: a search can be repeated, and "
                "goes on where it was stopped."
            )
        if not isinstance(self.patience, bool | int) or (
            self.patience is not True and self.patience and self.patience < 2
        ):
            raise InputError(
                f"patience must be an integer, or True or False, got {self.patience!r}: less than 2 would always "
                "detect a plateau. Set patience >= 2."
            )

    def metadata(self, estimator: Estimator, parameters: Any) -> dict[str, Any] | None:
        """Tell how many candidates and calls there will be, as dask-ml does; None where that depends on the scores."""
        if self.method not in ("hyperband", "halving"):
            return None
        rule = self._rule(estimator, parameters)
        found: dict[str, Any] = rule.metadata
        for bracket in found.get("brackets", ()):
            bracket[HALVING] = {name: bracket[HALVING][name] for name in _HALVING_PARAMS}
        return found

    def _rule(self, estimator: Estimator, parameters: Any) -> Any:
        from dask_ml.model_selection import (
            HyperbandSearchCV,
            IncrementalSearchCV,
            InverseDecaySearchCV,
            SuccessiveHalvingSearchCV,
        )

        shared = {"patience": self.patience, "tol": self.tol, "random_state": self.seed}
        if self.method == "hyperband":
            return HyperbandSearchCV(
                estimator,
                parameters,
                max_iter=self.max_iter,
                aggressiveness=self.aggressiveness,
                **shared,
            )
        if self.patience is True:
            shared["patience"] = max(int((self.max_iter or 100) // self.aggressiveness), 2)
        shared["max_iter"] = self.max_iter
        shared["n_initial_parameters"] = self.n_initial_parameters
        if self.method == "halving":
            return SuccessiveHalvingSearchCV(
                estimator,
                parameters,
                n_initial_iter=self.n_initial_iter or 1,
                aggressiveness=self.aggressiveness,
                **shared,
            )
        if self.method == "inverse_decay":
            return InverseDecaySearchCV(
                estimator,
                parameters,
                decay_rate=self.decay_rate,
                fits_per_score=self.fits_per_score or 1,
                **shared,
            )
        # without patience nothing is decided on the way: one score in the end is enough
        between = self.fits_per_score or (1 if self.patience else max(self.max_iter - 1, 1))
        return IncrementalSearchCV(estimator, parameters, decay_rate=None, fits_per_score=between, **shared)

    def brackets(
        self, estimator: Estimator, parameters: Any, propose: Callable[[int], list[Params]] | None = None
    ) -> list[Bracket]:
        """Make the brackets, the most adaptive one first, and draw their candidates, or have them proposed."""

        def chosen(n: int, seed: int) -> list[Params]:
            return drawn(parameters, n, seed) if propose is None else propose(n)

        rule = self._rule(estimator, parameters)
        if self.method == "grid":
            rule.n_initial_parameters = "grid"
            return [Bracket(0, rule, grid(parameters))]
        if self.method != "hyperband":
            params = chosen(self.n_initial_parameters, self.seed)
            rule.n_initial_parameters = len(params)
            return [Bracket(0, rule, params)]
        from dask_ml.model_selection._hyperband import _get_hyperband_params

        shapes = _get_hyperband_params(self.max_iter, eta=self.aggressiveness)
        halvings = rule._get_SHAs(shapes)
        made = []
        for number in sorted(halvings, reverse=True):
            halving = halvings[number]
            params = chosen(halving.n_initial_parameters, halving.random_state)
            halving.n_initial_parameters = len(params)
            made.append(Bracket(number, halving, params))
        return made
