"""The planner: an estimator and the shape of its data become passes, bytes and projected memory.

A pass can fit whatever depends only on the data and on fits of earlier passes. Where a statistic of
a transformer's output follows from a statistic of its input (mean imputation moves a variance by a
known factor), the planner collects that one instead, and both fits share the pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dpipe.blocks.statistics import RowCount
from dpipe.errors import MemoryLimitError
from dpipe.families import boosting
from dpipe.families.by_size import chosen_by_size, reasons, run_length, state_nbytes
from dpipe.families.compose import Fit, Walk, final_fit
from dpipe.families.epochs import Epochs
from dpipe.families.expression import (
    RAW,
    Columns,
    Expression,
    InFolds,
    Output,
    Raw,
    Stack,
    needed_columns,
    needed_fits,
)
from dpipe.families.gradient import learner_nbytes
from dpipe.families.keeping import NOTHING_KEPT, Kept, with_kept
from dpipe.families.program import Derived, Finish, ProgramPass, kept_values, values_of
from dpipe.families.registry import Weighted
from dpipe.plan_record import PassPlan, Plan
from dpipe.run.pages import n_states_held
from dpipe.sizes import format_bytes


@dataclass(frozen=True)
class DataShape:
    """What the planner knows of the data."""

    source: str
    names: tuple[str, ...]
    rows: tuple[int | None, ...]
    row_nbytes: tuple[int, ...]
    """Decoded bytes of a row, for each column of X."""
    target_nbytes: int = 0
    """Decoded bytes of a row of y and weights."""
    overhead: float = 1.0
    """How many times its decoded size a block takes while it is read."""
    likely_block_rows: int | None = None
    """Rows of the largest block, where they can only be guessed: of the files behind derived data."""
    hidden_row_nbytes: int = 0
    """Decoded bytes of a row of those files."""
    in_memory: bool = False
    """Whether reading costs nothing."""
    whole: bool = False
    """Whether a block can only be read with all of its columns, as an array's."""
    held_out: tuple[int | None, ...] = ()
    """Rows of each block of the data that a boosted model is watched on."""

    @property
    def n_rows(self) -> int | None:
        """Number of rows, if all blocks are known."""
        return None if any(n is None for n in self.rows) else sum(n or 0 for n in self.rows)

    @property
    def block_rows(self) -> int | None:
        """Rows of the largest block, known or likely."""
        if any(n is None for n in self.rows):
            return self.likely_block_rows
        return max((n or 0 for n in self.rows), default=0)


@dataclass(frozen=True)
class Resources:
    """What a run may use."""

    threads: int
    """Blocks that are worked on at a time, in one worker."""
    workers: int = 1
    memory: int | None = None
    """Budget of one worker in bytes; None for no limit."""
    reserved: int = 0
    """What a worker's process takes before it has read anything, in bytes."""
    window: int = 4
    """Blocks in flight in an ordered pass."""
    scratch: str = ""
    """The folder for transformed blocks that are read more than twice; empty for none."""
    scratch_free: int | None = None
    """Bytes that are free there; None if that cannot be seen from here."""
    available: int | None = None
    """Bytes of memory that are free where the run takes place; None if that cannot be seen from here."""
    shares: int = 1
    """Into how many shares the rows are dealt that a boosted model learns."""
    may_hold: bool = False
    """Whether blocks may stay in memory between readings: of this process, where all of them are read."""


@dataclass(frozen=True)
class Program:
    """An estimator's passes, ready to run, and the record that describes them."""

    walk: Walk
    at_once: ProgramPass
    """Fits that need no data."""
    passes: tuple[ProgramPass, ...]
    plan: Plan


def make_program(walk: Walk, shape: DataShape, resources: Resources, *, epochs: int | Epochs = 1) -> Program:
    """Arrange the fits of an estimator into the fewest passes.

    Fits that must know where the rows stand wait for a pass that has counted the blocks, where their lengths are
    not known.

    Raises
    ------
    MemoryLimitError
        If the projected peak exceeds the budget.
    """
    seen = Epochs.of(epochs)
    walk = _sized(walk, shape, resources)
    done: set[int] = set()
    started: dict[int, int] = {}
    fitted_in: dict[int, int] = {}
    at_once = _Pass(walk, frozenset(), {}).filled(no_data=True)
    done |= at_once.finished
    for fit in at_once.started:
        started[fit] = 0
    passes: list[ProgramPass] = []
    records: list[PassPlan] = []
    while walk.root not in done:
        attempt = _Pass(walk, frozenset(done), started)
        attempt.lengths_known = bool(passes) or shape.n_rows is not None
        attempt.refined().filled()
        number = len(passes) + 1
        if not attempt.collects and not attempt.refines and not attempt.lengths_known and needs_places(walk):
            attempt.collects.append((RowCount, Columns(RAW, (0,))))
        elif not attempt.collects and not attempt.refines:
            attempt = _Pass(walk, frozenset(done), started).streamed()
        step = attempt.made(shape)
        step, attempt.kept = _with_kept(step, walk, shape, resources, seen)
        passes.append(step)
        records.append(_record(number, step, attempt, walk, shape, resources, fitted_in, seen))
        done |= attempt.finished
        fitted_in.update(dict.fromkeys(attempt.finished, number))
        started.update(dict.fromkeys(attempt.started, number))
    plan = _plan(walk, shape, resources, records)
    return Program(walk, at_once.made(shape), tuple(passes), plan)


def _sized(walk: Walk, shape: DataShape, resources: Resources) -> Walk:
    """Let each fit choose its way by the size of its input, and the budget: not by the threads that work on it."""
    rows = shape.n_rows
    if rows is None and shape.likely_block_rows is not None:
        rows = shape.likely_block_rows * len(shape.rows)
    return chosen_by_size(
        walk, rows, n_states_held(len(shape.rows), 1), resources.memory, resources.available
    )


class _Pass:
    """A pass in the making."""

    def __init__(self, walk: Walk, done: frozenset[int], started: dict[int, int]) -> None:
        self.walk = walk
        self.done = done
        self.was_started = started
        self.collects: list[tuple[Any, Expression]] = []
        self.finishes: list[Finish] = []
        self.finished: set[int] = set()
        self.started: set[int] = set()
        self.rules: list[str] = []
        self.learner: Fit | None = None
        self.refines: list[Fit] = []
        self.lengths_known = True
        self.kept = NOTHING_KEPT

    def filled(self, *, no_data: bool = False) -> "_Pass":
        """Take every fit that can be finished in this pass."""
        for fit in self.walk.fits:
            if fit.index not in self.done and fit.index not in self.was_started:
                self._try(fit, no_data)
        return self

    def _waiting(self, kind: str) -> list[Fit]:
        """List the fits of a kind that are started, and whose input can be computed."""
        started = (
            fit for fit in self.walk.fits if fit.index in self.was_started and fit.index not in self.done
        )
        return [fit for fit in started if fit.way.kind == kind and needed_fits(fit.source) <= self.done]

    def refined(self) -> "_Pass":
        """Take all fits that refine what earlier passes have started: they share their readings."""
        self.refines = self._waiting("refine")
        self.finished |= {fit.index for fit in self.refines}
        return self

    def streamed(self) -> "_Pass":
        """Take the one learner that is waiting for its ordered pass, and what is finished with it."""
        self.learner = (self._waiting("stream") or self._waiting("boost"))[0]
        self.finished.add(self.learner.index)
        return self.filled(no_data=True)

    def _ready(self) -> frozenset[int]:
        return self.done | self.finished

    def _try(self, fit: Fit, no_data: bool) -> None:
        if not fit.is_leaf and not {child for child in fit.children if child is not None} <= self._ready():
            return
        if (
            fit.is_leaf
            and not fit.wants
            and fit.way.kind not in _STARTED
            and not needed_fits(fit.source) <= self._ready()
        ):
            return
        if not self.lengths_known and any(_needs_place(want) for want, _ in fit.wants):
            return
        kept = len(self.collects), len(self.rules)
        stats = [self._resolve(want, expression) for want, expression in fit.wants]
        if any(found is None for found in stats) or (no_data and len(self.collects) > kept[0]):
            del self.collects[kept[0] :]
            del self.rules[kept[1] :]
            return
        self.finishes.append(Finish(fit, tuple(found for found in stats if found is not None)))
        (self.started if fit.way.kind in _STARTED and fit.is_leaf else self.finished).add(fit.index)

    def _resolve(self, want: Any, expression: Expression) -> Derived | None:
        if getattr(want, "of_y", False):
            expression = RAW
        if needed_fits(expression) <= self.done:
            return Derived(self._collect(want, expression))
        if not isinstance(expression, Output) or expression.fit not in self.finished:
            return None
        fit = self.walk.fits[expression.fit]
        rule = fit.way.derive.get(want, _no_rule)(fit.estimator)
        inner = None if rule is None else self._resolve(rule.source, expression.source)
        if rule is None or inner is None:
            return None
        said = f"{_name(want)} after {fit.name.split(' / ')[-1]}: {rule.rule}"
        if said not in self.rules:
            self.rules.append(said)
        return replace(inner, steps=(*inner.steps, (fit.index, rule.function)))

    def _collect(self, want: Any, expression: Expression) -> int:
        if (want, expression) not in self.collects:
            self.collects.append((want, expression))
        return self.collects.index((want, expression))

    def made(self, shape: DataShape) -> ProgramPass:
        """Freeze it, and work out which columns it reads."""
        step = ProgramPass(
            tuple(self.collects), tuple(self.finishes), None, self.learner, tuple(self.refines)
        )
        needed = [needed_columns(expression) for expression in values_of(step)]
        columns: tuple[int, ...] | None = None
        if not shape.whole and not any(found is None for found in needed):
            columns = tuple(sorted(frozenset().union(*(found for found in needed if found is not None))))
        if columns == tuple(range(len(shape.names))):
            columns = None
        return _with_runs(replace(step, columns=columns, every=self._every(shape)), shape)

    def _every(self, shape: DataShape) -> int:
        """Read some of the blocks only where a sample is all that is collected."""
        only_samples = all(getattr(want, "partial", False) for want, _ in self.collects)
        if not only_samples or not self.collects or self.refines or shape.n_rows is None:
            return 1
        return _SAMPLE_EVERY if len(shape.rows) >= _SAMPLE_EVERY * _FEWEST_SAMPLED else 1


def _with_runs(step: ProgramPass, shape: DataShape) -> ProgramPass:
    """Choose how large states are added up and merged."""
    rows = shape.block_rows
    nbytes = None if rows is None else rows * sum(shape.row_nbytes)
    chained = any(fit.way.footprint is not None for fit in _fits_of(step))
    return replace(step, run=run_length(step.refines, len(shape.rows), nbytes), chained=chained)


def _fits_of(step: ProgramPass) -> list[Fit]:
    return [*step.refines, *(finish.fit for finish in step.finishes)]


def needs_places(walk: Walk) -> bool:
    """Tell whether a fit must know where in the data its rows stand, from its first pass on."""
    return any(_needs_place(want) for fit in walk.fits for want, _ in fit.wants)


def _needs_place(want: Any) -> bool:
    # who only samples can also do without
    return getattr(want, "placed", False) and not getattr(want, "partial", False)


#: A pass that only samples reads every so many blocks, if that leaves it enough of them.
_SAMPLE_EVERY, _FEWEST_SAMPLED = 4, 4

#: Ways of fits that are started in one pass and fitted in a later one.
_STARTED = ("stream", "refine", "boost")


def _with_kept(
    step: ProgramPass, walk: Walk, shape: DataShape, resources: Resources, epochs: Epochs
) -> tuple[ProgramPass, Kept]:
    """Keep the transformed blocks where that is cheaper than to decode and transform them again."""
    if step.learner is not None and step.learner.way.kind == "boost":
        width = sum(_width(value, walk, shape) for value in kept_values(step))
        kept = Kept(*boosting.scratch(step.learner.estimator, shape, width, resources))
        return replace(step, scratch=resources.scratch), kept
    if _readings(step, epochs.n)[1] <= 2:
        return step, NOTHING_KEPT
    widths = [_width(value, walk, shape) for value in kept_values(step)]
    return with_kept(step, widths, shape, resources, _projected(step, walk, shape, resources, epochs))


def _readings(step: ProgramPass, epochs: int) -> tuple[int, int]:
    """How often a pass reads the blocks, at least and at most."""
    if step.learner is not None:
        return (1, 1) if step.learner.way.kind == "boost" else (epochs, epochs)
    rounds = [fit.way.rounds(fit.estimator) for fit in step.refines if fit.way.rounds is not None]
    own = 1 if step.collects or not step.refines else 0
    return max([own, *(each.least for each in rounds)]), max([own, *(each.most for each in rounds)])


def _no_rule(estimator: Any) -> None:
    return None


def _name(want: Any) -> str:
    if isinstance(want, Weighted):
        return f"weighted {_name(want.want)}"
    if isinstance(want, type):
        return want.__name__.lstrip("_")
    return getattr(want, "name", "a registered state")


def _record(
    number: int,
    step: ProgramPass,
    attempt: _Pass,
    walk: Walk,
    shape: DataShape,
    resources: Resources,
    fitted_in: dict[int, int],
    epochs: Epochs,
) -> PassPlan:
    positions, per_row = _positions_read(step, shape), _nbytes_read(step, shape)
    times, most = _readings(step, epochs.n)
    stops = epochs.validation is not None and step.learner is final_fit(walk)
    times = epochs.least if stops else times
    rows = None if shape.n_rows is None else sum(n or 0 for n in shape.rows[step.sampled])
    collects = [
        f"{_name(want)} of {'y' if getattr(want, 'of_y', False) else _describe(e, walk, shape)}"
        for want, e in step.collects
    ]
    for fit in step.refines:
        assert fit.way.rounds is not None
        collects.append(
            f"{fit.way.rounds(fit.estimator).collects} of {_describe(fit.source, walk, shape)}, each time"
        )
    if step.learner is not None and step.learner.way.kind == "boost":
        collects.append(boosting.describe(step.learner.estimator, resources))
    return PassPlan(
        number=number,
        way=_way(step, epochs),
        fits=_fit_names(step),
        collects=tuple(dict.fromkeys(collects)),
        why="; ".join([_why(number, step, attempt, walk, fitted_in, shape), *reasons(step.refines)]),
        rules=tuple(attempt.rules),
        columns=tuple(shape.names[j] for j in positions),
        n_blocks=len(shape.rows[step.sampled]),
        epochs=times,
        most_epochs=most,
        scratch=attempt.kept.says,
        scratch_nbytes=attempt.kept.nbytes,
        order=() if step.learner is None else epochs.says(shape.rows, resources.window, stops=stops),
        rows=None if rows is None else rows * times,
        nbytes=None if rows is None else rows * per_row * times,
        projected_nbytes=attempt.kept.beside(_projected(step, walk, shape, resources, epochs)),
    )


def _positions_read(step: ProgramPass, shape: DataShape) -> Sequence[int]:
    return range(len(shape.names)) if step.columns is None else step.columns


def _nbytes_read(step: ProgramPass, shape: DataShape) -> int:
    """Decoded bytes of what is read of a row."""
    return sum(shape.row_nbytes[j] for j in _positions_read(step, shape)) + shape.target_nbytes


def _way(step: ProgramPass, epochs: Epochs) -> str:
    if step.learner is None:
        return "refine" if step.refines else "merge"
    if step.learner.way.kind == "boost":
        return "boost"
    return "stream" if epochs.average is None else "average"


#: What the first pass of a fit that takes several gives.
_START_OF = {"stream": " (its classes)", "refine": " (its start)", "boost": " (its classes and categories)"}


def _fit_names(step: ProgramPass) -> tuple[str, ...]:
    names = [fit.name for fit in step.refines]
    if step.learner is not None:
        names.append(step.learner.name)
    for finish in step.finishes:
        if finish.fit.is_leaf:
            names.append(f"{finish.fit.name}{_START_OF.get(finish.fit.way.kind, '')}")
    return tuple(names)


def _describe(expression: Expression, walk: Walk, shape: DataShape) -> str:
    if isinstance(expression, Raw):
        return "X"
    if isinstance(expression, Columns):
        if len(expression.positions) > 3 or not isinstance(expression.source, Raw):
            return f"{len(expression.positions)} columns of {_describe(expression.source, walk, shape)}"
        return ", ".join(shape.names[j] for j in expression.positions)
    if isinstance(expression, InFolds):
        return f"folds of {_describe(expression.source, walk, shape)}"
    if isinstance(expression, Output):
        return f"the output of {walk.fits[expression.fit].name.split(' / ')[-1]}"
    return f"the output of {walk.fits[expression.fit].name.split(' / ')[-1]}"


def _why(
    number: int,
    step: ProgramPass,
    attempt: _Pass,
    walk: Walk,
    fitted_in: dict[int, int],
    shape: DataShape,
) -> str:
    """Say what kept this pass from being an earlier one."""
    if number == 1:
        return "first reading of the data"
    if step.learner is not None:
        before = sorted({fitted_in[i] for i in needed_fits(step.learner.source) if i in fitted_in})
        waits = [f"the transformers fitted in pass {', '.join(map(str, before))}"] if before else []
        if attempt.was_started.get(step.learner.index):
            waits.append(f"the classes found in pass {attempt.was_started[step.learner.index]}")
        if step.learner.way.kind == "boost":
            return f"its rounds follow {' and '.join(waits) or 'this reading'}"
        return f"learns in order, block after block, from {' and '.join(waits) or 'the first block on'}"
    waits = []
    if any(_needs_place(want) for want, _ in step.collects) and shape.n_rows is None:
        waits.append("the places of the rows follow from what pass 1 has counted")
    waits += [
        f"{fit.name} refines what pass {attempt.was_started[fit.index]} has found" for fit in step.refines
    ]
    for want, expression in step.collects:
        last = [i for i in needed_fits(expression) if fitted_in.get(i) == number - 1 and walk.fits[i].is_leaf]
        waits += [f"{_name(want)} needs the output of {walk.fits[i].name} (pass {number - 1})" for i in last]
    return "; ".join(dict.fromkeys(waits)) or "waits for the pass before"


def _projected(
    step: ProgramPass, walk: Walk, shape: DataShape, resources: Resources, epochs: Epochs
) -> int | None:
    """Bytes of one worker at the worst: what its blocks decode to, and what is made of them."""
    rows, per_row = shape.block_rows, _nbytes_read(step, shape)
    if rows is None:
        return None
    values: set[Expression] = set().union(*map(_parts, values_of(step)))
    held = 0.0
    trained = 0
    if step.learner is not None and step.learner.way.kind == "boost":
        width = _width(step.learner.source, walk, shape)
        trained = boosting.projected(step.learner.estimator, shape, width, resources)
    elif step.learner is not None:
        source = step.learner.source
        blocks = epochs.n_held(len(shape.rows), resources.window)
        held = rows * (_own_nbytes(source, walk, shape) + shape.target_nbytes) * blocks
        learner = learner_nbytes(step.learner.estimator, _width(source, walk, shape))
        held += learner * (1 + (epochs.average or 0))
    made = sum(_own_nbytes(expression, walk, shape) for expression in values)
    read = max(per_row, shape.hidden_row_nbytes) * shape.overhead
    n_states = -(-len(shape.rows) // step.run)
    held += state_nbytes(_fits_of(step), n_states_held(n_states, resources.threads))
    return int(resources.reserved + max(resources.threads * rows * (read + made) + held, trained))


def _parts(expression: Expression) -> set[Expression]:
    """An expression, and all that it is computed from."""
    if isinstance(expression, Raw):
        return {expression}
    if isinstance(expression, Stack):
        return {expression}.union(*map(_parts, expression.parts))
    return {expression} | _parts(expression.source)


def _own_nbytes(expression: Expression, walk: Walk, shape: DataShape) -> float:
    """Bytes that one row of a value takes, without what it is computed from."""
    if isinstance(expression, Raw):
        return 0.0  # counted as what is read
    if isinstance(expression, Stack):
        # CSR: eight bytes of value and four of index for each entry
        return 12.0 * sum(_width(part, walk, shape) for part in expression.parts)
    return 8.0 * _width(expression, walk, shape)


def _width(expression: Expression, walk: Walk, shape: DataShape) -> int:
    """Stored entries of one row; a one-hot encoder stores one for each column it encodes."""
    if isinstance(expression, Raw):
        return len(shape.names)
    if isinstance(expression, Columns):
        return len(expression.positions)
    if isinstance(expression, Stack):
        return sum(_width(part, walk, shape) for part in expression.parts)
    fit = walk.fits[expression.fit]
    known = fit.way.output(fit.estimator, fit.meta).width
    return _width(expression.source, walk, shape) if known is None else known


def _plan(walk: Walk, shape: DataShape, resources: Resources, records: Sequence[PassPlan]) -> Plan:
    peaks = [record.projected_nbytes for record in records]
    projected = (
        None if any(p is None for p in peaks) else max((p or 0 for p in peaks), default=resources.reserved)
    )
    plan = Plan(
        estimator=type(walk.fits[walk.root].estimator).__name__,
        source=shape.source,
        n_rows=shape.n_rows,
        n_blocks=len(shape.rows),
        passes=tuple(records),
        workers=resources.workers,
        threads=resources.threads,
        memory_nbytes=resources.memory,
        reserved_nbytes=resources.reserved,
        projected_nbytes=projected,
    )
    check_budget(plan)
    return plan


def check_budget(plan: Plan) -> None:
    """Refuse a plan that cannot fit.

    Raises
    ------
    MemoryLimitError
        With the figures, and what would fit.
    """
    if plan.memory_nbytes is None:
        return
    if plan.projected_nbytes is None:
        if plan.reserved_nbytes >= plan.memory_nbytes:
            raise MemoryLimitError(
                f"The plan needs more than {format_bytes(plan.reserved_nbytes)} a worker, which the process takes by "
                f"itself, but the budget is {format_bytes(plan.memory_nbytes)}. Give at least "
                f"memory='{_rounded_up(2 * plan.reserved_nbytes)}'."
            )
        return
    if plan.projected_nbytes <= plan.memory_nbytes:
        return
    room = plan.memory_nbytes - plan.reserved_nbytes
    needed = plan.projected_nbytes - plan.reserved_nbytes
    remedy = f"Give at least memory='{_rounded_up(plan.projected_nbytes)}'"
    if room > 0:
        share = room / needed
        remedy += f", or read with blocks {1 / share:.1f} times smaller (block_nbytes=...)"
        if plan.threads > 1:
            remedy += ", or use fewer threads"
    raise MemoryLimitError(
        f"The plan needs {format_bytes(plan.projected_nbytes)} a worker, but the budget is "
        f"{format_bytes(plan.memory_nbytes)}: {format_bytes(plan.reserved_nbytes)} for the process itself and "
        f"{format_bytes(needed)} for {plan.threads} block{'s' * (plan.threads > 1)} at a time. {remedy}."
    )


def _rounded_up(nbytes: int) -> str:
    return f"{-(-nbytes // 2**20)} MiB"
