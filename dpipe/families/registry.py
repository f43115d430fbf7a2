"""The registry: which estimator classes can be fitted block by block, and how.

dpipe's own families register here exactly as third parties do.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.base import clone

from dpipe.blocks.matrix import to_matrix
from dpipe.blocks.rows import RowsAt
from dpipe.blocks.statistics import Custom, Statistic
from dpipe.blocks.table import Block
from dpipe.errors import DpipeError, InputError, UnsupportedEstimatorError
from dpipe.families.unsupported import refusal_of

Estimator = Any  # scikit-learn has no useful base type for "has fit and get_params"


INFINITE = "there is an infinite value. Replace infinity with NaN or a bound first."


@dataclass(frozen=True)
class Meta:
    """What is known of a value before anything is computed."""

    frame: pd.DataFrame | None = None
    """An empty frame with the right columns and types; None for a matrix."""
    n_columns: int | None = None
    """Columns of a matrix, where they are known before fitting."""
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype("float64"))
    sparse: bool = False
    weighted: bool = False
    """Whether a fit on it is given the weights of the rows."""
    one_dimensional: bool = False
    """Whether X was given as a series or an array of one dimension; its blocks have one column."""
    most_columns: int | None = None
    """Columns at most, where a fit decides which of them are kept."""

    def refuse(self, columns: np.ndarray, what: str) -> None:
        """Raise if any column is marked; `columns` is boolean, of shape (n_columns,)."""
        marked = np.flatnonzero(columns)
        if len(marked):
            names = self.names or tuple(f"x{j}" for j in range(len(columns)))
            listed = ", ".join(repr(names[j]) for j in marked)
            raise InputError(f"{listed}: {what}")

    @property
    def is_numeric(self) -> bool:
        """Whether all columns hold numbers, or truth values."""
        if self.frame is None:
            return self.dtype.kind in "iufb"
        return all(map(pd.api.types.is_numeric_dtype, self.frame.dtypes))

    @property
    def width(self) -> int | None:
        """Number of columns, if it is known."""
        return self.n_columns if self.frame is None else self.frame.shape[1]

    @property
    def most_width(self) -> int | None:
        """Number of columns, or how many there are at most."""
        return self.most_columns if self.width is None else self.width

    @property
    def names(self) -> tuple[str, ...]:
        """Column names; made up for a matrix of known width."""
        if self.frame is not None:
            return tuple(str(name) for name in self.frame.columns)
        return tuple(f"x{j}" for j in range(self.n_columns or 0))


@dataclass(frozen=True)
class Derivation:
    """How one statistic of an output follows from a statistic of the input."""

    source: Any
    """The statistic of the input that is collected instead."""
    function: Callable[[Estimator, Any], Any]
    """From the fitted transformer and that statistic to the wanted one."""
    rule: str
    """What it says in a plan."""


@dataclass(frozen=True)
class Weighted:
    """A statistic that is given the weights of the rows; any other sees every row once."""

    want: Any

    @property
    def of_y(self) -> bool:
        """Whether it needs no X."""
        return getattr(self.want, "of_y", False)

    @property
    def in_parts(self) -> bool:
        """Whether it takes a value in parts."""
        return getattr(self.want, "in_parts", False)

    @property
    def placed(self) -> bool:
        """Whether it is also told where the block stands."""
        return getattr(self.want, "placed", False)

    @property
    def partial(self) -> bool:
        """Whether a pass that collects nothing else reads some of the blocks only."""
        return getattr(self.want, "partial", False)

    def of(self, X: Block, y: Any, w: Any, *at: RowsAt) -> Any:
        """Read one block."""
        return self.want.of(X, y, w, *at)


@dataclass(frozen=True)
class Unweighted:
    """Asks for a statistic that counts every row once, also where a fit is given weights."""

    want: Any


def unchanged(estimator: Estimator, statistic: Any) -> Any:
    """Derive a statistic that a transformer leaves as it is."""
    return statistic


def _nothing(estimator: Estimator) -> tuple[Any, ...]:
    return ()


def _accept(estimator: Estimator) -> None:
    return None


def _never(estimator: Estimator) -> bool:
    return False


def _matrix_of_same_width(estimator: Estimator, meta: Meta) -> Meta:
    return Meta(n_columns=meta.width, dtype=meta.dtype, sparse=meta.sparse, most_columns=meta.most_width)


#: Yields the statistics that it asks for, is sent them merged, and returns the fitted estimator.
Refinement = Generator[tuple[Any, ...], Sequence[Any], Estimator]


@dataclass(frozen=True)
class Rounds:
    """How often a refining fit reads the data after the pass in which it is started, and for what."""

    most: int
    collects: str
    least: int = 1


@dataclass(frozen=True)
class Extent:
    """How large the input of a fit is, and what a worker may take."""

    width: int
    n_rows: int | None
    """At most; None if that is not known."""
    n_states: int
    """States of blocks that are held at a time, at most."""
    memory: int | None
    """Bytes of a worker; None for no limit."""
    available: int | None = None
    """Bytes of memory that are free where it works; None if that cannot be seen."""

    def held(self, footprint: tuple[int, int]) -> int:
        """Count the bytes that its states and its end take, at most."""
        state, end = footprint
        return max(self.n_states * state, end)


@dataclass(frozen=True)
class CrossFit:
    """How what a transformer's `fit_transform` gives is computed: each row by what other folds have taught."""

    folds: "Way"
    """Finds what tells the fold of a row: `finish` gives an object with `of(y, at)`."""
    crossed: "Way"
    """Learns, and transforms, from pairs of a block and the folds of its rows."""


@dataclass(frozen=True)
class Way:
    """How the estimators of one class are fitted from blocks."""

    kind: Literal["stateless", "merge", "refine", "stream", "boost"]
    finish: Callable[[Estimator, Sequence[Any], Meta], Estimator]
    """From the unfitted estimator, its merged statistics and its input's meta to a fitted clone."""
    wants: Callable[[Estimator], tuple[Any, ...]] = _nothing
    """The statistics of its input (and of y) that it needs; each has `of(X, y, w)`."""
    transform: Callable[[Estimator, Block], Block] | None = None
    """A kernel that equals the fitted estimator's `transform` on a block; None: call that."""
    derive: Mapping[Any, Callable[[Estimator], Derivation | None]] = field(default_factory=dict)
    """For a wanted statistic of its output: how to have it in the same pass."""
    check: Callable[[Estimator], None] = _accept
    """Raise for parameters that cannot be fitted this way."""
    output: Callable[[Estimator, Meta], Meta] = _matrix_of_same_width
    needs_y: bool = False
    exact: str = "exact"
    """What "the same answer" means for it."""
    cross_fit: CrossFit | None = None
    """Where steps behind it are not fitted on what its `transform` gives: on what they are."""
    one_dimensional: bool = False
    """Whether its X is a series or an array of one dimension: of documents, records or labels."""
    of_labels: bool = False
    """Whether its X are labels: scikit-learn has no place for it in a pipeline."""
    by_rows: Callable[[Estimator], bool] = _never
    """Whether `transform` takes numbers a slice of rows at a time, gives floats, and costs no more for it."""
    refine: Callable[[Estimator, Sequence[Any], Meta], Refinement] | None = None
    """For "refine": from the statistics of the first pass on, one reading after another."""
    rounds: Callable[[Estimator], Rounds] | None = None
    """For "refine": how many readings that takes."""
    takes_weights: Callable[[Estimator], bool] | None = None
    """Whether it can be given the weights of the rows; None to look at the arguments of `fit`."""
    variant: Callable[[Estimator], "Way | None"] | None = None
    """Another way that some parameters ask for."""
    by_size: Callable[[Estimator, Extent], "Way | None"] | None = None
    """Another way for an input of this size; raises MemoryLimitError where none fits."""
    footprint: Callable[[Estimator, int], tuple[int, int]] | None = None
    """Of an input of this width: bytes of the state of a block, and where the fit is finished; None for few."""
    because: str = ""
    """Why this way was chosen by size, for the plan."""
    wants_of: Callable[[Estimator, Meta, Any], tuple[tuple[Any, Any], ...]] | None = None
    """In place of `wants`: the statistics that an input of this kind needs, each with the value that it is of."""


@dataclass(frozen=True)
class Failed:
    """In the place of a fitted estimator: why there is none."""

    why: DpipeError


@dataclass(frozen=True)
class Fitted:
    """A fitted estimator, with the way that knows its kernels."""

    estimator: Estimator
    way: Way

    @cached_property
    def plain(self) -> Estimator:
        """The same, giving arrays: blocks flow as arrays whatever `set_output` asks for."""
        return without_output_config(self.estimator)


def _never_finished(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    raise AssertionError("a refinement gives the fitted estimator itself")


def refined(
    refine: Callable[[Estimator, Sequence[Any], Meta], Refinement],
    rounds: Callable[[Estimator], Rounds],
    wants: Callable[[Estimator], tuple[Any, ...]] = _nothing,
    **options: Any,
) -> Way:
    """Give the way of estimators that are fitted in several passes, each a merge."""
    return Way("refine", _never_finished, wants, refine=refine, rounds=rounds, **options)


_ways: dict[type, Way] = {}
_named: dict[tuple[str, str], Way] = {}


def add(cls: type, way: Way) -> None:
    """Enter an estimator class into the registry."""
    _ways[cls] = way


def add_named(module: str, name: str, way: Way) -> None:
    """Enter a class of an optional package, which need not be installed, by its module and its name."""
    _named[module, name] = way


#: Give the way of a class that is not registered, by what its instances can do; None if they cannot.
_fallbacks: list[Callable[[type], Way | None]] = []


def add_fallback(find: Callable[[type], Way | None]) -> None:
    """Have classes that are not registered looked at."""
    _fallbacks.append(find)


def way_of_class(cls: type) -> Way | None:
    """Look up how the estimators of a class are fitted; None if there is no way."""
    known = _ways.get(cls) or _named.get((cls.__module__, cls.__qualname__))
    if known is not None:
        return known
    return next((way for find in _fallbacks if (way := find(cls)) is not None), None)


def way_of(estimator: Estimator) -> Way:
    """Look up how an estimator is fitted.

    Raises
    ------
    UnsupportedEstimatorError
        If its class is not registered, or one of its parameters has no way.
    """
    way = way_of_class(type(estimator))
    if way is None:
        name = type(estimator).__name__
        if not hasattr(estimator, "fit"):
            raise UnsupportedEstimatorError(
                f"{estimator!r} is not an estimator: it has no fit method. "
                "Pass an unfitted scikit-learn estimator or pipeline."
            )
        refusal = refusal_of(type(estimator))
        why = f": {refusal.why}" if refusal.why else ""
        instead = f" Use {refusal.instead}." if refusal.instead else ""
        raise UnsupportedEstimatorError(
            f"{name} cannot be fitted block by block{why}.{instead} `dpipe.estimators()` lists what can; "
            "`dpipe.register` adds an estimator of your own; or fit it in memory on a sample: "
            "X.sample(frac=0.01, random_state=0).compute()."
        )
    _check_parameters(estimator)
    way.check(estimator)
    return (way.variant and way.variant(estimator)) or way


def _check_parameters(estimator: Estimator) -> None:
    """Let scikit-learn check the parameters now, not in the last pass."""
    if hasattr(estimator, "_parameter_constraints"):
        try:
            estimator._validate_params()
        except ValueError as err:
            raise InputError(f"{err} Change the parameter; nothing has been read yet.") from err


def without_output_config(estimator: Estimator) -> Estimator:
    """Give an estimator whose `transform` gives arrays: itself, or a shallow copy."""
    if getattr(estimator, "_sklearn_output_config", {}).get("transform", "default") in (None, "default"):
        return estimator
    plain = copy(estimator)
    del plain._sklearn_output_config
    return plain


def registered() -> dict[type, Way]:
    """Give a copy of the registry."""
    return dict(_ways)


def registered_by_name() -> dict[tuple[str, str], Way]:
    """Give a copy of what is registered of optional packages, by module and name."""
    return dict(_named)


@dataclass(frozen=True, eq=False)
class CustomWant:
    """A third party's update and merge, as a statistic; one of its own for each estimator."""

    estimator: Estimator
    update: Callable[..., Any]
    join: Callable[[Any, Any], Any]

    def of(self, X: Block, y: Any, w: Any = None) -> Statistic:
        """Read one block."""
        return Custom(self.update(self.estimator, to_matrix(X), y, w), self.join)


def register(
    cls: type,
    *,
    update: Callable[[Estimator, Any, Any, Any], Any],
    merge: Callable[[Any, Any], Any],
    finish: Callable[[Estimator, Any], Estimator],
) -> None:
    """Teach dpipe to fit an estimator of your own, in one pass, from three functions.

    Parameters
    ----------
    cls : type
        The estimator class. Instances of subclasses are not matched.
    update : callable ``(estimator, X, y, sample_weight) -> state``
        Reads one block: `X` as a frame, an array or a CSR matrix of shape (n_rows, n_features),
        `y` and `sample_weight` of shape (n_rows,) or None. Must not change its arguments. Blocks
        may be empty.
    merge : callable ``(state, state) -> state``
        Joins two states; the second one is of later rows. Must be associative.
    finish : callable ``(estimator, state) -> estimator``
        Gives a fitted estimator; the one it is given is a clone that it may change.

    Raises
    ------
    InputError
        If `cls` is not a class.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.base import BaseEstimator
    >>> class RowCounter(BaseEstimator):
    ...     def fit(self, X, y=None):
    ...         self.n_rows_ = len(X)
    ...         return self
    >>> def finish(estimator, state):
    ...     estimator.n_rows_ = state
    ...     return estimator
    >>> register(RowCounter, update=lambda est, X, y, w: len(X), merge=int.__add__, finish=finish)
    """
    if not isinstance(cls, type):
        raise InputError(f"register takes an estimator class, got {cls!r}. Pass the class, not an instance.")

    def wants(estimator: Estimator) -> tuple[Any, ...]:
        return (CustomWant(estimator, update, merge),)

    def finished(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
        return finish(clone(estimator), stats[0].state)

    add(cls, Way("merge", finished, wants, exact="by its author"))
