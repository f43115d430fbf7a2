"""Scoring of files: each whole or absent, none lost to another, none done twice."""

import fcntl
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

import dpipe
from dpipe.deploy import score_file as score_file_module
from dpipe.deploy.batch import ScoringError, score_files
from dpipe.deploy.bundle import load, write_bundle
from dpipe.deploy.files import output_names
from dpipe.deploy.score_file import FINGERPRINT
from dpipe.errors import DpipeError, InputError, MemoryLimitError, SourceError

CHANCES = ["probability_no", "probability_yes"]


def a_frame(n, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {"id": np.arange(n), "a": rng.normal(size=n), "b": rng.random(n), "c": rng.choice(list("xyz"), n)}
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    frame = a_frame(200)
    X, y = frame[["a", "b", "c"]], np.where(frame["a"] > 0, "yes", "no")
    columns = make_column_transformer((StandardScaler(), ["a", "b"]), (OneHotEncoder(), ["c"]))
    model = make_pipeline(columns, LogisticRegression()).fit(X, y)
    schema = pa.Schema.from_pandas(X, preserve_index=False)
    return load(write_bundle(tmp_path_factory.mktemp("bundles") / "bundle", model, schema=schema))


@pytest.fixture
def source(tmp_path):
    """Three files; the second one has no rows."""
    folder = tmp_path / "new"
    folder.mkdir()
    for number, n in enumerate([50, 0, 33]):
        a_frame(n, seed=number).to_parquet(folder / f"{number}.parquet", row_group_size=20)
    return folder


@pytest.fixture
def scored(tmp_path):
    return tmp_path / "scored"


def test_each_file_gets_the_predictions_of_scikit_learn(bundle, source, scored):
    result = score_files(bundle, source, scored, keep=["id"])
    assert (result.n_files, result.n_rows, result.n_skipped, result.failed) == (3, 83, 0, ())
    assert [path.name for path in result.paths] == ["0.parquet", "1.parquet", "2.parquet"]
    for number in range(3):
        frame = pd.read_parquet(source / f"{number}.parquet")
        written = pd.read_parquet(scored / f"{number}.parquet")
        assert list(written.columns) == ["id", *CHANCES]
        assert written["id"].tolist() == frame["id"].tolist()
        assert pq.read_schema(scored / f"{number}.parquet").types == [pa.int64(), pa.float64(), pa.float64()]
        if len(frame):
            expected = bundle.model.predict_proba(frame[["a", "b", "c"]])
            np.testing.assert_allclose(written[CHANCES], expected, rtol=1e-12)


@pytest.mark.parametrize("block_nbytes", [1, 700, "1 MiB"])
def test_rows_do_not_depend_on_the_batches(bundle, source, scored, block_nbytes):
    calls = []
    score_files(bundle, source, scored, block_nbytes=block_nbytes, listener=calls.append)
    written = pd.read_parquet(scored / "0.parquet")
    expected = bundle.model.predict_proba(a_frame(50)[["a", "b", "c"]])
    np.testing.assert_allclose(written, expected, rtol=1e-12)
    assert sum(call["rows"] for call in calls) == 83
    assert sorted(call["block"] for call in calls) == list(range(calls[0]["n_blocks"]))


def test_labels_of_text(bundle, source, scored):
    score_files(bundle, source, scored, method="predict")
    table = pq.read_table(scored)
    assert table.schema.field("prediction").type == pa.string()
    expected = np.concatenate(
        [bundle.model.predict(a_frame(n, s)[["a", "b", "c"]]) for s, n in ((0, 50), (2, 33))]
    )
    assert table["prediction"].to_pylist() == expected.tolist()


def test_a_regressor_and_a_classifier_without_chances_give_one_column(tmp_path, source):
    frame = a_frame(200)
    regressor = Ridge().fit(frame[["b"]], frame["a"])
    classifier = SGDClassifier(random_state=0).fit(frame[["b"]], frame["c"])
    for name, model in (("r", regressor), ("c", classifier)):
        folder = write_bundle(tmp_path / name, model)
        score_files(folder, source / "0.parquet", tmp_path / f"scored-{name}")
        written = pd.read_parquet(tmp_path / f"scored-{name}" / "0.parquet")
        assert list(written.columns) == ["prediction"]
        assert written["prediction"].tolist() == pytest.approx(model.predict(a_frame(50)[["b"]]).tolist())
    score_files(tmp_path / "c", source / "0.parquet", tmp_path / "scored-d", method="decision_function")
    names = pq.read_schema(tmp_path / "scored-d" / "0.parquet").names
    assert names == [f"decision_function_{label}" for label in "xyz"]


def test_finished_files_are_not_done_again(bundle, source, scored):
    first = score_files(bundle, source, scored)
    stamps = {path: path.stat().st_mtime_ns for path in first.paths}
    second = score_files(bundle, source, scored)
    assert (second.n_files, second.n_rows, second.n_skipped) == (3, 83, 3)
    assert {path: path.stat().st_mtime_ns for path in second.paths} == stamps


def test_a_killed_run_is_continued(bundle, source, scored):
    score_files(bundle, source, scored)
    before = (scored / "0.parquet").stat().st_mtime_ns
    (scored / "2.parquet").unlink()
    (scored / ".2.parquet.0123abcd.tmp").write_bytes(b"PAR1 half of a file")
    result = score_files(bundle, source, scored)
    assert (result.n_files, result.n_rows, result.n_skipped) == (3, 83, 2)
    assert (scored / "0.parquet").stat().st_mtime_ns == before
    assert sorted(path.name for path in scored.glob("*")) == [
        "0.parquet",
        "1.parquet",
        "2.parquet",
        "_manifest.json",
    ]


def test_what_has_changed_is_done_again(bundle, source, scored, tmp_path):
    score_files(bundle, source, scored)
    a_frame(70).to_parquet(source / "0.parquet")
    assert score_files(bundle, source, scored).n_skipped == 2
    assert score_files(bundle, source, scored, keep=["a"]).n_skipped == 0
    assert score_files(bundle, source, scored, keep=["a"], method="predict").n_skipped == 0
    other = Ridge().fit(a_frame(9)[["b"]], range(9))
    result = score_files(
        write_bundle(tmp_path / "other", other), source, scored, keep=["a"], method="predict"
    )
    assert (result.n_skipped, result.n_rows) == (0, 103)
    (scored / "0.parquet").write_bytes(b"damaged since")
    result = score_files(tmp_path / "other", source, scored, keep=["a"], method="predict")
    assert result.n_skipped == 2
    assert pq.read_metadata(scored / "0.parquet").num_rows == 70


@pytest.mark.parametrize("damage", ["cut", "middle", "text"])
def test_a_corrupt_file_does_not_lose_the_others(bundle, source, scored, damage):
    corrupt = source / "0.parquet"
    content = corrupt.read_bytes()
    if damage == "cut":
        corrupt.write_bytes(content[:-30])
    elif damage == "middle":
        corrupt.write_bytes(content[:4] + b"\xff" * (len(content) // 3) + content[4 + len(content) // 3 :])
    else:
        corrupt.write_text("id,a,b,c")
    with pytest.raises(SourceError, match=r"1 of 3 files .*0\.parquet: .*The other 2 are in") as raised:
        score_files(bundle, source, scored)
    assert isinstance(raised.value, ScoringError)
    assert raised.value.result.failed == (str(corrupt),)
    assert raised.value.result.n_rows == 33
    assert pickle.loads(pickle.dumps(raised.value)).result == raised.value.result
    assert sorted(path.name for path in scored.iterdir()) == ["1.parquet", "2.parquet"]
    corrupt.write_bytes(content)
    assert score_files(bundle, source, scored).n_skipped == 2


def test_a_file_that_the_model_refuses_does_not_lose_the_others(bundle, source, scored):
    a_frame(5).assign(c="unseen").to_parquet(source / "1.parquet")
    a_frame(5).assign(a="text").to_parquet(source / "3.parquet")
    with pytest.raises(
        SourceError, match=r"2 of 4 files.*1\.parquet: ValueError: .*unknown categories.*3\.parquet"
    ):
        score_files(bundle, source, scored)
    assert sorted(path.name for path in scored.iterdir()) == ["0.parquet", "2.parquet"]


def test_rows_are_counted_in_and_out(bundle, source, scored, monkeypatch):
    read = score_file_module._batches

    def lossy(*args):
        return (table.slice(1) for table in read(*args))

    monkeypatch.setattr(score_file_module, "_batches", lossy)
    with pytest.raises(DpipeError, match=r"0\.parquet: DpipeError: 47 rows came out for 50 rows"):
        score_files(bundle, source / "0.parquet", scored, block_nbytes=20 * 24)
    assert not list(scored.iterdir())


def test_columns_are_found_by_name_in_any_spelling_order_and_type(bundle, source, scored):
    frame = a_frame(20)
    changed = frame.assign(c=frame["c"].astype("category"), b=frame["b"].astype("float32"), more=1)
    changed.rename(columns={"a": "A"})[["more", "c", "b", "A", "id"]].to_parquet(source / "0.parquet")
    score_files(bundle, source / "0.parquet", scored, keep=["c", "a"])
    written = pd.read_parquet(scored / "0.parquet")
    assert written["c"].tolist() == frame["c"].tolist()
    assert written["a"].tolist() == frame["a"].tolist()
    as_read = frame.assign(b=frame["b"].astype("float32").astype("float64"))[["a", "b", "c"]]
    np.testing.assert_allclose(written[CHANCES], bundle.model.predict_proba(as_read), rtol=1e-12)


def test_missing_values_stay_missing(tmp_path, source):
    frame = a_frame(50).assign(id=lambda frame: frame["id"].mask(frame["id"] < 5).astype("Int64"))
    frame.to_parquet(source / "0.parquet")
    model = FunctionTransformer(np.sqrt, feature_names_out="one-to-one").fit(frame[["id"]].astype("float64"))
    folder = write_bundle(tmp_path / "bundle", model, method="transform")
    score_files(folder, source / "0.parquet", tmp_path / "scored", keep=["c"])
    written = pd.read_parquet(tmp_path / "scored" / "0.parquet")["id"]
    np.testing.assert_allclose(written, np.sqrt(frame["id"].astype("float64")))


def test_files_of_one_name_get_outputs_of_their_own(bundle, source, scored):
    for year in ("2024", "2025"):
        (source / year).mkdir()
        a_frame(int(year) - 2020).to_parquet(source / year / "0.parquet")
    result = score_files(bundle, source, scored)
    assert {path.name: pq.read_metadata(path).num_rows for path in result.paths} == {
        "new-0.parquet": 50, "2024-0.parquet": 4, "2025-0.parquet": 5, "1.parquet": 0, "2.parquet": 33
    }  # fmt: skip
    names = output_names(["x/1/a.parquet", "y/1/a.parquet", "1-a.parquet", "z/b.parquet"])
    assert len(set(names.values())) == 4
    assert names["z/b.parquet"] == "b.parquet"


def test_the_same_file_twice_is_scored_once(bundle, source, scored, monkeypatch):
    monkeypatch.chdir(source)
    result = score_files(
        bundle, ["0.parquet", source / "0.parquet", "./0.parquet"], "../scored", keep=["id", "id"]
    )
    assert [path.resolve() for path in result.paths] == [scored / "0.parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "transform"}, "no method 'transform'. It has: predict"),
        ({"keep": ["nothing"]}, r"0\.parquet has no column 'nothing' to keep. It has: 'a', 'b', 'c', 'id'"),
        ({"keep": "id"}, r"Pass keep=\['id'\]"),
        ({"block_nbytes": "many"}, "'many' is not a size"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(bundle, source, scored, options, message):
    with pytest.raises(InputError, match=message):
        score_files(bundle, source, scored, **options)
    assert not scored.exists() or not list(scored.iterdir())


def test_a_missing_column_is_named_with_its_file(bundle, source, scored):
    a_frame(5).drop(columns="c").to_parquet(source / "2.parquet")
    with pytest.raises(InputError, match=r"2\.parquet lacks 'c'.*has: 'a', 'b', 'id'"):
        score_files(bundle, source, scored)
    assert not list(scored.iterdir())


def test_a_kept_column_may_not_hide_a_prediction(bundle, source, scored):
    a_frame(5).assign(prediction=1).to_parquet(source / "0.parquet")
    with pytest.raises(InputError, match="keep names 'prediction'"):
        score_files(bundle, source / "0.parquet", scored, keep=["prediction"], method="predict")


def test_a_model_of_arrays_has_no_columns_to_read(source, scored, tmp_path):
    folder = write_bundle(tmp_path / "bundle", Ridge().fit(np.zeros((3, 2)), np.zeros(3)))
    with pytest.raises(InputError, match="was trained on an array"):
        score_files(folder, source, scored)


def test_destinations_that_do_not_do_are_refused_before_anything_is_read(bundle, source, tmp_path):
    (source / "0.parquet").write_text("corrupt")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        score_files(bundle, source, tmp_path / "file" / "scored")
    for inside in (source, source / "scored", source.parent):
        with pytest.raises(InputError, match="lie in each other"):
            score_files(bundle, source, inside)


def test_files_of_others_are_not_overwritten(bundle, source, scored):
    scored.mkdir()
    a_frame(3).to_parquet(scored / "2.parquet")
    with pytest.raises(InputError, match=r"2\.parquet is there already, and was not written by score_files"):
        score_files(bundle, source, scored)
    assert [path.name for path in scored.iterdir()] == ["2.parquet"]


def test_two_runs_do_not_write_to_one_destination(bundle, source, scored):
    scored.mkdir()
    held = os.open(scored, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="Another run is writing"):
            score_files(bundle, source, scored)
    finally:
        os.close(held)
    assert score_files(bundle, source, scored).n_files == 3


def test_a_budget_that_is_too_small_is_refused_with_figures(bundle, source, scored):
    with pytest.raises(MemoryLimitError, match=r"Scoring needs .*[MG]iB of memory.*the budget is 1\.00 MiB"):
        score_files(bundle, source, scored, memory="1 MiB")
    assert score_files(bundle, source, scored, memory="8 GiB").n_files == 3


def test_outputs_say_what_they_were_made_from(bundle, source, scored):
    (path,) = score_files(bundle, source / "0.parquet", scored).paths
    said = pq.read_metadata(path).metadata[FINGERPRINT].decode()
    assert bundle.sha256 in said
    assert str(Path(source) / "0.parquet") in said


@pytest.mark.cluster
@pytest.mark.parametrize("place", ["embedded", "client"])
def test_on_a_cluster(bundle, source, scored, place):
    seen = []
    if place == "embedded":
        result = score_files(bundle, source, scored, workers=2, started=seen.append)
    else:
        with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
            result = score_files(bundle, source, scored, client=client, started=seen.append)
    assert (result.n_files, result.n_rows) == (3, 83)
    assert isinstance(seen[0], Client)


def test_what_was_scored_can_be_verified(bundle, source, scored, tmp_path):
    score_files(bundle, source, scored)
    found = dpipe.verify(scored)
    assert (found.ok, found.n_files, found.n_rows) == (True, 3, 83)
    # more files into the same folder, and the others stay in the manifest
    more = tmp_path / "more"
    more.mkdir()
    (more / "9.parquet").write_bytes((source / "0.parquet").read_bytes())
    score_files(bundle, more, scored)
    assert dpipe.verify(scored).n_files == 4
    content = (scored / "1.parquet").read_bytes()
    (scored / "1.parquet").write_bytes(content[:-9] + b"?" + content[-8:])
    (scored / "2.parquet").unlink()
    problems = dpipe.verify(scored).problems
    assert [said.split(":")[0] for said in problems] == ["1.parquet", "2.parquet"]
