"""States of blocks are monoids: merged in any grouping, with empty blocks anywhere, they are those of all rows."""

import functools

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from dpipe.blocks.regression import ClassMoments, CrossProducts
from dpipe.blocks.statistics import Custom, Extremes, LabelCounts, Moments, Nonzeros, Observed, ValueCounts
from dpipe.errors import InputError

RTOL = 1e-9


@st.composite
def blocks(draw, *, missing=True):
    """A matrix of three columns, labels and weights, cut into blocks of any length."""
    lengths = draw(st.lists(st.integers(0, 8), min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    n = sum(lengths)
    matrix = rng.normal(size=(n, 3)) * [1.0, 1e-3, 50.0] + [0.0, 1e4, -3.0]
    if missing:
        matrix[rng.random((n, 3)) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))] = np.nan
    y, w = rng.integers(0, 3, n), rng.random(n) * draw(st.sampled_from([0.0, 1.0, 1e3]))
    ends = np.cumsum(lengths)
    return [
        (matrix[end - size : end], y[end - size : end], w[end - size : end])
        for end, size in zip(ends, lengths, strict=True)
    ], (matrix, y, w)


def merged(parts):
    return functools.reduce(lambda a, b: a.merge(b), parts)


def from_the_right(parts):
    return functools.reduce(lambda b, a: a.merge(b), reversed(parts))


def close(a, b, scale=1.0):
    np.testing.assert_allclose(a, b, rtol=RTOL, atol=RTOL * scale)


def same_moments(a, b):
    assert (a.n_rows, a.dtype, a.weighted, a.sparse) == (b.n_rows, b.dtype, b.weighted, b.sparse)
    np.testing.assert_array_equal(a.observed, b.observed)
    close(a.count, b.count)
    close(a.mean, b.mean)
    np.testing.assert_allclose(a.m2, b.m2, rtol=1e-7, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(case=blocks(), weighted=st.booleans())
def test_moments(case, weighted):
    parts, (matrix, _, w) = case
    states = [Moments.of(X, None, v if weighted else None) for X, _, v in parts]
    found = merged(states)
    same_moments(found, from_the_right(states))
    weights = w if weighted else np.ones(len(w))
    for j in range(3):
        there = ~np.isnan(matrix[:, j])
        values, v = matrix[there, j], weights[there]
        assert found.observed[j] == there.sum()
        close(found.count[j], v.sum())
        if v.sum() > 0:
            mean = np.average(values, weights=v)
            close(found.mean[j], mean)
            wanted = (v * (values - mean) ** 2).sum()
            # means are rounded before they are subtracted: so much of the sum is beyond any double
            rounding = np.finfo(float).eps * np.abs(mean) * np.sqrt(wanted * v.sum())
            np.testing.assert_allclose(found.m2[j], wanted, rtol=RTOL, atol=1e-12 + 4 * rounding)
            close(found.variance[j], found.m2[j] / v.sum())


@settings(max_examples=40, deadline=None)
@given(case=blocks(), weighted=st.booleans())
def test_moments_of_sparse_blocks(case, weighted):
    parts, _ = case
    parts = [(np.where(np.abs(X) > 40, 0.0, X), y, w) for X, y, w in parts]
    dense = [Moments.of(X, None, w if weighted else None) for X, _, w in parts]
    sparse = [Moments.of(sp.csr_matrix(X), None, w if weighted else None) for X, _, w in parts]
    for a, b in zip([*dense, merged(dense)], [*sparse, merged(sparse)], strict=True):
        np.testing.assert_array_equal(a.observed, b.observed)
        close(a.count, b.count)
        close(a.mean, b.mean, scale=1e3)
        close(a.m2, b.m2, scale=1e3)


@settings(max_examples=40, deadline=None)
@given(case=blocks())
def test_extremes_and_observed(case):
    parts, (matrix, _, _) = case
    states = [Extremes.of(X) for X, _, _ in parts]
    found, other = merged(states), from_the_right(states)
    np.testing.assert_array_equal(found.low, other.low)
    np.testing.assert_array_equal(found.high, other.high)
    counted = merged([Observed.of(X) for X, _, _ in parts])
    assert found.n_rows == counted.n_rows == len(matrix)
    for j in range(3):
        values = matrix[~np.isnan(matrix[:, j]), j]
        assert found.observed[j] == counted.observed[j] == len(values)
        low, high = (values.min(), values.max()) if len(values) else (np.nan, np.nan)
        np.testing.assert_array_equal([found.low[j], found.high[j]], [low, high])


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    seed=st.integers(0, 2**20),
    kind=st.sampled_from(["text", "whole", "category", "object"]),
)
def test_value_counts(lengths, seed, kind):
    rng = np.random.default_rng(seed)
    words = pd.Series(rng.choice(["a", "b", "c", None], sum(lengths)), dtype="str")
    series = {
        "text": words,
        "whole": words.map({"a": 1, "b": 2, "c": 3}),
        "category": words.astype(pd.CategoricalDtype(["c", "a", "b", "never"])),
        "object": words.astype(object).where(words.notna(), None),
    }[kind]
    frame, ends = pd.DataFrame({"x": series}), np.cumsum(lengths)
    states = [ValueCounts.of(frame.iloc[end - size : end]) for end, size in zip(ends, lengths, strict=True)]
    for found in (merged(states), from_the_right(states)):
        assert found.n_rows == len(frame)
        assert found.counts[0] == series.value_counts()[lambda n: n > 0].to_dict()
        assert found.n_missing == (int(series.isna().sum()),)
        if found.n_missing[0]:
            assert (found.missing[0] is None) == (kind == "object")


def test_none_and_nan_in_one_column_are_refused():
    mixed = pd.DataFrame({"x": pd.Series(["a", None, np.nan], dtype=object)})
    with pytest.raises(InputError, match="holds both None and NaN"):
        ValueCounts.of(mixed)
    with pytest.raises(InputError, match="holds both None and NaN"):
        ValueCounts.of(mixed.iloc[:2]).merge(ValueCounts.of(mixed.iloc[2:]))


@settings(max_examples=30, deadline=None)
@given(case=blocks())
def test_label_counts(case):
    parts, (_, y, _) = case
    found = merged([LabelCounts.of(None, labels) for _, labels, _ in parts])
    values, counts = np.unique(y, return_counts=True)
    assert found.counts == dict(zip(values.tolist(), counts.tolist(), strict=True))
    np.testing.assert_array_equal(found.classes, values)
    assert found.classes.dtype == y.dtype
    text = merged([LabelCounts.of(None, np.array(["no", "yes", "maybe"])[labels]) for _, labels, _ in parts])
    assert text.classes.tolist() == sorted({["no", "yes", "maybe"][label] for label in y})


def test_missing_labels_are_counted():
    assert LabelCounts.of(None, np.array([0.0, np.nan, 1.0])).n_missing == 1
    assert LabelCounts.of(None, np.array(["a", None, "b"], dtype=object)).n_missing == 1


@settings(max_examples=40, deadline=None)
@given(case=blocks(missing=False), weighted=st.booleans(), two=st.booleans(), sparse=st.booleans())
def test_cross_products(case, weighted, two, sparse):
    parts, (matrix, y, w) = case
    target = np.stack([y, y**2], axis=1).astype(float) if two else y.astype(float)
    ends = np.cumsum([len(X) for X, _, _ in parts])
    cut = [target[end - len(X) : end] for (X, _, _), end in zip(parts, ends, strict=True)]
    states = [
        CrossProducts.of(sp.csr_matrix(X) if sparse else X, t, v if weighted else None)
        for (X, _, v), t in zip(parts, cut, strict=True)
    ]
    weights = w if weighted else np.ones(len(w))
    total = weights.sum()
    for found in (merged(states), from_the_right(states)):
        assert found.n_rows == len(matrix)
        close(found.weight, total)
        if total == 0:
            continue
        columns = target.reshape(len(matrix), -1)
        dx = matrix - np.average(matrix, axis=0, weights=weights)
        dy = columns - np.average(columns, axis=0, weights=weights)
        # the sparse kernel takes means off the products: it loses digits of a column far from zero
        np.testing.assert_allclose(
            found.xx, (dx * weights[:, None]).T @ dx, rtol=1e-7, atol=1e-2 * total if sparse else 1e-5
        )
        np.testing.assert_allclose(
            found.xy, (dx * weights[:, None]).T @ dy, rtol=1e-7, atol=1e-4 * total if sparse else 1e-6
        )


@settings(max_examples=30, deadline=None)
@given(case=blocks(missing=False), weighted=st.booleans())
def test_moments_by_class(case, weighted):
    parts, (matrix, y, w) = case
    found = merged([ClassMoments.of(X, labels, v if weighted else None) for X, labels, v in parts])
    assert sorted(found.by_class) == np.unique(y).tolist()
    for label, moments in found.by_class.items():
        same_moments(moments, Moments.of(matrix[y == label], None, w[y == label] if weighted else None))


@pytest.mark.parametrize("empty", [np.empty((0, 3)), np.empty((0, 3), dtype="float32")])
def test_a_block_without_rows_is_neutral(empty):
    X = np.random.default_rng(0).normal(size=(7, 3)).astype(empty.dtype)
    y, none = np.arange(7) % 2, np.empty(0, dtype=int)
    for make in (
        lambda X, y: Moments.of(X),
        lambda X, y: Moments.of(X, None, np.ones(len(X))),
        lambda X, y: Extremes.of(X),
        lambda X, y: Observed.of(X),
        lambda X, y: Nonzeros.of(X),
        CrossProducts.of,
        ClassMoments.of,
        LabelCounts.of,
    ):
        whole, nothing = make(X, y), make(empty, none)
        for found in (whole.merge(nothing), nothing.merge(whole), nothing.merge(whole).merge(nothing)):
            for name, value in vars(whole).items():
                if isinstance(value, dict):
                    assert getattr(found, name).keys() == value.keys()
                else:
                    np.testing.assert_array_equal(getattr(found, name), value)


def test_stored_entries():
    X = sp.csr_matrix([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    assert Nonzeros.of(X).merge(Nonzeros.of(X.toarray())) == Nonzeros(6, 8)


def test_what_is_not_stored_is_not_observed():
    X = sp.csr_matrix([[0.0, 1.0, np.nan], [0.0, 2.0, 3.0]])
    assert Observed.of(X).observed.tolist() == [0, 2, 1]


def test_a_third_party_s_merge_is_kept_in_order():
    assert (
        Custom("a", str.__add__).merge(Custom("b", str.__add__)).merge(Custom("c", str.__add__)).state
        == "abc"
    )


def test_constant_columns_have_no_spread_at_all():
    X = np.full((1001, 2), 0.1)
    X[::3, 1] = np.nan
    found = merged([Moments.of(part) for part in np.array_split(X, 7)])
    assert found.m2.tolist() == [0.0, 0.0]
    assert found.mean.tolist() == [0.1, 0.1]


def test_moments_far_from_zero_keep_their_digits():
    values = np.random.default_rng(0).normal(1e9, 1e-2, size=(10_000, 1))
    found = merged([Moments.of(part) for part in np.array_split(values, 13)])
    exact = np.var(values.astype(np.longdouble), axis=0)
    np.testing.assert_allclose(found.variance, exact.astype(float), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_of_many_columns_are_those_of_each(dtype):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(40, 1300)) * rng.choice([1e-3, 1.0, 1e3], 1300) + 5500).astype(dtype)
    X[:, 3] = dtype(0.1)
    X[7, 600] = X[0, 1299] = np.nan
    X[:, 700] = np.nan
    X[5, 900] = np.inf
    many = Moments.of(X)
    parts = [Moments.of(X[:, j : j + 100]) for j in range(0, 1300, 100)]
    for name in ("count", "observed", "mean", "m2"):
        wanted = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(getattr(many, name), wanted, rtol=1e-9, err_msg=name)
    assert many.m2[3] == 0
