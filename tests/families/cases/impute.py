"""Imputers and indicators, varied."""

import pandas as pd
from sklearn.impute import MissingIndicator, SimpleImputer

from tests.families.conformance import (
    ARRAYS,
    CSR,
    FRAMES,
    HOLES,
    NULLABLE,
    NUMBERS,
    SINGLE,
    TEXT_HOLES,
    Case,
    each,
)


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


def indicators():
    variants = [
        MissingIndicator(),
        MissingIndicator(features="all"),
        MissingIndicator(sparse=True),
        MissingIndicator(error_on_new=False),
    ]
    yield from each(variants, (HOLES + NULLABLE, ("frame", "pandas")), (HOLES, FRAMES + ARRAYS))
    yield Case(MissingIndicator(), TEXT_HOLES, ("frame", "pandas"))


TRANSFORMERS = (
    imputers,
    text_imputers,
    indicators,
)
PREDICTORS = ()
