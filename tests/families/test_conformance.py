"""Every estimator, fitted from blocks, is what scikit-learn fits in memory: attribute by attribute."""

import pytest

from dpipe.families.registry import registered
from tests.families.cases import PREDICTORS, TRANSFORMERS
from tests.families.conformance import check, check_outputs


def cases(makers):
    return [param for maker in makers for case in maker() for param in case.params]


@pytest.mark.parametrize(("case", "kind"), cases(TRANSFORMERS))
def test_transformer(case, kind, tmp_path):
    result, expected, X = check(case, kind, tmp_path)
    check_outputs(result, expected, X, case.rtol)


@pytest.mark.parametrize(("case", "kind"), cases(PREDICTORS))
def test_predictor(case, kind, tmp_path):
    result, expected, X = check(case, kind, tmp_path)
    check_outputs(result, expected, X, case.rtol)


def test_every_estimator_of_the_registry_is_compared():
    own = {
        cls
        for cls, way in registered().items()
        if cls.__module__.startswith("sklearn.") and way.kind != "stream"
    }
    compared = {type(case.estimator) for maker in (*TRANSFORMERS, *PREDICTORS) for case in maker()}
    assert own == compared
