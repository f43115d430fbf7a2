"""What benchmarks of arrays share: their options, their folder, and contenders in processes of their own."""

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fit_and_score import ROOT


def options(name: str, about: str | None, contenders: Iterable[str], days: int, size: str) -> ArgumentParser:
    """Give a parser of the options that all of them have.

    Parameters
    ----------
    name : str
        Of the module in benchmarks.
    about : str, optional
        Its docstring.
    contenders : iterable of str
        What `--only` may name.
    days : int
        How many, unless told.
    size : str
        What the days of the store take.
    """
    parser = ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    parser.add_argument("--days", type=int, default=days, help=size)
    parser.add_argument("--folder", type=Path, help="where the data is or goes (a temporary folder)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each contender (3)")
    parser.add_argument("--contenders", help="which, by commas")
    parser.add_argument("--only", choices=list(contenders), help="run this one here, and print JSON")
    return parser


def parsed(parser: ArgumentParser, argv: Sequence[str] | None, name: str) -> Namespace:
    """Parse the options, and make the folder."""
    arguments = parser.parse_args(argv)
    arguments.folder = (arguments.folder or Path(tempfile.gettempdir()) / name).resolve()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    return arguments


def run_apart(name: str, only: str, given: Mapping[str, Any], limit: Sequence[str] = ()) -> dict[str, Any]:
    """Run a contender of a module in a process of its own, started by the program that sets a limit if there is one.

    Returns
    -------
    dict
        What it has printed, and under "limit" what that program has said.
    """
    named = [f"--{option}={value}" for option, value in given.items() if value is not None]
    command = [*limit, sys.executable, "-m", f"benchmarks.{name}", *named, f"--only={only}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        told = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{only} ended with status {done.returncode}: {' '.join(told)}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["limit"] = done.stderr.strip().splitlines()[-1] if limit else ""
    return found
