"""The cases of the conformance suite, a module for each group of families."""

from tests.families.cases import (
    bayes,
    decompose,
    encode,
    impute,
    labels,
    linear,
    scale,
    select,
    stateless,
    text,
)

_MODULES = (bayes, decompose, encode, impute, labels, linear, scale, select, stateless, text)
TRANSFORMERS = tuple(maker for module in _MODULES for maker in module.TRANSFORMERS)
PREDICTORS = tuple(maker for module in _MODULES for maker in module.PREDICTORS)
