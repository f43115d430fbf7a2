"""From raw rides (New York TLC yellow-cab columns) to valid rides, and to model columns.

Everything here works on one pandas frame, row by row: there is nothing to fit, so a ride
gets the same features in whatever block it stands, and an empty frame gives empty columns
of the same dtypes. No feature looks at how, or how much, the passenger paid.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[Any]

WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
N_ZONES = 265

# Rides outside of these bounds are faults of the meter or of its clock.
FIRST_PICKUP, LAST_PICKUP = "2011-01-01", "2100-01-01"
LONGEST_MINUTES = 360.0
MOST_MILES, MOST_MPH = 100.0, 80.0

_HOUR_US, _DAY_US = 3_600_000_000, 86_400_000_000


def _dtype(names: list[str]) -> pd.CategoricalDtype:
    return pd.CategoricalDtype(names)


# Categoricals over categories that are known beforehand: every block has the same dtype, and
# a column is a gather of small codes, where text would be built and hashed anew for each row.
_ZONES = _dtype([str(zone) for zone in range(1, N_ZONES + 1)])
_HOURS = _dtype([str(hour) for hour in range(24)])
_DAYS = _dtype(list(WEEKDAYS))
_VENDORS = _dtype(["1", "2", "6", "7"])
_RATE_CODES = _dtype(["1", "2", "3", "4", "5", "6", "99"])
_FLAGS = _dtype(["N", "Y"])


def pickup_clock(rides: pd.DataFrame) -> tuple[Array, Array]:
    """Read the hour of the day and the day of the week off the pickup times.

    Parameters
    ----------
    rides : pandas.DataFrame of n_samples rows
        With `tpep_pickup_datetime`, without missing times.

    Returns
    -------
    hour, weekday : numpy.ndarray of shape (n_samples,), int64
        0 to 23, and 0 (Monday) to 6.

    Examples
    --------
    >>> times = pd.to_datetime(["2025-01-01 17:30", "2025-01-05 00:00"])
    >>> pickup_clock(pd.DataFrame({"tpep_pickup_datetime": times}))
    (array([17,  0]), array([2, 6]))
    """
    # Integer arithmetic is several times as fast as the `dt` accessor. Day 0 was a Thursday.
    hours = _microseconds(rides["tpep_pickup_datetime"]) // _HOUR_US
    return hours % 24, (hours // 24 + 3) % 7


def trip_minutes(rides: pd.DataFrame) -> Array:
    """Return how long each ride took, in minutes, below zero where the clock ran backwards.

    Parameters
    ----------
    rides : pandas.DataFrame of n_samples rows
        With `tpep_pickup_datetime` and `tpep_dropoff_datetime`, without missing times.

    Returns
    -------
    numpy.ndarray of shape (n_samples,), float64
        Minutes.

    Examples
    --------
    >>> times = pd.to_datetime(["2025-01-01 17:30:00", "2025-01-01 17:42:30"])
    >>> trip_minutes(pd.DataFrame([times], columns=["tpep_pickup_datetime", "tpep_dropoff_datetime"]))
    array([12.5])
    """
    begin = _microseconds(rides["tpep_pickup_datetime"])
    return (_microseconds(rides["tpep_dropoff_datetime"]) - begin) / 60e6


def trip_mph(miles: Array, minutes: Array) -> Array:
    """Return the mean speed of each ride, at most `MOST_MPH`, and 0 where it took no time.

    Parameters
    ----------
    miles, minutes : numpy.ndarray of shape (n_samples,), float64
        Length and duration of the rides.

    Returns
    -------
    numpy.ndarray of shape (n_samples,), float64
        Miles an hour; NaN where the length is NaN.

    Examples
    --------
    >>> trip_mph(np.array([3.0, 1.0, 50.0]), np.array([15.0, 0.0, 1.0]))
    array([12.,  0., 80.])
    """
    moving = minutes > 0
    speed = 60.0 * miles / np.where(moving, minutes, 1.0)
    return np.where(moving, np.clip(speed, 0.0, MOST_MPH), 0.0)


def valid_rides(rides: pd.DataFrame) -> pd.DataFrame:
    """Keep the rides that can have happened, and say of each whether it was tipped, and its day.

    Dropped are refunds and free rides (`fare_amount` not above 0), rides of no time, of less,
    or of over six hours, and pickups before 2011 or after 2099 (meters whose clock was
    never set say 2009 or earlier). Missing values elsewhere are kept.

    Parameters
    ----------
    rides : pandas.DataFrame of n_samples rows
        Raw rides.

    Returns
    -------
    pandas.DataFrame
        The rows that are kept, with their index and all their columns, and two more:
        `tipped` (int8, 0 or 1) and `pickup_date` (datetime64[us], midnight).

    Examples
    --------
    >>> rides = pd.DataFrame({
    ...     "tpep_pickup_datetime": pd.to_datetime(["2025-01-01 17:30", "2009-01-01 00:00"]),
    ...     "tpep_dropoff_datetime": pd.to_datetime(["2025-01-01 17:42", "2009-01-01 00:09"]),
    ...     "fare_amount": [12.1, 10.0], "tip_amount": [2.5, 0.0]})
    >>> valid_rides(rides)[["fare_amount", "tipped", "pickup_date"]]
       fare_amount  tipped pickup_date
    0         12.1       1  2025-01-01
    """
    begin = _microseconds(rides["tpep_pickup_datetime"])
    first, last = (np.datetime64(day, "us").astype(np.int64) for day in (FIRST_PICKUP, LAST_PICKUP))
    minutes = trip_minutes(rides)
    keep = (begin >= first) & (begin < last) & (minutes > 0) & (minutes <= LONGEST_MINUTES)
    keep &= _floats(rides["fare_amount"]) > 0
    kept = rides.loc[keep]
    midnight = begin[keep] // _DAY_US * _DAY_US
    return kept.assign(
        tipped=(_floats(kept["tip_amount"]) > 0).astype(np.int8),
        pickup_date=midnight.view("datetime64[us]"),
    )


def ride_features(rides: pd.DataFrame) -> pd.DataFrame:
    """Turn raw rides into model columns.

    Parameters
    ----------
    rides : pandas.DataFrame of n_samples rows
        Raw or valid rides, without missing times; columns that are not needed are ignored.

    Returns
    -------
    pandas.DataFrame of n_samples rows, with the index of `rides`
        Numbers (float64, NaN where missing): `passenger_count`, `trip_distance` (miles, at
        most 100), `minutes` (0 to 360), `speed_mph` (at most 80), `hour_sin` and `hour_cos`.
        Names (categorical, of text, with the same categories in every block; missing where
        missing, or where the code is not one of TLC's): `pickup_zone`, `dropoff_zone`,
        `weekday`, `hour`, `vendor`, `rate_code`, `store_and_fwd_flag`.

    Examples
    --------
    >>> rides = pd.DataFrame({
    ...     "tpep_pickup_datetime": pd.to_datetime(["2025-01-01 18:00"]),
    ...     "tpep_dropoff_datetime": pd.to_datetime(["2025-01-01 18:15"]),
    ...     "passenger_count": [None], "trip_distance": [3.0], "PULocationID": [132], "DOLocationID": [161],
    ...     "VendorID": [2], "RatecodeID": [2.0], "store_and_fwd_flag": ["N"]})
    >>> features = ride_features(rides)
    >>> features[["passenger_count", "minutes", "speed_mph", "pickup_zone", "weekday", "hour"]]
       passenger_count  minutes  speed_mph pickup_zone weekday hour
    0              NaN     15.0       12.0         132     Wed   18
    """
    hour, weekday = pickup_clock(rides)
    minutes = np.clip(trip_minutes(rides), 0.0, LONGEST_MINUTES)
    miles = np.clip(_floats(rides["trip_distance"]), 0.0, MOST_MILES)
    # 24 sines and a gather, rather than one sine for each ride.
    angles = np.arange(24) * (2 * np.pi / 24)
    columns = {
        "passenger_count": _floats(rides["passenger_count"]),
        "trip_distance": miles,
        "minutes": minutes,
        "speed_mph": trip_mph(miles, minutes),
        "hour_sin": np.sin(angles)[hour],
        "hour_cos": np.cos(angles)[hour],
        "pickup_zone": _named(rides["PULocationID"], _ZONES),
        "dropoff_zone": _named(rides["DOLocationID"], _ZONES),
        "weekday": pd.Categorical.from_codes(weekday, dtype=_DAYS),
        "hour": pd.Categorical.from_codes(hour, dtype=_HOURS),
        "vendor": _named(rides["VendorID"], _VENDORS),
        "rate_code": _named(rides["RatecodeID"], _RATE_CODES),
        "store_and_fwd_flag": _flags(rides["store_and_fwd_flag"]),
    }
    return pd.DataFrame(columns, index=rides.index)


def _microseconds(times: pd.Series) -> Array:
    """Microseconds since 1970, whatever unit the times are kept in."""
    stamps: Array = times.to_numpy(dtype="datetime64[us]")
    return stamps.view(np.int64)


def _floats(column: pd.Series) -> Array:
    """Numbers as float64, missing ones as NaN."""
    values: Array = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return values


def _named(column: pd.Series, dtype: pd.CategoricalDtype) -> pd.Categorical:
    """Small whole numbers as categories of text; other and missing numbers as missing."""
    known = np.array([int(name) for name in dtype.categories])
    codes = np.full(int(known.max()) + 2, -1, dtype=np.int16)
    codes[known] = np.arange(len(known))
    values = column.to_numpy()
    if values.dtype.kind not in "iu":
        values = np.nan_to_num(_floats(column), nan=0.0)
    # 0 and the last place of the table are nobody's: numbers out of range land there.
    places = np.clip(values, 0, len(codes) - 1).astype(np.intp)
    return pd.Categorical.from_codes(codes[places], dtype=dtype)


def _flags(column: pd.Series) -> pd.Categorical:
    """Y and N as categories; anything else as missing."""
    codes = np.full(len(column), -1, dtype=np.int8)
    for code, name in enumerate(_FLAGS.categories):
        codes[(column == name).to_numpy(dtype=bool, na_value=False)] = code
    return pd.Categorical.from_codes(codes, dtype=_FLAGS)
