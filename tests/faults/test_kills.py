"""`kill -9` of the client, of a worker, of the scheduler: one more run ends with the bits of an undisturbed one."""

import random
from pathlib import Path

import pytest

from dpipe.ledger.book import records
from dpipe.ledger.codec import decode
from tests.faults import harness
from tests.faults.job import JOBS, N_ROUNDS

#: Moments at which each process of each job is killed, in the long form.
MOMENTS = 25


def moment(undisturbed, kind, victim, number):
    """A random moment of the run; the same one every time the test runs."""
    return random.Random(f"{kind} {victim} {number}").random() * undisturbed(kind).seconds


#: Jobs that are tried in the long form only: others go the same ways.
LONG = ("shuffled", "stopped")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in LONG else []) for kind in JOBS]
)
def test_a_killed_client(kind, data, undisturbed, tmp_path):
    wanted = undisturbed(kind).result
    harness.assert_survives(
        kind, data, tmp_path / "run", "client", wanted, moment(undisturbed, kind, "client", 0)
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["worker", "scheduler"])
def test_a_killed_part_of_a_cluster(victim, data, undisturbed, tmp_path):
    wanted = undisturbed("fit").result
    harness.assert_survives(
        "fit", data, tmp_path / "run", victim, wanted, moment(undisturbed, "fit", victim, 0)
    )


@pytest.mark.slow
@pytest.mark.timeout(4000)
@pytest.mark.parametrize("victim", ["client", "worker", "scheduler"])
@pytest.mark.parametrize("kind", JOBS)
def test_many_moments(kind, victim, data, undisturbed, tmp_path):
    wanted = undisturbed(kind).result
    for number in range(MOMENTS):
        after_s = moment(undisturbed, kind, victim, number)
        folder = tmp_path / str(number)
        folder.mkdir()
        harness.assert_survives(kind, data, folder / "run", victim, wanted, after_s)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "share"), [("fit", 0.55), ("stream", 0.55)])
def test_after_half_of_the_blocks_the_rest_costs_half(kind, share, data, undisturbed, tmp_path):
    wanted = undisturbed(kind).result
    workdir = tmp_path / "run"
    process = harness.start(kind, data, workdir)
    while _blocks_done(workdir) < wanted["blocks"] / 2:
        assert process.poll() is None
    process.kill()
    harness.finish(process)
    again = harness.run(kind, data, workdir)
    harness.check(again, wanted)
    assert again.result["read"] <= share * wanted["blocks"]


@pytest.mark.timeout(600)
def test_boosting_goes_on_from_its_last_record(data, undisturbed, tmp_path):
    wanted = undisturbed("boost").result
    assert wanted["rounds"] == N_ROUNDS
    workdir = tmp_path / "run"
    process = harness.start("boost", data, workdir)
    while not _rounds_done(workdir):
        assert process.poll() is None
    process.kill()
    harness.finish(process)
    done, _ = _rounds_done(workdir)
    again = harness.run("boost", data, workdir)
    harness.check(again, wanted)
    assert again.result["rounds"] == N_ROUNDS - done


@pytest.mark.timeout(600)
def test_another_worker_goes_on_with_boosting(data, undisturbed, tmp_path):
    wanted = undisturbed("boost").result
    workdir = tmp_path / "run"
    with harness.cluster(tmp_path) as cluster:
        process = harness.start("boost", data, workdir, cluster.address)
        while not (found := _rounds_done(workdir)):
            assert process.poll() is None
        _, pid = found
        (training,) = [worker for worker in cluster.workers if worker.pid == pid]
        training.kill()
        harness.check(harness.finish(process), wanted)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["the one that records", "the other"])
def test_a_worker_that_trains_together_with_another(victim, data, undisturbed, tmp_path):
    """The one that is left learns both shares, from the last record on, to the bits of an undisturbed run."""
    wanted = undisturbed("together").result
    workdir = tmp_path / "run"
    harness.TRIED.faults += 1
    with harness.cluster(tmp_path) as cluster:
        process = harness.start("together", data, workdir, cluster.address)
        while not (found := _rounds_done(workdir)):
            assert process.poll() is None
        _, pid = found
        chosen = [each for each in cluster.workers if (each.pid == pid) == (victim == "the one that records")]
        chosen[0].kill()
        harness.check(harness.finish(process), wanted)
    # a model that begins anew would be recorded after the same rounds again
    written = [said["key"] for said in _said(workdir) if said["what"].endswith("rounds")]
    assert len(written) == len(set(written)) > 1
    harness.TRIED.survived += 1


def _said(workdir):
    """What each record says of itself, those too that a later one has replaced."""
    found = []
    for path in sorted((workdir / "ledger").glob("[0-9]*.log")):
        content, at = path.read_bytes(), 0
        while (end := content.find(b"\n", at)) >= 0:
            said = harness.json.loads(content[at:end])
            found.append(said)
            at = end + 1 + said["length"] + 1
    return found


def _rounds_done(workdir):
    """The rounds after which a booster was recorded last, and the process that did it; None if there is no record."""
    found = []
    for place in records(workdir / "ledger").values():
        if _header(place)["what"].endswith("rounds"):
            pid = int(Path(place.path).name.split("-")[-2])
            found.append((decode(place.read())[0]["n_rounds"], pid))
    return max(found, default=None)


def _header(place):
    """What a record says of itself."""
    with open(place.path, "rb") as file:
        file.seek(max(place.start - 300, 0))
        header = file.read(place.start - file.tell()).rsplit(b"\n", 2)[-2]
    return harness.json.loads(header)


def _blocks_done(workdir):
    """Blocks that the ledger knows: those of merges, and the furthest that a learner was recorded at."""
    done = {}
    for place in records(workdir / "ledger").values():
        said = _header(place)
        if said["what"].endswith("stream"):
            done["stream"] = max(done.get("stream", 0), said["rows"] // 1500)
        elif said["what"].endswith(("merge", "refine")) and said["rows"] == 1500:
            done["merge"] = done.get("merge", 0) + 1
    return sum(done.values())
