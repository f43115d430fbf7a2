import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from recipes import made_rides as module
from recipes.made_rides import ROWS_PER_GROUP, SCHEMA, made_rides, tip_probability
from recipes.made_row_group import AMOUNTS, GAPS
from recipes.ride_features import valid_rides

N_ROWS = 250_000
HALF_WRITTEN = ".rides-1000-0-0123456789abcdef"


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return made_rides(N_ROWS, tmp_path_factory.mktemp("rides"))


@pytest.fixture(scope="module")
def rides(paths):
    return pd.read_parquet(paths[0])


def test_made_rides_has_the_public_schema_and_uneven_row_groups(paths):
    stored = pq.ParquetFile(paths[0])
    assert [path.name for path in paths] == ["yellow_tripdata_2025-01.parquet"]
    assert stored.schema_arrow.equals(SCHEMA)
    groups = [stored.metadata.row_group(i).num_rows for i in range(stored.metadata.num_row_groups)]
    assert groups == [ROWS_PER_GROUP, ROWS_PER_GROUP, N_ROWS - 2 * ROWS_PER_GROUP]
    types = ["int32", "timestamp[us]", "timestamp[us]", "int64", "double", "int64", "string"]
    types += ["int32", "int32", "int64"] + ["double"] * 10
    assert [str(t) for t in SCHEMA.types] == types


@pytest.mark.parametrize("rows", [1, 2, 199, 200, 201, 450])
def test_made_rides_fills_files_and_row_groups_in_order(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(module, "ROWS_PER_FILE", 200)
    monkeypatch.setattr(module, "ROWS_PER_GROUP", 60)
    paths = made_rides(rows, tmp_path)
    assert [pq.read_metadata(path).num_rows for path in paths] == [
        min(200, rows - start) for start in range(0, rows, 200)
    ]
    for i, path in enumerate(paths):
        pickups = pd.read_parquet(path)["tpep_pickup_datetime"]
        usual = pickups[(pickups.dt.year == 2025) & (pickups.dt.month == i + 1)]
        assert path.name == f"yellow_tripdata_2025-{i + 1:02}.parquet"
        assert usual.is_monotonic_increasing
        assert len(usual) >= 0.95 * len(pickups)


def test_made_rides_are_the_same_for_the_same_seed_only(tmp_path):
    first, again, other = (
        pq.read_table(made_rides(3000, tmp_path / name, seed=seed)[0])
        for name, seed in [("first", 0), ("again", 0), ("other", 1)]
    )
    assert first.equals(again)
    assert not first.equals(other)


def test_made_rides_weigh_over_105_bytes_each(paths):
    assert 105 <= sum(path.stat().st_size for path in paths) / N_ROWS <= 160


def test_total_is_the_sum_of_its_parts(rides):
    parts = rides[[name for name in AMOUNTS if name != "total_amount"]].fillna(0.0).sum(axis=1)
    np.testing.assert_allclose(rides["total_amount"], parts, atol=1e-6)
    cents = rides["total_amount"] * 100
    np.testing.assert_allclose(cents, cents.round(), atol=1e-6)


def test_gaps_stand_together_and_only_in_hails_by_app(rides):
    gaps = rides[list(GAPS)].isna()
    for name in GAPS:
        assert (gaps[name] == (rides["payment_type"] == 0)).all()
    assert 0.03 < gaps["RatecodeID"].mean() < 0.05
    assert rides.drop(columns=list(GAPS)).notna().all(axis=None)


def test_made_rides_have_the_faults_of_real_ones(rides):
    minutes = (rides["tpep_dropoff_datetime"] - rides["tpep_pickup_datetime"]).dt.total_seconds() / 60
    in_month = rides["tpep_pickup_datetime"].dt.strftime("%Y-%m") == "2025-01"
    assert 0.008 < (rides["fare_amount"] < 0).mean() < 0.02
    assert 0.005 < (rides["trip_distance"] == 0).mean() < 0.02
    assert 0 < (~in_month).mean() < 0.001
    assert 0 < (minutes == 0).mean() < 0.002
    assert 0 < (minutes > 1000).mean() < 0.002
    assert not ((rides[list(AMOUNTS)] == 0) & np.signbit(rides[list(AMOUNTS)])).any(axis=None)  # no -0.0


def test_made_rides_look_like_new_york(rides):
    hours = rides["tpep_pickup_datetime"].dt.hour.value_counts()
    assert hours.idxmax() in (17, 18, 19)
    assert hours.idxmin() in (3, 4, 5)
    assert 1.5 < rides["trip_distance"].median() < 2.5
    assert set(rides["PULocationID"]) <= set(range(1, 266))
    assert {132, 138, 161, 237} <= set(rides["PULocationID"].value_counts().index[:12])
    payments = rides["payment_type"].value_counts(normalize=True)
    assert 0.70 < payments[1] < 0.85
    assert set(payments.index) == {0, 1, 2, 3, 4}
    flat = rides[(rides["RatecodeID"] == 2) & (rides["fare_amount"] > 0)]
    assert flat["fare_amount"].eq(70.0).all()


def test_tips_are_on_record_for_cards_and_apps_only(rides):
    assert set(rides["payment_type"][rides["tip_amount"] > 0]) == {0, 1}
    assert set(rides["payment_type"][rides["tip_amount"] == 0]) == {0, 1, 2, 3, 4}
    assert rides["tip_amount"].min() == 0


def test_tip_probability_is_calibrated_overall_and_where_values_are_missing(rides):
    p = tip_probability(rides)
    tipped = (rides["tip_amount"] > 0).to_numpy()
    assert 0.6 < tipped.mean() < 0.7
    bins = pd.qcut(p[p > 0], 20)
    rates = pd.DataFrame({"p": p[p > 0], "tipped": tipped[p > 0]}).groupby(bins, observed=True).mean()
    # 20 bins of 12,000 draws: a standard error of at most 0.0046.
    assert (rates["p"] - rates["tipped"]).abs().max() < 5 * 0.0046
    gap = rides["passenger_count"].isna().to_numpy()
    assert abs(p[gap].mean() - tipped[gap].mean()) < 5 * 0.5 / np.sqrt(gap.sum())
    assert not tipped[p == 0].any()


def test_tip_probability_sets_the_score_to_reach(rides):
    valid = valid_rides(rides)
    p = tip_probability(valid)
    assert 0.70 < roc_auc_score(valid["tipped"], p) < 0.75
    # Once p is known, how the ride was paid is all that tells more; fares and faults do not.
    half = p > np.median(p)
    cheap = (valid["fare_amount"] < valid["fare_amount"].median()).to_numpy()
    excess = valid["tipped"].to_numpy() - p
    for group in (half, ~half, cheap, ~cheap, (valid["trip_distance"] == 0).to_numpy()):
        assert abs(excess[group].mean()) < 5 * 0.5 / np.sqrt(group.sum())


def test_tip_probability_is_the_same_whatever_backs_the_columns(paths, rides):
    expected = tip_probability(rides)
    for backend in ("numpy_nullable", "pyarrow"):
        other = pd.read_parquet(paths[0], dtype_backend=backend)
        np.testing.assert_array_equal(tip_probability(other), expected)
    assert tip_probability(rides.iloc[:0]).shape == (0,)


def test_a_second_call_writes_nothing(tmp_path):
    (path,) = made_rides(1000, tmp_path)
    before = path.stat()
    assert made_rides(1000, str(tmp_path)) == [path]
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino
    assert [p.name for p in tmp_path.iterdir()] == ["rides-1000-0"]


def test_a_failing_writer_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "made_row_group", lambda *_: pa.table({"wrong": [1]}))
    with pytest.raises(ValueError, match="schema"):
        made_rides(1000, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_not_taken_for_the_result(tmp_path):
    for name, age_s in [(HALF_WRITTEN, 7200), (HALF_WRITTEN[:-1], 60)]:
        half = tmp_path / name
        half.mkdir()
        (half / "yellow_tripdata_2025-01.parquet").write_bytes(b"PAR1")
        stamp = half.stat().st_mtime - age_s
        os.utime(half, (stamp, stamp))
    (path,) = made_rides(1000, tmp_path)
    assert pq.read_metadata(path).num_rows == 1000
    # The young one may belong to a writer that lives.
    assert sorted(p.name for p in tmp_path.iterdir()) == [HALF_WRITTEN[:-1], "rides-1000-0"]


def test_the_first_of_two_writers_wins(tmp_path, monkeypatch):
    write_file = module._write_file

    def overtaken(path: Path, *args: int) -> None:
        write_file(path, *args)
        monkeypatch.setattr(module, "_write_file", write_file)
        made_rides(1000, tmp_path)

    monkeypatch.setattr(module, "_write_file", overtaken)
    (path,) = made_rides(1000, tmp_path)
    assert pq.read_metadata(path).num_rows == 1000
    assert [p.name for p in tmp_path.iterdir()] == ["rides-1000-0"]


def test_a_set_that_lost_a_file_is_refused(tmp_path):
    made_rides(1000, tmp_path)[0].unlink()
    with pytest.raises(FileExistsError, match="Delete that folder"):
        made_rides(1000, tmp_path)


@pytest.mark.parametrize("rows", [0, -1, 1.5, 1e6, "10", None, True])
def test_rows_must_be_a_positive_whole_number(tmp_path, rows):
    with pytest.raises(ValueError, match=r"rows must be a whole number, 1 or more, but is "):
        made_rides(rows, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_seed_must_be_a_whole_number(tmp_path):
    with pytest.raises(ValueError, match=r"seed must be a whole number, 0 or more, but is -1\."):
        made_rides(1, tmp_path, seed=-1)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="Pass a folder that you may write to"):
        made_rides(1, tmp_path / "file" / "rides")


def test_the_default_folder_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (path,) = made_rides(np.int64(1))
    assert path.parents[1].parent == tmp_path / "xdg" / "dpipe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    (path,) = made_rides(1)
    assert path.parents[1].parent == tmp_path / ".cache" / "dpipe"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    # VmHWM, not ru_maxrss: the latter starts at the peak of the process that started this one.
    script = """if True:
        import re, sys
        from recipes.made_rides import made_rides
        def peak_mib():
            return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
        imported = peak_mib()
        made_rides(100_000, sys.argv[1])
        one_group = peak_mib()
        made_rides(600_000, sys.argv[1])
        print(one_group - imported, peak_mib() - one_group)
    """
    command = [sys.executable, "-c", script, str(tmp_path)]
    root = Path(module.__file__).parents[1]
    result = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    one_group, growth = (float(text) for text in result.stdout.split())
    assert one_group < 150
    assert growth < 50
