"""One reading of the held-out rows scores all candidates that are to be compared."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.pipeline import Pipeline

from dpipe.blocks.rows import Rows
from dpipe.blocks.threads import single_threaded_blas
from dpipe.errors import DpipeError, InputError
from dpipe.families.registry import Estimator
from dpipe.run.state import PassState, states_of
from dpipe.sizes import MIB
from dpipe.tuning.learning import reason
from dpipe.validate.curves import ScoreRuns, ranking
from dpipe.validate.metrics import METRICS, check_scoring, want_of
from dpipe.validate.states import ScoredBlock, Want

#: Candidates whose scores take more than this are compared one part of them after another, if rows are kept.
RANKED_NBYTES = 128 * MIB
#: The `score` of most estimators: accuracy, r2, or none.
_USUAL = (None, ClassifierMixin.score, RegressorMixin.score)
#: What an estimator without a metric of its kind is scored by.
OWN = "its own score"


def held_nbytes(metric: str, n_candidates: int, n_rows: int) -> int:
    """Count the bytes that scoring holds until its end: ranks need the scores of all rows, others sums alone."""
    return 8 * n_candidates * n_rows if metric in METRICS and METRICS[metric].state is ScoreRuns else 0


def scoring_of(scoring: Any, estimator: Estimator) -> str:
    """Resolve `scoring` to the name of one metric, or to `OWN`.

    Raises
    ------
    InputError
        If it names several, or none that suits the estimator.
    """
    learner = estimator.steps[-1][1] if type(estimator) is Pipeline else estimator
    if scoring is None and getattr(type(learner), "score", None) not in _USUAL:
        return OWN
    names = check_scoring(scoring, estimator)
    if len(names) > 1:
        raise InputError(
            f"A search compares by one metric, but scoring names {len(names)}: {', '.join(names)}. Choose one, and "
            "score the best estimator by the others."
        )
    return names[0]


@dataclass(frozen=True)
class OwnScore:
    """Scores of blocks by an estimator's own method, and the rows that they are of."""

    weight: float
    mean: float

    @classmethod
    def of(cls, block: Any, want: Want) -> "OwnScore":
        """Take the score of one block."""
        return cls(float(len(block.y)), float(block.answers["score"]))

    def merge(self, other: "OwnScore") -> "OwnScore":
        """Join with later rows."""
        weight = self.weight + other.weight
        # equal scores stay what they are, to the bit
        return OwnScore(weight, self.mean + (other.mean - self.mean) * other.weight / weight)


@dataclass(frozen=True)
class Scored:
    """What is found of one candidate: a state, or why it has none."""

    state: Any
    seconds: float
    failed: str = ""

    def merge(self, other: "Scored") -> "Scored":
        """Join with later rows; who fails on one block has failed."""
        seconds = self.seconds + other.seconds
        if self.failed or other.failed:
            return Scored(None, seconds, self.failed or other.failed)
        return Scored(self.state.merge(other.state), seconds)


def want_for(name: str, learner: Estimator) -> Want:
    """Tell what a metric collects of a fitted learner."""
    if name == OWN:
        return Want(OwnScore, "score")
    return want_of(name, learner, labels_of(learner))


def labels_of(learner: Estimator) -> tuple[Any, ...]:
    """Give the classes of a fitted classifier; none of others."""
    return tuple(np.asarray(learner.classes_).tolist()) if hasattr(learner, "classes_") else ()


def score_block(
    name: str, learner: Estimator, X: Any, rows: Rows, known: dict[str, Any] | None = None
) -> Scored:
    """Score one candidate on the rows of a block; an error is its own, not the search's.

    What it says of the rows is looked up in `known`, by its methods, and left there for another metric.
    """
    began = time.perf_counter()
    try:
        want = want_for(name, learner)
        with single_threaded_blas():
            said: dict[str, Any]
            if name == OWN:
                said = {"score": learner.score(X, *([] if rows.y is None else [rows.y]))}
            else:
                said = {} if known is None else known
                if want.method not in said:
                    said[want.method] = getattr(learner, want.method)(X)
        y = np.empty(X.shape[0]) if rows.y is None else rows.y
        state = want.state.of(ScoredBlock(y, rows.w, said, labels_of(learner)), want)
    except MemoryError:
        raise
    except Exception as err:
        return Scored(None, time.perf_counter() - began, reason(err))
    return Scored(state, time.perf_counter() - began)


@dataclass(frozen=True, eq=False)
class ScoreAll:
    """Scores candidates on one block of held-out rows."""

    metric: str
    make: Callable[[Rows], dict[Any, Any]]

    def __call__(self, rows: Rows, candidates: Sequence[tuple[int, Any]]) -> tuple[Scored, ...]:
        """Score each of them: pairs of its way of preprocessing, and its state."""
        values = self.make(rows) if rows.values is None else rows.values
        return tuple(
            Scored(None, 0.0, trained.failed)
            if trained.failed
            else score_block(self.metric, trained.learner, values[preprocessing], rows)
            for preprocessing, trained in candidates
        )


@dataclass(frozen=True)
class Found:
    """The score of a candidate, or why it has none."""

    score: float
    seconds: float
    failed: str = ""


def scores_of(collected: PassState, metric: str) -> tuple[Found, ...]:
    """Compute the scores from the merged states: a task.

    Raises
    ------
    InputError
        If no row was held out.
    """
    return tuple(found_of(scored, metric) for scored in states_of(collected, "The held-out rows"))


def found_of(scored: Scored, metric: str) -> Found:
    """Compute the score of one candidate, or say why it has none."""
    if scored.failed:
        return Found(float("nan"), scored.seconds, scored.failed)
    try:
        value = value_of(metric, scored.state)
    except DpipeError as err:
        return Found(float("nan"), scored.seconds, reason(err))
    if not np.isfinite(value):
        return Found(float("nan"), scored.seconds, f"its score is {value}")
    return Found(value, scored.seconds)


def value_of(metric: str, state: Any) -> float:
    """Compute a metric from its merged state."""
    if metric == OWN:
        return float(state.mean)
    return float(METRICS[metric].value(ranking(state, metric) if isinstance(state, ScoreRuns) else state))
