"""Predict which taxi rides are tipped by a small network that several processes train together."""

import functools
import os
from collections.abc import Sequence
from typing import Any

from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder, StandardScaler

import dpipe
from recipes.digits_network import network_kind
from recipes.ride_features import ride_features
from recipes.taxi_tips import RideSource, tips_pipeline

#: Columns of numbers that `ride_features` gives, and the most codes of each column of names.
N_NUMBERS, N_CODES = 6, (265, 265, 7, 24, 4, 7, 2)


def rides_module(random_state: int = 0) -> Any:
    """Build the network, from the columns of a ride to the logit of a tip; the same each time."""
    import torch

    from recipes.ride_layers import Embedded

    with torch.random.fork_rng():
        torch.manual_seed(random_state)
        return torch.nn.Sequential(
            Embedded(N_NUMBERS, N_CODES, width=4),
            torch.nn.Linear(N_NUMBERS + 4 * len(N_CODES), 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 32),
            torch.nn.ReLU(),
            torch.nn.Linear(32, 1),
        )


def rides_network(epochs: int = 3, parallel: str = "data", random_state: int = 0) -> Pipeline:
    """Build the model, from raw rides to a probability.

    Parameters
    ----------
    epochs : int, default 3
    parallel : {"data", "model"}, default "data"
        How processes share the work: each learns its part of every batch, or has some of the layers.
    random_state : int, default 0
        Seeds the weights and the order of the rows.

    Returns
    -------
    sklearn.pipeline.Pipeline
        Its fitted transformers are applied while batches are read.
    """
    import torch

    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), make_column_selector(dtype_include="number")),
        (
            make_pipeline(SimpleImputer(strategy="most_frequent"), codes),
            make_column_selector(dtype_include="category"),
        ),
    )
    network = network_kind(parallel)(
        rides_module(random_state),
        torch.nn.functional.binary_cross_entropy_with_logits,
        functools.partial(torch.optim.Adam, lr=3e-3),
        classes=[0, 1],
        batch_size=256,
        epochs=epochs,
        random_state=random_state,
    )
    return make_pipeline(FunctionTransformer(ride_features), columns, network)


def taxi_network(
    source: str | os.PathLike[str] | Sequence[str] | None = None,
    *,
    rows: int = 200_000,
    epochs: int = 3,
    parallel: str = "data",
    workdir: str = "runs/taxi-network",
    block_nbytes: str = "4 MiB",
    random_state: int = 0,
) -> dpipe.Pipeline:
    """Predict which rides are tipped (New York TLC yellow-cab schema) by a network of embedded zones and times.

    Parameters
    ----------
    source : path, glob, URL or a sequence of them, optional
        TLC Parquet files. Without them the recipe makes rides of its own, with a known truth, as `taxi_tips` does.
    rows : int, default 200,000
        How many rides to make.
    epochs : int, default 3
    parallel : {"data", "model"}, default "data"
        How processes share the work; on a cluster each worker is one.
    workdir : str, default "runs/taxi-network"
        Results, checkpoints, report and bundle.
    block_nbytes : str, default "4 MiB"
        Decoded size of a block; the rows of eight of them are mixed.
    random_state : int, default 0
        Seeds the made rides, the split, the weights and the order of the rows.

    Returns
    -------
    dpipe.Pipeline
        Lazy: of the rides only metadata has been read.
    """
    model = rides_network(epochs, parallel, random_state)
    rides = RideSource(source, rows, block_nbytes)
    return tips_pipeline("taxi-network", model, rides, workdir, random_state)
