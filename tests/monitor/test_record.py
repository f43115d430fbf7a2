"""Records of a run: whole round trips, and files that are whole or refused by name."""

import dataclasses
import json
import math
import os

import numpy as np
import pytest

from dpipe.errors import DpipeError, InputError
from dpipe.monitor import record as record_module
from dpipe.monitor.record import (
    CurveRecord,
    MachineRecord,
    MemoryRecord,
    PassRecord,
    RunRecord,
    StageRecord,
    write_whole,
)


def a_run(**changes):
    fields = {
        "name": "taxi-tips",
        "started": "2024-05-01T08:00:00+00:00",
        "seconds": 52.5,
        "finished": True,
        "versions": {"dask": "1"},
        "workers": 2,
        "threads": 4,
        "dashboard": "127.0.0.1:8787",
        "stages": (StageRecord("rides", "collect", 3.0, 100, 90, "ten broke the schema"),),
        "passes": (PassRecord("tips", "Fit", "merge", ("mean", "var"), "first", 4, 90, 720, 1.5, 10, 20),),
        "memory": MemoryRecord(2**31, 10, 20, 30, ((0.0, 5), (0.25, 30))),
        "metrics": {"roc_auc": 0.7},
        "references": {"roc_auc": 0.5},
        "required": {"roc_auc": 0.6},
        "curves": (CurveRecord("ROC", (0.0, 1.0), (0.0, 1.0), "fpr", "tpr", "area 0.5"),),
    }
    return RunRecord(**fields | changes)


@pytest.mark.parametrize(
    "run",
    [
        a_run(),
        RunRecord(name="", started="", seconds=0.0, finished=False),
        a_run(name='</script>"\n é', dashboard=None, memory=MemoryRecord()),
    ],
    ids=["full", "empty", "awkward texts"],
)
def test_json_and_file_round_trip(run, tmp_path):
    assert RunRecord.from_json(run.to_json()) == run
    path = run.write(tmp_path / "deep" / "run.json")
    assert path == tmp_path / "deep" / "run.json"
    assert RunRecord.read(path) == run
    assert hash(RunRecord.read(path).passes) == hash(run.passes)  # tuples, not lists


def test_json_is_strict_and_keeps_what_json_cannot_hold():
    run = a_run(metrics={"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1})
    kept = json.loads(run.to_json(), parse_constant=pytest.fail)
    assert kept["metrics"] == {"a": "nan", "b": "inf", "c": "-inf", "d": 1}
    metrics = RunRecord.from_json(run.to_json()).metrics
    assert math.isnan(metrics["a"])
    assert (metrics["b"], metrics["c"], metrics["d"]) == (math.inf, -math.inf, 1.0)


def test_numpy_scalars_become_plain_numbers():
    run = a_run(
        metrics={"r2": np.float32("nan"), "mae": np.float64(0.5)},
        stages=(StageRecord("a", "train", np.float64(1.0), np.int64(7)),),
    )
    read = RunRecord.from_json(run.to_json())
    assert type(read.stages[0].rows_in) is int
    assert read.metrics["mae"] == 0.5


@pytest.mark.parametrize(
    ("metrics", "unmet"),
    [({"a": 0.6, "b": 1.0}, ()), ({"a": 0.59}, ("a", "b")), ({"a": math.nan, "b": 2.0}, ("a",))],
)
def test_unmet_names_what_was_missed_or_not_measured(metrics, unmet):
    assert a_run(metrics=metrics, required={"a": 0.6, "b": 1.0}).unmet == unmet


def test_unknown_kinds_and_uneven_curves_are_refused():
    with pytest.raises(InputError, match="'a' is of kind 'ingest'; use one of collect, split"):
        StageRecord("a", "ingest", 1.0)
    with pytest.raises(InputError, match="'ROC' has 2 x and 1 y"):
        CurveRecord("ROC", (0.0, 1.0), (0.0,))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DpipeError, match=r"no run record '.*gone\.json'. Run the pipeline first"):
        RunRecord.read(tmp_path / "gone.json")


def changed(**changes):
    return json.dumps(json.loads(a_run().to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        (a_run().to_json()[:200], "not JSON"),
        ("[1]", "format version None"),
        ("{}", "format version None"),
        (changed(format_version=7), "format version 7; this dpipe reads version 3"),
        (changed(extra=1), r"lacks \[\] and has unknown \['extra'\]"),
        (json.dumps({"format_version": 3}), r"lacks \['curves', "),
        (changed(seconds="soon"), "record.seconds is 'soon', which is no float"),
        (changed(workers=True), "record.workers is 'True', which is no int"),
        (changed(stages={}), "record.stages is '{}', which is no list"),
        (changed(metrics={"auc": None}), r"record.metrics\['auc'\] is 'None'"),
        (changed(memory=dataclasses.asdict(MemoryRecord(samples=((1.0,),)))), "argument 2 is shorter"),
        (changed(machine=3), "record.machine is '3', which is no dict"),
        (changed(stages=[dataclasses.asdict(StageRecord("a", "train", 1.0)) | {"kind": "x"}]), "of kind 'x'"),
    ],
)
def test_a_broken_file_is_named_with_the_cause(tmp_path, text, message):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DpipeError, match=message) as caught:
        RunRecord.read(path)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_and_a_folder_are_named(tmp_path):
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DpipeError, match=r"Cannot read the run record .*run\.json"):
        RunRecord.read(tmp_path / "run.json")
    with pytest.raises(DpipeError, match="Cannot read the run record"):
        RunRecord.read(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_whole(tmp_path / "run.json", "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(record_module.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_nothing_stands_at_the_path_before_all_is_written(tmp_path, monkeypatch):
    seen = []
    replace = os.replace

    def spy(source, target):
        seen.append((source.parent == target.parent, target.exists(), source.read_text()))
        replace(source, target)

    monkeypatch.setattr(record_module.os, "replace", spy)
    assert write_whole(tmp_path / "a.json", "é" * 10_000).read_text("utf-8") == "é" * 10_000
    assert seen == [(True, False, "é" * 10_000)]


def test_this_machine_is_described():
    machine = MachineRecord.here()
    assert machine.cpus >= 1
    assert machine.memory_nbytes > 2**20
    assert machine.python.startswith("3.")
