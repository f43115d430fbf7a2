"""Workers on machines that are reached by ssh, looked after like jobs: the job is the connection."""

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dpipe.cluster.certificates import Certificates
from dpipe.cluster.jobs import DEATH_TIMEOUT_S, NODE_SCRIPT, last_lines, worker_options
from dpipe.cluster.queues import ENDED, RUNNING, JobState
from dpipe.cluster.specification import Specification
from dpipe.errors import ClusterError


class SshLauncher:
    """Start workers by ssh; a machine whose connection ends is tried again."""

    what = "ssh"
    asks = False

    def __init__(
        self, spec: Specification, scheduler: str, folder: Path, certificates: Certificates | None
    ) -> None:
        self._spec, self._scheduler, self._folder, self._certificates = spec, scheduler, folder, certificates
        self._running: dict[str, tuple[str, asyncio.subprocess.Process]] = {}
        self._tried: dict[str, int] = dict.fromkeys(spec.hosts, 0)

    def command(self, host: str, name: str) -> list[str]:
        """Give the command line that starts the workers of a machine, until their scheduler is gone."""
        spec = self._spec
        remote = [spec.python or sys.executable, str(self._folder / NODE_SCRIPT), self._scheduler]
        remote += ["--name", name, "--nthreads", str(spec.cores), "--nworkers", str(spec.per_job), "--nanny"]
        remote += ["--death-timeout", str(DEATH_TIMEOUT_S), *worker_options(spec, self._certificates)]
        if spec.memory_nbytes is not None:
            remote += ["--memory-limit", str(spec.memory_nbytes)]
        if spec.interface is not None:
            remote += ["--interface", spec.interface]
        line = shlex.join(remote)
        if spec.scratch is not None:
            line += f" --local-directory {spec.scratch}"  # its $NAME is for the other machine to fill in
        lines = [f"cd {shlex.quote(os.getcwd())}", *spec.prologue, f"exec {line}"]
        options = [word for each in spec.directives for word in shlex.split(each)]
        return ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", *options, host, "\n".join(lines)]

    async def submit(self, name: str) -> str:
        """Connect to the machine that has the fewest workers of ours, and has been tried least."""
        busy = [host for host, process in self._running.values() if process.returncode is None]
        hosts = self._spec.hosts
        host = min(hosts, key=lambda each: (busy.count(each) / hosts.count(each), self._tried[each]))
        self._tried[host] += 1
        with (self._folder / "logs" / f"{name}.err").open("wb") as log:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self.command(host, name), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
                )
            except OSError as err:
                raise ClusterError(f"The command ssh cannot be run: {err.strerror}.") from err
        self._running[name] = host, process
        return name

    async def states(self, jobs: Sequence[str]) -> dict[str, JobState]:
        """Tell which connections have ended."""
        return {job: self._state(*self._running[job]) for job in jobs}

    def _state(self, host: str, process: asyncio.subprocess.Process) -> JobState:
        status = process.returncode
        return JobState(RUNNING) if status is None else JobState(ENDED, f"{host}, exit status {status}")

    async def cancel(self, jobs: Sequence[str]) -> None:
        """End connections; workers whose scheduler is gone end by themselves."""
        for job in jobs:
            _, process = self._running[job]
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()

    def last_lines(self, job: str) -> list[str]:
        """Give the end of what was printed there."""
        return last_lines(self._folder / "logs", job)
