import numpy as np
import pandas as pd
import pytest
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from recipes.made_rides import made_rides
from recipes.ride_features import WEEKDAYS, ride_features, trip_mph, valid_rides

NUMBERS = ["passenger_count", "trip_distance", "minutes", "speed_mph", "hour_sin", "hour_cos"]
NAMES = ["pickup_zone", "dropoff_zone", "weekday", "hour", "vendor", "rate_code", "store_and_fwd_flag"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return made_rides(5_000, tmp_path_factory.mktemp("rides"))[0]


@pytest.fixture(scope="module")
def rides(path):
    return pd.read_parquet(path)


def text(column: pd.Series) -> pd.Series:
    """Whole numbers as text, row after row; missing ones as missing."""
    return column.map(lambda value: np.nan if pd.isna(value) else str(int(value))).astype("str")


def test_ride_features_equal_the_slow_way(rides):
    got = ride_features(rides)
    assert list(got) == NUMBERS + NAMES
    begin, end = rides["tpep_pickup_datetime"], rides["tpep_dropoff_datetime"]
    minutes = ((end - begin).dt.total_seconds() / 60).clip(0, 360)
    miles = rides["trip_distance"].clip(0, 100)
    speed = (60 * miles / minutes.where(minutes > 0)).clip(0, 80).fillna(0.0)
    expected = pd.DataFrame(
        {
            "passenger_count": rides["passenger_count"],
            "trip_distance": miles,
            "minutes": minutes,
            "speed_mph": speed,
            "hour_sin": np.sin(2 * np.pi * begin.dt.hour / 24),
            "hour_cos": np.cos(2 * np.pi * begin.dt.hour / 24),
            "pickup_zone": text(rides["PULocationID"]),
            "dropoff_zone": text(rides["DOLocationID"]),
            "weekday": begin.dt.day_name().str[:3].astype("str"),
            "hour": text(begin.dt.hour),
            "vendor": text(rides["VendorID"]),
            "rate_code": text(rides["RatecodeID"]),
            "store_and_fwd_flag": rides["store_and_fwd_flag"],
        }
    )
    pd.testing.assert_frame_equal(got.astype(dict.fromkeys(NAMES, "str")), expected)
    assert got[["rate_code", "store_and_fwd_flag", "passenger_count"]].isna().any().all()


def test_ride_features_have_the_same_dtypes_in_every_block(rides):
    whole = ride_features(rides)
    for block in (rides.iloc[:0], rides.iloc[:1], rides.iloc[7:19]):
        got = ride_features(block)
        pd.testing.assert_series_equal(got.dtypes, whole.dtypes)
        pd.testing.assert_frame_equal(got, whole.loc[block.index])
    assert all(whole[name].dtype == np.float64 for name in NUMBERS)
    assert list(whole["weekday"].cat.categories) == list(WEEKDAYS)


@pytest.mark.parametrize("backend", ["numpy_nullable", "pyarrow"])
def test_ride_features_are_the_same_whatever_backs_the_columns(path, rides, backend):
    other = pd.read_parquet(path, dtype_backend=backend)
    pd.testing.assert_frame_equal(ride_features(other), ride_features(rides))
    assert valid_rides(other).index.equals(valid_rides(rides).index)
    assert (valid_rides(other)["tipped"] == valid_rides(rides)["tipped"]).all()


def test_ride_features_take_other_codes_and_flags_for_missing(rides):
    odd = rides.iloc[:4].assign(
        PULocationID=[0, -5, 266, 265],
        RatecodeID=[7.0, np.nan, 99.0, 1e9],
        VendorID=[1, 3, 7, 100],
        store_and_fwd_flag=pd.array(["Y", None, " ", "N"], dtype="str"),
        passenger_count=[1.0, np.nan, 0.0, 2.0],
    )
    got = ride_features(odd)
    assert got["pickup_zone"].isna().tolist() == [True, True, True, False]
    assert got["rate_code"].isna().tolist() == [True, True, False, True]
    assert got["vendor"].isna().tolist() == [False, True, False, True]
    assert got["store_and_fwd_flag"].isna().tolist() == [False, True, True, False]
    assert got["passenger_count"].isna().tolist() == [False, True, False, False]


def test_ride_features_look_at_nothing_that_was_paid(rides):
    paid = [
        name for name in rides if name.endswith(("amount", "charge", "fee", "tax", "type")) or name == "extra"
    ]
    assert len(paid) == 11
    pd.testing.assert_frame_equal(ride_features(rides.drop(columns=paid)), ride_features(rides))


def test_ride_features_leave_the_rides_as_they_were(rides):
    before = rides.copy(deep=True)
    ride_features(rides)
    valid_rides(rides)
    pd.testing.assert_frame_equal(rides, before)


@pytest.mark.parametrize("strategy", ["most_frequent", "constant"])
def test_scikit_learn_takes_the_names_as_they_are(rides, strategy):
    features = ride_features(rides)
    encode = make_pipeline(
        SimpleImputer(strategy=strategy, fill_value="none"), OneHotEncoder(handle_unknown="ignore")
    )
    encoded = encode.fit(features[NAMES][:4_000]).transform(features[NAMES])
    assert encoded.shape[0] == len(rides)
    assert encoded.shape[1] > 300
    names = features[NAMES].astype("str")
    same = encode.fit(names[:4_000]).transform(names)
    assert (encoded != same).nnz == 0


def test_trip_mph_is_finite_and_bounded():
    got = trip_mph(np.array([3.0, 3.0, 3.0, np.nan, 500.0]), np.array([15.0, 0.0, -2.0, 5.0, 1.0]))
    np.testing.assert_array_equal(got, [12.0, 0.0, 0.0, np.nan, 80.0])


def test_valid_rides_drop_what_cannot_have_happened(rides):
    odd = rides.iloc[:8].assign(
        fare_amount=[10.0, -10.0, 0.0, np.nan, 10.0, 10.0, 10.0, 10.0],
        tip_amount=[0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 2.0],
        tpep_pickup_datetime=pd.to_datetime(["2025-01-05 23:50"] * 7 + ["2009-01-01 00:00"]).as_unit("us"),
        tpep_dropoff_datetime=pd.to_datetime(
            ["2025-01-06 00:10"] * 4
            + ["2025-01-05 23:50", "2025-01-05 23:40", "2025-01-06 05:50", "2009-01-01 00:10"]
        ).as_unit("us"),
    )
    got = valid_rides(odd)
    assert got.index.tolist() == [0, 6]
    assert got["tipped"].tolist() == [0, 1]
    assert got["pickup_date"].tolist() == [pd.Timestamp("2025-01-05")] * 2
    pd.testing.assert_frame_equal(got[list(rides)], odd.loc[[0, 6]])


def test_valid_rides_keep_nearly_all_and_have_fixed_dtypes(rides):
    got = valid_rides(rides)
    assert 0.97 < len(got) / len(rides) < 0.995
    assert got["tipped"].dtype == np.int8
    assert (got["tipped"] == (got["tip_amount"] > 0)).all()
    assert (got["pickup_date"] == got["tpep_pickup_datetime"].dt.normalize()).all()
    assert got["pickup_date"].dtype == np.dtype("M8[us]")
    pd.testing.assert_series_equal(valid_rides(rides.iloc[:0]).dtypes, got.dtypes)
