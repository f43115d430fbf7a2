"""The benchmark of a search over files as a test: files so small that only the answers count, not the seconds."""

import json

from benchmarks import search_files


def test_blocks_are_read_once_for_all_candidates(tmp_path, capsys):
    sizes = ["--rows", "20000", "--columns", "5", "--max-iter", "9", "--folder", str(tmp_path)]
    assert search_files.main(sizes) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["candidates"] == 17
    assert found["calls"] == 69
    assert found["times_less"] > 2
    assert found["auc"] > 0.7
