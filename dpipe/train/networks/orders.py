"""In which order processes work on micro-batches, and what follows: how long they wait, and what is in flight.

Arithmetic only. A process holds one group of layers, or several of them ("virtual stages") in the interleaved order.
"""

from collections.abc import Sequence

#: The orders in which a process works on its micro-batches.
ORDERS = ("1f1b", "gpipe", "interleaved")


def span_of(seconds: Sequence[float], micro_batches: int, virtual: int = 1) -> float:
    """Project the seconds of a batch from those that each process takes for a micro-batch.

    Parameters
    ----------
    seconds : sequence of float
        Of each process, for all of its layers, forward and backward.
    micro_batches : int
    virtual : int
        Groups of layers of a process: the next one can begin after the first of them.

    Examples
    --------
    >>> span_of([1.0, 1.0], 4), span_of([1.0, 3.0], 4), span_of([1.0, 1.0], 4, virtual=2)
    (5.0, 13.0, 4.5)
    """
    slowest = max(seconds)
    return micro_batches * slowest + (sum(seconds) - slowest) / virtual


def bubble_of(seconds: Sequence[float], micro_batches: int, virtual: int = 1) -> float:
    """Project the share of time that processes wait.

    Examples
    --------
    >>> bubble_of([2.0, 2.0, 2.0], 6)
    0.25
    >>> round(bubble_of([2.0, 2.0, 2.0], 6, virtual=2), 4)
    0.1429
    """
    span = len(seconds) * span_of(seconds, micro_batches, virtual)
    return round(1 - micro_batches * sum(seconds) / span, 12) if span else 0.0


def in_flight(
    order: str, process: int, n_processes: int, micro_batches: int, virtual: int = 1
) -> set[tuple[int, ...]]:
    """Count the micro-batches whose gradients are still to come, of each group of layers, at the fullest moments.

    Parameters
    ----------
    order : {"1f1b", "gpipe", "interleaved"}
    process : int
        Its number along the chain.
    n_processes, micro_batches, virtual : int

    Returns
    -------
    set of tuples of int
        What may be held at the same time: a count for each group of layers of the process.

    Examples
    --------
    >>> in_flight("1f1b", 0, 2, 8), in_flight("gpipe", 0, 2, 8)
    ({(2,)}, {(8,)})
    >>> sorted(in_flight("interleaved", 1, 2, 2, virtual=2))
    [(1, 0), (2, 0), (2, 1)]
    """
    if order == "gpipe":
        return {(micro_batches,) * virtual}
    if order == "1f1b":
        return {(min(micro_batches, n_processes - process),)}
    counts, found = [0] * virtual, set()
    for group, goes_back in _interleaved(process, n_processes, micro_batches, virtual):
        counts[group] += -1 if goes_back else 1
        if not goes_back:
            found.add(tuple(counts))
    return found


def _interleaved(process: int, n_processes: int, micro_batches: int, virtual: int) -> list[tuple[int, bool]]:
    """List the groups of layers that a process works on, and whether it goes back: as Narayanan et al. (2021) do."""
    at_a_time = micro_batches // max(micro_batches // n_processes, 1)
    total = micro_batches * virtual
    first = min((virtual - 1) * at_a_time + 2 * (n_processes - 1 - process), total)
    onward = [(i // at_a_time % virtual, False) for i in range(total)]
    back = [(virtual - 1 - i // at_a_time % virtual, True) for i in range(total)]
    turns = [step for pair in zip(onward[first:], back, strict=False) for step in pair]
    return [*onward[:first], *turns, *back[total - first :]]
