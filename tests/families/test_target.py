"""What follows a TargetEncoder is fitted on its cross-fitted output, with the folds of scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler, TargetEncoder

from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.train.fit import fit, plan
from tests.helpers import raise_if_computes
from tests.kernel_cases import array_blocks, assert_same, awkward_frame, in_blocks, parquet_blocks

SIZES = (0, 117, 1, 0, 100, 82, 0)
FRAME = awkward_frame(sum(SIZES), 3)
RNG = np.random.default_rng(0)
TARGETS = {
    "number": pd.Series(RNG.normal(size=len(FRAME)) + FRAME["small"]),
    "whole": pd.Series(RNG.integers(0, 4, len(FRAME))),
    "flag": pd.Series(RNG.random(len(FRAME)) < 0.4),
    "text": pd.Series(RNG.choice(["b", "a", "c"], len(FRAME), p=[0.1, 0.2, 0.7])),
}
CVS = [
    TargetEncoder(shuffle=False, cv=3),
    TargetEncoder(random_state=3, smooth=2.0),
    TargetEncoder(cv=KFold(4, shuffle=True, random_state=1)),
    TargetEncoder(cv=KFold(3), smooth=0),
    TargetEncoder(cv=StratifiedKFold(3, shuffle=True, random_state=2)),
]

pytestmark = pytest.mark.filterwarnings("ignore:`TargetEncoder.shuffle` and:FutureWarning")


def in_parquet(columns, y, folder):
    return parquet_blocks(FRAME[columns].assign(target=TARGETS[y]), folder, SIZES)


@pytest.mark.parametrize("y", TARGETS)
@pytest.mark.parametrize("encoder", CVS, ids=str)
def test_the_next_step_is_fitted_on_the_cross_fitted_output(encoder, y, tmp_path):
    if y == "number" and isinstance(encoder.cv, StratifiedKFold):
        with pytest.raises(InputError, match="y is continuous. Use a KFold"):
            fit(make_pipeline(encoder, StandardScaler()), in_parquet(["text"], y, tmp_path), "target")
        return
    columns = ["text_holes", "kind", "small"]
    estimator = make_pipeline(encoder, StandardScaler())
    expected = clone(estimator).fit(FRAME[columns], TARGETS[y])
    assert_same(fit(estimator, in_parquet(columns, y, tmp_path), "target"), expected)


@pytest.mark.parametrize("y", ["number", "text"])
def test_arrays_and_given_categories(y):
    values = FRAME[["small", "whole_positive"]].to_numpy()
    encoder = TargetEncoder(categories=[[1, 2], [3, 4]], cv=KFold(3, shuffle=True, random_state=5))
    estimator = make_pipeline(encoder, StandardScaler())
    target = TARGETS[y].to_numpy(dtype=None if y == "number" else object)
    expected = clone(estimator).fit(values, target)
    result = fit(estimator, array_blocks(values, SIZES), array_blocks(target, SIZES))
    assert_same(result, expected)


def tree(last, encoder):
    parts = [(encoder, ["text", "kind"]), (OneHotEncoder(), ["small"]), (StandardScaler(), ["plain"])]
    return make_pipeline(make_column_transformer(*parts), last)


def test_in_a_column_transformer(tmp_path):
    encoder = TargetEncoder(cv=KFold(3, shuffle=True, random_state=0))
    estimator = tree(Ridge(tol=1e-12), encoder)
    expected = clone(estimator).fit(FRAME[["text", "kind", "small", "plain"]], TARGETS["number"])
    X = in_parquet(["text", "kind", "small", "plain"], "number", tmp_path)
    result = fit(estimator, X, "target")
    np.testing.assert_allclose(result[-1].coef_, expected[-1].coef_, rtol=1e-7)
    # the fitted pipeline transforms by what all rows have taught
    assert_same(
        result[0].named_transformers_["targetencoder"], expected[0].named_transformers_["targetencoder"]
    )


def test_in_a_union_and_twice_in_a_row(tmp_path):
    encoder = TargetEncoder(cv=StratifiedKFold(3))
    union = make_union(encoder, make_pipeline(TargetEncoder(cv=KFold(2)), MinMaxScaler()))
    for estimator in (
        make_pipeline(union, PCA(2)),
        make_pipeline(encoder, TargetEncoder(cv=KFold(4), target_type="continuous"), StandardScaler()),
    ):
        expected = clone(estimator).fit(FRAME[["text", "kind"]], TARGETS["whole"])
        assert_same(fit(estimator, in_parquet(["text", "kind"], "whole", tmp_path), "target"), expected, 1e-7)


@pytest.mark.parametrize("epochs", [1, 4])
def test_before_a_learner_in_order(tmp_path, epochs):
    encoder = TargetEncoder(cv=StratifiedKFold(3))
    X = in_parquet(["text", "kind"], "flag", tmp_path)
    result = fit(
        make_pipeline(encoder, SGDClassifier(random_state=0, shuffle=False)), X, "target", epochs=epochs
    )
    made = clone(encoder).fit_transform(FRAME[["text", "kind"]], TARGETS["flag"])
    expected = SGDClassifier(random_state=0, shuffle=False)
    for _ in range(epochs):
        for end, size in zip(np.cumsum(SIZES), SIZES, strict=True):
            if size:
                rows = slice(end - size, end)
                expected.partial_fit(made[rows], TARGETS["flag"][rows], classes=[False, True])
    np.testing.assert_allclose(result[-1].coef_, expected.coef_, rtol=1e-7)


def test_before_a_learner_that_reads_often(tmp_path):
    encoder = TargetEncoder(cv=StratifiedKFold(3, shuffle=True, random_state=1))
    estimator = make_pipeline(encoder, LogisticRegression(tol=1e-10))
    expected = clone(estimator).fit(FRAME[["text", "kind"]], TARGETS["text"])
    result = fit(estimator, in_parquet(["text", "kind"], "text", tmp_path), "target")
    np.testing.assert_allclose(result[-1].coef_, expected[-1].coef_, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("y", TARGETS)
def test_folds_without_a_seed_are_drawn_block_by_block(y):
    """No row is encoded by its own target; blocks of unknown length do, and the same bits come out."""
    names = pd.DataFrame({"name": [f"row {i}" for i in range(len(FRAME))]})
    estimator = make_pipeline(TargetEncoder(smooth=0), StandardScaler(with_std=False))
    # values that stand once each are encoded by the mean of other folds: nothing of the own target is left
    once = fit(estimator, in_blocks(names, SIZES), in_blocks(TARGETS[y], SIZES))
    assert (once[-1].var_ is None) or np.all(once[-1].var_ < 0.05 * np.var(once[0].encodings_[0]))
    often = [fit(estimator, in_blocks(FRAME[["text"]], SIZES), in_blocks(TARGETS[y], SIZES)) for _ in "ab"]
    assert_same(often[0], often[1], 0)
    expected = clone(estimator).fit(FRAME[["text"]], TARGETS[y])
    np.testing.assert_allclose(often[0][-1].mean_, expected[-1].mean_, atol=0.05)


def test_passes_are_as_few_as_the_folds_allow(tmp_path):
    X = in_parquet(["text"], "flag", tmp_path)

    def n_passes(*steps):
        with raise_if_computes():
            return plan(make_pipeline(*steps), X, "target").n_passes

    assert n_passes(TargetEncoder()) == 1
    assert n_passes(TargetEncoder(), StandardScaler()) == 2
    assert n_passes(TargetEncoder(cv=KFold(3)), StandardScaler()) == 2
    assert n_passes(TargetEncoder(cv=StratifiedKFold(3)), StandardScaler()) == 3


@pytest.mark.parametrize(
    "cv", [KFold(3), KFold(3, shuffle=True, random_state=2), StratifiedKFold(3, shuffle=True, random_state=1)]
)
def test_blocks_of_unknown_length_are_counted_first(cv):
    model = make_pipeline(TargetEncoder(cv=cv), StandardScaler())
    found = fit(model, in_blocks(FRAME[["text"]], SIZES), in_blocks(TARGETS["flag"], SIZES))
    expected = clone(model).fit(FRAME[["text"]], TARGETS["flag"])
    np.testing.assert_allclose(found[-1].mean_, expected[-1].mean_, rtol=1e-9)
    np.testing.assert_allclose(found[-1].var_, expected[-1].var_, rtol=1e-9)


def test_what_cannot_be_encoded_is_refused(tmp_path):
    X, y = in_blocks(FRAME[["text"]], SIZES), in_blocks(TARGETS["flag"], SIZES)
    for encoder in (
        TargetEncoder(cv=GroupKFold(3)),
        TargetEncoder(cv=KFold(3, shuffle=True, random_state=np.random.RandomState(0))),
    ):
        with pytest.raises(
            UnsupportedEstimatorError, match="Use a number of folds, a KFold or a StratifiedKFold"
        ):
            fit(encoder, X, y)
    with pytest.raises(InputError, match="needs three classes"):
        fit(TargetEncoder(target_type="multiclass"), X, y)
    with pytest.raises(InputError, match="more than 1,000 different labels"):
        fit(TargetEncoder(), np.zeros((3000, 1)), np.arange(3000) % 1500)
    with pytest.raises(InputError, match="12 labels are missing|labels are missing in y"):
        fit(TargetEncoder(), X, in_blocks(FRAME["text_holes"], SIZES))
    with pytest.raises(InputError, match="y holds NaN or infinity"):
        fit(TargetEncoder(), X, in_blocks(FRAME["holes"], SIZES))
    rare = (np.arange(300) == 7).astype(int)
    with pytest.raises(InputError, match="more than the rows of each class"):
        fit(make_pipeline(TargetEncoder(cv=StratifiedKFold(300)), StandardScaler()), np.zeros((300, 1)), rare)
