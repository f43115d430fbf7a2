"""What takes documents and records, varied."""

import numpy as np
from sklearn.feature_extraction import DictVectorizer, FeatureHasher
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer

from tests.families.conformance import LISTS, OBJECT_SERIES, SERIES, Case


def as_it_is(document):
    return document


def split_at_spaces(document):
    return document.split()


def vectorizers():
    for cls in CountVectorizer, TfidfVectorizer:
        variants = [
            cls(),
            cls(min_df=3, max_df=0.4),
            cls(max_features=5),
            cls(max_features=4, dtype=np.float32, min_df=0.05),
            cls(max_features=3, binary=True),
            cls(ngram_range=(1, 2), stop_words=["the", "and"]),
            cls(stop_words="english", strip_accents="unicode", lowercase=False),
            cls(analyzer="char_wb", ngram_range=(2, 3), max_features=20),
            cls(analyzer=split_at_spaces),
            cls(tokenizer=split_at_spaces, token_pattern=None),
            cls(vocabulary=["fig", "date", "apple", "never"]),
            cls(vocabulary={"fig": 1, "date": 0}, binary=True),
        ]
        yield from _as_documents(variants)
        yield Case(cls(analyzer=as_it_is), ("tokens",), OBJECT_SERIES + LISTS)
    variants = [
        TfidfVectorizer(use_idf=False),
        TfidfVectorizer(use_idf=False, vocabulary=["fig", "date"]),
        TfidfVectorizer(smooth_idf=False, sublinear_tf=True, norm="l1", dtype=np.float32),
    ]
    yield from _as_documents(variants)


def hashing():
    variants = [
        HashingVectorizer(n_features=50),
        HashingVectorizer(n_features=8, norm="l1", alternate_sign=False, binary=True, dtype=np.float32),
        HashingVectorizer(n_features=50, analyzer="char", ngram_range=(1, 2)),
    ]
    yield from _as_documents(variants)
    yield Case(FeatureHasher(20), ("plain_record",), OBJECT_SERIES + LISTS)
    yield Case(FeatureHasher(20, input_type="string"), ("tokens",), OBJECT_SERIES + LISTS)
    yield Case(FeatureHasher(9, input_type="pair", alternate_sign=False), ("pairs",), OBJECT_SERIES + LISTS)


def records():
    for variant in (
        DictVectorizer(),
        DictVectorizer(sparse=False, dtype=np.float32),
        DictVectorizer(sort=False, separator=":"),
    ):
        yield Case(variant, ("record",), OBJECT_SERIES + LISTS)


def _as_documents(variants):
    first, *others = variants
    yield Case(first, ("document",), SERIES + LISTS)
    for variant in others:
        yield Case(variant, ("document",), ("series", "object array"))


TRANSFORMERS = (vectorizers, hashing, records)
PREDICTORS = ()
