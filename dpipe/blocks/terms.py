"""Terms of documents, and names of records, counted block by block."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class TermCounts:
    """How often each term stands in documents, and in how many of them.

    Grows with the number of different terms, as the vocabulary that is made of it does.
    """

    n_documents: int
    documents: Counter[str]
    """For each term the documents that it stands in; in order of appearance."""
    times: Counter[str]
    """For each term how often it stands in all of them; empty if that was not asked for."""

    @classmethod
    def of(cls, documents: Iterable[Iterable[str]], *, times: bool = False) -> Self:
        """Count the terms of each document.

        Examples
        --------
        >>> TermCounts.of([["a", "b", "a"], ["b"]]).documents
        Counter({'b': 2, 'a': 1})
        """
        in_documents: Counter[str] = Counter()
        in_all: Counter[str] = Counter()
        n = 0
        for terms in documents:
            n += 1
            found = Counter(terms)
            in_documents.update(found.keys())
            if times:
                in_all.update(found)
        return cls(n, in_documents, in_all)

    def merge(self, other: Self) -> Self:
        """Join with the counts of later documents."""
        return type(self)(
            self.n_documents + other.n_documents,
            _added(self.documents, other.documents),
            _added(self.times, other.times),
        )


def _added(mine: Counter[str], theirs: Counter[str]) -> Counter[str]:
    both = mine.copy()
    both.update(theirs)
    return both


@dataclass(frozen=True)
class Distinct:
    """Distinct values, in order of appearance."""

    found: dict[Any, None]

    @classmethod
    def of(cls, values: Iterable[Any]) -> Self:
        """Take each value once."""
        return cls(dict.fromkeys(values))

    def merge(self, other: Self) -> Self:
        """Join with those of later rows."""
        return type(self)({**self.found, **other.found})


def limited(
    counts: TermCounts, least: float, most: float, n_terms: int | None, dtype: np.dtype[Any]
) -> dict[str, int]:
    """Choose the terms of a vocabulary, as scikit-learn does: by documents, then the most frequent ones.

    Parameters
    ----------
    counts : TermCounts
    least, most : float
        Fewest and most documents that a term may stand in.
    n_terms : int, optional
        How many terms to keep at most; `counts.times` is needed for it.
    dtype : numpy.dtype
        In which scikit-learn sums the counts: ties are broken by the order in which NumPy sorts them.

    Returns
    -------
    dict
        From each term to its place in the alphabet; in order of appearance.
    """
    if n_terms is None:
        kept = {term for term, n in counts.documents.items() if least <= n <= most}
        places = {term: j for j, term in enumerate(sorted(kept))}
        return {term: places[term] for term in counts.documents if term in kept}
    terms = sorted(counts.documents)
    in_documents = np.array([counts.documents[term] for term in terms])
    mask = (in_documents >= least) & (in_documents <= most)
    if mask.sum() > n_terms:
        times = np.array([counts.times[term] for term in terms]).astype(dtype)
        chosen = np.flatnonzero(mask)[(-times[mask]).argsort()[:n_terms]]
        mask = np.zeros(len(terms), dtype=bool)
        mask[chosen] = True
    places = dict(zip(np.array(terms, dtype=object)[mask].tolist(), np.arange(mask.sum()), strict=True))
    return {term: places[term] for term in counts.documents if term in places}
