import dask
import dask.array as da
import dask.dataframe as dd
import pandas as pd
import pytest

from tests.helpers import raise_if_computes


def test_raise_if_computes_lets_graphs_be_built():
    with raise_if_computes():
        lazy = dd.from_pandas(pd.DataFrame({"a": [1, 2]}), npartitions=2).a.sum()
    assert lazy.compute() == 3


@pytest.mark.parametrize("compute", [lambda X: X.compute(), lambda X: dask.compute(X), lambda X: X.persist()])
def test_raise_if_computes_raises(compute):
    with raise_if_computes(), pytest.raises(AssertionError, match="nothing may be computed"):
        compute(da.ones(4, chunks=2))


def test_tests_run_synchronously():
    assert dask.config.get("scheduler") == "synchronous"


@pytest.mark.cluster
def test_cluster_tests_choose_for_themselves():
    assert dask.config.get("scheduler", None) is None


def test_shared_data_is_marked(request, shared_data):
    assert request.node.get_closest_marker("shared_data")
    assert shared_data.is_dir()
