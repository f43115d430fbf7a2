"""`Epochs`: how estimators that learn in order see the data: how often, in which order, and until when."""

import itertools
import numbers
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from dpipe.blocks.held_out import HeldOut
from dpipe.blocks.order import Visit, mixed_rows, neighbours_apart, visits
from dpipe.errors import InputError
from dpipe.sizes import counted

#: Rows of a made-up block, where mixing is told of and no length is known.
_ANY_LENGTH = 10_000


@dataclass(frozen=True)
class Epoch:
    """What is known after an epoch.

    Parameters
    ----------
    number : int
        Counted from 1.
    score : float
        On the held-out rows; greater is better.
    best : bool
        Whether it is the best so far, by more than `tol`.
    """

    number: int
    score: float
    best: bool


@dataclass(frozen=True, eq=False)
class Epochs:
    """How estimators that learn in order (`partial_fit`) see the data; ``epochs=`` of `fit` and `Pipeline.train`.

    Parameters
    ----------
    n : int, default 1
        How often the data is seen; at most, where it is stopped early.
    shuffle : {None, "blocks", "rows"}, default None
        The order of an epoch: as stored; the blocks in random order; or also all rows of `mix` blocks at a time.
        Each epoch has an order of its own, which the seed and the blocks alone decide, never the number of workers.
        The plan tells how well rows are mixed, and what that takes.
    mix : int, default 8
        Blocks whose rows are mixed at a time. About twice as many are held in memory.
    random_state : int, default 0
        Seeds the order, and what is held out.
    average : int, optional
        Deal the blocks to so many learners, which learn side by side and are averaged, weighted by their rows. For
        SGD estimators, perceptrons and MLPs. This number is a part of the answer; the number of workers is not: give
        as many as there will be workers, or more. As many blocks are learned by one first, where the others start:
        give blocks of some thousand rows at least.
    average_every : int, default 2
        Blocks that each of them learns until they are averaged; they are at the end of an epoch, too.
    validation : float or tuple, optional
        Score the last step on rows that it does not learn from after each epoch, and stop early: a share of the rows,
        chosen by a hash of their place, or ``(X, y)`` or ``(X, y, sample_weight)`` of rows of their own, lazy or not.
        The learner of the best epoch is given. Transformers before it also see the rows of a share, as they do when
        scikit-learn's own `early_stopping` holds them out.
    patience : int, default 5
        Epochs without a better score until it is stopped.
    tol : float, default 1e-4
        By how much a score must be better.
    scoring : str, optional
        One of scikit-learn's names; default accuracy for a classifier, r2 for a regressor.
    on_epoch : callable ``(Epoch) -> None``, optional
        Is told of each epoch once it is scored, such as the `append` of a list. The report draws the same curve.
    classes : sequence of labels, optional
        Of a classifier. Given, they need not be found in a pass of their own; any other label is an error.
    batch_size : int, default 32
        Rows that are learned at a time by what has `train_on_batch`, as models of Keras have.

    Raises
    ------
    InputError
        If a value is out of its range.

    Examples
    --------
    >>> import dask.array as da, dpipe
    >>> from sklearn.linear_model import SGDClassifier
    >>> X = da.random.default_rng(0).normal(size=(400, 2), chunks=(50, 2))
    >>> y = (X[:, 0] > 0).astype(int)
    >>> fitted = dpipe.fit(SGDClassifier(), X, y, epochs=Epochs(3, shuffle="rows", mix=4))
    >>> fitted.score(X.compute(), y.compute()) > 0.9
    True
    """

    n: int = 1
    shuffle: Literal["blocks", "rows"] | None = None
    mix: int = 8
    random_state: int = 0
    average: int | None = None
    average_every: int = 2
    validation: Any = None
    patience: int = 5
    tol: float = 1e-4
    scoring: str | None = None
    on_epoch: Callable[[Epoch], None] | None = None
    classes: Sequence[Any] | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        _check_count("epochs", self.n)
        _check_count("mix", self.mix)
        _check_count("batch_size", self.batch_size)
        _check_count("average_every", self.average_every)
        if self.average is not None:
            _check_count("average", self.average)
        self._check_stopping()
        if self.shuffle not in (None, "blocks", "rows"):
            raise InputError(f"shuffle must be None, 'blocks' or 'rows', got {self.shuffle!r}.")
        if not _is_integer(self.random_state) or self.random_state < 0:
            raise InputError(
                f"random_state must be an integer of at least 0, got {self.random_state!r}: the order must be the "
                "same when a run is repeated."
            )
        if self.classes is not None and len(set(self.classes)) < 2:
            raise InputError(
                f"classes must name at least two labels, got {list(self.classes)!r}. Leave it out to have them found "
                "in an earlier pass."
            )

    def _check_stopping(self) -> None:
        _check_count("patience", self.patience)
        if not isinstance(self.tol, numbers.Real) or not self.tol >= 0:
            raise InputError(f"tol must be a number of at least 0, got {self.tol!r}.")
        rows = self.validation
        if rows is None and (self.scoring is not None or self.on_epoch is not None):
            raise InputError(
                "scoring and on_epoch go with validation=..., the rows to score on. Give some, such as validation=0.1."
            )
        of_rows = isinstance(rows, tuple) and len(rows) in (2, 3) and rows[1] is not None
        is_share = isinstance(rows, float) and 0 < rows < 1
        if rows is not None and not of_rows and not is_share:
            raise InputError(
                f"validation must be a share between 0 and 1, (X, y) or (X, y, sample_weight), got {_short(rows)}."
            )
        if self.on_epoch is not None and not callable(self.on_epoch):
            raise InputError(f"on_epoch must be callable, got {self.on_epoch!r}.")

    @property
    def share(self) -> float | None:
        """The share of the rows that is held out, if there is one."""
        return self.validation if isinstance(self.validation, float) else None

    @property
    def least(self) -> int:
        """How often the data is seen at least."""
        return self.n if self.validation is None else min(self.n, self.patience + 1)

    @classmethod
    def of(cls, epochs: Any) -> "Epochs":
        """Take a number of epochs for one that changes nothing else."""
        return epochs if isinstance(epochs, Epochs) else cls(epochs)

    @property
    def identity(self) -> dict[str, Any]:
        """What a result follows from, by what to call it."""
        told = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in _NOT_OF_RESULT and not _is_default(getattr(self, field.name), field.default)
        }
        if self.validation is not None:
            told["validation"] = self.share
        return {
            # the epochs that are made follow from each other, however many may come
            "the number of epochs": int(self.n) if self.validation is None else None,
            **{f"{name} of the epochs": value for name, value in told.items()},
        }

    def __dask_tokenize__(self) -> Any:
        return [getattr(self, field.name) for field in fields(self) if field.name != "on_epoch"]

    def visits(self, n_blocks: int, epochs: range | None = None) -> list[Visit]:
        """List what the learner is given, step by step."""
        return [
            visit
            for epoch in (range(self.n) if epochs is None else epochs)
            for visit in visits(
                n_blocks, epoch, shuffle=self.shuffle, mix=self.mix, random_state=self.random_state
            )
        ]

    def rounds(self, visits: Sequence[Visit]) -> list[list[list[int]]]:
        """Deal the steps of some whole epochs to the learners that are averaged.

        Returns
        -------
        list of rounds
            Each a list of what every learner does until they are averaged, as numbers of steps.

        Examples
        --------
        >>> epochs = Epochs(average=2, average_every=2)
        >>> epochs.rounds(epochs.visits(6))
        [[[0, 1]], [[2, 4], [3, 5]]]
        """
        shards = self.average or 1
        found: list[list[list[int]]] = []
        for _, steps in itertools.groupby(range(len(visits)), key=lambda i: visits[i].epoch):
            own = list(steps)
            if visits[own[0]].epoch == 0 and shards > 1:
                # the first steps are so long that the mean of several learners would keep more of them than one does
                found.append([own[:shards]])
                own = own[shards:]
            size = shards * self.average_every
            for first in range(0, len(own), size):
                some = own[first : first + size]
                found.append([some[shard::shards] for shard in range(shards)])
        return found

    def order(self, lengths: Sequence[int], epoch: int) -> Iterator[np.ndarray]:
        """Give the order of the rows in an epoch, as they are learned.

        Parameters
        ----------
        lengths : sequence of int
            Rows of each block.
        epoch : int
            Counted from 0.

        Yields
        ------
        numpy.ndarray
            For each call of `partial_fit` the numbers of its rows, counted through all blocks.

        Examples
        --------
        >>> [rows.tolist() for rows in Epochs(shuffle="blocks").order([2, 1, 3], epoch=0)]
        [[3, 4, 5], [0, 1], [2]]
        """
        firsts = np.concatenate([[0], np.cumsum(lengths)])
        for visit in self.visits(len(lengths), range(epoch, epoch + 1)):
            given = [firsts[block] + self.learned(lengths[block], block) for block in visit.blocks]
            if visit.part is None:
                rows = given[0]
            else:
                chosen = mixed_rows([len(each) for each in given], visit, self.random_state)[visit.part]
                rows = np.concatenate(given)[chosen]
            if len(rows):
                yield rows

    def learned(self, n: int, block: int) -> np.ndarray:
        """Number the rows of a block that are learned from: all that are not held out."""
        if self.share is None:
            return np.arange(n)
        return np.flatnonzero(HeldOut(self.share, self.random_state, block, held=False).mask(n))

    def ahead(self, window: int) -> int:
        """Give the blocks to prepare ahead: at least two for each learner."""
        return max(window, 2 * (self.average or 1))

    def n_held(self, n_blocks: int, window: int) -> int:
        """Give the transformed blocks that are held at most, where a window of them is prepared ahead."""
        window = self.ahead(window)
        if self.shuffle != "rows":
            return window
        # the blocks that are mixed, the next ones, and on both sides of the mixing those that are ahead
        return 2 * min(self.mix, n_blocks) + 2 * window

    def says(self, rows: Sequence[int | None], window: int, *, stops: bool) -> tuple[str, ...]:
        """Say in words what a plan tells: the order, how well rows are mixed, and what that takes."""
        said = [*self._says_order(rows, window)]
        if stops:
            said.append(
                f"stops after {counted(self.patience, 'epoch')} without a score that is better by {self.tol:g}, and "
                "gives the learner of the best one"
            )
        if self.average is not None:
            said.append(
                f"blocks are dealt to {self.average} learners, which are averaged after every "
                f"{counted(self.average_every, 'block')} of each, and at the end of an epoch"
            )
        return tuple(said)

    def _says_order(self, rows: Sequence[int | None], window: int) -> tuple[str, ...]:
        n = len(rows)
        if self.shuffle is None:
            return ()
        if self.shuffle == "blocks" or n < 2:
            return (f"blocks in random order (seed {self.random_state}), another one each epoch",)
        lengths = [_ANY_LENGTH if length is None else length for length in rows]
        mix = min(self.mix, n)
        apart, left = neighbours_apart(lengths, mix)
        return (
            f"blocks in random order, and all rows of {mix} of them at a time (seed {self.random_state}): "
            f"{apart:.1%} of the rows follow one of another block ({neighbours_apart(lengths, n)[0]:.1%} if all were "
            f"shuffled), {left:.1%} of the variance between blocks is left",
            f"mixing takes no more readings, but holds up to {self.n_held(n, window)} transformed blocks, not "
            f"{self.ahead(window)}",
        )


#: What a result does not follow from, once its epochs are known; and what the ledger looks at by itself.
_NOT_OF_RESULT = ("n", "validation", "patience", "tol", "on_epoch")


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, int | float | str) and bool(value == default))


def _short(value: Any) -> str:
    return repr(value) if isinstance(value, int | float | str) else f"a {type(value).__name__}"


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_count(name: str, value: Any) -> None:
    if not _is_integer(value) or value < 1:
        raise InputError(f"{name} must be an integer of at least 1, got {value!r}.")
