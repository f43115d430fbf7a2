"""Rolling statistics, lags and coarse cells: exact wherever blocks end."""

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import xarray as xr
from dask.tokenize import tokenize

from dpipe.blocks.windows import STATISTICS, coarsened, padded, rolled, shifted
from dpipe.errors import InputError
from dpipe.fields.checks import attributes, computed, each_variable, ordered, sizes_of
from dpipe.fields.regions import Axis, check_regions, map_regions


def rolling(
    x: Any,
    windows: Mapping[Hashable, int],
    statistic: str = "mean",
    *,
    center: bool = False,
    min_count: int | None = None,
    memory: int | str | None = None,
) -> Any:
    """Give a statistic of a moving window, lazily, as ``x.rolling(windows)`` does.

    Parameters
    ----------
    x : xarray.DataArray or Dataset
    windows : mapping of str to int
        Elements along each dim, such as ``{"time": 7}``; of several dims, boxes.
    statistic : {"mean", "sum", "min", "max", "std", "count"}, default "mean"
        Missing values are left out; the standard deviation has ``ddof=0``.
    center : bool, default False
        Whether the result stands in the middle of its window, or at its end.
    min_count : int, optional
        Windows with fewer values are NaN; default all that a window can hold.
    memory : int or str, optional
        Budget of the process, or of each worker, that will compute; default 2 GiB.

    Returns
    -------
    xarray.DataArray or Dataset
        Like `x`, in its chunks. Lazy. Each block takes from its neighbours what its windows reach; the result
        has the same bits for any chunks.

    Raises
    ------
    InputError
        If a dim is not there or shorter than its window, or its coordinate is doubled or out of order.
    MemoryLimitError
        If a block with what its windows reach does not fit.

    Examples
    --------
    >>> x = xr.DataArray(np.array([1.0, 2.0, 6.0, 4.0]), dims="time").chunk(time=2)
    >>> rolling(x, {"time": 3}).values
    array([nan, nan, 3., 4.])
    """
    _check_statistic(statistic, "rolling")
    made = partial(
        _rolling, windows=windows, statistic=statistic, center=center, min_count=min_count, memory=memory
    )
    return each_variable(x, windows if isinstance(windows, Mapping) else (), "rolling", made)


def lags(
    x: Any,
    steps: Sequence[int],
    dim: Hashable = "time",
    *,
    memory: int | str | None = None,
) -> Any:
    """Give for each step the values some steps before, along a new dim ``lag``, lazily.

    Parameters
    ----------
    x : xarray.DataArray or Dataset
    steps : sequence of int
        How many steps before; negative ones look ahead. Each once.
    dim : str, default "time"
    memory : int or str, optional
        As in `rolling`.

    Returns
    -------
    xarray.DataArray or Dataset
        With ``lag`` as the last dim, in one chunk; of floating point, NaN where the values would lie outside. Lazy.

    Raises
    ------
    InputError
        If the dim is not there or shorter than a lag, or its coordinate is doubled or out of order.
    MemoryLimitError
        If a block with all its lags does not fit.

    Examples
    --------
    >>> x = xr.DataArray(np.array([1.0, 2.0, 6.0, 4.0]), dims="time").chunk(time=2)
    >>> lags(x, [1, 2]).values[2]
    array([2., 1.])
    """
    return each_variable(x, [dim], "lags", partial(_lags, steps=steps, dim=dim, memory=memory))


def coarsen(
    x: Any,
    factors: Mapping[Hashable, int],
    statistic: str = "mean",
    *,
    boundary: str = "exact",
    memory: int | str | None = None,
) -> Any:
    """Join neighbouring cells into coarse ones, lazily, as ``x.coarsen(factors)`` does.

    Parameters
    ----------
    x : xarray.DataArray or Dataset
    factors : mapping of str to int
        How many cells become one, along each dim.
    statistic : {"mean", "sum", "min", "max", "std", "count"}, default "mean"
        Missing values are left out.
    boundary : {"exact", "trim", "pad"}, default "exact"
        What to do where the length is no multiple of the factor: refuse, leave the last cells out, or make a coarse
        cell of the few that are left.
    memory : int or str, optional
        As in `rolling`.

    Returns
    -------
    xarray.DataArray or Dataset
        Lazy, its coordinates the means of those of the cells. A coarse cell may reach over several blocks.

    Raises
    ------
    InputError
        If a dim is not there, its length does not go with the factor, or its coordinate is doubled or out of order.
    MemoryLimitError
        If a block does not fit.

    Examples
    --------
    >>> x = xr.DataArray(np.array([1.0, 2.0, 6.0, 4.0]), dims="lat").chunk(lat=3)
    >>> coarsen(x, {"lat": 2}).values
    array([1.5, 5. ])
    """
    _check_statistic(statistic, "coarsen")
    if boundary not in ("exact", "trim", "pad"):
        raise InputError(f"coarsen: boundary must be one of exact, trim, pad, got {boundary!r}.")
    made = partial(_coarsen, factors=factors, statistic=statistic, boundary=boundary, memory=memory)
    return each_variable(x, factors if isinstance(factors, Mapping) else (), "coarsen", made)


def _check_statistic(statistic: str, who: str) -> None:
    if statistic not in STATISTICS:
        raise InputError(f"{who}: statistic must be one of {', '.join(STATISTICS)}, got {statistic!r}.")


def _floating(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.kind == "f" else np.dtype(np.float64)


def _ends(sizes: Sequence[int]) -> list[tuple[int, int]]:
    ends = np.cumsum(sizes).tolist()
    return [(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _reaching(sizes: Sequence[int], before: int, after: int) -> Axis:
    """Take some elements before and after each block; the arguments are how many are missing at the ends."""
    n = sum(sizes)
    ranges, missing = [], []
    for start, stop in _ends(sizes):
        # what is looked at may lie wholly outside of the array
        first, last = min(max(start - before, 0), n), max(min(stop + after, n), 0)
        if last <= first:
            first, last = max(min(first, n - 1), 0), max(min(first, n - 1), 0) + 1
        ranges.append([(first, last)])
        missing.append((first - (start - before), (stop + after) - last))
    return Axis(tuple(sizes), tuple(ranges), tuple(missing))


@dataclass(frozen=True)
class _Roll:
    windows: tuple[int, ...]
    statistic: str
    min_count: int
    dtype: Any

    def __call__(self, region: np.ndarray, missing: tuple[Any, ...]) -> np.ndarray:
        around = padded(region, [each or (0, 0) for each in missing], self.dtype)
        return rolled(around, self.windows, self.statistic, self.min_count)


def _rolling(
    x: xr.DataArray, *, windows: Any, statistic: str, center: bool, min_count: int | None, memory: Any
) -> xr.DataArray:
    sizes = sizes_of(windows, x.dims, "windows", "rolling")
    for dim, size in sizes.items():
        ordered(x, dim, "rolling", needed=False)
        if size > x.sizes[dim]:
            raise InputError(
                f"rolling: a window of {size} is longer than {dim!r}, which has {x.sizes[dim]} elements. Take a "
                "shorter one."
            )
    least = math.prod(sizes.values()) if min_count is None else min_count
    if isinstance(least, bool) or not isinstance(least, int) or least < 1:
        raise InputError(f"rolling: min_count must be an integer of at least 1, got {min_count!r}.")
    axes = []
    for dim, chunks in zip(x.dims, x.data.chunks, strict=True):
        size = sizes.get(dim, 1)
        after = size - 1 - size // 2 if center else 0
        axes.append(Axis.same(chunks) if size == 1 else _reaching(chunks, size - 1 - after, after))
    step = check_regions(x, axes, 6 if statistic == "std" else 4, memory, "rolling")
    kernel = _Roll(tuple(sizes.get(dim, 1) for dim in x.dims), statistic, least, _floating(x.dtype))
    name = f"rolling-{tokenize(x.data.name, kernel, center)}"
    made = map_regions(x.data, name, axes, kernel, kernel.dtype, step)
    return computed(x, made, pure=statistic == "count")


@dataclass(frozen=True)
class _Shift:
    axis: int
    steps: tuple[int, ...]
    dtype: Any

    def __call__(self, region: np.ndarray, missing: tuple[Any, ...]) -> np.ndarray:
        around = padded(region, [each or (0, 0) for each in missing], self.dtype)
        most, least = max(self.steps), min(self.steps)
        length = around.shape[self.axis] - (most - least)
        return shifted(around, self.axis, [most - step for step in self.steps], length)


def _lags(x: xr.DataArray, *, steps: Any, dim: Hashable, memory: Any) -> xr.DataArray:
    ordered(x, dim, "lags", needed=False)
    steps = tuple(steps) if isinstance(steps, Sequence | np.ndarray | range) else (steps,)
    whole = all(isinstance(step, int | np.integer) and not isinstance(step, bool) for step in steps)
    if not steps or not whole or len(set(steps)) != len(steps):
        raise InputError(f"lags: steps must be whole numbers, each once, such as [1, 2, 7]; got {steps!r}.")
    steps = tuple(map(int, steps))
    if max(map(abs, steps)) >= x.sizes[dim]:
        raise InputError(
            f"lags: a lag of {max(steps, key=abs)} reaches beyond {dim!r}, which has {x.sizes[dim]} elements. Take "
            "shorter ones."
        )
    if "lag" in x.dims or "lag" in x.coords:
        raise InputError("lags: the array has a 'lag' already. Rename it: x.rename(lag=...).")
    axis = x.get_axis_num(dim)
    axes = [Axis.same(chunks) for chunks in x.data.chunks]
    axes[axis] = _reaching(x.data.chunks[axis], max(steps), -min(steps))
    kernel = _Shift(axis, steps, _floating(x.dtype))
    step = check_regions(x, axes, 2 + len(steps), memory, "lags")
    made = map_regions(
        x.data,
        f"lags-{tokenize(x.data.name, kernel)}",
        axes,
        kernel,
        kernel.dtype,
        step,
        chunks=(*x.data.chunks, (len(steps),)),
        place_of=lambda place: (*place, 0),
    )
    coords = {**x.coords, "lag": list(steps)}
    return xr.DataArray(made, dims=(*x.dims, "lag"), coords=coords, name=x.name, attrs=x.attrs)


@dataclass(frozen=True)
class _Coarsen:
    factors: tuple[int, ...]
    statistic: str
    dtype: Any

    def __call__(self, region: np.ndarray, missing: tuple[Any, ...]) -> np.ndarray:
        return coarsened(
            padded(region, [(0, each or 0) for each in missing], self.dtype), self.factors, self.statistic
        )


def _coarse_axis(sizes: Sequence[int], factor: int, boundary: str) -> Axis:
    """Give each coarse cell to the block in which it begins."""
    n = sum(sizes)
    n_coarse = n // factor if boundary == "trim" else -(-n // factor)
    cuts = sorted({0, n_coarse, *(min(-(-stop // factor), n_coarse) for _, stop in _ends(sizes))})
    pairs = list(itertools.pairwise(cuts))
    ranges = tuple([(a * factor, min(b * factor, n))] for a, b in pairs)
    missing = tuple(b * factor - min(b * factor, n) for _, b in pairs)
    return Axis(tuple(b - a for a, b in pairs), ranges, missing)


def _coarsen(x: xr.DataArray, *, factors: Any, statistic: str, boundary: str, memory: Any) -> xr.DataArray:
    sizes = sizes_of(factors, x.dims, "factors", "coarsen")
    for dim, factor in sizes.items():
        ordered(x, dim, "coarsen", needed=False)
        if factor > x.sizes[dim]:
            raise InputError(
                f"coarsen: {dim!r} has {x.sizes[dim]} cells, fewer than the factor {factor}. Take a smaller one."
            )
        if boundary == "exact" and x.sizes[dim] % factor:
            raise InputError(
                f"coarsen: {dim!r} has {x.sizes[dim]} cells, which is no multiple of {factor}. Say boundary='trim' to "
                "leave the last ones out, or boundary='pad' to make a coarse cell of them."
            )
    axes = [
        _coarse_axis(chunks, sizes[dim], boundary) if dim in sizes else Axis.same(chunks)
        for dim, chunks in zip(x.dims, x.data.chunks, strict=True)
    ]
    step = check_regions(x, axes, 4, memory, "coarsen")
    kernel = _Coarsen(tuple(sizes.get(dim, 1) for dim in x.dims), statistic, _floating(x.dtype))
    values = map_regions(
        x.data, f"coarsen-{tokenize(x.data.name, kernel, boundary)}", axes, kernel, kernel.dtype, step
    )
    coords = x.coords.to_dataset()
    mine = {
        dim: factor for dim, factor in sizes.items() if any(dim in c.dims for c in coords.coords.values())
    }
    if mine:
        coords = coords.coarsen(mine, boundary=cast(Literal["exact", "trim", "pad"], boundary)).mean()
    attrs = attributes(x, pure=statistic == "count")
    return xr.DataArray(values, dims=x.dims, coords=coords.coords, name=x.name, attrs=attrs)
