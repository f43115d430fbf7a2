"""Whether batches come as fast as a network learns them: `python -m benchmarks.gpu`.

A network of some layers is trained on rows of 32 float32 features and a label, which lie in Parquet files: out of one
batch that is on the device already, again and again, which is as fast as it can be; by `dpipe.Loader`; and by torch's
DataLoader over an IterableDataset of batches. On a GPU batches come in pinned memory and are copied while it computes.
It runs on a CPU, too, where learning and reading share the processors.
"""

import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import dpipe
from benchmarks.loader import GROUP_ROWS, WIDTH, made_files, torch_iterable

#: Batches that are learned before the clock starts.
WARM_UP = 3


def module_of(hidden: int) -> Any:
    """Build the network."""
    import torch

    torch.manual_seed(0)
    layers = torch.nn.Linear(WIDTH, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, hidden), torch.nn.ReLU()
    return torch.nn.Sequential(*layers, torch.nn.Linear(hidden, 1), torch.nn.Flatten(0))


def batches_a_second(batches: Iterable[Any], hidden: int, device: str) -> tuple[int, float]:
    """Learn the batches; give how many there were after the first ones, and how many a second."""
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    net = module_of(hidden).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    n, began = 0, 0.0
    for i, (X, y) in enumerate(batches):
        if i == WARM_UP:
            wait()
            began = time.perf_counter()
        X, y = X.to(device, non_blocking=True), y.to(device, non_blocking=True)
        optimizer.zero_grad()
        loss: Any = torch.nn.functional.mse_loss(net(X), y)
        loss.backward()
        optimizer.step()
        n += i >= WARM_UP
    wait()
    return n, n / (time.perf_counter() - began)


def loader_of(paths: Sequence[Path], batch_size: int) -> Any:
    """Give dpipe's loader of the files."""
    frame = dpipe.read_parquet(paths, block_nbytes=GROUP_ROWS * (WIDTH + 1) * 4)
    return dpipe.Loader(frame, "y", batch_size=batch_size)


def table(paths: Sequence[Path], batch_size: int, hidden: int, device: str) -> list[str]:
    """Measure each way; give the lines of a table."""
    loader = loader_of(paths, batch_size)
    n = len(loader)
    one = tuple(values.to(device) for values in next(iter(loader_of(paths, batch_size))))
    ways: dict[str, Callable[[], Iterable[Any]]] = {
        "one batch on the device": lambda: repeat(one, n),
        "dpipe.Loader": lambda: loader,
        "torch.utils.data.DataLoader": lambda: islice(torch_iterable(paths, batch_size), n),
    }
    lines = [
        "| batches | how many | a second | million rows a second | of the first |",
        "|---|---|---|---|---|",
    ]
    most = 0.0
    for name, made in ways.items():
        done, rate = batches_a_second(made(), hidden, device)
        most = most or rate
        lines.append(
            f"| {name} | {done:,} | {rate:,.0f} | {rate * batch_size / 1e6:.2f} | {rate / most:.2f} |"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it from the command line."""
    import torch

    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser = ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rows", type=int, default=8_192_000)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default=there, help="the GPU, where there is one"
    )
    parser.add_argument("--folder", type=Path, help="where the data is or goes (a temporary folder)")
    given = parser.parse_args(arguments)
    folder = given.folder or Path(tempfile.gettempdir()) / f"loader-{given.rows}"
    paths = made_files(folder, given.rows)
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    print(f"\n{name}, torch {version('torch')}, batches of {given.batch:,}, {given.hidden} units a layer.\n")
    print(*table(paths, given.batch, given.hidden, given.device), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
