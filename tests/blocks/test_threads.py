"""One thread for linear algebra, whoever has set a limit before, and whoever leaves first."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.linalg  # noqa: F401  (loads SciPy's own BLAS)
from threadpoolctl import threadpool_info, threadpool_limits

from dpipe.blocks.threads import single_threaded_blas


def limits():
    return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}


@pytest.fixture
def three_threads():
    np.ones((2, 2)) @ np.ones((2, 2))
    with threadpool_limits(3, user_api="blas"):
        yield


def test_one_inside_and_as_before_outside(three_threads):
    assert limits() == {3}
    with single_threaded_blas():
        assert limits() == {1}
    assert limits() == {3}


def test_another_thread_is_limited_though_this_one_has_set_a_limit_before(three_threads):
    def inside():
        with single_threaded_blas():
            return limits()

    with single_threaded_blas():
        pass
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() == {1}
    assert limits() == {3}


def test_the_last_one_out_restores_the_limit_though_another_has_set_it(three_threads):
    entered, leave = threading.Event(), threading.Event()

    def outstay():
        with single_threaded_blas():
            entered.set()
            assert leave.wait(30)
            return limits()

    with ThreadPoolExecutor(1) as pool:
        with single_threaded_blas():
            stays = pool.submit(outstay)
            assert entered.wait(30)
        assert limits() == {1}
        leave.set()
        assert stays.result() == {1}
    assert limits() == {3}
