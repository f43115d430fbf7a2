"""Tasks of a search: blocks are made ready once, candidates learn from them, and are recorded."""

import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse as sp

from dpipe.blocks.flows import Flow
from dpipe.blocks.heap import give_back, keep_freed, trim
from dpipe.blocks.rows import Rows, RowsAt, Tally
from dpipe.blocks.scratch import ScratchBlock
from dpipe.blocks.table import n_rows, nbytes
from dpipe.collect.loads import Load
from dpipe.errors import DpipeError, LedgerError
from dpipe.families import gradient
from dpipe.families.model_file import open_model
from dpipe.families.registry import Estimator
from dpipe.ledger.book import Pen, Place
from dpipe.ledger.codec import decode, encode
from dpipe.monitor.events import emit
from dpipe.train.resume import freeze
from dpipe.tuning.foundation import ready as made_ready

#: Attributes of learners in which numbers show that what was learned has no sense any more.
_LEARNED = ("coef_", "intercept_", "coefs_", "intercepts_", "cluster_centers_", "components_", "loss_")


@dataclass(frozen=True)
class Trained:
    """A candidate, as far as it has learned."""

    learner: Estimator
    calls: int = 0
    """Calls of `partial_fit`, one for each block."""
    seconds: float = 0.0
    """What the last one took."""
    failed: str = ""
    """Why it learns no more; empty if it does."""


@dataclass(frozen=True)
class Ready:
    """A block that candidates can learn from, and what reading it came to."""

    block: Rows | ScratchBlock
    tally: Tally

    @property
    def flows(self) -> Mapping[str, Flow]:
        """What was counted when the block was read."""
        return self.tally.flows

    def rows(self) -> Rows:
        """Give the rows; those in scratch are mapped."""
        return self.block.rows() if isinstance(self.block, ScratchBlock) else self.block


@lru_cache(maxsize=64)
def _order(seed: int, epoch: int, n_blocks: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng((seed, epoch)).permutation(n_blocks).tolist())


def block_of(seed: int, call: int, n_blocks: int) -> tuple[int, int]:
    """Tell the epoch and the block of a call of `partial_fit`; the same for all candidates.

    Examples
    --------
    >>> sorted(block_of(0, call, 3)[1] for call in range(3))
    [0, 1, 2]
    >>> block_of(0, 3, 3)[0]
    1
    """
    epoch, i = divmod(call, n_blocks)
    return epoch, _order(seed, epoch, n_blocks)[i]


def read_block(
    load: Load,
    inputs: Sequence[Any],
    at: RowsAt | None,
    make: Callable[..., dict[Any, Any]],
    known: Any,
    folder: str | None,
    token: str,
    name: str,
    number: int,
) -> Ready:
    """Load a block and make it ready; keep it in scratch if there is a folder."""
    started = time.time()
    keep_freed()
    rows = load(dict(zip(load.needs, inputs, strict=True)))._replace(at=at)
    values = make(rows, known) if n_rows(rows.X) else {}
    tally = Tally.of(rows, started)
    made = made_ready(rows, values) if values else Rows(np.empty((0, 0)), None, None, values={})
    size = nbytes(rows.X)
    block = made if folder is None else ScratchBlock.write(folder, token, values, rows)
    del rows, made, values
    # what candidates leave in the heap is of other sizes, so that a block does not find its own place again
    trim(size) if folder is None else give_back()
    emit({"pass": name, "block": number, "n_blocks": None, "rows": tally.rows, "nbytes": tally.nbytes})
    return Ready(block, tally)


def tally_of(ready: Ready) -> Tally:
    """Give what a block came to: small, where the block is not."""
    return ready.tally


def learn_blocks(
    trained: Trained,
    preprocessing: int,
    classes: np.ndarray | None,
    calls: Sequence[tuple[int, tuple[int, int]]],
    blocks: Sequence[Ready],
) -> Trained:
    """Let one candidate learn some blocks: pairs of the number of the call, and its epoch and block."""
    for (call, position), block in zip(calls, blocks, strict=True):
        if trained.failed or call < trained.calls:
            continue
        rows = block.rows()
        began = time.perf_counter()
        learner, failed = trained.learner, ""
        if n_rows(rows.X):
            assert rows.values is not None
            given = Rows(rows.values[preprocessing], rows.y, rows.w)
            try:
                learner = gradient.learn(learner, classes, given, position)
                failed = _nonsense(learner)
            except MemoryError:
                raise
            except Exception as err:
                failed = reason(err)
        trained = replace(
            trained, learner=learner, calls=call + 1, seconds=time.perf_counter() - began, failed=failed
        )
    return trained


def reason(err: Exception) -> str:
    """Say in short why a candidate has failed."""
    kind = "" if isinstance(err, DpipeError) else f"{type(err).__name__}: "
    return textwrap.shorten(f"{kind}{err}", 300, placeholder=" ...")


def _nonsense(learner: Estimator) -> str:
    """Tell whether a learner has diverged."""
    for name in _LEARNED:
        held = getattr(learner, name, None)
        several: Sequence[Any] = held if isinstance(held, list | tuple) else [held]
        for values in several:
            numbers = values.data if sp.issparse(values) else values
            if isinstance(numbers, float | np.ndarray) and not np.isfinite(numbers).all():
                return f"it has diverged: {name} holds NaN or infinity"
    return ""


def said(trained: Trained) -> tuple[str, float, int]:
    """Give what the search has to know of a candidate, without what it has learned."""
    return trained.failed, trained.seconds, trained.calls


def collected(*values: Any) -> tuple[Any, ...]:
    """Put small results together."""
    return values


def as_it_is(value: Any) -> Any:
    """Bring a value to where it is asked for."""
    return value


def record(trained: Trained, pen: Pen, key: str) -> str:
    """Write a candidate into the ledger; give why that cannot be done, or nothing."""
    try:
        content = encode((freeze((trained.learner, None)), trained.calls, trained.seconds, trained.failed))
        open_model(decode(content)[0], (), "the ledger")
    except (TypeError, DpipeError) as err:
        return str(err)
    pen.write(key, content, what="candidate", rows=0, nbytes=0)
    return ""


def recalled(place: Place) -> Trained | None:
    """Read a candidate back; None if its record is damaged."""
    try:
        content, calls, seconds, failed = decode(place.read())
    except LedgerError:
        return None
    return Trained(open_model(content, (), "the ledger"), calls, seconds, failed)
