"""Fixtures for clusters: a SLURM of our own, where there is one."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpipe.cluster import keeper
from tests.cluster.slurm import Slurm, missing


@pytest.fixture(scope="session")
def slurm_daemons() -> Iterator[Slurm]:
    """SLURM with two nodes; tests are skipped where it is not installed."""
    why = missing()
    if why:
        pytest.skip(f"SLURM is not installed here: {why}")
    # munge wants a folder that everybody may enter, which pytest's are not
    with tempfile.TemporaryDirectory(prefix="dpipe-slurm-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        slurm = Slurm(Path(folder))
        try:
            slurm.start()
            yield slurm
        finally:
            slurm.stop()


@pytest.fixture
def slurm(slurm_daemons: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """SLURM with an empty queue and idle nodes; its commands are found."""
    monkeypatch.setenv("SLURM_CONF", slurm_daemons.environment["SLURM_CONF"])
    monkeypatch.setenv("PATH", slurm_daemons.environment["PATH"])
    yield slurm_daemons
    slurm_daemons.clear()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the queue every half a second: this one has nobody else to serve."""
    monkeypatch.setattr(keeper, "EVERY_S", 0.5)


@pytest.fixture
def slurm_file(tmp_path: Path) -> Path:
    """Specification of two jobs with two workers each, on a SLURM of this machine."""
    path = tmp_path / "slurm.yaml"
    path.write_text(
        f"kind: slurm\nworkers: 4\nper_job: 2\ncores: 1\nmemory: 1 GiB\nwalltime: 00:20:00\nqueue: main\n"
        f"interface: lo\nscratch: {tmp_path}/scratch\nfolder: {tmp_path}/dpipe\n"
    )
    return path


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Callable[[str, str, float], None]:
    """Note what a fault has ended in, and how many seconds after it; a table of all closes the tests."""

    def noted(fault: str, ended: str, seconds: float) -> None:
        record_property("fault", [fault, ended, seconds])

    return noted
