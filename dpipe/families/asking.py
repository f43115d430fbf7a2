"""Solvers that call a function, as refinements that are asked: the two ways round of one loop."""

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

#: Yields what it asks for, is sent the answers, and returns what it has found.
Asking = Generator[tuple[Any, ...], Sequence[Any], Any]


class _Stopped(BaseException):
    """Ends a solver that nobody asks any more."""


def asking(solve: Callable[[Callable[..., Sequence[Any]]], Any]) -> Asking:
    """Turn a solver that calls a function for each evaluation into a generator that yields its questions.

    Parameters
    ----------
    solve : callable ``(ask) -> result``
        Runs in a thread of its own; ``ask(*wants)`` waits there until the statistics have been sent.

    Examples
    --------
    >>> from scipy.optimize import minimize_scalar
    >>> search = asking(lambda ask: minimize_scalar(lambda x: ask(x)[0]).x)
    >>> (x,) = next(search)
    >>> try:
    ...     while True:
    ...         (x,) = search.send([(x - 3.0) ** 2])
    ... except StopIteration as found:
    ...     round(float(found.value), 6)
    3.0
    """
    questions: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Sequence[Any] | None] = queue.SimpleQueue()

    def ask(*wants: Any) -> Sequence[Any]:
        questions.put(("asks", wants))
        answer = answers.get()
        if answer is None:
            raise _Stopped
        return answer

    def run() -> None:
        try:
            questions.put(("returns", solve(ask)))
        except _Stopped:
            pass
        except BaseException as err:
            questions.put(("raises", err))

    thread = threading.Thread(target=run, name="dpipe-solver", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = questions.get()
            if kind == "returns":
                return value
            if kind == "raises":
                raise value
            answers.put((yield value))
    finally:
        answers.put(None)
        thread.join()


def together(refinements: Sequence[Asking]) -> Asking:
    """Advance several refinements in step, so that one reading answers all of them; gives a list of results."""
    results: list[Any] = [None] * len(refinements)
    asked: dict[int, tuple[Any, ...]] = {}

    def advance(i: int, stats: Sequence[Any] | None) -> None:
        try:
            asked[i] = next(refinements[i]) if stats is None else refinements[i].send(stats)
        except StopIteration as stop:
            asked.pop(i, None)
            results[i] = stop.value

    for i in range(len(refinements)):
        advance(i, None)
    while asked:
        stats = iter((yield tuple(want for wants in asked.values() for want in wants)))
        for i, wants in list(asked.items()):
            advance(i, [next(stats) for _ in wants])
    return results
