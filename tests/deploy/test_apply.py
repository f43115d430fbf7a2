"""Predictions and transforms, block by block: the same values as scikit-learn, in the same kind of collection."""

import cloudpickle
import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from dask.array.utils import assert_eq as assert_eq_arrays
from dask.dataframe.utils import assert_eq
from distributed import Client
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, OneHotEncoder, StandardScaler

from dpipe.collect.parquet import read_parquet
from dpipe.deploy.apply import predict, transform
from dpipe.errors import DpipeError, InputError
from tests.helpers import raise_if_computes


def a_frame(n=90, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"a": rng.normal(size=n), "b": rng.random(n), "c": rng.choice(list("xyz"), n)})
    return frame.set_index(pd.Index(np.arange(n) * 2, name="id"))


def labels(frame):
    return np.where(frame["a"] + frame["b"] > 0.5, "yes", "no")


@pytest.fixture(scope="module")
def frame():
    return a_frame()


@pytest.fixture(scope="module")
def classifier(frame):
    # the encoder refuses what it has not seen, so made-up rows must be made up with care
    columns = make_column_transformer((StandardScaler(), ["a", "b"]), (OneHotEncoder(), ["c"]))
    return make_pipeline(columns, LogisticRegression()).fit(frame, labels(frame))


@pytest.mark.parametrize("npartitions", [1, 7])
def test_predict_gives_a_series_with_index_and_divisions(frame, classifier, npartitions):
    X = dd.from_pandas(frame, npartitions=npartitions)
    with raise_if_computes():
        result = predict(classifier, X)
    assert result.divisions == X.divisions
    expected = pd.Series(classifier.predict(frame), index=frame.index, name="prediction")
    assert_eq(result, expected)


@pytest.mark.parametrize("method", ["predict_proba", "predict_log_proba"])
def test_probabilities_are_a_frame_with_a_column_for_each_class(frame, classifier, method):
    X = dd.from_pandas(frame, npartitions=3)
    with raise_if_computes():
        result = predict(classifier, X, method=method)
    assert list(result.columns) == ["no", "yes"]
    expected = pd.DataFrame(getattr(classifier, method)(frame), index=frame.index, columns=["no", "yes"])
    assert_eq(result, expected)


def test_classes_that_are_numbers_name_columns_by_text(frame):
    model = GaussianNB().fit(frame[["a", "b"]], (frame["a"] > 0).astype(int))
    result = predict(model, dd.from_pandas(frame, npartitions=2), method="predict_proba")
    assert list(result.columns) == ["0", "1"]
    assert predict(model, dd.from_pandas(frame, npartitions=2)).dtype == model.classes_.dtype


def test_decision_function_is_a_series_for_two_classes_and_a_frame_for_three(frame):
    X = dd.from_pandas(frame, npartitions=2)
    two = SGDClassifier(random_state=0).fit(frame[["a", "b"]], labels(frame))
    three = SGDClassifier(random_state=0).fit(frame[["a", "b"]], frame["c"])
    result = predict(two, X, method="decision_function")
    assert_eq(result, pd.Series(two.decision_function(frame[["a", "b"]]), frame.index, name=result.name))
    result = predict(three, X, method="decision_function")
    assert_eq(result, pd.DataFrame(three.decision_function(frame[["a", "b"]]), frame.index, list("xyz")))


def test_several_targets_give_a_frame(frame):
    model = LinearRegression().fit(frame[["a"]], frame[["a", "b"]])
    result = predict(model, dd.from_pandas(frame, npartitions=3))
    assert_eq(result, pd.DataFrame(model.predict(frame[["a"]]), frame.index, ["0", "1"]))


@pytest.mark.parametrize("npartitions", [1, 9])
def test_blocks_without_rows_give_no_rows_of_the_right_type(frame, classifier, npartitions):
    X = dd.from_pandas(frame, npartitions=npartitions)
    some = X[X["a"] > 1.5]
    none = X[X["a"] > 1e9]
    kept = frame[frame["a"] > 1.5]
    assert_eq(predict(classifier, some), pd.Series(classifier.predict(kept), kept.index, name="prediction"))
    for method in ("predict", "predict_proba"):
        expected = predict(classifier, frame, method=method).iloc[:0]
        assert_eq(predict(classifier, none, method=method), expected, check_index=False)


def test_columns_are_matched_by_name(frame, classifier):
    shuffled = frame.assign(more=1)[["more", "c", "b", "a"]]
    result = predict(classifier, dd.from_pandas(shuffled, npartitions=2))
    assert_eq(result, predict(classifier, frame))
    assert_eq(predict(classifier, shuffled), predict(classifier, frame))


def test_missing_columns_are_named_at_once(frame, classifier):
    X = dd.from_pandas(frame[["b"]], npartitions=2)
    with raise_if_computes(), pytest.raises(InputError, match=r"X lacks 'a', 'c'.*X has: 'b'"):
        predict(classifier, X)


def test_only_the_columns_of_the_model_are_read(frame, tmp_path):
    frame.assign(wide="text").to_parquet(tmp_path / "0.parquet")
    X = read_parquet(tmp_path)
    model = LinearRegression().fit(frame[["b"]], frame["a"])
    result = predict(model, X)
    (read,) = result.optimize(fuse=False).expr.find_operations(type(X.optimize(fuse=False).expr))
    assert list(read.columns) == ["b"]
    assert_eq(result, pd.Series(model.predict(frame[["b"]]), name="prediction"), check_index=False)


@pytest.mark.parametrize("chunks", [(90, 2), (20, 2), ((1, 0, 89), (1, 1))])
@pytest.mark.parametrize("known", [True, False])
def test_arrays_in_any_chunks(frame, chunks, known):
    values = frame[["a", "b"]].to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(values, labels(frame))
    X = da.from_array(values, chunks=chunks)
    if not known:
        X = X[X[:, 0] > -np.inf]
    with raise_if_computes():
        results = [predict(model, X), predict(model, X, method="predict_proba"), transform(model[:-1], X)]
    expected = [model.predict(values), model.predict_proba(values), model[:-1].transform(values)]
    for result, right in zip(results, expected, strict=True):
        assert isinstance(result, da.Array)
        assert result.numblocks[0] == X.numblocks[0]
        assert_eq_arrays(result, right)


def test_float32_stays_float32(frame):
    values = frame[["a", "b"]].to_numpy(dtype="float32")
    model = StandardScaler().fit(values)
    result = transform(model, da.from_array(values, chunks=(30, 2)))
    assert result.dtype == np.float32
    assert_eq_arrays(result, model.transform(values))


def test_one_model_for_two_types_in_one_computation(frame):
    values = frame[["a", "b"]].to_numpy()
    model = StandardScaler().fit(values)
    single = transform(model, da.from_array(values.astype("float32"), chunks=(30, 2)))
    double = transform(model, da.from_array(values, chunks=(30, 2)))
    assert [found.dtype for found in dask.compute(single, double)] == [np.float32, np.float64]


def test_data_in_memory_is_predicted_at_once(frame, classifier):
    assert_eq(
        predict(classifier, frame), pd.Series(classifier.predict(frame), frame.index, name="prediction")
    )
    assert predict(classifier, frame.iloc[:0]).dtype == "str"
    values = frame[["a", "b"]].to_numpy()
    model = Ridge().fit(values, frame["a"])
    np.testing.assert_allclose(predict(model, values), model.predict(values))
    assert predict(model, values[:0]).shape == (0,)
    np.testing.assert_allclose(predict(model, sp.csr_matrix(values)), model.predict(values))


def test_names_on_one_side_only_do_not_warn(frame):
    values = frame[["a", "b"]].to_numpy()
    model = StandardScaler().fit(values)
    expected = pd.DataFrame(model.transform(values), frame.index, ["x0", "x1"])
    assert_eq(transform(model, dd.from_pandas(frame[["a", "b"]], npartitions=2)), expected)


def test_transform_names_the_columns_of_dense_output(frame):
    model = make_column_transformer(
        (StandardScaler(), ["a", "b"]), (OneHotEncoder(sparse_output=False), ["c"])
    ).fit(frame)
    X = dd.from_pandas(frame, npartitions=3)
    with raise_if_computes():
        result = transform(model, X)
    assert result.divisions == X.divisions
    assert_eq(result, pd.DataFrame(model.transform(frame), frame.index, model.get_feature_names_out()))


def test_transform_gives_csr_blocks_for_sparse_output(frame):
    model = OneHotEncoder().fit(frame[["c"]])
    with raise_if_computes():
        result = transform(model, dd.from_pandas(frame, npartitions=3))
    assert isinstance(result, da.Array)
    assert result.shape[1] == 3
    found = result.compute()
    assert sp.issparse(found)
    np.testing.assert_array_equal(found.toarray(), model.transform(frame[["c"]]).toarray())
    objects = da.from_array(frame[["c"]].to_numpy(dtype=object), chunks=(40, 1))
    of_array = OneHotEncoder().fit(frame[["c"]].to_numpy(dtype=object))
    found = transform(of_array, objects)
    assert found.chunks == ((40, 40, 10), (3,))
    assert sp.issparse(found.compute())


def test_functions_give_frames_of_their_own(frame):
    def doubled(block):
        return pd.DataFrame({"twice": block["a"] * 2, "name": block["c"].astype("category")})

    model = FunctionTransformer(doubled).fit(frame)
    result = transform(model, dd.from_pandas(frame.assign(c="x"), npartitions=3))
    assert list(result.columns) == ["twice", "name"]
    assert_eq(result[["twice"]], frame[["a"]].rename(columns={"a": "twice"}) * 2)


def test_stateless_transformers_need_no_fit(frame):
    values = frame[["a", "b"]].to_numpy()
    X = da.from_array(values, chunks=(40, 2))
    assert_eq_arrays(transform(Normalizer(), X), Normalizer().transform(values))


def test_a_transformer_that_drops_rows_is_refused(frame):
    model = FunctionTransformer(lambda block: block[block["a"] > 0]).fit(frame)
    with pytest.raises(DpipeError, match=r"FunctionTransformer.transform gave \d+ rows for 90"):
        transform(model, frame)


@pytest.mark.parametrize(
    ("fitted", "method", "message"),
    [
        (LogisticRegression(), "predict", "LogisticRegression is not fitted"),
        (LogisticRegression, "predict", "is not a fitted estimator"),
        ("model", "predict", "'model' is not a fitted estimator"),
        (SGDClassifier().fit([[0.0], [1.0]], [0, 1]), "predict_proba", "has: predict, decision_function"),
        (StandardScaler().fit([[0.0]]), "predict", "no method 'predict'. It has: transform"),
        (StandardScaler().fit([[0.0]]), "transform", "Call dpipe.transform"),
    ],
)
def test_what_cannot_predict_is_refused(fitted, method, message):
    with pytest.raises(InputError, match=message):
        predict(fitted, np.zeros((2, 1)), method=method)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (da.zeros((4, 3)), "X has 3 columns.*fitted on 2"),
        (da.zeros(4), "X has 1 dimensions"),
        (pd.DataFrame(np.zeros((4, 3)), columns=list("abc")), "X has 3 columns.*fitted on 2, without names"),
        ([[0.0, 1.0]], "X is a builtins.list"),
        (dd.from_pandas(pd.Series([1.0]), npartitions=1), r"X.to_frame\(\)"),
    ],
)
def test_input_of_another_kind_is_refused(X, message):
    model = PCA(1).fit(np.random.default_rng(0).normal(size=(5, 2)))
    with raise_if_computes(), pytest.raises(InputError, match=message):
        transform(model, X)


@pytest.mark.parametrize("kind", ["frame", "parquet", "array"])
def test_the_model_is_one_value_of_the_graph(frame, tmp_path, kind):
    model = Ridge().fit(frame[["a", "b"]], frame["a"])
    model.ballast_ = np.zeros(100_000)
    X = dd.from_pandas(frame, npartitions=8)
    if kind == "parquet":
        X.to_parquet(tmp_path)
        X = read_parquet(tmp_path)
    if kind == "array":
        model = Ridge().fit(frame[["a", "b"]].to_numpy(), frame["a"])
        model.ballast_ = np.zeros(100_000)
        X = da.zeros((80, 2), chunks=(10, 2))
    result = predict(model, X)
    tasks = dict(result.__dask_optimize__(result.__dask_graph__(), result.__dask_keys__()))
    sizes = sorted(len(cloudpickle.dumps(task)) for task in tasks.values())
    assert len(sizes) >= 9
    assert sizes[-1] > 800_000
    assert sizes[-2] < 20_000
    assert len(result.compute()) == (80 if kind == "array" else 90)


@pytest.mark.cluster
def test_on_a_cluster(frame, classifier):
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"):
        result = predict(classifier, dd.from_pandas(frame, npartitions=6)).compute()
    assert_eq(result, predict(classifier, frame))
