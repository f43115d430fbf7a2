"""Bad input gets an error that says what is wrong, what was allowed and what to do, before any work."""

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import (
    KBinsDiscretizer,
    OneHotEncoder,
    RobustScaler,
    SplineTransformer,
    StandardScaler,
)
from sklearn.svm import SVC

import dpipe
from dpipe.errors import (
    BlockMismatchError,
    ContractError,
    InputError,
    MemoryLimitError,
    OutputError,
    SourceError,
    UnsupportedEstimatorError,
)
from tests.helpers import raise_if_computes


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"a": rng.normal(size=100), "b": np.nan, "s": ["u", "v"] * 50, "y": [0, 1] * 50})
    return dd.from_pandas(data, npartitions=4)


SGD = SGDClassifier(random_state=0)
EARLY = {
    "unknown estimator": (
        lambda f: (SVC(), f[["a"]], f["y"]),
        UnsupportedEstimatorError,
        "SVC cannot be fitted.*SGDClassifier",
    ),
    "forest": (
        lambda f: (RandomForestClassifier(), f[["a"]], f["y"]),
        UnsupportedEstimatorError,
        "RandomForestClassifier",
    ),
    "not an estimator": (lambda f: ("scaler", f[["a"]]), UnsupportedEstimatorError, "is not an estimator"),
    "a class": (lambda f: (StandardScaler, f[["a"]]), InputError, r"pass an instance: StandardScaler\(\)"),
    "bad parameter": (
        lambda f: (SGDClassifier(loss="nope"), f[["a"]], f["y"]),
        InputError,
        "'loss' parameter.*nope",
    ),
    "missing column": (
        lambda f: (make_column_transformer((StandardScaler(), ["a", "zz"])), f),
        InputError,
        "no column 'zz'. X has: 'a', 'b', 's', 'y'",
    ),
    "texts for a regression": (
        lambda f: (LinearRegression(), f[["a"]], f["s"]),
        InputError,
        "LinearRegression predicts numbers, but y is of type str",
    ),
    "no columns": (lambda f: (StandardScaler(), f[[]]), InputError, "X has no columns"),
    "missing target": (lambda f: (SGD, f, "label"), InputError, "y='label' is not a column of X"),
    "no target": (
        lambda f: (LinearRegression(), f[["a"]]),
        InputError,
        "LinearRegression learns from targets, but y is None",
    ),
    "blocks differ": (
        lambda f: (SGD, f[["a"]], f["y"].repartition(npartitions=2)),
        BlockMismatchError,
        "X has 4 blocks, but y has 2",
    ),
    "chunks differ": (
        lambda f: (SGD, da.ones((10, 2), chunks=(5, 2)), da.ones(10, chunks=(2,))),
        BlockMismatchError,
        r"X has row chunks \(5, 5\), but y has \(2, 2, 2, 2, 2\)",
    ),
    "lengths differ": (
        lambda f: (SGD, np.ones((5, 2)), np.ones(4)),
        BlockMismatchError,
        "X has 5 rows, but y has 4",
    ),
    "kind of X": (lambda f: (StandardScaler(), [[1.0]]), InputError, "it must be a Dask DataFrame"),
    "three dimensions": (lambda f: (StandardScaler(), da.ones((2, 3, 4))), InputError, "X has 3 dimensions"),
    "single column": (
        lambda f: (make_column_transformer((StandardScaler(), "a")), f),
        InputError,
        r"Write \['a'\]",
    ),
    "balanced": (
        lambda f: (SGDClassifier(class_weight="balanced"), f[["a"]], f["y"]),
        UnsupportedEstimatorError,
        "class_weight='balanced'",
    ),
}


@pytest.mark.parametrize("case", EARLY)
def test_what_metadata_can_tell_is_told_before_anything_is_computed(frame, case):
    arguments, error, message = EARLY[case]
    with raise_if_computes(), pytest.raises(error, match=message):
        dpipe.fit(*arguments(frame))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"memory": "plenty"}, InputError, "'plenty' is not a size"),
        ({"memory": -5}, InputError, "must be positive"),
        ({"memory": 2.5}, InputError, "2.5 is not a size"),
        ({"memory": "1 MiB"}, MemoryLimitError, "Give at least memory="),
        ({"epochs": 0}, InputError, "epochs must be an integer of at least 1, got 0"),
        ({"epochs": 1.5}, InputError, "got 1.5"),
        ({"client": "tcp://somewhere"}, InputError, "client must be a distributed.Client"),
    ],
)
def test_bad_settings(frame, settings, error, message):
    with raise_if_computes(), pytest.raises(error, match=message):
        dpipe.fit(SGD, frame[["a"]], frame["y"], **settings)


LATE = {
    "text in a scaler": (
        lambda f: (StandardScaler(), f[["a", "s"]]),
        InputError,
        "Column 's' is not numeric",
    ),
    "all missing": (lambda f: (SimpleImputer(), f[["a", "b"]]), InputError, "'b': nothing was observed"),
    "one class": (
        lambda f: (SGD, f[["a"]], f["y"] * 0),
        InputError,
        "at least two classes, but every label of y is 0",
    ),
    "no rows": (
        lambda f: (StandardScaler(), f[f["a"] > 100][["a"]]),
        InputError,
        "no rows \\(4 blocks\\)",
    ),
    "numbers for a classifier": (
        lambda f: (SGD, f[["a"]], f["a"]),
        InputError,
        r"Unknown label type.* \.\.\.",
    ),
    "missing labels": (lambda f: (SGD, f[["a"]], f["b"]), InputError, "100 labels are missing"),
    "missing in least squares": (
        lambda f: (LinearRegression(), f[["a", "b"]], f["y"]),
        InputError,
        "NaN or infinity",
    ),
    "lengths in a block": (
        lambda f: (SGD, f[["a"]], f["y"].loc[5:]),
        BlockMismatchError,
        "block 0: X has 25 rows, but y has 20",
    ),
    "infinity": (
        lambda f: (StandardScaler(), f[["a"]].replace({"a": {0.0: 1.0}}) / 0),
        InputError,
        "infinit",
    ),
}


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("case", LATE)
def test_what_only_the_data_can_tell_names_its_place(frame, case):
    arguments, error, message = LATE[case]
    with pytest.raises(error, match=message):
        dpipe.fit(*arguments(frame))


def test_predicting_needs_the_columns_of_the_fit(frame):
    fitted = dpipe.fit(StandardScaler(), frame[["a"]])
    with raise_if_computes(), pytest.raises(InputError, match="'a'"):
        dpipe.transform(fitted, frame[["s"]])
    with raise_if_computes(), pytest.raises(InputError, match="not fitted"):
        dpipe.predict(SGD, frame[["a"]])


def test_no_file_matches(tmp_path):
    with pytest.raises(SourceError, match="No file matches.*nothing"):
        dpipe.read_parquet(tmp_path / "nothing" / "*.parquet")
    with pytest.raises(SourceError, match="No file matches"):
        dpipe.read_csv(tmp_path / "*.csv")


def test_unknown_categories_are_refused_as_scikit_learn_does(frame):
    fitted = dpipe.fit(OneHotEncoder(), frame[["s"]])
    other = pd.DataFrame({"s": ["u", "w"]})
    with pytest.raises(ValueError, match="unknown categories"):
        dpipe.transform(fitted, other)


@pytest.mark.parametrize("scaler", [StandardScaler(), RobustScaler(), KBinsDiscretizer()], ids=repr)
def test_a_text_column_of_a_file_is_named(scaler, tmp_path):
    pd.DataFrame({"colour": ["red", "blue"] * 10}).to_parquet(tmp_path / "0.parquet", index=False)
    with pytest.raises(InputError, match="Column 'colour' is not numeric: its type is string"):
        dpipe.fit(scaler, dpipe.read_parquet(tmp_path))


def test_weights_that_quantiles_cannot_follow():
    X = pd.DataFrame({"a": np.arange(10.0)})
    with pytest.raises(InputError, match="quantile_method=.linear.. takes no sample_weight"):
        dpipe.fit(KBinsDiscretizer(2, quantile_method="linear"), X, None, X["a"])
    with pytest.raises(InputError, match="sample_weight holds -3.0, but must be 0 or more"):
        dpipe.fit(SplineTransformer(knots="quantile"), X, None, X["a"] - 3)
    with pytest.raises(InputError, match="the weights of all rows add up to zero"):
        dpipe.fit(SplineTransformer(knots="quantile"), X, None, X["a"] * 0)


def test_weights_of_text_and_weights_of_nothing():
    rows = dd.from_pandas(
        pd.DataFrame({"a": np.arange(10.0), "s": list("ab") * 5, "y": [0, 1] * 5}), npartitions=2
    )
    with pytest.raises(InputError, match="sample_weight is of type"):
        dpipe.fit(LogisticRegression(), rows[["a"]], rows["y"], rows["s"])
    with pytest.raises(InputError, match="the weights of all rows add up to zero"):
        dpipe.fit(LogisticRegression(), rows[["a"]], rows["y"], rows["a"] * 0)


def test_an_error_of_a_block_is_raised_once_by_a_cluster(tmp_path):
    """It was its own cause: what follows causes did so for ever."""
    for i in range(3):
        pd.DataFrame({"a": np.arange(5.0)}).to_parquet(tmp_path / f"{i}.parquet", index=False)

    def run(way):
        pipe = dpipe.Pipeline("caused", workdir=tmp_path / "run")
        pipe.train(
            StandardScaler(), pipe.collect(str(tmp_path / "*.parquet"), schema="infer", on_violation=way)
        )
        pipe.run(progress=False)

    run("raise")
    pd.DataFrame({"a": ["1", "oops"]}).to_parquet(tmp_path / "2.parquet", index=False)
    with pytest.raises(ContractError, match="string that cannot be cast to double unchanged"):
        run("coerce")


def test_a_folder_of_other_files_is_not_written_into(tmp_path):
    rows = dd.from_pandas(pd.DataFrame({"a": range(4)}), npartitions=2)
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(OutputError, match=r"holds other files, such as other\.parquet, which are no result"):
        dpipe.write_parquet(rows, tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"random_state": "x"}, "random_state must be an integer, got 'x'"),
        ({"time": "a", "test_from": 3, "gap": -1}, "a gap is not negative"),
    ],
)
def test_split_refuses(options, says):
    rows = dd.from_pandas(pd.DataFrame({"a": range(4)}), npartitions=2)
    with pytest.raises(InputError, match=says):
        dpipe.split(rows, **options)


@pytest.mark.parametrize(
    "estimator", [StandardScaler(), Ridge(), GaussianNB(), KMeans(2), LinearRegression()], ids=repr
)
def test_weights_that_are_all_zero_are_refused_as_scikit_learn_does(estimator):
    X, y = np.random.default_rng(0).normal(size=(9, 2)), np.arange(9) % 2
    with pytest.raises(ValueError, match="at least one non-zero"):
        estimator.fit(X, y, sample_weight=np.zeros(9))
    with pytest.raises(InputError, match="the weights of all rows add up to zero"):
        dpipe.fit(estimator, X, y, sample_weight=np.zeros(9))


def test_an_array_of_one_dimension_is_no_table():
    column = da.from_array(np.arange(9.0), chunks=4)
    with pytest.raises(
        InputError, match=r"StandardScaler takes a table, but X is of one dimension.*X\[:, None\]"
    ):
        dpipe.fit(StandardScaler(), column)
    assert dpipe.fit(StandardScaler(), column[:, None]).mean_ == [4.0]
