"""The benchmark of gridded data as a test: fields so small that only the answers count, not the seconds."""

import json

import numpy as np
import pytest

from benchmarks import fields

DAYS = 400


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A coarse grid, in a folder of its own."""
    monkeypatch.setattr(fields, "LATS", 19)
    monkeypatch.setattr(fields, "LONS", 36)
    return tmp_path


def answer(name, folder, capsys):
    assert fields.main(["--days", str(DAYS), "--folder", str(folder), "--only", name]) == 0
    return np.array(json.loads(capsys.readouterr().out)["answer"])


def test_all_find_the_same_modes(small, capsys, monkeypatch):
    # as for a fine grid: few readings, not the cross products of all cells
    monkeypatch.setattr("dpipe.families.decompose._NARROW", 100)
    found = answer("dpipe_eofs", small, capsys)
    values = fields._weighted(small / f"field-{DAYS}.zarr").values.reshape(DAYS, -1).astype(float)
    exact = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)[:5] ** 2 / (DAYS - 1)
    np.testing.assert_allclose(found, exact, rtol=1e-6)


@pytest.mark.parametrize("by", ["dayofyear", "month"])
def test_both_find_the_same_anomalies(by, small, capsys):
    pytest.importorskip("flox", reason="flox is compared where it is installed")
    mine, theirs = (answer(f"{who}_{by}", small, capsys) for who in ("dpipe", "flox"))
    np.testing.assert_allclose(mine, theirs, rtol=1e-4)


def test_the_regimes_hold_all_days(small, capsys):
    assert answer("dpipe_regimes", small, capsys).sum() == DAYS
