"""The README, the CI script and the lists of packages say the same thing."""

import re
import shutil
import subprocess
import tomllib

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sklearn.preprocessing import StandardScaler

import dpipe
from tests.conftest import CHECKOUT
from tests.helpers import raise_if_computes
from tests.package_map import parse, private_uses, public_names, read

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PUBLIC = public_names(read(CHECKOUT, "dpipe")["dpipe"])
SETUP = "python3 -m venv .venv && .venv/bin/pip install -q -e "


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def start_commands() -> tuple[str, str]:
    main_job, tests = blocks(section("Start here"), "sh")[0].splitlines()
    return main_job, tests


def requirements(*extras: str) -> dict[str, str]:
    """Name and bounds of what dpipe with these extras needs; its own extras are followed."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    needed = {}
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            needed |= requirements(*requirement.extras)
        else:
            needed[canonicalize_name(requirement.name)] = str(requirement.specifier)
    return needed


def test_two_commands_start_from_nothing():
    main_job, tests = start_commands()
    assert main_job == f"{SETUP}. && .venv/bin/dpipe run recipes.taxi_tips rows=200000"
    assert tests == f'{SETUP}".[test]" && .venv/bin/python -m pytest -q'
    assert PROJECT["scripts"] == {"dpipe": "dpipe.cli:main"}


def test_the_recipes_of_the_readme_exist():
    named = set(re.findall(r"\brecipes\.(\w+)", README))
    assert named
    for name in named:
        assert (CHECKOUT / "recipes" / f"{name}.py").is_file()


def test_ci_runs_the_test_command_of_the_readme():
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash: install it to check .ci/run")
    script = CHECKOUT / ".ci" / "run"
    shown = subprocess.run([bash, script, "--show"], capture_output=True, text=True, check=True, timeout=30)
    assert shown.stdout.splitlines() == [start_commands()[1]]
    text = script.read_text(encoding="utf-8")
    assert '\neval "$command"' in text
    assert "-m pytest -q" not in text, "the command stands in the README only"


@pytest.mark.parametrize("number", range(5))
def test_examples_use_public_names_only(number):
    source = blocks(README, "python")[number]
    (module,) = parse({f"README.example_{number + 1}": source}).values()
    assert private_uses(module, PUBLIC) == []


def test_the_first_example_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "flights").mkdir()
    rng = np.random.default_rng(0)
    for month in range(3):
        table = pd.DataFrame(
            {
                "distance": rng.gamma(2.0, 400.0, 1000),
                "hour": rng.integers(0, 24, 1000),
                "carrier": rng.choice(["AA", "DL", "UA"], 1000),
            }
        )
        table["late"] = (table["hour"] + rng.normal(0, 4, 1000) > 15).astype("int8")
        table.to_parquet(tmp_path / "flights" / f"{month}.parquet")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(blocks(README, "python")[0], "README.md", "exec"), names)
    *printed, score = capsys.readouterr().out.splitlines()
    assert printed
    assert float(score) > 0.7
    late = names["late"].compute()
    assert late.shape == (3000, 2)
    assert list(tmp_path.iterdir()) == [tmp_path / "flights"]


def test_the_example_of_boosted_trees_runs(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    flights = pd.DataFrame({"hour": rng.integers(0, 24, 2000), "carrier": rng.choice(["AA", "DL"], 2000)})
    flights["late"] = (flights["hour"] + rng.normal(0, 4, 2000) > 15).astype("int8")
    monkeypatch.chdir(tmp_path)
    lazy = dd.from_pandas(flights.astype({"carrier": "category"}), npartitions=3)
    names: dict = {"dpipe": dpipe, "flights": lazy}
    exec(compile(blocks(README, "python")[2], "README.md", "exec"), names)
    assert names["fitted"].best_iteration < 200
    assert (tmp_path / "runs" / "late" / "report.html").is_file()


def test_the_example_of_labelled_arrays_runs():
    (source,) = [block for block in blocks(README, "python") if "dpipe.patterns" in block]
    names: dict = {}
    exec(compile(source, "README.md", "exec"), names)
    rng = np.random.default_rng(0)
    coords = {"lat": np.linspace(-60, 60, 4)}
    field = xr.DataArray(rng.normal(size=(40, 4, 6)), dims=("time", "lat", "lon"), coords=coords)
    eofs, series = names["modes"](field.chunk(time=10))
    assert (eofs.dims, series.dims) == (("component", "lat", "lon"), ("time", "component"))
    climate = xr.Dataset({"t": field, "p": field**2}).where(field.lat < 50)
    found = names["regimes"](climate.chunk(time=10)).compute()
    assert found.dims == ("lat", "lon")
    assert int(found.isnull().sum()) == 6


def test_the_example_of_the_loader_learns():
    torch = pytest.importorskip("torch", reason="the example is of PyTorch")
    (source,) = [block for block in blocks(README, "python") if "dpipe.Loader" in block]
    names: dict = {}
    exec(compile(source, "README.md", "exec"), names)
    hours = np.random.default_rng(0).uniform(0, 24, size=20_000)
    frame = dd.from_pandas(pd.DataFrame({"hour": hours, "late": (hours > 15).astype("int8")}), npartitions=3)
    scaler = dpipe.fit(StandardScaler(), frame[["hour"]])
    torch.manual_seed(0)
    module = torch.nn.Linear(1, 2)
    position = names["learned"](module, torch.optim.Adam(module.parameters(), 0.1), scaler, frame, epochs=10)
    assert (position["epoch"], position["step"]) == (10, 0)
    predicted = module(torch.tensor(scaler.transform(frame[["hour"]].compute())).float()).argmax(dim=1)
    assert (predicted.numpy() == (hours > 15)).mean() > 0.9


def test_the_example_of_networks_trains(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="the example is of PyTorch")
    monkeypatch.chdir(tmp_path)
    (source,) = [block for block in blocks(README, "python") if "dpipe.DataParallel" in block]
    names: dict = {}
    exec(compile(source, "README.md", "exec"), names)
    hours = np.random.default_rng(0).uniform(0, 24, size=20_000)
    frame = dd.from_pandas(pd.DataFrame({"hour": hours, "late": (hours > 15).astype("int8")}), npartitions=3)
    fitted = names["trained"](torch.nn.Linear(1, 2), frame)
    assert (fitted.predict(frame[["hour"]].compute()) == (hours > 15)).mean() > 0.9
    assert (tmp_path / "runs" / "network" / "report.html").is_file()


def test_the_example_of_a_split_network_is_planned():
    pytest.importorskip("torch", reason="the example is of PyTorch")
    (source,) = [block for block in blocks(README, "python") if "dpipe.ModelParallel" in block]
    names: dict = {}
    exec(compile(source, "README.md", "exec"), names)
    hours = pd.DataFrame({"hour": np.arange(5000.0), "distance": np.arange(5000.0)})
    with raise_if_computes():
        plan = names["planned"](dd.from_pandas(hours, npartitions=3))
    assert "2 stages, 1f1b, 8 times 128 rows a batch" in str(plan)


def test_environment_yml_names_the_same_packages():
    environment = yaml.safe_load((CHECKOUT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"][0] == "conda-forge"
    assert pip == {"pip": ["-e ."]}
    listed = {canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, packages)}
    listed["xgboost-cpu"] = listed.pop("py-xgboost-cpu")  # its name at conda-forge
    assert listed.pop("pip") == ""
    assert listed.pop("python") == PROJECT["requires-python"]
    assert listed == requirements("test", "dev")


def test_the_extras_of_the_readme_exist():
    sentence = README.split("Extras, as in")[1].split("\n\n")[0]
    listed = re.findall(r"`(\w+)`", sentence)
    assert listed == list(PROJECT["optional-dependencies"])


def test_the_version_stands_in_one_place():
    version = re.compile(rf"(?<![\w.=<>~]){re.escape(PROJECT['version'])}(?![\w.])")
    folders = ["dpipe", "recipes", "benchmarks", "tests"]
    files = [path for folder in folders for path in (CHECKOUT / folder).rglob("*.py")]
    files += [
        CHECKOUT / name for name in ("pyproject.toml", "environment.yml", "README.md", "CONTRIBUTING.md")
    ]
    found = [path.name for path in files for _ in version.findall(path.read_text(encoding="utf-8"))]
    assert found == ["pyproject.toml"]


def test_the_table_of_estimators_is_that_of_the_registry():
    table = README.split("<!-- estimators table -->\n")[1].split("<!-- end of the table -->")[0]
    rows = [
        f"| `{row.name}` | {row.way} | {row.passes} | {row.exact} |"
        for row in dpipe.estimators()
        if row.way != "none" and row.module.startswith("sklearn.")
    ]
    assert table.splitlines()[2:] == rows
