"""The cases of the conformance suite, a module for each group of families."""

from importlib import import_module

_NAMES = """
    bayes cluster composites cross_validated decompose discriminant encode impute
    labels linear objective quantile scale select stateless text
"""
_MODULES = tuple(import_module(f"{__name__}.{name}") for name in _NAMES.split())
TRANSFORMERS = tuple(maker for module in _MODULES for maker in module.TRANSFORMERS)
PREDICTORS = tuple(maker for module in _MODULES for maker in module.PREDICTORS)
