"""The cases of the conformance suite, a module for each group of families."""

from tests.families.cases import (
    bayes,
    cluster,
    composites,
    cross_validated,
    decompose,
    discriminant,
    encode,
    impute,
    labels,
    linear,
    objective,
    quantile,
    scale,
    select,
    stateless,
    text,
)

_MODULES = (
    bayes,
    cluster,
    composites,
    cross_validated,
    decompose,
    discriminant,
    encode,
    impute,
    labels,
    linear,
    objective,
    quantile,
    scale,
    select,
    stateless,
    text,
)
TRANSFORMERS = tuple(maker for module in _MODULES for maker in module.TRANSFORMERS)
PREDICTORS = tuple(maker for module in _MODULES for maker in module.PREDICTORS)
