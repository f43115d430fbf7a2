"""Refining fits, advanced together: one reading of the blocks answers what all of them ask."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dpipe.blocks.flows import Flow
from dpipe.blocks.rows import Tally
from dpipe.errors import DpipeError
from dpipe.families.compose import Fit, weighted_want
from dpipe.families.expression import Expression
from dpipe.families.program import Known, ProgramPass, failed, finish_fits, known_meta
from dpipe.families.registry import Fitted, Refinement


class Refinements:
    """The refining fits of one pass: what they ask of the next reading, until all are fitted.

    Examples
    --------
    See `dpipe.train.fit`, which reads the blocks as long as `asked` is not empty.
    """

    def __init__(self, step: ProgramPass, known: Known) -> None:
        self._step = step
        self._known = known
        self._states: Sequence[Any] = ()
        self._fitted: dict[int, Fitted] = {}
        self._running: dict[int, Refinement] = {}
        self._asked: dict[int, tuple[Any, ...]] = {}
        self._tally: Tally | None = None
        self._lengths: tuple[int, ...] = ()
        self._flows: Mapping[str, Flow] = {}
        self.n_rounds = 0
        for fit in step.refines:
            assert fit.way.refine is not None
            self._running[fit.index] = fit.way.refine(
                fit.estimator,
                known.starts[fit.index],
                replace(known_meta(fit, known.fitted), weighted=fit.weighted),
            )
            self._advance(fit, None)

    @property
    def asked(self) -> tuple[tuple[Any, Expression], ...]:
        """The statistics that the next reading must collect, each of some value; none if all is done."""
        first = list(self._step.collects) if not self.n_rounds else []
        asked = [(want, fit.source) for fit in self._step.refines for want in self._asked.get(fit.index, ())]
        return tuple(dict.fromkeys([*first, *asked]))

    def answer(self, states: Sequence[Any], tally: Tally) -> None:
        """Take the merged statistics, in the order of `asked`."""
        found = dict(zip(self.asked, states, strict=True))
        if not self.n_rounds:
            self._states = states[: len(self._step.collects)]
        self.n_rounds += 1
        self._lengths = self._lengths or tally.lengths
        self._flows = self._flows or tally.flows
        self._tally = tally if self._tally is None else self._tally.merge(tally)
        for fit in self._step.refines:
            if fit.index in self._asked:
                self._advance(fit, [found[want, fit.source] for want in self._asked[fit.index]])

    def _advance(self, fit: Fit, stats: Sequence[Any] | None) -> None:
        running = self._running[fit.index]
        try:
            wants = next(running) if stats is None else running.send(stats)
        except StopIteration as stop:
            self._asked.pop(fit.index, None)
            self._fitted[fit.index] = Fitted(stop.value, fit.way)
        except ZeroDivisionError:
            self._give_up(
                fit, ValueError("the weights of all rows add up to zero. Give at least one that is not.")
            )
        except (DpipeError, ValueError, TypeError) as err:
            self._give_up(fit, err)
        else:
            self._asked[fit.index] = tuple(map(weighted_want, wants)) if fit.weighted else wants

    def _give_up(self, fit: Fit, err: Exception) -> None:
        self._fitted[fit.index] = Fitted(failed(fit, err, self._known.fitted), fit.way)
        self._asked.pop(fit.index, None)

    def finished(self) -> Known:
        """Give what is known after the last round: these fits, and those that waited for them alone."""
        tally = replace(
            self._tally or Tally(), flows=self._flows, n_readings=self.n_rounds, lengths=self._lengths
        )
        known = replace(
            self._known,
            fitted={**self._known.fitted, **self._fitted},
            tallies=(*self._known.tallies, tally),
        )
        return finish_fits(self._step, known, self._states)
