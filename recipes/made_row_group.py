"""One row group of made rides: how New Yorkers take taxis, in tables, and the truth about tips.

The columns, their types, their gaps and the way their values hang together are those of the
New York TLC's yellow-cab files of 2025. Everything is drawn with whole-array operations,
most of it by looking up a random 16-bit number: about half a second for a million rides.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from recipes.ride_features import pickup_clock, trip_minutes, trip_mph

Array = npt.NDArray[Any]
Columns = dict[str, Array]

AMOUNTS = (
    *("fare_amount", "extra", "mta_tax", "tip_amount", "tolls_amount", "improvement_surcharge"),
    *("total_amount", "congestion_surcharge", "Airport_fee", "cbd_congestion_fee"),
)
DUE = tuple(name for name in AMOUNTS if name not in ("tip_amount", "total_amount"))
GAPS = ("passenger_count", "RatecodeID", "store_and_fwd_flag", "congestion_surcharge", "Airport_fee")

SCHEMA = pa.schema(
    [
        ("VendorID", pa.int32()),
        ("tpep_pickup_datetime", pa.timestamp("us")),
        ("tpep_dropoff_datetime", pa.timestamp("us")),
        ("passenger_count", pa.int64()),
        ("trip_distance", pa.float64()),
        ("RatecodeID", pa.int64()),
        ("store_and_fwd_flag", pa.string()),
        ("PULocationID", pa.int32()),
        ("DOLocationID", pa.int32()),
        ("payment_type", pa.int64()),
        *[(name, pa.float64()) for name in AMOUNTS],
    ]
)

_CBD_FEE_SINCE = np.datetime64("2025-01-05")
_UNSET_CLOCK = np.datetime64("2009-01-01", "s").astype(np.int64)

# Zones by taxi habits; within a group the most popular come first.
_CBD, _MID, _UPPER, _OUTER, _LGA, _JFK, _EWR = range(7)
_GROUP_ZONES: tuple[tuple[int, ...], ...] = (
    (
        *(161, 162, 230, 186, 163, 170, 234, 48, 68, 164, 79, 107, 249, 100, 229, 113, 246, 233, 90, 114),
        *(137, 50, 231, 148, 158, 144, 125, 211, 13, 87, 224, 88, 4, 261, 232, 209, 45, 12),
    ),
    (237, 236, 142, 239, 141, 238, 263, 140, 262, 43, 143, 151, 75, 24),
    (74, 166, 41, 42, 116, 152, 244, 243, 127, 120, 128, 194),
    (),  # every other zone
    (138,),
    (132,),
    (1,),
)
_PICKUP_SHARES = (0.555, 0.295, 0.033, 0.027, 0.036, 0.0535, 0.0005)
_DROPOFF_SHARES = (0.520, 0.290, 0.060, 0.090, 0.017, 0.020, 0.003)
_MEDIAN_MILES = np.array(
    [
        [1.3, 1.9, 5.0, 6.0, 9.5, 17.0, 16.0],
        [1.9, 1.0, 2.8, 6.5, 8.5, 18.0, 18.0],
        [5.0, 2.8, 1.5, 5.0, 7.5, 19.0, 17.0],
        [6.0, 6.5, 5.0, 2.8, 7.0, 12.0, 22.0],
        [9.5, 8.5, 7.5, 7.0, 1.5, 11.0, 26.0],
        [17.0, 18.0, 19.0, 12.0, 11.0, 1.8, 32.0],
        [16.0, 18.0, 17.0, 22.0, 26.0, 32.0, 1.5],
    ]
)
# Rate codes by zone groups: the flat fare between JFK and Manhattan, and Newark's.
_ZONE_RATE = np.ones((7, 7), dtype=np.int64)
_ZONE_RATE[:_OUTER, _JFK] = _ZONE_RATE[_JFK, :_OUTER] = 2
_ZONE_RATE[:, _EWR] = 3
_RATE_EXTRA = np.array([0.0, 0.0, 0.0, 23.0, 12.0, 20.0, 0.0, 0.0])
# Rides an hour and the mean speed of a two-mile ride, for each hour of the day.
_WORKDAY = (9, 5, 3, 2, 2, 4, 11, 22, 30, 31, 31, 33, 36, 37, 40, 42, 42, 48, 52, 47, 42, 40, 32, 20)
_WEEKEND = (32, 27, 21, 14, 8, 4, 5, 9, 15, 23, 31, 36, 40, 41, 41, 41, 41, 42, 43, 39, 34, 34, 33, 26)
_DAY_WEIGHT = np.array([0.86, 0.97, 1.03, 1.07, 1.06, 1.04, 0.92])
_MPH = np.array(
    [[17, 18, 19, 20, 20, 19, 16, 12, 10, 9.5, 9, 9, 9, 9, 9, 8.8, 8.8, 9, 9.6, 10.5, 11.5, 12, 13, 15]] * 5
    + [[14, 14, 15, 16, 18, 20, 20, 18, 16, 14, 13, 12, 11, 11, 11, 11, 11, 11, 11, 12, 12, 12, 13, 13]] * 2
)

# One draw settles whether a ride is out of the ordinary, so no ride is so in two ways.
_APP_HAIL, _REFUND, _NO_DISTANCE, _NO_DURATION, _LEFT_ON, _UNSET, _LAST_MONTH, _ORDINARY = range(8)
_ODD_SHARES = (0.040, 0.012, 0.010, 0.0006, 0.0008, 0.0001, 0.0001, 0.9364)


def _lookup(values: npt.ArrayLike, weights: npt.ArrayLike) -> Array:
    """65,536 values in proportion to the weights: a uniform 16-bit draw picks one in a gather."""
    ends = np.cumsum(np.asarray(weights, dtype=np.float64))
    places = np.searchsorted(ends / ends[-1], (np.arange(65_536) + 0.5) / 65_536)
    return np.asarray(values)[places]


_ZONE_GROUP = np.full(266, _OUTER)  # by zone id; there is no zone 0
for _group, _zones in enumerate(_GROUP_ZONES):
    _ZONE_GROUP[list(_zones)] = _group


def _zones_lookup(shares: tuple[float, ...]) -> Array:
    """Look up zones in proportion to their group's share and, within it, to their popularity."""
    weights = np.zeros(266)
    for group, share in enumerate(shares):
        zones = list(_GROUP_ZONES[group]) or np.flatnonzero(_ZONE_GROUP == _OUTER)[1:].tolist()
        popularity = 1.0 / (np.arange(len(zones)) + 8.0)
        weights[zones] = share * popularity / popularity.sum()
    return _lookup(np.arange(266, dtype=np.int32), weights)


_PICKUPS = _zones_lookup(_PICKUP_SHARES)
_DROPOFFS = _zones_lookup(_DROPOFF_SHARES)
_ODDITIES = _lookup(np.arange(8), _ODD_SHARES)
_VENDORS = _lookup(np.array([2, 1, 7, 6], dtype=np.int32), [0.775, 0.205, 0.018, 0.002])
_PASSENGERS = _lookup([1.0, 2, 3, 4, 5, 6, 0], [0.775, 0.145, 0.033, 0.022, 0.008, 0.006, 0.011])
_RATES = _lookup([1, 99, 5, 4, 6], [0.9775, 0.014, 0.0065, 0.00195, 0.00005])
_STORED = _lookup(np.array([0, 1], dtype=np.int8), [0.997, 0.003])
_TOLLS = _lookup([0.0, 6.94, 16.06], [0.55, 0.43, 0.02])
_TIP_SHARES = _lookup([0.20, 0.25, 0.15, 0.30, 0.10, 0.18, 0.22, 0.05], [48, 14, 10, 9, 8, 5, 4, 2])
_UNTIPPED_PAYMENTS = _lookup([2, 1, 4, 3], [0.50, 0.42, 0.06, 0.02])

# The truth: how much each thing adds to the log odds of a tip. Neighbouring zone ids get
# levels far apart, spread evenly over -1 to 1 (multiples of the golden ratio, modulo 1).
_ZONE_LEVEL = np.arange(266) * 0.6180339887498949 % 1.0 * 2.0 - 1.0
_PICKUP_LOGIT = np.array([0.0, 0.1, -1.1, -1.9, 0.5, 0.2, -0.6])[_ZONE_GROUP] + 0.75 * _ZONE_LEVEL
_DROPOFF_LOGIT = np.array([0.0, 0.1, -0.8, -1.1, 0.4, 0.2, 0.3])[_ZONE_GROUP] + 0.55 * _ZONE_LEVEL
_HOUR_LOGIT = 0.55 * np.cos((np.arange(24) - 20) * (np.pi / 12))
_DAY_LOGIT = np.array([-0.1, 0.05, 0.15, 0.2, 0.1, -0.2, -0.3])
_PASSENGER_LOGIT = np.array([-0.3, 0.1, -0.1, -0.45, -0.6, -0.3, -0.3, -0.9])  # the last: missing


def tip_probability(rides: pd.DataFrame) -> Array:
    """Return the probability with which each made ride was tipped: the truth that a model is after.

    It is the logistic function of a sum of effects of the pickup's hour and weekday, of both
    zones, of distance, speed, passenger count (missing ones too) and vendor; and 0 for refunds.

    Parameters
    ----------
    rides : pandas.DataFrame of n_samples rows
        Made rides, as read from their files, or any subset of them.

    Returns
    -------
    numpy.ndarray of shape (n_samples,), float64
        Between 0 and 1. Its score on some rides is the best that can be expected of a model there.

    Examples
    --------
    >>> ride = pd.DataFrame({
    ...     "tpep_pickup_datetime": pd.to_datetime(["2025-01-01 18:00"]),
    ...     "tpep_dropoff_datetime": pd.to_datetime(["2025-01-01 18:15"]),
    ...     "passenger_count": [1.0], "trip_distance": [3.0], "PULocationID": [132], "DOLocationID": [161],
    ...     "VendorID": [2], "fare_amount": [16.3]})
    >>> tip_probability(ride).round(3)
    array([0.871])
    """
    hour, weekday = pickup_clock(rides)
    miles = rides["trip_distance"].to_numpy(dtype=np.float64)
    speed = trip_mph(miles, trip_minutes(rides))
    passengers = rides["passenger_count"].to_numpy(dtype=np.float64)
    missing = len(_PASSENGER_LOGIT) - 1
    crowd = np.where(np.isnan(passengers), missing, np.clip(passengers, 0, missing - 1))
    logit: Array = _HOUR_LOGIT[hour] + _DAY_LOGIT[weekday]
    logit += _PICKUP_LOGIT[np.clip(rides["PULocationID"].to_numpy(), 0, 265)]
    logit += _DROPOFF_LOGIT[np.clip(rides["DOLocationID"].to_numpy(), 0, 265)]
    logit += _PASSENGER_LOGIT[crowd.astype(np.intp)]
    logit += 0.5 * np.log1p(np.clip(miles, 0.0, 30.0))
    logit += 0.06 * np.minimum(speed, 40.0)
    logit -= 0.35 * (rides["VendorID"].to_numpy() == 1)
    logit -= 0.55
    probability: Array = (rides["fare_amount"].to_numpy() > 0) / (1.0 + np.exp(-logit))
    return probability


def month_demand(month: np.datetime64) -> tuple[Array, Array]:
    """Return the share of the month's rides picked up until each full hour, and those hours in seconds."""
    edges = np.arange(month, month + 2, dtype="datetime64[M]").astype("datetime64[h]").astype(np.int64)
    hours = np.arange(edges[0], edges[1] + 1)
    weekday = (hours[:-1] // 24 + 3) % 7
    demand = np.array([_WORKDAY] * 5 + [_WEEKEND] * 2)[weekday, hours[:-1] % 24] * _DAY_WEIGHT[weekday]
    return np.concatenate([[0.0], np.cumsum(demand) / demand.sum()]), hours * 3600.0


def made_row_group(pickup_s: Array, rng: np.random.Generator) -> pa.Table:
    """Make one row group: trips, then what they cost, then whether and how that was tipped and paid."""
    odd = _pick(_ODDITIES, len(pickup_s), rng)
    rides = _trips(pickup_s.astype(np.int64), odd, rng)
    rides |= _fares(rides, odd, rng)
    rides |= _payments(rides, odd, rng)
    rides["passenger_count"] = np.nan_to_num(rides["passenger_count"]).astype(np.int64)
    rides["store_and_fwd_flag"] = _pick(_STORED, len(odd), rng)
    gap = odd == _APP_HAIL
    columns = {name: pa.array(rides[name], mask=gap if name in GAPS else None) for name in SCHEMA.names}
    columns["store_and_fwd_flag"] = pa.array(["N", "Y"]).take(columns["store_and_fwd_flag"])
    return pa.table(columns, schema=SCHEMA)


def _pick(lookup: Array, n: int, rng: np.random.Generator) -> Array:
    return lookup[rng.integers(0, 65_536, size=n, dtype=np.uint16)]


def _trips(pickup_s: Array, odd: Array, rng: np.random.Generator) -> Columns:
    """Draw where, when, how far, how long, for whom and by whom."""
    n = len(odd)
    origin, destination = _pick(_PICKUPS, n, rng), _pick(_DROPOFFS, n, rng)
    pair = _ZONE_GROUP[origin], _ZONE_GROUP[destination]
    spread = np.where(np.maximum(*pair) >= _LGA, 0.18, 0.55)
    miles = _MEDIAN_MILES[pair] * np.exp(spread * rng.standard_normal(n))
    hours = pickup_s // 3600
    mph = _MPH[(hours // 24 + 3) % 7, hours % 24] * np.sqrt(np.sqrt(miles / 2))
    mph *= np.exp(0.22 * rng.standard_normal(n))
    duration_s = np.clip(miles / np.clip(mph, 2.0, 55.0) * 3600.0, 30.0, 10_800.0).astype(np.int64)
    duration_s[odd == _NO_DURATION] = 0
    duration_s[odd == _LEFT_ON] += 84_000  # switched off by the next shift
    pickup_s[odd == _UNSET] = _UNSET_CLOCK
    pickup_s[odd == _LAST_MONTH] -= 30 * 86_400
    rate = _pick(_RATES, n, rng)
    return {
        "VendorID": _pick(_VENDORS, n, rng),
        "tpep_pickup_datetime": (pickup_s * 1_000_000).view("datetime64[us]"),
        "tpep_dropoff_datetime": ((pickup_s + duration_s) * 1_000_000).view("datetime64[us]"),
        "passenger_count": np.where(odd == _APP_HAIL, np.nan, _pick(_PASSENGERS, n, rng)),
        "trip_distance": np.where(odd == _NO_DISTANCE, 0.0, np.round(miles, 2)),
        "RatecodeID": np.where(rate == 1, _ZONE_RATE[pair], rate),
        "PULocationID": origin,
        "DOLocationID": destination,
    }


def _fares(rides: Columns, odd: Array, rng: np.random.Generator) -> Columns:
    """Work out the metered or flat fare, and each surcharge by its rule; all below zero in a refund."""
    frame = pd.DataFrame(rides, copy=False)
    hour, weekday = pickup_clock(frame)
    miles, rate = rides["trip_distance"], rides["RatecodeID"]
    origin, destination = _ZONE_GROUP[rides["PULocationID"]], _ZONE_GROUP[rides["DOLocationID"]]
    # 70 cents for a fifth of a mile under way, or for a minute in slow traffic.
    units = np.rint(4.0 * miles + 0.5 * np.clip(trip_minutes(frame), 0.0, 180.0))
    fare = 3.0 + 0.7 * units + _RATE_EXTRA[np.minimum(rate, 7)]
    fare[rate == 2] = 70.0
    rush = (hour >= 16) & (hour < 20) & (weekday < 5)
    extra = np.where(rush, np.where(rate == 2, 5.0, 2.5), ((hour >= 20) | (hour < 6)) * 1.0)
    far = np.maximum(origin, destination) >= _OUTER
    near = np.minimum(origin, destination)
    fee_time = rides["tpep_pickup_datetime"] >= _CBD_FEE_SINCE
    parts = {
        "fare_amount": np.round(fare, 2),
        "extra": extra + 5.0 * (origin == _LGA),
        "mta_tax": np.full(len(odd), 0.5),
        "tolls_amount": far * _pick(_TOLLS, len(odd), rng),
        "improvement_surcharge": np.ones(len(odd)),
        "congestion_surcharge": 2.5 * ((near <= _MID) & (odd != _APP_HAIL)),
        "Airport_fee": 1.75 * ((origin >= _LGA) & (origin <= _JFK) & (odd != _APP_HAIL)),
        "cbd_congestion_fee": 0.75 * ((near == _CBD) & fee_time),
    }
    refund = odd == _REFUND
    for part in parts.values():
        np.subtract(0.0, part, out=part, where=refund)
    return parts


def _payments(rides: Columns, odd: Array, rng: np.random.Generator) -> Columns:
    """Draw the tip, with its known probability, and then a way to pay that goes with it.

    As in the real files, tips are on record for cards (and hails by app) only: cash tips are not.
    """
    n = len(odd)
    tipped = rng.random(n) < tip_probability(pd.DataFrame(rides, copy=False))
    due = np.add.reduce([rides[part] for part in DUE])
    tip = np.where(tipped, np.round(np.maximum(due * _pick(_TIP_SHARES, n, rng), 0.01), 2), 0.0)
    payment = np.where(tipped, 1, _pick(_UNTIPPED_PAYMENTS, n, rng))
    payment[odd == _APP_HAIL] = 0
    return {"payment_type": payment, "tip_amount": tip, "total_amount": np.round(due + tip, 2)}
