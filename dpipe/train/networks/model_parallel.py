"""`ModelParallel`: a network that is larger than one process, as a scikit-learn estimator."""

import os
from collections.abc import Callable
from typing import Any

from distributed import Client
from sklearn.pipeline import Pipeline

from dpipe.errors import InputError
from dpipe.train.loading.loader import check_count
from dpipe.train.networks.chain import is_module
from dpipe.train.networks.estimator import NetworkEstimator, checked_labels
from dpipe.train.networks.orders import ORDERS
from dpipe.train.networks.prepared_stages import PreparedStages, Staged, prepare_stages
from dpipe.train.networks.split import SplitPlan
from dpipe.train.prepare import prepare


class ModelParallel(NetworkEstimator):
    """Train a PyTorch module that is split across processes: each holds some of its layers, and none all of them.

    dpipe measures each layer on a few made-up rows, cuts the chain of layers into stages that are equally quick within
    the memory of a worker, and has micro-batches go through them one after another. What is learned is what one process
    would learn, up to rounding, whatever the cut; layers that look at a whole batch, such as BatchNorm, see a
    micro-batch.

    An estimator for `dpipe.fit`, `dpipe.plan` and `Pipeline.train`, alone or as the last step of a scikit-learn
    pipeline.

    Parameters
    ----------
    module : torch.nn.Sequential, torch.nn.Module, or list of callables
        The layers. A list of functions that build them, such as ``functools.partial(torch.nn.Linear, 64, 64)``, or a
        module on the meta device, is made layer by layer in the processes that own them, and drawn from
        `random_state`. A module with weights is cut and sent. Of a module with a `forward` of its own, torch.fx
        finds the chain; branches that depend on data are refused.
    loss : callable ``(output, y) -> loss``
        The mean over the rows, as for `dpipe.DataParallel`.
    optimizer : callable ``(parameters) -> torch.optim.Optimizer``
        Each stage has its own, of its weights.
    classes : sequence of int, optional
        The labels, in the order of the module's outputs, as for `dpipe.DataParallel`.
    stages : int, optional
        Parts that the network is cut into. Default: as many as there are `workers`; without them as many as the cluster
        has, and two without a cluster; each for `tensor` of them, and no more than layers.
    workers : int, optional
        Processes in all, a multiple of `stages` times `tensor`: as many copies of the network learn side by side, each
        its shares of a batch, and add up their gradients. Default: one copy.
    tensor : int, default 1
        Processes that share each stage (tensor parallelism): each has a part of the Linear, Embedding and
        TransformerEncoderLayer that have at least 256 weights and sizes that are multiples of it, also inside of
        modules whose `forward` torch.fx can follow, and all else whole: subclasses of these, attention with dropout,
        what makes its weights in ways that cannot be repeated in parts. `plan` says which, and why. They send each
        other what their parts give, in each layer: that pays where layers are large. Adam, AdamW, SGD and most other
        optimizers of torch can update such weights; Adafactor and Rprop cannot.
    micro_batches : int, optional
        Into how many parts a copy cuts its rows of a batch. Default: four for each stage, and more where memory asks
        for it.
    order : {"1f1b", "gpipe", "interleaved"}, default "1f1b"
        "1f1b" goes back through a micro-batch as soon as it can, and holds as many as there are stages left;
        "gpipe" goes through all of them first; "interleaved" is 1F1B where a process holds several groups of layers,
        which waits less, and holds and sends more.
    virtual : int, default 2
        Groups of layers of a process in the interleaved order ("virtual stages").
    weights : path, optional
        A file of a state dict, from `torch.save`, to begin with; each process reads its part.
    batch_size, shuffle, mix, shares, random_state
        As for `dpipe.Loader`.
    epochs : int, default 1
        How often the data is seen; at most, where there is `validation`.
    schedule : callable ``(optimizer) -> schedule``, optional
        A learning-rate schedule of torch, which goes on after each batch.
    validation : tuple, optional
        Rows of their own, (X, y), on which the loss is computed after each epoch; the weights of the best are given.
    patience : int, default 5
        Epochs without a better loss there until training stops.
    tol : float, default 1e-4
        By how much it must be better.
    device : {"cpu", "cuda"}, optional
        Default: the GPU, where a worker has one.
    checkpoint_every : int, default 100
        Batches from one checkpoint to the next; one is written after each epoch, too. Each stage writes its own file.
    timeout_s : float, default 60
        How long a process waits for others in one step. One that dies is noticed at once.

    Attributes
    ----------
    module_ : torch.nn.Module
        What has been learned. With a workdir its weights are mapped from the files there, and read where they are used;
        those that processes have shared are put together.
    losses_ : list of float
        The mean loss of each batch.
    validation_losses_ : list of float
        That of each epoch on the rows of `validation`.
    split_ : SplitPlan
        How the module was split, and what was expected of it; not kept in bundles and copies.
    measured_ : dict
        What came of it: "bubble" (the share of the time in which processes wait, the median of all batches but the
        first) and "planned_bubble"; and lists over the processes, copy by copy: "peak_nbytes", "planned_nbytes" and
        "busy_s". Empty if nothing was left to be learned.

    Notes
    -----
    Stages wait for each other for (p - 1) / (v m + p - 1) of the time, with p stages that are equally quick, m
    micro-batches and v groups of layers of each process: 1 but in the interleaved order (Huang et al., GPipe, 2019;
    Narayanan et al., PipeDream, 2019, and Megatron-LM, 2021). How layers are shared is that of Shoeybi et al.,
    Megatron-LM, 2019.

    Examples
    --------
    >>> import functools, numpy as np, pytest
    >>> torch = pytest.importorskip("torch")
    >>> layers = [functools.partial(torch.nn.Linear, 2, 16), torch.nn.Tanh, functools.partial(torch.nn.Linear, 16, 1)]
    >>> sgd = functools.partial(torch.optim.SGD, lr=0.1)
    >>> network = ModelParallel(layers, torch.nn.functional.mse_loss, sgd, stages=2, batch_size=64)
    >>> network.plan(np.zeros((256, 2)), np.zeros((256, 1))).n_stages
    2
    """

    def __init__(
        self,
        module: Any,
        loss: Callable[[Any, Any], Any],
        optimizer: Callable[[Any], Any],
        *,
        classes: Any = None,
        stages: int | None = None,
        workers: int | None = None,
        tensor: int = 1,
        micro_batches: int | None = None,
        order: str = "1f1b",
        virtual: int = 2,
        weights: str | os.PathLike[str] | None = None,
        batch_size: int = 1024,
        epochs: int = 1,
        shuffle: str | None = "rows",
        mix: int = 8,
        shares: int = 4,
        random_state: int = 0,
        schedule: Callable[[Any], Any] | None = None,
        validation: Any = None,
        patience: int = 5,
        tol: float = 1e-4,
        device: str | None = None,
        checkpoint_every: int = 100,
        timeout_s: float = 60.0,
    ) -> None:
        self.module = module
        self.loss = loss
        self.optimizer = optimizer
        self.classes = classes
        self.stages = stages
        self.workers = workers
        self.tensor = tensor
        self.micro_batches = micro_batches
        self.order = order
        self.virtual = virtual
        self.weights = weights
        self.batch_size = batch_size
        self.epochs = epochs
        self.shuffle = shuffle
        self.mix = mix
        self.shares = shares
        self.random_state = random_state
        self.schedule = schedule
        self.validation = validation
        self.patience = patience
        self.tol = tol
        self.device = device
        self.checkpoint_every = checkpoint_every
        self.timeout_s = timeout_s

    def __getstate__(self) -> dict[str, Any]:
        """Give what it is as data; once it is fitted, without the functions that build layers, and without the plan."""
        state = super().__getstate__()
        if "module_" in state and not is_module(self.module):
            state["module"] = state["module_"]
        return {name: value for name, value in state.items() if name != "split_"}

    def plan(
        self, X: Any, y: Any, *, memory: int | str | None = None, client: Client | None = None
    ) -> SplitPlan:
        """Tell how the module would be split; no data is read, but each layer is tried on a few made-up rows.

        Returns
        -------
        SplitPlan
            A frozen record; prints as a table.

        Raises
        ------
        DpipeError
            As `fit` does.
        """
        prepared = prepare(self, X, y, memory=memory, client=client)
        assert isinstance(prepared, PreparedStages)
        assert prepared.split is not None
        return prepared.split

    def learn_once(self, X: Any, y: Any, calls: int) -> tuple[int, bytes]:
        """Learn some rows in processes of this machine; see `partial_fit`."""
        once = {"epochs": 1, "validation": None, "random_state": self.random_state + calls}
        network = ModelParallel(**{**self.get_params(deep=False), **once})
        prepared = prepare_stages(None, network, X, y, None, memory=None, client=None, workers=None)
        weights = self.state_dict() if hasattr(self, "module_") else None
        learned, memory = prepared.more(weights, getattr(self, "optimizer_state_", b""))
        self.module_, self.split_, self.measured_ = learned.module_, learned.split_, learned.measured_
        self.losses_ = [*getattr(self, "losses_", []), *learned.losses_]
        return network.recipe(X, y).loader.width, memory

    def plan_own_fit(self, X: Any, y: Any, sample_weight: Any, **place: Any) -> PreparedStages:
        """Plan the training; see `dpipe.train.prepare.OwnFit`."""
        return prepare_stages(None, self, X, y, sample_weight, **place)

    def plan_own_fit_of(
        self, pipeline: Pipeline, X: Any, y: Any, sample_weight: Any, **place: Any
    ) -> PreparedStages:
        """Plan the training as the last step of a pipeline."""
        return prepare_stages(pipeline, self, X, y, sample_weight, **place)

    def recipe(self, X: Any, y: Any, transform: Any = None) -> Staged:
        """Say what is to be trained, and how; computes nothing.

        Raises
        ------
        InputError
            If a parameter does not do.
        """
        if self.order not in ORDERS:
            raise InputError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}.")
        for name in ("stages", "workers", "micro_batches"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("tensor", "virtual", "epochs", "patience", "checkpoint_every"):
            check_count(name, getattr(self, name))
        # the first stage reads for all of them
        loader, held = self.loaders(X, y, self.random_state, transform=transform, rank=0, n_ranks=1)
        return Staged(self, loader, held, checked_labels(self.classes))
