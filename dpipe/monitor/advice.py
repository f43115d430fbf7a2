"""What the figures of a run suggest: each rule looks at a record and says one thing, or nothing."""

from collections.abc import Callable, Iterator

from dpipe.monitor.record import RunRecord
from dpipe.sizes import format_bytes, format_seconds

_ROOMY = 0.5  # of the budget; below it a larger share could be used without coming near the limit
_SURPRISE = 1.25  # measured over projected; smaller gaps are the allocator's
_NOTEWORTHY_S = 1.0  # what is over in less is not worth advice


def advise(run: RunRecord) -> tuple[str, ...]:
    """Say what could be done better next time.

    Parameters
    ----------
    run : RunRecord
        Finished or not.

    Returns
    -------
    tuple of str
        One or two sentences each, the most pressing first; empty when nothing stands out.

    Examples
    --------
    >>> run = RunRecord(name="tips", started="", seconds=60.0, finished=False)
    >>> print(advise(run)[0])
    This run has not finished, and the figures stop where it stopped. Run it again.
    """
    return tuple(line for rule in _RULES for line in rule(run))


def _unfinished(run: RunRecord) -> Iterator[str]:
    if not run.finished and not run.error:
        yield ("This run has not finished, and the figures stop where it stopped. Run it again.")


def _over_budget(run: RunRecord) -> Iterator[str]:
    budget, peak = run.memory.budget_nbytes, run.memory.measured_nbytes
    if budget and peak > budget and not run.error:
        yield (
            f"The peak of {format_bytes(peak)} went over the budget of {format_bytes(budget)}. "
            "Smaller blocks or fewer threads would bring it down."
        )


def _under_budget(run: RunRecord) -> Iterator[str]:
    budget, peak = run.memory.budget_nbytes, run.memory.measured_nbytes
    # With few blocks there is nothing to gain: they cannot be larger and still keep all threads busy.
    many_blocks = any(one.n_blocks >= 2 * run.workers * run.threads for one in run.passes)
    if budget and 0 < peak < _ROOMY * budget and many_blocks:
        yield (
            f"The peak of {format_bytes(peak)} used {peak / budget:.0%} of the budget of "
            f"{format_bytes(budget)}. Larger blocks or more threads would use the rest."
        )


def _over_projection(run: RunRecord) -> Iterator[str]:
    over = [
        (number, one)
        for number, one in enumerate(run.passes, 1)
        if 0 < _SURPRISE * one.projected_nbytes < one.measured_nbytes
    ]
    if over:
        number, worst = max(over, key=lambda item: item[1].measured_nbytes / item[1].projected_nbytes)
        yield (
            f"Pass {number} took {format_bytes(worst.measured_nbytes)}, and "
            f"{format_bytes(worst.projected_nbytes)} were projected{_others(len(over) - 1)}. "
            "A transformer of yours may copy its input, or make it denser."
        )


def _ordered(run: RunRecord) -> Iterator[str]:
    ordered, total = _seconds(run, "stream"), _seconds(run)
    if total >= _NOTEWORTHY_S and ordered > 0.5 * total:
        yield (
            f"Ordered passes took {ordered / total:.0%} of the reading time. They learn from one block after "
            "another, so that more workers do not make them faster; fewer epochs would, and so would an "
            "estimator whose fits can be merged, or learners that are averaged: epochs=dpipe.Epochs(n, average=2)."
        )


def _read_often(run: RunRecord) -> Iterator[str]:
    largest = max((one.nbytes for one in run.passes), default=0)
    total = sum(one.nbytes for one in run.passes)
    if largest and total >= 5 * largest and _seconds(run) >= _NOTEWORTHY_S:
        yield (
            f"The data was decoded about {total / largest:.0f} times, {format_bytes(total)} in all. "
            "Fewer epochs, a looser tolerance, or a source that decodes faster (Parquet or Zarr rather "
            "than CSV) would shorten the run."
        )


def _few_blocks(run: RunRecord) -> Iterator[str]:
    slots = run.workers * run.threads
    idle = [
        (number, one)
        for number, one in enumerate(run.passes, 1)
        if one.way != "stream" and 0 < one.n_blocks < slots * one.n_readings and one.seconds >= _NOTEWORTHY_S
    ]
    if idle:
        number, one = max(idle, key=lambda item: item[1].seconds)
        n_blocks = one.n_blocks // one.n_readings
        blocks = "1 block" if n_blocks == 1 else f"{n_blocks} blocks"
        yield (
            f"Pass {number} had {blocks} for {slots} threads{_others(len(idle) - 1)}, so that some had "
            "nothing to do. Smaller blocks would keep them busy."
        )


def _outside_passes(run: RunRecord) -> Iterator[str]:
    staged, read = sum(stage.seconds for stage in run.stages), _seconds(run)
    if run.passes and staged >= 10 * _NOTEWORTHY_S and read < 0.5 * staged:
        yield (
            f"{format_seconds(staged - read)} of {format_seconds(staged)} were spent outside passes: "
            "on metadata, on starting workers, or on a fit of its own."
        )


def _lost_rows(run: RunRecord) -> Iterator[str]:
    for stage in run.stages:
        if stage.kind not in ("collect", "preprocess"):  # the others give fewer rows by their nature
            continue
        if stage.rows_in and stage.rows_out is not None and stage.rows_out < stage.rows_in:
            lost = stage.rows_in - stage.rows_out
            yield (
                f"Stage {stage.name} left out {lost:,} of {stage.rows_in:,} rows "
                f"({lost / stage.rows_in:.2%}). Check that this is what you want."
            )


_RULES: tuple[Callable[[RunRecord], Iterator[str]], ...] = (
    _unfinished,
    _over_budget,
    _lost_rows,
    _over_projection,
    _under_budget,
    _ordered,
    _few_blocks,
    _read_often,
    _outside_passes,
)


def _seconds(run: RunRecord, way: str | None = None) -> float:
    """Seconds of all passes, or of those of one way."""
    return sum(one.seconds for one in run.passes if way in (None, one.way))


def _others(count: int) -> str:
    """Mention how many other passes show the same."""
    return f" (and {count} more like it)" if count else ""
