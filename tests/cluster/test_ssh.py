"""Workers over ssh, to a server of our own on this machine."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpipe.cluster import keeper
from dpipe.cluster.cluster import Cluster
from dpipe.cluster.ssh import SshLauncher
from dpipe.errors import ClusterError

SERVER = shutil.which("sshd", path="/usr/sbin:/usr/bin:/usr/local/sbin")


@pytest.fixture
def ssh_options(tmp_path):
    """Options of ssh for a server that knows a key of ours; skipped where there is no server."""
    if SERVER is None or shutil.which("ssh") is None:
        pytest.skip("there is no sshd here: apt-get install openssh-server")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\n"
        f"StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # the server wants it, where it was never started
    server = subprocess.Popen([SERVER, "-D", "-e", "-f", tmp_path / "sshd_config"], stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield f"-p {port} -i {tmp_path}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile={tmp_path}/known"
    finally:
        server.terminate()
        server.wait()


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_workers_start_over_ssh_and_come_back(ssh_options, tmp_path, monkeypatch):
    monkeypatch.setattr(keeper, "EVERY_S", 0.5)
    cluster = Cluster(
        "ssh",
        hosts=[f"{getpass.getuser()}@127.0.0.1"],
        memory="1 GiB",
        interface="lo",
        folder=str(tmp_path / "dpipe"),
        scratch=str(tmp_path),
        directives=[ssh_options],
        python=sys.executable,
    )
    with cluster as client:
        assert client.scheduler.address.startswith("tls://")
        assert client.submit(sum, [1, 2]).result() == 3
        (connection,) = subprocess.run(
            ["pgrep", "-f", "--", f"^ssh .*-i {tmp_path}/user "], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(int(connection), signal.SIGKILL)
        end = time.monotonic() + 100
        while [worker["name"] for worker in client.scheduler_info()["workers"].values()] != ["dpipe-2"]:
            assert time.monotonic() < end
            time.sleep(0.2)
        assert client.submit(sum, [1, 2, 3]).result() == 6


@pytest.mark.cluster
def test_a_machine_that_cannot_be_reached_is_told_of(ssh_options, tmp_path, monkeypatch):
    monkeypatch.setattr(keeper, "EVERY_S", 0.2)
    options = ssh_options.replace(f"{tmp_path}/user", f"{tmp_path}/host")  # a key that nobody there knows
    cluster = Cluster("ssh", hosts=["127.0.0.1"], interface="lo", folder=str(tmp_path), directives=[options])
    with pytest.raises(ClusterError, match=r"3 jobs in a row.*Permission denied"), cluster:
        pytest.fail("a cluster without workers has started")


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("host", "option", "says"),
    [
        ("nosuch.invalid", "", "Could not resolve hostname.*Check the key 'hosts'"),
        ("127.0.0.1", "-p 1", "Connection refused.*Check the keys 'hosts' and 'directives'"),
        (
            "127.0.0.1",
            "-o UserKnownHostsFile=/dev/null",
            "Host key verification failed.*Connect by hand once",
        ),
    ],
)
def test_what_keeps_ssh_from_connecting_names_what_to_change(ssh_options, tmp_path, host, option, says):
    own = ssh_options.replace("StrictHostKeyChecking=no", "StrictHostKeyChecking=yes")
    cluster = Cluster(
        "ssh", hosts=[host], interface="lo", folder=str(tmp_path), directives=[option or own, own]
    )
    with pytest.raises(ClusterError, match=f"3 jobs in a row.*{says}"), cluster:
        pytest.fail("a cluster without workers has started")


def test_the_command_holds_names_of_files_only(tmp_path):
    spec = Cluster("ssh", hosts=["a", "b"], memory="1 GiB", scratch="$TMPDIR/x", directives=["-p 22"])
    command = SshLauncher(spec, "tls://10.0.0.1:1", tmp_path, None).command("a", "dpipe-1")
    assert command[:1] + command[-4:-1] == ["ssh", "-p", "22", "a"]
    assert command[-1].endswith("--local-directory $TMPDIR/x")
