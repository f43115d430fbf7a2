"""`DataParallel`: a network as a scikit-learn estimator, trained by several processes together."""

import contextlib
import copy
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from dpipe.cluster.local import find_place
from dpipe.errors import InputError
from dpipe.ledger.fingerprint import Fingerprinter, Unknowable
from dpipe.train.loading.loader import Loader, check_count
from dpipe.train.networks.team import train_here, train_on
from dpipe.train.networks.training import Ranks, Recipe, train


class DataParallel(BaseEstimator):  # type: ignore[misc]
    """Train a PyTorch module on data larger than memory: each process learns its part of every batch.

    On the workers of a Dask cluster, one process each, or in `ranks` processes of this machine. Gradients are averaged
    over the rows of a batch, so that any number of processes learns what one would, up to rounding; layers that look
    at a whole batch, such as BatchNorm, see their own part of it.

    Parameters
    ----------
    module : torch.nn.Module
        In its first state; it is copied.
    loss : callable ``(output, y) -> loss``
        The mean over the rows, such as `torch.nn.functional.cross_entropy`.
    optimizer : callable ``(parameters) -> torch.optim.Optimizer``
        Such as ``functools.partial(torch.optim.SGD, lr=0.1)``.
    batch_size, shuffle, mix, shares, random_state
        As for `dpipe.Loader`; a batch is of all processes together.
    epochs : int, default 1
        How often the data is seen; at most, where there is `validation`.
    accumulate : int, default 1
        In how many parts a process computes its part of a batch.
    schedule : callable ``(optimizer) -> schedule``, optional
        A learning-rate schedule of torch, which goes on after each batch.
    validation : tuple, optional
        Rows of their own, (X, y), on which the loss is computed after each epoch; the weights of the best are given.
    patience : int, default 5
        Epochs without a better loss there until training stops.
    tol : float, default 1e-4
        By how much it must be better.
    ranks : int, optional
        Processes. Default: as many as the cluster has workers; without a cluster one, which is this one.
    checkpoint_every : int, default 100
        Batches from one checkpoint to the next; one is written after each epoch, too.
    timeout_s : float, default 60
        How long a process waits for others in one step. One that dies is noticed at once.

    Attributes
    ----------
    module_ : torch.nn.Module
        What has been learned.
    losses_ : list of float
        The mean loss of each batch.
    validation_losses_ : list of float
        That of each epoch on the rows of `validation`.
    """

    def __init__(
        self,
        module: Any,
        loss: Callable[[Any, Any], Any],
        optimizer: Callable[[Any], Any],
        *,
        batch_size: int = 1024,
        epochs: int = 1,
        shuffle: str | None = "rows",
        mix: int = 8,
        shares: int = 4,
        random_state: int = 0,
        accumulate: int = 1,
        schedule: Callable[[Any], Any] | None = None,
        validation: Any = None,
        patience: int = 5,
        tol: float = 1e-4,
        ranks: int | None = None,
        checkpoint_every: int = 100,
        timeout_s: float = 60.0,
    ) -> None:
        self.module = module
        self.loss = loss
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.epochs = epochs
        self.shuffle = shuffle
        self.mix = mix
        self.shares = shares
        self.random_state = random_state
        self.accumulate = accumulate
        self.schedule = schedule
        self.validation = validation
        self.patience = patience
        self.tol = tol
        self.ranks = ranks
        self.checkpoint_every = checkpoint_every
        self.timeout_s = timeout_s

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        client: Client | None = None,
        workdir: str | os.PathLike[str] | None = None,
    ) -> "DataParallel":
        """Learn.

        Parameters
        ----------
        X, y
            As for `dpipe.Loader`.
        client : distributed.Client, optional
            Default: the current one.
        workdir : path, optional
            A folder that all workers see. Checkpoints are written there, and training goes on from the last one.

        Returns
        -------
        DataParallel
            Itself.

        Raises
        ------
        InputError
            If a parameter or the data does not do, or the loss is no longer finite.
        ClusterError
            If the processes of group after group die.
        """
        recipe = self._recipe(self._loader(X, y), workdir)
        place = find_place(client, None, len(recipe.loader.order.lengths))
        far = place.client is not None and place.workers > 1
        n_ranks = self.ranks or (place.workers if far else 1)
        if n_ranks > self.shares:
            raise InputError(
                f"{n_ranks} processes cannot read shares={self.shares}: each needs one. Give shares={n_ranks} or more, "
                "or fewer ranks."
            )
        if place.client is not None and far:
            trained = train_on(place.client, recipe, n_ranks, self.timeout_s)
        elif n_ranks > 1:
            trained = train_here(recipe, n_ranks, self.timeout_s)
        else:
            trained = train(recipe, Ranks())
        self.module_ = copy.deepcopy(self.module)
        self.module_.load_state_dict(trained.weights)
        self.module_.eval()
        self.losses_, self.validation_losses_ = trained.losses, trained.scores
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Give what the module gives for rows in memory, of shape (n_samples, ...).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        """
        check_is_fitted(self, "module_")
        import torch

        rows = torch.as_tensor(np.asarray(X), dtype=torch.float32)
        with torch.no_grad():
            parts = [self.module_(some) for some in torch.split(rows, self.batch_size)]
        return np.asarray(torch.cat(parts)) if parts else np.empty(0, dtype=np.float32)

    def _loader(self, X: Any, y: Any) -> Loader:
        how = {"batch_size": self.batch_size, "shuffle": self.shuffle, "mix": self.mix, "shares": self.shares}
        return Loader(X, y, random_state=self.random_state, **how)  # type: ignore[arg-type]

    def _recipe(self, loader: Loader, workdir: str | os.PathLike[str] | None) -> Recipe:
        validation = None
        if self.validation is not None:
            validation = Loader(
                *self.validation, batch_size=self.batch_size, shuffle=None, shares=self.shares
            )
        if workdir is not None:
            Path(workdir).mkdir(parents=True, exist_ok=True)
        return Recipe(
            self.module,
            self.loss,
            self.optimizer,
            loader,
            check_count("epochs", self.epochs),
            self.schedule,
            check_count("accumulate", self.accumulate),
            validation,
            check_count("patience", self.patience),
            self.tol,
            None if workdir is None else os.fspath(workdir),
            check_count("checkpoint_every", self.checkpoint_every),
            self._identity(loader),
        )

    def _identity(self, loader: Loader) -> str:
        """Digest what the weights follow from, as far as it can be looked at."""
        found = hashlib.sha256(repr(self.module).encode())
        for name, value in self.module.state_dict().items():
            found.update(name.encode())
            found.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
        optimizer = self.optimizer(self.module.parameters())
        found.update(repr((type(optimizer).__name__, optimizer.defaults)).encode())
        found.update(repr((loader.state_dict()["order"], self.accumulate, self.validation is None)).encode())
        for function in (self.loss, self.schedule):
            with contextlib.suppress(Unknowable):
                found.update(Fingerprinter().of(function).encode())
        return found.hexdigest()[:32]
