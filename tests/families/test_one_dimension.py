"""Documents, records and labels: in pipelines and column transformers, as sources, and what is refused of them."""

import dask
import dask.array as da
import dask.bag as db
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction import DictVectorizer, FeatureHasher
from sklearn.feature_extraction.text import (
    CountVectorizer,
    HashingVectorizer,
    TfidfTransformer,
    TfidfVectorizer,
)
from sklearn.feature_selection import VarianceThreshold
from sklearn.linear_model import LogisticRegression, Ridge, SGDRegressor
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    LabelBinarizer,
    LabelEncoder,
    MaxAbsScaler,
    MultiLabelBinarizer,
    RobustScaler,
    StandardScaler,
)

from dpipe.deploy.apply import predict, transform
from dpipe.errors import InputError
from dpipe.families.fitted import predict_block
from dpipe.train.fit import fit, plan
from dpipe.validate.score import score
from tests.helpers import raise_if_computes
from tests.kernel_cases import (
    array_blocks,
    assert_same,
    awkward_frame,
    columns_of_one_dimension,
    in_blocks,
    parquet_blocks,
)

DOCUMENTS = columns_of_one_dimension()["document"]
FRAME = awkward_frame()[["plain", "text", "small"]].assign(document=DOCUMENTS)


def of_columns(vectorizer, **options):
    return make_column_transformer((vectorizer, "document"), (StandardScaler(), ["plain"]), **options)


TREES = {
    "tfidf": of_columns(TfidfVectorizer()),
    "counts": of_columns(CountVectorizer(max_features=6), sparse_threshold=0.9),
    "hashing": of_columns(HashingVectorizer(n_features=16), remainder="drop"),
    "dropped": make_column_transformer(("drop", "text"), (CountVectorizer(), "document")),
    "by position": make_column_transformer((CountVectorizer(), 3), (StandardScaler(), [0])),
    "pipeline": of_columns(make_pipeline(CountVectorizer(), TfidfTransformer(), MaxAbsScaler())),
    "union": of_columns(make_union(CountVectorizer(), HashingVectorizer(n_features=8, analyzer="char"))),
    "chosen columns": of_columns(
        make_pipeline(TfidfVectorizer(), VarianceThreshold(0.03)), sparse_threshold=0.1
    ),
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("kind", ["frame", "parquet", "pandas"])
def test_columns_that_are_named_without_a_list(name, kind, tmp_path):
    tree = TREES[name]
    X = {"frame": in_blocks, "parquet": lambda f: parquet_blocks(f, tmp_path), "pandas": lambda f: f}[kind](
        FRAME
    )
    expected, result = clone(tree).fit(FRAME), fit(tree, X)
    assert_same(result, expected)
    wanted = expected.transform(FRAME)
    assert_same(predict_block(result, FRAME, "transform"), wanted)
    found = transform(result, in_blocks(FRAME)).compute(scheduler="sync")
    dense = wanted.toarray() if hasattr(wanted, "toarray") else wanted
    np.testing.assert_allclose(found.toarray() if hasattr(found, "toarray") else found, dense, atol=1e-9)


CHAINS = {
    "counts": make_pipeline(CountVectorizer(), MultinomialNB()),
    "weights": make_pipeline(CountVectorizer(), TfidfTransformer(), Ridge(tol=1e-12)),
    "union": make_pipeline(make_union(TfidfVectorizer(), CountVectorizer(analyzer="char")), Ridge(tol=1e-12)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_series_through_a_pipeline(name):
    y = FRAME["small"]
    expected = clone(CHAINS[name]).fit(DOCUMENTS, y)
    result = fit(CHAINS[name], in_blocks(DOCUMENTS), in_blocks(y))
    wanted = expected.predict(DOCUMENTS)
    np.testing.assert_allclose(result.predict(DOCUMENTS), wanted, rtol=1e-6, atol=1e-8)
    made = predict(result, in_blocks(DOCUMENTS.to_frame())).compute(scheduler="sync")
    np.testing.assert_allclose(made, wanted, rtol=1e-6, atol=1e-8)
    scoring = "accuracy" if name == "counts" else "r2"
    found = score(result, in_blocks(DOCUMENTS), in_blocks(y), scoring=[scoring])[scoring]
    assert found == pytest.approx(expected.score(DOCUMENTS, y), rel=1e-6)


def test_hashed_documents_are_learned_in_order():
    y = FRAME["plain"]
    estimator = make_pipeline(HashingVectorizer(n_features=32), SGDRegressor(random_state=0))
    result = fit(estimator, in_blocks(DOCUMENTS), in_blocks(y))
    assert result[-1].t_ == 1 + len(y)
    assert result.predict(DOCUMENTS).shape == (len(y),)


def test_weights_of_terms_share_the_pass_of_the_counts():
    with raise_if_computes():
        assert plan(make_pipeline(CountVectorizer(), TfidfTransformer()), in_blocks(DOCUMENTS)).n_passes == 1
        assert plan(of_columns(TfidfVectorizer()), in_blocks(FRAME)).n_passes == 1
        assert plan(CountVectorizer(vocabulary=["fig"]), in_blocks(DOCUMENTS)).n_passes == 0


def test_only_the_column_of_documents_is_read(tmp_path):
    X = parquet_blocks(FRAME, tmp_path)
    with raise_if_computes():
        made = plan(CountVectorizer(), X["document"])
    assert made.n_rows == len(FRAME)
    assert [step.columns for step in made.passes] == [("document",)]


def test_a_bag_is_not_read_to_plan():
    bag = db.from_sequence(columns_of_one_dimension()["record"].tolist(), npartitions=3)
    with raise_if_computes():
        assert plan(DictVectorizer(), bag).n_passes == 1


TAKERS = [
    CountVectorizer(),
    TfidfVectorizer(),
    HashingVectorizer(),
    DictVectorizer(),
    FeatureHasher(),
    LabelEncoder(),
    MultiLabelBinarizer(),
]


@pytest.mark.parametrize("estimator", TAKERS)
def test_a_table_is_refused(estimator):
    for X in (in_blocks(FRAME), FRAME[["document"]], array_blocks(FRAME[["plain"]].to_numpy())):
        with pytest.raises(InputError, match="takes one column, of one dimension, but is given a table"):
            fit(estimator, X)


@pytest.mark.parametrize("estimator", [CountVectorizer(), make_pipeline(HashingVectorizer(), SGDRegressor())])
def test_missing_documents_are_refused(estimator):
    documents = DOCUMENTS.mask(FRAME["plain"] > 1)
    y = in_blocks(FRAME["plain"])
    with pytest.raises(InputError, match=r"values of a block are missing. Fill them, as by X.fillna"):
        fit(estimator, in_blocks(documents), y)


@pytest.mark.parametrize("estimator", [CountVectorizer(), DictVectorizer(), MultiLabelBinarizer()])
def test_numbers_are_no_documents(estimator):
    with pytest.raises(InputError, match=r"cannot read its X: \w+Error: .* the first one of the block is "):
        fit(estimator, in_blocks(FRAME["small"]))


def test_records_that_dask_has_made_texts_of_are_refused():
    with dask.config.set({"dataframe.convert-string": True}):
        X = in_blocks(columns_of_one_dimension()["record"])
        with pytest.raises(InputError, match="DictVectorizer cannot read its X"):
            fit(DictVectorizer(), X)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"min_df": 1000}, "max_df corresponds to fewer documents than min_df"),
        ({"min_df": 40, "max_df": 41}, "after pruning, no terms remain"),
        ({"token_pattern": "nothing"}, "empty vocabulary; perhaps"),
        ({"vocabulary": ["a", "a"]}, "Duplicate term in vocabulary: 'a'"),
        ({"ngram_range": (2, 1)}, "ngram_range"),
    ],
)
def test_vocabularies_that_cannot_be_made(options, match):
    with pytest.raises(InputError, match=match):
        fit(CountVectorizer(**options), in_blocks(DOCUMENTS))
    with pytest.raises(ValueError, match=r"(?i)document|remain|vocabulary|ngram_range"):
        CountVectorizer(**options).fit(DOCUMENTS)


def test_a_series_is_no_table():
    for part in (StandardScaler(), make_column_transformer((StandardScaler(), [0]))):
        with pytest.raises(InputError, match=r"named without a list is a series, .* Write \['plain'\]"):
            fit(make_column_transformer((part, "plain")), in_blocks(FRAME))
    with pytest.raises(InputError, match="a series cannot be passed through"):
        fit(make_column_transformer(("passthrough", "plain")), in_blocks(FRAME))


@pytest.mark.parametrize("estimator", [LabelEncoder(), LabelBinarizer(), MultiLabelBinarizer()])
def test_labels_have_no_place_in_a_pipeline(estimator):
    for tree in (make_pipeline(estimator), make_column_transformer((estimator, "text"))):
        with pytest.raises(InputError, match="takes labels, and no place in a pipeline"):
            fit(tree, in_blocks(FRAME))


def test_more_columns_than_were_fitted_on_are_refused():
    fitted = CountVectorizer().fit(DOCUMENTS)
    assert_same(predict_block(fitted, FRAME[["document"]], "transform"), fitted.transform(DOCUMENTS))
    with pytest.raises(InputError, match="CountVectorizer takes one column, but X has 4"):
        predict_block(fitted, FRAME, "transform")


def test_missing_labels_of_a_binarizer_are_refused():
    for name in ("holes", "text_holes", "Whole"):
        with pytest.raises(InputError, match="LabelBinarizer: [0-9]+ labels are missing"):
            fit(LabelBinarizer(), in_blocks(awkward_frame()[name]))


@pytest.mark.parametrize("values", [[1, 2, 3, 2], ["a", "b", "a"], [True, False], [1.5, 2.5, 1.5]])
def test_a_list_of_labels(values):
    assert_same(fit(LabelEncoder(), values), LabelEncoder().fit(values))
    assert_same(fit(LabelEncoder(), da.from_array(np.array(values), chunks=2)), LabelEncoder().fit(values))
    assert_same(fit(LabelEncoder(), pd.Series(values)), LabelEncoder().fit(pd.Series(values)))


@pytest.mark.parametrize("dtype", ["Int64", "UInt8", "boolean"])
@pytest.mark.parametrize("estimator", [LabelEncoder(), LabelBinarizer()])
def test_nullable_labels(estimator, dtype):
    values = FRAME["small"].clip(0, 1).astype(dtype)
    assert_same(fit(estimator, in_blocks(values)), clone(estimator).fit(values))


def test_the_callers_vectorizer_is_not_changed():
    estimator = CountVectorizer(stop_words=["the"])
    before = dict(vars(estimator))
    fit(estimator, in_blocks(DOCUMENTS))
    assert vars(estimator) == before


def test_documents_beside_what_reads_often(tmp_path):
    """Texts are never put into scratch."""
    estimator = make_pipeline(
        make_column_transformer((RobustScaler(), ["plain"]), (TfidfVectorizer(), "document")),
        LogisticRegression(tol=1e-10),
    )
    frame = FRAME[["plain", "document"]]
    expected = clone(estimator).fit(frame, FRAME["small"])
    result = fit(estimator, parquet_blocks(FRAME[["plain", "document", "small"]], tmp_path), "small")
    assert_same(result[0], expected[0])
    np.testing.assert_allclose(result[-1].coef_, expected[-1].coef_, rtol=1e-4, atol=1e-6)
