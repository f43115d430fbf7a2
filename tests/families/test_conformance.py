"""Every estimator, fitted from blocks, is what scikit-learn fits in memory: attribute by attribute."""

from dataclasses import dataclass
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.covariance import OAS, EmpiricalCovariance, ShrunkCovariance
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.feature_selection import (
    GenericUnivariateSelect,
    SelectFdr,
    SelectFpr,
    SelectFwe,
    SelectKBest,
    SelectPercentile,
    VarianceThreshold,
    chi2,
    f_regression,
    r_regression,
)
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.kernel_approximation import (
    AdditiveChi2Sampler,
    PolynomialCountSketch,
    RBFSampler,
    SkewedChi2Sampler,
)
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    Ridge,
    RidgeClassifier,
)
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    StandardScaler,
)
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection

from dpipe.blocks.matrix import to_matrix
from dpipe.blocks.table import plain_strings
from dpipe.families.expression import apply
from dpipe.families.registry import Fitted, registered, way_of
from dpipe.train.fit import fit
from tests.kernel_cases import (
    SEEN,
    array_blocks,
    assert_same,
    assert_same_array,
    awkward_frame,
    csr_blocks,
    in_blocks,
    parquet_blocks,
)

NUMBERS = ("plain", "offset", "whole", "small", "flag")
HOLES = ("plain", "holes", "offset", "single_holes")
NULLABLE = ("Whole", "Single")
FULL = ("plain", "offset")
REGULAR = ("plain", "more", "whole", "small", "flag")
SINGLE = ("single", "single_holes")
TEXTS = ("text", "kind", "whole", "flag")
TEXT_HOLES = ("text_holes", "kind_holes")
OBJECTS = ("object_none",)

FRAMES = ("frame", "object frame", "parquet", "pandas")
ARRAYS = ("array", "array?", "numpy")
CSR = ("csr", "scipy")


@dataclass(frozen=True)
class Case:
    """One estimator, on some columns, as every kind of input."""

    estimator: Any
    columns: tuple[str, ...]
    inputs: tuple[str, ...] = FRAMES
    y: str | None = None
    weighted: bool = False
    rtol: float = 1e-9

    @property
    def params(self):
        for kind in self.inputs:
            words = [str(self.estimator).replace("\n", ""), "+".join(self.columns), kind]
            words += [self.y] * (self.y is not None) + ["weighted"] * self.weighted
            yield pytest.param(self, kind, id=" ".join(" ".join(words).split()))


def open_input(kind, frame, folder):
    """The same rows as one kind of input, and in memory as scikit-learn takes them."""
    if kind == "frame":
        X = in_blocks(frame)
        return X, plain_strings(X.compute())
    if kind == "object frame":
        with dask.config.set({"dataframe.convert-string": False}):
            X = dd.from_pandas(
                frame.astype({n: object for n in frame if frame[n].dtype == "str"}), npartitions=5
            )
        return X, X.compute()
    if kind == "parquet":
        X = parquet_blocks(frame, folder)
        return X, plain_strings(X.compute())
    if kind == "pandas":
        return frame, frame
    values = frame.to_numpy()
    if kind == "array":
        return array_blocks(values), values
    if kind == "array?":
        X = in_blocks(frame).to_dask_array()
        return X, X.compute(scheduler="sync")
    if kind == "csr":
        X = csr_blocks(np.nan_to_num(values.astype(float)))
        return X, X.compute(scheduler="sync")
    if kind == "scipy":
        X = csr_blocks(np.nan_to_num(values.astype(float))).compute(scheduler="sync")
        return X, X
    assert kind == "numpy"
    return values, values


def targets(kind, like):
    """Targets (or None) for the rows of `awkward_frame`, as blocks beside X and in memory."""
    frame = awkward_frame()
    rng = np.random.default_rng(7)
    y = {
        "number": lambda: pd.Series(
            2 * frame["plain"] - frame["whole"] + rng.normal(size=len(frame)), name="y"
        ),
        "two": lambda: pd.DataFrame(
            {"p": frame["plain"] - rng.normal(size=len(frame)), "q": rng.normal(size=len(frame))}
        ),
        "flag": lambda: pd.Series(frame["plain"] > 0, name="y"),
        "label": lambda: pd.Series(rng.integers(0, 3, len(frame)), name="y"),
        "text": lambda: pd.Series(rng.choice(["no", "yes", "maybe"], len(frame)), name="y"),
        "weight": lambda: pd.Series(rng.random(len(frame)) * 3, name="w"),
    }[kind]()
    if like in ("frame", "parquet"):
        return in_blocks(y), y
    if like == "object frame":
        return dd.from_pandas(y, npartitions=5), y
    if like == "pandas":
        return y, y
    values = y.to_numpy()
    return (values if like in ("numpy", "scipy") else array_blocks(values)), values


def check(case, kind, folder):
    X, X_memory = open_input(kind, awkward_frame()[list(case.columns)], folder)
    y, y_memory = (None, None) if case.y is None else targets(case.y, kind)
    w, w_memory = (None, None) if not case.weighted else targets("weight", kind)
    weights = {} if w is None else {"sample_weight": w_memory}
    expected = clone(case.estimator).fit(X_memory, *([] if y is None else [y_memory]), **weights)
    result = fit(case.estimator, X, y, w)
    if hasattr(expected, "dual_gap_"):
        # a difference of two objectives that are nearly equal: of its digits only the size means anything
        assert abs(result.dual_gap_ - expected.dual_gap_) <= 1e-10 * np.var(y_memory)
        result.dual_gap_ = expected.dual_gap_
    SEEN.estimators.add(type(case.estimator))
    SEEN.cases += 1
    assert_same(result, expected, case.rtol, type(case.estimator).__name__)
    return result, expected, X_memory


def check_outputs(result, expected, X, rtol):
    """Compare predictions, or transformed blocks by the kernel that a pass uses."""
    if not hasattr(expected, "transform"):
        for method in ("predict", "predict_proba"):
            if hasattr(expected, method):
                assert_same(getattr(result, method)(X), getattr(expected, method)(X), max(rtol, 1e-7))
        return
    wanted = expected.transform(X)
    made = to_matrix(apply(Fitted(result, way_of(result)), X))
    if hasattr(made, "toarray"):
        assert made.format == "csr"
        made, wanted = made.toarray(), wanted.toarray()
    # what is far from zero loses digits when its mean is taken off, in scikit-learn as well
    assert_same_array(np.asarray(made), np.asarray(wanted), rtol, atol=rtol)


def each(estimators, *choices, **options):
    """Every choice of columns and inputs for the first estimator; one frame and one array for its variants."""
    first, *variants = estimators
    for columns, inputs in choices:
        yield Case(first, columns, inputs, **options)
        few = tuple(kind for kind in ("frame", "array") if kind in inputs)
        for variant in variants:
            yield Case(variant, columns, few, **options)


def standard_scalers():
    variants = [
        StandardScaler(),
        StandardScaler(with_mean=False),
        StandardScaler(with_std=False),
        StandardScaler(with_mean=False, with_std=False),
    ]
    yield from each(
        variants, (NUMBERS + NULLABLE, FRAMES), (HOLES, FRAMES + ARRAYS), (FULL, ("frame", "array"))
    )
    yield from each(variants, (SINGLE, FRAMES + ARRAYS), rtol=2e-6)
    yield from each(variants, (FULL, ("frame", "array")), (HOLES, ("parquet", "array")), weighted=True)
    for variant in variants[1], variants[3]:
        yield Case(variant, NUMBERS, CSR)
        yield Case(variant, FULL, CSR, weighted=True)


def minmax_scalers():
    variants = [MinMaxScaler(), MinMaxScaler(feature_range=(-2, 5)), MinMaxScaler(clip=True)]
    yield from each(variants, (NUMBERS + NULLABLE, FRAMES), (HOLES, FRAMES + ARRAYS))
    yield from each(variants, (SINGLE, FRAMES + ARRAYS), rtol=2e-6)


def maxabs_scalers():
    yield from each([MaxAbsScaler()], (NUMBERS + NULLABLE, FRAMES), (HOLES, FRAMES + ARRAYS))
    yield Case(MaxAbsScaler(), NUMBERS, CSR)
    yield Case(MaxAbsScaler(), SINGLE, FRAMES + ARRAYS, rtol=2e-6)


def imputers():
    variants = [
        SimpleImputer(),
        SimpleImputer(add_indicator=True),
        SimpleImputer(strategy="constant", fill_value=-1, keep_empty_features=True, add_indicator=True),
        SimpleImputer(strategy="most_frequent", add_indicator=True),
        SimpleImputer(strategy="most_frequent"),
        SimpleImputer(strategy="constant"),
        SimpleImputer(strategy="constant", fill_value=-1),
        SimpleImputer(strategy="constant", keep_empty_features=True),
        SimpleImputer(keep_empty_features=True),
    ]
    whole = ("whole", "small"), ("frame", "parquet", "array")
    yield from each(variants, (HOLES + NULLABLE, FRAMES), (HOLES, ARRAYS), whole)
    yield from each(variants, (SINGLE, ("frame", "array")), rtol=2e-6)
    sparse = [est for est in variants if est.strategy != "most_frequent" and not est.add_indicator]
    yield from each(sparse, (NUMBERS, CSR))


def text_imputers():
    for estimator in (
        SimpleImputer(strategy="most_frequent"),
        SimpleImputer(strategy="constant"),
        SimpleImputer(strategy="constant", fill_value="absent", keep_empty_features=True),
        SimpleImputer(strategy="most_frequent", add_indicator=True),
    ):
        yield Case(estimator, ("text_holes", "kind_holes", "text"))
        yield Case(estimator, ("object_none",))
        yield Case(estimator, ("text_holes", "holes"), ("frame", "pandas"))
    for marker in (None, pd.NA):
        yield Case(
            SimpleImputer(missing_values=marker, strategy="most_frequent"), ("object_none",), ("pandas",)
        )


def encoders():
    one_hot = [
        OneHotEncoder(),
        OneHotEncoder(sparse_output=False, dtype=np.int64),
        OneHotEncoder(drop="first", dtype=np.float32),
        OneHotEncoder(drop="if_binary"),
        OneHotEncoder(handle_unknown="ignore"),
        OneHotEncoder(handle_unknown="infrequent_if_exist"),
    ]
    ordinal = [
        OrdinalEncoder(),
        OrdinalEncoder(dtype=np.float32),
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2),
    ]
    for variants in one_hot, ordinal:
        yield from each(variants, (TEXTS, FRAMES), (TEXT_HOLES, FRAMES), (OBJECTS, FRAMES))
        yield from each(variants, (("small", "flag"), FRAMES + ARRAYS), (("Whole", "holes"), FRAMES))
    yield Case(OneHotEncoder(drop=["red", 0]), ("text", "small"))
    given = [["pink", "red", "green", "blue"], [0, 1, 2, 3]]
    yield Case(OrdinalEncoder(categories=given), ("text", "small"))
    yield Case(
        OneHotEncoder(categories=[["red", "green"], [0, 1, 3]], handle_unknown="ignore"), ("text", "small")
    )
    yield Case(OneHotEncoder(categories=given, drop="first"), ("text", "small"))


def grouping_encoders():
    for rare in (
        {"min_frequency": 12},
        {"max_categories": 2},
        {"min_frequency": 0.25, "max_categories": 3},
        {"max_categories": 1},
        {"min_frequency": 1000},
    ):
        for encoder in (
            OneHotEncoder(**rare),
            OneHotEncoder(**rare, drop="first"),
            OneHotEncoder(**rare, drop="if_binary", handle_unknown="infrequent_if_exist"),
            OrdinalEncoder(**rare),
            OrdinalEncoder(**rare, handle_unknown="use_encoded_value", unknown_value=-1),
        ):
            yield Case(encoder, ("text", "small"), ("frame", "parquet"))
            yield Case(encoder, TEXT_HOLES, ("frame", "pandas"))


def indicators():
    variants = [
        MissingIndicator(),
        MissingIndicator(features="all"),
        MissingIndicator(sparse=True),
        MissingIndicator(error_on_new=False),
    ]
    yield from each(variants, (HOLES + NULLABLE, ("frame", "pandas")), (HOLES, FRAMES + ARRAYS))
    yield Case(MissingIndicator(), TEXT_HOLES, ("frame", "pandas"))


def selectors():
    yield from each([VarianceThreshold(), VarianceThreshold(1.0)], (HOLES, FRAMES + ARRAYS), (NUMBERS, CSR))
    variants = [
        SelectKBest(k=2),
        SelectKBest(chi2, k=2),
        SelectPercentile(percentile=40),
        SelectFpr(alpha=0.5),
        SelectFdr(alpha=0.9),
        SelectFwe(chi2, alpha=0.9),
        GenericUnivariateSelect(chi2, mode="k_best", param=3),
    ]
    yield from each(variants, (("small", "flag", "positive", "positive_more"), FRAMES + ARRAYS), y="label")
    yield from each(variants, (("small", "flag", "positive"), CSR), y="text")
    variants = [SelectKBest(f_regression, k=2), SelectKBest(r_regression, k=3)]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), (REGULAR, CSR), y="number", rtol=1e-7)


def decompositions():
    variants = [
        PCA(),
        PCA(2),
        PCA(0.9),
        PCA("mle"),
        PCA(2, whiten=True),
        PCA(3, svd_solver="full"),
        PCA(svd_solver="arpack"),
        TruncatedSVD(2, algorithm="arpack"),
    ]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), rtol=1e-7)
    yield from each([PCA(2), PCA(3, whiten=True), TruncatedSVD(3, random_state=0)], (REGULAR, CSR), rtol=1e-6)
    yield Case(PCA(2), ("single", "single_more"), ("frame", "array"), rtol=1e-3)


def weights_of_terms():
    variants = [
        TfidfTransformer(),
        TfidfTransformer(smooth_idf=False, sublinear_tf=True, norm=None),
        TfidfTransformer(use_idf=False, norm="l1"),
    ]
    yield from each(
        variants, (("small", "whole_positive"), FRAMES + ARRAYS), (("small", "whole_positive"), CSR)
    )


def expansions():
    yield Case(PolynomialFeatures(3, interaction_only=True), FULL, FRAMES + ARRAYS)
    yield Case(PolynomialFeatures(include_bias=False), FULL, CSR)
    positive = ("positive", "positive_more")
    yield Case(AdditiveChi2Sampler(), positive, FRAMES + ARRAYS + CSR)
    yield Case(RBFSampler(n_components=7, random_state=0), positive, FRAMES + ARRAYS + CSR)
    yield Case(SkewedChi2Sampler(n_components=5, random_state=0), positive, FRAMES + ARRAYS)
    yield Case(PolynomialCountSketch(n_components=6, random_state=0), positive, FRAMES + ARRAYS + CSR)
    yield Case(GaussianRandomProjection(2, random_state=0), REGULAR, FRAMES + ARRAYS)
    yield Case(SparseRandomProjection(2, density=0.5, random_state=0), REGULAR, FRAMES + ARRAYS)


def stateless():
    yield Case(Normalizer(norm="l1"), FULL, FRAMES + ARRAYS + CSR)
    yield Case(Binarizer(threshold=0.5), FULL, FRAMES + ARRAYS + CSR)
    yield Case(FunctionTransformer(), (*TEXTS, "holes"), ("frame", "parquet", "pandas"))
    yield Case(FunctionTransformer(np.abs, feature_names_out="one-to-one"), FULL, FRAMES + ARRAYS)
    yield Case(FunctionTransformer(np.cbrt, validate=True), ("single",), ("frame", "array"), rtol=2e-6)


def test_every_estimator_of_the_registry_is_compared():
    own = {
        cls
        for cls, way in registered().items()
        if cls.__module__.startswith("sklearn.") and way.kind != "stream"
    }
    makers = [*TRANSFORMERS, *PREDICTORS]
    compared = {type(case.estimator) for maker in makers for case in maker()}
    assert own == compared


def cases(*makers):
    return [param for maker in makers for case in maker() for param in case.params]


TRANSFORMERS = (
    standard_scalers,
    minmax_scalers,
    maxabs_scalers,
    imputers,
    text_imputers,
    indicators,
    encoders,
    grouping_encoders,
    selectors,
    decompositions,
    weights_of_terms,
    stateless,
    expansions,
)


@pytest.mark.parametrize(("case", "kind"), cases(*TRANSFORMERS))
def test_transformer(case, kind, tmp_path):
    result, expected, X = check(case, kind, tmp_path)
    check_outputs(result, expected, X, case.rtol)


def regressors():
    variants = [
        LinearRegression(),
        LinearRegression(fit_intercept=False),
        Ridge(alpha=100.0, fit_intercept=False),
        Ridge(solver="cholesky"),
    ]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="number")
    yield from each(variants, (REGULAR, ("frame", "array")), y="number", weighted=True)
    yield from each(variants, (REGULAR, ("frame", "array")), y="two")
    yield from each(variants, (REGULAR, ("frame", "array")), y="two", weighted=True)
    # columns of single precision make scikit-learn solve in single precision
    yield from each(variants, (("single", "single_more"), ("frame", "array")), y="number", rtol=1e-3)
    yield Case(Ridge(alpha=[0.1, 10.0]), REGULAR, ("frame", "array"), y="two")
    yield Case(Ridge(tol=1e-12), REGULAR, CSR, y="number", rtol=1e-7)


def bayes():
    variants = [GaussianNB(), GaussianNB(priors=[0.2, 0.3, 0.5]), GaussianNB(var_smoothing=1e-3)]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="label")
    yield from each(variants, (REGULAR, ("frame", "array")), y="text")
    yield from each(variants, (REGULAR, ("frame", "array")), y="text", weighted=True)


def counting_bayes():
    counts = ("small", "flag", "positive")
    variants = [
        MultinomialNB(),
        MultinomialNB(fit_prior=False, alpha=0.1),
        ComplementNB(),
        ComplementNB(norm=True),
        BernoulliNB(),
        BernoulliNB(binarize=1.0, class_prior=[0.2, 0.3, 0.5]),
    ]
    yield from each(variants, (counts, FRAMES + ARRAYS), (counts, CSR), y="label")
    yield from each(variants, (counts, ("frame", "array")), y="text", weighted=True)


def categorical_bayes():
    variants = [
        CategoricalNB(),
        CategoricalNB(alpha=0.1, fit_prior=False),
        CategoricalNB(min_categories=7),
    ]
    codes = ("small", "flag", "whole_positive")
    yield from each(variants, (codes, FRAMES + ARRAYS), y="label")
    yield from each(variants, (codes, ("frame", "array")), y="text", weighted=True)


def classifiers():
    variants = [RidgeClassifier(), RidgeClassifier(alpha=10.0, fit_intercept=False)]
    for y in ("label", "flag"):
        yield from each(variants, (REGULAR[:4], FRAMES + ARRAYS), y=y, rtol=1e-7)
        yield from each(variants, (REGULAR[:4], ("frame", "array")), y=y, weighted=True, rtol=1e-7)
    yield Case(RidgeClassifier(tol=1e-12), REGULAR[:4], CSR, y="text", rtol=1e-6)
    variants = [NearestCentroid(), NearestCentroid(shrink_threshold=0.1), NearestCentroid(priors="uniform")]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), (REGULAR, CSR[:1]), y="text", rtol=1e-7)


def penalised():
    variants = [
        Lasso(0.1),
        ElasticNet(0.1),
        Lasso(0.1, fit_intercept=False),
        Lasso(0.1, positive=True, tol=1e-10),
        ElasticNet(0.1, selection="random", random_state=0),
        ElasticNet(0.5, l1_ratio=0.9, precompute=True),
    ]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="number", rtol=1e-6)
    yield from each(variants, (REGULAR, ("frame", "array")), y="number", weighted=True, rtol=1e-6)
    yield Case(Lasso(0.1), REGULAR, CSR, y="number", rtol=1e-6)


def dummies():
    variants = [
        DummyClassifier(strategy=strategy, random_state=0)
        for strategy in ("prior", "most_frequent", "stratified", "uniform")
    ]
    variants.append(DummyClassifier(strategy="constant", constant="yes"))
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="text")
    yield from each(variants, (REGULAR, ("frame", "array")), y="text", weighted=True)
    variants = [DummyRegressor(), DummyRegressor(strategy="constant", constant=3.0)]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), y="number")
    yield from each(variants, (REGULAR, ("frame", "array")), y="number", weighted=True)
    yield Case(DummyRegressor(), REGULAR, ("frame", "array"), y="two")


def covariances():
    variants = [
        EmpiricalCovariance(),
        EmpiricalCovariance(assume_centered=True, store_precision=False),
        ShrunkCovariance(shrinkage=0.3),
        OAS(),
    ]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS))


PREDICTORS = (
    regressors,
    bayes,
    counting_bayes,
    categorical_bayes,
    classifiers,
    penalised,
    dummies,
    covariances,
)


@pytest.mark.parametrize(("case", "kind"), cases(*PREDICTORS))
def test_predictor(case, kind, tmp_path):
    result, expected, X = check(case, kind, tmp_path)
    check_outputs(result, expected, X, case.rtol)
