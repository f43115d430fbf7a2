"""Stores in other chunks: equal bytes whatever the plan, going on after a stop, longer only whole."""

import math
import shutil
import warnings

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import dpipe
from dpipe.blocks.copies import borders, plan_copy, regions, shared, touching
from dpipe.errors import InputError, MemoryLimitError, OutputError
from dpipe.outputs import append as appending
from tests.helpers import raise_if_computes


def field(first="2000-01-01", n=20, chunks=(1, 4, 6), dtype="float32"):
    values = (np.arange(n * 24).reshape(n, 4, 6) % 1000).astype(dtype)
    coords = {"time": pd.date_range(first, periods=n), "lat": np.arange(4.0), "lon": np.arange(6.0)}
    made = xr.Dataset(
        {"t": (("time", "lat", "lon"), da.from_array(values, chunks=chunks), {"units": "K"})}, coords
    )
    made["area"] = ("lat", np.arange(4.0))
    made.attrs["title"] = "made"
    made["name"] = ("lat", ["a", "bb", "c", "d"])
    return made.set_coords("name")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def read_by_xarray(folder):
    with xr.open_zarr(folder, chunks=None) as found:
        return found.load()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_plans_of_copies(data):
    axes = data.draw(st.integers(1, 3))
    chunks = [data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=6)) for _ in range(axes)]
    source = borders(chunks)
    shape = [each[-1] for each in source]
    target = [data.draw(st.integers(1, n)) for n in shape]
    least = max(math.prod(max(each) for each in chunks), math.prod(target))
    plan = plan_copy(source, target, 1, limit := least * data.draw(st.integers(1, 30)))
    assert plan.region_nbytes <= limit
    written = np.zeros(shape, int)
    for _, region in regions(plan.writes):
        written[region] += 1
        assert all(part.start % size == 0 for part, size in zip(region, target, strict=True)), "whole chunks"
    assert (written == 1).all()
    if plan.reads is None:
        assert plan.read_nbytes <= 2 * plan.nbytes
        return
    for cuts, stored in zip(plan.reads, source, strict=True):
        assert set(cuts) <= set(stored), "no stored chunk is cut"
    between = np.zeros(shape, int)
    for _, region in regions(plan.reads):
        for _, other in touching(plan.writes, region):
            between[shared(region, other)] += 1
    assert (between == 1).all()


@pytest.mark.parametrize("scratch", [False, True])
@pytest.mark.parametrize("memory", [None, "small"])
def test_what_is_written_is_what_came_in(tmp_path, monkeypatch, memory, scratch):
    if memory:  # regions of a few chunks: with a store between
        monkeypatch.setattr("dpipe.outputs.rechunk_plan._REGION_NBYTES", 500)
    options = {
        "chunks": {"time": -1, "lat": 1, "lon": 2},
        "scratch": tmp_path / "scratch" if scratch else None,
    }
    with raise_if_computes():
        plan = dpipe.plan_rechunk(field(), tmp_path / "out", **options)
    assert (plan.arrays["t"].reads is not None) == bool(memory)
    assert ("two copies" in str(plan)) == bool(memory)
    folder = dpipe.rechunk(field(), tmp_path / "out", **options)
    xr.testing.assert_identical(read_by_xarray(folder), field().load())
    found = dpipe.open_zarr(folder)
    xr.testing.assert_identical(found.compute(), field().load())
    assert found["t"].chunks == ((20,), (1,) * 4, (2,) * 3)
    assert dpipe.verify(folder).ok
    assert not (folder / ".unfinished").exists()
    assert not scratch or not list((tmp_path / "scratch").rglob("*"))


def test_the_plan_changes_no_byte(tmp_path, monkeypatch):
    one = dpipe.rechunk(field(), tmp_path / "one", chunks={"time": -1, "lat": 1})
    monkeypatch.setattr("dpipe.outputs.rechunk_plan._REGION_NBYTES", 500)
    two = dpipe.rechunk(field(chunks=(3, 2, 6)), tmp_path / "two", chunks={"time": -1, "lat": 1})
    mine, other = contents(one), contents(two)
    mine.pop("_manifest.json"), other.pop("_manifest.json")
    assert mine == other


def test_chunks_are_chosen_for_how_they_are_read(tmp_path):
    plan = dpipe.plan_rechunk(field(n=100), tmp_path / "out", access="time series", chunk_nbytes=1000)
    assert plan.arrays["t"].target[0] == 100
    assert math.prod(plan.arrays["t"].target) * 4 <= 1000
    assert dpipe.plan_rechunk(field(), tmp_path / "out", access="maps").arrays["t"].target == (20, 4, 6)
    plan = dpipe.plan_rechunk(field(), tmp_path / "out", access=["lat"], chunk_nbytes=100)
    assert plan.arrays["t"].target[1] == 4
    with pytest.raises(InputError, match="access='rows' is unknown. Use 'time series', 'maps'"):
        dpipe.plan_rechunk(field(), tmp_path / "out", access="rows")
    with pytest.raises(InputError, match="access: 'day' is no dimension"):
        dpipe.plan_rechunk(field(), tmp_path / "out", access=["day"])
    with pytest.raises(InputError, match="needs a dimension of time"):
        dpipe.plan_rechunk(field().rename(time="n").drop_vars("n"), tmp_path / "out", access="maps")
    with pytest.raises(InputError, match="chunks: 'day' is no dimension"):
        dpipe.rechunk(field(), tmp_path / "out", chunks={"day": 1})
    with pytest.raises(InputError, match="chunks: 'lat' has the size 0"):
        dpipe.rechunk(field(), tmp_path / "out", chunks={"lat": 0})
    with pytest.raises(InputError, match="source is a int"):
        dpipe.rechunk(3, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused_before_anything_is_done(tmp_path):
    wide = xr.DataArray(da.zeros((40_000, 40_000), chunks=(1, 40_000)), dims=("time", "x"), name="t")
    with raise_if_computes():
        with pytest.raises(
            MemoryLimitError, match="One chunk takes 11.92 GiB.*more than the budget of 2.00 GiB"
        ):
            dpipe.rechunk(wide, tmp_path / "out", chunks={"time": -1, "x": -1}, memory="2 GiB")
        large = xr.DataArray(
            da.zeros((2_000_000, 100_000), chunks=(1, 100_000)), dims=("time", "x"), name="t"
        )
        with pytest.raises(OutputError, match=r"1\.46 TiB are needed between the copies.*scratch"):
            dpipe.rechunk(large, tmp_path / "out", chunks={"time": -1, "x": 1}, memory="6 GiB")
    assert not (tmp_path / "out").exists()


class Broken:
    """Fails at one block, as long as it is told to; no part of what is computed."""

    def __init__(self, held):
        self.held = held

    def __reduce__(self):
        return Broken, ({},)

    def __dask_tokenize__(self):
        return "broken"


def _through(block, mark=None, block_info=None):
    mark.held["done"].append(block_info[None]["chunk-location"][0])
    if mark.held["fail"] and mark.held["done"][-1] == 13:
        raise RuntimeError("stopped here")
    return block


@pytest.mark.parametrize("limit", [500, 1000, 1 << 20])
def test_a_stopped_call_goes_on(tmp_path, monkeypatch, limit):
    monkeypatch.setattr("dpipe.outputs.rechunk_plan._REGION_NBYTES", limit)
    told = {"fail": True, "done": []}
    dataset = field()
    dataset["t"] = dataset["t"].copy(
        data=da.map_blocks(_through, dataset["t"].data, dtype="float32", mark=Broken(told))
    )
    to = {"time": -1, "lat": 1, "lon": 2} if limit < 1000 else {"time": 5}
    with pytest.raises(RuntimeError, match="stopped here"):
        dpipe.rechunk(dataset, tmp_path / "out", chunks=to)
    with pytest.raises(dpipe.DpipeError, match="is no Zarr store"):
        dpipe.open_zarr(tmp_path / "out")
    before = set(told["done"]) - {13}
    told.update(fail=False, done=[])
    folder = dpipe.rechunk(dataset, tmp_path / "out", chunks=to)
    again = set(told["done"])
    assert len(again) < 20 or limit > 1000, "only what is missing is done"
    assert before | again == set(range(20))
    wanted = contents(dpipe.rechunk(field(), tmp_path / "wanted", chunks=to))
    found = contents(folder)
    found.pop("_manifest.json"), wanted.pop("_manifest.json")
    assert found == wanted


def test_the_same_is_not_written_twice_and_another_not_over_it(tmp_path):
    folder = dpipe.rechunk(field(), tmp_path / "out", chunks={"time": 7})
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    dpipe.rechunk(field(), folder, chunks={"time": 7})
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path in before} | {folder: 0} == {
        **before
    } | {folder: 0}
    with pytest.raises(OutputError, match="finished result of other data"):
        dpipe.rechunk(field(), folder, chunks={"time": 8})
    dpipe.rechunk(field(), folder, chunks={"time": 8}, overwrite=True)
    assert dpipe.open_zarr(folder)["t"].chunks[0] == (8, 8, 4)
    assert dpipe.verify(folder).ok


def test_files_to_a_store_and_a_store_to_another(tmp_path):
    for i, start in enumerate(["2000-01-01", "2000-01-21"]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoding = {"t": {"dtype": "int16", "scale_factor": 0.5, "_FillValue": -1}}
            field(start).drop_vars("name").to_netcdf(tmp_path / f"{i}.nc", engine="scipy", encoding=encoding)
    opened = dpipe.open_netcdf(sorted(tmp_path.glob("*.nc")))
    maps = dpipe.rechunk(opened, tmp_path / "maps.zarr", access="maps")
    series = dpipe.rechunk(maps, tmp_path / "series.zarr", access="time series", chunk_nbytes=400)
    assert dpipe.open_zarr(series)["t"].encoding["scale_factor"] == 0.5, "packing is kept"
    wanted = xr.concat([field("2000-01-01"), field("2000-01-21")], "time", data_vars="minimal").drop_vars(
        "name"
    )
    xr.testing.assert_allclose(dpipe.open_zarr(series).compute(), wanted.compute())


def test_values_that_overflow_their_packing(tmp_path):
    dataset = field().drop_vars("name")
    dataset["t"].encoding = {"dtype": "int8", "scale_factor": 1.0, "_FillValue": -1}
    with pytest.raises(
        InputError, match=r"'t': \d+\.0 cannot be packed as int8 with scale_factor=1: it overflows"
    ):
        dpipe.rechunk(dataset, tmp_path / "out")


def test_appending(tmp_path):
    folder = dpipe.rechunk(field(n=10), tmp_path / "out", chunks={"time": 4, "lat": 2})
    before = dpipe.open_zarr(folder)
    dpipe.append_zarr(field("2000-01-11", n=7), folder)
    wanted = xr.concat([field(n=10), field("2000-01-11", n=7)], "time", data_vars="minimal", coords="minimal")
    xr.testing.assert_equal(read_by_xarray(folder), wanted.load())
    assert dpipe.open_zarr(folder)["t"].chunks[0] == (4, 4, 4, 4, 1)
    assert dpipe.verify(folder).ok, dpipe.verify(folder)
    xr.testing.assert_identical(before.compute(), field(n=10).load()), "who has it open sees what there was"
    held = contents(folder)
    dpipe.append_zarr(field("2000-01-11", n=7), folder)
    assert contents(folder) == held, "the same is appended once"
    dpipe.append_zarr(field("2000-01-18", n=3), folder)
    assert dpipe.open_zarr(folder).sizes["time"] == 20
    assert dpipe.verify(folder).ok


@pytest.mark.parametrize("after", range(0, 12, 2))
def test_appending_that_is_stopped_at_its_end(tmp_path, monkeypatch, after):
    folder = dpipe.rechunk(field(n=10), tmp_path / "out", chunks={"time": 4, "lat": 2})
    aside = shutil.copytree(folder, tmp_path / "aside")
    dpipe.append_zarr(field("2000-01-11", n=7), aside)
    moved = []
    replace = appending.Path.replace

    def stopping(path, target):
        if (folder / ".unfinished" / "journal.json").exists():
            moved.append(target)
            if len(moved) > after:
                raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(appending.Path, "replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        dpipe.append_zarr(field("2000-01-11", n=7), folder)
    assert dpipe.open_zarr(folder).sizes["time"] in (10, 17), "whole as it was, or whole as it will be"
    xr.testing.assert_equal(
        dpipe.open_zarr(folder)["t"].isel(time=slice(10)).compute(), field(n=10)["t"].load()
    )
    monkeypatch.undo()
    dpipe.append_zarr(field("2000-01-11", n=7), folder)
    assert contents(folder) == contents(aside)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda d: d.assign_coords(time=d["time"] - pd.Timedelta(days=5)),
            "begins at 2000-01-06.* ends at 2000-01-10",
        ),
        (
            lambda d: d.assign_coords(lat=d["lat"] + 0.5),
            "does not align with .* along 'lat': its values differ",
        ),
        (
            lambda d: d.isel(lon=slice(5)),
            "'t' does not align with .* along 'lon': it has 5 values instead of 6",
        ),
        (lambda d: d.drop_vars("area"), "lacks 'area', compared with"),
        (lambda d: d.assign(more=d["t"]), "also has 'more'"),
        (lambda d: d.assign(t=d["t"].assign_attrs(units="degC")), "'t' is in 'degC', but in 'K' in"),
        (lambda d: d.convert_calendar("noleap", use_cftime=True), "calendar of 'time' is 'noleap'"),
        (
            lambda d: d.assign(t=d["t"] + 1e6),
            r"'t': 1000\d+.* cannot be packed as int16 with scale_factor=0.5",
        ),
        (lambda d: d.assign(t=d["t"].astype("complex64")), "'t' is of type complex64 in the source"),
        (
            lambda d: d.assign_coords(time=d["time"] + pd.Timedelta(minutes=7)),
            "'time': 2000-01-.* cannot be packed as int64",
        ),
    ],
)
def test_what_cannot_be_appended_changes_nothing(tmp_path, change, says):
    dataset = field(n=10)
    dataset["t"].encoding = {"dtype": "int16", "scale_factor": 0.5, "_FillValue": -1}
    folder = dpipe.rechunk(dataset, tmp_path / "out", chunks={"time": 4})
    before = contents(folder)
    with pytest.raises(InputError, match=says):
        dpipe.append_zarr(change(field("2000-01-11", n=7)), folder)
    assert {
        name: held for name, held in contents(folder).items() if not name.startswith(".unfinished")
    } == before
    with pytest.raises(OutputError, match="holds no finished Zarr store"):
        dpipe.append_zarr(field(), tmp_path / "nothing")
