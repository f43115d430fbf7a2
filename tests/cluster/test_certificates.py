"""Encryption of a run: who has no certificate of it is refused."""

import asyncio
import os
import ssl
import stat
import subprocess
import sys

import pytest
from distributed import Client, Scheduler, Worker
from distributed.comm.core import CommClosedError

from dpipe.cluster.certificates import make_certificates
from dpipe.cluster.job_cluster import run_folder
from dpipe.cluster.specification import Specification

pytestmark = pytest.mark.cluster


def test_files_are_for_this_user_only_and_go_away(tmp_path):
    made = make_certificates(tmp_path / "tls")
    files = sorted(path.name for path in made.folder.iterdir())
    # the key of the authority is nowhere
    assert files == [
        "ca.pem",
        *(f"{r}.{e}" for r in ("client", "scheduler", "worker") for e in ("key", "pem")),
    ]
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.folder.iterdir()} == {0o600}
    made.remove()
    assert not made.folder.exists()


def test_certificates_of_a_run_that_was_killed_go_away_with_the_next_one(tmp_path):
    spec = Specification("slurm", memory="1 GiB", folder=str(tmp_path))
    own = run_folder(spec)
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert str(os.getpid()) in own.name
    make_certificates(own / "tls")
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    killed = own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
    make_certificates(killed / "tls")
    run_folder(spec)
    assert not (killed / "tls").exists()
    assert (own / "tls").exists()  # of one that lives


def test_options_of_workers_hold_no_secret(tmp_path):
    made = make_certificates(tmp_path / "tls")
    key = (tmp_path / "tls" / "worker.key").read_text().splitlines()[1]
    options = " ".join(made.worker_options())
    assert key not in options
    assert "BEGIN" not in options


def attempt(scheduler_security, address_of, security, keyless=False):
    """Start a scheduler, and connect to it; give what the client said."""

    async def run():
        async with Scheduler(
            protocol="tls://",
            security=scheduler_security,
            port=0,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as scheduler:
            address = address_of(scheduler.address)
            if keyless:  # as someone who speaks TLS, and has nothing to show
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                host, _, port = address.removeprefix("tls://").partition(":")
                reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
                found = await reader.read(10)
                writer.close()
                if not found:
                    raise ConnectionResetError("closed by the scheduler")
                return "connected"
            client = await Client(address, asynchronous=True, security=security, timeout=1.5)
            await client.close()
            return "connected"

    return asyncio.run(run())


def test_who_has_a_certificate_of_the_run_is_let_in(tmp_path):
    own = make_certificates(tmp_path / "own").security()
    assert attempt(own, str, own) == "connected"


@pytest.mark.parametrize(
    "who", ["another authority", "another authority's certificate", "plain tcp", "no certificate"]
)
def test_who_has_none_is_refused(tmp_path, who):
    own = make_certificates(tmp_path / "own").security()
    other = make_certificates(tmp_path / "other").security()
    plain = who == "plain tcp"
    if (
        who == "another authority's certificate"
    ):  # it knows the scheduler; the scheduler must refuse it by itself
        other.tls_ca_file = own.tls_ca_file
    with pytest.raises((OSError, CommClosedError, ssl.SSLError, RuntimeError)):
        attempt(
            own,
            lambda address: address.replace("tls://", "tcp://") if plain else address,
            None if plain else other,
            who == "no certificate",
        )


def test_a_worker_of_another_run_is_refused(tmp_path):
    own = make_certificates(tmp_path / "own").security()
    other = make_certificates(tmp_path / "other").security()

    async def run():
        async with Scheduler(
            protocol="tls://", security=own, port=0, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as scheduler:
            worker = Worker(scheduler.address, security=other, death_timeout=1, local_directory=str(tmp_path))
            with pytest.raises((OSError, TimeoutError, RuntimeError)):
                await worker
            return len(scheduler.workers)

    assert asyncio.run(run()) == 0
