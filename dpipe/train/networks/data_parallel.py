"""`DataParallel`: a network as a scikit-learn estimator, trained by several processes together."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sklearn.pipeline import Pipeline

from dpipe.errors import InputError
from dpipe.train.loading.loader import check_count
from dpipe.train.networks.estimator import NetworkEstimator, checked_labels
from dpipe.train.networks.prepared import PreparedNetwork, learned_network, prepare_network
from dpipe.train.networks.ranks import Ranks
from dpipe.train.networks.training import Recipe, train


class DataParallel(NetworkEstimator):
    """Train a PyTorch module on data larger than memory: each process learns its part of every batch.

    On the workers of a Dask cluster, one process each, or in `ranks` processes of this machine. Gradients are averaged
    over the rows of a batch, so that any number of processes learns what one would, up to rounding; layers that look
    at a whole batch, such as BatchNorm, see their own part of it.

    An estimator for `dpipe.fit`, `dpipe.plan`, `dpipe.search` and `Pipeline.train`, alone or as the last step of a
    scikit-learn pipeline, whose transformers are fitted first, and applied while batches are read.

    Parameters
    ----------
    module : torch.nn.Module
        In its first state; it is copied.
    loss : callable ``(output, y) -> loss``
        The mean over the rows, such as `torch.nn.functional.cross_entropy`. Labels come as int64, by their place in
        `classes`; numbers, and labels where the module has one output, as floats.
    optimizer : callable ``(parameters) -> torch.optim.Optimizer``
        Such as ``functools.partial(torch.optim.SGD, lr=0.1)``.
    classes : sequence of int, optional
        The labels, in the order of the module's outputs, which are logits; of two labels one output will do. Then
        `predict` gives labels, and `predict_proba` probabilities. Without them it gives what the module gives.
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
        Processes. Default: as many as the cluster has workers, but no more than shares; without a cluster one, which
        is this one.
    precision : {"float32", "bfloat16"}, default "float32"
        bfloat16 computes layers in it where that is safe, on hardware that has it; weights stay float32.
    sharded : bool, default False
        Have each process keep a part of parameters, gradients and optimizer state only (`fully_shard`), for networks
        whose states do not fit one worker.
    device : {"cpu", "cuda"}, optional
        Default: the GPU, where a worker has one.
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

    Examples
    --------
    >>> import functools, numpy as np, pytest
    >>> torch = pytest.importorskip("torch")
    >>> X = np.random.default_rng(0).normal(size=(256, 2))
    >>> layers = torch.nn.Linear(2, 1), torch.nn.Flatten(0)
    >>> sgd = functools.partial(torch.optim.SGD, lr=0.5)
    >>> how = {"batch_size": 64, "epochs": 20}
    >>> network = DataParallel(torch.nn.Sequential(*layers), torch.nn.functional.mse_loss, sgd, **how)
    >>> fitted = network.fit(X, X[:, 0] - X[:, 1])
    >>> fitted.predict([[3.0, 1.0]]).round(2)
    array([2.], dtype=float32)
    """

    def __init__(
        self,
        module: Any,
        loss: Callable[[Any, Any], Any],
        optimizer: Callable[[Any], Any],
        *,
        classes: Any = None,
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
        precision: str = "float32",
        sharded: bool = False,
        device: str | None = None,
        checkpoint_every: int = 100,
        timeout_s: float = 60.0,
    ) -> None:
        self.module = module
        self.loss = loss
        self.optimizer = optimizer
        self.classes = classes
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
        self.precision = precision
        self.sharded = sharded
        self.device = device
        self.checkpoint_every = checkpoint_every
        self.timeout_s = timeout_s

    def learn_once(self, X: Any, y: Any, calls: int) -> tuple[int, bytes]:
        """Learn some rows in this process; see `partial_fit`."""
        started = self._going_on() if hasattr(self, "module_") else self
        recipe = replace(started.recipe(X, y, random_state=self.random_state + calls), epochs=1)
        trained = train(recipe, Ranks(wanted=self.device), memory=getattr(self, "optimizer_state_", b""))
        learned = learned_network(started, trained)
        self.module_, self.losses_ = learned.module_, [*getattr(self, "losses_", []), *learned.losses_]
        return recipe.loader.width, trained.optimizer

    def _going_on(self) -> "DataParallel":
        """Give an estimator that begins with what this one has learned."""
        return DataParallel(**{**self.get_params(deep=False), "module": self.module_})

    def plan_own_fit(self, X: Any, y: Any, sample_weight: Any, **place: Any) -> PreparedNetwork:
        """Plan the training; see `dpipe.train.prepare.OwnFit`."""
        return prepare_network(None, self, X, y, sample_weight, **place)

    def plan_own_fit_of(
        self, pipeline: Pipeline, X: Any, y: Any, sample_weight: Any, **place: Any
    ) -> PreparedNetwork:
        """Plan the training as the last step of a pipeline."""
        return prepare_network(pipeline, self, X, y, sample_weight, **place)

    def recipe(self, X: Any, y: Any, transform: Any = None, random_state: int | None = None) -> Recipe:
        """Say what is to be trained, and how; computes nothing.

        Raises
        ------
        InputError
            If a parameter does not do.
        """
        seed = self.random_state if random_state is None else random_state
        loader, validation = self.loaders(X, y, seed, transform=transform)
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}.")
        if self.device not in (None, "cpu", "cuda"):
            raise InputError(f"device must be 'cpu', 'cuda' or None, got {self.device!r}.")
        if self.ranks is not None:
            check_count("ranks", self.ranks)
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
            every=check_count("checkpoint_every", self.checkpoint_every),
            classes=checked_labels(self.classes),
            precision=self.precision,
            sharded=self.sharded,
        )
