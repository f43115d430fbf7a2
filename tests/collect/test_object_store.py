"""Files in an object store: read as local ones, through faults, and without a word of the credentials."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

import dpipe
from dpipe.collect.files import retried, scrubbed
from dpipe.collect.parquet import ParquetReader
from dpipe.errors import SourceError
from tests.collect.object_store import BUCKET, KEY, SECRET, Store, faulty, object_store

pytestmark = [
    pytest.mark.timeout(300),
    # clients of S3 still ask for the time in a way that newer versions of Python warn of
    pytest.mark.filterwarnings(r"ignore:datetime\.datetime\.utcnow:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def store():
    with object_store() as running:
        yield running


def table(start, n=200):
    x = np.arange(start, start + n, dtype=float)
    return pd.DataFrame({"x": x, "kind": np.where(x % 2, "odd", "even"), "y": 2 * x + 1})


def parquet(start, n=200, **options):
    sink = io.BytesIO()
    table(start, n).to_parquet(sink, index=False, row_group_size=50, **options)
    return sink.getvalue()


@pytest.fixture
def folder(store, request):
    name = request.node.name.replace("[", "-").replace("]", "")
    for i in range(3):
        store.put(f"{name}/{i}.parquet", parquet(200 * i))
    return f"s3://{BUCKET}/{name}"


def test_one_file_a_glob_and_a_folder(store, folder):
    wanted = pd.concat([table(200 * i) for i in range(3)], ignore_index=True)
    for source in (folder, folder + "/", folder + "/*.parquet", [f"{folder}/{i}.parquet" for i in range(3)]):
        rows = dpipe.read_parquet(source, storage_options=store.options).compute(scheduler="sync")
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), wanted, check_dtype=False)
    one = dpipe.read_parquet(f"{folder}/1.parquet", storage_options=store.options)
    assert list(one["x"].compute(scheduler="sync")) == list(range(200, 400))


def test_csv(store):
    for i in range(2):
        store.put(f"csv/{i}.csv", table(200 * i).to_csv(index=False).encode())
    rows = dpipe.read_csv(f"s3://{BUCKET}/csv/*.csv", storage_options=store.options)
    assert list(rows["x"].compute(scheduler="sync")) == list(range(400))


def test_fit_and_predict(store, folder):
    rows = dpipe.read_parquet(folder, storage_options=store.options)
    fitted = dpipe.fit(LinearRegression(), rows[["x"]], rows["y"])
    np.testing.assert_allclose(fitted.coef_, [2.0], rtol=1e-9)
    predicted = dpipe.predict(fitted, rows[["x"]]).compute(scheduler="sync")
    np.testing.assert_allclose(np.asarray(predicted), 2 * np.arange(600.0) + 1, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fault", ["503", "reset", "stall"])
def test_faults_are_got_over(store, folder, fault):
    every = 9 if fault == "stall" else 3
    with faulty(store, lambda number: fault if number % every == 1 else "") as proxy:
        rows = dpipe.read_parquet(folder, storage_options=Store.options_at(proxy.endpoint))
        assert rows["x"].sum().compute(scheduler="sync") == sum(range(600))
        assert proxy.faults > 1


def test_an_outage_names_the_file(store, folder):
    outage = []
    with faulty(store, lambda number: "503" if outage else "") as proxy:
        options = Store.options_at(proxy.endpoint, retries={"max_attempts": 1})
        rows = dpipe.read_parquet(folder, storage_options=options)
        outage.append(True)
        with pytest.raises(SourceError, match=r"test_an_outage_names_the_file/0\.parquet") as caught:
            rows.partitions[0].compute(scheduler="sync")
    assert SECRET not in str(caught.value)


def test_an_outage_after_the_last_byte_is_not_called_a_change(store, folder, monkeypatch):
    outage = []
    decoded = ParquetReader._decoded

    def going_out(*arguments):
        found = decoded(*arguments)
        outage.append(True)
        return found

    monkeypatch.setattr(ParquetReader, "_decoded", going_out)
    with faulty(store, lambda number: "503" if outage else "") as proxy:
        options = Store.options_at(proxy.endpoint, retries={"max_attempts": 1})
        rows = dpipe.read_parquet(folder, storage_options=options)
        with pytest.raises(SourceError, match=r"0\.parquet: whether it has changed.* cannot be told"):
            rows.partitions[0].compute(scheduler="sync")


def test_an_object_that_changed_is_noticed(store, folder):
    rows = dpipe.read_parquet(folder, storage_options=store.options)
    # as many bytes as before, and another content
    before = parquet(200, compression=None)
    store.put(folder.removeprefix(f"s3://{BUCKET}/") + "/1.parquet", before)
    rows = dpipe.read_parquet(folder, storage_options=store.options)
    after = parquet(1200, compression=None)
    store.put(folder.removeprefix(f"s3://{BUCKET}/") + "/1.parquet", after)
    with pytest.raises(SourceError, match=r"1\.parquet has changed since it was listed"):
        rows["x"].sum().compute(scheduler="sync")
    anew = dpipe.read_parquet(folder, storage_options=store.options)
    assert anew["x"].max().compute(scheduler="sync") == 1399


def test_an_object_that_is_gone(store, folder):
    rows = dpipe.read_parquet(folder, storage_options=store.options)
    store.client.delete_object(Bucket=BUCKET, Key=folder.removeprefix(f"s3://{BUCKET}/") + "/2.parquet")
    with pytest.raises(SourceError, match=r"2\.parquet"):
        rows["x"].sum().compute(scheduler="sync")


def test_a_changed_object_is_never_taken_from_the_record(store, folder, tmp_path):
    def run():
        rows = dpipe.read_parquet(folder, storage_options=store.options)
        return dpipe.fit(LinearRegression(), rows[["x"]], rows["y"], workdir=tmp_path)

    first = run()
    other = io.BytesIO()
    table(400).assign(y=0.0).to_parquet(other, index=False, row_group_size=50)
    store.put(folder.removeprefix(f"s3://{BUCKET}/") + "/2.parquet", other.getvalue())
    assert abs(run().coef_[0] - first.coef_[0]) > 0.1


def test_csv_of_a_store_is_recorded_and_noticed_when_it_changes(store, tmp_path, capsys):
    for i in range(2):
        store.put(f"recorded/{i}.csv", table(200 * i).to_csv(index=False).encode())
    rows = dpipe.read_csv(f"s3://{BUCKET}/recorded/*.csv", storage_options=store.options)
    first = dpipe.fit(LinearRegression(), rows[["x"]], rows["y"], workdir=tmp_path)
    again = dpipe.fit(LinearRegression(), rows[["x"]], rows["y"], workdir=tmp_path)
    assert first.coef_ == again.coef_
    assert "pass 1 on record" in capsys.readouterr().err
    store.put("recorded/1.csv", table(200).assign(y=0.0).to_csv(index=False).encode())
    with pytest.raises(SourceError, match=r"recorded/1\.csv has changed since it was listed"):
        rows.compute(scheduler="sync")


def files_with(folder, secrets):
    found = []
    for place, _, names in os.walk(folder):
        for name in names:
            content = Path(place, name).read_bytes()
            found += [name for secret in secrets if secret.encode() in content]
    return found


def test_credentials_are_nowhere(store, folder, tmp_path, capfd):
    pipe = dpipe.Pipeline("secret", workdir=tmp_path / "run")
    rows = pipe.collect(folder, storage_options=store.options, schema="infer")
    train, test = pipe.split(rows, by="x")
    model = pipe.train(LinearRegression(), train, features=["x"], target="y")
    pipe.deploy(model, pipe.validate(model, test, scoring=["r2"]), to="bundle")
    said = [repr(rows), repr(pipe), str(pipe.plan()), repr(pipe.run())]
    csv = store.put("secret.csv", table(0).to_csv(index=False).encode())
    lazy = dpipe.read_csv(csv, storage_options=store.options)
    said += [repr(lazy), str(dpipe.plan(LinearRegression(), lazy[["x"]], lazy["y"]))]
    # and of a run that fails
    for i in range(3):
        store.client.delete_object(
            Bucket=BUCKET, Key=folder.removeprefix(f"s3://{BUCKET}/") + f"/{i}.parquet"
        )
    failing = dpipe.Pipeline("failing", workdir=tmp_path / "failing")
    failing.train(LinearRegression(), rows, features=["x"], target="y")
    with pytest.raises(SourceError) as caught:
        failing.run()
    said += [str(caught.value), *getattr(caught.value, "__notes__", []), *capfd.readouterr()]
    assert not [text for text in said if SECRET in text or KEY in text]
    assert not files_with(tmp_path, [SECRET, KEY])


def test_a_missing_object_is_named(store):
    with pytest.raises(SourceError, match=r"There is no file s3://rows/nothing\.parquet"):
        dpipe.read_parquet(f"s3://{BUCKET}/nothing.parquet", storage_options=store.options)


def test_an_option_that_s3_does_not_know(store, folder):
    with pytest.raises(SourceError, match="cannot be listed.*'bogus'.*storage_options"):
        dpipe.read_parquet(folder, storage_options={**store.options, "bogus": 1})


def test_wrong_credentials_are_not_repeated(store, folder):
    options = {**store.options, "secret": "wrong-and-still-secret", "endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(SourceError) as caught:
        dpipe.read_parquet(folder + "/*.parquet", storage_options=options)
    assert "cannot be listed" in str(caught.value)
    assert "wrong-and-still-secret" not in str(caught.value)


def test_scoring_by_the_command_line(store, folder, tmp_path):
    rows = dpipe.read_parquet(folder, storage_options=store.options)
    pipe = dpipe.Pipeline("scoring", workdir=tmp_path / "run")
    pipe.deploy(pipe.train(LinearRegression(), rows, features=["x"], target="y"), to="bundle")
    pipe.run()
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": store.endpoint,
    }
    command = [
        sys.executable,
        "-m",
        "dpipe.cli",
        "predict",
        tmp_path / "run" / "bundle",
        f"{folder}/*.parquet",
    ]
    command.append(tmp_path / "out")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scored = pd.concat([pd.read_parquet(path) for path in sorted((tmp_path / "out").glob("*.parquet"))])
    assert len(scored) == 600
    assert SECRET not in done.stdout + done.stderr
    assert not files_with(tmp_path, [SECRET, KEY])


def test_what_is_missing_is_not_asked_for_again():
    calls = []

    def missing():
        calls.append(1)
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError):
        retried(missing, path="s3://rows/a")
    assert len(calls) == 1


def test_texts_are_scrubbed():
    assert scrubbed("the key sesame-open\nfails", {"a": ["sesame-open"], "b": 1}) == "the key *** fails"
