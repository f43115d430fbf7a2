"""A fitted tree gives on a block of any kind what scikit-learn gives on the frame."""

import functools
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer, make_column_selector, make_column_transformer
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    StandardScaler,
)

from dpipe.errors import InputError
from dpipe.families.fitted import input_names, predict_block, predictions

NUMBERS, TEXTS = ["a", "b", "n"], ["c", "d"]


def made_frame(rows, seed, *, unknown=False):
    """Give numbers and texts with gaps; some texts that no other seed has."""
    rng = np.random.default_rng(seed)
    texts = np.array(["x", "y", "z", "w"] if unknown else ["x", "y", "z"], dtype=object)
    frame = pd.DataFrame(
        {
            "a": rng.normal(3, 2, rows),
            "c": texts[rng.integers(0, len(texts), rows)],
            "b": rng.normal(0, 1e-3, rows).astype("float32"),
            "d": np.array(["u", "v"], dtype=object)[rng.integers(0, 2, rows)],
            "n": rng.integers(0, 9, rows),
            "unused": rng.normal(size=rows),
        }
    ).astype({"c": "str", "d": "str"})
    frame.loc[rng.random(rows) < 0.2, "a"] = np.nan
    frame.loc[rng.random(rows) < 0.2, "c"] = None
    return frame


TRAIN = made_frame(300, 0)
LABELS = (TRAIN["a"].fillna(3) + TRAIN["n"] + (TRAIN["d"] == "u") > 7).astype(int).to_numpy()


def as_table(frame):
    table = pa.Table.from_pandas(frame, preserve_index=False)
    for name in TEXTS:
        j = table.schema.get_field_index(name)
        table = table.set_column(j, name, table.column(name).cast(pa.string()).dictionary_encode())
    return table


def columns_tree(one_hot, *, remainder="drop", **options):
    return ColumnTransformer(
        [
            ("num", make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS),
            ("text", make_pipeline(SimpleImputer(strategy="most_frequent"), one_hot), TEXTS),
        ],
        remainder=remainder,
        **options,
    )


TREES = {
    "sparse": columns_tree(OneHotEncoder(handle_unknown="ignore"), sparse_threshold=1.0),
    "dense": columns_tree(OneHotEncoder(handle_unknown="ignore", sparse_output=False)),
    "remainder": columns_tree(
        OneHotEncoder(handle_unknown="ignore"), remainder="passthrough", sparse_threshold=0
    ),
    "weights": columns_tree(
        OneHotEncoder(handle_unknown="ignore"), transformer_weights={"num": 2.0}, sparse_threshold=1.0
    ),
    "ordinal": make_column_transformer(
        (MinMaxScaler(clip=True), ["n"]),
        (
            OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2),
            TEXTS,
        ),
        (make_pipeline(SimpleImputer(strategy="median"), PolynomialFeatures(2)), [0, 2]),
        ("passthrough", slice("n", "n")),
        ("drop", ["unused"]),
    ),
    "selectors": make_column_transformer(
        (SimpleImputer(), make_column_selector(dtype_include=np.number)),
        (
            OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=5),
            [False, True, False, True, False, False],
        ),
        (StandardScaler(), []),
    ),
    "one column of text": make_column_transformer(
        (HashingVectorizer(n_features=8), "d"), (StandardScaler(), ["n"]), sparse_threshold=1.0
    ),
    "frames inside": columns_tree(
        OneHotEncoder(handle_unknown="ignore", sparse_output=False), verbose_feature_names_out=False
    ).set_output(transform="pandas"),
    "union": make_column_transformer(
        (
            FeatureUnion([("one", StandardScaler()), ("two", Normalizer()), ("as it is", "passthrough")]),
            ["n", "b"],
        ),
    ),
    "union, sparse": make_pipeline(
        make_column_transformer((SimpleImputer(strategy="constant", fill_value="gap"), TEXTS)),
        FeatureUnion(
            [
                ("one", OneHotEncoder(handle_unknown="ignore")),
                ("two", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)),
                ("none", "drop"),
            ]
        ),
    ),
    "made columns": make_pipeline(
        FunctionTransformer(lambda frame: frame.assign(more=frame["n"] * 2, a=frame["a"].fillna(0))),
        make_column_transformer((StandardScaler(), ["a", "more"]), ("passthrough", ["n"])),
    ),
}


@functools.cache
def fitted_tree(name):
    model = Pipeline([("tree", TREES[name]), ("last", SGDClassifier(loss="log_loss", random_state=0))])
    return model.fit(TRAIN, LABELS)


@pytest.mark.parametrize("kind", ["table", "frame", "sliced table", "categories"])
@pytest.mark.parametrize("name", TREES)
def test_a_tree_equals_scikit_learn_on_the_frame(name, kind):
    fitted = fitted_tree(name)
    frame = made_frame(64, 1, unknown=name != "one column of text")
    block = {"table": as_table, "frame": pd.DataFrame.copy}.get(kind, as_table)(frame)
    if kind == "sliced table":
        # the dictionaries keep values that no row has
        frame, block = frame.iloc[10:13].reset_index(drop=True), block.slice(10, 3)
    if kind == "categories":
        block = frame = frame.astype({name: "category" for name in TEXTS})
    found = predictions(fitted, block, ["predict", "predict_proba", "decision_function"])
    expected = fitted[:-1].transform(frame)
    np.testing.assert_array_equal(found["predict"], fitted[-1].predict(expected))
    # a dense product adds up in an order that depends on the layout of the matrix
    for method in ("predict_proba", "decision_function"):
        answer = getattr(fitted[-1], method)(expected)
        np.testing.assert_allclose(found[method], answer, rtol=1e-12, atol=1e-13)
    transformed = predict_block(fitted[:-1], block, "transform")
    assert sp.issparse(transformed) == sp.issparse(expected)
    if sp.issparse(expected):
        transformed, expected = transformed.toarray(), expected.toarray()
    np.testing.assert_array_equal(np.asarray(transformed, dtype=float), np.asarray(expected, dtype=float))


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, np.asfortranarray])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_matrices_go_through_their_kernels(kind, dtype):
    rng = np.random.default_rng(0)
    X = kind((rng.normal(size=(50, 4)) * (rng.random((50, 4)) < 0.6)).astype(dtype))
    y = rng.normal(size=50)
    tree = make_column_transformer((StandardScaler(with_mean=False), [0, 1]), ("passthrough", slice(2, 4)))
    model = make_pipeline(tree, SimpleImputer(), LinearRegression()).fit(X, y)
    np.testing.assert_allclose(predict_block(model, X[:7], "predict"), model.predict(X[:7]), rtol=1e-6)
    assert predict_block(model, X[:1], "predict").shape == (1,)


def test_columns_are_found_by_name_in_any_order():
    fitted = make_pipeline(TREES["dense"], GaussianNB()).fit(TRAIN, LABELS)
    frame = made_frame(20, 2)
    shuffled = frame[["d", "n", "c", "a", "b"]].assign(more=1)
    np.testing.assert_array_equal(predict_block(fitted, as_table(shuffled), "predict"), fitted.predict(frame))
    with pytest.raises(InputError, match="no column 'a' in the block"):
        predict_block(fitted, as_table(shuffled.drop(columns="a")), "predict")


@pytest.mark.parametrize("name", ["sparse", "dense"])
def test_kernels_take_the_place_of_scikit_learns_transform(name, monkeypatch):
    fitted = make_pipeline(TREES[name], SGDClassifier(random_state=0)).fit(TRAIN, LABELS)
    expected = fitted.predict(TRAIN)
    seen = []
    encode = OneHotEncoder.transform
    monkeypatch.setattr(OneHotEncoder, "transform", lambda self, X: seen.append(len(X)) or encode(self, X))
    for cls in (StandardScaler, SimpleImputer, ColumnTransformer):
        monkeypatch.setattr(cls, "transform", None)
    np.testing.assert_array_equal(predict_block(fitted, as_table(TRAIN), "predict"), expected)
    assert max(seen) <= 4  # the distinct values, not the rows


def test_unknown_categories_are_an_error_only_where_rows_have_them():
    tree = make_column_transformer((OneHotEncoder(), ["d"]), (StandardScaler(), ["n"]))
    fitted = make_pipeline(tree, LogisticRegression()).fit(TRAIN, LABELS)
    frame = made_frame(6, 3)
    with_unused = frame.assign(d=pd.Categorical(frame["d"], categories=["u", "v", "never seen"]))
    np.testing.assert_array_equal(predict_block(fitted, with_unused, "predict"), fitted.predict(frame))
    with pytest.raises(ValueError, match="unknown categories"):
        predict_block(fitted, as_table(frame.assign(d="new")), "predict")


def test_a_column_without_any_observed_value_is_dropped_as_in_scikit_learn():
    X = np.array([[1.0, np.nan], [2.0, np.nan], [np.nan, np.nan]])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipping features")
        fitted = SimpleImputer().fit(X)
        np.testing.assert_array_equal(predict_block(fitted, X, "transform"), fitted.transform(X))


def test_names_are_taken_off_for_an_estimator_without_names():
    frame = TRAIN[["n", "b"]]
    fitted = LinearRegression().fit(frame.to_numpy(), LABELS)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    np.testing.assert_allclose(predict_block(fitted, table, "predict"), fitted.predict(frame.to_numpy()))


def test_foreign_transformers_get_frames():
    class Picker(TransformerMixin, BaseEstimator):
        def fit(self, X, y=None):
            return self

        def transform(self, X):
            return X[["n"]].to_numpy() ** 2

        def __sklearn_is_fitted__(self):
            return True

    fitted = make_pipeline(Picker(), LinearRegression()).fit(TRAIN, LABELS)
    np.testing.assert_allclose(predict_block(fitted, as_table(TRAIN), "predict"), fitted.predict(TRAIN))
    assert input_names(fitted) is None


def test_a_tree_of_nothing_but_dropped_columns_gives_no_columns():
    fitted = ColumnTransformer([("none", "drop", ["a"])]).fit(TRAIN)
    assert predict_block(fitted, as_table(TRAIN), "transform").shape == (300, 0)


@pytest.mark.parametrize(
    ("fitted", "names"),
    [
        (make_pipeline(TREES["dense"], GaussianNB()).fit(TRAIN, LABELS), ("a", "c", "b", "d", "n")),
        (StandardScaler().fit(TRAIN[["n", "b"]]), ("n", "b")),
        (StandardScaler().fit(TRAIN[["n", "b"]].to_numpy()), None),
    ],
)
def test_the_columns_that_a_model_reads(fitted, names):
    assert input_names(fitted) == names
