"""`Loader`: ready batches for a network, in bounded memory and in an order that can be repeated."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from dpipe.blocks.batch_order import BatchOrder, Piece, mixed_of, shares_of
from dpipe.blocks.heap import give_back, keep_freed
from dpipe.collect.labelled import as_samples
from dpipe.collect.source import open_source, source_name
from dpipe.errors import InputError, MemoryLimitError
from dpipe.families.epochs import Epochs
from dpipe.families.registry import Estimator
from dpipe.sizes import counted, format_bytes, parse_bytes
from dpipe.train.loading.blocks import Blocks
from dpipe.train.loading.matrices import Columns
from dpipe.train.loading.ring import Ring, Room

#: Raised when the same seed and blocks come in another order than before: a position of before is no longer one.
_ORDER = 2


class Loader:
    """Iterate over batches of rows for a network: shuffled, transformed, ready, and each row once an epoch.

    Threads of this process read blocks ahead into buffers that are used again and again. Iterating goes on where it was
    left: the first ``for`` is the first epoch, the next one the second. Usable alone, or in
    ``torch.utils.data.DataLoader(loader, batch_size=None)``.

    Parameters
    ----------
    X : dask DataFrame or Array, pandas.DataFrame, numpy.ndarray, xarray.DataArray or Dataset
        Of shape (n_samples, n_features), numbers, or what `transform` takes. From `dpipe.read_parquet` blocks are
        decoded straight into batches.
    y, sample_weight : series, array, or str, optional
        As for `dpipe.fit`. Integers and truth values come as int64, floats as `dtype`.
    batch_size : int, default 1024
        Rows of a batch; of all ranks together.
    shuffle : {"rows", "blocks", None}, default "rows"
        Blocks in random order and the rows of `mix` of them at a time; the blocks alone; or as stored.
    mix : int, default 8
        Blocks whose rows are mixed at a time.
    shares : int, default 4
        Into how many shares the rows of an epoch are cut; each batch takes equally many rows of each. Ranks read whole
        shares, so that there may be as many ranks. Part of the order, as ranks are not. A block at a border of two
        shares is read for both: have many more blocks than shares.
    random_state : int, default 0
    transform : fitted scikit-learn transformer, optional
        Applied to each block on the way.
    drop_last : bool, default False
        Leave out a last batch that is shorter. Else it is given, and only fewer rows than one for each share are left
        out.
    rank, n_ranks : int, optional
        Which part of each batch is given. Default: those of `torch.distributed`, if it is initialised; else all.
    threads : int, default 2
        That read.
    ahead : int, optional
        Buffers beside those in use, a block each. Default: half as many, and one for each thread at least.
    dtype : {"float32", "float64"}, default "float32"
        Of X and the weights.
    tensors : bool, default True
        Give torch tensors (``pip install 'dpipe[torch]'``), in pinned memory where there is CUDA; or NumPy arrays.
    sample_dims, missing
        Of xarray objects, as for `dpipe.fit`.
    memory : int or str, optional
        What the buffers may take at most.

    Yields
    ------
    tuple
        X of shape (n, n_features), and y and the weights if they are given. They are the caller's to keep.

    Raises
    ------
    InputError
        If an argument or the data does not do. MemoryLimitError if the buffers take more than `memory`.

    Notes
    -----
    The order is that of ``Epochs(shuffle="rows", mix=mix)`` with one share, where no block is empty. With more of them,
    the randomly ordered
    blocks are cut into equal shares, the rows of ``mix / shares`` blocks of each are shuffled together, and batch i
    takes its part of every share. So the batches are the same for any number of ranks that read whole shares, all
    ranks make the same number of steps, and each reads only its own. With more than one share, ranks whose number does
    not divide the shares are given batches of different sizes.

    Blocks of unknown length are counted when the first batch is asked for, in a reading of their own.

    Examples
    --------
    >>> import dask.array as da
    >>> X = da.arange(12, chunks=4).reshape(6, 2).rechunk((2, 2))
    >>> loader = Loader(X, batch_size=4, shares=1, shuffle=None, tensors=False)
    >>> [batch.tolist() for (batch,) in loader]
    [[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]], [[8.0, 9.0], [10.0, 11.0]]]
    >>> loader.state_dict()["epoch"], len(loader)
    (1, 2)
    """

    def __init__(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        batch_size: int = 1024,
        shuffle: Literal["rows", "blocks"] | None = "rows",
        mix: int = 8,
        shares: int = 4,
        random_state: int = 0,
        transform: Estimator | None = None,
        drop_last: bool = False,
        rank: int | None = None,
        n_ranks: int | None = None,
        threads: int = 2,
        ahead: int | None = None,
        dtype: str = "float32",
        tensors: bool = True,
        sample_dims: Any = None,
        missing: str = "all",
        memory: int | str | None = None,
    ) -> None:
        self._how = _checked_how(batch_size, shuffle, mix, shares, random_state)
        self._drop_last = bool(drop_last)
        self._threads = check_count("threads", threads)
        self._ahead = None if ahead is None else check_count("ahead", ahead, least=0)
        self._ranks = _checked_ranks(rank, n_ranks)
        if dtype not in ("float32", "float64"):
            raise InputError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
        self._dtype = np.dtype(dtype)
        self._transform = _checked_transform(transform)
        self._blocks = Blocks(open_source(*as_samples(X, y, sample_weight, sample_dims, missing)), threads)
        self._memory = None if memory is None else parse_bytes(memory)
        self._tensors = bool(tensors)
        _ = self._torch  # told now if it is missing
        self._epoch = self._step = 0
        if self._blocks.known:
            _ = self.order
            self._check_memory(self._blocks.width if transform is None else 0)

    @property
    def _torch(self) -> Any:
        """The module torch; None if arrays are given."""
        return _torch(type(self)) if self._tensors else None

    @cached_property
    def order(self) -> BatchOrder:
        """Which rows make up each batch."""
        return BatchOrder(self._blocks.lengths, drop_last=self._drop_last, **self._how)

    @cached_property
    def _columns(self) -> Columns:
        keep_freed()  # readers will use the same memory
        found = Columns.of(self._blocks.one_row(), self._transform, self._dtype)
        give_back()  # the block that the row was of
        return found

    @property
    def shapes(self) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape of one row, and type, of each part of a batch; a row is read to tell."""
        return self._columns.shapes

    def __len__(self) -> int:
        """Count the batches of an epoch, the same for all ranks."""
        return self.order.n_steps

    def of_rank(self, rank: int, n_ranks: int) -> "Loader":
        """Give the loader of one rank of so many, at the same position."""
        found = copy.copy(self)
        found._ranks = _checked_ranks(rank, n_ranks)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Give the position as a small record of numbers and texts: where the next batch will be taken.

        Returns
        -------
        dict
            "epoch" and "step", counted from 0; "seed"; and "order", a digest of all that decides the order.
        """
        return {
            "epoch": self._epoch,
            "step": self._step,
            "seed": self._how["random_state"],
            "order": self._digest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader was, with any number of ranks.

        Raises
        ------
        InputError
            If that loader had other blocks, or another order.
        """
        if not {"epoch", "step", "seed", "order"} <= set(state):
            raise InputError(f"{state!r} is no position of a loader. Give what its state_dict() has given.")
        if state["order"] != self._digest or state["seed"] != self._how["random_state"]:
            raise InputError(
                "This position is of a loader with another order: its blocks, batch_size, shuffle, mix, shares, "
                "random_state or drop_last were others. Give the same, or begin anew."
            )
        self.seek(state["epoch"], state["step"])

    def seek(self, epoch: int, step: int = 0) -> None:
        """Go on from a batch of an epoch, both counted from 0.

        Raises
        ------
        InputError
            If there is no such batch.
        """
        check_count("epoch", epoch, least=0)
        if check_count("step", step, least=0) >= len(self):
            raise InputError(f"step must be less than {len(self):,}, the batches of an epoch, got {step:,}.")
        self._epoch, self._step = int(epoch), int(step)

    @cached_property
    def _digest(self) -> str:
        told = [_ORDER, self.order.lengths, self._drop_last, sorted(self._how.items())]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def _shares(self) -> range:
        """Say which shares are of this rank."""
        rank, n_ranks = self._ranks or _distributed_ranks(self._torch)
        if n_ranks > self._how["shares"]:
            raise InputError(
                f"{n_ranks} ranks cannot read {counted(self._how['shares'], 'share')}: each needs one. Give "
                f"shares={n_ranks} or more."
            )
        return shares_of(rank, n_ranks, self._how["shares"])

    def n_buffers(self, shares: Sequence[int]) -> int:
        """Count the buffers for some shares."""
        used = len(shares) * mixed_of(self._how["shuffle"], self._how["mix"], self._how["shares"])
        return used + (max(used // 2, self._threads) if self._ahead is None else self._ahead)

    def n_buffers_of(self, n_ranks: int) -> int:
        """Count the buffers of each of some ranks, at most."""
        return self.n_buffers(range(-(-self._how["shares"] // n_ranks)))

    @property
    def of_cluster(self) -> bool:
        """Whether blocks are held by a cluster, as those of a persisted collection are."""
        return self._blocks.of_cluster

    def tell_lengths(self, lengths: Sequence[int]) -> None:
        """Say how many rows each block has, where somebody has counted them before."""
        self._blocks.tell_lengths(lengths)

    @property
    def width(self) -> int:
        """Columns of a batch; looks at a row where a transformer decides."""
        return self._blocks.width if self._transform is None else self._columns.width

    @property
    def _largest(self) -> int:
        """Rows of the largest piece of a block."""
        return max(self.order.lengths)

    def _check_memory(self, width: int) -> None:
        """Refuse buffers that take more than is allowed.

        Raises
        ------
        MemoryLimitError
            With the figures, and what would do.
        """
        row_nbytes = width * self._dtype.itemsize + self._blocks.target_nbytes
        n_buffers = self.n_buffers(self._shares())
        nbytes = n_buffers * self._largest * row_nbytes
        if self._memory is not None and nbytes > self._memory:
            raise MemoryLimitError(
                f"The loader needs {n_buffers} buffers of {self._largest:,} rows, {format_bytes(nbytes)} in all, and "
                f"may take {format_bytes(self._memory)}. Read smaller blocks, such as read_parquet(..., block_nbytes="
                f"{max(self._memory // (2 * n_buffers), 1)}) from files of as small row groups, or mix fewer of them."
            )

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Give the batches that are left of this epoch."""
        torch = self._torch
        if torch is not None and torch.utils.data.get_worker_info() is not None:
            raise InputError(
                "A loader reads by threads of its own, and each worker process of a DataLoader would give all batches. "
                "Use DataLoader(loader, batch_size=None, num_workers=0), or the loader alone."
            )
        order, columns, shares = self.order, self._columns, self._shares()
        self._check_memory(columns.width)
        n_pieces = sum(len(group.pieces) for own in order.groups(self._epoch) for group in own)
        buffers = columns.buffers(min(self.n_buffers(shares), n_pieces) * self._largest)
        started = self._epoch, self._step
        ring = Ring(order, *started, shares, buffers, self._largest, self._fill, self._threads)
        room = _arrays_of(columns) if torch is None else _tensors_of(torch, columns)
        try:
            for step, batch in enumerate(ring.batches(room), start=self._step + 1):
                last = step == order.n_steps
                self._epoch, self._step = started[0] + int(last), 0 if last else step
                yield batch
        finally:
            ring.close()

    def _fill(self, piece: Piece, out: Sequence[np.ndarray]) -> None:
        """Read a piece of a block into buffers."""
        rows = self._blocks.load(piece.block)
        self._columns.fill(out, rows, self._transform, slice(piece.start, piece.stop))

    def __repr__(self) -> str:
        """Say what is read, and where it is."""
        how = ", ".join(f"{name}={value!r}" for name, value in self._how.items())
        return (
            f"Loader of {source_name(self._blocks.source)}: {how}; at epoch {self._epoch}, step {self._step}"
        )


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Take an integer of at least `least`.

    Raises
    ------
    InputError
        If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} must be an integer of at least {least}, got {value!r}.")
    return int(value)


def _checked_how(batch_size: Any, shuffle: Any, mix: Any, shares: Any, random_state: Any) -> dict[str, Any]:
    Epochs(shuffle=shuffle, mix=mix, random_state=random_state)  # which refuses what is no order
    return {
        "batch_size": check_count("batch_size", batch_size),
        "shuffle": shuffle,
        "mix": int(mix),
        "shares": check_count("shares", shares),
        "random_state": int(random_state),
    }


def _checked_ranks(rank: Any, n_ranks: Any) -> tuple[int, int] | None:
    if rank is None and n_ranks is None:
        return None
    if rank is None or n_ranks is None or not 0 <= rank < n_ranks:
        raise InputError(
            f"rank={rank!r} and n_ranks={n_ranks!r} go together, and rank is counted from 0: 0 <= rank < n_ranks."
        )
    return check_count("rank", rank, least=0), check_count("n_ranks", n_ranks)


def _checked_transform(transform: Any) -> Any:
    if transform is None:
        return None
    if not hasattr(transform, "transform"):
        raise InputError(
            f"transform must be a fitted transformer, but {transform!r} has no method transform."
        )
    try:
        check_is_fitted(transform)
    except NotFittedError as err:
        raise InputError(
            f"transform={type(transform).__name__} is not fitted. Fit it first: dpipe.fit(transform, X)."
        ) from err
    return transform


def _torch(cls: type) -> Any:
    """Import torch, and let its DataLoader know the class as an iterable data set."""
    try:
        import torch
        import torch.utils.data
    except ImportError as err:
        raise InputError(
            "Batches of tensors need PyTorch: pip install 'dpipe[torch]'. Without it, tensors=False gives NumPy arrays."
        ) from err
    torch.utils.data.IterableDataset.register(cls)
    return torch


def _tensors_of(torch: Any, columns: Columns) -> Room:
    """Give what makes room for a batch of tensors, and the arrays through which they are written."""
    pinned = {"pin_memory": True} if torch.cuda.is_available() else {}
    kinds = [(shape, getattr(torch, dtype.name)) for shape, dtype in columns.shapes]

    def room(n: int) -> tuple[list[np.ndarray], tuple[Any, ...]]:
        tensors = tuple(torch.empty((n, *shape), dtype=kind, **pinned) for shape, kind in kinds)
        return [tensor.numpy() for tensor in tensors], tensors

    return room


def _arrays_of(columns: Columns) -> Room:
    """Give what makes room for a batch of arrays."""

    def room(n: int) -> tuple[list[np.ndarray], tuple[Any, ...]]:
        arrays = columns.buffers(n)
        return arrays, tuple(arrays)

    return room


def _distributed_ranks(torch: Any) -> tuple[int, int]:
    """Give the rank of this process among those that train together."""
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
