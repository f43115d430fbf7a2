"""What is said of submitted runs that have ended; those on a queue are tested on a real one."""

import json

import pytest

from dpipe.cli import main
from dpipe.cluster.specification import Specification
from dpipe.cluster.submission import (
    FAILED,
    FINISHED,
    RUNNING,
    Submission,
    cancel,
    read_submission,
    report,
    resume,
    status,
    submit,
)
from dpipe.errors import ClusterError, InputError


def submission(tmp_path, monkeypatch, state):
    monkeypatch.setenv("DPIPE_HOME", str(tmp_path))
    (tmp_path / "submitted" / "tips-1").mkdir(parents=True)
    cluster = {"kind": "slurm", "memory": "1 GiB"}
    return Submission("tips-1", ("run", "recipes.tips"), str(tmp_path), cluster).changed(state=state)


def test_a_finished_run_is_not_submitted_again(tmp_path, monkeypatch):
    made = submission(tmp_path, monkeypatch, FINISHED)
    assert read_submission("tips-1") == made
    assert status(made) == "tips-1: finished"
    with pytest.raises(InputError, match="tips-1 is finished: there is nothing left to do"):
        resume(made)


def test_a_run_that_has_failed_says_how_to_go_on(tmp_path, monkeypatch):
    made = submission(tmp_path, monkeypatch, FAILED).changed(says="exit status 1")
    assert status(made) == (
        "tips-1: failed, exit status 1; it goes on from what is recorded with: dpipe resume tips-1"
    )
    with pytest.raises(InputError, match=r"There is no submission 'other'.*there are: tips-1"):
        read_submission("other")


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "bad-1"}', None])
@pytest.mark.parametrize("command", ["status", "logs", "cancel", "resume"])
def test_a_record_that_cannot_be_read_is_named_and_hides_no_other(
    tmp_path, monkeypatch, capsys, text, command
):
    made = submission(tmp_path, monkeypatch, FINISHED)
    folder = tmp_path / "submitted" / "bad-1"
    folder.mkdir()
    if text is None:  # of a version with other keys
        text = json.dumps(
            {**json.loads((made.folder / "submission.json").read_text()), "cluster": {"colour": 1}}
        )
    (folder / "submission.json").write_text(text)
    assert main([command, "bad-1"]) == 1
    assert "dpipe: The record of submission 'bad-1', " in capsys.readouterr().err
    lines = report().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["tips-1", "bad-1"]
    assert "cannot be read" in lines[1]


def test_a_run_that_the_queue_did_not_end_is_not_called_cancelled(tmp_path, monkeypatch, capsys):
    made = submission(tmp_path, monkeypatch, RUNNING).changed(jobs=("1",))
    monkeypatch.setenv("PATH", str(tmp_path))  # where no queue is
    assert main(["cancel", made.name]) == 1
    assert "tips-1 is not cancelled: The command scancel cannot be run" in capsys.readouterr().err
    assert read_submission(made.name).state == RUNNING


def test_what_a_driver_writes_while_it_is_not_cancelled_stays(tmp_path, monkeypatch):
    made = submission(tmp_path, monkeypatch, RUNNING).changed(jobs=("1",))
    handed_over = json.loads((made.folder / "submission.json").read_text()) | {
        "jobs": ["1", "2"],
        "state": "continues",
    }
    (tmp_path / "written.json").write_text(json.dumps(handed_over))
    command = tmp_path / "scancel"
    command.write_text(f"#!/bin/sh\n/bin/cp {tmp_path}/written.json {made.folder}/submission.json\nexit 1\n")
    command.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="tips-1 is not cancelled: scancel failed with status 1"):
        cancel(made)
    again = read_submission(made.name)
    assert (again.jobs, again.state) == (("1", "2"), "continues")


def test_a_record_of_a_kind_without_a_queue_cannot_be_read(tmp_path, monkeypatch):
    made = submission(tmp_path, monkeypatch, RUNNING)
    made.changed(cluster={"kind": "local"})
    assert "cannot be read: its kind is 'local', which has no queue. It may be" in report()


def test_a_run_whose_folder_is_gone_is_not_resumed(tmp_path, monkeypatch):
    made = submission(tmp_path, monkeypatch, FAILED).changed(cwd=str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"was submitted from .*gone, which is no folder any more"):
        resume(made)


def test_where_submissions_cannot_be_kept_is_told(monkeypatch):
    monkeypatch.setenv("DPIPE_HOME", "/proc/none")
    assert report() == "nothing was submitted: there are none in /proc/none/submitted"
    with pytest.raises(
        InputError, match=r"Submissions are kept in /proc/none/submitted, which cannot be written"
    ):
        submit("recipes.tips", ("run",), Specification("slurm", memory="1 GiB"))
