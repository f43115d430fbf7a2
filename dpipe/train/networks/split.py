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
from dpipe.train.networks.profile import LayerProfile, Values, Weights

#: What a rank's process takes before it has a layer: Python, torch and its libraries, Dask, scikit-learn.
RANK_NBYTES = 600 * MIB
#: The orders in which a stage works on its micro-batches.
SCHEDULES = ("1f1b", "gpipe")


@dataclass(frozen=True)
class Load:
    """What beside the layers decides how much a stage takes."""

    batch_rows: int
    input: Values
    """A row of X, as the first stage is given it."""
    state_ratio: float
    """Bytes that the optimizer keeps for each byte of weights."""
    schedule: str = "1f1b"
    loader_nbytes: int = 0
    """Of the first stage: buffers of blocks that are read ahead."""
    keeps_best: bool = False
    """Whether the weights of the best epoch are kept beside the last ones."""

    def rows(self, micro_batches: int) -> int:
        """Count the rows of a micro-batch."""
        return -(-self.batch_rows // micro_batches)


@dataclass(frozen=True)
class StagePlan:
    """One stage: neighbouring layers, in a process of their own."""

    start: int
    stop: int
    layers: tuple[str, ...]
    weights_nbytes: int
    states_nbytes: int
    """Weights, gradients and what the optimizer keeps."""
    activations_nbytes: int
    """What micro-batches in flight leave behind until their gradients come back, and buffers to send and receive."""
    peak_nbytes: int
    """All of it, at the worst, with what the process takes by itself."""
    seconds: float
    """Forward and backward of a micro-batch."""
    input: Values
    output: Values


@dataclass(frozen=True)
class SplitPlan:
    """How a module is split, and what is expected of it; prints as a table."""

    stages: tuple[StagePlan, ...]
    schedule: str
    micro_batches: int
    micro_rows: int
    memory_nbytes: int | None
    """What a process may take; None for no limit."""
    notes: tuple[str, ...] = ()

    @property
    def n_stages(self) -> int:
        """How many processes."""
        return len(self.stages)

    @property
    def bubble(self) -> float:
        """Share of the time that processes wait for each other: (p - 1) / (m + p - 1) where stages are equally quick.

        Examples
        --------
        >>> bubble_of([1.0, 1.0], 4)
        0.2
        """
        return bubble_of([stage.seconds for stage in self.stages], self.micro_batches)

    @property
    def step_s(self) -> float:
        """Seconds of a batch, if each process has a core of its own."""
        return span_of([stage.seconds for stage in self.stages], self.micro_batches)

    @property
    def peak_nbytes(self) -> int:
        """Of the process that takes most."""
        return max(stage.peak_nbytes for stage in self.stages)

    def __str__(self) -> str:
        """Draw the plan as a table."""
        limit = "" if self.memory_nbytes is None else f", of {format_bytes(self.memory_nbytes)} allowed"
        lines = [
            f"{counted(self.n_stages, 'stage')}, {self.schedule}, {self.micro_batches} times "
            f"{counted(self.micro_rows, 'row')} a batch: bubble {self.bubble:.0%}, a batch in "
            f"{format_seconds(self.step_s)}{limit}"
        ]
        for i, stage in enumerate(self.stages):
            what = stage.layers[0] if len(stage.layers) == 1 else f"{stage.layers[0]} to {stage.layers[-1]}"
            lines.append(
                f"  stage {i}  {counted(stage.stop - stage.start, 'layer')} ({what})   weights "
                f"{format_bytes(stage.weights_nbytes)}, states {format_bytes(stage.states_nbytes)}, activations "
                f"{format_bytes(stage.activations_nbytes)}, peak {format_bytes(stage.peak_nbytes)}, "
                f"{format_seconds(stage.seconds)} a micro-batch"
            )
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    __repr__ = __str__


def span_of(seconds: Sequence[float], micro_batches: int) -> float:
    """Project the seconds of a batch from those that each stage takes for a micro-batch.

    Examples
    --------
    >>> span_of([1.0, 1.0], 4), span_of([1.0, 3.0], 4)
    (5.0, 13.0)
    """
    return sum(seconds) + (micro_batches - 1) * max(seconds)


def bubble_of(seconds: Sequence[float], micro_batches: int) -> float:
    """Project the share of time that stages wait.

    Examples
    --------
    >>> bubble_of([2.0, 2.0, 2.0], 6)
    0.25
    """
    span = len(seconds) * span_of(seconds, micro_batches)
    return round(1 - micro_batches * sum(seconds) / span, 12) if span else 0.0


def check_layers(
    chain: Chain, weights: Sequence[Weights], n_stages: int, ratio: float, memory: int | None
) -> None:
    """Refuse what cannot be split, before anything is computed.

    Raises
    ------
    InputError
        If there are fewer layers than stages.
    MemoryLimitError
        If a layer is larger than any process may be.
    """
    n_places = len(chain.cuts) + 1
    if n_stages > n_places:
        shared = "" if n_places == len(chain.layers) else ", as some have weights in common"
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
                "optimizer that keeps less, or several layers in its place."
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
    if m > load.batch_rows:
        raise InputError(
            f"micro_batches={m} cannot be made of batch_size={load.batch_rows} rows. Give larger batches, or fewer "
            "micro_batches."
        )
    check_layers(chain, [each.weights for each in profiles], n_stages, load.state_ratio, memory)
    while True:
        split = _Split(chain, profiles, load, n_stages, m)
        cuts = split.cut(lambda stage: stage.seconds, memory)
        if cuts is not None:
            return SplitPlan(
                tuple(split.stages(cuts)),
                load.schedule,
                m,
                load.rows(m),
                memory,
                tuple(_notes(chain, load.rows(m))),
            )
        if micro_batches is not None or 2 * m > load.batch_rows:
            break
        m *= 2
    smallest = split.cut(lambda stage: float(stage.peak_nbytes), None)
    assert smallest is not None
    worst = max(split.stages(smallest), key=lambda stage: stage.peak_nbytes)
    raise MemoryLimitError(
        f"{counted(n_stages, 'stage')} cannot keep to {format_bytes(memory or 0)} each: with the best cut, layers "
        f"{worst.start} to {worst.stop - 1} take {format_bytes(worst.peak_nbytes)} "
        f"({format_bytes(worst.states_nbytes)} of states, {format_bytes(worst.activations_nbytes)} of activations). "
        "Give more stages or memory, smaller batches, or an optimizer that keeps less."
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
        self._chain, self._profiles, self._load = chain, profiles, load
        self._n, self._m = n_stages, micro_batches
        self._places = [0, *(i for i in chain.cuts if not profiles[i].in_place), len(profiles)]
        if len(self._places) <= n_stages:
            raise InputError(
                f"{counted(n_stages, 'stage')} need as many places to cut at, and there are {len(self._places) - 2}: a "
                "layer that changes its input in place cannot be the first of a stage. Give inplace=False, or fewer "
                "stages."
            )
        self.stage: Callable[[int, int, int], StagePlan] = lru_cache(maxsize=None)(self._stage)

    def cut(self, cost: Callable[[StagePlan], float], memory: int | None) -> list[int] | None:
        """Find the cuts whose most expensive stage is the cheapest; None if none keeps to the budget."""
        places, last = self._places, len(self._places) - 1
        best: dict[int, tuple[float, list[int]]] = {0: (0.0, [0])}
        for s in range(self._n):
            found: dict[int, tuple[float, list[int]]] = {}
            ends = [last] if s == self._n - 1 else range(s + 1, last - (self._n - s - 1) + 1)
            for begun, (before, cuts) in best.items():
                for end in ends:
                    if end <= begun:
                        continue
                    stage = self.stage(s, places[begun], places[end])
                    if memory is not None and stage.peak_nbytes > memory:
                        continue
                    costs = max(before, cost(stage))
                    if end not in found or costs < found[end][0]:
                        found[end] = costs, [*cuts, places[end]]
            best = found
        return best[last][1] if last in best else None

    def stages(self, cuts: Sequence[int]) -> list[StagePlan]:
        """Give the stages between cuts."""
        return [self.stage(s, cuts[s], cuts[s + 1]) for s in range(self._n)]

    def _stage(self, s: int, start: int, stop: int) -> StagePlan:
        own, load, m = self._profiles[start:stop], self._load, self._m
        given = self._profiles[start - 1].output if start else load.input
        rows = load.rows(m)
        weights = sum(each.weights.nbytes for each in own)
        learned = sum(each.weights.learned_nbytes for each in own)
        largest = max(each.weights.largest_nbytes for each in own)
        states = weights + learned * (1 + load.state_ratio)
        # the optimizer, too, works on one weight at a time, and with as many others of its size as it keeps
        update = largest * max(load.state_ratio, 0.0)
        moved = rows * self._moved_nbytes(s, given, own[-1].output)
        flight = min(m, self._n - s) if load.schedule == "1f1b" else m
        kept = flight * rows * _kept_nbytes(own)
        # one layer at a time goes back: the gradients of its weights, of its input and of its output
        back = max(2 * rows * each.output.nbytes + (m > 1) * each.weights.largest_nbytes for each in own)
        read = (4 * load.batch_rows * given.nbytes + load.loader_nbytes) if s == 0 else 0
        best = weights if load.keeps_best else 0
        peak = RANK_NBYTES + states + best + read + moved + max(kept + back, update)
        seconds = rows * sum(each.seconds for each in own)
        return StagePlan(
            start,
            stop,
            tuple(each.name for each in own),
            weights,
            int(states),
            int(kept + moved),
            int(peak),
            seconds,
            given,
            own[-1].output,
        )

    def _moved_nbytes(self, s: int, given: Values, output: Values) -> int:
        """Count the bytes of a row of what is received: there is a buffer for each micro-batch."""
        return self._m * ((given.nbytes if s else 0) + (output.nbytes if s < self._n - 1 else 0))


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
