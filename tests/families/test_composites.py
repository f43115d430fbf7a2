"""Pipelines, column transformers and unions, fitted from blocks, are what scikit-learn fits in memory."""

import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline, make_union
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
)

from dpipe.blocks.table import plain_strings
from dpipe.errors import InputError
from dpipe.train.fit import fit
from tests.kernel_cases import (
    array_blocks,
    assert_same,
    assert_same_array,
    awkward_frame,
    csr_blocks,
    in_blocks,
    parquet_blocks,
)

NUMBERS = ["plain", "holes", "whole", "Single"]
TEXTS = ["text", "text_holes", "kind"]
FRAME = awkward_frame()[[*NUMBERS, *TEXTS, "flag", "small", "more"]]


def numeric():
    return make_pipeline(SimpleImputer(), StandardScaler())


def texts(**options):
    return make_pipeline(
        SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore", **options)
    )


def tree(**options):
    return ColumnTransformer([("num", numeric(), NUMBERS), ("text", texts(), TEXTS)], **options)


def double(frame):
    return frame * 2


def with_sum(frame):
    return frame.assign(total=frame["plain"] + frame["more"])


def names_of_sum(transformer, names):
    return [*names, "total"]


COLUMN_TREES = {
    "names": tree(),
    "dense": tree(sparse_threshold=0),
    "sparse": tree(sparse_threshold=1.0),
    "short names": tree(verbose_feature_names_out=False),
    "remainder kept": tree(remainder="passthrough"),
    "remainder scaled": tree(remainder=MinMaxScaler()),
    "remainder scaled, sparse": tree(remainder=make_pipeline(MinMaxScaler()), sparse_threshold=1.0),
    "positions": make_column_transformer((numeric(), [0, 1]), (texts(), [-5]), (StandardScaler(), [2])),
    "slices": make_column_transformer((numeric(), slice(0, 2)), (texts(), slice("text", "kind"))),
    "masks": make_column_transformer(
        (numeric(), [True] * 4 + [False] * 6), (texts(), np.array([False] * 4 + [True] * 3 + [False] * 3))
    ),
    "selectors": make_column_transformer(
        (numeric(), make_column_selector(dtype_include=np.number)),
        (texts(), make_column_selector(dtype_include=["object", "str", "category"])),
    ),
    "pattern": make_column_transformer((MinMaxScaler(), make_column_selector("^[ms]"))),
    "kept and dropped": make_column_transformer(
        ("passthrough", ["more", "plain"]), ("drop", ["kind"]), (OrdinalEncoder(), ["text"])
    ),
    "kept text": make_column_transformer(("passthrough", ["text", "more"]), (StandardScaler(), ["plain"])),
    "nothing selected": make_column_transformer((StandardScaler(), []), (MinMaxScaler(), ["more"])),
    "one column twice": make_column_transformer(
        (StandardScaler(), ["more"]), (MinMaxScaler(), ["more", "plain"])
    ),
    "ordinal": make_column_transformer(
        (
            OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2),
            TEXTS,
        ),
        (Normalizer(), ["plain", "more"]),
    ),
    "nested": make_column_transformer(
        (make_column_transformer((numeric(), [1, 0]), ("passthrough", ["whole"])), NUMBERS),
        (texts(), ["text"]),
    ),
    "function": make_column_transformer(
        (FunctionTransformer(double), ["plain", "more"]),
        (FunctionTransformer(np.abs, feature_names_out="one-to-one"), ["more"]),
    ),
    "union inside": make_column_transformer(
        (FeatureUnion([("a", StandardScaler()), ("b", MinMaxScaler())]), ["plain", "more"]),
        (make_union(OneHotEncoder(), OrdinalEncoder()), ["text", "small"]),
    ),
}

WHOLE_TREES = {
    "steps that pass": Pipeline(
        [("a", "passthrough"), ("b", StandardScaler()), ("c", None), ("d", "passthrough")]
    ),
    "nested pipelines": make_pipeline(make_pipeline(MinMaxScaler()), make_pipeline(Binarizer(threshold=0.4))),
    "scaled twice": make_pipeline(StandardScaler(), MinMaxScaler(), StandardScaler()),
    "normalised first": make_pipeline(Normalizer(), StandardScaler()),
    "union": FeatureUnion(
        [("a", StandardScaler()), ("b", "passthrough"), ("c", "drop"), ("d", Normalizer())]
    ),
    "union of pipelines": make_union(make_pipeline(StandardScaler(), MinMaxScaler()), MinMaxScaler()),
    "columns after columns": make_pipeline(
        FunctionTransformer(with_sum, feature_names_out=names_of_sum),
        make_column_transformer((StandardScaler(), ["total"]), ("passthrough", ["more"])),
    ),
}


def open_blocks(kind, frame, folder):
    if kind == "frame":
        X = in_blocks(frame)
    elif kind == "parquet":
        X = parquet_blocks(frame, folder)
    else:
        return frame, frame
    return X, plain_strings(X.compute())


def check_fitted(result, expected, X, rtol=1e-9):
    assert_same(result, expected, rtol)
    ours, theirs = result.transform(X), expected.transform(X)
    assert type(ours) is type(theirs)
    if sp.issparse(theirs):
        ours, theirs = ours.toarray(), theirs.toarray()
    assert_same_array(np.asarray(ours), np.asarray(theirs), rtol, atol=rtol)
    try:
        names = expected.get_feature_names_out()
    except AttributeError as err:
        with pytest.raises(AttributeError, match=re.escape(str(err))):
            result.get_feature_names_out()
    else:
        assert result.get_feature_names_out().tolist() == names.tolist()


MOST_KINDS = [(name, "frame") for name in COLUMN_TREES]
MOST_KINDS += [(name, kind) for name in ("names", "kept text", "nested") for kind in ("parquet", "pandas")]


@pytest.mark.parametrize(("name", "kind"), MOST_KINDS)
def test_column_transformer(name, kind, tmp_path):
    estimator = COLUMN_TREES[name]
    X, X_memory = open_blocks(kind, FRAME, tmp_path)
    check_fitted(fit(estimator, X), clone(estimator).fit(X_memory), X_memory)


@pytest.mark.parametrize("kind", ["frame", "array"])
@pytest.mark.parametrize("name", WHOLE_TREES)
def test_tree_of_numbers(name, kind):
    frame = FRAME[["plain", "more"]]
    if kind == "array" and name == "columns after columns":
        pytest.skip("names are of frames")
    X, X_memory = (
        (in_blocks(frame), frame) if kind == "frame" else (array_blocks(frame.to_numpy()), frame.to_numpy())
    )
    check_fitted(fit(WHOLE_TREES[name], X), clone(WHOLE_TREES[name]).fit(X_memory), X_memory)


@pytest.mark.parametrize("name", ["positions", "masks"])
def test_column_transformer_of_arrays(name):
    estimator = {
        "positions": make_column_transformer(
            (numeric(), [1]), (MinMaxScaler(), slice(0, 1)), remainder="passthrough"
        ),
        "masks": make_column_transformer((numeric(), [False, True, False]), (OneHotEncoder(), [2])),
    }[name]
    values = FRAME[["plain", "holes", "small"]].to_numpy()
    check_fitted(fit(estimator, array_blocks(values)), clone(estimator).fit(values), values)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.55, 0.7, 1.0])
@pytest.mark.parametrize("drop", [None, "first"])
def test_sparse_threshold_around_the_density(threshold, drop):
    encoder = OneHotEncoder(drop=drop, sparse_output=True)
    estimator = make_column_transformer(
        (StandardScaler(), ["plain", "more"]), (encoder, ["text", "small"]), sparse_threshold=threshold
    )
    X = awkward_frame()
    check_fitted(fit(estimator, in_blocks(X)), clone(estimator).fit(X), X)


def test_sparse_input_of_a_column_transformer():
    values = np.where(
        FRAME[["plain", "more", "whole"]].to_numpy() > 0.5, FRAME[["plain", "more", "whole"]], 0.0
    )
    for threshold in (0.2, 0.9):
        estimator = ColumnTransformer(
            [("a", StandardScaler(with_mean=False), [0, 2]), ("b", "passthrough", [1])],
            sparse_threshold=threshold,
        )
        check_fitted(
            fit(estimator, csr_blocks(values)),
            clone(estimator).fit(sp.csr_matrix(values)),
            sp.csr_matrix(values),
        )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("last", [LinearRegression(), Ridge()])
def test_weights_go_to_the_last_step_alone(last, weighted):
    """As ``pipeline.fit(X, y, last__sample_weight=w)``: transformers do not see them."""
    rng = np.random.default_rng(3)
    frame = FRAME.assign(target=rng.normal(size=len(FRAME)), weight=rng.random(len(FRAME)))
    estimator = Pipeline([("columns", tree(remainder="drop", sparse_threshold=0)), ("last", last)])
    X = in_blocks(frame)
    weights = {"last__sample_weight": frame["weight"]} if weighted else {}
    used = frame.drop(columns=["target", "weight"])
    if not weighted:
        X = X.drop(columns="weight")
    expected = clone(estimator).fit(used, frame["target"], **weights)
    result = fit(estimator, X, "target", "weight" if weighted else None)
    assert_same(result["columns"], expected["columns"])
    np.testing.assert_allclose(result.predict(used), expected.predict(used), rtol=1e-6, atol=1e-8)


def test_the_caller_s_estimator_is_not_changed():
    estimator = tree(remainder=MinMaxScaler())
    before = repr(clone(estimator).get_params())
    fit(estimator, in_blocks(FRAME))
    assert repr(estimator.get_params()) == before
    assert not hasattr(estimator, "transformers_")


def test_all_kinds_of_frames_agree(tmp_path):
    parts = [open_blocks(kind, FRAME, tmp_path)[0] for kind in ("frame", "parquet", "pandas")]
    results = [fit(tree(), X).transform(FRAME.astype({"Single": "float32", "kind": "str"})) for X in parts]
    for other in results[1:]:
        np.testing.assert_allclose(other.toarray() if sp.issparse(other) else other, results[0], rtol=1e-6)


def test_names_that_are_not_text():
    frame = pd.DataFrame({0: [1.0, 2.0, 4.0], 1: [0.0, 1.0, 5.0]})
    estimator = make_column_transformer((StandardScaler(), [1]), remainder="passthrough")
    check_fitted(fit(estimator, frame), clone(estimator).fit(frame), frame)


def widened(values):
    return np.c_[np.asarray(values), np.asarray(values) ** 2]


def with_prefix(frame):
    return frame.add_prefix("made_").assign(sum=frame.sum(axis=1))


@pytest.mark.parametrize(
    "estimator",
    [
        make_column_transformer(
            (FunctionTransformer(widened), ["plain", "more"]), (StandardScaler(), ["more"])
        ),
        make_column_transformer(
            (make_pipeline(StandardScaler(), FunctionTransformer(widened)), ["plain", "more"])
        ),
        make_column_transformer((make_union(StandardScaler(), FunctionTransformer(widened)), ["more"])),
        make_column_transformer((FunctionTransformer(with_prefix), ["plain", "more"]), remainder="drop"),
    ],
    ids=["function", "after a scaler", "in a union", "of a frame"],
)
def test_functions_that_change_the_number_of_columns(estimator):
    for tree_of in (estimator, make_pipeline(estimator, StandardScaler())):
        check_fitted(fit(tree_of, in_blocks(FRAME)), clone(tree_of).fit(FRAME), FRAME)


def test_one_hot_after_one_pass_and_after_two():
    """The density of a part that is fitted in an earlier pass is counted from its codes."""
    estimator = make_column_transformer(
        (OneHotEncoder(), ["kind"]),
        (make_pipeline(OrdinalEncoder(), OneHotEncoder(drop="first")), ["text"]),
        (make_union(OneHotEncoder(), StandardScaler()), ["small"]),
    )
    X = in_blocks(FRAME)
    for threshold in (0.3, 0.5, 0.6):
        estimator.set_params(sparse_threshold=threshold)
        check_fitted(fit(estimator, X), clone(estimator).fit(FRAME), FRAME)


@pytest.mark.parametrize(
    "last", [StandardScaler(with_mean=False), MinMaxScaler(), SimpleImputer(), OrdinalEncoder()]
)
@pytest.mark.parametrize("sparse", [True, False])
def test_transformers_after_a_one_hot_encoder(last, sparse):
    if sparse and isinstance(last, MinMaxScaler | OrdinalEncoder):
        pytest.skip("takes no sparse matrix")
    estimator = make_pipeline(OneHotEncoder(sparse_output=sparse), last)
    frame = FRAME[["text", "small"]]
    check_fitted(fit(estimator, in_blocks(frame)), clone(estimator).fit(frame), frame)


@pytest.mark.parametrize("sparse", [True, False])
def test_least_squares_after_a_one_hot_encoder(sparse):
    estimator = make_pipeline(OneHotEncoder(sparse_output=sparse, drop="first"), Ridge(tol=1e-12))
    frame = FRAME[["text", "small", "more"]]
    expected = clone(estimator).fit(frame[["text", "small"]], frame["more"])
    result = fit(estimator, in_blocks(frame), "more")
    np.testing.assert_allclose(result[-1].coef_, expected[-1].coef_, rtol=1e-6)
    assert result[-1].solver_ == expected[-1].solver_


def test_frames_as_output_everywhere_do_not_change_a_fit():
    estimator = make_pipeline(tree(sparse_threshold=0, remainder="drop"), StandardScaler())
    estimator[0].transformers[1][1][-1].set_params(sparse_output=False)
    with config_context(transform_output="pandas"):
        result = fit(estimator, in_blocks(FRAME))
    assert_same(result, clone(estimator).fit(FRAME))


def test_parallel_and_verbose_transformers(capsys):
    estimator = tree(n_jobs=2, verbose=True)
    result = fit(estimator, in_blocks(FRAME))
    assert capsys.readouterr().out == ""
    assert_same(result, tree().fit(FRAME).set_params(n_jobs=2, verbose=True))


def test_a_width_that_cannot_be_told_is_asked_for():
    estimator = make_column_transformer(
        (make_union(OneHotEncoder(), FunctionTransformer(widened)), ["small"])
    )
    with pytest.raises(InputError, match="feature_names_out"):
        fit(estimator, in_blocks(FRAME))
    named = FunctionTransformer(widened, feature_names_out=lambda _, names: ["one", "two"])
    estimator = make_column_transformer((make_union(OneHotEncoder(), named), ["small"]))
    check_fitted(fit(estimator, in_blocks(FRAME)), clone(estimator).fit(FRAME), FRAME)


def test_weights_without_a_taker_are_refused():
    X = in_blocks(FRAME)
    columns = make_column_transformer((StandardScaler(), ["plain"]))
    for estimator in (MinMaxScaler(), columns, make_pipeline(StandardScaler(), MinMaxScaler())):
        with pytest.raises(InputError, match="takes no sample_weight"):
            fit(estimator, X[["plain", "more"]], None, X["small"])
