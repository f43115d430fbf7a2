"""Predict which taxi rides are tipped, over the New York TLC yellow-cab Parquet schema."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

import dpipe
from recipes.made_rides import SCHEMA, made_rides, tip_probability
from recipes.ride_features import ride_features, valid_rides

#: What is known of a ride before it is paid for.
FEATURES = (
    "VendorID",
    "tpep_pickup_datetime",
    "tpep_dropoff_datetime",
    "passenger_count",
    "trip_distance",
    "RatecodeID",
    "store_and_fwd_flag",
    "PULocationID",
    "DOLocationID",
)


def tip_model(random_state: int = 0) -> Pipeline:
    """Build the model, from raw rides to a probability: plain scikit-learn."""
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), make_column_selector(dtype_include="number")),
        (
            make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")),
            make_column_selector(dtype_include="category"),
        ),
    )
    learner = SGDClassifier(loss="log_loss", average=True, random_state=random_state)
    return make_pipeline(FunctionTransformer(ride_features), columns, learner)


class KnownTruth(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The probabilities that the made rides were drawn with: no model can be better."""

    def __init__(self) -> None:
        self.classes_ = np.array([0, 1], dtype=np.int8)

    def fit(self, X: Any = None, y: Any = None) -> "KnownTruth":
        """Learn nothing."""
        return self

    def predict_proba(self, X: pd.DataFrame) -> np.ndarray:
        """Give the true probability of each class; shape (n_samples, 2)."""
        tipped = tip_probability(X)
        return np.column_stack([1 - tipped, tipped])

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        """Give the likelier class."""
        return (self.predict_proba(X)[:, 1] > 0.5).astype(np.int8)


def taxi_tips(
    source: str | os.PathLike[str] | Sequence[str] | None = None,
    *,
    rows: int = 2_000_000,
    workdir: str = "runs/taxi-tips",
    block_nbytes: str = "32 MiB",
    random_state: int = 0,
) -> dpipe.Pipeline:
    """Predict which rides are tipped (New York TLC yellow-cab schema).

    Parameters
    ----------
    source : path, glob, URL or a sequence of them, optional
        TLC Parquet files. Without them the recipe makes rides of its own, once for each size, with a known
        truth that the validation is compared with.
    rows : int, default 2,000,000
        How many rides to make.
    workdir : str, default "runs/taxi-tips"
        Results, report and bundle.
    block_nbytes : str, default "32 MiB"
        Decoded size of a block.
    random_state : int, default 0
        Seeds the made rides, the split and the learner.

    Returns
    -------
    dpipe.Pipeline
        Lazy: of the rides only metadata has been read.
    """
    rides = RideSource(source, rows, block_nbytes)
    return tips_pipeline("taxi-tips", tip_model(random_state), rides, workdir, random_state)


class RideSource(NamedTuple):
    """Where rides come from."""

    source: str | os.PathLike[str] | Sequence[str] | None
    """TLC Parquet files, or None for made ones."""
    rows: int
    """How many rides to make."""
    block_nbytes: str
    """Decoded size of a block."""


def tips_pipeline(
    name: str, model: Pipeline, where: RideSource, workdir: str, random_state: int
) -> dpipe.Pipeline:
    """Build the stages from rides to a bundle for a model of tips.

    Parameters
    ----------
    name : str
        Of the pipeline.
    model : sklearn.pipeline.Pipeline
        Unfitted, from raw rides to a probability.
    where : RideSource
    workdir : str
        Results, report and bundle.
    random_state : int
        Seeds the made rides and the split.

    Returns
    -------
    dpipe.Pipeline
        Lazy.
    """
    made = where.source is None
    pipe = dpipe.Pipeline(name, workdir=workdir)
    files = made_rides(where.rows, seed=random_state) if made else where.source
    rides = pipe.collect(files, schema=SCHEMA, block_nbytes=where.block_nbytes)
    labelled = pipe.preprocess(rides, valid_rides)
    train, test = pipe.split(labelled, test_size=0.2, by="pickup_date", random_state=random_state)
    fitted = pipe.train(model, train, target="tipped", features=FEATURES)
    report = pipe.validate(
        fitted,
        test,
        scoring=["roc_auc", "neg_log_loss", "accuracy"],
        require={"roc_auc": 0.6},
        reference=KnownTruth() if made else None,
    )
    pipe.deploy(fitted, report, to="bundle")
    return pipe
