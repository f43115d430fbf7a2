"""Appending to stores that xarray has written: of both formats, whole or not at all, and read again only where new."""

import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.collect.zarr_store import ZarrReader
from dpipe.errors import InputError, OutputError
from dpipe.outputs import append as appending


def field(first="2000-01-01", n=10):
    rng = np.random.default_rng(int(first[-2:]))
    coords = {"time": pd.date_range(first, periods=n), "lat": np.arange(4.0), "lon": np.arange(6.0)}
    made = xr.Dataset(
        {"t": (("time", "lat", "lon"), rng.integers(0, 50, (n, 4, 6)) / 2.0, {"units": "K"})}, coords
    )
    made["station"] = ("time", rng.normal(size=n))
    return made.assign(area=("lat", np.arange(4.0)))


def write(dataset, path, *, version=3, consolidated=True, chunks=(4, 2, 6), **encoding):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # format 3 does not name consolidated metadata yet
        dataset.to_zarr(
            path,
            mode="w",
            zarr_format=version,
            consolidated=consolidated,
            encoding={"t": {"chunks": chunks, **encoding}},
        )
    return path


def both():
    return xr.concat([field(), field("2000-01-11", 7)], "time", data_vars="minimal", coords="minimal")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return xr.open_zarr(path).load()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize("chunks", [(4, 2, 6), (10, 4, 3)])
def test_what_xarray_wrote_becomes_longer(tmp_path, version, consolidated, chunks):
    store = write(field(), tmp_path / "a.zarr", version=version, consolidated=consolidated, chunks=chunks)
    before = dpipe.open_zarr(store)
    dpipe.append_zarr(field("2000-01-11", 7), store)
    xr.testing.assert_identical(read(store), both())
    xr.testing.assert_identical(dpipe.open_zarr(store).compute(), both())
    xr.testing.assert_identical(before.compute(), field()), "who has it open sees what there was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr"]
    dpipe.append_zarr(field("2000-01-18", 3), store)
    assert read(store).sizes["time"] == 20


def test_packed_values_stay_packed(tmp_path):
    packing = {"dtype": "int16", "scale_factor": 0.5, "_FillValue": -1}
    store = write(field(), tmp_path / "a.zarr", **packing)
    dpipe.append_zarr(field("2000-01-11", 7), store)
    xr.testing.assert_allclose(read(store), both())
    held = contents(store)
    with pytest.raises(InputError, match=r"'t': 1000\d+.* cannot be packed as int16 with scale_factor=0.5"):
        dpipe.append_zarr(field("2000-01-18") + 1e6, store)
    assert contents(store) == held


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("after", [0, 6, 11])
def test_a_reader_sees_the_old_length_or_the_new_one(tmp_path, monkeypatch, version, after):
    store = write(field(), tmp_path / "a.zarr", version=version)
    aside = shutil.copytree(store, tmp_path / "aside.zarr")
    dpipe.append_zarr(field("2000-01-11", 7), aside)
    moved, replace = [], appending.Path.replace

    def stopping(path, target):
        if (tmp_path / ".a.zarr.unfinished" / "journal.json").exists():
            moved.append(target)
            if len(moved) > after:
                raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(appending.Path, "replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        dpipe.append_zarr(field("2000-01-11", 7), store)
    assert len(moved) == after + 1
    xr.testing.assert_identical(read(store), field())
    monkeypatch.undo()
    dpipe.append_zarr(field("2000-01-11", 7), store)
    assert contents(store) == contents(aside)
    assert not (tmp_path / ".a.zarr.unfinished").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda d: d.assign_coords(time=d["time"] - pd.Timedelta(days=5)),
            "begins at 2000-01-06.* ends at 2000-01-10",
        ),
        (lambda d: d.isel(time=slice(None, None, -1)), "begins at 2000-01-17.* ends at 2000-01-10"),
        (lambda d: d.isel(time=[0, 2, 1, 3]), "'time' of the source is not monotonic: 2000-01-12"),
        (lambda d: d.assign(t=d["t"].assign_attrs(units="degC")), "'t' is in 'degC', but in 'K' in"),
        (lambda d: d.convert_calendar("noleap", use_cftime=True), "calendar of 'time' is 'noleap'"),
        (lambda d: d.drop_vars("station"), "lacks 'station'"),
        (
            lambda d: d.assign_coords(time=d["time"] + pd.Timedelta(minutes=7)),
            "'time': 2000-01-.* cannot be packed as",
        ),
    ],
)
def test_what_does_not_go_on_is_refused(tmp_path, change, says):
    store = write(field(), tmp_path / "a.zarr")
    held = contents(store)
    with pytest.raises(InputError, match=says):
        dpipe.append_zarr(change(field("2000-01-11", 7)), store)
    assert contents(store) == held


def test_what_is_no_store_to_append_to(tmp_path):
    with pytest.raises(InputError, match="'t' is stored in shards"):
        dpipe.append_zarr(field("2000-01-11"), write(field(), tmp_path / "a.zarr", shards=(8, 4, 6)))
    with pytest.raises(OutputError, match="s3://bucket/a.zarr is not on this machine"):
        dpipe.append_zarr(field(), "s3://bucket/a.zarr")


@pytest.mark.parametrize("version", [2, 3])
def test_a_fit_reads_only_what_is_new(tmp_path, monkeypatch, version):
    store = write(field(), tmp_path / "a.zarr", version=version, chunks=(4, 4, 6))
    read_parts, call = [], ZarrReader.__call__

    def counting(reader, part):
        read_parts.append((part.where[0].start, part.where[0].stop))
        return call(reader, part)

    monkeypatch.setattr(ZarrReader, "__call__", counting)

    def fitted():
        read_parts.clear()
        t = dpipe.open_zarr(store)["t"]
        return dpipe.fit(StandardScaler(), t, sample_dims="time", workdir=tmp_path / "work")

    fitted()
    assert sorted(read_parts) == [(0, 4), (4, 8), (8, 10)]
    dpipe.append_zarr(field("2000-01-11", 7), store)
    scaler = fitted()
    assert sorted(read_parts) == [(8, 12), (12, 16), (16, 17)]
    wanted = StandardScaler().fit(both()["t"].values.reshape(17, -1))
    np.testing.assert_allclose(scaler.mean_, wanted.mean_, rtol=1e-12)
