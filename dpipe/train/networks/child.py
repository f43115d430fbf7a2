"""One rank in a process of its own: it is told what to do on its standard input, and gives what it found on the output.

Whoever starts it can end it at any time, also inside of a collective that waits for others: threads cannot be ended.
Its input stays open as long as whoever started it lives; when that is killed, the rank ends, too.
"""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, Protocol, runtime_checkable

import cloudpickle
import psutil

from dpipe.blocks.heap import keep_small_freed
from dpipe.errors import DpipeError, InputError
from dpipe.train.networks.ranks import Ranks

#: Seconds between two looks at a rank, and at whether it is still wanted.
_LOOK_EVERY_S = 0.1
#: How long processes may take to begin: they import torch. Those that die are noticed by who started them.
_BEGIN_S = 300.0
#: What torch says of a layer that has failed in a pipeline; how it has failed is the cause of that.
_OF_A_LAYER = ("failed to run forward:", "Failed to run stage backward")
#: Exit status of a rank that says why it has ended.
_SAID = 3


class Work(Protocol):
    """What a rank does: whatever it is given must be of this kind."""

    def run(self, ranks: Ranks) -> bytes:
        """Do the part of one rank; give what it has found."""


@runtime_checkable
class Shared(Protocol):
    """What a group does where each rank is given another part of it, and none the whole."""

    def usable(self, n_ranks: int) -> int:
        """Count the ranks that can take part, of so many."""

    def of_rank(self, rank: int, n_ranks: int) -> Work:
        """Give the part of one rank of so many."""


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of a group find each other: the first one opens a store there."""

    host: str
    port: int
    token: str
    timeout_s: float
    """How long a rank waits for others in one step."""

    def store(self, ranks: Ranks) -> Any:
        """Open it, or connect to it as soon as it is open, and wait until all are there."""
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined,unused-ignore]

        first, wait = ranks.rank == 0, timedelta(seconds=max(self.timeout_s, _BEGIN_S))
        store = TCPStore(self.host, self.port, is_master=first, wait_for_workers=False, timeout=wait)
        named = PrefixStore(self.token, store)
        named.set(f"here {ranks.rank}", "")
        named.wait([f"here {rank}" for rank in range(ranks.n_ranks)], wait)
        return named


@dataclass(frozen=True)
class Ended:
    """How a rank has ended."""

    found: bytes = b""
    """What it has given."""
    finished: bool = False
    error: str = ""
    """What it complains of, if that would happen again."""
    why: str = ""
    """What else has ended it."""


def packed(work: Work | Shared, n_ranks: int) -> list[bytes]:
    """Give work as bytes, to be rebuilt in other processes: what each rank is told.

    Raises
    ------
    InputError
        If it holds what cannot be: locks, open files, generators.
    """
    try:
        if isinstance(work, Shared):
            return [cloudpickle.dumps(work.of_rank(rank, n_ranks)) for rank in range(n_ranks)]
        return [cloudpickle.dumps(work)] * n_ranks
    except DpipeError:
        raise
    except Exception as err:
        raise InputError(
            f"The network cannot be sent to another process: {type(err).__name__}: {err}. Module, loss, optimizer and "
            "schedule must hold no open files, locks or generators: make such things in their functions."
        ) from err


def run_rank(work: bytes, ranks: Ranks, meeting: Meeting, threads: int, wanted: Callable[[], bool]) -> Ended:
    """Run one rank in a new process to its end, or until it is no longer wanted.

    Parameters
    ----------
    work : bytes
        From `packed`.
    ranks : Ranks
    meeting : Meeting
    threads : int
        That it computes with.
    wanted : callable ``() -> bool``
        Is asked ten times a second.
    """
    told = pickle.dumps((work, ranks, meeting, threads))
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "dpipe.train.networks.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=_environment(ranks.host),
        )
        assert child.stdin is not None
        assert child.stdout is not None
        given: list[bytes] = []
        stdin, stdout = child.stdin, child.stdout

        def talk() -> None:
            with contextlib.suppress(OSError):
                stdin.write(len(told).to_bytes(8, "little") + told)
                stdin.flush()
            given.append(stdout.read())

        talking = threading.Thread(target=talk, daemon=True)
        talking.start()
        try:
            while child.poll() is None and wanted():
                time.sleep(_LOOK_EVERY_S)
        finally:
            child.kill()
            child.wait()
            talking.join()
            with contextlib.suppress(OSError):
                stdin.close()
            stdout.close()
        if child.returncode == 0:
            return Ended(given[0], finished=True)
        if child.returncode == _SAID:
            return Ended(**json.loads(given[0]))
        said.seek(max(said.seek(0, os.SEEK_END) - 2000, 0))
        return Ended(
            why=f"Rank {ranks.rank} has ended with status {child.returncode}. {_last_line(said.read())}"
        )


def _environment(host: str) -> dict[str, str]:
    """Let a rank import what this process can, and speak over the network that its address is of."""
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    addresses = psutil.net_if_addrs()
    own = next((name for name, each in addresses.items() if host in (a.address for a in each)), None)
    if own is not None:
        found.setdefault("GLOO_SOCKET_IFNAME", own)
        found.setdefault("NCCL_SOCKET_IFNAME", own)
    return found


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def main() -> NoReturn:
    """Be one rank."""
    keep_small_freed()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed must not stand among what is given
    length = int.from_bytes(sys.stdin.buffer.read(8), "little")
    told = list(pickle.loads(sys.stdin.buffer.read(length)))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        # the bytes of a network are as large as its weights: they are not kept beside them
        found = _joined(_rebuilt(told.pop(0)), *told)
    except Exception as err:
        lost = _is_of_others(err)
        found, status = b"" if lost else json.dumps({"error": _complaint(err)}).encode(), 1 if lost else _SAID
        traceback.print_exc()
    else:
        status = 0
    out.write(found)
    out.close()
    sys.stderr.flush()
    os._exit(status)  # gloo's threads may wait for peers that have ended before, and one waits for the input


def _end_with_parent() -> None:
    # not a byte will come: the input is closed when the process at its other end is no more
    os.read(0, 1)
    os._exit(1)


def _rebuilt(work: bytes) -> Work:
    """Rebuild what is to be done.

    Raises
    ------
    InputError
        If something cannot be imported here.
    """
    try:
        found: Work = cloudpickle.loads(work)
        return found
    except (ImportError, AttributeError) as err:
        raise InputError(
            f"The network cannot be rebuilt in another process: {err}. Define module, loss, optimizer and schedule "
            "in a module that workers can import: one that is installed there, in a folder on PYTHONPATH, or sent by "
            "client.upload_file."
        ) from err


def _joined(work: Work, ranks: Ranks, meeting: Meeting, threads: int) -> bytes:
    """Join the group, do this rank's part, and leave with the others."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(threads)
    dist.init_process_group(
        ranks.backend,
        store=meeting.store(ranks),
        rank=ranks.rank,
        world_size=ranks.n_ranks,
        timeout=timedelta(seconds=meeting.timeout_s),
    )
    found = work.run(ranks)
    dist.barrier()  # none may end while others still add up
    return found


def _is_of_others(err: Exception) -> bool:
    """Tell whether an error says that other ranks, or the network, are gone: another group may do better."""
    return isinstance(err, OSError) or _tells_of_others(err)


def _tells_of_others(err: BaseException | None) -> bool:
    """Look for peers that were lost in an error and its causes.

    What fails within a layer that others share is told as a failure of the stage. There may be a file behind an error
    of the module: not all of the system's errors are of the network.
    """
    import torch.distributed as dist

    if err is None:
        return False
    lost = isinstance(err, dist.DistError | ConnectionError | TimeoutError) or any(
        name in str(err) for name in ("gloo", "Gloo", "NCCL", "Connection", "Timed out")
    )
    return lost or _tells_of_others(err.__cause__)


def _complaint(err: BaseException) -> str:
    if err.__cause__ is not None and any(each in str(err) for each in _OF_A_LAYER):
        return _complaint(err.__cause__)
    if isinstance(err, DpipeError):
        return str(err)
    return (
        f"A process that trains the network has failed: {type(err).__name__}: {err}. It would fail again: change the "
        "module, the loss or the data."
    )


if __name__ == "__main__":
    main()
