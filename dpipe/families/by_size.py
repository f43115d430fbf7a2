"""Ways that depend on how large the input of a fit is, and what their states take."""

from collections.abc import Sequence
from dataclasses import replace

from dpipe.families.compose import Fit, Walk
from dpipe.families.registry import Extent


def chosen_by_size(
    walk: Walk, n_rows: int | None, n_states: int, memory: int | None, available: int | None = None
) -> Walk:
    """Let each fit choose its way by the size of its input and the budget, not by the threads that work on it.

    Parameters
    ----------
    walk : Walk
    n_rows : int, optional
        At most; None if that is not known.
    n_states : int
        States of blocks that one thread holds at a time, at most.
    memory : int, optional
        Bytes of a worker; None for no limit.
    available : int, optional
        Bytes of memory that are free where it works.

    Raises
    ------
    MemoryLimitError
        If there is no way that fits.
    """
    fits = list(walk.fits)
    for i, fit in enumerate(fits):
        width = fit.meta.most_width
        if fit.way.by_size is None or width is None:
            continue
        way = fit.way.by_size(fit.estimator, Extent(width, n_rows, n_states, memory, available))
        if way is not None:
            wants = tuple((want, fit.source) for want in way.wants(fit.estimator))
            fits[i] = replace(fit, way=way, wants=wants)
    return replace(walk, fits=tuple(fits))


#: Blocks that are added up in one state at most, and the states of a pass at least: each can be worked on by itself.
_MOST_A_RUN, _FEWEST_RUNS = 8, 16
#: How many times the bytes of a state its rows should have: beside that, to merge it costs little.
_WORTH_MERGING = 4


def run_length(fits: Sequence[Fit], n_blocks: int, block_nbytes: int | None) -> int:
    """Choose how many blocks are added up in one state, from the data alone.

    Parameters
    ----------
    fits : sequence of Fit
        Those that share the pass.
    n_blocks : int
    block_nbytes : int, optional
        Of the rows of the largest block; None if that is not known.
    """
    state = state_nbytes(fits, 1, end=False)
    if not state or not block_nbytes:
        return 1
    return max(min(-(-_WORTH_MERGING * state // block_nbytes), n_blocks // _FEWEST_RUNS, _MOST_A_RUN), 1)


def state_nbytes(fits: Sequence[Fit], n_states: int, *, end: bool = True) -> int:
    """Count the bytes of states, where they are large; and in the `end` of what is made of them, if that is more."""
    total = 0
    for fit in fits:
        width = fit.meta.most_width
        if fit.way.footprint is not None and width is not None:
            state, made = fit.way.footprint(fit.estimator, width)
            total += Extent(width, None, n_states, None).held((state, made if end else 0))
    return total


def reasons(fits: Sequence[Fit]) -> list[str]:
    """Say why fits go the way that they go, where that was chosen by size."""
    return list(dict.fromkeys(fit.way.because for fit in fits if fit.way.because))
