"""The command line, called as its users call it."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from dpipe.cli import main

RECIPE = """
import numpy as np, pandas as pd, dask.dataframe as dd, dpipe
from sklearn.linear_model import LinearRegression

def line(rows: int = 100, *, slope: float = 2.0, noisy: bool = False, workdir="work", source=None):
    x = np.arange(float(rows))
    frame = pd.DataFrame({"x": x, "y": slope * x})
    pipe = dpipe.Pipeline("line", workdir=workdir)
    data = pipe.collect(dd.from_pandas(frame, npartitions=4))
    train, test = pipe.split(data, test_size=0.3)
    model = pipe.train(LinearRegression(), train, target="y")
    report = pipe.validate(model, test, scoring="r2", require={"r2": 0.9})
    pipe.deploy(model, report)
    return pipe

def nothing():
    return 1
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The name of a recipe in the current folder; each test has a module of its own."""
    name = f"line_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return f"{name}:line"


def test_run_leaves_results_and_prints_where(recipe, capsys, tmp_path):
    assert main(["run", recipe, "rows=200", "slope=3", "--quiet", "--memory", "4GiB"]) == 0
    said = capsys.readouterr().out
    assert "r2" in said
    assert "report.html" in said
    assert (tmp_path / "work" / "bundle" / "model.skops").exists()


def test_plan_prints_passes_and_computes_nothing(recipe, capsys, tmp_path):
    assert main(["plan", recipe]) == 0
    assert "1 pass over" in capsys.readouterr().out
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("arguments", [["rows=50", "--memory", "2GiB"], ["--memory", "2GiB", "rows=50"]])
def test_options_may_stand_anywhere(recipe, capsys, arguments):
    assert main(["plan", recipe, *arguments]) == 0
    assert "budget 2.00 GiB" in capsys.readouterr().out


def test_an_unknown_option_shows_the_usage_of_its_command(recipe, capsys):
    with pytest.raises(SystemExit):
        main(["plan", recipe, "--bogus"])
    assert re.search(
        r"usage: dpipe plan.*unrecognized arguments: --bogus", capsys.readouterr().err, re.DOTALL
    )


def test_a_reader_that_has_seen_enough_is_no_error(recipe):
    command = f"{sys.executable} -m dpipe.cli estimators | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 141)  # the list may be written before the reader leaves


def test_predict_scores_files_and_skips_them_the_second_time(recipe, capsys, tmp_path):
    assert main(["run", recipe, "--quiet"]) == 0
    pd.DataFrame({"x": [1.0, 2.0, 3.0]}).to_parquet(tmp_path / "new.parquet")
    for _ in range(2):
        assert main(["predict", "work/bundle", "new.parquet", "scored", "--quiet"]) == 0
    assert "1 were there already" in capsys.readouterr().out
    (written,) = Path("scored").glob("*.parquet")
    values = pq.read_table(written).to_pandas().iloc[:, -1]
    assert values.tolist() == pytest.approx([2.0, 4.0, 6.0])


def test_report_prints_an_address(recipe, capsys, tmp_path):
    assert main(["run", recipe, "--quiet"]) == 0
    (tmp_path / "work" / "report.html").unlink()
    capsys.readouterr()
    assert main(["report", "work"]) == 0
    assert capsys.readouterr().out.startswith("file://")
    assert (tmp_path / "work" / "report.html").exists()


def test_estimators_lists_ways(capsys):
    assert main(["estimators"]) == 0
    said = capsys.readouterr().out
    assert "StandardScaler" in said
    assert "stream" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no.such.recipe"], "There is no recipe 'no.such.recipe'"),
        (["run", "{recipe}", "row=5"], "has no parameter 'row'.*Did you mean 'rows'"),
        (["run", "{recipe}", "rows=many"], "rows='many' is not a whole number"),
        (["run", "{recipe}", "noisy=maybe"], "neither true nor false"),
        (["run", "{recipe}", "rows"], "'rows' is not KEY=VALUE"),
        (["run", "{module}:nothing"], "returned a int; a recipe returns a dpipe.Pipeline"),
        (["run", "{module}:missing"], "has no function 'missing'"),
        (["run", "{recipe}", "--memory", "lots"], "'lots' is not a size"),
        (["run", "{recipe}", "--memory", "1MiB"], "The plan needs"),
        (["run", "{recipe}", "--workers", "0"], "--workers must be at least 1"),
        (["predict", "nowhere", "in.parquet", "out"], "nowhere"),
        (["predict", "nowhere", "in.parquet"], "needs input files and an output folder"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_errors_are_one_line_that_helps(recipe, capsys, arguments, message):
    module = recipe.partition(":")[0]
    filled = [text.format(recipe=recipe, module=module) for text in arguments]
    assert main(filled) == 1
    said = capsys.readouterr().err
    assert said.startswith("dpipe: ")
    assert "Traceback" not in said
    assert re.search(message, said), said


@pytest.mark.parametrize("command", ["run", "plan", "predict", "report", "estimators"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert command in capsys.readouterr().out


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "dpipe.cli", "estimators"],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert "OneHotEncoder" in done.stdout
