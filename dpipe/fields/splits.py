"""Split gridded data by blocks of time or of space, with a gap between the sides.

Neighbours in time and space are alike: a cell tells much of the next one. Sides are therefore made of whole blocks, and
training cells near a test block are left out. All of it follows from the coordinates; no values are read.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from dpipe.errors import InputError
from dpipe.fields.checks import as_numbers
from dpipe.sizes import counted

#: Blocks along a dim where the caller does not say how long they are.
_BLOCKS = 10


@dataclass(frozen=True)
class Nearness:
    """How near the sides of a split are.

    Attributes
    ----------
    n_shared : int
        Places that stand on both sides.
    n_near : int
        Training places within the gap of a test place, the shared ones included.
    n_train, n_test : int
        Places on each side.
    """

    n_shared: int
    n_near: int
    n_train: int
    n_test: int

    @property
    def found(self) -> bool:
        """Whether anything leaks."""
        return bool(self.n_near)

    def __str__(self) -> str:
        """Say it."""
        return (
            f"{counted(self.n_shared, 'place')} on both sides, {self.n_near:,} of {self.n_train:,} training places "
            f"within the gap of {counted(self.n_test, 'test place')}"
        )


def split(
    x: Any,
    dims: Hashable | Sequence[Hashable] = "time",
    *,
    test_from: Any = None,
    test_size: float = 0.2,
    block: Any = None,
    gap: Any = None,
    random_state: int = 0,
) -> tuple[Any, Any]:
    """Split a field into train and test by blocks of some dims, lazily.

    Parameters
    ----------
    x : xarray.DataArray or Dataset
    dims : str or sequence of str, default "time"
        One dim is cut into stretches; of several, such as ``["lat", "lon"]``, boxes are made.
    test_from : time or number, optional
        For one dim: all from there on is the test side.
    test_size : float, default 0.2
        Otherwise the share of blocks on the test side, drawn at random; at least one block.
    block : timedelta, number or mapping of str to those, optional
        How long a block is along each dim, in units of its coordinate; default a tenth of the dim.
    gap : timedelta, number or mapping of str to those, optional
        Training places so near to a test place are on neither side: near along all of the dims.
    random_state : int, default 0

    Returns
    -------
    train, test : xarray.DataArray or Dataset
        Lazy. By one dim they are made of slices of `x`; by several, they are like `x`, with missing values where a
        place is not of the side, and a coordinate ``kept`` that tells. Longitudes that go around the globe are near
        across its seam.

    Raises
    ------
    InputError
        If a dim is not there, sizes are not usable, or a side would be empty.

    Examples
    --------
    >>> x = xr.DataArray(np.arange(10.0), dims="time", coords={"time": np.arange(10)})
    >>> train, test = split(x, test_from=7, gap=2)
    >>> train.values.tolist(), test.values.tolist()
    ([0.0, 1.0, 2.0, 3.0, 4.0], [7.0, 8.0, 9.0])
    """
    places = _Places.of(x, dims, "split")
    gaps = places.lengths(gap, "gap")
    if test_from is not None:
        held = places.after(test_from)
    else:
        if isinstance(test_size, bool) or not isinstance(test_size, int | float) or not 0 < test_size < 1:
            raise InputError(f"split: test_size must lie between 0 and 1, got {test_size!r}.")
        numbers = places.blocks(block)
        n = int(numbers.max()) + 1
        chosen = np.random.default_rng(random_state).permutation(n)[: max(1, round(test_size * n))]
        held = np.isin(numbers, chosen)
    return places.sides(x, held, gaps)


def folds(
    x: Any,
    dims: Hashable | Sequence[Hashable] = "time",
    n_splits: int = 5,
    *,
    block: Any = None,
    gap: Any = None,
    random_state: int = 0,
) -> list[tuple[Any, Any]]:
    """Give k folds of a field by blocks of some dims, lazily: each place is once on the test side.

    Parameters
    ----------
    x : xarray.DataArray or Dataset
    dims : str or sequence of str, default "time"
    n_splits : int, default 5
        At least 2.
    block : timedelta, number or mapping of str to those, optional
        Blocks of this length are dealt out at random; by default one dim is cut into `n_splits` stretches in their
        order, and several dims into blocks of a tenth each.
    gap, random_state
        As in `split`.

    Returns
    -------
    list of (train, test)
        As `split` gives them.

    Raises
    ------
    InputError
        As `split` does, or if there are fewer blocks than folds.

    Examples
    --------
    >>> x = xr.DataArray(np.arange(6.0), dims="time", coords={"time": np.arange(6)})
    >>> [(len(train), len(test)) for train, test in folds(x, n_splits=3, gap=1)]
    [(3, 2), (2, 2), (3, 2)]
    """
    if isinstance(n_splits, bool) or not isinstance(n_splits, int | np.integer) or n_splits < 2:
        raise InputError(f"folds: n_splits must be an integer of at least 2, got {n_splits!r}.")
    places = _Places.of(x, dims, "folds")
    gaps = places.lengths(gap, "gap")
    if block is None and len(places.dims) == 1:
        size = len(places.values[0])
        numbers, n = np.arange(size) * n_splits // size, min(n_splits, size)
        fold_of = np.arange(n)
    else:
        numbers = places.blocks(block)
        n = int(numbers.max()) + 1
        fold_of = np.random.default_rng(random_state).permutation(n) % n_splits
    if n < n_splits:
        raise InputError(
            f"folds: there are {counted(n, 'block')}, fewer than n_splits={n_splits}. Take shorter blocks."
        )
    return [places.sides(x, fold_of[numbers] == i, gaps) for i in range(n_splits)]


def check_leaks(
    train: Any, test: Any, dims: Hashable | Sequence[Hashable] = "time", *, gap: Any = None
) -> Nearness:
    """Look for places that stand on both sides of a split, or nearer than a gap; reads coordinates only.

    Parameters
    ----------
    train, test : xarray.DataArray or Dataset
        By several dims, as `split` and `folds` give them, with their coordinate ``kept``.
    dims : str or sequence of str, default "time"
    gap : timedelta, number or mapping of str to those, optional
        As in `split`; default 0, only what stands on both sides.

    Returns
    -------
    Nearness

    Raises
    ------
    InputError
        If a dim is not there, or the sides do not tell their places.

    Examples
    --------
    >>> x = xr.DataArray(np.arange(6.0), dims="time", coords={"time": np.arange(6)})
    >>> print(check_leaks(x[:4], x[4:], gap=1))
    0 places on both sides, 1 of 4 training places within the gap of 2 test places
    """
    mine, theirs = (_Places.of(side, dims, "check_leaks") for side in (train, test))
    if len(mine.dims) == 1:
        both = xr.DataArray(np.union1d(train[mine.dims[0]].values, test[mine.dims[0]].values), dims=mine.dims)
        every = _Places.of(both.assign_coords({mine.dims[0]: both.values}), mine.dims, "check_leaks")
        index = pd.Index(both.values)
        masks = [index.isin(side[mine.dims[0]].values) for side in (train, test)]
    else:
        for name, side in (("train", train), ("test", test)):
            if "kept" not in side.coords or set(side["kept"].dims) != set(mine.dims):
                raise InputError(
                    f"check_leaks: {name} has no coordinate 'kept' of the dims {mine.dims}. Make the sides with "
                    "dpipe.fields.split or folds."
                )
        if any(not np.array_equal(a, b) for a, b in zip(mine.values, theirs.values, strict=True)):
            raise InputError("check_leaks: train and test have different cells. Take both from one split.")
        every, masks = mine, [side["kept"].transpose(*mine.dims).values for side in (train, test)]
    near = every.near(masks[1], every.lengths(gap, "gap"))
    return Nearness(
        int((masks[0] & masks[1]).sum()),
        int((masks[0] & near).sum()),
        int(masks[0].sum()),
        int(masks[1].sum()),
    )


@dataclass(frozen=True)
class _Places:
    """Where the elements along some dims are."""

    dims: tuple[Hashable, ...]
    values: tuple[np.ndarray, ...]
    """Numbers, or days since the first time."""
    indexes: tuple[pd.Index, ...]
    around: tuple[bool, ...]
    """Whether a dim is of longitudes that go around the globe."""
    who: str

    @classmethod
    def of(cls, x: Any, dims: Any, who: str) -> "_Places":
        if not isinstance(x, xr.DataArray | xr.Dataset):
            raise InputError(f"{who} takes an xarray.DataArray or Dataset, got a {type(x).__name__}.")
        dims = (dims,) if isinstance(dims, str) or not isinstance(dims, Sequence) else tuple(dims)
        missing = [dim for dim in dims if dim not in x.dims]
        if missing or not dims:
            named = ", ".join(map(repr, missing)) or "named to split by"
            raise InputError(f"{who}: there is no dim {named}. It has: {', '.join(map(repr, x.dims))}.")
        like: Any = x if isinstance(x, xr.DataArray) else x.coords.to_dataset()
        values = tuple(as_numbers(like, dim, who) for dim in dims)
        indexes = tuple(x.indexes[d] if d in x.indexes else pd.RangeIndex(x.sizes[d]) for d in dims)
        around = tuple(
            str(dim).lower() in ("lon", "longitude")
            and len(each) > 2
            and abs(np.ptp(each) + abs(each[1] - each[0]) - 360) < 1e-6
            for dim, each in zip(dims, values, strict=True)
        )
        return cls(dims, values, indexes, around, who)

    def lengths(self, given: Any, name: str) -> list[float]:
        """Give a length along each dim, in the units of `values`."""
        found = []
        for dim, index in zip(self.dims, self.indexes, strict=True):
            length = given.get(dim) if isinstance(given, Mapping) else given
            times = isinstance(index, pd.DatetimeIndex | xr.CFTimeIndex)
            try:
                value = (
                    0.0
                    if length is None
                    else pd.Timedelta(length) / pd.Timedelta(days=1)
                    if times
                    else float(length)
                )
                if not 0 <= value < np.inf or isinstance(length, bool):
                    raise ValueError("it is no length")
            except (TypeError, ValueError) as err:
                kind = "a timedelta" if times else "a number"
                raise InputError(
                    f"{self.who}: {name}={length!r} does not go with {dim!r}: {err}. Give {kind}."
                ) from err
            found.append(value)
        return found

    def after(self, start: Any) -> np.ndarray:
        """Tell which elements are from `start` on."""
        if len(self.dims) != 1:
            raise InputError(f"{self.who}: test_from goes with one dim, not with {self.dims}.")
        index = self.indexes[0]
        try:
            return np.asarray(
                index >= (pd.Timestamp(start) if isinstance(index, pd.DatetimeIndex) else start)
            )
        except (TypeError, ValueError) as err:
            raise InputError(
                f"{self.who}: test_from={start!r} does not go with {self.dims[0]!r}: {err}."
            ) from err

    def blocks(self, block: Any) -> np.ndarray:
        """Number the block of each place, from 0 without holes."""
        numbers = np.zeros((1,) * len(self.dims), dtype=np.int64)
        for axis, (values, length) in enumerate(zip(self.values, self.lengths(block, "block"), strict=True)):
            length = length or (np.ptp(values) + 1e-9) / _BLOCKS or 1.0
            mine = np.floor((values - values.min()) / length).astype(np.int64)
            shape = [-1 if i == axis else 1 for i in range(len(self.dims))]
            numbers = numbers * (int(mine.max()) + 1) + mine.reshape(shape)
        found = np.unique(numbers, return_inverse=True)[1]
        return found.reshape(numbers.shape)

    def near(self, held: np.ndarray, gaps: Sequence[float]) -> np.ndarray:
        """Tell which places are within the gaps of those that are held out, these included."""
        near = held
        for axis, (values, gap, around) in enumerate(zip(self.values, gaps, self.around, strict=True)):
            order = np.argsort(values)
            ascending = values[order]
            turns = (-360.0, 0.0, 360.0) if around else (0.0,)
            spread = np.concatenate([ascending + turn for turn in turns])
            marks = np.take(
                np.concatenate([np.take(near, order, axis=axis)] * len(turns), axis=axis),
                range(len(spread)),
                axis,
            )
            before = np.concatenate(
                [np.zeros_like(np.take(marks, [0], axis), dtype=np.int64), np.cumsum(marks, axis)], axis
            )
            first = np.searchsorted(spread, values - gap - 1e-9, side="left")
            last = np.searchsorted(spread, values + gap + 1e-9, side="right")
            near = np.take(before, last, axis) > np.take(before, first, axis)
        return near

    def sides(self, x: Any, held: np.ndarray, gaps: Sequence[float]) -> tuple[Any, Any]:
        """Give the training and the test side."""
        kept = ~self.near(held, gaps)
        for name, mask in (("train", kept), ("test", held)):
            if not mask.any():
                raise InputError(
                    f"{self.who}: the {name} side is empty, of {mask.size:,} places along "
                    f"{', '.join(map(str, self.dims))}. Take a smaller gap, or other blocks."
                )
        return self._side(x, kept), self._side(x, held)

    def _side(self, x: Any, mask: np.ndarray) -> Any:
        if len(self.dims) > 1:
            where = xr.DataArray(mask, dims=self.dims)
            return x.where(where).assign_coords(kept=where)
        dim = self.dims[0]
        edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
        parts = [
            x.isel({dim: slice(a, b)}) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        only: dict[str, Any] = {"data_vars": "minimal"} if isinstance(x, xr.Dataset) else {}
        return xr.concat(parts, dim, coords="minimal", compat="override", join="override", **only)
