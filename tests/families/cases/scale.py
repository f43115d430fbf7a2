"""The scalers, varied."""

from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    StandardScaler,
)

from tests.families.conformance import ARRAYS, CSR, FRAMES, FULL, HOLES, NULLABLE, NUMBERS, SINGLE, Case, each


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


TRANSFORMERS = (
    standard_scalers,
    minmax_scalers,
    maxabs_scalers,
)
PREDICTORS = ()
