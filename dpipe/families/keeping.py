"""Where the transformed blocks of a pass that reads them several times are kept: in memory, in scratch, or nowhere."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dpipe.families.expression import Raw, is_matrix
from dpipe.families.program import ProgramPass, kept_values
from dpipe.sizes import format_bytes

#: Without a budget, the share of the memory that is free here which blocks may take.
_SHARE_OF_FREE = 0.125


@dataclass(frozen=True)
class Kept:
    """What a pass keeps between its readings, and why or why not."""

    says: str = ""
    nbytes: int | None = None
    """Bytes in scratch, at most."""
    held_nbytes: int = 0
    """Bytes in memory, at most."""

    def beside(self, projected: int | None) -> int | None:
        """Add what is held in memory to the peak of the pass."""
        return None if projected is None else projected + self.held_nbytes


NOTHING_KEPT = Kept()


def with_kept(
    step: ProgramPass, widths: Sequence[int], shape: Any, resources: Any, projected: int | None
) -> tuple[ProgramPass, Kept]:
    """Keep what a pass makes of its blocks, where there is room.

    Parameters
    ----------
    step : ProgramPass
    widths : sequence of int
        Stored entries of a row of each value that is kept.
    shape : DataShape
        Of the data.
    resources : Resources
    projected : int, optional
        The peak of the pass without that; None if it is not known.
    """
    values = kept_values(step)
    inputs = [fit.meta for fit in step.refines] + ([step.learner.meta] if step.learner is not None else [])
    # texts and records stay where they are
    if not values or not all(map(is_matrix, values)) or not all(meta.is_numeric for meta in inputs):
        return step, NOTHING_KEPT
    if shape.in_memory and all(isinstance(value, Raw) for value in values):
        return step, NOTHING_KEPT
    rows, nbytes = shape.n_rows, None
    if rows is not None:
        dense = shape.whole and not any(meta.sparse for meta in inputs)
        sizes = [
            sum(shape.row_nbytes) if dense and isinstance(value, Raw) else 12 * width
            for value, width in zip(values, widths, strict=True)
        ]
        nbytes = rows * (sum(sizes) + shape.target_nbytes)
        if step.learner is None and _fits_in_memory(nbytes, resources, projected):
            says = f"transformed blocks are held in memory, up to {format_bytes(nbytes)}"
            return replace(step, held=True), Kept(says, held_nbytes=nbytes)
    return _in_scratch(step, nbytes, resources)


def _fits_in_memory(nbytes: int, resources: Any, projected: int | None) -> bool:
    if not resources.may_hold or projected is None:
        return False
    if resources.memory is not None:
        return bool(projected + nbytes <= resources.memory)
    return resources.available is not None and bool(nbytes <= _SHARE_OF_FREE * resources.available)


def _in_scratch(step: ProgramPass, nbytes: int | None, resources: Any) -> tuple[ProgramPass, Kept]:
    if not resources.scratch:
        return step, NOTHING_KEPT
    free = resources.scratch_free
    if nbytes is not None and free is not None and nbytes > 0.9 * free:
        return step, Kept(
            f"no scratch: up to {format_bytes(nbytes)} are needed, and {format_bytes(free)} are free in "
            f"{resources.scratch}; each reading decodes the blocks again. Set TMPDIR to a larger folder."
        )
    size = "blocks of unknown size" if nbytes is None else f"up to {format_bytes(nbytes)}"
    room = "" if free is None else f" ({format_bytes(free)} free)"
    says = f"scratch: transformed blocks are kept, {size} in {resources.scratch}{room}"
    return replace(step, scratch=resources.scratch), Kept(says, nbytes)
