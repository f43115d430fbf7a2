"""`score` in one pass equals scikit-learn's scorers on all rows in memory."""

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from dask.distributed import Client
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.metrics import get_scorer
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from dpipe.collect.parquet import read_parquet
from dpipe.errors import BlockMismatchError, InputError, MemoryLimitError
from dpipe.families.fitted import predictions
from dpipe.validate import score as score_module
from dpipe.validate.score import Scores, check_scoring, score, score_source

SCORING = [
    "roc_auc",
    "average_precision",
    "neg_log_loss",
    "neg_brier_score",
    "accuracy",
    "f1",
    "recall_macro",
]


@pytest.fixture(autouse=True)
def _in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def made_rows(rows, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "far": rng.gamma(2.0, 2.0, rows),
            "kind": pd.Series(rng.choice(["taxi", "bus", "train"], rows), dtype="str"),
            "never read": rng.normal(size=rows),
            "heavy": rng.choice([0.5, 1.0, 2.0], rows),
        }
    )
    frame.loc[::7, "far"] = np.nan
    frame.loc[::11, "kind"] = None
    frame["late"] = (frame["far"].fillna(4) + (frame["kind"] == "bus") + rng.normal(size=rows) > 5).astype(
        int
    )
    return frame


FRAME = made_rows(600)
MODEL = make_pipeline(
    make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), ["far"]),
        (make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()), ["kind"]),
    ),
    LogisticRegression(),
).fit(FRAME[["far", "kind", "never read"]], FRAME["late"])


def blocks(frame, sizes):
    """Cut a frame into partitions of given sizes, also empty ones."""
    ends = np.cumsum(sizes)
    parts = [frame.iloc[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    return dd.from_map(lambda part: part, parts, meta=frame.iloc[:0])


@pytest.mark.parametrize("kind", ["parquet", "partitions", "pandas"])
@pytest.mark.parametrize("scratch", [False, True])
def test_all_metrics_equal_scikit_learns_in_one_pass(tmp_path, kind, scratch, monkeypatch):
    if kind == "parquet":
        for i, rows in enumerate((1, 399, 200)):
            FRAME.iloc[[0, 1, 400][i] :][:rows].to_parquet(tmp_path / f"{i}.parquet")
        X = read_parquet(tmp_path / "*.parquet")
    else:
        X = FRAME if kind == "pandas" else blocks(FRAME, [100, 0, 1, 499])
    calls = []

    def watched(fitted, block, methods):
        calls.append((block, methods))
        return predictions(fitted, block, methods)

    monkeypatch.setattr(score_module, "predictions", watched)
    workdir = tmp_path / "work" if scratch else None
    found = score(MODEL, X, "late", scoring=SCORING, workdir=workdir)
    assert list(found) == SCORING
    for name in SCORING:
        expected = get_scorer(name)(MODEL, FRAME, FRAME["late"])
        assert found[name] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert len(calls) == (1 if kind == "pandas" else 3)
    for block, methods in calls:
        assert sorted(methods) == ["decision_function", "predict", "predict_proba"]
        assert list(block.column_names if kind == "parquet" else block.columns) == ["far", "kind"]
    if scratch:
        assert not (workdir / "scratch").exists()


def test_weights_and_a_single_name_and_none():
    X = blocks(FRAME, [250, 350])
    plain = FRAME[["far", "kind", "never read"]]
    assert score(MODEL, X, "late") == MODEL.score(plain, FRAME["late"])
    found = score(MODEL, X, "late", "heavy", scoring=["accuracy", "neg_log_loss", "f1_weighted"])
    for name, value in found.items():
        expected = get_scorer(name)(MODEL, plain, FRAME["late"], sample_weight=FRAME["heavy"])
        assert value == pytest.approx(expected, rel=1e-9)
    assert score(MODEL, X, "late", scoring="f1") == get_scorer("f1")(MODEL, plain, FRAME["late"])
    with pytest.raises(InputError, match="roc_auc does not take sample_weight"):
        score(MODEL, X, "late", "heavy", scoring="roc_auc")


@pytest.mark.parametrize("chunks", [(50,), (1, 30, 19), (20, 0, 30)])
@pytest.mark.parametrize("known", [True, False])
def test_arrays_and_several_targets(chunks, known):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 3)), rng.normal(size=(50, 2))
    model = LinearRegression().fit(X, y)
    lazy, targets = da.from_array(X, chunks=(chunks, 3)), da.from_array(y, chunks=(chunks, 2))
    if not known:
        keep = da.from_array(np.ones(50, dtype=bool), chunks=(chunks,))
        lazy, targets = lazy[keep], targets[keep]
    assert score(model, lazy, targets) == pytest.approx(model.score(X, y), rel=1e-12)
    found = score(model, lazy, targets, scoring="neg_root_mean_squared_error")
    assert found == pytest.approx(get_scorer("neg_root_mean_squared_error")(model, X, y), rel=1e-12)


def test_a_sparse_matrix_in_memory():
    X = sp.random_array((80, 6), density=0.3, format="csr", rng=np.random.default_rng(0))
    y = np.arange(80) % 3
    model = SGDClassifier(random_state=0).fit(X, y)
    assert score(model, X, y) == model.score(X, y)


def test_labels_of_text():
    labels = FRAME["late"].map({0: "no", 1: "yes"}).astype("str")
    frame = FRAME[["far"]].fillna(0).assign(late=labels)
    model = GaussianNB().fit(frame[["far"]], labels)
    found = score(model, blocks(frame, [300, 300]), "late", scoring=["roc_auc", "f1_macro"])
    for name, value in found.items():
        assert value == pytest.approx(get_scorer(name)(model, frame[["far"]], labels), abs=1e-12)


def test_what_the_validate_stage_of_a_pipeline_gets():
    events, clients = [], []
    found = score_source(
        MODEL,
        blocks(FRAME, [100, 0, 500]),
        "late",
        scoring=check_scoring("accuracy", MODEL, ["roc_auc"]),
        listener=events.append,
        started=clients.append,
    )
    assert isinstance(found, Scores)
    assert [curve.name for curve in found.curves] == ["ROC", "Precision and recall", "Calibration"]
    assert (found.tally.rows, found.tally.n_blocks) == (600, 3)
    assert found.projected_nbytes is None  # partitions of unknown size
    assert [event["pass"] for event in events] == ["score"] * 3
    assert clients == [None]
    assert score_source(MODEL, FRAME, "late", scoring="accuracy").curves == ()
    assert score_source(MODEL, FRAME, "late").projected_nbytes > 0


def test_the_same_bits_on_an_embedded_cluster(tmp_path):
    X = blocks(FRAME, [60] * 10)
    scoring = ["roc_auc", "neg_log_loss"]
    expected = score(MODEL, X, "late", scoring=scoring)
    with dask.config.set(scheduler=None):
        assert score(MODEL, X, "late", scoring=scoring, workdir=tmp_path) == expected


@pytest.mark.cluster
def test_a_client_of_ones_own():
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        found = score(MODEL, blocks(FRAME, [60] * 10), "late", scoring="roc_auc", client=client)
    assert found == score(MODEL, FRAME, "late", scoring="roc_auc")


def never(block):
    raise AssertionError("a check must not compute")


@pytest.mark.parametrize(
    ("model", "X", "y", "scoring", "said"),
    [
        (MODEL, FRAME.drop(columns=["far", "kind"]), "late", None, "X lacks 'far', 'kind', which Pipeline"),
        (MODEL, FRAME, "late", "rocauc", "Did you mean 'roc_auc'"),
        (MODEL, FRAME, None, None, "Pipeline is scored against targets, but y is None"),
        (MODEL, FRAME, "tardy", None, "y='tardy' is not a column of X"),
        (LogisticRegression(), FRAME, "late", None, "LogisticRegression is not fitted"),
        (LogisticRegression, FRAME, "late", None, "is the class LogisticRegression"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_computed(model, X, y, scoring, said):
    lazy = dd.from_pandas(X, npartitions=2).map_partitions(never, meta=X.iloc[:0])
    with pytest.raises(InputError, match=said):
        score(model, lazy, y, scoring=scoring)


def test_arrays_must_be_what_the_model_was_fitted_on():
    y = np.zeros(5)
    with pytest.raises(InputError, match="X has 2 columns, but Pipeline was fitted on 3"):
        score(MODEL, np.zeros((5, 2)), y)
    with pytest.raises(InputError, match="an array without column names, but Pipeline was fitted on a frame"):
        score(MODEL, np.zeros((5, 3)), y)
    with pytest.raises(BlockMismatchError, match="X has 5 rows, but y has 4"):
        score(LinearRegression().fit(np.ones((2, 3)), [1, 2]), np.zeros((5, 3)), y[:4])


def test_errors_of_a_block_name_the_model():
    X = blocks(FRAME.assign(kind="ship"), [300, 300])
    with pytest.raises(InputError, match="Pipeline cannot score a block: Found unknown categories"):
        score(MODEL, X, "late")
    with pytest.raises(InputError, match=r"score: the data has no rows \(2 blocks\)"):
        score(MODEL, blocks(FRAME, [0, 0]), "late")
    with pytest.raises(InputError, match="roc_auc needs both classes"):
        score(MODEL, blocks(FRAME.assign(late=1), [300, 300]), "late", scoring="roc_auc")


def test_a_budget_that_cannot_be_kept_is_refused():
    with pytest.raises(MemoryLimitError, match=r"Scoring needs .* Give workdir=\.\.\., so that"):
        score(MODEL, FRAME, "late", scoring="roc_auc", memory="1 MiB")
    assert score(MODEL, FRAME, "late", memory="100 GiB") > 0.5
    unknown = blocks(FRAME, [300, 300]).map_partitions(lambda part: part)
    with pytest.raises(
        MemoryLimitError, match="Scoring needs more than .* which the process takes by itself"
    ):
        score(MODEL, unknown, "late", memory="1 MiB")
