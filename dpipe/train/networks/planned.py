"""The training of a network as one more pass of a plan, after those of its preprocessing."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dpipe.cluster.local import WORKER_RESERVED_NBYTES
from dpipe.collect.source import Source
from dpipe.plan_record import PassPlan, Plan
from dpipe.planner import check_budget
from dpipe.sizes import counted, format_bytes
from dpipe.train.networks.costs import PROCESS_NBYTES, Cost
from dpipe.train.prepare import Prepared


def network_plan(
    name: str, network: Any, before: Prepared, cost: Cost, n_ranks: int, apart: bool, n_buffers: int
) -> Plan:
    """Describe the training of a network.

    Parameters
    ----------
    name : str
        Of the whole estimator.
    network : DataParallel
    before : Prepared
        Its preprocessing.
    cost : Cost
    n_ranks : int
    apart : bool
        Whether ranks are processes of their own.
    n_buffers : int
        Buffers of the loader of a rank.

    Raises
    ------
    MemoryLimitError
        If it does not fit into the budget.
    """
    source, plan, batch = before.source, before.plan, network.batch_size
    step = network_pass(
        network,
        before,
        _collects(network, cost, source.n_rows, n_ranks),
        ("batches are the same for any number of processes",) if n_ranks > 1 else (),
    )
    if largest_block(source) is not None:
        rows = -(-batch // n_ranks)
        own = cost.of_process(
            -(-rows // network.accumulate),
            n_ranks if network.sharded else 1,
            keeps_best=network.validation is not None,
        )
        held = PROCESS_NBYTES + (WORKER_RESERVED_NBYTES if before.place.client else 0)
        base = held if apart else plan.reserved_nbytes
        features = 4 * source.n_columns + 8
        read = reading_nbytes(source, n_buffers)
        step = replace(step, projected_nbytes=int(base + own + read + 3 * rows * features))
    return with_network(name, before, step)


def largest_block(source: Source) -> int | None:
    """Give the rows of the largest block, known or likely."""
    return (
        source.likely_block_rows if source.n_rows is None else max((k or 0 for k in source.rows), default=0)
    )


def reading_nbytes(source: Source, n_buffers: int) -> int:
    """Count the bytes of a loader: its buffers, and two blocks that are being decoded and turned to rows."""
    per_row = sum(source.row_nbytes.values()) + 8 * (source.y is not None)
    row_nbytes = n_buffers * (4 * source.n_columns + 8) + 2 * (
        per_row * source.overhead + 4 * source.n_columns
    )
    return int((largest_block(source) or 0) * row_nbytes)


def network_pass(network: Any, before: Prepared, collects: Sequence[str], rules: Sequence[str]) -> PassPlan:
    """Describe the pass in which a network learns; what it takes is not known yet."""
    source, plan = before.source, before.plan
    n = source.n_rows
    per_row = sum(source.row_nbytes.values()) + 8 * (source.y is not None)
    stops = network.validation is not None
    return PassPlan(
        number=len(plan.passes) + 1,
        way="network",
        fits=(type(network).__name__,),
        collects=tuple(collects),
        why="learns batch after batch" + (", from the fitted transformers" if plan.passes else ""),
        rules=tuple(rules),
        columns=tuple(map(str, source.names)),
        n_blocks=source.n_blocks,
        epochs=min(network.patience + 1, network.epochs) if stops else network.epochs,
        most_epochs=network.epochs,
        rows=None if n is None else n * network.epochs,
        nbytes=None if n is None else n * per_row * network.epochs,
        order=_order(network),
        projected_nbytes=None,
    )


def with_network(name: str, before: Prepared, step: PassPlan) -> Plan:
    """Add the pass of a network to those of its preprocessing.

    Raises
    ------
    MemoryLimitError
        If it does not fit into the budget.
    """
    plan = before.plan
    peaks = [each.projected_nbytes for each in (*plan.passes, step)]
    most = None if any(peak is None for peak in peaks) else max(peak or 0 for peak in peaks)
    found = replace(plan, estimator=name, passes=(*plan.passes, step), projected_nbytes=most)
    check_budget(found)
    return found


def _collects(network: Any, cost: Cost, n: int | None, n_ranks: int) -> tuple[str, ...]:
    n_steps = 0 if n is None else -(-n // network.batch_size)
    steps = "" if n is None else f", {n_steps:,} batch{'es' * (n_steps != 1)} an epoch"
    by = f"added up over {n_ranks} processes" if n_ranks > 1 else "in one process"
    kept = f", each process keeps 1/{n_ranks} of the states" if network.sharded else ""
    return (
        f"gradients of batches of {network.batch_size:,} rows{steps}, {by}",
        f"weights {format_bytes(cost.weights)}, gradients {format_bytes(cost.trainable)}, optimizer "
        f"{format_bytes(cost.state)}, activations {format_bytes(cost.row)} a row{kept}",
    )


def _order(network: Any) -> tuple[str, ...]:
    seed = f"(seed {network.random_state}), another one each epoch"
    said = {
        None: "as stored",
        "blocks": f"blocks in random order {seed}",
        "rows": f"blocks in random order, and the rows of {network.mix} of them at a time {seed}",
    }
    found = [f"{said[network.shuffle]}; cut into {counted(network.shares, 'share')}, read side by side"]
    if network.validation is not None:
        found.append(
            f"stops after {counted(network.patience, 'epoch')} without a loss that is better by {network.tol:g}, and "
            "gives the weights of the best one"
        )
    return tuple(found)
