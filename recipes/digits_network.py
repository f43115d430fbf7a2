"""Learn to read handwritten digits with a small network that several processes train together."""

import functools
from typing import Any

import dask.dataframe as dd
from sklearn.datasets import load_digits
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

import dpipe

#: Grey values of a pixel go from 0 to this.
WHITE = 16.0
#: Batches of an epoch, of four fifths of the images: over so many the learning rate goes down to nothing.
N_BATCHES = 23


def scaled(pixels: Any) -> Any:
    """Bring grey values to between 0 and 1."""
    return pixels / WHITE


def digits_module(random_state: int = 0) -> Any:
    """Build the network, from 64 pixels to a logit for each digit; the same each time."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(random_state)
        return torch.nn.Sequential(
            torch.nn.Unflatten(1, (1, 8, 8)),
            torch.nn.Conv2d(1, 32, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(32, 32, 3),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(32 * 3 * 3, 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 10),
        )


def network_kind(parallel: str) -> Any:
    """Give the estimator of a way in which processes share the work: "data" or "model"."""
    kinds = {"data": dpipe.DataParallel, "model": dpipe.ModelParallel}
    if parallel not in kinds:
        raise dpipe.DpipeError(f"parallel must be 'data' or 'model', got {parallel!r}.")
    return kinds[parallel]


def digits_model(epochs: int = 12, parallel: str = "data", random_state: int = 0) -> Pipeline:
    """Build the model, from pixels to a digit.

    Parameters
    ----------
    epochs : int, default 12
    parallel : {"data", "model"}, default "data"
        How processes share the work: each learns its part of every batch, or has some of the layers.
    random_state : int, default 0
        Seeds the weights and the order of the rows.

    Returns
    -------
    sklearn.pipeline.Pipeline
    """
    import torch

    network = network_kind(parallel)(
        digits_module(random_state),
        functools.partial(torch.nn.functional.cross_entropy, label_smoothing=0.1),
        functools.partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.01),
        classes=list(range(10)),
        batch_size=64,
        epochs=epochs,
        schedule=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs * N_BATCHES),
        random_state=random_state,
    )
    return make_pipeline(FunctionTransformer(scaled), network)


def digits_network(
    *,
    epochs: int = 12,
    parallel: str = "data",
    workdir: str = "runs/digits-network",
    random_state: int = 0,
) -> dpipe.Pipeline:
    """Learn to read handwritten digits: 1,797 real ones, which scikit-learn brings along.

    Parameters
    ----------
    epochs : int, default 12
    parallel : {"data", "model"}, default "data"
        How processes share the work; on a cluster each worker is one.
    workdir : str, default "runs/digits-network"
        Results, checkpoints, report and bundle.
    random_state : int, default 0
        Seeds the split, the weights and the order of the rows.

    Returns
    -------
    dpipe.Pipeline
        Lazy.
    """
    pipe = dpipe.Pipeline("digits-network", workdir=workdir)
    frame = load_digits(as_frame=True).frame
    digits = pipe.collect(dd.from_pandas(frame, npartitions=8))
    train, test = pipe.split(digits, test_size=0.2, random_state=random_state)
    model = pipe.train(digits_model(epochs, parallel, random_state), train, target="target")
    report = pipe.validate(model, test, scoring=["accuracy", "neg_log_loss"], require={"accuracy": 0.97})
    pipe.deploy(model, report, to="bundle")
    return pipe
