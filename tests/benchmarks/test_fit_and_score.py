"""The benchmark as a test: a table so small that only the answers count, not the seconds."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from benchmarks import fit_and_score
from benchmarks.contenders import by_hand
from benchmarks.contenders.job import make_model, read_ahead, train_and_test
from benchmarks.made_table import CATEGORICAL, LABEL, NUMERIC, made_table

ROWS = 4_000
HAND_WRITTEN = ["by_hand", "polars_streaming"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit_and_score")
    made_table(folder, rows=ROWS)
    return folder


@pytest.fixture(scope="module")
def in_memory(folder):
    return _result("sklearn_in_memory", folder)


def _result(contender, folder):
    run = fit_and_score.run_contender(contender, folder)
    assert not run.error
    return run.result


def _require(contender):
    if contender.startswith("polars"):
        pytest.importorskip("polars", reason="Polars is compared where it is installed")


@pytest.mark.parametrize(
    "contender", [*HAND_WRITTEN, "by_hand --ahead --permuted", "dpipe_fit --no-processes"]
)
def test_contenders_reach_the_same_auc(contender, folder, in_memory):
    _require(contender)
    result = _result(contender, folder)
    assert result["contender"] == contender.split()[0]
    assert result["auc"] == pytest.approx(in_memory["auc"], abs=fit_and_score.tolerance(ROWS))
    assert result["auc"] > 0.75
    assert result["peak_nbytes"] > 2**20
    assert sum(result["phases"].values()) == pytest.approx(result["seconds"])


@pytest.mark.parametrize("contender", HAND_WRITTEN)
def test_hand_written_matrices_equal_scikit_learns(contender, folder):
    _require(contender)
    module = import_module(f"benchmarks.contenders.{contender}")
    seen, unseen = sorted(folder.glob("*.parquet"))[:2]  # 200 rows do not hold all the 300 stores
    transformers = make_model()[:-1].fit(pd.read_parquet(seen))
    encoder = module.Encoder(module.read_statistics([seen]))
    for path in (seen, unseen):
        X, y = encoder.prepare(path)
        frame = pd.read_parquet(path)
        expected = transformers.transform(frame)
        assert X.shape == expected.shape
        assert X.dtype == expected.dtype == np.float32
        np.testing.assert_allclose(X.toarray(), expected.toarray(), rtol=0, atol=2e-5)
        np.testing.assert_array_equal(y, frame[LABEL])


def test_by_hand_merges_the_statistics_of_files(folder):
    train, _ = train_and_test(folder)
    frame = pd.read_parquet(train)
    statistics = by_hand.read_statistics(train)
    known = frame[list(NUMERIC)].astype(float)
    np.testing.assert_allclose(statistics.mean, known.mean(), rtol=1e-9)
    np.testing.assert_allclose(statistics.scale, known.fillna(known.mean()).std(ddof=0), rtol=1e-9)
    assert statistics.categories == tuple(frozenset(frame[name]) for name in CATEGORICAL)


def test_made_table_twice_gives_identical_files(tmp_path):
    first = made_table(tmp_path / "first", rows=501, files=3, row_groups=2)
    second = made_table(tmp_path / "second", rows=501, files=3, row_groups=2)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len({path.read_bytes() for path in first}) == 3
    other = made_table(tmp_path / "other", rows=501, files=3, row_groups=2, seed=1)
    assert first[0].read_bytes() != other[0].read_bytes()


def test_made_table_is_written_once(tmp_path):
    (tmp_path / "part-001.unfinished").write_bytes(b"of a run that was killed")
    paths = made_table(tmp_path, rows=500, files=2)
    before = [path.stat().st_mtime_ns for path in paths]
    assert made_table(tmp_path, rows=500, files=2) == paths
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert sorted(tmp_path.iterdir()) == paths


def test_made_table_has_the_stated_layout(tmp_path):
    paths = made_table(tmp_path, rows=60_001, files=2)
    assert [pq.read_metadata(path).num_rows for path in paths] == [30_001, 30_000]
    assert [pq.read_metadata(path).num_row_groups for path in paths] == [4, 4]
    frame = pd.read_parquet(paths)
    assert list(frame) == [*NUMERIC, *CATEGORICAL, LABEL]
    assert set(frame[list(NUMERIC)].dtypes) == {np.dtype("float32")}
    np.testing.assert_allclose(frame[list(NUMERIC)].isna().mean(), 0.05, atol=0.005)
    assert frame[list(CATEGORICAL)].nunique().to_dict() == CATEGORICAL
    assert set(frame[LABEL]) == {0, 1}
    assert not frame[[*CATEGORICAL, LABEL]].isna().any(axis=None)


def test_made_table_refuses_a_folder_with_another_table(tmp_path):
    made_table(tmp_path, rows=500, files=2)
    with pytest.raises(ValueError, match="Choose an empty folder"):
        made_table(tmp_path, rows=600, files=2)
    with pytest.raises(ValueError, match="Choose an empty folder"):
        made_table(tmp_path, rows=500, files=1)


def test_made_table_refuses_empty_row_groups(tmp_path):
    with pytest.raises(ValueError, match="need 8 rows or more"):
        made_table(tmp_path, rows=7, files=2)


def test_train_and_test_refuses_too_few_files(tmp_path):
    made_table(tmp_path, rows=500, files=2)
    with pytest.raises(ValueError, match="3 or more are needed"):
        train_and_test(tmp_path)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_read_ahead_keeps_the_order(count):
    paths = [Path(str(index)) for index in range(count)]
    assert list(read_ahead(lambda path: int(path.name), paths)) == list(range(count))


def test_table_shows_medians_and_failures(folder, capsys):
    status = fit_and_score.main(
        ["--rows", str(ROWS), "--folder", str(folder), "--repeat", "1", "--contenders", "by_hand,no_such"]
    )
    printed = capsys.readouterr()
    assert status == 1
    assert "| by_hand | " in printed.out
    assert "| by_hand | failed |" not in printed.out
    assert "| no_such | failed |" in printed.out
    assert "No module named benchmarks.contenders.no_such" in printed.out
    assert "1/1 no_such: exit status 1" in printed.err


def test_table_takes_medians_over_the_turns():
    def run(contender, seconds):
        result = {"seconds": seconds, "auc": 0.8, "peak_nbytes": 2**21, "phases": {"learn": seconds / 2}}
        return fit_and_score.Run(contender, result)

    seconds = {"polars_streaming": [4.0, 2.0, 9.0], "by_hand": [6.0, 8.0, 7.0]}
    runs = [run(contender, seconds[contender][turn]) for turn in range(3) for contender in seconds]
    *_, polars, hand = fit_and_score.as_table(runs).splitlines()
    assert polars == "| polars_streaming | 4.00 s | 1.00 | 0.80000 | 2 MiB | learn 2.00 s |"
    assert hand == "| by_hand | 7.00 s | 1.75 | 0.80000 | 2 MiB | learn 3.50 s |"
    assert fit_and_score.disagreement(runs) == 0
