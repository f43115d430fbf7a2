"""Arrays are written chunk by chunk, go on after a stop, and are checked against their manifest."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

import dpipe
from dpipe.errors import InputError, OutputError


def cube(add=0.0):
    values = np.arange(5 * 7 * 3, dtype="float32").reshape(5, 7, 3) + add
    return values, da.from_array(values, chunks=(2, 3, 3))


def test_what_is_written_is_what_zarr_and_xarray_read(tmp_path):
    values, lazy = cube()
    folder = dpipe.write_zarr(lazy * 2, tmp_path / "out")
    np.testing.assert_array_equal(zarr.open_array(folder, mode="r")[:], values * 2)
    np.testing.assert_array_equal(da.from_zarr(folder).compute(), values * 2)
    assert da.from_zarr(folder).chunks == lazy.chunks
    found = dpipe.verify(folder)
    assert found.ok, found
    assert found.n_files == 3 * 3 + 1
    assert not (folder / ".unfinished").exists()
    assert xr.DataArray(da.from_zarr(folder)).sum() == (values * 2).sum()


@pytest.mark.parametrize("dtype", ["int8", "bool", "datetime64[ns]", "complex64", "float16"])
def test_types(tmp_path, dtype):
    values = np.arange(10).astype(dtype)
    folder = dpipe.write_zarr(da.from_array(values, chunks=4), tmp_path / "out")
    found = zarr.open_array(folder, mode="r")[:]
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def test_chunks_of_zeros_are_there(tmp_path):
    folder = dpipe.write_zarr(da.zeros((4, 4), chunks=2), tmp_path / "out")
    assert dpipe.verify(folder).n_files == 5
    (folder / "c" / "0" / "0").unlink()
    assert dpipe.verify(folder).problems == ("c/0/0: missing",)


def test_a_stopped_call_goes_on_and_does_not_open_before(tmp_path):
    values, lazy = cube()
    path = tmp_path / "out"

    mark = {"fail": True, "done": []}
    work = da.map_blocks(_plus_one, lazy, dtype="float32", mark=_Mark(mark))
    with pytest.raises(RuntimeError, match="stopped here"):
        dpipe.write_zarr(work, path)
    with pytest.raises(Exception, match=r"(?i)not found|no .*array|unable to find"):
        zarr.open_array(path, mode="r")
    with pytest.raises(OutputError, match="not finished"):
        dpipe.verify(path)
    before = set(mark["done"])
    mark.update(fail=False, done=[])
    dpipe.write_zarr(work, path)
    assert before
    assert not before & set(mark["done"])
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:], values + 1)
    assert dpipe.verify(path).ok


class _Mark:
    """What a test looks at, and no part of what is computed."""

    def __init__(self, held):
        self.held = held

    def __reduce__(self):
        return _Mark, ({},)

    def __dask_tokenize__(self):
        return "mark"


def _plus_one(block, mark=None, block_info=None):
    place = tuple(block_info[None]["chunk-location"])
    if mark.held["fail"] and len(mark.held["done"]) > 3:
        raise RuntimeError("stopped here")
    mark.held["done"].append(place)
    return block + 1


def test_the_same_is_not_written_twice_and_another_not_over_it(tmp_path):
    values, lazy = cube()
    folder = dpipe.write_zarr(lazy, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    dpipe.write_zarr(lazy, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == times
    with pytest.raises(OutputError, match="finished result of other data"):
        dpipe.write_zarr(cube(1.0)[1], folder)
    dpipe.write_zarr(cube(1.0)[1][:4, :3], folder, overwrite=True)
    np.testing.assert_array_equal(zarr.open_array(folder, mode="r")[:], values[:4, :3] + 1)
    assert dpipe.verify(folder).ok


def test_damage_is_named(tmp_path):
    folder = dpipe.write_zarr(cube()[1], tmp_path / "out")
    chunk = folder / "c" / "1" / "2" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    (folder / "c" / "9").write_bytes(b"")
    problems = dpipe.verify(folder).problems
    assert any(said.startswith("c/1/2/0: changed") for said in problems)
    assert any(said.startswith("c/9: not of this result") for said in problems)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: np.zeros(3), "takes a Dask array, got a ndarray"),
        (lambda: da.from_array(np.array(["a", None], dtype=object), chunks=1), "have no fixed size"),
        (
            lambda: da.zeros((6,), chunks=((1, 3, 2),)),
            r"of different sizes, \(1, 3, 2\).*rechunk\(\{0: 3\}\)",
        ),
        (
            lambda: da.zeros((6,), chunks=3)[da.ones(6, chunks=3) > 0],
            "of unknown size. Call array.compute_chunk",
        ),
    ],
)
def test_arrays_that_cannot_be(tmp_path, make, says):
    with pytest.raises(InputError, match=says):
        dpipe.write_zarr(make(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(OutputError, match="is a file"):
        dpipe.write_zarr(cube()[1], tmp_path / "file")
    with pytest.raises(OutputError, match="holds other files, such as file"):
        dpipe.write_zarr(cube()[1], tmp_path)
