"""Stores of both formats open lazily, chunk by chunk, and equal what xarray reads."""

import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

import dpipe
from dpipe.errors import InputError, SourceError
from dpipe.ledger.fingerprint import Fingerprinter
from tests.helpers import raise_if_computes


def made():
    dataset = xr.Dataset(
        {
            "t": (("time", "x"), np.arange(21.0, dtype="float32").reshape(7, 3), {"units": "K"}),
            "packed": ("time", [1.0, np.nan, 3.0, 4.0, 5.0, 6.0, 7.0]),
            "when": ("time", pd.date_range("1999-01-01", periods=7)),
        },
        {"time": pd.date_range("2000-01-01", periods=7), "x": [3, 2, 1], "name": ("x", ["a", "bb", "c"])},
        {"title": "made"},
    )
    dataset["packed"].encoding = {"dtype": "int16", "scale_factor": 0.5, "_FillValue": -9}
    return dataset


def store(dataset, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # texts have no final specification
        dataset.to_zarr(path, **options)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
def test_what_is_opened_is_what_xarray_reads(tmp_path, version, consolidated):
    store(made().chunk(time=3), tmp_path / "a.zarr", zarr_format=version, consolidated=consolidated)
    with raise_if_computes(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = dpipe.open_zarr(tmp_path / "a.zarr")
        wanted = xr.open_zarr(tmp_path / "a.zarr")
    assert found["t"].chunks == ((3, 3, 1), (3,))
    assert found.chunks == wanted.chunks
    xr.testing.assert_identical(found.compute(scheduler="sync"), wanted.compute(scheduler="sync"))


def test_shards_are_blocks(tmp_path):
    root = zarr.open_group(tmp_path / "a.zarr", mode="w")
    array = root.create_array(
        "t", shape=(10, 8), chunks=(2, 2), shards=(4, 8), dtype="f8", dimension_names=("y", "x")
    )
    values = np.arange(80.0).reshape(10, 8)
    array[:] = values
    found = dpipe.open_zarr(tmp_path / "a.zarr")
    assert found["t"].chunks == ((4, 4, 2), (8,))
    np.testing.assert_array_equal(found["t"], values)
    assert dpipe.open_zarr(tmp_path / "a.zarr", block_nbytes=8 * 64)["t"].chunks == ((8, 2), (8,))


def test_a_store_that_is_one_array(tmp_path):
    zarr.create_array(tmp_path / "field.zarr", shape=(4,), chunks=(2,), dtype="i4")[:] = [1, 2, 3, 4]
    found = dpipe.open_zarr(tmp_path / "field.zarr")
    assert found["field"].values.tolist() == [1, 2, 3, 4]


def test_a_store_elsewhere(tmp_path):
    store(made().drop_vars("name"), "memory://stores/a.zarr", zarr_format=3, consolidated=False)
    found = dpipe.open_zarr("memory://stores/a.zarr")
    xr.testing.assert_identical(found.compute(), made().drop_vars("name"))


def test_groups(tmp_path):
    store(made().drop_vars("name"), tmp_path / "a.zarr", group="inside", consolidated=False)
    assert dpipe.open_zarr(tmp_path / "a.zarr", group="inside")["t"].shape == (7, 3)
    with pytest.raises(SourceError, match=r"a\.zarr is no Zarr store at 'nowhere'"):
        dpipe.open_zarr(tmp_path / "a.zarr", group="nowhere")


def test_chunks_of_one_value_are_warned_of_and_joined(tmp_path):
    dataset = made()[["t"]].drop_vars("name")
    store(dataset, tmp_path / "a.zarr", encoding={"t": {"chunks": (1, 1)}}, consolidated=False)
    with pytest.warns(UserWarning, match=r"'t' is stored in 21 chunks of one value.*dpipe\.rechunk\("):
        found = dpipe.open_zarr(tmp_path / "a.zarr")
    assert found["t"].data.npartitions == 1
    np.testing.assert_array_equal(found["t"], dataset["t"])


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"nothing is no Zarr store that can be read"):
        dpipe.open_zarr(tmp_path / "nothing")
    with pytest.raises(InputError, match="3 is no path of a Zarr store"):
        dpipe.open_zarr(3)
    store(made().isel(time=[0, 2, 1]).drop_vars("name"), tmp_path / "a.zarr", consolidated=False)
    with pytest.raises(SourceError, match=r"a\.zarr: the coordinate 'time' is not monotonic: 2000-01-02"):
        dpipe.open_zarr(tmp_path / "a.zarr")
    found = dpipe.open_zarr(tmp_path / "a.zarr", drop_variables="time")
    (chunk,) = (path for path in (tmp_path / "a.zarr" / "t" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(b"damaged")
    with pytest.raises(SourceError, match=r"a\.zarr: 't'\[0:3, 0:3\] cannot be read"):
        found["t"].compute()


def test_a_chunk_that_changes_has_another_fingerprint(tmp_path):
    store(made().drop_vars("name").chunk(time=4), tmp_path / "a.zarr", zarr_format=3, consolidated=False)

    def taken():
        graph = dict(dpipe.open_zarr(tmp_path / "a.zarr")["t"].data.__dask_graph__())
        return [Fingerprinter().of(task) for _, task in sorted(graph.items())]

    before = taken()
    assert taken() == before
    zarr.open_array(tmp_path / "a.zarr" / "t", mode="r+")[5, 0] = 99
    after = taken()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]
