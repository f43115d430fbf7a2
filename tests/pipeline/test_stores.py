"""Pipelines of labelled arrays: one store in the workdir, in the chunks that later stages read, grown in place."""

import json
import shutil

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

import dpipe
from dpipe.errors import InputError, OutputError
from dpipe.monitor.record import RunRecord
from dpipe.outputs import rechunk as rechunking
from tests.helpers import raise_if_computes

N = 40


def days(i, seed=0):
    """Forty days of a field: file i of a row of them."""
    rng = np.random.default_rng(seed + i)
    values = rng.normal(size=(N, 4, 6)).astype("f4")
    coords = {
        "time": pd.date_range("2000-01-01", periods=N * (i + 1))[N * i :],
        "lat": np.linspace(-60.0, 60.0, 4),
        "lon": 60.0 * np.arange(6),
    }
    return xr.Dataset({"z": (("time", "lat", "lon"), values, {"units": "m"})}, coords, {"title": "made"})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        days(i).to_netcdf(tmp_path / "in" / f"{i}.nc", engine="scipy")
    return tmp_path / "in"


def seasonless(field):
    return dpipe.fields.anomalies(field, dpipe.fields.climatology(field, "month"))


def build(source, workdir, *, function=seasonless, store=False, **options):
    pipe = dpipe.Pipeline("fields", workdir=workdir)
    fields = pipe.collect(source, **{"store": True, "chunk_nbytes": 30 * 96, **options})
    anomalies = pipe.preprocess(fields["z"], function, store=store)
    train, _ = pipe.split(anomalies, test_size=0.25, block="20D", gap="2D")
    pipe.train(PCA(2), train, sample_dims="time")
    return pipe


def notes(workdir):
    record = json.loads((workdir / "run.json").read_text())
    return {stage["name"]: stage["note"] for stage in record["stages"]}, record["notes"]


def by_time(source):
    return dpipe.open_netcdf(source)["z"].load()


def by_hand(source):
    z = by_time(source)
    train, _ = dpipe.fields.split(seasonless(z), test_size=0.25, block="20D", gap="2D")
    return PCA(2).fit(train.values.reshape(len(train), -1))


def test_a_pipeline_of_arrays_equals_scikit_learn_by_hand(folder, tmp_path):
    workdir = tmp_path / "work"
    with raise_if_computes():
        pipe = build(f"{folder}/*.nc", workdir)
        plan = str(pipe.plan(memory="8 GiB"))
        assert "train (PCA) takes lat and lon as features" in plan
        assert "to chunks of time=30, lat=4, lon=6" in plan
        assert "collect" in pipe.plan()._repr_html_()
    assert not workdir.exists()
    run = pipe.run(progress=False, memory="8 GiB")
    wanted = by_hand(folder)
    np.testing.assert_allclose(run.model.explained_variance_, wanted.explained_variance_, rtol=1e-5)
    stored = dpipe.open_zarr(workdir / "stores" / "collect.zarr")
    assert stored["z"].chunks == ((30,) * 4, (4,), (6,)), "in the chunks that were chosen"
    xr.testing.assert_identical(stored.compute(), dpipe.open_netcdf(folder).compute())
    assert dpipe.verify(workdir / "stores" / "collect.zarr").ok
    assert "2,880 values" in notes(workdir)[0]["collect"]
    assert "work/stores/collect.zarr: written" in (workdir / "report.html").read_text()
    rows = {
        stage.kind: (stage.rows_in, stage.rows_out) for stage in RunRecord.read(workdir / "run.json").stages
    }
    train, test = map(len, dpipe.fields.split(by_time(folder), test_size=0.25, block="20D", gap="2D"))
    assert rows == {
        "collect": (120, 120),
        "preprocess": (120, 120),
        "split": (120, train + test),
        "train": (train, train),
    }


def test_models_read_the_store_and_not_the_files(folder, tmp_path):
    pipe = build(str(folder), tmp_path / "work")
    run = pipe.run(progress=False)
    wanted = run.model.components_
    for path in folder.iterdir():
        path.touch()  # files that are no longer those that were listed cannot be read
    again = build(
        tmp_path / "work" / "stores" / "collect.zarr", tmp_path / "other", store=False, chunk_nbytes=None
    )
    del pipe.stages[0].settings["store"]
    with pytest.raises(dpipe.DpipeError, match="has changed"):
        pipe.stages[0].outputs[0]["z"].compute()
    np.testing.assert_allclose(np.abs(again.run(progress=False).model.components_), np.abs(wanted), rtol=1e-4)


def test_new_files_are_appended_and_changed_ones_written_anew(folder, tmp_path):
    workdir = tmp_path / "work"
    build(str(folder), workdir).run(progress=False)
    assert "on record" in str(build(str(folder), workdir).plan())
    build(str(folder), workdir).run(progress=False)
    said, others = notes(workdir)
    assert "as it was written" in said["collect"]
    assert "train: pass 1 on record." in others
    days(3).to_netcdf(folder / "3.nc", engine="scipy")
    store = workdir / "stores" / "collect.zarr"
    first = (store / "z" / "c" / "0" / "0" / "0").stat()
    assert "40 new along time are appended" in str(build(str(folder), workdir).plan())
    run = build(str(folder), workdir).run(progress=False)
    assert "40 new along time appended" in notes(workdir)[0]["collect"]
    assert (store / "z" / "c" / "0" / "0" / "0").stat().st_mtime_ns == first.st_mtime_ns
    xr.testing.assert_identical(dpipe.open_zarr(store).compute(), dpipe.open_netcdf(folder).compute())
    np.testing.assert_allclose(run.model.explained_variance_, by_hand(folder).explained_variance_, rtol=1e-5)
    days(1, seed=9).to_netcdf(folder / "1.nc", engine="scipy")
    assert "(anew: 'z' of its source has changed)" in str(build(str(folder), workdir).plan())
    build(str(folder), workdir).run(progress=False)
    xr.testing.assert_identical(dpipe.open_zarr(store).compute(), dpipe.open_netcdf(folder).compute())
    build(str(folder), workdir, chunk_nbytes=None, access="time series").run(progress=False)
    assert "written anew (other chunks are needed), as access= says" in notes(workdir)[0]["collect"]
    next(path for path in (store / "z" / "c").rglob("*") if path.is_file()).unlink()
    build(str(folder), workdir, chunk_nbytes=None, access="time series").run(progress=False)
    assert "is missing or damaged" in notes(workdir)[0]["collect"]
    xr.testing.assert_identical(dpipe.open_zarr(store).compute(), dpipe.open_netcdf(folder).compute())


def test_a_run_that_was_stopped_goes_on(folder, tmp_path, monkeypatch):
    workdir = tmp_path / "work"
    write, done = rechunking.RegionWriter.write, []

    def stopping(writer, values, region, key):
        done.append(region)
        if len(done) == 3:
            raise KeyboardInterrupt
        return write(writer, values, region, key)

    monkeypatch.setattr("dpipe.outputs.rechunk_plan._REGION_NBYTES", 30 * 96)
    monkeypatch.setattr(rechunking.RegionWriter, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        build(str(folder), workdir, block_nbytes=N * 96).run(progress=False, workers=1)
    build(str(folder), workdir, block_nbytes=N * 96).run(progress=False, workers=1)
    assert len(done) < 4 + 3, "what was written is not written again"
    found = dpipe.open_zarr(workdir / "stores" / "collect.zarr").compute()
    xr.testing.assert_identical(found, dpipe.open_netcdf(folder).compute())


def test_what_models_read_often_is_stored_once(folder, tmp_path):
    pipe = dpipe.Pipeline("regimes", workdir=tmp_path / "work")
    fields = pipe.collect(str(folder), store=tmp_path / "fields.zarr", access="time series")
    anomalies = pipe.preprocess(fields, seasonless, store=True)
    pipe.train(KMeans(3, n_init=1, random_state=0), anomalies, sample_dims="time")
    assert "preprocess: to" in str(pipe.plan())
    run = pipe.run(progress=False)
    stored = dpipe.open_zarr(tmp_path / "work" / "stores" / "preprocess.zarr")["z"]
    assert dpipe.open_zarr(tmp_path / "fields.zarr")["z"].chunks[0] == (3 * N,)
    z = dpipe.open_netcdf(folder)["z"].load()
    xr.testing.assert_allclose(stored.compute(), seasonless(z).compute())
    wanted = dpipe.fit(KMeans(3, n_init=1, random_state=0), stored, sample_dims="time")
    np.testing.assert_array_equal(run.model.cluster_centers_, wanted.cluster_centers_)


def filtered(field):
    return xr.apply_ufunc(
        np.cumsum,
        field,
        input_core_dims=[["time"]],
        output_core_dims=[["time"]],
        kwargs={"axis": -1},
        dask="parallelized",
        output_dtypes=["f4"],
    )


def joined(field):
    return field.chunk(time=-1)


def smoothed(field):
    return dpipe.fields.rolling(field, {"time": 5})


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (filtered, "preprocess (filtered) needs time whole"),
        (joined, "preprocess (joined) needs time whole"),
        (smoothed, "no later stage needs a dimension whole"),
    ],
)
def test_what_functions_need_whole_is_found_by_their_graphs(folder, tmp_path, function, says):
    pipe = dpipe.Pipeline("pixels", workdir=tmp_path / "work")
    fields = pipe.collect(str(folder), store=True, chunk_nbytes=N * 3 * 4 * 4)
    with raise_if_computes():
        made = pipe.preprocess(fields, function)
        pipe.train(KMeans(2, n_init=1, random_state=0), made, sample_dims=("time", "lat", "lon"))
        plan = str(pipe.plan())
    assert f"chunks: {says}" in plan
    assert ("to chunks of time=120, lat=2, lon=2" in plan) == ("time" in says)


def test_what_cannot_be_is_refused_while_building(folder, tmp_path):
    pipe = dpipe.Pipeline("fields", workdir=tmp_path / "work")
    fields = pipe.collect(str(folder))
    with pytest.raises(InputError, match="eager computes values while the pipeline is built"):
        pipe.preprocess(fields, eager)
    with pytest.raises(InputError, match="preprocess: <lambda> gives a int"):
        pipe.preprocess(fields, lambda field: 3)
    with pytest.raises(InputError, match="chunks, chunk_nbytes: nothing is written"):
        pipe.collect(str(folder), chunks={"time": 3}, chunk_nbytes=10)
    with pytest.raises(InputError, match="either chunks= or access="):
        pipe.collect(str(folder), store=True, chunks={"time": 3}, access="maps")
    with pytest.raises(InputError, match="schema= is for frames"):
        pipe.collect(str(folder), schema="infer")
    with pytest.raises(InputError, match="columns: there is no variable 't'. The source has: 'z'"):
        pipe.collect(str(folder), columns=["t"])
    with pytest.raises(InputError, match="only labelled arrays are written to a store"):
        pipe.collect(da.ones((4, 4)), store=True)
    with pytest.raises(InputError, match="of which some are Zarr stores"):
        pipe.collect([str(folder / "0.nc"), "a.zarr"])
    with pytest.raises(InputError, match="stratify='z' is for frames"):
        pipe.split(fields, stratify="z")
    wide = xr.DataArray(da.zeros((2_000, 10**8), chunks=(1, -1)), dims=("time", "x"), name="t")
    huge = dpipe.Pipeline("huge", workdir=tmp_path / "huge")
    huge.collect(wide, store=True, chunks={"time": -1, "x": 100})
    with pytest.raises(OutputError, match="are needed between the copies"):
        huge.run(memory="8 GiB")
    assert not (tmp_path / "huge").exists()


def eager(field):
    return field - field.mean().compute()


def test_a_transformer_is_deployed_for_what_it_can_do(folder, tmp_path):
    pipe = dpipe.Pipeline("fields", workdir=tmp_path / "work")
    fields = pipe.collect(days(0), store=True)
    model = pipe.train(PCA(2), fields["z"], sample_dims="time")
    pipe.deploy(model)
    run = pipe.run(progress=False)
    found = dpipe.load(run.bundle).predict(days(1)["z"].chunk(), sample_dims="time")
    wanted = run.model.transform(days(1)["z"].values.reshape(N, -1))
    np.testing.assert_allclose(found.transpose("time", ...).compute(), wanted, rtol=1e-5, atol=1e-6)
    shutil.rmtree(tmp_path / "work" / "stores")


def centres(model, field):
    return dpipe.patterns(model, field, sample_dims="time").rename("centre")


def test_what_was_learned_is_written_as_maps(folder, tmp_path):
    def pipeline(n):
        pipe = dpipe.Pipeline("maps", workdir=tmp_path / "work")
        z = pipe.collect(str(folder), store=True)["z"]
        model = pipe.train(KMeans(n, n_init=1, random_state=0), z, sample_dims="time")
        return pipe, model, z

    for n in (2, 3):  # others take the place of those that are there
        pipe, model, z = pipeline(n)
        written = pipe.write(centres, model, z, to="centres.zarr")
        run = pipe.run(progress=False)
        found = dpipe.open_zarr(tmp_path / "work" / "centres.zarr")["centre"]
        np.testing.assert_array_equal(found, run.model.cluster_centers_.reshape(n, 4, 6))
    metadata = tmp_path / "work" / "centres.zarr" / "zarr.json"
    before = metadata.stat().st_mtime_ns
    assert written.compute() == metadata.parent
    assert metadata.stat().st_mtime_ns == before, "the same is not written twice"
    pipe.write(lambda model: 3, model)
    with pytest.raises(InputError, match="write: <lambda> gives a int"):
        pipe.run(progress=False)
    with pytest.raises(InputError, match="does not lie inside of the workdir"):
        pipe.write(centres, model, z, to="../maps.zarr")
    with pytest.raises(InputError, match="was not given by pipe.train"):
        dpipe.Pipeline("other").write(centres, model, z)


def test_a_classifier_of_pixels_is_validated_and_deployed(tmp_path):
    data = days(0).assign(wet=days(0)["z"] > 0.3)
    pipe = dpipe.Pipeline("pixels", workdir=tmp_path / "work")
    cells = ("time", "lat", "lon")
    fields = pipe.preprocess(pipe.collect(data.chunk(time=7), store=True), with_square)
    train, test = pipe.split(fields, by=["lat", "lon"], test_size=0.3, block={"lat": 40, "lon": 60}, gap=0)
    model = pipe.train(LogisticRegression(C=1e4), train, target="wet", sample_dims=cells, missing="any")
    report = pipe.validate(model, test, scoring="roc_auc", require={"roc_auc": 0.99})
    pipe.deploy(model, report)
    run = pipe.run(progress=False)
    assert run.metrics["roc_auc"] > 0.99
    assert len(dpipe.open_zarr(tmp_path / "work" / "stores" / "collect.zarr").data_vars) == 2


def with_square(fields):
    return fields.assign(square=fields["z"] ** 2)


def test_arrays_that_no_stage_has_made_are_told_of(folder, tmp_path):
    pipe = dpipe.Pipeline("fields", workdir=tmp_path / "work")
    z = pipe.collect(str(folder), store=True)["z"]
    pipe.train(PCA(1), z, sample_dims="time")
    assert "outside" not in str(pipe.plan())
    pipe.train(PCA(1), 2 * z, sample_dims="time")
    assert "train-2 reads arrays that were made outside of the pipeline's stages" in str(pipe.plan())
    run = pipe.run(progress=False)
    wanted = PCA(1).fit(2 * dpipe.open_netcdf(folder)["z"].values.reshape(3 * N, -1))
    np.testing.assert_allclose(run.model.explained_variance_, wanted.explained_variance_, rtol=1e-5)
    assert "outside of the pipeline" in notes(tmp_path / "work")[1][0]
