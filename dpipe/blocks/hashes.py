"""Hash the keys of rows, alike however a key is stored."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa


def hashes(keys: pd.DataFrame, random_state: int = 0) -> np.ndarray:
    """Hash each row of some columns to 64 bits, whatever types they are stored in; uint64 of shape (n_rows,)."""
    if not len(keys):
        return np.zeros(0, dtype=np.uint64)
    plain = pd.DataFrame({i: _as_hashed(keys.iloc[:, i]) for i in range(keys.shape[1])})
    return mixed_hashes(pd.util.hash_pandas_object(plain, index=False).to_numpy(), random_state)


def checksum(rows: pd.DataFrame) -> int:
    """Add up the hashes of all rows modulo 2**64: a sum that no order changes.

    Examples
    --------
    >>> rows = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    >>> checksum(rows) == checksum(rows.iloc[::-1])
    True
    """
    return int(np.add.reduce(hashes(rows), dtype=np.uint64))


@np.errstate(over="ignore")
def mixed_hashes(hashed: np.ndarray, random_state: int) -> np.ndarray:
    """Scramble hashes by a seed, as SplitMix64 does: pandas leaves a key out where it hashes numbers.

    References
    ----------
    Steele, Lea, Flood (2014), Fast splittable pseudorandom number generators.
    """
    z = hashed + np.uint64((random_state * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _as_hashed(column: pd.Series) -> Any:
    """Give numbers as doubles, times as nanoseconds, all else as texts; what is missing alike in each."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        kind = column.cat.categories.dtype
        if not _is_text(kind):
            # integers cannot be missing
            numeric = pd.api.types.is_numeric_dtype(kind)
            return _as_hashed(column.astype(np.float64 if numeric else kind))
        return _coded(column.cat.codes.to_numpy(), column.cat.categories.to_numpy(dtype=object))
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        zoned = column.dt.tz_convert("UTC").dt.tz_localize(None) if column.dt.tz is not None else column
        return zoned.to_numpy(dtype="datetime64[ns]").view(np.int64)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan) + 0.0  # one zero, not two
    if _is_text(column.dtype):
        # each distinct text is hashed once
        texts = pa.array(column, type=pa.large_string(), from_pandas=True)
        whole = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
        encoded = whole.dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return _coded(codes, encoded.dictionary.to_numpy(zero_copy_only=False))
    values = column.to_numpy(dtype=object)
    return np.array(
        ["" if missing else str(v) for v, missing in zip(values, pd.isna(values), strict=True)], object
    )


def _is_text(dtype: Any) -> bool:
    return isinstance(dtype, pd.StringDtype)


def _coded(codes: np.ndarray, texts: np.ndarray) -> pd.Categorical:
    """Give texts as codes, with the empty text for what is missing."""
    places = np.flatnonzero(texts == "")
    empty = int(places[0]) if len(places) else len(texts)
    if empty == len(texts):
        texts = np.append(texts, "")
    return pd.Categorical.from_codes(
        np.where(codes < 0, empty, codes), categories=pd.Index(texts, dtype=object)
    )
