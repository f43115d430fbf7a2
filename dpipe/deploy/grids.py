"""Fitted estimators on labelled arrays: what comes out has the dims, coordinates and attributes of what went in."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse as sp
import xarray as xr
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from dpipe.blocks.grid import GridLayout, put_back
from dpipe.blocks.table import n_rows
from dpipe.collect.grids import Grid
from dpipe.collect.labelled import feature_names, needed_variables, open_grid
from dpipe.deploy.results import apply_block, column_names, empty_result
from dpipe.errors import DpipeError, InputError
from dpipe.families.fitted import final_estimator, input_names
from dpipe.families.registry import Estimator

#: What the new dim of a result is called, by what its estimator has learned.
_DIMS = (("components_", "component"), ("cluster_centers_", "cluster"))
#: What can be drawn on the features, the first that there is.
_PATTERNS = ("components_", "cluster_centers_", "means_", "coef_")
#: What tells how much a component stands for.
_SHARES = ("explained_variance_", "explained_variance_ratio_", "singular_values_")


@dataclass(frozen=True, eq=False)
class _Maker:
    """Makes the result of one block of chunks: the one value that all tasks share."""

    fitted: Estimator
    method: str
    layout: GridLayout
    dtype: np.dtype[Any]
    fill: Any
    width: int | None

    def __call__(self, chunks: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        rows = self.layout.rows(chunks)
        if n_rows(rows.X):
            values = _answers(self.fitted, rows.X, self.method)
        else:
            values = np.empty((0, *(() if self.width is None else (self.width,))), dtype=self.dtype)
        return put_back(values, rows, self.dtype, self.fill)


def _answers(fitted: Estimator, block: Any, method: str) -> np.ndarray:
    if method == "inverse_transform":
        values = fitted.inverse_transform(np.asarray(block))
    else:
        values = apply_block(fitted, block, method)
    return values.toarray() if sp.issparse(values) else np.asarray(values)


def apply_grid(
    fitted: Estimator, X: Any, grid: Grid, method: str, columns: Sequence[int] | None
) -> xr.DataArray | xr.Dataset:
    """Apply a fitted estimator to the samples of a labelled array.

    Parameters
    ----------
    fitted : estimator
        Checked: it is fitted and has the method.
    X : xarray.DataArray or Dataset
        Of which `grid` was made.
    grid : Grid
    method : str
    columns : sequence of int, optional
        Positions of the columns that it takes, in its order; None for all.

    Returns
    -------
    xarray.DataArray or Dataset
    """
    frame = grid.frame
    if frame is not None:
        empty = frame if columns is None else frame.iloc[:, list(columns)]
    else:
        empty = np.empty((0, grid.n_columns), dtype=grid.dtype)
    meta = empty_result(fitted, method, empty)
    dtype = np.result_type(*meta.dtypes) if hasattr(meta, "dtypes") and meta.ndim == 2 else meta.dtype
    dtype = dtype if isinstance(dtype, np.dtype) else np.dtype(object)
    width = None if meta.ndim == 1 else int(meta.shape[1])
    made, given = _made(fitted, grid, method, dtype, width, columns)
    if method != "transform" or width is None:
        return _answer(made, given, dtype, fitted, X, grid, method)
    names_in = _named(grid, columns)
    places = _places_of(fitted, width, names_in)
    kept = None if places is None else _kept_features(made, places, X, grid, columns)
    if kept is not None:
        return kept
    return _on_new_dim(made, X, grid, _dim_of(fitted), column_names(fitted, method, width), method)


def _made(
    fitted: Estimator,
    grid: Grid,
    method: str,
    dtype: np.dtype[Any],
    width: int | None,
    columns: Sequence[int] | None,
) -> tuple[Any, np.dtype[Any]]:
    """Make the result of all blocks, of shape (*sample dims,) or (*sample dims, width); and its type."""
    given, fill = _fillable(dtype) if grid.masks else (dtype, None)
    maker = _Maker(fitted, method, grid.layout.with_columns(columns), given, fill, width)
    return grid.mapped(maker, given, width, method), given


def _fillable(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], Any]:
    """Choose the type and the value of a result that may have cells without data."""
    if dtype.kind in "biu":
        return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64), np.nan
    if dtype.kind in "US":
        return dtype, dtype.type()
    return dtype, np.nan if dtype.kind in "fc" else None


def _sample_coords(X: Any, dims: Iterable[Any]) -> dict[Any, Any]:
    """Give the coordinates that lie on some dims, also those on none, such as a grid mapping."""
    present = set(dims)
    return {name: coord for name, coord in X.coords.items() if set(coord.dims) <= present}


def _ordered(X: Any, grid: Grid) -> list[Any]:
    """List the sample dims in their order in X."""
    return [dim for dim in X.dims if dim in grid.sample_dims]


def _answer(
    made: Any,
    given: np.dtype[Any],
    dtype: np.dtype[Any],
    fitted: Estimator,
    X: Any,
    grid: Grid,
    method: str,
) -> xr.DataArray:
    """Give what a model says of each cell, in the place of the cell."""
    coords = _sample_coords(X, grid.sample_dims)
    classes = np.asarray(getattr(fitted, "classes_", ()))
    name = "prediction" if method == "predict" else method
    last: tuple[Any, ...] = ()
    if made.ndim > len(grid.sample_dims):
        per_class = method != "predict" and classes.ndim == 1 and len(classes) == made.shape[-1]
        last = ("class" if per_class else "component" if hasattr(fitted, "means_") else "output",)
        _check_free(X, grid, last[0])
        coords[last[0]] = classes if per_class else np.arange(made.shape[-1])
    result = xr.DataArray(made, dims=(*grid.sample_dims, *last), coords=coords, name=name)
    result = result.transpose(*_ordered(X, grid), *last)
    result.attrs = {"long_name": f"{name} of {type(final_estimator(fitted)).__name__}", **_mapping(X)}
    if method == "predict":
        result.attrs |= _flags(fitted, classes)
        if dtype.kind in "iu" and given.kind == "f":
            # written to a file they are integers again, with a fill value for cells without data
            result.encoding = {"dtype": dtype.newbyteorder("=").name, "_FillValue": _free_value(dtype)}
    return result


def _free_value(dtype: np.dtype[Any]) -> int:
    limits = np.iinfo(dtype)
    return int(limits.min if dtype.kind == "i" else limits.max)


def _mapping(X: Any) -> dict[str, Any]:
    """Give the name of the grid mapping of X, as CF writes it, if its coordinate is there."""
    arrays = [X] if isinstance(X, xr.DataArray) else list(X.data_vars.values())
    names = {array.attrs.get("grid_mapping", array.encoding.get("grid_mapping")) for array in arrays}
    found = [name for name in names if name is not None and name in X.coords]
    return {"grid_mapping": found[0]} if found else {}


def _flags(fitted: Estimator, classes: np.ndarray) -> dict[str, Any]:
    """Name the values of a map of classes or clusters, as CF does."""
    last = final_estimator(fitted)
    if classes.ndim == 1 and len(classes) and classes.dtype.kind in "iu":
        values = classes
    elif hasattr(last, "cluster_centers_"):
        values = np.arange(len(last.cluster_centers_), dtype=np.int32)
    else:
        return {}
    word = "class" if classes.size else "cluster"
    return {"flag_values": values, "flag_meanings": " ".join(f"{word}_{value}" for value in values)}


def _check_free(X: Any, grid: Grid, dim: str) -> None:
    if dim in grid.sample_dims or dim in _sample_coords(X, grid.sample_dims):
        raise InputError(
            f"The result has a new dim {dim!r}, but X has one of this name. Rename it: X.rename({{{dim!r}: ...}})."
        )


def _named(grid: Grid, columns: Sequence[int] | None) -> list[str]:
    names = list(grid.row_nbytes)
    return names if columns is None else [names[j] for j in columns]


def _places_of(fitted: Estimator, width: int, names_in: Sequence[str]) -> list[int] | None:
    """Tell which of the features each column of a result is; None if they are others."""
    try:
        names = [str(name) for name in fitted.get_feature_names_out()]
    except (AttributeError, ValueError):
        # a function that gives as many columns as it takes is one of values
        same = isinstance(final_estimator(fitted), FunctionTransformer) and width == len(names_in)
        return list(range(width)) if same else None
    return _found(names, names_in) if len(names) == width else None


def _found(names: Sequence[str], among: Sequence[str]) -> list[int] | None:
    place = {name: j for j, name in enumerate(among)}
    return [place[name] for name in names] if all(name in place for name in names) else None


def _kept_features(
    made: Any, places: Sequence[int], X: Any, grid: Grid, columns: Sequence[int] | None
) -> xr.DataArray | xr.Dataset | None:
    """Give features that are those of X the same dims and names; None if some parts of a variable are gone."""
    whole = [places[j] if columns is None else columns[places[j]] for j in range(len(places))]
    if isinstance(X, xr.DataArray):
        if whole == list(range(grid.n_columns)):
            return _split(made, X, grid, X)
        rest = [dim for dim in X.dims if dim not in grid.sample_dims]
        return _split(made, X, grid, X.isel({rest[0]: whole})) if len(rest) == 1 else None
    at = {j: k for k, j in enumerate(whole)}
    order: list[int] = []
    chosen, start = [], 0
    for v, name in zip(grid.X, X.data_vars, strict=True):
        own = [at[j] for j in range(start, start + v.width) if j in at]
        start += v.width
        if len(own) not in (0, v.width):
            return None
        order += own
        chosen += [name] if own else []
    made = made if order == list(range(len(order))) else made[..., order]
    return _split(made, X, grid, X[chosen])


def _split(made: Any, X: Any, grid: Grid, like: Any) -> xr.DataArray | xr.Dataset:
    """Give columns the features of a template, with its dims, coordinates and attributes; samples are those of X."""
    samples = grid.sample_dims
    coords = {
        **{name: c for name, c in like.coords.items() if not set(c.dims) & set(samples)},
        **_sample_coords(X, samples),
    }
    arrays = {None: like} if isinstance(like, xr.DataArray) else dict(like.data_vars)
    found, start = {}, 0
    for name, array in arrays.items():
        rest = [dim for dim in array.dims if dim not in samples]
        sizes = tuple(array.sizes[dim] for dim in rest)
        stop = start + math.prod(sizes)
        part = _with_features(made[..., start:stop], sizes)
        chunks = dict(array.chunksizes)
        if isinstance(part, da.Array) and any(len(chunks.get(dim, ())) > 1 for dim in rest):
            part = part.rechunk(
                {len(samples) + i: chunks[dim] for i, dim in enumerate(rest) if len(chunks[dim]) > 1}
            )
        made_of = xr.DataArray(part, dims=(*samples, *rest), attrs=array.attrs)
        made_of.name = array.name  # without a name it would be called after its tasks
        order = [dim for dim in array.dims if dim in made_of.dims]
        ahead = [dim for dim in X.dims if dim in samples and dim not in order]
        found[name] = made_of.transpose(*ahead, *order)
        start = stop
    if isinstance(like, xr.DataArray):
        fits = {k: c for k, c in coords.items() if set(c.dims) <= set(found[None].dims)}
        return found[None].assign_coords(fits)
    return xr.Dataset(found, attrs=like.attrs).assign_coords(coords)


def _with_features(made: Any, sizes: tuple[int, ...]) -> Any:
    """Write the last axis as as many axes as there are features."""
    if not isinstance(made, da.Array):
        return made.reshape((*made.shape[:-1], *sizes))
    n = made.ndim - 1
    chunks = (*made.chunks[:-1], *((size,) for size in sizes))
    if not sizes:
        return made[..., 0]
    return da.map_blocks(
        _reshaped,
        made,
        sizes,
        dtype=made.dtype,
        chunks=chunks,
        drop_axis=n,
        new_axis=list(range(n, n + len(sizes))),
        meta=np.empty((0,) * len(chunks), dtype=made.dtype),
    )


def _reshaped(block: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    return block.reshape((*block.shape[:-1], *sizes))


def _dim_of(fitted: Estimator) -> str:
    last = final_estimator(fitted)
    return next((dim for attribute, dim in _DIMS if hasattr(last, attribute)), "feature")


def _on_new_dim(made: Any, X: Any, grid: Grid, dim: str, names: Sequence[str], method: str) -> xr.DataArray:
    _check_free(X, grid, dim)
    coords = {**_sample_coords(X, grid.sample_dims), dim: list(names)}
    result = xr.DataArray(made, dims=(*grid.sample_dims, dim), coords=coords, name=method, attrs=_mapping(X))
    return result.transpose(*_ordered(X, grid), dim)


def inverse_transform(
    fitted: Estimator, X: Any, like: Any, *, sample_dims: Any, missing: Any = "all"
) -> xr.DataArray | xr.Dataset:
    """Take what a transformer gave back to the features that it was given, lazily.

    Parameters
    ----------
    fitted : estimator
        A fitted scikit-learn transformer or pipeline, with `inverse_transform`.
    X : xarray.DataArray or Dataset
        As `dpipe.transform` gave it: sample dims, and the new dim or the features.
    like : xarray.DataArray or Dataset
        What was transformed: its features, names, order of dims and attributes are given back. Nothing of it is read.
    sample_dims : str or sequence of str
        As for the transform.
    missing : {"all", "any", "keep"}, default "all"
        Samples without data stay without.

    Returns
    -------
    xarray.DataArray or Dataset
        Lazy where `X` is, in its chunks along the samples.

    Raises
    ------
    InputError
        If the estimator is not fitted or has no inverse, or `like` has other features.

    Examples
    --------
    >>> from sklearn.decomposition import PCA
    >>> from dpipe.deploy.apply import transform
    >>> fields = xr.DataArray(np.eye(3), dims=("time", "cell"), coords={"time": [1, 2, 3]}, attrs={"units": "K"})
    >>> pca = PCA(2).fit(fields.values)
    >>> series = transform(pca, fields, sample_dims="time")
    >>> series.dims, inverse_transform(pca, series, fields, sample_dims="time").round(6).equals(fields)
    (('time', 'component'), True)
    """
    if not isinstance(X, xr.DataArray | xr.Dataset) or not isinstance(like, xr.DataArray | xr.Dataset):
        raise InputError(
            f"inverse_transform takes xarray objects, but X is a {type(X).__name__} and like a {type(like).__name__}. "
            "For arrays call the estimator's own, as by X.map_blocks(fitted.inverse_transform)."
        )
    name = type(fitted).__name__
    if not hasattr(fitted, "inverse_transform"):
        raise InputError(f"This {name} has no inverse_transform: what it drops cannot be given back.")
    grid = open_grid(X, None, None, sample_dims, missing)
    like = needed_variables(like, input_names(fitted))
    names = feature_names(like, grid.sample_dims)
    expected = input_names(fitted)
    order = None if expected is None else _found(names, expected)
    if len(names) != getattr(fitted, "n_features_in_", len(names)) or (
        isinstance(like, xr.Dataset) and expected is not None and order is None
    ):
        raise InputError(
            f"like has {len(names):,} features, {', '.join(names[:5])}{', ...' * (len(names) > 5)}, but this {name} "
            f"was fitted on {getattr(fitted, 'n_features_in_', '?')}. Pass what was transformed."
        )
    try:
        tried = _answers(fitted, np.zeros((1, grid.n_columns), dtype=grid.dtype), "inverse_transform")
    except (ValueError, TypeError, DpipeError) as err:
        raise InputError(
            f"X has {grid.n_columns:,} features, which this {name} cannot take back: {err} Pass what its "
            "transform gave."
        ) from err
    made, _ = _made(fitted, grid, "inverse_transform", tried.dtype, tried.shape[1], None)
    never = _never_there(fitted)
    if never is not None:
        made = (da if isinstance(made, da.Array) else np).where(never, np.asarray(np.nan, made.dtype), made)
    if order is not None and order != list(range(len(order))):
        made = made[..., order]
    return _split(made, X, grid, like)


def _never_there(fitted: Estimator) -> np.ndarray | None:
    """Mark the features that a first step has left out as no sample had them: zero is not what they were."""
    first = fitted.steps[0][1] if isinstance(fitted, Pipeline) else fitted
    variances = getattr(first, "variances_", None)
    return np.isnan(variances) if variances is not None and np.isnan(variances).any() else None


def patterns(
    fitted: Estimator, like: Any, *, sample_dims: Any, attribute: str | None = None
) -> xr.DataArray | xr.Dataset:
    """Give what an estimator has learned of each feature on the dims of the features: EOFs, centres, coefficients.

    Parameters
    ----------
    fitted : estimator
        A fitted scikit-learn estimator, or a pipeline of which it is the last step: its features are those of the
        data, or some of them.
    like : xarray.DataArray or Dataset
        The data that it was fitted on, or others of the same features; nothing of it is read.
    sample_dims : str or sequence of str
        As for the fit.
    attribute : str, optional
        Of the estimator, of shape (n_features,) or (n, n_features); default the first that it has of
        ``components_``, ``cluster_centers_``, ``means_`` and ``coef_``.

    Returns
    -------
    xarray.DataArray or Dataset
        In memory. Its first dim numbers the patterns, and the shares of explained variance stand beside it;
        features that a step of the pipeline has dropped are NaN.

    Raises
    ------
    InputError
        If the estimator has no such attribute, or its features are not those of the data.

    Examples
    --------
    >>> from sklearn.decomposition import PCA
    >>> fields = xr.DataArray(np.eye(4).reshape(4, 2, 2), dims=("time", "lat", "lon"), coords={"lat": [10, 20]})
    >>> eofs = patterns(PCA(2).fit(fields.values.reshape(4, 4)), fields, sample_dims="time")
    >>> eofs.dims, eofs.shape, eofs.lat.values.tolist()
    (('component', 'lat', 'lon'), (2, 2, 2), [10, 20])
    """
    if not isinstance(like, xr.DataArray | xr.Dataset):
        raise InputError(f"like is a {type(like).__name__}; it must be the xarray object that was fitted on.")
    last = final_estimator(fitted)
    name = attribute or next((found for found in _PATTERNS if hasattr(last, found)), None)
    if name is None or not hasattr(last, name):
        raise InputError(
            f"{type(last).__name__} has no {name or ' or '.join(_PATTERNS)}. Fit it first, or name the attribute: "
            "attribute=..."
        )
    like = needed_variables(like, input_names(fitted))
    dims = (sample_dims,) if isinstance(sample_dims, str) else tuple(sample_dims)
    names = feature_names(like, dims)
    learned = np.asarray(getattr(last, name))
    values = learned if learned.ndim == 2 else learned[None]
    entered = _entering(fitted, names)
    places = _found(entered, names)
    if places is None or len(places) != values.shape[1]:
        raise InputError(
            f"{name} of {type(last).__name__} has {values.shape[1]:,} columns, which are not the {len(names):,} "
            f"features of like: {', '.join(names[:3])}, ... A step before it makes others of them."
        )
    spread = np.full((len(values), len(names)), np.nan, dtype=np.result_type(values.dtype, np.float32))
    spread[:, places] = values
    return _drawn(spread, like, dims, last, fitted, name, squeeze=learned.ndim == 1)


def _entering(fitted: Estimator, names: Sequence[str]) -> list[str]:
    """Name the features that enter the last step of a pipeline."""
    expected = input_names(fitted)
    first = list(names) if expected is None else list(expected)
    if not isinstance(fitted, Pipeline) or len(fitted.steps) == 1:
        return first
    try:
        before = [str(name) for name in fitted[:-1].get_feature_names_out()]
    except (AttributeError, ValueError) as err:
        raise InputError(
            f"The steps before {type(fitted.steps[-1][1]).__name__} do not tell which features they give: {err}"
        ) from err
    if expected is None:  # they are numbered where the data has no names
        before = [names[int(name[1:])] if name[:1] == "x" and name[1:].isdigit() else name for name in before]
    return before


def _drawn(
    values: np.ndarray,
    like: Any,
    dims: tuple[Any, ...],
    last: Estimator,
    fitted: Estimator,
    attribute: str,
    *,
    squeeze: bool,
) -> xr.DataArray | xr.Dataset:
    n = len(values)
    dim = {"components_": "component", "cluster_centers_": "cluster", "means_": "component"}.get(
        attribute, "class" if len(getattr(last, "classes_", ())) == n else "output"
    )
    labels: Any = np.arange(n)
    if attribute == "components_":
        labels = column_names(fitted, "transform", n)
    elif dim == "class":
        labels = last.classes_
    coords: dict[Any, Any] = {dim: labels}
    for share in _SHARES:
        found = np.asarray(getattr(last, share, ()))
        if attribute == "components_" and found.shape == (n,):
            coords[share.rstrip("_")] = (dim, found)
    coords |= {name: c for name, c in like.coords.items() if not set(c.dims) & set(dims)}
    arrays = {None: like} if isinstance(like, xr.DataArray) else dict(like.data_vars)
    drawn, start = {}, 0
    for name, array in arrays.items():
        rest = [d for d in array.dims if d not in dims]
        sizes = tuple(array.sizes[d] for d in rest)
        stop = start + math.prod(sizes)
        own = {k: c for k, c in coords.items() if set(getattr(c, "dims", (dim,))) <= {dim, *rest}}
        part = xr.DataArray(
            values[:, start:stop].reshape(n, *sizes),
            dims=(dim, *rest),
            coords=own,
            name=attribute.rstrip("_"),
        )
        drawn[name] = part.isel({dim: 0}, drop=True) if squeeze else part
        start = stop
    return drawn[None] if isinstance(like, xr.DataArray) else xr.Dataset(drawn)
