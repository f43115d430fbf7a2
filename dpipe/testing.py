"""dpipe's own conformance suite, for estimators of your own: blocks of every kind against memory."""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import BaseEstimator, clone

from dpipe.blocks.matrix import to_matrix
from dpipe.blocks.table import plain_strings
from dpipe.collect.parquet import read_parquet
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families.expression import apply
from dpipe.families.registry import Estimator, Fitted, registered, way_of
from dpipe.train.fit import fit

#: Random cuts into blocks that are tried beside the uneven one.
_N_CUTS = 3


@dataclass(frozen=True)
class Checked:
    """What a check came to.

    Attributes
    ----------
    estimator : str
    cases : tuple of str
        Kinds of input with their blocks, all of which gave the same.
    refused : tuple of str
        Kinds that the estimator itself does not take in memory, such as sparse matrices.
    worst : float
        The largest deviation of double precision, relative to the largest entry.
    worst_of : str
        The attribute that it was found in.
    """

    estimator: str
    cases: tuple[str, ...]
    refused: tuple[str, ...]
    worst: float
    worst_of: str

    def __str__(self) -> str:
        """Say it in a line."""
        refused = f"; not taken in memory: {', '.join(self.refused)}" if self.refused else ""
        where = f", of {self.worst_of}" if self.worst_of else ""
        return (
            f"{self.estimator}: the same as in memory in {len(self.cases)} cases; largest deviation "
            f"{self.worst:.2g}{where}{refused}"
        )


def check_estimator(
    estimator: Estimator,
    X: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    rtol: float = 1e-9,
    random_state: int = 0,
) -> Checked:
    """Fit an estimator from blocks of every kind, and compare it with its own `fit` in memory.

    Parameters
    ----------
    estimator : scikit-learn estimator
        Unfitted, and registered: see `dpipe.register`.
    X : pandas.DataFrame, numpy.ndarray or CSR matrix
        In memory, of shape (n_rows, n_features); at least 8 rows.
    y, sample_weight : Series, DataFrame or ndarray, optional
        Of as many rows. With weights everything is tried with and without them.
    rtol : float, default 1e-9
        Relative deviation that is allowed in floats.
    random_state : int, default 0
        Of the random cuts into blocks.

    Returns
    -------
    Checked

    Raises
    ------
    AssertionError
        If a fit from blocks fails or differs: it names the attribute, the kind of input and the blocks.
    UnsupportedEstimatorError
        If it is not registered.
    InputError
        If `X` is not of these kinds, or too short, or the estimator cannot be fitted on it in memory either.

    Examples
    --------
    >>> from sklearn.preprocessing import MaxAbsScaler
    >>> rows = pd.DataFrame({"a": np.arange(20.0), "b": np.arange(20) % 3})
    >>> print(check_estimator(MaxAbsScaler(), rows))
    MaxAbsScaler: the same as in memory in 11 cases; largest deviation 0
    """
    _check_input(X, y, sample_weight)
    seen, passed, refused = Seen(), [], []
    first_refusal: Exception | None = None
    with tempfile.TemporaryDirectory() as folder, dask.config.set(scheduler="synchronous"):
        for kind in _kinds(X, random_state, Path(folder)):
            for weighted in (False, True) if sample_weight is not None else (False,):
                rows = [part for part in (y, sample_weight if weighted else None)]
                name = f"{kind.name}, weighted" if weighted else kind.name
                try:
                    expected = _in_memory(estimator, kind.memory, *rows)
                except (ValueError, TypeError) as err:
                    first_refusal = first_refusal or err
                    refused.append(name)
                    continue
                _compare(estimator, kind, expected, *rows, rtol=rtol, seen=seen, name=name)
                passed.append(name)
    if not passed:
        raise InputError(
            f"{type(estimator).__name__} cannot be fitted on these rows in memory either: {first_refusal}"
        ) from first_refusal
    return Checked(type(estimator).__name__, tuple(passed), tuple(refused), seen.worst, seen.worst_of)


def _check_input(X: Any, y: Any, sample_weight: Any) -> None:
    if not isinstance(X, pd.DataFrame | np.ndarray) and not sp.issparse(X):
        raise InputError(
            f"check_estimator takes X in memory, as a frame, an array or a CSR matrix; got a {type(X).__name__}."
        )
    if X.ndim != 2 or X.shape[0] < 8:
        raise InputError(f"check_estimator needs X of two dimensions and at least 8 rows, got {X.shape}.")
    for name, values in (("y", y), ("sample_weight", sample_weight)):
        if values is not None and len(values) != X.shape[0]:
            raise InputError(f"X has {X.shape[0]} rows, but {name} has {len(values)}.")


@dataclass(frozen=True)
class _Kind:
    """The same rows as one kind of input."""

    name: str
    memory: Any
    """As scikit-learn takes them."""
    opened: Callable[[Any], Any]
    """Gives values in memory, X or what stands beside it, as this kind."""
    X: Any


def _kinds(X: Any, random_state: int, folder: Path) -> Iterator[_Kind]:
    n = X.shape[0]
    rng = np.random.default_rng(random_state)
    third = n // 3
    cuts: list[tuple[int, ...]] = [(0, third, 1, 0, n - third - 1, 0)]
    for _ in range(_N_CUTS):
        ends = np.sort(rng.integers(0, n + 1, size=4))
        cuts.append(tuple(int(size) for size in np.diff([0, *ends, n])))
    if isinstance(X, pd.DataFrame):
        yield from _frame_kinds(X, cuts, folder)
        numeric = all(pd.api.types.is_numeric_dtype(dtype) for dtype in X.dtypes)
        if not numeric:
            return
        X = X.to_numpy()
    if sp.issparse(X):
        rows = sp.csr_matrix(X)
        yield _Kind("CSR in memory", rows, np.asarray, rows)
        for sizes in cuts[:2]:
            places: Any = array_blocks(np.arange(n), sizes)
            blocks = places.map_blocks(
                _rows_of, rows, dtype=rows.dtype, new_axis=1, chunks=(sizes, (rows.shape[1],))
            )
            yield _Kind(f"CSR in blocks of {sizes}", rows, partial(array_blocks, sizes=sizes), blocks)
        return
    yield from _array_kinds(X, cuts)


def _rows_of(places: np.ndarray, rows: Any) -> Any:
    return rows[places]


def _frame_kinds(X: pd.DataFrame, cuts: Sequence[tuple[int, ...]], folder: Path) -> Iterator[_Kind]:
    yield _Kind("pandas in memory", X, _as_series, X)
    for sizes in cuts:
        lazy = in_blocks(X, sizes)
        memory = plain_strings(lazy.compute())
        yield _Kind(f"Dask frame in blocks of {sizes}", memory, partial(_series_blocks, sizes), lazy)
    sizes = cuts[0]
    starts = np.cumsum(sizes) - sizes
    for i, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        X.iloc[start : start + size].to_parquet(folder / f"{i}.parquet", index=False)
    lazy = read_parquet(folder)
    memory = plain_strings(lazy.compute())
    yield _Kind(f"Parquet in blocks of {sizes}", memory, partial(_series_blocks, sizes), lazy)


def _array_kinds(X: np.ndarray, cuts: Sequence[tuple[int, ...]]) -> Iterator[_Kind]:
    yield _Kind("array in memory", X, np.asarray, X)
    for sizes in cuts[:2]:
        yield _Kind(
            f"Dask array in blocks of {sizes}", X, partial(array_blocks, sizes=sizes), array_blocks(X, sizes)
        )
    sizes = cuts[0]
    unknown = in_blocks(pd.DataFrame(X), sizes).to_dask_array()
    yield _Kind(
        f"Dask array in blocks of unknown size {sizes}", X, partial(array_blocks, sizes=sizes), unknown
    )
    dense = np.nan_to_num(X.astype(float))
    lazy = csr_blocks(dense, sizes)
    rows = sp.csr_matrix(dense)
    yield _Kind(f"CSR in blocks of {sizes}", rows, partial(array_blocks, sizes=sizes), lazy)


def _as_series(values: Any) -> Any:
    if isinstance(values, pd.Series | pd.DataFrame):
        return values
    values = np.asarray(values)
    return pd.Series(values, name="y") if values.ndim == 1 else pd.DataFrame(values).add_prefix("y")


def _series_blocks(sizes: Sequence[int], values: Any) -> Any:
    return in_blocks(_as_series(values), sizes)


def _in_memory(estimator: Estimator, X: Any, y: Any, w: Any) -> Estimator:
    as_kind = _as_series if isinstance(X, pd.DataFrame) else np.asarray
    weights = {} if w is None else {"sample_weight": np.asarray(w)}
    return clone(estimator).fit(X, *([] if y is None else [as_kind(y)]), **weights)


def _compare(
    estimator: Estimator,
    kind: _Kind,
    expected: Estimator,
    y: Any,
    w: Any,
    *,
    rtol: float,
    seen: "Seen",
    name: str,
) -> None:
    label = f"{type(estimator).__name__}, {name}"
    before = repr(estimator)
    try:
        beside = [None if part is None else kind.opened(part) for part in (y, w)]
        result = fit(estimator, kind.X, *beside)
        assert repr(estimator) == before, "fit has changed the estimator that it was given"
        assert_same(result, expected, rtol, type(estimator).__name__, seen=seen)
        _compare_outputs(result, expected, kind.memory, rtol)
    except UnsupportedEstimatorError:
        raise
    except AssertionError as err:
        raise AssertionError(f"{label}: {err}") from err
    except Exception as err:
        raise AssertionError(f"{label}: {type(err).__name__}: {err}") from err


def _compare_outputs(result: Estimator, expected: Estimator, X: Any, rtol: float) -> None:
    """Compare what both give for the rows, and the names of it."""
    for method in ("predict", "predict_proba", "decision_function"):
        if hasattr(expected, method):
            wanted = getattr(expected, method)(X)
            assert_same(getattr(result, method)(X), wanted, max(rtol, 1e-7), method)
    if not hasattr(expected, "transform"):
        return
    if hasattr(expected, "get_feature_names_out"):
        assert_same(result.get_feature_names_out(), expected.get_feature_names_out(), rtol, "feature names")
    # a pass applies estimators by kernels of their own; what holds others is taken apart
    known = type(result) in registered()
    made = to_matrix(apply(Fitted(result, way_of(result)), X)) if known else result.transform(X)
    wanted = expected.transform(X)
    made, wanted = (value.toarray() if sp.issparse(value) else np.asarray(value) for value in (made, wanted))
    # what is far from zero loses digits when its mean is taken off, in memory as well
    assert_same_array(made, wanted, rtol, "transform", atol=rtol)


def in_blocks(frame: Any, sizes: Sequence[int]) -> Any:
    """Make a Dask frame whose partitions have the given numbers of rows, with unknown divisions."""
    ends = np.cumsum(sizes)
    assert ends[-1] == len(frame)
    parts = [frame.iloc[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    return dd.from_map(partial(_take, parts), range(len(parts)), meta=frame.iloc[:0])


def _take(parts: Sequence[Any], i: int) -> Any:
    return parts[i]


def array_blocks(values: np.ndarray, sizes: Sequence[int]) -> da.Array:
    """Make a Dask array in row blocks of the given sizes."""
    return da.from_array(values, chunks=(tuple(sizes), *((n,) for n in values.shape[1:])))


def csr_blocks(values: np.ndarray, sizes: Sequence[int]) -> da.Array:
    """Make a Dask array whose blocks are CSR matrices."""
    dense: Any = array_blocks(values, sizes)
    return dense.map_blocks(sp.csr_matrix, dtype=values.dtype)


@dataclass
class Seen:
    """What the comparisons of a session came to; printed after its tests."""

    estimators: set[type] = field(default_factory=set)
    cases: int = 0
    worst: float = 0.0
    worst_of: str = ""

    def note(self, ours: Any, theirs: Any, path: str) -> None:
        """Keep the largest deviation of double precision, relative to the largest entry."""
        scale = np.nanmax(np.abs(theirs), initial=0.0) if theirs.size else 0.0
        if theirs.dtype == np.float64 and np.isfinite(scale) and scale > 0:
            deviation = float(np.nanmax(np.abs(ours - theirs), initial=0.0) / scale)
            if deviation > self.worst:
                self.worst, self.worst_of = deviation, path


def assert_same(
    ours: Any, theirs: Any, rtol: float = 1e-9, path: str = "result", *, seen: Seen | None = None
) -> None:
    """Compare two fitted estimators, or two attributes of them, with everything they hold."""
    assert type(ours) is type(theirs), f"{path}: {type(ours)} instead of {type(theirs)}"
    if isinstance(theirs, BaseEstimator):
        missing, added = set(vars(theirs)) - set(vars(ours)), set(vars(ours)) - set(vars(theirs))
        assert not missing, f"{path} lacks {sorted(missing)}"
        assert not added, f"{path} also has {sorted(added)}"
        for name, value in vars(theirs).items():
            assert_same(vars(ours)[name], value, rtol, f"{path}.{name}", seen=seen)
    elif isinstance(theirs, dict):
        assert list(map(repr, ours)) == list(map(repr, theirs)), path
        for (key, mine), value in zip(ours.items(), theirs.values(), strict=True):
            assert_same(mine, value, rtol, f"{path}[{key!r}]", seen=seen)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), f"{path}: {ours} instead of {theirs}"
        for i, (mine, value) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, value, rtol, f"{path}[{i}]", seen=seen)
    elif isinstance(theirs, np.ndarray):
        assert_same_array(ours, theirs, rtol, path, seen=seen)
    elif isinstance(theirs, pd.DataFrame):
        pd.testing.assert_frame_equal(ours, theirs, rtol=rtol)
    elif sp.issparse(theirs):
        assert ours.format == theirs.format, path
        assert_same_array(ours.toarray(), theirs.toarray(), rtol, path, seen=seen)
    elif isinstance(theirs, float | np.floating):
        assert math.isclose(ours, theirs, rel_tol=rtol, abs_tol=1e-300) or (
            ours != ours and theirs != theirs
        ), f"{path}: {ours!r} instead of {theirs!r}"
    elif isinstance(theirs, pd.api.extensions.ExtensionDtype | np.dtype):
        assert ours == theirs, path
    elif callable(theirs) or isinstance(theirs, int | str | slice | type(None) | np.generic):
        assert _callable_key(ours) == _callable_key(theirs), f"{path}: {ours!r} instead of {theirs!r}"
    else:
        state, expected = (getattr(v, "__dict__", None) or v.__reduce__()[1:] for v in (ours, theirs))
        assert_same(state, expected, rtol, path, seen=seen)


def _callable_key(value: Any) -> Any:
    """Callables that are copied compare by what they hold."""
    state = getattr(value, "__dict__", None)
    if callable(value) and state and not isinstance(value, type):
        return type(value), {name: repr(_callable_key(held)) for name, held in state.items()}
    return type(value) if type(value).__module__.startswith("sklearn._loss") else value


def assert_same_array(
    ours: Any,
    theirs: Any,
    rtol: float = 1e-9,
    path: str = "result",
    atol: float = 0.0,
    *,
    seen: Seen | None = None,
) -> None:
    """Compare dtype, shape and values; NaN equals NaN, None equals None only."""
    assert ours.dtype == theirs.dtype, f"{path}: dtype {ours.dtype} instead of {theirs.dtype}"
    assert ours.shape == theirs.shape, f"{path}: shape {ours.shape} instead of {theirs.shape}"
    if theirs.dtype.kind == "O":
        for i, (mine, value) in enumerate(zip(ours.ravel(), theirs.ravel(), strict=True)):
            assert type(mine) is type(value), f"{path}[{i}]: {mine!r} instead of {value!r}"
            if isinstance(value, np.ndarray):
                assert_same_array(mine, value, rtol, f"{path}[{i}]", atol, seen=seen)
                continue
            same = mine == value or (mine != mine and value != value)
            if isinstance(value, float):
                same = same or math.isclose(mine, value, rel_tol=rtol, abs_tol=atol)
            assert same, f"{path}[{i}]: {mine!r} instead of {value!r}"
    elif theirs.dtype.kind in "fc":
        scale = np.nanmax(np.abs(theirs), initial=0.0) if theirs.size else 0.0
        rounding = (
            0.0
            if rtol == 0
            else float(np.finfo(theirs.dtype).eps) * 4 * (scale if np.isfinite(scale) else 0.0)
        )
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=max(rounding, atol), err_msg=path)
        if seen is not None:
            seen.note(ours, theirs, path)
    else:
        np.testing.assert_array_equal(ours, theirs, err_msg=path)
