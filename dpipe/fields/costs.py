"""What functions of fields cost, told beside their graphs: what is read, shared with neighbours and held."""

import graphlib
from collections.abc import Iterable
from dataclasses import dataclass

import dask.array as da

#: Under which name a layer of a graph holds its step.
_NAME = "dpipe_step"


@dataclass(frozen=True)
class Step:
    """What one function does with the blocks of an array.

    Attributes
    ----------
    token : str
        Steps of one token are the same tasks, computed once.
    what : str
        The function.
    n_blocks, nbytes : int
        Blocks of the input, and their bytes.
    n_read : int
        Blocks that the tasks take: more than `n_blocks` where some are needed again.
    read_nbytes : int
        Bytes of these.
    shared_nbytes : int
        Bytes of what several tasks take of the blocks of neighbours, as copies.
    task_nbytes : int
        What one task takes at most.
    note : str
        Why blocks are needed again, for example.
    inside : tuple of Step or None
        For a reading of its own, the steps that its input is computed by, each time anew; None where the input is
        computed once for all that need it.
    source : str
        Name of the input, if no step makes it.
    """

    token: str
    what: str
    n_blocks: int
    nbytes: int
    n_read: int
    read_nbytes: int
    shared_nbytes: int = 0
    task_nbytes: int = 0
    note: str = ""
    inside: "tuple[Step, ...] | None" = None
    source: str = ""

    @property
    def readings(self) -> float:
        """How often it takes its whole input."""
        return self.read_nbytes / self.nbytes if self.nbytes else 0.0


def told(array: da.Array, step: Step) -> da.Array:
    """Note beside the last layer of an array what it costs; give the array."""
    layer = array.dask.layers[array.name]
    layer.collection_annotations = {**(layer.collection_annotations or {}), _NAME: step}
    return array


def steps_of(array: da.Array) -> tuple[Step, ...]:
    """Give the steps that make an array, each once, in the order in which they are done."""
    found: dict[str, Step] = {}
    order = {name: sorted(needed) for name, needed in array.dask.dependencies.items()}
    for name in graphlib.TopologicalSorter(order).static_order():
        step = (array.dask.layers[name].collection_annotations or {}).get(_NAME)
        if step is not None:
            found.setdefault(step.token, step)
    return tuple(found.values())


def sources_of(steps: Iterable[Step]) -> dict[str, tuple[float, int]]:
    """Give how often each source is read, and its bytes.

    Examples
    --------
    >>> one = Step("a", "moments", 4, 100, 4, 100, inside=(), source="x")
    >>> two = Step("b", "anomalies", 4, 100, 4, 100, inside=(), source="x")
    >>> sources_of([one, two])
    {'x': (2.0, 100)}
    """
    found: dict[str, tuple[float, int]] = {}
    at_once: dict[str, int] = {}
    for step in steps:
        if step.inside is None:
            at_once |= {step.source: step.nbytes} if step.source else {}
            continue
        below = sources_of(step.inside) or {step.source: (1.0, step.nbytes)}
        for source, (times, nbytes) in below.items():
            found[source] = found.get(source, (0.0, 0))[0] + times * step.readings, nbytes
    for source, nbytes in at_once.items():
        found[source] = found.get(source, (0.0, 0))[0] + 1.0, nbytes
    return found


def all_steps(steps: Iterable[Step]) -> dict[str, Step]:
    """Give the steps with those inside of them, by their tokens, each after those that it needs."""
    found: dict[str, Step] = {}
    for step in steps:
        found |= all_steps(step.inside or ())
        found.setdefault(step.token, step)
    return found
