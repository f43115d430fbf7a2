"""One block of rows: whatever its kind, its columns as numbers or as codes.

A block is a `pyarrow.Table` (strings as dictionary codes), a `pandas.DataFrame`, a 2-D
`numpy.ndarray`, a `scipy.sparse` matrix in CSR form, or `Categories`. Numbers come out as
one column-major matrix, because every statistic and every scaler works column by column.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from dpipe.errors import InputError

#: scikit-learn takes None and NaN for two different values.
MIXED_MARKERS = (
    "A column holds both None and NaN; missing values must all be marked alike. Use X.fillna(np.nan), "
    "or give the column a text type: X.astype({name: 'str'})."
)

Block = Any  # one of the kinds above; their only common base is `object`


@dataclass(frozen=True)
class Codes:
    """One column as integer codes into its distinct values; -1 is missing."""

    codes: np.ndarray
    """Of shape (n_rows,), integers."""
    values: list[Any]
    """The distinct values, in the order of their codes."""
    dtype: np.dtype[Any]
    """What NumPy would call the column: object for strings."""
    missing: Any = np.nan
    """What stands for a missing value in this column: NaN or None."""


@dataclass(frozen=True)
class Categories:
    """Several columns as codes, the block that flows from an imputer to an encoder."""

    columns: tuple[Codes, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.columns[0].codes), len(self.columns)

    def to_numpy(self) -> np.ndarray:
        """Give the values as one array of shape (n_rows, n_columns), of dtype object if any column is."""
        dtype = np.result_type(*(column.dtype for column in self.columns))
        out = np.empty(self.shape, dtype=dtype, order="F")
        for j, column in enumerate(self.columns):
            lookup = np.empty(len(column.values) + 1, dtype=dtype)
            lookup[:-1] = column.values
            lookup[-1] = column.missing if dtype.kind in "fO" else 0
            out[:, j] = lookup[column.codes]
        return out


def n_rows(block: Block) -> int:
    """Count the rows of a block."""
    return int(block.num_rows if isinstance(block, pa.Table) else block.shape[0])


def n_columns(block: Block) -> int:
    """Count the columns of a block."""
    return int(block.num_columns if isinstance(block, pa.Table) else block.shape[1])


def nbytes(block: Block) -> int:
    """Count the bytes that a block holds."""
    if isinstance(block, pd.DataFrame):
        return int(block.memory_usage(deep=False, index=False).sum())
    if isinstance(block, Categories):
        return sum(column.codes.nbytes for column in block.columns)
    if sp.issparse(block):
        return int(block.data.nbytes + block.indices.nbytes + block.indptr.nbytes)
    return int(block.nbytes)


def select(block: Block, columns: Sequence[int]) -> Block:
    """Take some columns of a block, by position."""
    if isinstance(block, pa.Table):
        return block.select(list(columns))
    if isinstance(block, pd.DataFrame):
        return block.iloc[:, list(columns)]
    if isinstance(block, Categories):
        return Categories(tuple(block.columns[j] for j in columns))
    return block[:, list(columns)]


def one_column(block: Block, j: int = 0) -> pd.Series | np.ndarray:
    """Take column `j` of a block as a series, or an array of one dimension."""
    chosen = to_pandas(select(block, [j]))
    return chosen.iloc[:, 0] if isinstance(chosen, pd.DataFrame) else chosen[:, 0]


def take_rows(block: Block, rows: slice) -> Block:
    """Take a range of rows of a block, without a copy where it can be done."""
    if isinstance(block, pa.Table):
        return block.slice(rows.start, rows.stop - rows.start)
    if isinstance(block, pd.DataFrame):
        return block.iloc[rows]
    if isinstance(block, Categories):
        return Categories(tuple(replace(column, codes=column.codes[rows]) for column in block.columns))
    return block[rows]


def to_pandas(block: Block) -> Block:
    """Give scikit-learn what it knows: a frame for a table, arrays as they are."""
    if isinstance(block, pa.Table):
        return table_to_pandas(block)
    return block.to_numpy() if isinstance(block, Categories) else block


def plain_strings(frame: pd.DataFrame) -> pd.DataFrame:
    """Give text columns the type `str` of pandas, in which missing is NaN.

    Dask's own text columns mark missing with NA, which scikit-learn's encoders and imputers refuse.
    """
    texts = {
        name: "str"
        for name, dtype in frame.dtypes.items()
        if isinstance(dtype, pd.StringDtype) and dtype.na_value is pd.NA
    }
    return frame.astype(texts) if texts else frame


def table_to_pandas(table: pa.Table) -> pd.DataFrame:
    """Convert a table to pandas, with plain strings where the table has dictionary codes."""
    plain = pa.schema(
        [
            field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
            for field in table.schema
        ]
    )
    frame: pd.DataFrame = table.cast(plain).to_pandas(use_threads=False)
    return frame


def float_dtype(dtypes: Sequence[Any]) -> np.dtype[Any]:
    """Give the float type that scikit-learn would compute in for columns of these types.

    Examples
    --------
    >>> float_dtype([np.dtype("float32"), np.dtype("float32")])
    dtype('float32')
    >>> float_dtype([np.dtype("int64"), np.dtype("float32")])
    dtype('float64')
    """
    if not all(isinstance(dtype, np.dtype) and dtype.kind in "iufb" for dtype in dtypes) or not len(dtypes):
        return np.dtype("float64")
    common = np.result_type(*dtypes)
    return common if common in (np.float32, np.float64) else np.dtype("float64")


def numbers(block: Block) -> Block:
    """Give the columns of a block as floats: column-major of shape (n_rows, n_columns), or CSR.

    Missing values are NaN. A float array that is column-major already is returned as it is,
    without a copy: callers must not write into the result.

    Raises
    ------
    InputError
        If a column is not numeric.
    """
    if sp.issparse(block):
        return block if block.dtype.kind == "f" else block.astype(np.float64)
    if isinstance(block, Categories):
        block = block.to_numpy()
    if isinstance(block, np.ndarray):
        return _array_numbers(block)
    columns = _columns(block)
    out = np.empty((n_rows(block), len(columns)), dtype=float_dtype(_numpy_dtypes(block)), order="F")
    for j, (name, column) in enumerate(columns):
        _fill_named(out[:, j], name, column)
    return out


def double_columns(block: Block) -> tuple[np.dtype[Any], Iterator[tuple[np.ndarray, np.ndarray]]]:
    """Give the float type of `numbers`, and one column after another: float64 values, and where they are missing.

    What stands at a missing place has no meaning. The caller may change the values, which are gone when the
    next column is asked for: only one is held at a time.

    Raises
    ------
    InputError
        If a column is not numeric.
    """
    dtype, columns = columns_of_numbers(block)
    return dtype, (column.minus(0.0)[:2] for column in columns)


@dataclass(frozen=True)
class NumericColumn:
    """One column of a block, not yet converted."""

    name: Any
    values: Any
    """A `pyarrow.ChunkedArray`, a `pandas.Series` or an array of shape (n_rows,)."""
    out: np.ndarray
    """Where doubles are written; the columns of a block share it."""

    def head(self, n: int) -> np.ndarray:
        """Give those of the first `n` values that are finite, as float64."""
        first = np.empty(min(n, len(self.values)))
        _fill_named(first, self.name, self.values[: len(first)])
        return first[np.isfinite(first)]

    def minus(self, shift: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Subtract a number from each value: float64 with 0 for what is missing, where that is, and the sum."""
        gaps = _fill_named(self.out, self.name, self.values, missing=0.0, shift=shift)
        with np.errstate(invalid="ignore"):  # infinities of both signs: refused when all blocks are joined
            total = float(self.out.sum())
        if np.isnan(total):  # missing values can also stand as NaN among the others
            gaps = np.union1d(gaps, np.flatnonzero(np.isnan(self.out)))
            self.out[gaps] = 0.0
            total = float(self.out.sum())
        return self.out, gaps, total


def columns_of_numbers(block: Block) -> tuple[np.dtype[Any], Iterator[NumericColumn]]:
    """Give the float type of `numbers`, and one column after another, of which only one may be in use at a time.

    Raises
    ------
    InputError
        If a column is not numeric.
    """
    out = np.empty(n_rows(block))
    if isinstance(block, pa.Table | pd.DataFrame):
        named = _columns(block)
        return float_dtype(_numpy_dtypes(block)), (NumericColumn(name, values, out) for name, values in named)
    matrix = numbers(block)
    return matrix.dtype, (NumericColumn(j, matrix[:, j], out) for j in range(matrix.shape[1]))


def _fill_named(
    out: np.ndarray, name: Any, column: Any, missing: float = np.nan, shift: float = 0.0
) -> np.ndarray:
    try:
        return _fill(out, column, missing, shift)
    except (TypeError, ValueError, pa.ArrowException) as err:
        kind = column.type if isinstance(column, pa.ChunkedArray) else column.dtype
        if isinstance(kind, pa.DictionaryType):  # so texts are held here
            kind = kind.value_type
        raise InputError(
            f"Column {name!r} is not numeric: its type is {kind}. "
            "Encode it first (OneHotEncoder, OrdinalEncoder), or leave it out."
        ) from err


def owned_numbers(block: Block) -> Block:
    """Give `numbers` as a matrix that the caller may change."""
    matrix = numbers(block)
    if isinstance(block, np.ndarray) and np.shares_memory(matrix, block):
        return np.array(matrix, order="F")
    return matrix if not sp.issparse(matrix) else matrix.copy()


def _array_numbers(block: np.ndarray) -> np.ndarray:
    matrix = block.reshape(-1, 1) if block.ndim == 1 else block
    if matrix.dtype in (np.float32, np.float64):
        return matrix
    try:
        if matrix.dtype.kind in "mM":
            raise TypeError("times are no numbers")
        return np.asarray(matrix, dtype=np.float64, order="F")
    except (TypeError, ValueError) as err:
        raise InputError(f"The array is not numeric (dtype {matrix.dtype}): {err}. Encode it first.") from err


def _columns(block: pa.Table | pd.DataFrame) -> list[tuple[Any, Any]]:
    if isinstance(block, pa.Table):
        return list(zip(block.column_names, block.columns, strict=True))
    return [(name, block.iloc[:, j]) for j, name in enumerate(block.columns)]


def _numpy_dtypes(block: pa.Table | pd.DataFrame) -> list[Any]:
    if isinstance(block, pa.Table):
        # what is no number is told of when its values are looked at, by its name
        texts = (pa.types.is_dictionary, pa.types.is_string, pa.types.is_large_string)
        return [
            np.dtype(object)
            if any(is_text(field.type) for is_text in texts)
            else np.dtype(field.type.to_pandas_dtype())
            for field in block.schema
        ]
    return list(block.dtypes)


def _fill(out: np.ndarray, column: Any, missing: float, shift: float) -> np.ndarray:
    """Write one column minus `shift` into `out`, its nulls as `missing`; give where an Arrow column has nulls."""
    if isinstance(column, pa.ChunkedArray):
        if not (
            pa.types.is_floating(column.type)
            or pa.types.is_integer(column.type)
            or pa.types.is_boolean(column.type)
            or pa.types.is_decimal(column.type)
        ):
            raise TypeError(f"{column.type} is not numeric")
        start, nulls = 0, [np.empty(0, dtype=np.intp)]
        for chunk in column.chunks:
            values = chunk if pa.types.is_floating(chunk.type) else chunk.cast(pa.float64())
            nulls.append(start + _fill_floats(out[start : start + len(chunk)], values, missing, shift))
            start += len(chunk)
        return np.concatenate(nulls)
    if not isinstance(column.dtype, np.dtype):
        _put(out, column.to_numpy(dtype=np.float64, na_value=np.nan), shift)
    elif column.dtype.kind in "mM":
        raise TypeError(f"{column.dtype} is not numeric")
    else:
        _put(out, np.asarray(column), shift)
    return np.empty(0, dtype=np.intp)


def _put(out: np.ndarray, values: np.ndarray, shift: float) -> None:
    """Write values minus `shift`, in one sweep where there is something to subtract."""
    if shift == 0.0:
        out[:] = values
    elif values.dtype.kind == "O":
        out[:] = values
        out -= shift
    else:
        np.subtract(values, shift, out=out, dtype=out.dtype)


def _fill_floats(out: np.ndarray, values: pa.Array, missing: float, shift: float) -> np.ndarray:
    """Copy floats and then mark the nulls; Arrow's own conversion copies twice where there are any."""
    validity, data = values.buffers()
    if data is None:
        out[:] = missing
        return np.arange(len(out))
    _put(out, np.frombuffer(data, dtype=values.type.to_pandas_dtype())[values.offset :][: len(values)], shift)
    if not values.null_count or validity is None:
        return np.empty(0, dtype=np.intp)
    nulls = _null_positions(validity, values.offset, len(values))
    out[nulls] = missing
    return nulls


def _null_positions(validity: pa.Buffer, offset: int, n: int) -> np.ndarray:
    """Positions of the zero bits among `n` bits from `offset` on; only octets that have one are unpacked."""
    first = offset // 8
    octets = np.frombuffer(validity, dtype=np.uint8)[first : -(-(offset + n) // 8)]
    some = np.flatnonzero(octets != 255)
    zeros = np.flatnonzero(np.unpackbits(octets[some], bitorder="little") == 0)
    found = 8 * some[zeros >> 3] + (zeros & 7) - (offset - 8 * first)
    return found[np.searchsorted(found, 0) : np.searchsorted(found, n)]


def missing_values(block: Block) -> np.ndarray:
    """Count the missing values of each column: NaN, None and nulls; int64 of shape (n_columns,)."""
    if isinstance(block, Categories):
        return np.array([np.count_nonzero(column.codes < 0) for column in block.columns], dtype=np.int64)
    if isinstance(block, pa.Table):
        # an Arrow column of floats can hold NaN beside its nulls
        found = [column.is_null(nan_is_null=pa.types.is_floating(column.type)) for column in block.columns]
        return np.array([pc.sum(gaps).as_py() or 0 for gaps in found], dtype=np.int64)
    return np.asarray(pd.isna(block)).sum(axis=0, dtype=np.int64)


def codes(block: Block, j: int) -> Codes:
    """Give column `j` of a block as codes into its distinct values; missing is -1."""
    if isinstance(block, Categories):
        return block.columns[j]
    if isinstance(block, pa.Table):
        return _arrow_codes(block.column(j))
    if isinstance(block, pd.DataFrame):
        return _pandas_codes(block.iloc[:, j])
    if sp.issparse(block):
        raise InputError("Categories cannot be read from a sparse matrix. Pass a dense array or a frame.")
    return _factorized(block[:, j], block.dtype)


def _arrow_codes(column: pa.ChunkedArray) -> Codes:
    if not pa.types.is_dictionary(column.type):
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            return _pandas_codes(column.to_pandas())
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    if column.num_chunks == 0:
        return Codes(np.empty(0, dtype=np.int32), [], np.dtype(object))
    parts = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in column.chunks]
    found = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return Codes(found, column.chunk(0).dictionary.to_pylist(), np.dtype(object))


def _pandas_codes(series: pd.Series) -> Codes:
    if isinstance(series.dtype, pd.CategoricalDtype):
        values = series.cat.categories
        dtype = values.dtype if isinstance(values.dtype, np.dtype) else np.dtype(object)
        return Codes(np.asarray(series.cat.codes), values.tolist(), dtype)
    return _factorized(series, series.dtype if isinstance(series.dtype, np.dtype) else np.dtype(object))


def _factorized(column: Any, dtype: np.dtype[Any]) -> Codes:
    found, distinct = pd.factorize(column)
    missing: Any = np.nan
    if column.dtype == object:
        markers = {value is None for value in np.asarray(column)[found == -1]}
        if len(markers) > 1:
            raise InputError(MIXED_MARKERS)
        missing = None if True in markers else np.nan
    return Codes(found, list(distinct.tolist()), dtype, missing)
