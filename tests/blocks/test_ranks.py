"""Order statistics are exact, for any values in any blocks, also when memory is short."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpipe.blocks import ranks
from dpipe.blocks.ranks import Sampling, first_look, select
from dpipe.blocks.rows import RowsAt
from dpipe.errors import InputError

AWKWARD = {
    "normal": lambda rng, n: rng.normal(size=n),
    "few values": lambda rng, n: rng.integers(0, 3, n).astype(float),
    "one value": lambda rng, n: np.full(n, 3.0),
    "sorted": lambda rng, n: np.sort(rng.normal(size=n)),
    "a heavy value": lambda rng, n: np.where(rng.random(n) < 0.6, 1.0, rng.normal(1.0, 1e-3, n)),
    "long tail": lambda rng, n: rng.exponential(size=n) ** 8,
    "gaps": lambda rng, n: np.where(rng.random(n) < 0.4, np.nan, rng.normal(size=n)),
}


def drive(refinement, blocks):
    """Answer a refinement from blocks; give its result, and how many readings it took."""
    readings = 0
    try:
        wants = next(refinement)
        while True:
            readings += 1
            wants = refinement.send([read(want, blocks) for want in wants])
    except StopIteration as stop:
        return stop.value, readings


def read(want, blocks):
    """Read blocks, of which a second column is taken for weights."""
    total, first, state = sum(map(len, blocks)), 0, None
    for block in blocks:
        at = (RowsAt(first, total),) if getattr(want, "placed", False) else ()
        found = want.of(block[:, :1], None, block[:, 1] if block.shape[1] > 1 else None, *at)
        state = found if state is None else state.merge(found)
        first += len(block)
    return state


def check(values, blocks, wanted, sample, most_readings, looked=None):
    ordered = np.sort(values[~np.isnan(values)])
    found, readings = drive(select(sample, [[rank + 1 for rank in wanted]], looked), blocks)
    assert found == [{rank + 1: ordered[rank] for rank in wanted}]
    assert readings <= most_readings


@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.parametrize("n_ranks", [2, 500])
def test_two_or_three_readings_find_exact_ranks(kind, n_ranks, monkeypatch):
    values = AWKWARD[kind](np.random.default_rng(0), 60_000)
    blocks = [part.reshape(-1, 1) for part in np.array_split(values, 7)]
    n = int((~np.isnan(values)).sum())
    wanted = sorted({*np.linspace(0, n - 1, n_ranks).astype(int).tolist(), n // 2, (n - 1) // 2})
    monkeypatch.setattr(ranks, "MOST_INSIDE", 20_000)
    check(values, blocks, wanted, read(Sampling(500), blocks), 1 if n_ranks == 2 else 2)


@pytest.mark.parametrize("kind", AWKWARD)
def test_little_memory_takes_more_readings_and_gives_the_same(kind, monkeypatch):
    monkeypatch.setattr(ranks, "MOST_INSIDE", 200)
    monkeypatch.setattr(ranks, "KEPT", 40)
    values = AWKWARD[kind](np.random.default_rng(1), 20_000)
    blocks = [part.reshape(-1, 1) for part in np.array_split(values, 5)]
    n = int((~np.isnan(values)).sum())
    wanted = [0, n // 4, n // 2, n - 1]
    check(values, blocks, wanted, read(Sampling(50), blocks), 12)


@pytest.mark.parametrize("kind", AWKWARD)
def test_a_look_at_some_blocks_may_miss_and_is_mended(kind):
    values = AWKWARD[kind](np.random.default_rng(2), 40_000)
    blocks = [part.reshape(-1, 1) for part in np.array_split(values, 16)]
    few = [Sampling(300).of(blocks[i], None, None, RowsAt(0, 40_000)) for i in (2, 6)]
    partial = few[0].merge(few[1])
    assert not partial.is_complete
    look = first_look(partial, [0.25, 0.5])
    n = int((~np.isnan(values)).sum())
    wanted = [n // 4, n // 2]
    check(values, blocks, wanted, read(Sampling(300), blocks), 2, (look, read(look, blocks)))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(allow_infinity=False, width=32), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    data=st.data(),
)
def test_any_values_in_any_blocks(values, cuts, data):
    column = np.array(values, dtype=float)
    blocks = [part.reshape(-1, 1) for part in np.split(column, sorted(min(cut, len(values)) for cut in cuts))]
    n = int((~np.isnan(column)).sum())
    wanted = data.draw(st.lists(st.integers(0, max(n - 1, 0)), unique=True, max_size=5)) if n else []
    check(column, blocks, wanted, read(Sampling(7), blocks), 3)


WEIGHTS = {
    "counts": lambda rng, n: rng.integers(0, 5, n).astype(float),
    "fractions": lambda rng, n: rng.random(n) * 1e-4,
    "a few heavy rows": lambda rng, n: np.where(rng.random(n) < 1e-3, 1e4, rng.random(n)),
    "mostly nothing": lambda rng, n: np.where(rng.random(n) < 0.98, 0.0, 2.0),
}


def check_weighted(column, weights, blocks, wanted, sample, most_readings, looked=None):
    """Compare with the sorted column: an amount may be short of its value's by rounding only."""
    held = ~np.isnan(column) & (weights > 0)
    order = np.argsort(column[held], kind="stable")
    ordered, ends = column[held][order], np.cumsum(weights[held][order])
    found, readings = drive(select(sample, [wanted], looked), blocks)
    assert sorted(found[0]) == sorted(wanted)
    for amount, value in found[0].items():
        below = ends[np.searchsorted(ordered, value, side="left") - 1] if value > ordered[0] else 0.0
        up_to = ends[np.searchsorted(ordered, value, side="right") - 1]
        assert below - 1e-12 * ends[-1] <= amount <= up_to + 1e-12 * ends[-1]
    assert readings <= most_readings


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.parametrize("most_inside", [200_000, 400])
def test_amounts_of_weights(kind, weights, most_inside, monkeypatch):
    monkeypatch.setattr(ranks, "MOST_INSIDE", most_inside)
    monkeypatch.setattr(ranks, "KEPT", 100)
    rng = np.random.default_rng(3)
    column, w = AWKWARD[kind](rng, 30_000), WEIGHTS[weights](rng, 30_000)
    blocks = np.array_split(np.stack([column, w], axis=1), 9)
    sample = read(Sampling(200), blocks)
    assert sample.amount == pytest.approx(w[~np.isnan(column)].sum())
    wanted = [sample.amount[0] * share for share in (1e-6, 0.1, 0.5, 0.999, 1)]
    check_weighted(column, w, blocks, wanted, sample, 2 if most_inside > 30_000 else 12)
    few = [Sampling(200).of(blocks[i][:, :1], None, blocks[i][:, 1], RowsAt(0, 30_000)) for i in (2, 6)]
    look = first_look(few[0].merge(few[1]), [0.1, 0.5])
    check_weighted(column, w, blocks, wanted, sample, 12, (look, read(look, blocks)))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
def test_any_weights_in_any_blocks(rows, cuts):
    table = np.array(rows, dtype=float)
    blocks = np.split(table, sorted(min(cut, len(rows)) for cut in cuts))
    total = int(table[:, 1].sum())
    check_weighted(*table.T, blocks, range(1, total + 1), read(Sampling(7), blocks), 3)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_row_that_is_drawn_twice_is_no_second_value(weighted):
    # of ten rows seven are drawn, some of them more than once; two values count
    for first in range(10):
        for second in set(range(10)) - {first}:
            column, w = np.full(10, 5.0 if weighted else np.nan), np.zeros(10) if weighted else np.ones(10)
            column[[first, second]], w[[first, second]] = [1.0, 0.0], 1.0
            blocks = [np.stack([column, w], axis=1) if weighted else column[:, None]]
            found, _ = drive(select(read(Sampling(7), blocks), [[1, 2]]), blocks)
            assert found == [{1: 0.0, 2: 1.0}]


def test_weights_below_zero_are_refused():
    with pytest.raises(InputError, match=r"holds -1\.0, but must be 0 or more"):
        Sampling().of(np.ones((2, 1)), None, np.array([1.0, -1.0]))
