"""Encoders, varied."""

import numpy as np
from sklearn.preprocessing import (
    OneHotEncoder,
    OrdinalEncoder,
    TargetEncoder,
)

from tests.families.conformance import ARRAYS, FRAMES, OBJECTS, TEXT_HOLES, TEXTS, Case, each


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
        yield Case(variants[0], ("day",))
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


def target_encoders():
    variants = [TargetEncoder(), TargetEncoder(smooth=2.5), TargetEncoder(smooth=0)]
    for y in ("number", "flag", "label", "text"):
        yield from each(variants, (TEXTS, FRAMES), (TEXT_HOLES, FRAMES), (OBJECTS, ("object frame",)), y=y)
        yield from each(variants, (("small", "flag"), FRAMES + ARRAYS), (("Whole", "holes"), ("frame",)), y=y)
    yield Case(TargetEncoder(target_type="continuous"), TEXTS, y="label")
    yield Case(TargetEncoder(target_type="binary"), TEXTS, y="flag")
    yield Case(TargetEncoder(target_type="multiclass"), TEXTS, y="text")
    given = [["pink", "red", "never"], [0, 1, 9]]
    for y in ("number", "label"):
        yield Case(TargetEncoder(categories=given), ("text", "small"), y=y)


TRANSFORMERS = (
    encoders,
    grouping_encoders,
    target_encoders,
)
PREDICTORS = ()
