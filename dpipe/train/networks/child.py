"""One rank in a process of its own: it is told what to do on its standard input, and gives its weights on the output.

Whoever starts it can end it at any time, also inside of a collective that waits for others: threads cannot be ended.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import cloudpickle

from dpipe.errors import DpipeError
from dpipe.train.networks.training import Ranks, Recipe, Trained, train

#: Seconds between two looks at a rank, and at whether the others still go on.
_LOOK_EVERY_S = 0.1
#: Exit status of a rank that says why it has ended.
_SAID = 3


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of a group find each other."""

    host: str
    port: int
    token: str
    timeout_s: float
    """How long a rank waits for others in one step."""

    def store(self) -> Any:
        """Connect."""
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined,unused-ignore]

        wait = timedelta(seconds=self.timeout_s)
        return PrefixStore(self.token, TCPStore(self.host, self.port, is_master=False, timeout=wait))


@dataclass(frozen=True)
class Ended:
    """How a rank has ended."""

    trained: Trained | None = None
    """Of rank 0, what has been learned."""
    finished: bool = False
    error: str = ""
    """What it complains of, if that would happen again."""
    why: str = ""
    """What else has ended it."""


def run_rank(recipe: Recipe, rank: int, n_ranks: int, meeting: Meeting, threads: int | None = None) -> Ended:
    """Run one rank in a new process, and watch it; end it as soon as another one of its group has ended.

    Blocks until it has ended. May be called in several threads, or as a task of a Dask worker.
    """
    told = cloudpickle.dumps((recipe, rank, n_ranks, meeting, threads))
    store = meeting.store()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "dpipe.train.networks.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
        )
        given: list[bytes] = []

        def talk() -> None:
            with contextlib.suppress(BrokenPipeError):
                given.append(child.communicate(told)[0])

        talking = threading.Thread(target=talk, daemon=True)
        talking.start()
        try:
            while child.poll() is None and not _stopped(store):
                time.sleep(_LOOK_EVERY_S)
        finally:
            child.kill()
            talking.join()
        if child.returncode == 0:
            return _answered(given[0])
        with contextlib.suppress(RuntimeError):  # whoever kept the store is gone, and the others will see it
            store.set("stop", str(rank))
        if child.returncode == _SAID:
            return Ended(**json.loads(given[0]))
        said.seek(max(said.tell() - 2000, 0))
        return Ended(why=f"rank {rank} has ended with status {child.returncode}. {_last_line(said.read())}")


def _stopped(store: Any) -> bool:
    try:
        return bool(store.check(["stop"]))
    except RuntimeError:
        return True


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _answered(given: bytes) -> Ended:
    import torch

    if not given:
        return Ended(finished=True)
    tree = torch.load(io.BytesIO(given), weights_only=True)
    return Ended(Trained(**tree), finished=True)


def main() -> int:
    """Be one rank."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed must not stand among the weights
    recipe, rank, n_ranks, meeting, threads = cloudpickle.load(sys.stdin.buffer)
    import torch
    import torch.distributed as dist

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            store=meeting.store(),
            rank=rank,
            world_size=n_ranks,
            timeout=timedelta(seconds=meeting.timeout_s),
        )
        trained = train(recipe, Ranks(rank, n_ranks))
        dist.barrier()  # none may end while others still add up
    except DpipeError as err:
        out.write(json.dumps({"error": str(err)}).encode())
        out.close()
        return _SAID
    if rank == 0:
        held = io.BytesIO()
        torch.save(vars(trained), held)
        out.write(held.getvalue())
    out.close()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may wait for peers that have ended before


if __name__ == "__main__":
    sys.exit(main())
