"""How long the parts of a split network wait, and what they take, beside the plan: `python -m benchmarks.pipelining`.

Two stages of equal, compute-bound layers are trained with 4, 8 and 16 micro-batches of as many rows each. "Waited" is
the share of the time in which a process does not compute, the median of some runs in turns; the formula is
(p - 1) / (m + p - 1). Then a network whose weights, gradients and optimizer state are more than a worker may take is
trained by two workers of a cluster, as two stages and as one whose layers they share: the plan's peak memory of each
process beside what it was. A busy machine makes the first table meaningless.

With `--scheduler` the workers are those of a cluster that is there, and may be under any limit: that of a container, or
of `systemd-run`. So it can be seen that they keep to it.
"""

import functools
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from statistics import median
from typing import Any

import numpy as np
from distributed import Client, LocalCluster

import dpipe
from dpipe.errors import MemoryLimitError
from dpipe.sizes import format_bytes, parse_bytes

ROWS_A_MICRO_BATCH = 128
MICRO_BATCHES = (4, 8, 16)
#: How two workers train what is too large for one.
SHARES: dict[str, dict[str, Any]] = {"stage": {"stages": 2}, "half of each layer": {"stages": 1, "tensor": 2}}


def equal_layers(width: int, n: int) -> list[Any]:
    """Give functions that build `n` layers of equal cost, all of one kind."""
    import torch

    return [functools.partial(torch.nn.Linear, width, width)] * n


def block(width: int, inner: int) -> Any:
    """Build a layer that computes much and gives little, as those of a transformer do."""
    import torch

    return torch.nn.Sequential(torch.nn.Linear(width, inner), torch.nn.ReLU(), torch.nn.Linear(inner, width))


def blocks(width: int, inner: int, n: int) -> list[Any]:
    """Give functions that build `n` blocks of equal cost, and small layers before and after them.

    The first layer of all has no gradient to give back, and computes less: it must not be one of those that count.
    """
    import torch

    first, last = (functools.partial(torch.nn.Linear, *shape) for shape in ((width, width), (width, width)))
    return [first, *[functools.partial(block, width, inner)] * n, last]


def network_of(layers: list[Any], batch_size: int, **given: Any) -> Any:
    """Give an estimator of as many targets as features."""
    import torch

    adam = functools.partial(torch.optim.Adam, lr=1e-4)
    how = {"batch_size": batch_size, "shuffle": None, "shares": 1, **given}
    return dpipe.ModelParallel(layers, torch.nn.functional.mse_loss, adam, **how)


def rows_of(n: int, width: int) -> np.ndarray:
    """Make some rows, from a seed."""
    return np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)


def waited(layers: list[Any], width: int, micro_batches: int, steps: int, **how: Any) -> dict[str, Any]:
    """Train two stages; give what was measured."""
    batch = ROWS_A_MICRO_BATCH * micro_batches
    X = rows_of(batch * steps, width)
    found = network_of(layers, batch, stages=2, micro_batches=micro_batches, **how).fit(X, X).measured_
    return dict(found)


def bubbles(layers: list[Any], width: int, steps: int, repeat: int, **how: Any) -> list[str]:
    """Measure each number of micro-batches in turns; give the lines of a table."""
    found: dict[int, list[dict[str, Any]]] = {m: [] for m in MICRO_BATCHES}
    for _ in range(repeat):
        for m, runs in found.items():
            runs.append(waited(layers, width, m, steps, **how))
    lines = [
        "| micro-batches | waited | formula | waited / formula | planned | seconds a batch |",
        "|---|---|---|---|---|---|",
    ]
    for m, runs in found.items():
        shares, formula = sorted(run["bubble"] for run in runs), 1 / (m + 1)
        spread = f"{median(shares):.3f} ({shares[0]:.3f} to {shares[-1]:.3f})"
        planned = median(run["planned_bubble"] for run in runs)
        batch_s = median(run["span_s"] for run in runs) / steps
        ratio = median(shares) / formula
        lines.append(f"| {m} | {spread} | {formula:.3f} | {ratio:.2f} | {planned:.3f} | {batch_s:.2f} |")
    return lines


@contextmanager
def workers_of(scheduler: str | None) -> Iterator[Client]:
    """Give a client of two workers: of a cluster that is there, or of one that is started here."""
    if scheduler is not None:
        with Client(scheduler) as client:
            client.wait_for_workers(2, timeout=60)
            yield client
        return
    small = {"dashboard_address": "127.0.0.1:0", "threads_per_worker": 1}
    with LocalCluster(n_workers=2, processes=True, **small) as cluster, Client(cluster) as client:
        yield client


def memory(width: int, n_layers: int, steps: int, cap: int, scheduler: str | None = None) -> list[str]:
    """Train by two workers what is too large for one; give the lines of a table.

    Parameters
    ----------
    width, n_layers, steps : int
    cap : int
        What a worker may take, in bytes.
    scheduler : str, optional
        The address of a cluster of two workers, on this machine.
    """
    X = rows_of(steps * 64, width)
    lines = ["| processes | planned peak | measured | measured / planned |", "|---|---|---|---|"]
    with workers_of(scheduler) as client:
        given: dict[str, Any] = {
            "memory": 2 * cap,
            "client": client,
        }  # of both workers, which share this machine
        try:
            dpipe.plan(network_of(equal_layers(width, n_layers), 64, stages=1), X, X, **given)
            refused = "fits"
        except MemoryLimitError:
            refused = "refused by the plan"
        lines.append(f"| 1, of {format_bytes(cap)} | {refused} | | |")
        for name, how in SHARES.items():
            found = network_of(equal_layers(width, n_layers), 64, **how).fit(X, X, **given).measured_
            for i, (own, planned) in enumerate(
                zip(found["peak_nbytes"], found["planned_nbytes"], strict=True)
            ):
                figures = f"{format_bytes(planned)} | {format_bytes(own)} | {own / planned:.2f}"
                lines.append(f"| 2, {name} {i} | {figures} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it from the command line."""
    parser = ArgumentParser(prog="python -m benchmarks.pipelining", description=__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--inner", type=int, default=8192)
    parser.add_argument("--blocks", type=int, default=24, help="0 leaves that table out")
    parser.add_argument(
        "--order", default="interleaved", help="1f1b and gpipe have nothing to do while values travel"
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory-width", type=int, default=2048)
    parser.add_argument("--memory-layers", type=int, default=20, help="0 leaves that table out")
    parser.add_argument("--scheduler", help="of a cluster of two workers (one is started)")
    parser.add_argument("--cap", default="1.75 GiB", help="what a worker may take")
    given = parser.parse_args(arguments)
    print(f"\n{os.cpu_count()} cores, torch {version('torch')}, median of {given.repeat}.\n")
    if given.memory_layers:
        sizes = given.memory_width, given.memory_layers, given.steps, parse_bytes(given.cap)
        for line in memory(*sizes, given.scheduler):
            print(line)
        print()
    if not given.blocks:
        return 0
    layers = blocks(given.width, given.inner, given.blocks)
    for line in bubbles(layers, given.width, given.steps, given.repeat, order=given.order, virtual=1):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
