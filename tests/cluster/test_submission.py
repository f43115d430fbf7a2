"""What is said of submitted runs that have ended; those on a queue are tested on a real one."""

import pytest

from dpipe.cluster.submission import FAILED, FINISHED, Submission, read_submission, resume, status
from dpipe.errors import InputError


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
