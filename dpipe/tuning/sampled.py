"""Candidates that an Optuna sampler proposes: bracket after bracket, each from the scores of those before."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpipe.errors import InputError
from dpipe.tuning.schedule import Bracket
from dpipe.tuning.setup import Setup
from dpipe.tuning.space import Params
from dpipe.tuning.streamed import Outcome


class Proposals:
    """What a sampler proposes, and is told of it.

    Parameters
    ----------
    sampler : optuna.samplers.BaseSampler
        It is not changed. To be repeated, it must have a seed.
    parameters : dict
        Lists of values, or distributions of `optuna.distributions`.

    Raises
    ------
    InputError
        If Optuna is not installed, or the sampler or a parameter is of another kind.
    """

    def __init__(self, sampler: Any, parameters: Any) -> None:
        try:
            import optuna
        except ImportError as err:
            raise InputError(
                "sampler=... takes Optuna, which is not installed. Install it: pip install 'dpipe[optuna]'."
            ) from err
        if not isinstance(sampler, optuna.samplers.BaseSampler):
            raise InputError(f"sampler must be one of optuna.samplers, got {sampler!r}.")
        if not isinstance(parameters, Mapping):
            raise InputError("With a sampler, parameters must be one dict, not several.")
        self._values: dict[str, list[Any]] = {}
        self._distributions: dict[str, Any] = {}
        for name, values in parameters.items():
            self._distributions[name] = self._distribution(name, values, optuna.distributions)
        said = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # that a study was made is of no interest
        try:
            self._study = optuna.create_study(direction="maximize", sampler=copy.deepcopy(sampler))
        finally:
            optuna.logging.set_verbosity(said)
        self._failed = optuna.trial.TrialState.FAIL
        self._open: list[Any] = []

    def _distribution(self, name: str, values: Any, kinds: Any) -> Any:
        if isinstance(values, kinds.BaseDistribution):
            return values
        if hasattr(values, "rvs"):
            raise InputError(
                f"parameters[{name!r}] is a distribution of scipy.stats, which a sampler does not know. Give a list, "
                "or one of optuna.distributions, such as FloatDistribution(1e-6, 1e-1, log=True)."
            )
        # by their places: a list may hold what Optuna does not keep
        self._values[name] = list(values)
        return kinds.CategoricalDistribution(range(len(self._values[name])))

    def ask(self, n: int) -> list[Params]:
        """Propose candidates."""
        self._open = [self._study.ask(self._distributions) for _ in range(n)]
        return [self._params(trial.params) for trial in self._open]

    def _params(self, found: Mapping[str, Any]) -> Params:
        return {name: self._values[name][v] if name in self._values else v for name, v in found.items()}

    def tell(self, scores: Sequence[float | None]) -> None:
        """Tell the scores of the candidates that were proposed last; None where one has failed."""
        for trial, score in zip(self._open, scores, strict=True):
            if score is None:
                self._study.tell(trial, state=self._failed)
            else:
                self._study.tell(trial, score)
        self._open = []


class OneSearch:
    """All brackets together: the candidates are known beforehand."""

    def __init__(self, make: Callable[[], Setup]) -> None:
        self._make = make

    def first(self) -> Setup:
        """Begin: what decides about candidates remembers what it has decided."""
        return self._make()

    def after(self, setup: Setup, outcome: Outcome) -> Setup | None:
        """Nothing follows."""
        return None


class SampledSearch:
    """One bracket after another, each with candidates that the sampler proposes.

    Parameters
    ----------
    proposals : callable ``() -> Proposals``
    brackets : callable ``() -> brackets``
        With as many candidates as each is to have.
    make : callable ``(bracket) -> setup``
    """

    def __init__(
        self,
        proposals: Callable[[], Proposals],
        brackets: Callable[[], list[Bracket]],
        make: Callable[[Bracket], Setup],
    ) -> None:
        self._proposals, self._brackets, self._make = proposals, brackets, make
        self._asked: Proposals | None = None
        self._left: list[Bracket] = []

    def first(self) -> Setup:
        """Begin with the first bracket."""
        self._asked, self._left = self._proposals(), self._brackets()
        return self._next()

    def _next(self) -> Setup:
        assert self._asked is not None
        bracket = self._left.pop(0)
        return self._make(Bracket(bracket.number, bracket.rule, self._asked.ask(len(bracket.params))))

    def after(self, setup: Setup, outcome: Outcome) -> Setup | None:
        """Tell the sampler what came out, and go on with the next bracket."""
        assert self._asked is not None
        last = {one["model_id"]: one for one in outcome.records}
        found = [last[candidate.ident] for candidate in setup.space.candidates]
        self._asked.tell([None if "error" in one else float(one["score"]) for one in found])
        return self._next() if self._left else None
