"""Merge passes with large states: few of them wait, and runs of blocks are added up in place."""

import threading
import weakref
from typing import ClassVar

import dask
import dask.array as da
import numpy as np
import pytest
from dask.task_spec import TaskRef

from dpipe.blocks.rows import Rows
from dpipe.collect.source import open_source
from dpipe.ledger.book import Ledger, Reading
from dpipe.run.graph import GraphBuilder, add_inputs
from dpipe.run.pages import Pages, n_states_held
from dpipe.run.scan import add_scan

N, WIDTH = 130, 5
VALUES = np.random.default_rng(0).normal(size=(2 * N + 3, WIDTH))
SOURCE = open_source(da.from_array(VALUES, chunks=((1, 2) + (2,) * N, (WIDTH,))))


class Total:
    """A sum that counts how many of its kind there are at a time."""

    alive: ClassVar = weakref.WeakSet()
    most = 0
    lock = threading.Lock()

    def __init__(self, values):
        self.values = values
        with Total.lock:
            Total.alive.add(self)
            Total.most = max(Total.most, len(Total.alive))

    def merge(self, other):
        return Total(self.values + other.values)


class Collect:
    """Adds up rows: each block by itself, or a run of blocks."""

    def __call__(self, rows: Rows, known):
        return (Total(np.asarray(rows.X).sum(axis=0)),)

    def add(self, sums, rows: Rows, known):
        sums.append(np.asarray(rows.X).sum(axis=0))
        return ()

    def added_up(self, sums):
        return (Total(np.sum(sums, axis=0)),)


class Plain(Collect):
    """Gives states that a ledger can keep."""

    def kept(self, states):
        return tuple(state.values for state in states)

    def revived(self, kept):
        return tuple(map(Total, kept))


def scanned(workers=1, *, collect=None, pages=None, **how):
    """Scan all blocks, with so many threads; give the sum and the most states that there were."""
    graph = GraphBuilder("token")
    inputs = add_inputs(graph, SOURCE)
    key = add_scan(
        graph, inputs, collect or Collect(), graph.add("known", dict), name="pass", pages=pages, **how
    )
    end = graph.add("end", lambda found: (found.states[0].values, found.tally), TaskRef(key))
    Total.most = 0
    values, tally = dask.threaded.get(graph.tasks, end, num_workers=workers)
    assert tally.rows == len(VALUES)
    assert tally.n_blocks == SOURCE.n_blocks
    return values, Total.most


@pytest.mark.parametrize("run", [1, 3, 8, 500])
def test_chained_merges_give_the_same_bits(run):
    tree, _ = scanned(run=run)
    for workers in (1, 2, 4):
        chained, _ = scanned(workers, run=run, chained=True)
        np.testing.assert_array_equal(chained, tree)
    np.testing.assert_allclose(tree, VALUES.sum(axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("run", [1, 3])
def test_few_states_wait_where_merges_are_chained(run):
    n_states = -(-SOURCE.n_blocks // run)
    _, most = scanned(run=run, chained=True)
    assert most <= n_states_held(n_states, slots=1)
    _, all_at_once = scanned(run=run)
    assert all_at_once > most


def test_what_is_held_grows_by_one_state_for_eight_times_the_blocks():
    held = [n_states_held(n, slots=2) for n in (1, 8, 64, 512, 4096)]
    assert held == [2, 6, 7, 8, 9]


@pytest.mark.parametrize("chained", [False, True])
def test_runs_on_record_are_not_read_again(tmp_path, chained):
    keys = [f"run {i}" for i in range(-(-SOURCE.n_blocks // 3))]
    sizes = [min(3, SOURCE.n_blocks - 3 * i) for i in range(len(keys))]
    with Ledger(tmp_path) as ledger:
        pages = Pages.of(ledger.pen, keys, ledger.find, sizes)
        assert pages.n_recorded == 0
        first, _ = scanned(collect=Plain(), pages=pages, run=3, chained=chained)
    ledger = Reading(tmp_path)
    whole = Pages.of(None, keys, ledger.find, sizes)
    assert whole.n_recorded == SOURCE.n_blocks
    changed = Pages.of(None, ["another", *keys[1:]], ledger.find, sizes)
    assert changed.n_recorded == SOURCE.n_blocks - 3
    for pages in (whole, changed):
        again, _ = scanned(collect=Plain(), pages=pages, run=3, chained=chained)
        np.testing.assert_array_equal(again, first)
