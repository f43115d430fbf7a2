"""What learns nothing from the rows, varied."""

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_approximation import (
    AdditiveChi2Sampler,
    PolynomialCountSketch,
    RBFSampler,
    SkewedChi2Sampler,
)
from sklearn.preprocessing import (
    Binarizer,
    FunctionTransformer,
    Normalizer,
    PolynomialFeatures,
    StandardScaler,
)
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection

from tests.families.conformance import ARRAYS, CSR, FRAMES, FULL, REGULAR, TEXTS, Case
from tests.kernel_cases import awkward_frame


def stateless():
    frozen = FrozenEstimator(StandardScaler().fit(awkward_frame()[list(FULL)]))
    yield Case(frozen, FULL, ("frame", "parquet", "pandas"), y="flag")
    yield Case(Normalizer(norm="l1"), FULL, FRAMES + ARRAYS + CSR)
    yield Case(Binarizer(threshold=0.5), FULL, FRAMES + ARRAYS + CSR)
    yield Case(FunctionTransformer(), (*TEXTS, "holes"), ("frame", "parquet", "pandas"))
    yield Case(FunctionTransformer(np.abs, feature_names_out="one-to-one"), FULL, FRAMES + ARRAYS)
    yield Case(FunctionTransformer(np.cbrt, validate=True), ("single",), ("frame", "array"), rtol=2e-6)


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


TRANSFORMERS = (
    stateless,
    expansions,
)
PREDICTORS = ()
