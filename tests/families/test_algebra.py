"""What the planner derives for one pass equals what two passes would find, and what scikit-learn finds."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, OrdinalEncoder, StandardScaler

from dpipe.train.fit import fit, plan
from tests.kernel_cases import array_blocks, assert_same, in_blocks

NUMBER_CHAINS = {
    "impute, standardise": make_pipeline(SimpleImputer(), StandardScaler()),
    "impute, to a range": make_pipeline(SimpleImputer(), MinMaxScaler()),
    "impute a constant, standardise": make_pipeline(
        SimpleImputer(strategy="constant", fill_value=7.0), StandardScaler()
    ),
    "impute a constant, to a range": make_pipeline(
        SimpleImputer(strategy="constant", fill_value=-3.0), MinMaxScaler()
    ),
    "impute, to a range, standardise": make_pipeline(
        SimpleImputer(), MinMaxScaler((-1, 3)), StandardScaler()
    ),
    "standardise, to a range": make_pipeline(StandardScaler(), MinMaxScaler()),
    "standardise, impute": make_pipeline(StandardScaler(), SimpleImputer()),
    "standardise, impute, standardise": make_pipeline(
        StandardScaler(with_mean=False), SimpleImputer(), StandardScaler(with_std=False)
    ),
    "to a range, clipped, standardise": make_pipeline(MinMaxScaler(clip=True), StandardScaler()),
    "impute twice": make_pipeline(SimpleImputer(), SimpleImputer(), MinMaxScaler()),
}
TEXT_CHAINS = {
    "impute, one hot": make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()),
    "impute, ordinal": make_pipeline(SimpleImputer(strategy="most_frequent"), OrdinalEncoder()),
    "impute a constant, one hot": make_pipeline(
        SimpleImputer(strategy="constant", fill_value="gap"), OneHotEncoder(drop="first")
    ),
    "impute a value that is there": make_pipeline(
        SimpleImputer(strategy="constant", fill_value="a"), OrdinalEncoder()
    ),
    "impute twice": make_pipeline(
        SimpleImputer(strategy="most_frequent"), SimpleImputer(strategy="most_frequent"), OneHotEncoder()
    ),
}

values = st.one_of(
    st.integers(-1000, 1000).map(float),
    st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda x: round(x, 3)),
    st.just(np.nan),
)


@st.composite
def number_blocks(draw):
    """Two columns in blocks of any length; the second one may be missing almost everywhere."""
    n = draw(st.integers(2, 25))
    first = draw(st.lists(values, min_size=n, max_size=n))
    second = [np.nan] * n
    for at in draw(st.sets(st.integers(0, n - 1), max_size=2)):
        second[at] = draw(st.integers(-50, 50).map(float))
    # scikit-learn would drop a column without any value; that is refused, and tested elsewhere
    first[draw(st.integers(0, n - 1))] = 4.0
    second[draw(st.integers(0, n - 1))] = -8.0
    return np.array([first, second]).T, draw(cuts(n))


@st.composite
def text_blocks(draw):
    n = draw(st.integers(1, 25))
    words = st.one_of(st.sampled_from(["a", "b", "c"]), st.just(np.nan))
    columns = {name: draw(st.lists(words, min_size=n, max_size=n)) for name in ("p", "q")}
    for column in columns.values():
        column[draw(st.integers(0, n - 1))] = draw(st.sampled_from(["a", "c"]))
    return pd.DataFrame(columns, dtype=object).to_numpy(), draw(cuts(n))


@st.composite
def cuts(draw, n):
    """Lengths of blocks that add up to n, none and one row among them."""
    ends = sorted(draw(st.lists(st.integers(0, n), max_size=5)))
    return tuple(np.diff([0, *ends, n]).tolist())


@pytest.mark.parametrize("name", NUMBER_CHAINS)
@settings(max_examples=25, deadline=None)
@given(case=number_blocks())
def test_chains_of_numbers(name, case):
    matrix, sizes = case
    estimator, X = NUMBER_CHAINS[name], array_blocks(matrix, sizes)
    assert plan(estimator, X).n_passes == 1
    result = fit(estimator, X)
    expected = clone(estimator).fit(matrix)
    for (_, ours), (_, theirs) in zip(result.steps, expected.steps, strict=True):
        for attribute in ("statistics_", "mean_", "data_min_", "data_max_"):
            if getattr(theirs, attribute, None) is not None:
                mine, wanted = (np.asarray(getattr(s, attribute), dtype=float) for s in (ours, theirs))
                np.testing.assert_allclose(mine, wanted, rtol=1e-9, atol=1e-9)
        if getattr(theirs, "var_", None) is not None:
            np.testing.assert_allclose(ours.var_, theirs.var_, rtol=1e-8, atol=1e-9)
            np.testing.assert_array_equal(ours.n_samples_seen_, theirs.n_samples_seen_)
    np.testing.assert_allclose(result.transform(matrix), expected.transform(matrix), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TEXT_CHAINS)
@settings(max_examples=25, deadline=None)
@given(case=text_blocks())
def test_chains_of_texts(name, case):
    matrix, sizes = case
    estimator, X = TEXT_CHAINS[name], array_blocks(matrix, sizes)
    assert plan(estimator, X).n_passes == 1
    assert_same(fit(estimator, X), clone(estimator).fit(matrix))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("name", NUMBER_CHAINS)
def test_derived_equals_the_two_pass_answer(name, share):
    """The same chain, once in one pass, once with each step fitted on the transformed blocks."""
    rng = np.random.default_rng(5)
    matrix = rng.normal(1e4, 3.0, size=(2000, 3))
    matrix[rng.random(2000) < share, 1] = np.nan
    value = array_blocks(matrix, (300,) * 6 + (200,))
    whole = fit(NUMBER_CHAINS[name], value)
    for step, (_, derived) in zip(NUMBER_CHAINS[name], whole.steps, strict=True):
        alone = fit(step, value)
        for attribute in ("mean_", "var_", "scale_", "min_", "data_min_", "data_max_", "statistics_"):
            if getattr(alone, attribute, None) is not None:
                mine, wanted = (np.asarray(getattr(s, attribute), dtype=float) for s in (derived, alone))
                np.testing.assert_allclose(mine, wanted, rtol=1e-8, atol=1e-10)
        value = value.map_blocks(alone.transform, dtype=float)


def test_the_density_of_one_hot_columns_is_derived():
    frame = pd.DataFrame({"t": list("abcab") * 4, "x": np.arange(20.0)})
    estimator = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(drop="first")), ["t"]),
        (StandardScaler(), ["x"]),
    )
    X = in_blocks(frame, (7, 13))
    assert plan(estimator, X).n_passes == 1
    assert_same(fit(estimator, X), clone(estimator).fit(frame))


@pytest.mark.parametrize("n_informative", [1, 2, 4])
def test_least_squares_of_deficient_rank(n_informative):
    """The least-norm solution, as scikit-learn's, where columns repeat each other."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(60, n_informative))
    frame = pd.DataFrame(base @ rng.normal(size=(n_informative, 5)), columns=list("abcde"))
    y = pd.Series(base.sum(axis=1) + 3.0, name="y")
    expected = LinearRegression().fit(frame, y)
    result = fit(LinearRegression(), in_blocks(frame.assign(y=y), (0, 31, 1, 28)), "y")
    np.testing.assert_allclose(result.coef_, expected.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(result.intercept_, expected.intercept_, rtol=1e-9)
    assert result.rank_ == expected.rank_ == n_informative


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1, -3.7e-9, 1e15 / 3])
@pytest.mark.parametrize(
    "estimator",
    [
        StandardScaler(),
        make_pipeline(SimpleImputer(), StandardScaler()),
        make_pipeline(StandardScaler(), StandardScaler()),
        make_pipeline(StandardScaler(with_mean=False), StandardScaler()),
        make_pipeline(MinMaxScaler(), StandardScaler()),
        make_pipeline(MinMaxScaler((3, 7)), StandardScaler()),
        make_pipeline(StandardScaler(), MinMaxScaler()),
        make_pipeline(SimpleImputer(), MinMaxScaler(), StandardScaler(), MinMaxScaler()),
    ],
    ids=lambda estimator: str(estimator).replace("\n", " "),
)
def test_constant_columns_stay_constant(estimator, value):
    """A column without spread is not blown up to one by the rounding of its moments."""
    matrix = np.full((103, 2), value)
    matrix[:, 1] = np.arange(103)
    result = fit(estimator, array_blocks(matrix, (1, 40, 0, 31, 31)))
    expected = clone(estimator).fit(matrix)
    unseen = np.array([[value, 5.0], [value + 2, 7.0]])
    rounding = 4e-16 * len(matrix) * abs(value)  # of scikit-learn's mean
    np.testing.assert_allclose(
        result.transform(unseen), expected.transform(unseen), rtol=1e-6, atol=1e-6 + rounding
    )
    scales = [
        (s.scale_, e.scale_)
        for s, e in zip(steps(result), steps(expected), strict=True)
        if hasattr(s, "scale_")
    ]
    for mine, wanted in scales:
        np.testing.assert_allclose(mine, wanted, rtol=1e-9)


def steps(estimator):
    return [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]
