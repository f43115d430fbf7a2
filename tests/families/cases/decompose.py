"""Decompositions, covariances, weights of terms, varied."""

from sklearn.covariance import OAS, EmpiricalCovariance, GraphicalLasso, LedoitWolf, ShrunkCovariance
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer

from tests.families.conformance import ARRAYS, CSR, FRAMES, REGULAR, Case, each


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


def align_gaps(ours, theirs):
    """A dual gap is a difference of two objectives that are nearly equal: only its size means anything."""
    for mine, other in zip(ours.costs_, theirs.costs_, strict=True):
        assert abs(mine[1] - other[1]) <= 1e-9 * abs(other[0])
    ours.costs_ = [(mine[0], other[1]) for mine, other in zip(ours.costs_, theirs.costs_, strict=True)]


def covariances():
    variants = [
        EmpiricalCovariance(),
        EmpiricalCovariance(assume_centered=True, store_precision=False),
        ShrunkCovariance(shrinkage=0.3),
        OAS(),
        LedoitWolf(),
        LedoitWolf(assume_centered=True, block_size=2),
    ]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS))
    variants = [
        GraphicalLasso(0.5),
        GraphicalLasso(0.5, mode="lars"),
        GraphicalLasso(50.0, assume_centered=True),
    ]
    yield from each(variants, (REGULAR, FRAMES + ARRAYS), rtol=1e-6, align=align_gaps)
    yield Case(LedoitWolf(), ("plain", "offset"), ("frame", "array"))
    yield Case(LedoitWolf(), ("plain",), ("frame", "array"))
    yield Case(LedoitWolf(), ("single", "single_more"), ("frame", "array"), rtol=1e-3)


TRANSFORMERS = (
    decompositions,
    weights_of_terms,
)
PREDICTORS = (covariances,)
