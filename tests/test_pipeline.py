"""The five stages as one lazy object."""

import json

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import skops.io
from dask.delayed import Delayed
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, SGDClassifier
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import dpipe
from dpipe.errors import InputError, RequirementError
from dpipe.monitor.record import RunRecord
from tests.helpers import raise_if_computes


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2))
    group = rng.choice(["red", "green", "blue"], size=2000)
    y = (x[:, 0] + (group == "red") + rng.normal(size=2000) > 0).astype(int)
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "group": group, "y": y, "day": np.arange(2000) // 50})


@pytest.fixture
def files(frame, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(4):
        frame.iloc[i * 500 : (i + 1) * 500].to_parquet(
            folder / f"{i}.parquet", index=False, row_group_size=125
        )
    return folder


def model():
    columns = make_column_transformer((StandardScaler(), ["a", "b"]), (OneHotEncoder(), ["group"]))
    return make_pipeline(columns, SGDClassifier(loss="log_loss", random_state=0))


def keep_positive_days(frame):
    return frame[frame["day"] > 0]


def build(files, workdir, *, require=None):
    pipe = dpipe.Pipeline("demo", workdir=workdir)
    rows = pipe.collect(files, block_nbytes=20_000)
    rows = pipe.preprocess(rows, keep_positive_days)
    train, test = pipe.split(rows, test_size=0.3, by="day")
    fitted = pipe.train(model(), train, target="y", features=["a", "b", "group"])
    report = pipe.validate(fitted, test, scoring=["roc_auc", "accuracy"], require=require)
    deployed = pipe.deploy(fitted, report, to="bundle")
    return pipe, (rows, train, test, fitted, report, deployed)


def test_building_planning_and_showing_compute_nothing(files, tmp_path):
    with raise_if_computes():
        pipe, stages = build(files, tmp_path / "work")
        text = str(pipe.plan(memory="4 GiB"))
        assert "2 passes" in text
        assert "collect" in repr(pipe)
        assert "<svg" in pipe._repr_html_()
        assert pipe.plan()._repr_html_()
    assert not (tmp_path / "work").exists()
    assert [type(stage) for stage in stages[3:]] == [Delayed] * 3
    assert all(isinstance(stage, dd.DataFrame) for stage in stages[:3])


def test_run_equals_the_same_steps_by_hand(files, tmp_path):
    pipe, (_, train, test, *_) = build(files, tmp_path / "work", require={"roc_auc": 0.6})
    run = pipe.run(progress=False)
    lengths = [len(train.partitions[i]) for i in range(train.npartitions)]
    whole = train.compute()
    scaler = model()[0].fit(whole[["a", "b", "group"]]).named_transformers_["standardscaler"]
    np.testing.assert_allclose(
        run.model[0].named_transformers_["standardscaler"].mean_, scaler.mean_, rtol=1e-9
    )
    columns = run.model[0]
    learner = SGDClassifier(loss="log_loss", random_state=0)
    for start, n in zip(np.cumsum([0, *lengths]), lengths, strict=False):
        block = whole.iloc[start : start + n]
        learner.partial_fit(columns.transform(block[["a", "b", "group"]]), block["y"], classes=[0, 1])
    np.testing.assert_array_equal(run.model[-1].coef_, learner.coef_)
    unseen = test.compute()
    scores = run.model.decision_function(unseen[["a", "b", "group"]])
    assert run.metrics["roc_auc"] == pytest.approx(roc_auc_score(unseen["y"], scores), abs=1e-12)


def test_run_leaves_a_record_a_report_and_a_bundle(files, tmp_path):
    pipe, (_, train, test, *_) = build(files, tmp_path / "work")
    run = pipe.run(progress=False)
    record = RunRecord.read(tmp_path / "work" / "run.json")
    assert record.finished
    assert [stage.kind for stage in record.stages] == [stage.kind for stage in pipe.stages]
    assert record.metrics == run.metrics
    assert {step.way for step in record.passes} == {"merge", "stream", "score"}
    assert "demo" in (tmp_path / "work" / "report.html").read_text()
    split = record.stages[2]
    assert split.rows_out == len(train) + len(test)
    untrusted = skops.io.get_untrusted_types(file=run.bundle / "model.skops")
    opened = skops.io.load(run.bundle / "model.skops", trusted=untrusted)
    block = test.compute()[["a", "b", "group"]]
    np.testing.assert_array_equal(opened.predict(block), run.model.predict(block))
    bundle = dpipe.load(run.bundle)
    np.testing.assert_array_equal(bundle.predict(block, method="predict"), run.model.predict(block))
    assert bundle.metrics == run.metrics
    assert not list((tmp_path / "work").rglob("*.npy"))


def test_stages_can_be_used_in_dask_code_of_ones_own(files, tmp_path):
    _, (rows, train, test, fitted, report, deployed) = build(files, tmp_path / "work")
    estimator, metrics = dask.compute(fitted, report)
    assert rows["a"].count().compute() == len(train) + len(test)
    assert estimator.predict(test.compute()[["a", "b", "group"]]).shape == (len(test),)
    assert 0.5 < metrics["roc_auc"] <= 1
    assert (deployed.compute() / "model.skops").exists()


def test_a_missed_requirement_fails_after_the_report_and_deploys_nothing(files, tmp_path):
    pipe, _ = build(files, tmp_path / "work", require={"accuracy": 0.999})
    with pytest.raises(RequirementError, match=r"accuracy is 0\.\d+, not 0.999"):
        pipe.run(progress=False)
    record = RunRecord.read(tmp_path / "work" / "run.json")
    assert record.unmet == ("accuracy",)
    assert not record.finished
    assert record.error.startswith("RequirementError: The model misses what validation requires")
    assert record.stages[-1].note == "failed"
    report = (tmp_path / "work" / "report.html").read_text()
    assert "The model misses what validation requires" in report
    assert "Run it again" not in report
    assert not (tmp_path / "work" / "bundle").exists()


def test_a_run_that_cannot_be_planned_leaves_the_last_record(files, tmp_path):
    pipe, _ = build(files, tmp_path / "work")
    pipe.run(progress=False)
    before = (tmp_path / "work" / "run.json").read_bytes()
    for settings, message in (
        ({"memory": "1 MiB"}, "budget is 1.00 MiB"),
        ({"workers": 0}, "workers must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            pipe.run(progress=False, **settings)
    assert (tmp_path / "work" / "run.json").read_bytes() == before


@pytest.mark.filterwarnings("ignore:.*left out:UserWarning")
def test_corrupt_blocks_can_be_left_out_of_a_run(files, tmp_path):
    content = bytearray((files / "2.parquet").read_bytes())
    content[4:60] = b"\xff" * 56
    (files / "2.parquet").write_bytes(content)
    (files / "3.parquet").write_bytes(b"")
    pipe = dpipe.Pipeline("gaps", workdir=tmp_path / "work")
    rows = pipe.collect(files, block_nbytes=20_000, on_corrupt="skip")
    train, test = pipe.split(rows, test_size=0.3, by="day")
    pipe.validate(pipe.train(model(), train, target="y", features=["a", "b", "group"]), test)
    pipe.run(progress=False)
    record = RunRecord.read(tmp_path / "work" / "run.json")
    assert record.finished
    split = next(stage for stage in record.stages if stage.kind == "split")
    assert split.rows_out == 1000  # a block is a whole file here


def test_collect_wants_lazy_data(frame, tmp_path):
    with pytest.raises(InputError, match="source is a DataFrame.*from_pandas"):
        dpipe.Pipeline("eager", workdir=tmp_path).collect(frame)


def test_arrays_flow_through_all_stages(tmp_path):
    rng = np.random.default_rng(0)
    X = da.from_array(rng.normal(size=(600, 3)), chunks=(100, 3))
    y = X @ da.from_array(np.array([1.0, 2.0, 3.0]), chunks=3)
    pipe = dpipe.Pipeline("arrays", workdir=tmp_path)
    rows = pipe.collect(X)
    doubled = pipe.preprocess(rows, double)
    fitted = pipe.train(LinearRegression(), doubled, target=y)
    pipe.validate(fitted, doubled, target=y, scoring="r2")
    run = pipe.run(progress=False)
    assert run.metrics["r2"] == pytest.approx(1.0)
    np.testing.assert_allclose(run.model.coef_, [0.5, 1.0, 1.5])


def double(block):
    return block * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "z"}, "target='z' is not a column of the frame. It has: 'a'"),
        ({"features": ["a", "zz"]}, "there is no column 'zz'"),
    ],
)
def test_train_names_a_missing_column(files, tmp_path, change, message):
    pipe = dpipe.Pipeline("demo", workdir=tmp_path)
    rows = pipe.collect(files)
    with pytest.raises(InputError, match=message):
        pipe.train(model(), rows, **{"target": "y", **change})


def test_validate_refuses_an_unknown_metric(files, tmp_path):
    pipe = dpipe.Pipeline("demo", workdir=tmp_path)
    rows = pipe.collect(files)
    fitted = pipe.train(model(), rows, target="y", features=["a", "b", "group"])
    with pytest.raises(InputError, match="rocauc"):
        pipe.validate(fitted, rows, scoring="rocauc")


def test_stages_of_another_pipeline_are_refused(files, tmp_path):
    pipe = dpipe.Pipeline("demo", workdir=tmp_path)
    other, (_, _, test, fitted, *_) = build(files, tmp_path / "other")
    with pytest.raises(InputError, match="was not given by pipe.train"):
        pipe.validate(fitted, test)
    with pytest.raises(InputError, match="does not lie inside of the workdir"):
        other.deploy(fitted, to="../elsewhere")


def test_a_preprocess_function_that_needs_rows_is_named(files, tmp_path):
    pipe = dpipe.Pipeline("demo", workdir=tmp_path)
    rows = pipe.collect(files)
    with pytest.raises(InputError, match="preprocess: first_day fails on a block without rows"):
        pipe.preprocess(rows, first_day)


def first_day(frame):
    return frame[frame["day"] == frame["day"].iloc[0]]


def test_an_unwritable_workdir_is_named_before_anything_is_read(files, tmp_path):
    (tmp_path / "file").write_text("")
    pipe, _ = build(files, tmp_path / "file" / "work")
    with raise_if_computes(), pytest.raises(InputError, match="workdir .* cannot be written"):
        pipe.run(progress=False)


def test_an_empty_pipeline_and_an_empty_name(tmp_path):
    with pytest.raises(InputError, match="has no stages"):
        dpipe.Pipeline("nothing", workdir=tmp_path).run()
    with pytest.raises(InputError, match="needs a name"):
        dpipe.Pipeline(" ")


def test_visualize_writes_an_escaped_drawing(files, tmp_path):
    pipe, _ = build(files, tmp_path / "work")
    pipe._add("preprocess", "<script>alert(1)</script>", (), ())
    drawing = pipe.visualize(tmp_path / "stages.svg")
    text = (tmp_path / "stages.svg").read_text()
    assert text == drawing.svg
    assert "<script>" not in text


def test_the_record_is_plain_json(files, tmp_path):
    pipe, _ = build(files, tmp_path / "work")
    pipe.run(progress=False)
    assert json.loads((tmp_path / "work" / "run.json").read_text())["name"] == "demo"


def test_a_second_run_reads_nothing_and_an_appended_file_alone(tmp_path, capsys):
    def pipeline():
        pipe = dpipe.Pipeline("appended", workdir=tmp_path / "run")
        rows = pipe.collect(tmp_path / "data")
        model = pipe.train(make_pipeline(StandardScaler(), LinearRegression()), rows, target="y")
        pipe.validate(model, rows, scoring=["r2"])
        return pipe

    def read(run):
        passes = RunRecord.read(run.workdir / "run.json").passes
        return [one.n_blocks - one.n_recalled for one in passes]

    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        frame = pd.DataFrame({"x": rng.normal(size=50)}).assign(y=lambda rows: 2 * rows["x"] + 1)
        frame.to_parquet(tmp_path / "data" / f"{i}.parquet", index=False)
    first = pipeline().run(progress=False)
    assert read(first) == [3, 3]
    assert pipeline().plan().recorded == ("train: pass 1 on record.",)
    again = pipeline().run(progress=False)
    assert read(again) == [0, 0]
    assert again.metrics == first.metrics
    frame.to_parquet(tmp_path / "data" / "3.parquet", index=False)
    assert pipeline().plan().recorded == ("train: 3 of 4 blocks of pass 1 on record.",)
    capsys.readouterr()
    appended = pipeline().run(progress=False)
    assert read(appended) == [1, 4]
    anew = dpipe.Pipeline("anew", workdir=tmp_path / "anew")
    model = anew.train(
        make_pipeline(StandardScaler(), LinearRegression()), dpipe.read_parquet(tmp_path / "data"), target="y"
    )
    anew.deploy(model)
    wanted = anew.run(progress=False).model
    assert appended.model[-1].coef_.tobytes() == wanted[-1].coef_.tobytes()
    assert RunRecord.read(appended.workdir / "run.json").notes == (
        "train: 3 of 4 blocks of pass 1 on record.",
        "validate: the model changed; what followed from that is not used.",
    )


@pytest.mark.parametrize("again", [False, True])
def test_a_join_on_the_way_is_counted_in_the_report(tmp_path, again):
    zones = pd.DataFrame({"zone": [1, 2, 2], "borough": [0.0, 1.0, 2.0]})
    rows = pd.DataFrame({"zone": np.arange(90) % 3, "fare": np.arange(90.0), "tip": np.arange(90.0) % 7})
    dpipe.write_parquet(dd.from_pandas(rows, npartitions=3), tmp_path / "rides")

    pipe = dpipe.Pipeline("joined", workdir=tmp_path / "run")
    rides = pipe.collect(tmp_path / "rides")
    joined = pipe.merge(pipe.shuffle(rides, "zone"), zones, on="zone")
    pipe.train(LinearRegression(), joined, target="tip")
    if again:  # all of it is on record
        pipe.run()
    pipe.run()

    said = (
        "preprocess-2: merge on 'zone', 3 blocks: 90 rows in, 30 left out, as they match nothing, 30 repeated, as they "
        "match several rows, 90 rows out."
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert said in record["notes"]
    assert [(stage["rows_in"], stage["rows_out"]) for stage in record["stages"]][2] == (90, 90)
    assert "merge on &#39;zone&#39;, 3 blocks" in (tmp_path / "run" / "report.html").read_text()
