"""Isotonic calibration in ranges equals scikit-learn's on all scores at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from dpipe.composites import isotonic
from dpipe.composites.isotonic import fit_isotonics

OWN = np.array([1])


def scores_of(rows):
    return rows.X, rows


def fitted(scores, y, w=None, n_blocks=3):
    """Answer the readings block by block; give the calibrator, the readings, and the most ranges of one."""
    asked = fit_isotonics(scores_of, OWN)
    (want,) = next(asked)
    readings, most = 0, 0
    while True:
        state = None
        for rows in np.array_split(np.arange(len(scores)), n_blocks):
            found = want.of(scores[rows].reshape(-1, 1), y[rows], None if w is None else w[rows])
            state = found if state is None else state.merge(found)
        readings, most = readings + 1, max(most, len(state.scores[0].weight))
        try:
            (want,) = asked.send([state])
        except StopIteration as stop:
            return stop.value[0], readings, most


def assert_same(found, scores, y, w=None):
    wanted = IsotonicRegression(out_of_bounds="clip").fit(scores, y, w)
    np.testing.assert_allclose(found.X_thresholds_, wanted.X_thresholds_, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.y_thresholds_, wanted.y_thresholds_, rtol=1e-9, atol=1e-12)
    at = np.concatenate([scores, np.linspace(-2, 3, 50).astype(scores.dtype)])
    np.testing.assert_allclose(found.predict(at), wanted.predict(at), rtol=1e-6, atol=1e-9)


#: Among them scores that are one to scikit-learn, as saturated classifiers give them.
AWKWARD = [
    0.0,
    -0.0,
    1e-300,
    3e-200,
    1e-16,
    0.25,
    0.5,
    0.5 + 1e-16,
    0.75,
    1.0 - 2e-16,
    1.0 - 1e-16,
    1.0,
    7.0,
    -3.0,
]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from(AWKWARD), st.floats(-1e3, 1e3)), st.booleans(), st.integers(0, 3)
        ),
        min_size=2,
        max_size=60,
    ),
    st.integers(1, 4),
)
def test_any_scores_targets_and_weights(rows, n_blocks):
    scores, y, w = (np.array(each, dtype=float) for each in zip(*rows, strict=True))
    w[0] = w[-1] = 1.0
    assert_same(fitted(scores, y, w, n_blocks)[0], scores, y, w)


@pytest.mark.parametrize("kind", ["uniform", "ties", "saturated", "single", "reversed", "one class"])
def test_many_rows_in_few_readings_and_ranges(kind):
    rng = np.random.default_rng(0)
    p = rng.uniform(size=100_000)
    y = (rng.uniform(size=len(p)) < p).astype(float)
    scores = {
        "uniform": p,
        "ties": p.round(3),
        "saturated": 1.0 / (1.0 + np.exp(-60.0 * (p - 0.5))),
        "single": p.astype(np.float32),
        "reversed": -p,
        "one class": p,
    }[kind]
    y = np.ones_like(y) if kind == "one class" else y
    found, readings, most = fitted(scores, y)
    if kind in ("saturated", "single"):
        # long rows of scores that are one to scikit-learn: which of them it keeps depends on each
        far = (scores > 1e-9) & (scores < 1 - 1e-9)
        wanted = IsotonicRegression(out_of_bounds="clip").fit(scores, y)
        off = np.abs(found.predict(scores[far]) - wanted.predict(scores[far]))
        assert np.quantile(off, 0.999) < 1e-6
        assert off.max() < 0.01
    else:
        assert_same(found, scores, y)
    assert readings <= 12
    assert most <= 4 * isotonic._N_RANGES


def test_most_ranges_are_never_looked_into():
    rng = np.random.default_rng(1)
    p = rng.uniform(size=200_000)
    y = (rng.uniform(size=len(p)) < p).astype(float)
    asked = fit_isotonics(scores_of, OWN)
    (want,) = next(asked)
    counted = []
    while want is not None:
        state = want.of(p.reshape(-1, 1), y)
        counted.append(state.scores[0].weight.sum())
        try:
            (want,) = asked.send([state])
        except StopIteration:
            want = None
    assert counted[0] == counted[1] == len(p)
    assert counted[-1] < 0.1 * len(p)
