"""Documents: vectorizers of texts in one pass, from counts of terms; hashing ones in none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.feature_extraction.text import (
    CountVectorizer,
    HashingVectorizer,
    TfidfTransformer,
    TfidfVectorizer,
)

from dpipe.blocks.matrix import to_matrix
from dpipe.blocks.statistics import Nonzeros, Present
from dpipe.blocks.table import Block
from dpipe.blocks.terms import TermCounts, limited
from dpipe.errors import InputError
from dpipe.families import refuse, stand_in
from dpipe.families.registry import Derivation, Estimator, Meta, Way, add


def _finish_weights(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    if not stats:
        return clone(estimator).fit(stand_in.numeric(meta, meta.width or 1, meta.dtype, sparse=meta.sparse))
    present: Present = stats[0]
    smooth = int(estimator.smooth_idf)
    X = stand_in.numeric(meta, len(present.rows), present.dtype, sparse=present.sparse)
    with np.errstate(divide="ignore"):  # of the stand-in, whose columns are empty
        fitted = clone(estimator).fit(X)
        idf = np.full(len(present.rows), present.n_rows + smooth, dtype=present.dtype)
        idf /= present.rows.astype(present.dtype) + smooth
    fitted.idf_ = np.log(idf) + idf.dtype.type(1)
    return fitted


def _transform_weights(fitted: Estimator, block: Block) -> Block:
    return fitted.transform(to_matrix(block)).tocsr()


def _output_weights(estimator: Estimator, meta: Meta) -> Meta:
    return Meta(n_columns=meta.width, dtype=meta.dtype, sparse=True)


add(
    TfidfTransformer,
    Way(
        "merge",
        _finish_weights,
        lambda est: (Present,) if est.use_idf else (),
        _transform_weights,
        output=_output_weights,
    ),
)


@dataclass(frozen=True)
class Terms:
    """The terms of documents, as a vectorizer finds them."""

    name: ClassVar[str] = "Terms"
    vectorizer: Estimator

    def of(self, X: Any, y: Any = None, w: Any = None) -> TermCounts:
        """Read one block; `X` of shape (n_rows,)."""
        vectorizer = clone(self.vectorizer)  # an analyzer notes in it which stop words it has looked at
        with refuse.unreadable(vectorizer, X):
            analyze = vectorizer.build_analyzer()
            if vectorizer.vocabulary is None:
                return TermCounts.of(map(analyze, X), times=vectorizer.max_features is not None)
            vectorizer._validate_vocabulary()
            known = vectorizer.vocabulary_
            return TermCounts.of([term for term in analyze(document) if term in known] for document in X)


def _terms_of_vocabulary(estimator: Estimator) -> tuple[Any, ...]:
    return (Terms(estimator),) if estimator.vocabulary is None else ()


def _terms_of_weights(estimator: Estimator) -> tuple[Any, ...]:
    return (Terms(estimator),) if estimator.vocabulary is None or estimator.use_idf else ()


def _check(estimator: Estimator) -> None:
    vectorizer = clone(estimator)
    try:
        vectorizer._validate_ngram_range()
        if getattr(vectorizer, "vocabulary", None) is not None:
            vectorizer._validate_vocabulary()
    except ValueError as err:
        raise InputError(f"{type(estimator).__name__}: {err}") from err


def _finish_vocabulary(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    fitted = clone(estimator)
    if fitted.vocabulary is not None:
        CountVectorizer.fit_transform(fitted, [])  # checks it; there is nothing to learn
        return fitted
    fitted._warn_for_unused_params()
    fitted._validate_vocabulary()
    fitted.build_analyzer()
    fitted.vocabulary_ = _vocabulary(estimator, stats[0])
    return fitted


def _vocabulary(estimator: Estimator, counts: TermCounts) -> dict[str, int]:
    if not counts.documents:
        raise InputError(
            f"{type(estimator).__name__}: empty vocabulary; perhaps the documents only contain stop words. Look at "
            "its token_pattern, stop_words and analyzer."
        )
    least, most = (
        float(bound if isinstance(bound, Integral) else bound * counts.n_documents)
        for bound in (estimator.min_df, estimator.max_df)
    )
    if most < least:
        raise InputError(f"{type(estimator).__name__}: max_df corresponds to fewer documents than min_df.")
    if estimator.binary:
        counts = replace(counts, times=counts.documents)
    # the type in which SciPy adds up columns of the vectorizer's type
    dtype = sp.csr_matrix(np.zeros((1, 1), dtype=estimator.dtype)).sum(axis=0).dtype
    found = limited(counts, least, most, estimator.max_features, dtype)
    if not found:
        raise InputError(
            f"{type(estimator).__name__}: after pruning, no terms remain. Try a lower min_df or a higher max_df."
        )
    return found


def _finish_tfidf(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    fitted = _finish_vocabulary(estimator, stats, meta)
    fitted._check_params()
    weights = TfidfTransformer(
        norm=fitted.norm,
        use_idf=fitted.use_idf,
        smooth_idf=fitted.smooth_idf,
        sublinear_tf=fitted.sublinear_tf,
    )
    shape = Meta(n_columns=len(fitted.vocabulary_), dtype=np.dtype(fitted.dtype), sparse=True)
    fitted._tfidf = _finish_weights(weights, [_present(fitted, stats[0])] if weights.use_idf else [], shape)
    return fitted


def _present(fitted: Estimator, counts: TermCounts) -> Present:
    rows = np.zeros(len(fitted.vocabulary_), dtype=np.int64)
    for term, j in fitted.vocabulary_.items():
        rows[j] = counts.documents.get(term, 0)
    dtype = np.dtype(fitted.dtype)
    floats = dtype if dtype in (np.float32, np.float64) else np.dtype("float64")
    return Present(counts.n_documents, rows, floats, True)


def _nonzeros(fitted: Estimator, counts: TermCounts) -> Nonzeros:
    return Nonzeros(counts.n_documents, int(_present(fitted, counts).rows.sum()))


def _present_rule(estimator: Estimator) -> Derivation:
    return Derivation(Terms(estimator), _present, "the documents of each term")


def _nonzeros_rule(estimator: Estimator) -> Derivation:
    return Derivation(Terms(estimator), _nonzeros, "one entry a document and term")


def vectorize(fitted: Estimator, X: Block) -> Block:
    """Transform documents or records of shape (n_rows,).

    Raises
    ------
    InputError
        If one of them is missing or cannot be read.
    """
    with refuse.unreadable(fitted, X):
        return fitted.transform(X)


def output(estimator: Estimator, meta: Meta) -> Meta:
    """Say what comes out: how many columns is left open, as a row fills but a few of them."""
    return Meta(dtype=np.dtype(estimator.dtype), sparse=True)


for _cls, _finish, _wants in (
    (CountVectorizer, _finish_vocabulary, _terms_of_vocabulary),
    (TfidfVectorizer, _finish_tfidf, _terms_of_weights),
):
    add(
        _cls,
        Way(
            "merge",
            _finish,
            _wants,
            vectorize,
            {Present: _present_rule, Nonzeros: _nonzeros_rule},
            _check,
            output,
            one_dimensional=True,
        ),
    )


def _finish_hashing(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    return clone(estimator).fit([])


add(
    HashingVectorizer,
    Way("stateless", _finish_hashing, transform=vectorize, check=_check, output=output, one_dimensional=True),
)
