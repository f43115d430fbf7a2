"""Learners that would wait for ever: they are told from slow ones, and their worker begins anew."""

import os
import threading
import time

import numpy as np
import pytest
from distributed import Client, LocalCluster
from xgboost import XGBRegressor

import dpipe
from dpipe.errors import InputError
from dpipe.train.boosting import stuck
from tests.train.boosting.rows import lazy, numbers, values

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def started(target):
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_who_computes_is_waited_for_and_who_does_nothing_is_not(monkeypatch):
    monkeypatch.setattr(stuck, "_IDLE_S", 0.5)
    until = time.monotonic() + 1.5

    def compute():
        while time.monotonic() < until:
            pass

    assert stuck.ended([started(compute)], lambda: True)
    assert time.monotonic() >= until
    never = threading.Event()
    waiting = started(never.wait)
    assert not stuck.ended([waiting, started(compute)], lambda: True)
    never.set()
    assert stuck.ended([waiting], lambda: True)


def test_nobody_counts_as_stuck_while_the_group_lives(monkeypatch):
    monkeypatch.setattr(stuck, "_IDLE_S", 0.2)
    idle = started(lambda: time.sleep(1))
    assert stuck.ended([idle], lambda: False)
    assert not idle.is_alive()


def leave_behind():
    """Leave a thread to itself that ends at once, and one that never does."""
    pid = os.getpid()
    stuck.renew_worker([started(lambda: None)], 0.2)
    time.sleep(1)
    stuck.renew_worker([started(threading.Event().wait)], 0.2)
    return pid


def test_the_worker_of_a_stuck_learner_begins_anew():
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        before = client.submit(leave_behind).result()
        deadline = time.monotonic() + 60
        now = before
        while now == before and time.monotonic() < deadline:
            time.sleep(0.2)
            now = client.submit(os.getpid, pure=False).result()
        assert now != before


@pytest.mark.slow
def test_groups_that_break_while_their_matrices_are_built():
    """XGBoost itself waits for ever in about one of a hundred."""
    spoiled = values()
    spoiled[-1, 0] = np.inf
    estimator = XGBRegressor(n_jobs=1, max_depth=2, n_estimators=2)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        for _ in range(300):
            with pytest.raises(InputError, match="contains `inf`"):
                dpipe.fit(estimator, lazy(spoiled), lazy(numbers()), shares=2, client=client)
            began = time.monotonic()
            assert dpipe.fit(estimator, lazy(values()), lazy(numbers()), shares=2, client=client)._Booster
            assert time.monotonic() - began < 60
