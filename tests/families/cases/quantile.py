"""What is learned from quantiles, varied."""

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import (
    KBinsDiscretizer,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    SplineTransformer,
)

from tests.families.conformance import (
    ARRAYS,
    CSR,
    FRAMES,
    HOLES,
    NULLABLE,
    NUMBERS,
    REGULAR,
    SINGLE,
    Case,
    each,
)


def robust_scalers():
    variants = [
        RobustScaler(),
        RobustScaler(with_centering=False),
        RobustScaler(with_scaling=False),
        RobustScaler(quantile_range=(10.0, 95.0), unit_variance=True),
    ]
    yield from each(variants, (NUMBERS + NULLABLE, FRAMES), (HOLES, FRAMES + ARRAYS))
    yield from each(variants, (SINGLE, FRAMES + ARRAYS), rtol=2e-6)
    yield Case(RobustScaler(with_centering=False), NUMBERS, CSR)


def median_imputers():
    variants = [
        SimpleImputer(strategy="median"),
        SimpleImputer(strategy="median", add_indicator=True),
        SimpleImputer(strategy="median", keep_empty_features=True),
    ]
    yield from each(variants, (HOLES + NULLABLE, FRAMES), (HOLES, ARRAYS), (("whole", "small"), FRAMES))
    yield from each(variants, (SINGLE, ("frame", "array")), rtol=2e-6)
    yield Case(SimpleImputer(strategy="median"), NUMBERS, CSR)


def quantile_transformers():
    variants = [
        QuantileTransformer(n_quantiles=20),
        QuantileTransformer(n_quantiles=7, output_distribution="normal", subsample=None),
        QuantileTransformer(n_quantiles=10, subsample=30, random_state=3),
    ]
    yield from each(variants, (HOLES + NULLABLE, FRAMES), (HOLES, FRAMES + ARRAYS))
    yield from each(variants, (SINGLE, ("frame", "array")), rtol=2e-6)


def binners():
    variants = [
        KBinsDiscretizer(4),
        KBinsDiscretizer(3, encode="onehot-dense", strategy="uniform"),
        KBinsDiscretizer(3, encode="ordinal", strategy="kmeans"),
        KBinsDiscretizer(3, encode="ordinal", subsample=40, random_state=0),
        KBinsDiscretizer(2, strategy="kmeans", subsample=40, random_state=5, dtype=np.float32),
        *(
            KBinsDiscretizer(5, encode="ordinal", quantile_method=method, subsample=None)
            for method in (
                "inverted_cdf",
                "closest_observation",
                "interpolated_inverted_cdf",
                "hazen",
                "weibull",
                "linear",
                "median_unbiased",
                "normal_unbiased",
            )
        ),
    ]
    yield from each(variants, (REGULAR[:3], FRAMES + ARRAYS))
    yield Case(KBinsDiscretizer([2, 5, 3], encode="ordinal"), REGULAR[:3], ("frame", "array"))
    yield Case(KBinsDiscretizer(3, subsample=None), ("single", "single_more"), ("array",), rtol=2e-6)
    weighted = [
        KBinsDiscretizer(4),
        KBinsDiscretizer(6, encode="ordinal", quantile_method="inverted_cdf", subsample=None),
        KBinsDiscretizer(3, encode="onehot-dense", strategy="uniform"),
        KBinsDiscretizer(3, encode="ordinal", strategy="kmeans"),
        KBinsDiscretizer(3, encode="ordinal", subsample=40, random_state=0),
        KBinsDiscretizer(3, quantile_method="linear", subsample=30, random_state=2),
    ]
    yield from each(weighted, (REGULAR[:3], FRAMES + ARRAYS), weighted=True)


def splines():
    variants = [
        SplineTransformer(),
        SplineTransformer(knots="quantile", n_knots=4),
        SplineTransformer(n_knots=6, degree=2, extrapolation="periodic", include_bias=False),
        SplineTransformer(knots="quantile", extrapolation="linear", sparse_output=True),
    ]
    yield from each(variants, (REGULAR[:2], FRAMES + ARRAYS))
    yield Case(SplineTransformer(handle_missing="zeros", knots="quantile"), HOLES[:2], ("frame", "array"))
    weighted = [SplineTransformer(), SplineTransformer(knots="quantile", n_knots=4)]
    yield from each(weighted, (REGULAR[:2], FRAMES + ARRAYS), weighted=True)
    of_holes = SplineTransformer(handle_missing="zeros", knots="quantile")
    yield Case(of_holes, HOLES[:2], ("frame", "array"), weighted=True)


def powers():
    variants = [PowerTransformer(), PowerTransformer(standardize=False)]
    yield from each(
        variants, (("plain", "more", "holes", "whole", "Single"), FRAMES), (HOLES[:2], ARRAYS), rtol=1e-6
    )
    box = [PowerTransformer("box-cox"), PowerTransformer("box-cox", standardize=False)]
    yield from each(box, (("positive", "positive_more", "whole_positive"), FRAMES + ARRAYS), rtol=1e-5)


TRANSFORMERS = (powers, robust_scalers, median_imputers, quantile_transformers, binners, splines)
PREDICTORS = ()
