"""Workers of a cluster that train a model together, and what comes of it when one of them is killed."""

import os
import signal

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from xgboost import XGBClassifier, XGBRanker, XGBRegressor

import dpipe
from dpipe.errors import ClusterError, InputError
from dpipe.ledger.book import Ledger
from dpipe.train.boosting import team
from dpipe.train.fit import run_fit
from dpipe.train.prepare import prepare
from tests.train.boosting.rows import frame, groups, lazy, numbers, partitions, three_classes, trees, values

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SMALL = {"n_jobs": 1, "max_depth": 2}


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def rounds_of(prepared, client, workdir, told=None):
    """The fitted model, and the rounds that were learned, in the order in which they were."""
    rounds = []

    def listener(event):
        if "rounds" in event["pass"]:
            rounds.append(event["block"])
            if told is not None:
                told(event["block"])

    with Ledger(workdir) as ledger:
        recorded = prepared.recorded(ledger, "fit", lambda _: None)
        fitted, tallies = run_fit(prepared, listener, recorded=recorded)
    return fitted, rounds, tallies


def test_the_same_bits_as_in_one_process(client):
    made = frame()
    estimator = XGBClassifier(
        **SMALL, n_estimators=12, subsample=0.7, colsample_bytree=0.8, enable_categorical=True
    )
    for shares in (2, 3):
        options = {"validation": 0.2, "shares": shares}
        here = dpipe.fit(estimator, partitions(made), "y", **options)
        there = dpipe.fit(estimator, partitions(made), "y", **options, client=client)
        assert trees(here) == trees(there)
        assert here.evals_result() == there.evals_result()
    assert "by 3 learners together, each of its share of the rows, on 2 workers" in str(
        dpipe.plan(estimator, partitions(made), "y", shares=3, client=client)
    )


def test_groups_of_a_ranker(client):
    made = pd.DataFrame(values(), columns=list("abcdef")).assign(y=three_classes(), query=groups())
    estimator = XGBRanker(**SMALL, n_estimators=2)
    here, there = (
        dpipe.fit(estimator, partitions(made), "y", qid="query", shares=2, client=each)
        for each in (None, client)
    )
    assert trees(here) == trees(there)


def test_one_worker_trains_unless_more_are_asked_for(client):
    estimator = XGBRegressor(**SMALL, n_estimators=2)
    assert prepare(estimator, lazy(values()), lazy(numbers()), client=client).shares == 1


def test_what_a_worker_complains_of_is_said_at_once(client):
    X = values()
    X[-1, 0] = np.inf
    estimator = XGBRegressor(**SMALL, n_estimators=2)
    with pytest.raises(InputError, match="contains `inf`"):
        dpipe.fit(estimator, lazy(X), lazy(numbers()), shares=2, client=client)
    # and the workers are free for other work
    assert dpipe.fit(estimator, lazy(values()), lazy(numbers()), shares=2, client=client)._Booster


def _pids(client):
    return dict(sorted(client.run(os.getpid).items()))


@pytest.mark.parametrize("victim", [0, 1], ids=["leading", "other"])
def test_a_killed_worker_costs_the_rounds_since_the_last_record(victim, client, tmp_path, monkeypatch):
    client.wait_for_workers(2)
    n, at = 40, 15
    data = da.from_array(values(), chunks=(500, 6)), da.from_array(numbers(), chunks=500)
    estimator = XGBRegressor(**SMALL, n_estimators=n, subsample=0.8)
    expected = dpipe.fit(estimator, *data, shares=2)
    pids = list(_pids(client).values())
    killed = []

    def kill(i):
        if i >= at and not killed:
            killed.append(pids[victim])
            os.kill(killed[0], signal.SIGKILL)

    prepared = prepare(estimator, *data, shares=2, client=client)
    found, rounds, tallies = rounds_of(prepared, client, tmp_path, kill)
    assert killed
    assert trees(found) == trees(expected)
    assert sum(tally.rows for tally in tallies) == 4000
    # one group went on where the record of another was, ten rounds or a multiple of it after the beginning
    (again,) = [j for j in range(1, len(rounds)) if rounds[j] <= rounds[j - 1]]
    assert (rounds[again] - 1) % 10 == 0
    assert rounds[again] > 1
    assert rounds[again:] == list(range(rounds[again], n + 1))
    assert trees(dpipe.fit(estimator, *data, shares=2)) == trees(found)
    _, rounds, _ = rounds_of(prepared, client, tmp_path)
    assert rounds == []


def test_without_a_workdir_the_others_remember(client):
    client.wait_for_workers(2)
    data = da.from_array(values(), chunks=(500, 6)), da.from_array(numbers(), chunks=500)
    estimator = XGBRegressor(**SMALL, n_estimators=25, subsample=0.8)
    pids = list(_pids(client).values())
    rounds = []

    def listener(event):
        if "rounds" not in event["pass"]:
            return
        rounds.append(event["block"])
        if event["block"] == 15 and len(rounds) == 15:
            os.kill(pids[1], signal.SIGKILL)

    found, _ = run_fit(prepare(estimator, *data, shares=2, client=client), listener)
    assert trees(found) == trees(dpipe.fit(estimator, *data, shares=2))
    assert 25 < len(rounds) < 40


def test_groups_that_break_more_often_than_that(client, monkeypatch):
    monkeypatch.setattr(team, "_MOST_BROKEN", 0)
    client.wait_for_workers(2)
    data = da.from_array(values(), chunks=(500, 6)), da.from_array(numbers(), chunks=500)
    estimator = XGBRegressor(**SMALL, n_estimators=2000, subsample=0.8)
    pids = list(_pids(client).values())

    def listener(event):
        if "rounds" in event["pass"] and event["block"] == 3:
            os.kill(pids[1], signal.SIGKILL)

    with pytest.raises(
        ClusterError, match="the last one has lost 1 worker: most often they have no memory left"
    ):
        run_fit(prepare(estimator, *data, shares=2, client=client), listener)
