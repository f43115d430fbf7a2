"""The cases of the conformance suite, a module for each group of families."""

from tests.families.cases import (
    bayes,
    cross_validated,
    decompose,
    discriminant,
    encode,
    impute,
    linear,
    scale,
    select,
    stateless,
)

_MODULES = (bayes, cross_validated, decompose, discriminant, encode, impute, linear, scale, select, stateless)
TRANSFORMERS = tuple(maker for module in _MODULES for maker in module.TRANSFORMERS)
PREDICTORS = tuple(maker for module in _MODULES for maker in module.PREDICTORS)
