"""What training a network by copies and by shards takes, beside the plan: `python -m benchmarks.data_parallel`.

A network with Adam is trained by two workers of a cluster, as equal copies (DDP) and with each of them keeping half of
parameters, gradients and optimizer state (FSDP): the plan's peak memory of a worker beside what it was. A worker may
take so much that one alone is refused by the plan before anything is read. Batches are small: it is bytes that count.
"""

import functools
import json
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dask.array as da
from distributed import Client, LocalCluster

import dpipe
from dpipe.errors import MemoryLimitError
from dpipe.sizes import format_bytes, parse_bytes

FEATURES, BATCH = 64, 256
#: How states are kept by two workers, and whether each must do with what a worker may take.
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "1 worker": ({"ranks": 1}, True),
    "2 copies": ({"ranks": 2}, False),
    "2 shards": ({"ranks": 2, "sharded": True}, True),
}


def network_of(width: int, n_layers: int, **given: Any) -> Any:
    """Give an estimator of some layers of equal width."""
    import torch

    layers = [torch.nn.Linear(FEATURES, width), *(torch.nn.Linear(width, width) for _ in range(n_layers))]
    module = torch.nn.Sequential(*layers, torch.nn.Linear(width, 1), torch.nn.Flatten(0))
    adam = functools.partial(torch.optim.Adam, lr=1e-4)
    return dpipe.DataParallel(module, torch.nn.functional.mse_loss, adam, batch_size=BATCH, **given)


def rows_of(steps: int) -> tuple[da.Array, da.Array]:
    """Make some rows, from a seed."""
    X = da.random.default_rng(0).random((BATCH * steps, FEATURES), chunks=(BATCH, FEATURES))
    return X, X[:, 0]


def measured(network: Any, steps: int, client: Client, cap: int | None) -> tuple[int, int]:
    """Train; give the plan's peak of a worker, and what it was."""
    # a budget is of both workers, which share this machine
    given: dict[str, Any] = {"client": client, "memory": None if cap is None else 2 * cap}
    X, y = rows_of(steps)
    planned = dpipe.plan(network, X, y, **given).projected_nbytes
    with tempfile.TemporaryDirectory() as folder:
        dpipe.fit(network, X, y, workdir=folder, **given)
        record = json.loads(Path(folder, "run.json").read_text(encoding="utf-8"))
    (found,) = (each["measured_nbytes"] for each in record["passes"] if each["way"] == "network")
    return int(planned or 0), int(found)


def memory(width: int, n_layers: int, steps: int, cap: int) -> list[str]:
    """Train in each way that fits; give the lines of a table."""
    lines = ["| states | planned peak | measured | measured / planned |", "|---|---|---|---|"]
    small = {"dashboard_address": "127.0.0.1:0", "threads_per_worker": 1, "memory_limit": None}
    with LocalCluster(n_workers=2, processes=True, **small) as cluster, Client(cluster) as client:
        for name, (how, capped) in CASES.items():
            shown = f"{name}, of {format_bytes(cap)}" if capped else name
            network = network_of(width, n_layers, **how)
            try:
                planned, found = measured(network, steps, client, cap if capped else None)
            except MemoryLimitError:
                lines.append(f"| {shown} | refused by the plan | | |")
                continue
            figures = f"{format_bytes(planned)} | {format_bytes(found)} | {found / planned:.2f}"
            lines.append(f"| {shown} | {figures} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it from the command line."""
    parser = ArgumentParser(prog="python -m benchmarks.data_parallel", description=__doc__)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cap", default="2 GiB", help="what a worker may take")
    given = parser.parse_args(arguments)
    print(f"\ntorch {version('torch')}, {given.layers} layers of width {given.width:,}.\n")
    print(*memory(given.width, given.layers, given.steps, parse_bytes(given.cap)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
