"""Curves of any number of rows: exact, in bounded memory, with runs in files or not."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from dpipe.validate.curves import CURVE_POINTS, Run, ScoreRuns, ranking, ranking_curves, walk_ties
from dpipe.validate.states import ScoredBlock, Want

WANT = Want(ScoreRuns, "decision_function")


def made_runs(scores, positive, cuts, scratch=None):
    """Cut rows into blocks, and merge their runs."""
    runs = ScoreRuns((), ())
    for rows in np.split(np.arange(len(scores)), sorted(cuts)):
        answers = {"decision_function": scores[rows]}
        block = ScoredBlock(positive[rows].astype(int), None, answers, (0, 1), scratch)
        runs = runs.merge(ScoreRuns.of(block, WANT))
    return runs


@st.composite
def ranked_rows(draw):
    n = draw(st.integers(2, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([1, 3, 1000]))
    scores = rng.integers(-spread, spread + 1, n) / 7
    if draw(st.booleans()):
        scores = np.sort(scores)
    positive = rng.random(n) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    positive[:2] = True, False
    dtype = draw(st.sampled_from(["float64", "float32"]))
    return (
        scores.astype(dtype),
        positive,
        draw(st.lists(st.integers(0, n), max_size=8)),
        draw(st.integers(1, 70)),
    )


@given(ranked_rows())
@settings(max_examples=50, deadline=None)
def test_areas_equal_scikit_learns_whatever_the_blocks_and_the_room(rows):
    scores, positive, cuts, room = rows
    found = ranking(made_runs(scores, positive, cuts), "roc_auc", room)
    assert found.roc_auc == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    assert found.average_precision == pytest.approx(average_precision_score(positive, scores), abs=1e-12)


@given(ranked_rows())
@settings(max_examples=30, deadline=None)
def test_each_distinct_score_is_counted_once(rows):
    scores, positive, cuts, room = rows
    parts = list(walk_ties(made_runs(scores, positive, cuts), room))
    distinct, place = np.unique(scores, return_inverse=True)
    for kind, found in zip((positive, ~positive), zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(
            np.concatenate(found), np.bincount(place[kind], minlength=len(distinct))
        )


def test_areas_do_not_depend_on_the_room_or_the_order_of_blocks():
    rng = np.random.default_rng(1)
    scores, positive = rng.normal(size=3000), rng.random(3000) < 0.3
    runs = made_runs(scores, positive, [5, 700, 2999])
    back = ScoreRuns(runs.positives[::-1], runs.negatives[::-1])
    found = {ranking(given, "roc_auc", room).roc_auc for given in (runs, back) for room in (10, 1000, 10**6)}
    assert len(found) == 1


def test_runs_in_files_give_the_same_and_leave_no_other_files(tmp_path):
    rng = np.random.default_rng(2)
    scores, positive = rng.integers(0, 50, 900) / 10, rng.random(900) < 0.5
    held = made_runs(scores, positive, [100, 101, 600])
    for _ in range(2):  # a task that is run again writes the same files
        stored = made_runs(scores, positive, [100, 101, 600], str(tmp_path / "scratch"))
    assert all(run.held is None for run in (*stored.positives, *stored.negatives))
    assert ranking(stored, "roc_auc", 64) == ranking(held, "roc_auc", 64)
    files = sorted(tmp_path.glob("scratch/*"))
    assert len(files) == len(stored.positives) + len(stored.negatives)
    assert all(file.name.startswith("scores-") for file in files)
    read = np.concatenate([np.load(file) for file in files])
    np.testing.assert_array_equal(np.sort(read), np.sort(scores))


@pytest.mark.parametrize("layout", ["mixed", "sorted", "one tie"])
def test_the_walk_holds_a_bounded_number_of_rows(tmp_path, monkeypatch, layout):
    n, n_blocks, room = 60_000, 20, 2000
    rng = np.random.default_rng(3)
    scores = {"mixed": rng.normal(size=n), "sorted": np.arange(n) / n, "one tie": np.zeros(n)}[layout]
    positive = rng.random(n) < 0.2
    runs = made_runs(scores, positive, range(n // n_blocks, n, n // n_blocks), str(tmp_path))
    reads = []
    read = Run.read
    monkeypatch.setattr(Run, "read", lambda self, start, rows: reads.append(rows) or read(self, start, rows))
    tracemalloc.start()
    found = ranking(runs, "roc_auc", room)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.roc_auc == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    assert max(reads) <= room
    assert peak < room * 200
    # runs that do not overlap are read one after another, each in large parts
    assert len(reads) < (5 if layout == "sorted" else 2 * 2 * n_blocks) * n / room, len(reads)


def test_curves_are_points_of_scikit_learns_curves():
    rng = np.random.default_rng(4)
    positive = rng.random(20_000) < 0.1
    scores = np.round(rng.normal(size=20_000) + positive, 2)
    found = ranking(made_runs(scores, positive, range(0, 20_000, 3000)), "roc_auc", 500)
    roc, precision = ranking_curves(found, "yes")
    assert CURVE_POINTS / 2 < len(roc.x) <= CURVE_POINTS + 2
    false_rate, true_rate, _ = roc_curve(positive, scores, drop_intermediate=False)
    known = set(zip(false_rate.round(12), true_rate.round(12), strict=True))
    assert set(zip(np.round(roc.x, 12), np.round(roc.y, 12), strict=True)) <= known
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)
    assert list(roc.x) == sorted(roc.x)
    assert "area 0." in roc.note
    assert "positive: 'yes'" in roc.note
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(found.roc_auc, abs=1e-3)
    exact, recall, _ = precision_recall_curve(positive, scores)
    known = set(zip(recall.round(12), exact.round(12), strict=True))
    assert set(zip(np.round(precision.x, 12), np.round(precision.y, 12), strict=True)) <= known
