"""Pipelines of scikit-learn's own examples, on its bundled data, unchanged: fitted from blocks, and in memory.

Each says which example it stands in, under https://scikit-learn.org/stable/auto_examples/. Examples on data that
would have to be downloaded are left out, and so are the parts of an example that choose parameters by search.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.compose import (
    ColumnTransformer,
    TransformedTargetRegressor,
    make_column_selector,
    make_column_transformer,
)
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeCV
from sklearn.mixture import GaussianMixture
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    PolynomialFeatures,
    QuantileTransformer,
    SplineTransformer,
    StandardScaler,
)
from sklearn.svm import LinearSVC

import dpipe


@dataclass(frozen=True)
class Example:
    """A pipeline, its data, and how its fit is looked at."""

    name: str
    model: Any
    load: Callable[..., Any]
    method: str = "predict"
    rtol: float = 1e-6


def wine_frame(return_X_y=True, as_frame=True):
    """Wine with a column of words and some gaps, as the examples of mixed columns have."""
    X, y = load_wine(return_X_y=True, as_frame=True)
    X["strength"] = np.where(X["alcohol"] > 13, "strong", "light")
    X["hue"] = X["hue"].mask(np.arange(len(X)) % 7 == 0)
    return X, y


NUMERIC = Pipeline([("imputer", SimpleImputer(strategy="median")), ("scaler", StandardScaler())])
MIXED = ColumnTransformer(
    [
        ("num", NUMERIC, make_column_selector(dtype_include="number")),
        ("cat", OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_exclude="number")),
    ]
)
LR = LogisticRegression
EXAMPLES = [
    Example(
        "compose/plot_digits_pipe",
        Pipeline(
            [("scaler", StandardScaler()), ("pca", PCA(30)), ("logistic", LR(max_iter=10_000, tol=0.1))]
        ),
        load_digits,
        "predict_proba",
        1e-3,
    ),
    Example(
        "compose/plot_column_transformer_mixed_types",
        Pipeline([("preprocessor", MIXED), ("classifier", LR())]),
        wine_frame,
        "predict_proba",
    ),
    Example(
        "compose/plot_feature_union",
        FeatureUnion([("pca", PCA(n_components=2)), ("univ_select", SelectKBest(k=1))]),
        load_iris,
        "transform",
    ),
    Example(
        "compose/plot_transformed_target",
        TransformedTargetRegressor(
            Ridge(), transformer=QuantileTransformer(n_quantiles=300, output_distribution="normal")
        ),
        load_diabetes,
    ),
    Example(
        "feature_selection/plot_feature_selection_pipeline",
        make_pipeline(SelectKBest(f_classif, k=3), LinearSVC(tol=1e-8, max_iter=100_000)),
        load_iris,
        "decision_function",
        1e-3,
    ),
    Example(
        "preprocessing/plot_scaling_importance",
        make_pipeline(StandardScaler(), PCA(n_components=2), LR(C=1.0)),
        load_wine,
        "predict_proba",
    ),
    Example(
        "preprocessing/plot_discretization",
        make_pipeline(KBinsDiscretizer(n_bins=10, encode="onehot"), Ridge(tol=1e-10)),
        load_diabetes,
        rtol=1e-5,
    ),
    Example(
        "linear_model/plot_polynomial_interpolation",
        make_pipeline(SplineTransformer(n_knots=4, degree=3), Ridge(alpha=1e-3)),
        load_diabetes,
        rtol=1e-5,
    ),
    Example(
        "linear_model/plot_ols_ridge",
        make_pipeline(PolynomialFeatures(2, include_bias=False), StandardScaler(), Ridge()),
        load_diabetes,
    ),
    Example("linear_model/plot_iris_logistic", LR(C=1e5, max_iter=500), load_iris, "predict_proba", 1e-3),
    Example(
        "linear_model/plot_logistic_multinomial",
        make_pipeline(StandardScaler(), OneVsRestClassifier(LR())),
        load_iris,
        "decision_function",
    ),
    Example(
        "cluster/plot_kmeans_digits",
        make_pipeline(StandardScaler(), KMeans(init="k-means++", n_clusters=10, n_init=4, random_state=0)),
        load_digits,
    ),
    Example(
        "mixture/plot_gmm_covariances",
        GaussianMixture(3, covariance_type="full", max_iter=20, random_state=0),
        load_iris,
        "predict_proba",
        1e-4,
    ),
    Example(
        "decomposition/plot_pca_vs_lda",
        LinearDiscriminantAnalysis(n_components=2),
        load_iris,
        "predict_proba",
        1e-5,
    ),
    Example(
        "classification/plot_lda_qda",
        QuadraticDiscriminantAnalysis(store_covariance=True),
        load_iris,
        "predict_proba",
        1e-5,
    ),
    Example(
        "ensemble/plot_voting_decision_regions",
        VotingClassifier(
            [("lr", make_pipeline(StandardScaler(), LR())), ("gnb", GaussianNB())], voting="soft"
        ),
        load_breast_cancer,
        "predict_proba",
        1e-5,
    ),
    Example(
        "ensemble/plot_stack_predictors",
        StackingClassifier(
            [("lr", make_pipeline(StandardScaler(), LR())), ("gnb", GaussianNB())], final_estimator=LR()
        ),
        load_breast_cancer,
        "predict_proba",
        1e-3,
    ),
    Example(
        "miscellaneous/plot_pipeline_display",
        make_pipeline(
            make_column_transformer((MinMaxScaler(), make_column_selector(pattern="a"))), LinearRegression()
        ),
        load_wine,
    ),
    Example(
        "linear_model/plot_ridge_coeffs",
        make_pipeline(StandardScaler(), RidgeCV(alphas=[0.1, 1.0, 10.0], cv=5)),
        load_diabetes,
    ),
]


def blocks(values, kind):
    """A fourth of the rows in each block, as a frame or as an array of known lengths."""
    if kind == "frame":
        return dd.from_pandas(values, npartitions=4)
    values = np.asarray(values)
    return da.from_array(values, chunks=(len(values) // 4, *values.shape[1:]))


UNSUPERVISED = ("cluster/plot_kmeans_digits", "mixture/plot_gmm_covariances")
BY_NAME = ("compose/plot_column_transformer_mixed_types", "miscellaneous/plot_pipeline_display")


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
@pytest.mark.filterwarnings("ignore:Bins whose width:UserWarning")
def test_an_example_runs_unchanged(example):
    X, y = example.load(return_X_y=True, as_frame=True)
    for kind in ("frame", "array"):
        if kind == "array" and example.name in BY_NAME:
            continue
        rows, targets = (X, y) if kind == "frame" else (X.to_numpy(), y.to_numpy())
        arguments = () if example.name in UNSUPERVISED else (targets,)
        found = dpipe.fit(example.model, *(blocks(each, kind) for each in (rows, *arguments)))
        expected = clone(example.model).fit(rows, *arguments)
        mine, theirs = (getattr(fitted, example.method)(rows) for fitted in (found, expected))
        np.testing.assert_allclose(np.asarray(mine), np.asarray(theirs), rtol=example.rtol, atol=example.rtol)


DOCUMENTS = [
    "god is love", "the gpu renders opengl images", "software for graphics cards", "faith hope and charity",
    "images need software", "love and faith", "a fast gpu card", "the church of hope",
]  # fmt: skip
TOPICS = np.array([0, 1, 1, 0, 1, 0, 1, 0])


@pytest.mark.parametrize(
    "model",
    [
        Pipeline([("vect", CountVectorizer()), ("tfidf", TfidfTransformer()), ("clf", MultinomialNB())]),
        make_pipeline(TfidfVectorizer(sublinear_tf=True, max_df=0.5, min_df=2), LR()),
    ],
    ids=["tutorial/working_with_text_data", "text/plot_document_classification_20newsgroups"],
)
def test_an_example_on_texts_runs_unchanged(model):
    texts = da.from_array(np.array(DOCUMENTS, dtype=object), chunks=3)
    found = dpipe.fit(model, texts, da.from_array(TOPICS, chunks=3))
    expected = clone(model).fit(DOCUMENTS, TOPICS)
    np.testing.assert_allclose(found.predict_proba(DOCUMENTS), expected.predict_proba(DOCUMENTS), rtol=1e-6)
