"""Records: DictVectorizer in one pass, from the names that stand in them; FeatureHasher in none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sklearn.base import clone
from sklearn.feature_extraction import DictVectorizer, FeatureHasher

from dpipe.blocks.terms import Distinct
from dpipe.families import refuse
from dpipe.families.registry import Estimator, Meta, Way, add
from dpipe.families.text import output, vectorize


@dataclass(frozen=True)
class Names:
    """The names of columns, as a DictVectorizer makes them of records."""

    name: ClassVar[str] = "Names"
    vectorizer: Estimator

    def of(self, X: Any, y: Any = None, w: Any = None) -> Distinct:
        """Read one block; `X` of shape (n_rows,)."""
        vectorizer = clone(self.vectorizer).set_params(sort=False)
        with refuse.unreadable(vectorizer, X):
            return Distinct.of(vectorizer.fit(X).feature_names_)


def _names(estimator: Estimator) -> tuple[Any, ...]:
    return (Names(estimator),)


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    return clone(estimator).fit([dict.fromkeys(stats[0].found, 1)])


def _output(estimator: Estimator, meta: Meta) -> Meta:
    return Meta(dtype=output(estimator, meta).dtype, sparse=estimator.sparse)


def _finish_hashing(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    return clone(estimator).fit()


add(DictVectorizer, Way("merge", _finish, _names, vectorize, output=_output, one_dimensional=True))
add(
    FeatureHasher,
    Way("stateless", _finish_hashing, transform=vectorize, output=output, one_dimensional=True),
)
