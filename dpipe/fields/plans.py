"""`plan`: what it takes to compute a field that functions of this package have made."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import dask.array as da
import xarray as xr

from dpipe.errors import InputError
from dpipe.fields.checks import refuse_beyond, room
from dpipe.fields.costs import Step, all_steps, sources_of, steps_of
from dpipe.sizes import counted, format_bytes


@dataclass(frozen=True)
class FieldPlan:
    """What it takes to compute a field: steps, readings of its sources, bytes, copies and memory.

    Attributes
    ----------
    field : str
        Name, sizes, type and blocks of the field.
    steps : tuple of Step
        What functions of fields do, each after those that it needs.
    n_readings : tuple of float
        How often each source is read.
    source_nbytes : tuple of int
        Bytes of each source.
    projected_nbytes : int
        Projected peak memory of a worker: its threads, each with the largest task.
    memory_nbytes : int
        What a worker may take.
    threads : int
        Tasks at a time in each worker.
    """

    field: str
    steps: tuple[Step, ...]
    n_readings: tuple[float, ...]
    source_nbytes: tuple[int, ...]
    projected_nbytes: int
    memory_nbytes: int
    threads: int

    @property
    def read_nbytes(self) -> int:
        """Decoded bytes that are read in all."""
        return round(sum(n * size for n, size in zip(self.n_readings, self.source_nbytes, strict=True)))

    def __str__(self) -> str:
        """Draw the plan as a table."""
        lines = [self.field, ""]
        for step in self.steps:
            lines += list(_lines(step))
        if not self.steps:
            lines.append("  No steps of dpipe.fields: its blocks are read once.")
        readings = ", ".join(map(_times, self.n_readings))
        return "\n".join(
            [
                *lines,
                "",
                f"Reads {'its source' if len(self.n_readings) < 2 else 'its sources'} {readings or 'once'}, "
                f"{format_bytes(self.read_nbytes)} in all.",
                f"Projected peak memory {format_bytes(self.projected_nbytes)} a worker (budget "
                f"{format_bytes(self.memory_nbytes)}); {counted(self.threads, 'task')} at a time in each.",
            ]
        )

    __repr__ = __str__


def plan(x: Any, *, memory: int | str | None = None) -> FieldPlan:
    """Tell what it takes to compute a field, before anything is computed.

    Parameters
    ----------
    x : xarray.DataArray or Dataset
        Lazy, as functions of `dpipe.fields` give it.
    memory : int or str, optional
        Budget of the process, or of each worker, that will compute; default 2 GiB.

    Returns
    -------
    FieldPlan
        Printable: for each function how many blocks it takes and how often, what it copies of neighbouring blocks,
        and what one of its tasks holds; then how often sources are read, and the projected peak. What others do with
        the field in between is not counted.

    Raises
    ------
    InputError
        If `x` is not lazy.
    MemoryLimitError
        If a task does not fit into its share of the budget.

    Examples
    --------
    >>> import numpy as np, dpipe
    >>> x = xr.DataArray(np.arange(6.0), dims="time").chunk(time=2)
    >>> print(str(dpipe.fields.plan(dpipe.fields.rolling(x, {"time": 2}))).splitlines()[2])
      rolling      takes 3 blocks, 48 B; 16 B of neighbouring blocks are copied (33.3 %); a task holds 96 B
    """
    variables = [x] if isinstance(x, xr.DataArray) else list(getattr(x, "data_vars", {}).values())
    lazy = [each for each in variables if isinstance(each.data, da.Array)]
    if not lazy or not isinstance(x, xr.DataArray | xr.Dataset):
        raise InputError(
            f"plan takes an xarray object with Dask blocks, got a {type(x).__name__} without. Chunk it: x.chunk()."
        )
    direct = {step.token: step for each in lazy for step in steps_of(each.data)}
    sources = sources_of(direct.values()) or {each.data.name: (1.0, each.nbytes) for each in lazy}
    steps = tuple(all_steps(direct.values()).values())
    largest = max(lazy, key=lambda each: each.nbytes)
    share, threads = room(memory, largest)
    block = max(each.nbytes * _max_share(each.data) for each in lazy)
    task = round(max([block, *(step.task_nbytes for step in steps)]))
    heaviest = max(steps, key=lambda step: step.task_nbytes, default=None)
    refuse_beyond(
        task,
        share,
        threads,
        "a block" if heaviest is None or heaviest.task_nbytes < task else f"a task of {heaviest.what}",
        "Read smaller blocks (x.chunk), or give more memory.",
        who="plan",
    )
    return FieldPlan(
        _said(x, lazy),
        steps,
        tuple(times for times, _ in sources.values()),
        tuple(nbytes for _, nbytes in sources.values()),
        task * threads,
        share * threads,
        threads,
    )


def _max_share(data: da.Array) -> float:
    """Tell how much of an array its largest block is."""
    share = 1.0
    for sizes in data.chunks:
        share *= max(sizes) / max(sum(sizes), 1)
    return share


def made_by(arrays: Iterable[Any]) -> str:
    """Say for the plan of a fit by what its features are made in each pass; empty if by nothing of this package.

    Parameters
    ----------
    arrays : iterable of dask.array.Array or other arrays
    """
    direct = {step.token: step for each in arrays if isinstance(each, da.Array) for step in steps_of(each)}
    if not direct:
        return ""
    steps = all_steps(direct.values()).values()
    sources = sources_of(direct.values()).values()
    names = ", ".join(dict.fromkeys(step.what for step in steps))
    return (
        f"; made by {names}: each pass reads {format_bytes(sum(n * size for n, size in sources))} of their sources "
        f"({', '.join(_times(n) for n, _ in sources)}), and a task holds "
        f"{format_bytes(max(step.task_nbytes for step in steps))}"
    )


def _times(n: float) -> str:
    return "once" if round(n, 2) == 1 else f"{n:.3g} times"


def _said(x: Any, lazy: list[xr.DataArray]) -> str:
    sizes = ", ".join(f"{dim}: {n:,}" for dim, n in x.sizes.items())
    what = (
        f"{x.name or 'a field'} of {x.dtype}"
        if isinstance(x, xr.DataArray)
        else counted(len(lazy), "variable")
    )
    n_blocks = sum(each.data.npartitions for each in lazy)
    return f"{what} ({sizes}), {format_bytes(x.nbytes)} in {counted(n_blocks, 'block')}"


def _lines(step: Step) -> Iterator[str]:
    taken = f"takes {counted(step.n_read, 'block')}, {format_bytes(step.read_nbytes)}"
    if step.inside is not None:
        taken = f"reads {counted(step.n_blocks, 'block')} {_times(step.readings)}, {format_bytes(step.read_nbytes)}"
    copied = ""
    if step.shared_nbytes:
        share = step.shared_nbytes / max(step.nbytes, 1)
        copied = (
            f"; {format_bytes(step.shared_nbytes)} of neighbouring blocks are copied ({100 * share:.1f} %)"
        )
    yield f"  {step.what:<12} {taken}{copied}; a task holds {format_bytes(step.task_nbytes)}"
    if step.note:
        yield f"  {'':<12} {step.note}"
