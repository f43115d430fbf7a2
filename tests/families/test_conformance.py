"""Every estimator, fitted from blocks, is what scikit-learn fits in memory: attribute by attribute."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpipe.families.registry import registered
from tests.families.cases import PREDICTORS, TRANSFORMERS
from tests.families.conformance import check, check_outputs
from tests.kernel_cases import N_ROWS


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


def one_case_each():
    """The first case of each estimator that can be cut into any blocks."""
    first = {}
    for case in (case for maker in (*TRANSFORMERS, *PREDICTORS) for case in maker()):
        if {"frame", "array"} & set(case.inputs):
            first.setdefault(type(case.estimator), case)
    return [pytest.param(case, id=cls.__name__) for cls, case in first.items()]


@pytest.mark.parametrize("case", one_case_each())
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, N_ROWS), max_size=6))
def test_any_blocks_give_the_same(case, cuts, tmp_path):
    ends = [0, *sorted(cuts), N_ROWS]
    sizes = tuple(int(n) for n in np.diff(ends))
    kind = "frame" if "frame" in case.inputs else "array"
    check(case, kind, tmp_path, sizes)


def test_every_estimator_of_the_registry_is_compared():
    own = {
        cls
        for cls, way in registered().items()
        if cls.__module__.startswith("sklearn.") and way.kind != "stream"
    }
    compared = {type(case.estimator) for maker in (*TRANSFORMERS, *PREDICTORS) for case in maker()}
    assert own == compared
