"""A real SLURM on this machine: its own daemons for as many nodes as are asked for, on the loopback interface only.

All of it stands in one folder: configuration, key, state and logs. Nothing under /etc is read or changed.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sinfo", "sbatch", "squeue", "scancel", "scontrol")
_SYSTEM_FOLDERS = "/usr/sbin:/sbin:/usr/local/sbin"

_CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=UsePss,OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=3
InactiveLimit=0
MinJobAge=300
DefMemPerCPU={mem_per_cpu}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 DefaultTime=01:00:00 State=UP LLN=YES
PartitionName=short Nodes=ALL MaxTime=00:01:00 State=UP LLN=YES
"""


def missing() -> str:
    """Say why SLURM cannot be started here; empty if it can."""
    path = f"{os.environ['PATH']}:{_SYSTEM_FOLDERS}"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"no {absent[0]}: apt-get install slurmctld slurmd slurm-client munge"
    return ""


class Slurm:
    """Daemons of SLURM for some nodes of this machine."""

    def __init__(self, folder: Path, n_nodes: int = 2, cpus: int = 4, memory_mb: int = 6000) -> None:
        self.folder, self.nodes = folder, [f"node{i + 1}" for i in range(n_nodes)]
        self.cpus, self.memory_mb = cpus, memory_mb
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:{_SYSTEM_FOLDERS}",
        }
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._watcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start all daemons, and wait until each node is idle."""
        self._configure()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        sock = self.folder / "munge.sock"
        self._daemon(
            *("munged", "--foreground", f"--key-file={key}", f"--socket={sock}"),
            *(f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log"),
            *(f"--seed-file={self.folder}/munged.seed", "--num-threads=2"),
        )
        self._until(sock.exists, "munged")
        self._daemon("slurmctld", "-D", "-i")
        for node in self.nodes:
            self._daemon("slurmd", "-D", "-N", node)
        self._watch()
        self._until(self.ready, "SLURM")

    def _configure(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        ports = _free_ports(1 + len(self.nodes))
        host = socket.gethostname().partition(".")[0]
        lines = [
            f"NodeName={node} NodeHostName={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
            f"RealMemory={self.memory_mb} State=UNKNOWN"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        ]
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        text = _CONFIGURATION.format(
            host=host,
            user=user,
            port=ports[0],
            folder=self.folder,
            mem_per_cpu=self.memory_mb // self.cpus,
            nodes="\n".join(lines),
        )
        (self.folder / "slurm.conf").write_text(text)

    def _daemon(self, *command: str) -> None:
        log = (self.folder / "daemons.log").open("ab")
        self._daemons.append(
            subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        )
        log.close()

    def _watch(self) -> None:
        """Let a process of its own end everything if this one is killed before it can."""
        daemons = " ".join(str(daemon.pid) for daemon in self._daemons)
        lines = [
            f"while kill -0 {os.getpid()}; do sleep 0.5; done",
            f"scancel -u $(id -un); sleep 4; kill {daemons}; sleep 2; kill -9 {daemons}; rm -r '{self.folder}'",
        ]
        self._watcher = subprocess.Popen(
            ["sh", "-c", "\n".join(lines)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _until(self, is_so, what: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > end or any(daemon.poll() is not None for daemon in self._daemons):
                logs = [f"{path.name}: {path.read_text()[-800:]}" for path in self.folder.glob("*.log")]
                raise RuntimeError(f"{what} did not start within {seconds:g} s\n" + "\n".join(logs))
            time.sleep(0.1)

    def ready(self) -> bool:
        """Whether all nodes are idle."""
        states = self.call("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split()
        return states == ["idle"] * len(self.nodes)

    def call(self, *command: str, check: bool = True) -> str:
        """Run a command of SLURM, and give what it prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def jobs(self, state: str = "") -> list[str]:
        """List the numbers of all jobs in the queue, or of those in a state."""
        return self.call("squeue", "-h", "-o", "%i", *(["-t", state] if state else [])).split()

    def nodes_of(self, *jobs: str) -> set[str]:
        """Name the nodes that jobs run on."""
        return set(self.call("squeue", "-h", "-o", "%N", "-j", ",".join(jobs)).split())

    def clear(self) -> None:
        """End all jobs, and bring all nodes back."""
        for job in self.jobs():
            self.call("scancel", job, check=False)
        for node in self.nodes:
            self.call("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self._until(lambda: not self.jobs() and self.ready(), "a quiet SLURM")

    def stop(self) -> None:
        """End all jobs and daemons."""
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.wait()
        with contextlib.suppress(subprocess.TimeoutExpired):  # where it did not start, nobody answers
            end = time.monotonic() + 10
            while (jobs := self.jobs()) and time.monotonic() < end:
                self.call("scancel", *jobs, check=False)
                time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(8)
                continue
            daemon.kill()
            daemon.wait()


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
