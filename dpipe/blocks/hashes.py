"""Hash the keys of rows, alike however a key is stored."""

import numpy as np
import pandas as pd


def hashes(keys: pd.DataFrame, random_state: int = 0) -> np.ndarray:
    """Hash each row of some columns to 64 bits, whatever types they are stored in; uint64 of shape (n_rows,)."""
    if not len(keys):
        return np.zeros(0, dtype=np.uint64)
    plain = pd.DataFrame({i: _as_hashed(keys.iloc[:, i]) for i in range(keys.shape[1])})
    return mixed_hashes(pd.util.hash_pandas_object(plain, index=False).to_numpy(), random_state)


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


def _as_hashed(column: pd.Series) -> np.ndarray:
    """Give numbers as doubles, times as nanoseconds, all else as texts; what is missing alike in each."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        zoned = column.dt.tz_convert("UTC").dt.tz_localize(None) if column.dt.tz is not None else column
        return zoned.to_numpy(dtype="datetime64[ns]").view(np.int64)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan) + 0.0  # one zero, not two
    values = column.to_numpy(dtype=object)
    return np.array(
        ["" if missing else str(v) for v, missing in zip(values, pd.isna(values), strict=True)], object
    )
