"""Where a chain of layers is cut into stages, and what each stage will take: arithmetic on what was measured.

Time and memory are those of one process for each stage. Cuts are found by dynamic programming over the layers, which
tries all of them: the slowest stage is as quick as the budgets allow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dpipe.errors import InputError, MemoryLimitError
from dpipe.sizes import MIB, counted, format_bytes, format_seconds
from dpipe.train.networks.chain import Chain
from dpipe.train.networks.orders import bubble_of, in_flight, span_of
from dpipe.train.networks.profile import LayerProfile, Values, Weights

#: What a rank's process takes before it has a layer: Python, torch and its libraries, Dask, scikit-learn.
RANK_NBYTES = 600 * MIB


@dataclass(frozen=True)
class Load:
    """What beside the layers decides how much a stage takes."""

    batch_rows: int
    input: Values
    """A row of X, as the first stage is given it."""
    state_ratio: float
    """Bytes that the optimizer keeps for each byte of weights."""
    order: str = "1f1b"
    virtual: int = 1
    """Groups of layers of a process: more than one where the order is interleaved."""
    loader_nbytes: int = 0
    """Of the first stage: buffers of blocks that are read ahead."""
    keeps_best: bool = False
    """Whether the weights of the best epoch are kept beside the last ones."""

    def rows(self, micro_batches: int) -> int:
        """Count the rows of a micro-batch."""
        return -(-self.batch_rows // micro_batches)


@dataclass(frozen=True)
class PartPlan:
    """Neighbouring layers, and what they take of a process."""

    start: int
    stop: int
    layers: tuple[str, ...]
    input: Values
    output: Values
    seconds: float
    """Forward and backward of a micro-batch."""
    weights_nbytes: int
    states_nbytes: int
    """Weights, gradients and what the optimizer keeps."""
    moved_nbytes: int
    """Buffers to send and receive."""
    kept_nbytes: float
    """What a micro-batch leaves behind until its gradients come back."""
    back_nbytes: float
    """What it takes for a moment to go back through the layers."""
    update_nbytes: float
    """What the optimizer takes for a moment."""

    @property
    def what(self) -> str:
        """The names of the layers, in short."""
        return self.layers[0] if len(self.layers) == 1 else f"{self.layers[0]} to {self.layers[-1]}"


@dataclass(frozen=True)
class StagePlan:
    """One stage: the layers of a process, which are neighbours; several groups of them in the interleaved order."""

    parts: tuple[PartPlan, ...]
    activations_nbytes: int
    """What micro-batches in flight leave behind until their gradients come back, and buffers to send and receive."""
    peak_nbytes: int
    """All of it, at the worst, with what the process takes by itself."""

    @property
    def start(self) -> int:
        """Its first layer."""
        return self.parts[0].start

    @property
    def stop(self) -> int:
        """The layer after its last one."""
        return self.parts[-1].stop

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of its layers."""
        return tuple(name for part in self.parts for name in part.layers)

    @property
    def weights_nbytes(self) -> int:
        """Bytes of parameters and buffers."""
        return sum(part.weights_nbytes for part in self.parts)

    @property
    def states_nbytes(self) -> int:
        """Weights, gradients and what the optimizer keeps."""
        return sum(part.states_nbytes for part in self.parts)

    @property
    def seconds(self) -> float:
        """Forward and backward of a micro-batch."""
        return sum(part.seconds for part in self.parts)

    def __str__(self) -> str:
        """Say what it is, and what it takes."""
        what = ", then ".join(part.what for part in self.parts)
        return (
            f"{counted(len(self.layers), 'layer')} ({what})   weights {format_bytes(self.weights_nbytes)}, states "
            f"{format_bytes(self.states_nbytes)}, activations {format_bytes(self.activations_nbytes)}, peak "
            f"{format_bytes(self.peak_nbytes)}, {format_seconds(self.seconds)} a micro-batch"
        )


@dataclass(frozen=True)
class SplitPlan:
    """How a module is split, and what is expected of it; prints as a table."""

    stages: tuple[StagePlan, ...]
    order: str
    micro_batches: int
    micro_rows: int
    memory_nbytes: int | None
    """What a process may take; None for no limit."""
    notes: tuple[str, ...] = ()
    n_copies: int = 1
    """How many networks learn side by side, each split like this."""
    n_shards: int = 1
    """How many processes share a stage: each has a part of its layers."""

    @property
    def n_stages(self) -> int:
        """How many parts of the network follow each other."""
        return len(self.stages)

    @property
    def n_processes(self) -> int:
        """How many processes there are."""
        return self.n_stages * self.n_copies * self.n_shards

    @property
    def bubble(self) -> float:
        """Share of the time that processes wait for each other: (p - 1) / (v m + p - 1) where stages are equally quick.

        Of p stages of v groups of layers each, and m micro-batches.

        Examples
        --------
        >>> bubble_of([1.0, 1.0], 4)
        0.2
        """
        return bubble_of(self._seconds, self.micro_batches, len(self.stages[0].parts))

    @property
    def step_s(self) -> float:
        """Seconds of a batch, if each process has a core of its own."""
        return span_of(self._seconds, self.micro_batches, len(self.stages[0].parts))

    @property
    def _seconds(self) -> list[float]:
        return [stage.seconds for stage in self.stages]

    @property
    def peak_nbytes(self) -> int:
        """Of the process that takes most."""
        return max(stage.peak_nbytes for stage in self.stages)

    def __str__(self) -> str:
        """Draw the plan as a table."""
        limit = "" if self.memory_nbytes is None else f", of {format_bytes(self.memory_nbytes)} allowed"
        copies = "" if self.n_copies == 1 else f"{self.n_copies} copies of "
        shared = "" if self.n_shards == 1 else f" of {self.n_shards} processes each"
        lines = [
            f"{copies}{counted(self.n_stages, 'stage')}{shared}, {self.order}, {self.micro_batches} times "
            f"{counted(self.micro_rows, 'row')} a batch: bubble {self.bubble:.0%}, a batch in "
            f"{format_seconds(self.step_s)}{limit}"
        ]
        lines += [f"  stage {i}  {stage}" for i, stage in enumerate(self.stages)]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    __repr__ = __str__


def check_layers(
    chain: Chain,
    weights: Sequence[Weights],
    n_stages: int,
    ratio: float,
    memory: int | None,
    hint: Callable[[int], str] = lambda _: "",
) -> None:
    """Refuse what cannot be split, before anything is computed.

    Parameters
    ----------
    chain : Chain
    weights : sequence of Weights
        Of each layer.
    n_stages : int
    ratio : float
        From `state_ratio`.
    memory : int, optional
        Bytes that a process may take.
    hint : callable ``(layer) -> str``
        What else would help where a layer is too large; ends in a comma and a space.

    Raises
    ------
    InputError
        If there are fewer layers than stages.
    MemoryLimitError
        If a layer is larger than any process may be.
    """
    n_places = len(chain.cuts) + 1
    if n_stages > n_places:
        shared = "" if n_places == len(chain.layers) else ", as some stay together"
        raise InputError(
            f"{counted(n_stages, 'stage')} need as many layers, but the module can be cut into {n_places}{shared}. "
            f"Give stages={n_places} or fewer, or a module of more layers."
        )
    if memory is None:
        return
    for layer, own in zip(chain.layers, weights, strict=True):
        least = RANK_NBYTES + own.nbytes + (1 + ratio) * own.learned_nbytes
        if least > memory:
            raise MemoryLimitError(
                f"Layer {layer.index} takes {format_bytes(least)} with its gradients, the optimizer's state and the "
                f"process itself, and a process may take {format_bytes(memory)}. No cut helps: give more memory, an "
                f"optimizer that keeps less, {hint(layer.index)}or several layers in its place."
            )


def plan_split(
    chain: Chain,
    profiles: Sequence[LayerProfile],
    load: Load,
    n_stages: int,
    *,
    memory: int | None = None,
    micro_batches: int | None = None,
) -> SplitPlan:
    """Cut a chain into stages.

    Parameters
    ----------
    chain : Chain
    profiles : sequence of LayerProfile
        Of its layers.
    load : Load
    n_stages : int
    memory : int, optional
        Bytes that the process of a stage may take.
    micro_batches : int, optional
        Default: four for each stage, and twice as many again and again while no cut keeps to the budget.

    Raises
    ------
    InputError
        If there are fewer layers than stages, or fewer rows than micro-batches.
    MemoryLimitError
        If no cut keeps to the budget.
    """
    m = min(4 * n_stages, load.batch_rows) if micro_batches is None else micro_batches
    check_micro_batches(m, load, n_stages)
    check_layers(
        chain, [each.weights for each in profiles], n_stages * load.virtual, load.state_ratio, memory
    )
    while True:
        split = _Split(chain, profiles, load, n_stages, m)
        stages = split.quickest(memory)
        if stages is not None:
            notes = tuple(_notes(chain, load.rows(m)))
            return SplitPlan(tuple(stages), load.order, m, load.rows(m), memory, notes)
        if micro_batches is not None or 2 * m > load.batch_rows:
            break
        m *= 2
    worst = max(split.smallest(), key=lambda stage: stage.peak_nbytes)
    raise MemoryLimitError(
        f"{counted(n_stages, 'stage')} cannot keep to {format_bytes(memory or 0)} each: with the best cut, layers "
        f"{worst.start} to {worst.stop - 1} take {format_bytes(worst.peak_nbytes)} "
        f"({format_bytes(worst.states_nbytes)} of states, {format_bytes(worst.activations_nbytes)} of activations). "
        "Give more stages or memory, smaller batches, or an optimizer that keeps less."
    )


def check_micro_batches(m: int, load: Load, n_stages: int) -> None:
    """Refuse micro-batches that a batch cannot be cut into, or the order cannot work on.

    Raises
    ------
    InputError
        If that is so.
    """
    if m > load.batch_rows:
        raise InputError(
            f"micro_batches={m} cannot be made of {counted(load.batch_rows, 'row')}, those of a batch that a copy "
            "of the network learns. Give larger batches, or fewer micro_batches."
        )
    rounds = max(m // n_stages, 1)
    if load.order == "interleaved" and m % rounds:
        raise InputError(
            f"order='interleaved' works on micro-batches in {rounds} rounds of equally many, and micro_batches={m} is "
            f"no multiple of {rounds}. Give a multiple of {counted(n_stages, 'stage')}, such as "
            f"{-(-m // n_stages) * n_stages}."
        )


def _notes(chain: Chain, rows: int) -> list[str]:
    import torch

    kinds = torch.nn.modules.batchnorm._BatchNorm
    for layer in chain.layers:
        for part in layer.skeleton.modules():
            if isinstance(part, kinds):
                return [f"{type(part).__name__} sees {counted(rows, 'row')} at a time, not a whole batch."]
    return []


class _Split:
    """All stages that a chain may be cut into."""

    def __init__(
        self, chain: Chain, profiles: Sequence[LayerProfile], load: Load, n_stages: int, micro_batches: int
    ) -> None:
        self._profiles, self._load, self._m = profiles, load, micro_batches
        self._n_stages, self._n = n_stages, n_stages * load.virtual
        self._places = [0, *(i for i in chain.cuts if not profiles[i].in_place), len(profiles)]
        if len(self._places) <= self._n:
            raise InputError(
                f"{counted(self._n, 'stage')} need as many places to cut at, and there are {len(self._places) - 2}: a "
                "layer that changes its input in place cannot be the first of a stage. Give inplace=False, or fewer "
                "stages."
            )
        self._in_flight = [
            in_flight(load.order, s, n_stages, micro_batches, load.virtual) for s in range(n_stages)
        ]
        self.part: Callable[[int, int, int], PartPlan] = lru_cache(maxsize=None)(self._part)

    def quickest(self, memory: int | None) -> list[StagePlan] | None:
        """Find the stages of which the slowest is as quick as can be; None if none keep to the budget."""
        for cost in (lambda part: part.seconds, _alone_nbytes):
            cuts = self._cut(cost, memory)
            if cuts is None or memory is None or self._load.virtual == 1:
                return None if cuts is None else self._stages(cuts)
            # each part may be small enough, and those of a process together too large
            eased = self._eased(cuts, memory)
            if eased is not None:
                return eased
        return None

    def smallest(self) -> list[StagePlan]:
        """Find the stages whose largest part takes as little as can be."""
        cuts = self._cut(_alone_nbytes, None)
        assert cuts is not None
        return self._stages(cuts)

    def _eased(self, cuts: list[int], memory: int) -> list[StagePlan] | None:
        """Move cuts by one place, as long as that takes from what is over the budget."""

        def over(cuts: list[int]) -> int:
            return sum(max(stage.peak_nbytes - memory, 0) for stage in self._stages(cuts))

        while over(cuts):
            moved = [
                [*cuts[:i], cuts[i] + by, *cuts[i + 1 :]]
                for i in range(1, self._n)
                for by in (-1, 1)
                if cuts[i - 1] < cuts[i] + by < cuts[i + 1]
            ]
            best = min(moved, key=over, default=cuts)
            if over(best) >= over(cuts):
                return None
            cuts = best
        return self._stages(cuts)

    def _stages(self, cuts: list[int]) -> list[StagePlan]:
        """Give the stages between places."""
        places = [self._places[cut] for cut in cuts]
        parts = [self.part(g, places[g], places[g + 1]) for g in range(self._n)]
        return [self._stage(s, tuple(parts[s :: self._n_stages])) for s in range(self._n_stages)]

    def _cut(self, cost: Callable[[PartPlan], float], memory: int | None) -> list[int] | None:
        """Find the cuts whose most expensive part is the cheapest, as places; None if none keeps to the budget."""
        places, last = self._places, len(self._places) - 1
        best: dict[int, tuple[float, list[int]]] = {0: (0.0, [0])}
        for g in range(self._n):
            found: dict[int, tuple[float, list[int]]] = {}
            ends = [last] if g == self._n - 1 else range(g + 1, last - (self._n - g - 1) + 1)
            for begun, (before, cuts) in best.items():
                for end in ends:
                    if end <= begun:
                        continue
                    part = self.part(g, places[begun], places[end])
                    if memory is not None and self._least_nbytes(g, part) > memory:
                        continue
                    costs = max(before, cost(part))
                    if end not in found or costs < found[end][0]:
                        found[end] = costs, [*cuts, end]
            best = found
        return best[last][1] if last in best else None

    def _least_nbytes(self, g: int, part: PartPlan) -> float:
        """Give what the process of a part takes at the least: all of it, if that is its only part."""
        if self._load.virtual == 1:
            return self._stage(g, (part,)).peak_nbytes
        return RANK_NBYTES + _alone_nbytes(part)

    def _stage(self, s: int, parts: tuple[PartPlan, ...]) -> StagePlan:
        load = self._load
        moved = sum(part.moved_nbytes for part in parts)
        kept = max(
            sum(n * part.kept_nbytes for n, part in zip(counts, parts, strict=True))
            for counts in self._in_flight[s]
        )
        states = sum(part.states_nbytes for part in parts)
        read = (4 * load.batch_rows * load.input.nbytes + load.loader_nbytes) if s == 0 else 0
        best = sum(part.weights_nbytes for part in parts) if load.keeps_best else 0
        back = max(part.back_nbytes for part in parts)
        update = max(part.update_nbytes for part in parts)
        peak = RANK_NBYTES + states + best + read + moved + max(kept + back, update)
        return StagePlan(parts, int(kept + moved), int(peak))

    def _part(self, g: int, start: int, stop: int) -> PartPlan:
        own, load, m = self._profiles[start:stop], self._load, self._m
        given, output = self._profiles[start - 1].output if start else load.input, own[-1].output
        rows = load.rows(m)
        learned = sum(each.weights.learned_nbytes for each in own)
        weights = sum(each.weights.nbytes for each in own)
        # there is a buffer for each micro-batch
        moved = m * rows * ((given.nbytes if g else 0) + (output.nbytes if g < self._n - 1 else 0))
        # one layer at a time goes back: the gradients of its weights, of its input and of its output
        back = max(2 * rows * each.output.nbytes + each.weights.largest_nbytes for each in own)
        # the optimizer, too, works on one weight at a time, and with as many others of its size as it keeps
        largest = max(each.weights.largest_nbytes for each in own)
        return PartPlan(
            start,
            stop,
            tuple(each.name for each in own),
            given,
            output,
            rows * sum(each.seconds for each in own),
            weights,
            int(weights + learned * (1 + load.state_ratio)),
            moved,
            rows * _kept_nbytes(own),
            back,
            largest * load.state_ratio,
        )


def _alone_nbytes(part: PartPlan) -> float:
    """Give what a part takes with one micro-batch in flight."""
    return (
        part.states_nbytes + part.moved_nbytes + max(part.kept_nbytes + part.back_nbytes, part.update_nbytes)
    )


def _kept_nbytes(layers: Sequence[LayerProfile]) -> float:
    """Add up what a micro-batch leaves behind in a stage, a row: each value once, whoever keeps it."""
    total = sum(each.kept_nbytes for each in layers)
    held = True  # a stage's input is held, but counted with what it receives
    nbytes = 0.0
    for i, each in enumerate(layers):
        if i and not held and each.keeps_input:
            held, total = True, total + nbytes
        if each.is_view:
            if each.keeps_output and not held:
                held, total = True, total + nbytes
            continue
        nbytes, held = each.output.nbytes, each.keeps_output
        total += nbytes if held else 0.0
    # what is given on is held until its gradients are there
    return total + (0.0 if held else nbytes)


def state_ratio(optimizer: Callable[[Any], Any]) -> float:
    """Tell how many bytes an optimizer keeps for each byte of weights, by letting it take one step.

    Raises
    ------
    InputError
        If it cannot be made of parameters alone, or take a step by itself.

    Examples
    --------
    >>> import pytest; torch = pytest.importorskip("torch")
    >>> state_ratio(torch.optim.Adam)
    2.0
    """
    import torch

    n = 4096
    weight = torch.nn.Parameter(torch.zeros(n))
    weight.grad = torch.ones(n)
    try:
        made = optimizer([weight])
        made.step()
    except Exception as err:  # whatever the caller's function raises
        raise InputError(
            f"optimizer={optimizer!r} fails on parameters: {err} Give a function from parameters to a "
            "torch.optim.Optimizer, such as functools.partial(torch.optim.SGD, lr=0.1)."
        ) from err
    kept = sum(
        each.nbytes
        for held in made.state.values()
        for each in held.values()
        if isinstance(each, torch.Tensor) and each.numel() > 1
    )
    return kept / weight.nbytes
