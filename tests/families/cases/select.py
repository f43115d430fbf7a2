"""Selection of columns, varied."""

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

from tests.families.conformance import ARRAYS, CSR, FRAMES, HOLES, NUMBERS, REGULAR, each


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


TRANSFORMERS = (selectors,)
PREDICTORS = ()
