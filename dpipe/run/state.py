"""What a pass has collected."""

from dataclasses import dataclass
from typing import Any

from dpipe.blocks.rows import Tally
from dpipe.errors import InputError
from dpipe.sizes import counted


@dataclass(frozen=True)
class PassState:
    """What a pass has collected over some blocks: states, and the tally of what was read."""

    states: tuple[Any, ...] | None
    """One for each statistic; None if no row has been seen."""
    tally: Tally
    recorded: bool = False
    """Whether the ledger holds it, or all that it was merged from."""


def states_of(collected: PassState, what: str) -> tuple[Any, ...]:
    """Give the merged states of a pass.

    Raises
    ------
    InputError
        If no block had any row.
    """
    if collected.states is None:
        raise InputError(
            f"{what}: the data has no rows ({counted(collected.tally.n_blocks, 'block')}). Check the filter "
            "or the files it comes from; samples of an xarray object without any data are left out."
        )
    return collected.states
