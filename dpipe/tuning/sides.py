"""Which rows are on the training and on the test side of each split, told block by block.

Rows that are on the same sides of all splits are one part. What can be merged is collected once for each part, in one
reading; the training side of a split merges its parts.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from sklearn.model_selection import BaseCrossValidator

from dpipe.blocks.folds import Folds
from dpipe.blocks.held_out import kept
from dpipe.blocks.rows import Rows, RowsAt
from dpipe.collect.grids import Grid
from dpipe.collect.labelled import as_samples, beside_grid
from dpipe.errors import InputError

#: More parts than these are no blocks of neighbours any more.
_MOST_PARTS = 1000


@dataclass(frozen=True, eq=False)
class GivenFolds:
    """Splits that the caller gives.

    Attributes
    ----------
    train, test : tuple of tuple of int
        The parts on each side of each split.
    n_parts : int
    parts : ndarray of int, or None
        The part of each row, by its place; None where it stands beside the weights.
    weighted : bool
        Where parts stand beside the weights: whether there are any.
    """

    train: tuple[tuple[int, ...], ...]
    test: tuple[tuple[int, ...], ...]
    n_parts: int
    parts: np.ndarray | None
    weighted: bool

    @property
    def n_splits(self) -> int:
        """Number of splits."""
        return len(self.train)

    def __repr__(self) -> str:
        """Say what it is; a record tells by it whether it is of the same splits."""
        held = "" if self.parts is None else f", {hashlib.sha256(self.parts.tobytes()).hexdigest()[:16]}"
        return f"GivenFolds({self.train}, {self.test}{held})"

    def of(self, y: np.ndarray, at: RowsAt | None) -> np.ndarray:
        """Look up the parts of some rows.

        Raises
        ------
        InputError
            If there are other rows than the splits are of.
        """
        assert at is not None
        assert self.parts is not None
        if at.total != len(self.parts):
            raise InputError(
                f"cv is of {len(self.parts):,} rows, but the data has {at.total:,}. Make the splits of the same rows."
            )
        return self.parts[at.first : at.first + len(y)]


@dataclass(frozen=True, eq=False)
class Sides:
    """The parts of all rows, and on which sides they are."""

    folds: Folds
    n_splits: int

    @property
    def n_parts(self) -> int:
        """Number of parts."""
        return self.folds.n_parts if isinstance(self.folds, GivenFolds) else self.n_splits

    @property
    def beside_weights(self) -> bool:
        """Whether the parts stand beside the weights."""
        return isinstance(self.folds, GivenFolds) and self.folds.parts is None

    def training(self, split: int | None) -> tuple[int, ...]:
        """Give the parts on the training side, in their order; None for all of them."""
        if split is None:
            return tuple(range(self.n_parts))
        if isinstance(self.folds, GivenFolds):
            return self.folds.train[split]
        return tuple(part for part in range(self.n_splits) if part != split)

    def testing(self, split: int) -> tuple[int, ...]:
        """Give the parts on the test side."""
        return self.folds.test[split] if isinstance(self.folds, GivenFolds) else (split,)

    def seen(self, rows: Rows) -> tuple[Rows, np.ndarray]:
        """Give the rows with their own weights, and the part of each."""
        if self.beside_weights:
            assert isinstance(self.folds, GivenFolds)
            beside = np.asarray(rows.w)
            own = beside[:, 0] if self.folds.weighted else None
            return rows._replace(w=own), beside[:, 1].astype(np.int64)
        return rows, self.folds.of(np.asarray(rows.y), rows.at)


@dataclass(frozen=True, eq=False)
class InParts:
    """The rows of some parts."""

    sides: Sides
    members: tuple[int, ...]

    def __call__(self, rows: Rows) -> Rows:
        """See the rows."""
        own, numbers = self.sides.seen(rows)
        return kept(own, np.isin(numbers, self.members))


def with_folds(
    X: Any, y: Any, sample_weight: Any, cv: Any, sample_dims: Any, missing: str
) -> tuple[Any, ...]:
    """Take labelled arrays as rows, and pairs of training and test side as parts of them.

    Returns
    -------
    tuple
        X, y, the weights and the folds.

    Raises
    ------
    InputError
        If they are no folds of these rows or cells.
    """
    pairs = cv
    if not isinstance(cv, int | str | BaseCrossValidator) and hasattr(cv, "__iter__"):
        pairs = list(cv)
        if len(pairs) < 2:
            raise InputError(f"cv holds {len(pairs)} pairs of training and test side; give at least 2.")
    if not isinstance(X, xr.DataArray | xr.Dataset) or not isinstance(pairs, list):
        pairs = given_rows(pairs) if isinstance(pairs, list) else cv
        return *as_samples(X, y, sample_weight, sample_dims, missing), pairs
    if isinstance(sample_weight, str) and isinstance(X, xr.Dataset) and sample_weight in X.data_vars:
        X, sample_weight = X.drop_vars(sample_weight), X[sample_weight]
    # the weights are checked as those of a fit, then the parts are put beside them
    grid, _, _ = as_samples(X, y, sample_weight, sample_dims, missing)
    folds, grid = given_cells(pairs, X, grid, sample_weight)
    return grid, None, None, folds


def given_rows(cv: Sequence[Any]) -> GivenFolds:
    """Take splits of rows: pairs of the places of training and of test rows, as scikit-learn takes them.

    Raises
    ------
    InputError
        If they are no such pairs.
    """
    pairs = []
    for pair in cv:
        try:
            train, test = (np.asarray(side) for side in pair)
        except (TypeError, ValueError) as err:
            raise InputError(f"cv must hold pairs of training and test rows, got {pair!r}.") from err
        for side in (train, test):
            if side.ndim != 1 or side.dtype.kind not in "iu" or not len(side) or side.min() < 0:
                raise InputError(
                    "cv must hold pairs of places of rows, integers from 0 on, at least one on each side; got "
                    f"{side.dtype} of shape {side.shape}."
                )
        pairs.append((train, test))
    # rows that no split names are trained on by none
    n = 1 + max(int(side.max()) for pair in pairs for side in pair)
    roles = np.zeros((len(pairs), n), dtype=np.int8)
    for split, (train, test) in enumerate(pairs):
        roles[split, train] = 1
        _check_apart(roles[split, test] == 1, split)
        roles[split, test] = 2
    return _given(roles)


def _given(roles: np.ndarray) -> GivenFolds:
    """Divide what has a role in each split into parts; `roles` of shape (n_splits, n)."""
    codes = np.zeros(roles.shape[1], dtype=np.int64)
    for row in roles:
        # which of the parts so far, and which side of this split
        codes = np.unique(codes * 3 + row, return_inverse=True)[1]
    parts, first = codes, np.unique(codes, return_index=True)[1]
    kinds = roles[:, first]
    n = kinds.shape[1]
    if n > _MOST_PARTS:
        raise InputError(
            f"cv divides the data into {n:,} parts that differ in their sides; at most {_MOST_PARTS:,} can be kept "
            "apart. Take fewer folds, or longer blocks."
        )
    train, test = (tuple(tuple(np.flatnonzero(row == role).tolist()) for row in kinds) for role in (1, 2))
    return GivenFolds(train, test, n, parts.astype(np.int16), False)


def _check_apart(both: np.ndarray, split: int) -> None:
    if both.any():
        raise InputError(
            f"cv: {int(both.sum()):,} of the test places of split {split} are on its training side, too. Leave them "
            "out of one."
        )


def given_cells(
    cv: Sequence[tuple[Any, Any]], X: Any, grid: Grid, sample_weight: Any
) -> tuple[GivenFolds, Grid]:
    """Take splits of a field, as `dpipe.fields.folds` gives them; their parts stand beside the weights.

    Parameters
    ----------
    cv : sequence of (train, test)
        xarray objects: of some of the coordinates of `X`, or with a coordinate ``kept`` of the cells of each side.
    X : xarray.DataArray or Dataset
    grid : Grid
        Of X, without weights.
    sample_weight : xarray.DataArray, optional

    Raises
    ------
    InputError
        If sides are not of cells of X, or share some.
    """
    masks = [tuple(_cells_of(side, X, grid) for side in pair) for pair in cv]
    dims = [dim for dim in grid.sample_dims if any(dim in mask.dims for pair in masks for mask in pair)]
    shape = {dim: X.sizes[dim] for dim in dims}
    roles = np.zeros((len(masks), int(np.prod(list(shape.values())))), dtype=np.int8)
    for split, pair in enumerate(masks):
        train, test = (np.broadcast_to(_on(mask, dims), tuple(shape.values())).ravel() for mask in pair)
        _check_apart(train & test, split)
        roles[split] = train + 2 * test
    given = _given(roles)
    assert given.parts is not None
    parts = xr.DataArray(given.parts.reshape(tuple(shape.values())).astype(np.float64), dims=dims)
    weights = (
        xr.ones_like(parts) if sample_weight is None else sample_weight.drop_vars(list(sample_weight.coords))
    )
    beside = xr.concat(xr.broadcast(weights, parts), "part", coords="minimal", compat="override")
    return replace(given, parts=None, weighted=sample_weight is not None), beside_grid(grid, beside)


def _on(mask: xr.DataArray, dims: Iterable[Any]) -> np.ndarray:
    return mask.expand_dims([dim for dim in dims if dim not in mask.dims]).transpose(*dims).values


def _cells_of(side: Any, X: Any, grid: Grid) -> xr.DataArray:
    """Tell which cells of X are on a side."""
    if not isinstance(side, xr.DataArray | xr.Dataset):
        raise InputError(
            f"cv holds a {type(side).__name__}. For an xarray object give pairs of training and test side, as "
            "dpipe.fields.folds gives them."
        )
    if "kept" in side.coords:
        return side["kept"].drop_vars(list(side["kept"].coords))
    found = xr.DataArray(True)
    for dim in grid.sample_dims:
        if dim not in side.dims or dim not in side.indexes or dim not in X.indexes:
            if side.sizes.get(dim, X.sizes[dim]) != X.sizes[dim]:
                raise InputError(
                    f"cv: a side has {side.sizes[dim]:,} of {X.sizes[dim]:,} cells along {dim!r}, which has no "
                    f"coordinate that tells which. Give X one: X.assign_coords({dim}=...)."
                )
            continue
        mine, theirs = X.indexes[dim], side.indexes[dim]
        if mine.equals(theirs):
            continue
        if not theirs.isin(mine).all():
            raise InputError(
                f"cv: a side has cells along {dim!r} that X has not, such as {theirs[~theirs.isin(mine)][0]}. Make the "
                "folds of X."
            )
        found = found & xr.DataArray(np.asarray(mine.isin(theirs)), dims=dim)
    if not found.dims:
        raise InputError(
            "cv: a side is all of X. Make the folds by dpipe.fields.folds, along a dim of sample_dims."
        )
    return found
