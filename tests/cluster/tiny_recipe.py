"""A recipe for tests of clusters: little data, and as much time for each block as a test wants."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.cli import main

NAME = "tests.cluster.tiny_recipe"
N_BLOCKS, N_ROWS = 30, 500


def slowly(frame: pd.DataFrame, pause: float) -> pd.DataFrame:
    """Give a block as it is, after a pause."""
    if len(frame):  # planning tries it on an empty one
        time.sleep(pause)
    return frame


def made(folder: Path) -> list[str]:
    """Write the files of the recipe, if they are not there, and list them."""
    rng = np.random.default_rng(0)
    paths = [folder / f"part-{i:02d}.parquet" for i in range(N_BLOCKS)]
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        values = rng.normal(size=(N_ROWS, 3))
        frame = pd.DataFrame(values, columns=["a", "b", "c"]).assign(y=values @ [1.0, -2.0, 0.5])
        if not path.exists():
            frame.to_parquet(path)
    return [str(path) for path in paths]


def tiny_recipe(*, folder: str = "tiny", pause: float = 0.0) -> dpipe.Pipeline:
    """Fit a regression on some small files."""
    pipe = dpipe.Pipeline("tiny", workdir=f"{folder}/workdir")
    rows = pipe.collect(made(Path(folder) / "data"), block_nbytes="8 KiB")
    late = pipe.preprocess(rows, slowly, pause=pause)
    model = pipe.train(make_pipeline(StandardScaler(), Ridge()), late, target="y")
    report = pipe.validate(model, rows, scoring=["r2"])
    pipe.deploy(model, report, to="bundle")
    return pipe


def until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something is so; fail if that takes too long."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"{is_so} is still not so after {seconds} s"
        time.sleep(0.1)


def followed(capsys: Any, name: str) -> str:
    """Follow a submission to its end; give what its status was."""
    said = ""

    def ended() -> bool:
        nonlocal said
        main(["status", name])
        said = capsys.readouterr().out
        assert "lost" not in said, said
        return "finished" in said or "failed" in said

    until(ended, 600)
    return said


def fitted(folder: Path) -> list[bytes]:
    """Give the coefficients that a run of the recipe has deployed, to the bit."""
    model = dpipe.load(folder / "workdir" / "bundle").model
    return [model[0].mean_.tobytes(), model[1].coef_.tobytes()]
