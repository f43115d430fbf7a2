"""The benchmark of rechunking as a test: a field so small that only the answers count, not the seconds."""

import json

from benchmarks import rechunk


def test_dpipe_gives_the_field(tmp_path, capsys):
    options = ["--days", "40", "--memory", "8 GiB", "--folder", str(tmp_path), "--only", "dpipe_rechunk"]
    assert rechunk.main(options) == 0
    assert json.loads(capsys.readouterr().out)["right"] is True
