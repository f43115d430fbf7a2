"""The package map, public names in recipes, sizes and docstrings; then the checks themselves."""

import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.conftest import CHECKOUT
from tests.package_map import (
    MAX_FILE_LINES,
    MAX_FUNCTION_LINES,
    ORDER,
    circle,
    parse,
    private_uses,
    public_names,
    read,
    too_long,
    undocumented,
    unfinished,
    wrong_imports,
)

DPIPE, RECIPES = read(CHECKOUT, "dpipe"), read(CHECKOUT, "recipes")
ALL = {**DPIPE, **RECIPES, **read(CHECKOUT, "benchmarks"), **read(CHECKOUT, "tests")}


def assert_none(found: Sequence[str]) -> None:
    assert not found, "\n" + "\n".join(found)


def test_there_is_something_to_check():
    assert {"dpipe", "dpipe.errors", "dpipe.sizes"} <= set(DPIPE)
    assert len(RECIPES) > 1
    assert "tests.test_package_map" in ALL


def test_imports_point_down_the_package_map():
    assert_none(wrong_imports(DPIPE))


def test_imports_make_no_circle():
    assert_none(circle(DPIPE))


def test_the_root_lists_its_public_names():
    assert public_names(DPIPE["dpipe"]), "dpipe/__init__.py has no literal __all__"


def test_recipes_use_public_names_only():
    public = public_names(DPIPE["dpipe"])
    assert_none([line for module in RECIPES.values() for line in private_uses(module, public)])


def test_files_and_functions_are_short():
    assert_none([line for module in ALL.values() for line in too_long(module)])


def test_nothing_is_put_off():
    assert_none([line for module in ALL.values() for line in unfinished(module)])


def test_all_public_names_are_documented():
    assert_none([line for module in {**DPIPE, **RECIPES}.values() for line in undocumented(module)])


def test_the_readme_draws_the_same_map():
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    drawn = re.search(r"^dpipe/\n((?:  .+\n)+)", text, re.MULTILINE)
    assert drawn, "README.md has no package map"
    entries = [line.split()[0] for line in drawn[1].splitlines()]
    assert_none([entry for entry in entries if not (CHECKOUT / "dpipe" / entry).exists()])
    names = [entry.removesuffix("/").removesuffix(".py") for entry in entries]
    parts = {module.part for module in DPIPE.values()}
    assert names == ["__init__", *(part for part in ORDER if part in parts)]


# The checks themselves, on made-up sources.


@pytest.mark.parametrize(
    "sources",
    [
        {"dpipe.run": "from dpipe.blocks.table import n_rows\nimport dpipe.errors as errors"},
        {"dpipe.train.fit": "from dpipe.train import averaging", "dpipe.train.averaging": ""},
        {"dpipe.cli": "import dpipe.pipeline", "dpipe": "from dpipe.train import fit"},
        {"dpipe.run": "import dask", "dpipe.blocks.table": "import numpy, pandas"},
        {"dpipe.sizes": "from dpipe.errors import InputError"},
    ],
)
def test_imports_downward_are_allowed(sources):
    assert wrong_imports(parse(sources)) == []


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("dpipe.run", "import os\nfrom dpipe.train import fit", r"dpipe\.run:2: .*dpipe\.train stands above"),
        (
            "dpipe.blocks.table",
            "def f():\n    import dpipe.run",
            r":2: .*dpipe\.run stands above dpipe\.blocks",
        ),
        ("dpipe.errors", "from dpipe.sizes import parse_bytes", r"dpipe\.sizes stands above dpipe\.errors"),
        ("dpipe.sizes", "from dpipe.blocks import table", r"dpipe\.blocks stands above dpipe\.sizes"),
        ("dpipe.run", "import dpipe", "root package"),
        ("dpipe.cli", "from dpipe import fit", "root package"),
        ("dpipe.run", "from . import errors", r"relative import of \."),
        ("dpipe.train.fit", "from ..errors import InputError", r"relative import of \.\.errors"),
        ("dpipe", "from .run import run", r"relative import of \.run"),
        ("dpipe.utils", "", r"dpipe\.utils is not on the package map"),
        ("dpipe.run", "import dpipe.utils", r"dpipe\.utils is not on the package map"),
        ("dpipe.blocks.table", "import dask.array as da", r"imports dask\.array: .*without Dask"),
        ("dpipe.blocks.table", "from distributed import Client", "imports distributed: .*without Dask"),
    ],
)
def test_wrong_imports_are_found(name, source, found):
    (line,) = wrong_imports(parse({name: source}))
    assert re.search(found, line)


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        ({"dpipe.run": "", "dpipe.sizes": "import dpipe.errors", "dpipe.errors": ""}, set()),
        ({"dpipe.train": "from dpipe.train import a", "dpipe.train.a": "from dpipe.errors import b"}, set()),
        (
            {"dpipe.train.a": "from dpipe.train import b", "dpipe.train.b": "from dpipe.train.a import f"},
            {"dpipe.train.a", "dpipe.train.b"},
        ),
        (
            {"dpipe.train": "from dpipe.train.a import f", "dpipe.train.a": "from dpipe.train import g"},
            {"dpipe.train", "dpipe.train.a"},
        ),
    ],
)
def test_circles_are_found(sources, names):
    assert set(circle(parse(sources))) == names


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import dpipe\nfitted = dpipe.fit(1)\nfitted._private", []),
        ("import dpipe as dp\ndp.fit\nfrom dpipe import fit", []),
        ("from recipes.made_rides import made_rides", []),
        ("import dpipe\n\ndpipe.refit(1)", ["recipes.r:3: dpipe.refit"]),
        ("import dpipe as dp\ndp.families.catalog", ["recipes.r:2: dpipe.families"]),
        ("from dpipe import refit", ["recipes.r:1: dpipe.refit"]),
        ("from dpipe.train import fit", ["recipes.r:1: dpipe.train.fit"]),
        ("import dpipe.train", ["recipes.r:1: dpipe.train"]),
    ],
)
def test_private_uses_are_found(source, found):
    (module,) = parse({"recipes.r": source}).values()
    assert [line.split(" is not")[0] for line in private_uses(module, {"fit", "plan"})] == found


def test_public_names_are_read_without_importing():
    root = parse({"dpipe": "import nowhere\n__all__ = ['fit', 'plan']", "dpipe.run": "x = 1"})
    assert public_names(root["dpipe"]) == {"fit", "plan"}
    assert public_names(root["dpipe.run"]) == set()


@pytest.mark.parametrize(("n_lines", "n_found"), [(MAX_FUNCTION_LINES, 0), (MAX_FUNCTION_LINES + 1, 1)])
def test_long_functions_are_found(n_lines, n_found):
    docstring = '    """Do it.\n' + "\n" * 50 + '    """\n'
    source = "class A:\n  def f():\n" + docstring + "    x = 1\n" * (n_lines - 1)
    (module,) = parse({"dpipe.run": source}).values()
    assert len(too_long(module)) == n_found


@pytest.mark.parametrize(("n_lines", "n_found"), [(MAX_FILE_LINES, 0), (MAX_FILE_LINES + 1, 1)])
def test_long_files_are_found(n_lines, n_found):
    (module,) = parse({"dpipe.run": "x = 1\n" * n_lines}).values()
    assert len(too_long(module)) == n_found


def test_work_put_off_is_found():
    source = 'text = "# TODO: no comment"\nx = 1  # TODO: later\n# a TODOS list\n'
    (module,) = parse({"dpipe.run": source}).values()
    assert unfinished(module) == ["dpipe.run:2: # TODO: later"]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""A module."""\ndef f():\n    """Process it.\n\n    More.\n    """\ndef _g(): ...', ""),
        ('"""A module."""\nclass A:\n    """The plan."""\n    def __len__(self): ...', ""),
        ('"""A module."""\nclass A:\n    """A."""\n    @property\n    def a(self):\n        """Rows."""', ""),
        ("x = 1", "the module has no docstring"),
        ('"""A module."""\ndef f(): ...', ":2: f has no docstring"),
        ('"""A module."""\nclass A:\n    """A."""\n    def f(self): ...', ":4: A.f has no docstring"),
        ('"""A module."""\ndef f():\n    """Returns rows."""', "not begin with an imperative"),
        ('"""A module."""\ndef f():\n    """The rows."""', "not begin with an imperative"),
        ('"""A module."""\ndef f():\n    """Count rows"""', "not begin with a sentence of one line"),
        ('"""A module."""\ndef f():\n    """Count\n    rows."""', "not begin with a sentence of one line"),
    ],
)
def test_missing_documentation_is_found(source, found):
    (module,) = parse({"dpipe.run": source}).values()
    lines = undocumented(module)
    assert len(lines) == bool(found)
    assert found in "".join(lines)


def test_importing_dpipe_loads_no_heavy_library_that_it_may_not_need():
    heavy = ("torch", "polars", "skops", "xgboost", "lightgbm", "optuna", "pandera", "s3fs")
    script = f"import sys, dpipe; print(*[name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
