"""Any input as a list of blocks: what a pass reads, one fused task a block.

A `Source` is made once from X, y and sample_weight of any accepted kind. It knows names, types and
sizes without computing, and gives for each block a `Load`, whatever graph the collections had.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from dask.dataframe.dask_expr.io.io import FromMapProjectable

from dpipe.blocks.held_out import HeldOut
from dpipe.blocks.rows import Rows, RowsAt, as_target, checked
from dpipe.blocks.table import n_rows, plain_strings
from dpipe.blocks.table import nbytes as block_nbytes
from dpipe.collect.block_list import BlockList
from dpipe.collect.grids import Grid
from dpipe.collect.loads import (
    Graph,
    HeldLoad,
    Load,
    PartLoad,
    ReadLoad,
    WholeLoad,
    array_loads,
    as_block,
    as_objects,
    frame_loads,
)
from dpipe.collect.parquet import BlockSpec, ParquetReader, row_nbytes
from dpipe.errors import BlockMismatchError, InputError


@dataclass(frozen=True)
class Source:
    """X, y and sample_weight as blocks."""

    X: Any
    y: Any
    w: Any
    frame: pd.DataFrame | None
    """An empty frame with X's columns and types; None if X is an array."""
    n_columns: int
    dtype: np.dtype[Any]
    rows: tuple[int | None, ...]
    """Rows of each block; None where not known before reading."""
    row_nbytes: dict[str, int] = field(default_factory=dict)
    """Decoded bytes of a row, a column each."""
    likely_block_rows: int | None = None
    """Rows of the largest block of the files behind a derived frame, whose own blocks are not known."""
    hidden_row_nbytes: int = 0
    """Decoded bytes of a row of those files: functions in between may read all of it."""
    may_skip: bool = False
    """Whether blocks that cannot be read are left out, as the caller asked."""
    one_dimensional: bool = False
    """Whether X was given as a series, a list or an array of one dimension; its blocks have one column."""
    decoded: str = "pandas"
    """What a block is decoded to: "arrow", "pandas", "numpy" or "memory"."""
    parts: tuple[HeldOut, ...] = ()
    """Which rows of each block there are, where the others are held out; empty for all of them."""

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.rows)

    @property
    def n_rows(self) -> int | None:
        """Number of rows, if it is known without reading."""
        return None if any(n is None for n in self.rows) else sum(n for n in self.rows if n is not None)

    @property
    def places(self) -> tuple[RowsAt | None, ...]:
        """Where each block stands among all rows; None if a length is not known."""
        total = self.n_rows
        if total is None:
            return (None,) * self.n_blocks
        ends = accumulate((n or 0 for n in self.rows), initial=0)
        return tuple(RowsAt(first, total) for first, _ in zip(ends, self.rows, strict=False))

    @property
    def whole(self) -> bool:
        """Whether a block can only be read with all of its columns."""
        return self.frame is None or (isinstance(self.X, Grid) and self.X.masks)

    @property
    def sparse(self) -> bool:
        """Whether X is known to hold sparse matrices."""
        return bool(sp.issparse(getattr(self.X, "_meta", self.X)))

    @property
    def overhead(self) -> float:
        """How many times its decoded size a block takes while it is read."""
        # Arrow decodes beside the compressed bytes; pandas holds a second copy while it is made
        return {"arrow": 2.0, "pandas": 3.0, "numpy": 2.0, "memory": 1.0}[self.decoded]

    @property
    def names(self) -> tuple[Any, ...]:
        """Columns of X."""
        if self.frame is not None:
            return tuple(self.frame.columns)
        return tuple(f"x{j}" for j in range(self.n_columns))

    def loads(self, columns: Sequence[int] | None, *, with_X: bool = True) -> tuple[Graph, Sequence[Load]]:
        """Give what loads each block, and the tasks that several blocks share.

        Parameters
        ----------
        columns : sequence of int, optional
            Positions of the columns of X to read; default all. Arrays are always read whole.
        with_X : bool, default True
            Whether X is needed, or y and the weights alone.
        """
        shared, loads = self._whole_loads(columns, with_X)
        if not self.parts:
            return shared, loads
        return shared, [PartLoad(load, part) for load, part in zip(loads, self.parts, strict=True)]

    def _whole_loads(self, columns: Sequence[int] | None, with_X: bool) -> tuple[Graph, Sequence[WholeLoad]]:
        if isinstance(self.X, Grid):
            return _grid_loads(self.X, columns, with_X)
        names = list(self.names) if columns is None else [self.names[j] for j in columns]
        if isinstance(self.X, dd.DataFrame):
            direct = _direct_loads(self.X, self.y, self.w, names if with_X else [])
            return ({}, direct) if direct is not None else frame_loads(self.X[names], self.y, self.w)
        if isinstance(self.X, da.Array):
            return array_loads(self.X, self.y, self.w)
        X = self.X if columns is None or self.frame is None else self.X[names]
        return {}, [HeldLoad(checked(Rows(as_block(X), as_target(self.y), as_target(self.w)), "X"))]


def held_out(source: Source, share: float, seed: int) -> tuple[Source, Source]:
    """Split a source by a draw in each of its blocks: the rows to learn from, and those that are held out."""

    def side(held: bool) -> Source:
        parts = tuple(HeldOut(share, seed, i, held) for i in range(source.n_blocks))
        rows = tuple(part.n_of(n) for part, n in zip(parts, source.rows, strict=True))
        return replace(source, parts=parts, rows=rows)

    return side(False), side(True)


def open_source(X: Any, y: Any = None, sample_weight: Any = None) -> Source:
    """Take X, y and sample_weight of any accepted kind, and check them by their metadata.

    Parameters
    ----------
    X : dask DataFrame or Array, pandas.DataFrame, numpy.ndarray or CSR matrix
        Of shape (n_samples, n_features); arrays in any chunks, with known or unknown row counts. What takes
        documents, records or labels is given one dimension: a series, an array, a list or a Dask bag. A `Grid`
        holds labelled arrays, with their target and weights.
    y, sample_weight : series, array, or str, optional
        Of the same blocks as X; a str is the name of a column of X, which is then taken out of X.

    Raises
    ------
    InputError
        If a kind is not accepted, or a named column does not exist.
    BlockMismatchError
        If blocks differ and metadata can tell.
    """
    if isinstance(X, Grid):
        return _open_grid(X)
    X, y = _column_of(X, y, "y")
    X, w = _column_of(X, sample_weight, "sample_weight")
    if isinstance(X, list | db.Bag) or getattr(X, "ndim", 2) == 1:
        source = _opened(_two_dimensional(X), y, w)
        # NumPy would take a list of texts for an array of texts, which takes far more memory
        texts = isinstance(X, list) and all(isinstance(value, str) for value in X)
        return replace(source, one_dimensional=True, dtype=np.dtype(str) if texts else source.dtype)
    return _opened(X, y, w)


def _opened(X: Any, y: Any, w: Any) -> Source:
    if isinstance(X, dd.DataFrame):
        return _open_frame(X, _as_frame_like(y, "y"), _as_frame_like(w, "sample_weight"))
    if isinstance(X, da.Array):
        return _open_array(X, _as_array_like(y), _as_array_like(w))
    if isinstance(X, pd.DataFrame | np.ndarray) or sp.issparse(X):
        return _open_memory(X, y, w)
    raise InputError(
        f"X is a {type(X).__module__}.{type(X).__name__}; it must be a Dask DataFrame or Array, a pandas "
        "DataFrame or a NumPy array. Read files with dpipe.read_parquet or dpipe.read_csv."
    )


def _open_grid(X: Grid) -> Source:
    if not X.is_lazy:
        held = X.held_rows()
        return replace(_grid_source(X), rows=(n_rows(held.X),), decoded="memory")
    return _grid_source(X)


def _grid_source(X: Grid) -> Source:
    largest = None if None in X.cells else max((n or 0 for n in X.cells), default=0)
    widths = X.row_nbytes
    return Source(X, X.y, X.w, X.frame, X.n_columns, X.dtype, X.rows, widths, largest, decoded="numpy")


def _grid_loads(X: Grid, columns: Sequence[int] | None, with_X: bool) -> tuple[Graph, Sequence[WholeLoad]]:
    if X.is_lazy:
        return X.loads(columns, with_X=with_X)
    layout, _ = X.reading(None)
    held = layout.with_columns(columns).rows([[v.data] for v in X.parts])
    return {}, [HeldLoad(Rows(held.X, held.y, held.w))]


def _two_dimensional(X: Any) -> Any:
    """Give a series, an array of one dimension, a list or a bag as one column."""
    if isinstance(X, dd.Series | pd.Series):
        return X.to_frame()
    if isinstance(X, db.Bag):
        held = X.map_partitions(as_objects)
        chunks = ((math.nan,) * X.npartitions,)
        X = da.Array(held.__dask_graph__(), held.name, chunks, dtype=object)
    if isinstance(X, list):
        numbers = all(isinstance(value, bool | int | float) for value in X)
        X = np.asarray(X) if numbers else as_objects(X)
    known = isinstance(X, np.ndarray | da.Array) and not math.isnan(X.shape[0])
    return X.reshape(-1, 1) if known else X[:, None] if isinstance(X, da.Array) else X


def _column_of(X: Any, name: Any, role: str) -> tuple[Any, Any]:
    if not isinstance(name, str):
        return X, name
    if not isinstance(X, dd.DataFrame | pd.DataFrame):
        raise InputError(f"{role}={name!r} names a column, but X is a {type(X).__name__} without names.")
    if name not in X.columns:
        raise InputError(f"{role}={name!r} is not a column of X. X has: {', '.join(map(repr, X.columns))}.")
    return X.drop(columns=[name]), X[name]


def _as_frame_like(values: Any, role: str) -> Any:
    """Y beside a frame: a Dask series or frame."""
    if values is None or isinstance(values, dd.Series | dd.DataFrame):
        return values
    if isinstance(values, da.Array):
        return dd.from_dask_array(values, columns=role if values.ndim == 1 else None)
    raise InputError(
        f"X is a Dask DataFrame, but {role} is a {type(values).__name__}. Give {role} as a Dask series or "
        "array of the same blocks, or as the name of a column of X."
    )


def _as_array_like(values: Any) -> Any:
    """Y beside an array: a Dask array."""
    if isinstance(values, dd.Series | dd.DataFrame):
        return values.to_dask_array()
    if values is None or isinstance(values, da.Array):
        return values
    raise InputError(
        f"X is a Dask Array, but y or sample_weight is a {type(values).__name__}. Give it as a Dask array of "
        "the same chunks along the rows."
    )


def _open_frame(X: dd.DataFrame, y: Any, w: Any) -> Source:
    for name, other in (("y", y), ("sample_weight", w)):
        if other is not None and other.npartitions != X.npartitions:
            raise BlockMismatchError(
                f"X has {X.npartitions} blocks, but {name} has {other.npartitions}. Take both from the same "
                f"frame, or give {name} as the name of a column of X."
            )
    frame = plain_strings(X._meta)
    if not frame.shape[1]:
        raise InputError("X has no columns. Choose at least one.")
    _check_names(frame)
    if w is not None and not pd.api.types.is_numeric_dtype(getattr(w, "dtype", np.float64)):
        raise InputError(f"sample_weight is of type {w.dtype}; it must hold numbers.")
    direct = _direct_loads(X, y, w, list(frame.columns))
    if direct is not None:
        schema = direct[0].reader.schema
        rows = tuple(load.block.n_rows for load in direct)
        widths = {name: row_nbytes(pa.schema([schema.field(name)])) for name in frame}
        skips = direct[0].reader.on_corrupt == "skip"
        return Source(
            X, y, w, frame, frame.shape[1], np.dtype("float64"), rows, widths, may_skip=skips, decoded="arrow"
        )
    widths = {name: _pandas_width(dtype) for name, dtype in frame.dtypes.items()}
    rows = (None,) * X.npartitions
    block_rows, hidden = _behind(X)
    return Source(
        X,
        y,
        w,
        frame,
        frame.shape[1],
        np.dtype("float64"),
        rows,
        widths,
        block_rows,
        hidden,
        decoded="pandas",
    )


def _check_names(frame: pd.DataFrame) -> None:
    doubled = frame.columns[frame.columns.duplicated()].unique().tolist()
    if doubled:
        raise InputError(f"X has several columns named {', '.join(map(repr, doubled))}. Rename them first.")


def _behind(X: dd.DataFrame) -> tuple[int | None, int]:
    """Look for the Parquet source behind a derived frame of as many blocks."""
    for found in X.expr.find_operations(FromMapProjectable):
        reader, blocks = found.operand("func"), found.operand("iterables")[0]
        if isinstance(reader, ParquetReader) and len(blocks) == X.npartitions:
            return max(block.n_rows for block in blocks), row_nbytes(reader.schema)
    return None, 0


def _pandas_width(dtype: Any) -> int:
    # an object or string column holds a pointer or an offset, and the text behind it
    return dtype.itemsize if isinstance(dtype, np.dtype) and dtype.kind != "O" else 32


def _open_array(X: da.Array, y: Any, w: Any) -> Source:
    if X.ndim != 2:
        raise InputError(f"X has {X.ndim} dimensions; it must have 2: rows and columns. Reshape it first.")
    if X.numblocks[1] > 1:
        X = X.rechunk({1: -1})
    if math.isnan(X.shape[1]):
        raise InputError("X has an unknown number of columns. Build it with a known one.")
    for name, other in (("y", y), ("sample_weight", w)):
        if other is None:
            continue
        known = not any(math.isnan(n) for n in (*X.chunks[0], *other.chunks[0]))
        if other.numblocks[0] != X.numblocks[0] or (known and other.chunks[0] != X.chunks[0]):
            raise BlockMismatchError(
                f"X has row chunks {_few(X.chunks[0])}, but {name} has {_few(other.chunks[0])}. "
                f"Use {name}.rechunk(X.chunks[0]), or build both from the same source."
            )
    rows = tuple(None if math.isnan(n) else int(n) for n in X.chunks[0])
    widths = {f"x{j}": X.dtype.itemsize for j in range(int(X.shape[1]))}
    return Source(X, y, w, None, int(X.shape[1]), X.dtype, rows, widths, decoded="numpy")


def _few(chunks: Sequence[Any]) -> str:
    return (
        f"{chunks!r}"
        if len(chunks) <= 6
        else f"({', '.join(map(str, chunks[:5]))}, ... {len(chunks)} chunks)"
    )


def _open_memory(X: Any, y: Any, w: Any) -> Source:
    if X.ndim != 2:
        raise InputError(f"X has {X.ndim} dimensions; it must have 2: rows and columns. Reshape it first.")
    if isinstance(X, pd.DataFrame):
        _check_names(X)
    elif sp.issparse(X):
        X = X.tocsr()
    for name, other in (("y", y), ("sample_weight", w)):
        if other is not None and isinstance(other, dd.DataFrame | dd.Series | da.Array):
            raise BlockMismatchError(
                f"X is in memory, but {name} is a Dask collection. Use dask.dataframe.from_pandas, or "
                f"{name}.compute()."
            )
        if other is not None and len(other) != X.shape[0]:
            raise BlockMismatchError(f"X has {X.shape[0]:,} rows, but {name} has {len(other):,}.")
    frame = plain_strings(X.iloc[:0]) if isinstance(X, pd.DataFrame) else None
    dtype = np.dtype("float64") if frame is not None else X.dtype
    share = block_nbytes(X) // max(X.shape[0] * X.shape[1], 1)
    names = list(X.columns) if frame is not None else [f"x{j}" for j in range(X.shape[1])]
    y, w = (np.asarray(v) if isinstance(v, list | tuple) else v for v in (y, w))
    return Source(
        X, y, w, frame, X.shape[1], dtype, (X.shape[0],), dict.fromkeys(names, share), decoded="memory"
    )


def _direct_loads(X: dd.DataFrame, y: Any, w: Any, names: list[str]) -> list[ReadLoad] | None:
    """Recognise columns of one dpipe Parquet source, which are then decoded without pandas."""
    found = [_projection(part) for part in (X, y, w)]
    if found[0] is None or any(
        f is None and part is not None for f, part in zip(found, (X, y, w), strict=True)
    ):
        return None
    base = found[0]
    others = [f for f in found[1:] if f is not None]
    if any(f.reader != base.reader or f.blocks != base.blocks or len(f.columns) != 1 for f in others):
        return None
    y_name, w_name = (None if f is None else f.columns[0] for f in found[1:])
    return [ReadLoad(base.reader, block, tuple(names), y_name, w_name) for block in base.blocks]


@dataclass(frozen=True)
class _Projection:
    reader: ParquetReader
    blocks: Sequence[BlockSpec]
    columns: tuple[str, ...]


def _projection(part: Any) -> _Projection | None:
    """See whether a frame or series is nothing but some columns of a Parquet source."""
    if part is None:
        return None
    expression = part.expr.optimize(fuse=False)
    columns = tuple(expression.columns)
    # a projection keeps names, a series keeps its own as a frame, and the conversion of object strings
    # finds none to convert
    while type(expression).__name__ in ("ArrowStringConversion", "Projection") or (
        type(expression).__name__ == "ToFrame" and expression.columns == expression.frame.columns
    ):
        expression = expression.frame
    if not isinstance(expression, FromMapProjectable):
        return None
    reader = expression.operand("func")
    if not isinstance(reader, ParquetReader):
        return None
    chosen = expression.operand("_partitions")
    blocks = expression.operand("iterables")[0]
    blocks = blocks if chosen is None else BlockList(blocks[j] for j in chosen)
    return _Projection(reader, blocks, columns)


def source_name(source: Source) -> str:
    """Say where the data comes from, for a plan."""
    if isinstance(source.X, Grid):
        return source.X.says
    if isinstance(source.X, dd.DataFrame):
        found = _projection(source.X)
        if found is not None:
            folders = sorted({os.path.dirname(block.path) or "." for block in found.blocks})
            files = len({block.path for block in found.blocks})
            return f"{files} {found.reader.kind} file{'s' * (files > 1)} in {', '.join(folders[:2])}"
        return "a Dask DataFrame"
    return {"numpy": "a Dask Array", "memory": "memory"}[source.decoded]
