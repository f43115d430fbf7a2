"""What holds where PyTorch, an extra, is not installed."""

import os
import subprocess
import sys

from tests.conftest import CHECKOUT

COLLECT = """
import functools, sys
from importlib.machinery import PathFinder
def but_torch(found, name, *where):
    return None if name == "torch" else found(name, *where)
PathFinder.find_spec = functools.partial(but_torch, PathFinder.find_spec)
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "recipes", "tests/train", "tests/recipes"]))
"""


def test_tests_and_examples_are_collected():
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-c", COLLECT]
    ended = subprocess.run(command, cwd=CHECKOUT, env=plain, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    assert "recipes/made_rides.py" in ended.stdout
    assert "test_tensor.py" not in ended.stdout
