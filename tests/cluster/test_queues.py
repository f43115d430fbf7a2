"""Job scripts of all systems against golden files; what their queues say, in the form of their manuals."""

import asyncio
import sys
from pathlib import Path

import pytest

from dpipe.cluster.jobs import command_job, last_lines, lifetime, submitted, worker_job
from dpipe.cluster.queues import ENDED, REFUSED, RUNNING, SYSTEMS, WAITING, JobState
from dpipe.cluster.specification import QUEUES, Specification
from dpipe.errors import ClusterError

pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed: pip install 'dpipe[hpc]'")

GOLDEN = Path(__file__).parent / "scripts"


def specification(kind):
    resource = {"pbs": "select=1:ncpus=8:mem=32gb", "sge": "h_vmem=4G", "htcondor": "50 GB"}.get(kind)
    directives = {"sge": ["-pe smp 8"], "htcondor": ["requirements = HasAVX2"], "slurm": ["--exclusive"]}
    return Specification(
        kind,
        workers=4,
        per_job=2,
        cores=4,
        memory="16 GiB",
        walltime="02:00:00",
        queue=None if kind == "htcondor" else "main",
        account="climate",
        resource=resource,
        directives=directives.get(kind, []),
        prologue=["module load python"],
        python="/opt/python/bin/python",
        scratch="$TMPDIR/dask",
        interface="ib0",
        driver_walltime="1-00:00:00",
    )


@pytest.mark.parametrize("kind", QUEUES)
def test_job_scripts_are_as_they_were_compared_with_the_manuals(kind, monkeypatch):
    monkeypatch.chdir("/")
    logs = Path("/tmp/dpipe-golden/logs")
    spec = specification(kind)
    worker = worker_job(spec, "tls://10.0.0.1:8786", "dpipe-1", logs, None).job_script()
    driver = command_job(spec, ["python", "-m", "dpipe.cluster.driver", "/x"], logs, "d").job_script()
    assert f"{worker}\n---- driver\n{driver}" == (GOLDEN / f"{kind}.txt").read_text()


def test_a_job_script_names_files_and_holds_no_secret(tmp_path):
    from dpipe.cluster.certificates import make_certificates

    made = make_certificates(tmp_path / "tls")
    script = worker_job(specification("slurm"), "tls://10.0.0.1:8786", "dpipe-1", tmp_path / "logs", made)
    assert "--protocol tls --tls-ca-file" in script.job_script()
    assert "PRIVATE KEY" not in script.job_script()


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        (
            "slurm",
            "1|PENDING|Resources\n2|RUNNING|None\n3|FAILED|NonZeroExitCode\n4|PENDING|PartitionTimeLimit\n5|COMPLETED|None\n",
            {
                "1": JobState(WAITING, "Resources"),
                "2": JobState(RUNNING),
                "3": JobState(ENDED, "FAILED, NonZeroExitCode"),
                "4": JobState(REFUSED, "PartitionTimeLimit"),
                "5": JobState(ENDED, "COMPLETED"),
            },
        ),
        (
            "pbs",
            "Job id            Name             User              Time Use S Queue\n"
            "----------------  ---------------- ----------------  -------- - -----\n"
            "1234.server       dpipe            me                00:00:01 R workq\n"
            "1235.server       dpipe            me                       0 Q workq\n"
            "1236.server       dpipe            me                       0 H workq\n",
            {"1234": JobState(RUNNING), "1235": JobState(WAITING, "Q"), "1236": JobState(REFUSED, "H")},
        ),
        (
            "sge",
            "job-ID  prior   name       user         state submit/start at     queue          slots ja-task-ID\n"
            "------------------------------------------------------------------------------------------------\n"
            "     12 0.55500 dpipe      me           r     11/26/2026 01:00:00 all.q@sge1         2\n"
            "     13 0.55500 dpipe      me           qw    11/26/2026 01:00:00                    2\n"
            "     14 0.55500 dpipe      me           Eqw   11/26/2026 01:00:00                    2\n",
            {"12": JobState(RUNNING), "13": JobState(WAITING, "qw"), "14": JobState(REFUSED, "state Eqw")},
        ),
        (
            "lsf",
            "101 RUN\n102 PEND\n103 EXIT\n104 PSUSP\n",
            {
                "101": JobState(RUNNING),
                "102": JobState(WAITING, "PEND"),
                "103": JobState(ENDED, "EXIT"),
                "104": JobState(REFUSED, "PSUSP"),
            },
        ),
        (
            "htcondor",
            "7 1 undefined\n8 2 undefined\n9 5 Error from slot1: out of disk\n",
            {
                "7.0": JobState(WAITING),
                "8.0": JobState(RUNNING),
                "9.0": JobState(REFUSED, "Error from slot1: out of disk"),
            },
        ),
        (
            "oar",
            '{"42": {"state": "Running", "message": ""}, "43": {"state": "Waiting", "message": "FIFO"}}',
            {"42": JobState(RUNNING), "43": JobState(WAITING, "FIFO")},
        ),
    ],
)
def test_answers_of_queues_are_read(kind, text, found):
    read = SYSTEMS[kind].read(text)
    assert {job: read[job] for job in found} == found


def test_a_queue_that_is_not_here_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    job = worker_job(specification("pbs"), "tls://10.0.0.1:8786", "dpipe-1", tmp_path / "logs", None)
    with pytest.raises(ClusterError, match="command qsub cannot be run.*login node"):
        asyncio.run(submitted(job, tmp_path / "job.sh"))
    with pytest.raises(ClusterError, match="command qstat cannot be run"):
        asyncio.run(SYSTEMS["pbs"].states(["1"]))


def says(folder, monkeypatch, command, text):
    """Have a command of a queue, in a folder that holds no other, say something and fail."""
    path = folder / command
    path.write_text(f"#!/bin/sh\necho '{text}' >&2\nexit 1\n")
    path.chmod(0o700)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("slurm", "scancel: error: Invalid job id 7"),
        ("pbs", "qdel: Job has finished 7"),
        ("sge", "denied: job 7 does not exist"),
        ("lsf", "Job <7>: Job has already finished"),
        ("htcondor", "Could not find 7: Couldn t find all jobs in cluster 7"),
        ("oar", "7 not found"),
    ],
)
def test_a_job_that_has_ended_already_is_ended(tmp_path, monkeypatch, kind, text):
    queue = SYSTEMS[kind]
    says(tmp_path, monkeypatch, queue.cancel, text.replace("Couldn t", "Couldn'\\''t"))
    assert asyncio.run(queue.end("7")) is None
    says(tmp_path, monkeypatch, queue.cancel, "not permitted")
    with pytest.raises(ClusterError, match=f"{queue.cancel} failed with status 1: not permitted"):
        asyncio.run(queue.end("7"))


@pytest.mark.parametrize(
    ("kind", "text"), [("sge", "cell directory does not exist"), ("htcondor", "Could not find a schedd")]
)
def test_a_queue_that_fails_does_not_tell_that_jobs_have_ended(tmp_path, monkeypatch, kind, text):
    command = SYSTEMS[kind].command(["7"])[0]
    says(tmp_path, monkeypatch, command, text)
    with pytest.raises(ClusterError, match=f"{command} failed with status 1: {text}"):
        asyncio.run(SYSTEMS[kind].states(["7"]))


@pytest.mark.parametrize("walltime", [60, 300, 1200, 3600, 86400])
def test_workers_leave_before_their_wall_time(walltime):
    after, stagger = lifetime(walltime)
    assert 0 < stagger < after
    assert walltime - 600 <= after + stagger < walltime - 5


def test_the_last_lines_of_a_job_are_of_that_job(tmp_path):
    (tmp_path / "dpipe-12.err").write_text("a\n\nb\n")
    (tmp_path / "dpipe-112.err").write_text("other\n")
    assert last_lines(tmp_path, "12") == ["a", "b"]


def test_ctrl_c_stays_what_it_was():
    import signal

    before = signal.getsignal(signal.SIGINT)
    for name in [name for name in sys.modules if name.startswith("dask_jobqueue")]:
        sys.modules.pop(name)
    worker_job(specification("slurm"), "tls://10.0.0.1:8786", "dpipe-1", Path("/tmp/dpipe-golden/logs"), None)
    assert signal.getsignal(signal.SIGINT) is before
