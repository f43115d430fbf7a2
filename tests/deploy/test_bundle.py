"""Bundles: whole or not at all, opened without pickle, and refused by name where something is wrong."""

import json
import pickle
import subprocess
import sys
import zipfile
from hashlib import sha256

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import skops.io
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, KBinsDiscretizer, OneHotEncoder, StandardScaler
from xgboost import XGBClassifier, XGBRegressor, XGBRFClassifier, XGBRFRegressor

from dpipe.deploy import bundle as bundle_module
from dpipe.deploy.bundle import load, write_bundle
from dpipe.errors import BundleError, InputError
from dpipe.families.model_file import check_model
from recipes.ride_features import ride_features, trip_minutes

TRUSTED = ["recipes.ride_features.trip_minutes"]


def minutes(rides):
    return trip_minutes(rides).reshape(-1, 1)


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame({"a": rng.normal(size=80), "b": rng.random(80), "c": rng.choice(list("xyz"), 80)})


@pytest.fixture(scope="module")
def y(frame):
    return np.where(frame["a"] > 0, "yes", "no")


@pytest.fixture(scope="module")
def model(frame, y):
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), make_column_selector(dtype_include="number")),
        (make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()), ["c"]),
    )
    return make_pipeline(columns, SGDClassifier(loss="log_loss", random_state=0)).fit(frame, y)


@pytest.fixture
def folder(tmp_path, model, frame):
    schema = pa.Schema.from_pandas(frame, preserve_index=False)
    metrics = {"roc_auc": np.float64(0.75), "r2": float("nan")}
    return write_bundle(
        tmp_path / "bundle", model, schema=schema, target="tipped", metrics=metrics, name="tips"
    )


def reseal(folder):
    """Make the manifest fit the files, as a forger would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        entry["sha256"] = sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_round_trip(folder, model, frame):
    bundle = load(folder)
    np.testing.assert_array_equal(bundle.model.predict(frame), model.predict(frame))
    assert bundle.schema.names == ["a", "b", "c"]
    assert bundle.schema.field("a").type == pa.float64()
    assert bundle.target == "tipped"
    assert bundle.metrics["roc_auc"] == 0.75
    assert np.isnan(bundle.metrics["r2"])
    assert bundle.manifest["classes"] == ["no", "yes"]
    assert set(bundle.manifest["versions"]) == {
        "python", "dpipe", "scikit-learn", "skops", "numpy", "pyarrow"
    }  # fmt: skip
    assert {path.name for path in folder.iterdir()} == {"model.skops", "schema.json", "manifest.json"}


def test_predicts_what_the_model_predicts_and_checks_columns(folder, model, frame):
    bundle = load(folder)
    shuffled = frame[["c", "b", "a"]].assign(more=0)
    assert bundle.predict(shuffled).tolist() == model.predict(frame).tolist()
    chances = bundle.predict(shuffled, method="predict_proba")
    np.testing.assert_allclose(chances, model.predict_proba(frame))
    with pytest.raises(InputError, match=r"X lacks 'c'.*X has: 'a', 'b'"):
        bundle.predict(frame[["a", "b"]])


def test_the_model_opens_with_plain_skops(folder, model, frame):
    file = folder / "model.skops"
    opened = skops.io.load(file, trusted=skops.io.get_untrusted_types(file=file))
    np.testing.assert_array_equal(opened.predict(frame), model.predict(frame))


def test_schema_is_for_people_too_and_keeps_every_type(tmp_path, model):
    schema = pa.schema(
        [
            pa.field("a", pa.timestamp("us", tz="UTC"), nullable=False),
            ("b", pa.decimal128(10, 2)),
            ("c", pa.dictionary(pa.int8(), pa.string())),
        ]
    )
    folder = write_bundle(tmp_path / "bundle", model, schema=schema)
    written = json.loads((folder / "schema.json").read_text())["columns"]
    assert written[0] == {"name": "a", "type": "timestamp[us, tz=UTC]", "nullable": False}
    assert load(folder).schema.equals(schema)


def test_shown_as_text_and_as_html(folder):
    bundle = load(folder)
    for text in (repr(bundle), bundle._repr_html_()):
        for part in (
            "tips",
            "Pipeline.predict",
            "a (double)",
            "tipped: no, yes",
            "roc_auc 0.75",
            "scikit-learn",
        ):
            assert part in text
    assert "<script" not in bundle._repr_html_()


@pytest.mark.parametrize(
    "estimator",
    [
        GaussianNB(),
        LogisticRegression(),
        SGDClassifier(loss="modified_huber", early_stopping=True),
        MLPClassifier(max_iter=3, hidden_layer_sizes=4),
        make_pipeline(SelectKBest(k=1), KBinsDiscretizer(2, encode="onehot-dense"), GaussianNB()),
        make_pipeline(FunctionTransformer(np.log1p), GaussianNB()),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_plain_scikit_learn_needs_no_trust(tmp_path, frame, y, estimator):
    X = frame[["a", "b"]].abs()
    fitted = estimator.fit(X, y)
    opened = load(write_bundle(tmp_path / "bundle", fitted)).model
    np.testing.assert_array_equal(opened.predict(X), fitted.predict(X))


def test_a_function_must_be_trusted_by_name(tmp_path, frame):
    rides = pd.DataFrame(
        {
            "tpep_pickup_datetime": pd.to_datetime(["2025-01-01 17:30", "2025-01-01 17:30"]),
            "tpep_dropoff_datetime": pd.to_datetime(["2025-01-01 17:42", "2025-01-01 17:50"]),
        }
    )
    model = make_pipeline(FunctionTransformer(trip_minutes), FunctionTransformer(np.abs)).fit(rides)
    folder = write_bundle(tmp_path / "bundle", model, method="transform")
    with pytest.raises(BundleError, match=r'pass trusted=\["recipes.ride_features.trip_minutes"\]'):
        load(folder)
    with pytest.raises(BundleError, match=r'trusted=\["other.name", "recipes.ride_features.trip_minutes"\]'):
        load(folder, trusted=["other.name"])
    with pytest.raises(InputError, match="Pass trusted="):
        load(folder, trusted=TRUSTED[0])
    assert load(folder, trusted=TRUSTED).predict(rides).tolist() == [12.0, 20.0]


def test_trees_must_be_trusted_too(tmp_path, frame, y):
    forest = RandomForestClassifier(2, random_state=0).fit(frame[["a"]], y)
    folder = write_bundle(tmp_path / "bundle", forest)
    with pytest.raises(BundleError, match="sklearn.tree._tree.Tree"):
        load(folder)
    assert (
        load(folder, trusted=["sklearn.tree._tree.Tree"]).predict(frame).tolist()
        == forest.predict(frame[["a"]]).tolist()
    )


@pytest.mark.parametrize("function", [lambda X: X, minutes], ids=["lambda", "module"])
def test_functions_that_nobody_could_import_are_refused_before_training(function, monkeypatch):
    if function is minutes:
        monkeypatch.setattr(function, "__module__", "__main__")
    with pytest.raises(BundleError, match="no other process could import"):
        check_model(make_pipeline(FunctionTransformer(function), Ridge()))
    check_model(make_pipeline(FunctionTransformer(ride_features), Ridge()))


def test_a_function_that_is_gone_is_named(tmp_path, monkeypatch, frame):
    (tmp_path / "passing_fancy.py").write_text("def double(X):\n    return 2 * X\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import passing_fancy

    X = frame[["a"]]
    model = make_pipeline(FunctionTransformer(passing_fancy.double), StandardScaler()).fit(X)
    folder = write_bundle(tmp_path / "bundle", model, method="transform")
    monkeypatch.delattr(passing_fancy, "double")
    with pytest.raises(BundleError, match=r"cannot be imported.*passing_fancy.*PYTHONPATH"):
        load(folder, trusted=["passing_fancy.double"])


@pytest.mark.parametrize("name", ["model.skops", "schema.json"])
def test_a_changed_file_is_found(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} is not the file that was deployed"):
        load(folder)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_a_pickle_is_never_opened(folder):
    (folder / "model.skops").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(BundleError, match="not the file that was deployed"):
        load(folder)
    reseal(folder)
    with pytest.raises(BundleError, match="is not a skops file.*Nothing of it was run"):
        load(folder, trusted=["_pytest.outcomes.fail", "builtins.object"])


@pytest.mark.parametrize("name", ["model.skops", "schema.json"])
def test_a_lost_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=rf"is not whole: {name}"):
        load(folder)


def test_manifests_that_cannot_be_read_are_refused(folder, tmp_path):
    with pytest.raises(BundleError, match=r"it has no manifest.json"):
        load(tmp_path)
    change(folder, format_version=99)
    with pytest.raises(BundleError, match="format version 99; this dpipe reads version 1"):
        load(folder)
    change(folder, format_version=1, metrics=None)
    with pytest.raises(BundleError, match="is not of dpipe's making"):
        load(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match=r"manifest.json cannot be read"):
        load(folder)


def test_another_scikit_learn_is_warned_of_once(folder, monkeypatch):
    versions = json.loads((folder / "manifest.json").read_text())["versions"]
    change(folder, versions={**versions, "scikit-learn": "0.1"})
    with pytest.warns(
        UserWarning, match=rf"by scikit-learn 0\.1, and this is scikit-learn {versions['scikit-learn']}"
    ) as told:
        load(folder)
    assert len(told) == 1


def test_a_bundle_is_replaced_as_a_whole(folder, frame):
    (folder / "stray").touch()
    write_bundle(folder, Ridge().fit(frame[["b"]], frame["a"]), name="second")
    assert load(folder).name == "second"
    assert not (folder / "stray").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_write_that_fails_leaves_the_old_bundle(folder, frame, monkeypatch, fails_at):
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > fails_at:
            raise OSError("disk full")

    monkeypatch.setattr(bundle_module.os, "fsync", fsync)
    with pytest.raises(BundleError, match="disk full"):
        write_bundle(folder, Ridge().fit(frame[["b"]], frame["a"]), name="second")
    assert load(folder).name == "tips"
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_other_folders_are_not_replaced(tmp_path, model):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").touch()
    (tmp_path / "file").touch()
    for name in ("data", "file"):
        with pytest.raises(BundleError, match="is not a bundle"):
            write_bundle(tmp_path / name, model)
    with pytest.raises(BundleError, match="cannot be written"):
        write_bundle(tmp_path / "file" / "bundle", model)
    assert (tmp_path / "data" / "precious").exists()


def test_models_that_cannot_be_used_are_not_written(tmp_path, model):
    with pytest.raises(InputError, match="is not fitted"):
        write_bundle(tmp_path / "bundle", Ridge())
    with pytest.raises(InputError, match="no method 'transform'"):
        write_bundle(tmp_path / "bundle", model, method="transform")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "booster",
    [
        XGBClassifier(n_jobs=1, n_estimators=4, early_stopping_rounds=2),
        XGBRegressor(n_jobs=1, n_estimators=2),
        XGBRFClassifier(n_jobs=1, n_estimators=2),
        XGBRFRegressor(n_jobs=1, n_estimators=2),
        LGBMClassifier(n_estimators=3, n_jobs=1, verbose=-1),
        LGBMRegressor(n_estimators=3, n_jobs=1, verbose=-1),
    ],
    ids=lambda booster: type(booster).__name__,
)
def test_boosters_are_kept_in_their_own_format(booster, frame, y, tmp_path):
    X = frame[["a", "b"]]
    target = (y == "yes").astype(int)
    stops = getattr(booster, "early_stopping_rounds", None)
    watched = {"eval_set": [(X.to_numpy(), target)], "verbose": False} if stops else {}
    booster.fit(X.to_numpy(), target, **watched)
    model = make_pipeline(StandardScaler().fit(X.to_numpy()), booster)
    opened = load(write_bundle(tmp_path / "bundle", model))
    np.testing.assert_array_equal(opened.predict(X.to_numpy()), model.predict(X.to_numpy()))
    assert vars(opened.model[-1]).keys() == vars(booster).keys()
    # what stands there is data: nothing in the file is a pickle
    with zipfile.ZipFile(tmp_path / "bundle" / "model.skops") as file:
        assert not any(name.endswith(".pkl") for name in file.namelist())


def test_a_bundle_with_a_booster_names_the_package_that_is_missing(tmp_path, frame, y):
    X = frame[["a", "b"]]
    write_bundle(
        tmp_path / "bundle", XGBClassifier(n_jobs=1, n_estimators=2).fit(X, (y == "yes").astype(int))
    )
    program = (
        "import sys\nsys.modules['xgboost'] = None\nfrom dpipe.deploy.bundle import load\nload(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "bundle")], capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "pip install 'dpipe[xgboost]'" in done.stderr.splitlines()[-1]
