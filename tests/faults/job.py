"""Jobs that are disturbed: `python -m tests.faults.job KIND FOLDER`, each a real process.

Prints "begun" before the first block is read, and in the end one line of JSON: what came out, as a fingerprint, and
what was counted.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import xarray as xr
from distributed import Client
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import dpipe
from dpipe.collect.parquet import read_parquet
from dpipe.deploy.batch import score_files
from dpipe.errors import DpipeError
from dpipe.ledger.fingerprint import Fingerprinter
from dpipe.monitor.record import RunRecord
from dpipe.outputs import rechunk_plan

N_FILES, N_ROWS = 12, 3000
N_ROUNDS = 60
NUMBERS = ["a", "b", "c"]
#: Seconds that a block takes beside: a disturbance must be able to find one at work.
PAUSE_S = 0.03


def made_rows(i: int) -> pd.DataFrame:
    """The rows of file `i`."""
    rng = np.random.default_rng(i)
    frame = pd.DataFrame(rng.normal(size=(N_ROWS, 3)), columns=NUMBERS).mask(rng.random((N_ROWS, 3)) < 0.1)
    label = (frame["a"].fillna(0) + rng.normal(size=N_ROWS) > 0).astype(int)
    return frame.assign(kind=rng.choice(list("uvwxyz"), N_ROWS), label=label)


def make_data(folder: Path) -> None:
    """Write the files that all jobs read, and the bundle that they score with."""
    for i in range(N_FILES):
        path = folder / "data" / f"{i:03d}.parquet"
        path.parent.mkdir(exist_ok=True, parents=True)
        made_rows(i).to_parquet(path, index=False, row_group_size=N_ROWS // 2)
    frame = read_parquet(folder / "data")
    pipe = dpipe.Pipeline("bundle", workdir=folder / "bundled")
    model = pipe.train(
        make_pipeline(_columns(), SGDClassifier(loss="log_loss", random_state=0)), frame, target="label"
    )
    pipe.deploy(model)
    pipe.run(progress=False)


def slow(block: pd.DataFrame) -> pd.DataFrame:
    """Take some time over each block; fail over one of them if a file says so."""
    time.sleep(PAUSE_S if len(block) else 0)
    breaks = Path(os.environ.get("BREAKS", "/nonexistent"))
    if len(block) and breaks.exists() and block["a"].head(9).equals(made_rows(7)["a"].head(9)):
        if breaks.read_text() == "once":
            breaks.unlink()
        raise RuntimeError("a block that breaks")
    return block


def _columns():
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    return make_column_transformer((numbers, NUMBERS), (OneHotEncoder(), ["kind"]))


def fit(folder: Path, workdir: Path, client: Client | None) -> dict:
    """A merge pass, quantiles, and a solver that reads the blocks again and again."""
    return _train(make_pipeline(_columns(), LogisticRegression(max_iter=6)), folder, workdir, client)


def stream(folder: Path, workdir: Path, client: Client | None) -> dict:
    """An ordered learner, three epochs."""
    estimator = make_pipeline(_columns(), SGDClassifier(random_state=0))
    return _train(estimator, folder, workdir, client, epochs=3)


def boost(folder: Path, workdir: Path, client: Client | None) -> dict:
    """Boosted trees that draw rows; tells also how many rounds this process has learned."""
    from xgboost import Booster, XGBClassifier

    learned = []
    update = Booster.update

    def slowly(booster, *arguments):
        learned.append(None)
        time.sleep(PAUSE_S)
        update(booster, *arguments)

    Booster.update = slowly
    estimator = XGBClassifier(n_estimators=N_ROUNDS, subsample=0.7, n_jobs=1, random_state=0)
    found = _train(make_pipeline(_columns(), estimator), folder, workdir, client)
    return {**found, "rounds": len(learned)}


def together(folder: Path, workdir: Path, client: Client | None) -> dict:
    """Boosted trees of two learners: on two workers if there is a cluster, else in this process."""
    from xgboost import XGBClassifier

    estimator = XGBClassifier(n_estimators=N_ROUNDS, subsample=0.7, n_jobs=1, random_state=0, max_depth=3)
    return _train(make_pipeline(_columns(), estimator), folder, workdir, client, shares=2)


def shuffled(folder: Path, workdir: Path, client: Client | None) -> dict:
    """The same, its rows mixed over several blocks."""
    estimator = make_pipeline(_columns(), SGDClassifier(random_state=0))
    return _train(estimator, folder, workdir, client, epochs=dpipe.Epochs(2, shuffle="rows", mix=4))


def average(folder: Path, workdir: Path, client: Client | None) -> dict:
    """Three learners that are averaged."""
    estimator = make_pipeline(_columns(), SGDClassifier(average=True, random_state=0))
    return _train(estimator, folder, workdir, client, epochs=dpipe.Epochs(3, shuffle="blocks", average=3))


def stopped(folder: Path, workdir: Path, client: Client | None) -> dict:
    """A learner that is scored after each epoch, and stopped."""
    estimator = make_pipeline(_columns(), SGDClassifier(random_state=0))
    return _train(
        estimator,
        folder,
        workdir,
        client,
        epochs=dpipe.Epochs(5, shuffle="blocks", validation=0.2, patience=2),
    )


def search(folder: Path, workdir: Path, client: Client | None) -> dict:
    """Candidates that learn in order from the same blocks, stopped early."""
    frame = _slow_frame(folder)
    estimator = make_pipeline(_columns(), SGDClassifier(random_state=0))
    print("begun", flush=True)
    found = dpipe.search(
        estimator,
        {"sgdclassifier__alpha": np.logspace(-6, 2, 100)},
        frame[[*NUMBERS, "kind"]],
        frame["label"],
        max_iter=27,
        workdir=workdir,
        client=client,
    )
    passes = RunRecord.read(workdir / "run.json").passes
    history = [{k: v for k, v in one.items() if not k.endswith("_time")} for one in found.history_]
    return {
        "result": Fingerprinter().of([found.best_estimator_, found.best_params_, history]),
        # a search counts what it has read in this run: blocks that are kept are not read again
        "rows": [one.rows for one in passes if one.way != "search"],
        "blocks": sum(one.n_blocks for one in passes),
        "read": sum(one.n_blocks - one.n_recalled for one in passes),
    }


def _slow_frame(folder: Path):
    return read_parquet(folder / "data", block_nbytes="64 KiB").map_partitions(slow)


def _train(estimator, folder: Path, workdir: Path, client: Client | None, **options) -> dict:
    frame = _slow_frame(folder)
    print("begun", flush=True)
    with_warnings_off()
    fitted = dpipe.fit(
        estimator, frame[[*NUMBERS, "kind"]], frame["label"], workdir=workdir, client=client, **options
    )
    passes = RunRecord.read(workdir / "run.json").passes
    return {
        "result": Fingerprinter().of(fitted),
        "rows": [one.rows for one in passes],
        "blocks": sum(one.n_blocks for one in passes),
        "read": sum(one.n_blocks - one.n_recalled for one in passes),
    }


def with_warnings_off() -> None:
    """A solver that is stopped after six steps warns, which is of no interest here."""
    import warnings

    warnings.simplefilter("ignore")


def predict(folder: Path, workdir: Path, client: Client | None) -> dict:
    """Batch scoring, a file a task."""
    out = workdir / "scored"
    done = sum(1 for _ in out.glob("*.parquet"))
    print("begun", flush=True)
    score_files(folder / "bundled/bundle", str(folder / "data"), out, client=client)
    paths = sorted(out.glob("*.parquet"))
    tables = [pq.read_table(path) for path in paths]
    return {
        "result": Fingerprinter().of([table.replace_schema_metadata(None) for table in tables]),
        "rows": [sum(table.num_rows for table in tables)],
        "blocks": len(paths),
        "read": len(paths) - done,
    }


def _slow_map(block: np.ndarray) -> np.ndarray:
    time.sleep(PAUSE_S)
    return block


def rechunk(folder: Path, workdir: Path, client: Client | None) -> dict:
    """Maps to time series, by two copies, and then more maps to the end of them."""
    rechunk_plan._REGION_NBYTES = 40_000  # one copy would do for so little

    def maps(first: int, n: int) -> xr.Dataset:
        values = np.random.default_rng(first).normal(size=(n, 20, 30))
        lazy = da.from_array(values, chunks=(1, 20, 30)).map_blocks(_slow_map, dtype=values.dtype)
        return xr.Dataset({"t": (("time", "lat", "lon"), lazy)}, {"time": np.arange(first, first + n)})

    print("begun", flush=True)
    out = workdir / "series.zarr"
    if not (out / "_manifest.json").exists():
        dpipe.rechunk(maps(0, 30), out, chunks={"time": 20, "lat": 5, "lon": 5}, client=client)
    dpipe.append_zarr(maps(30, 15), out, client=client)
    checked = dpipe.verify(out)
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    del files["_manifest.json"]
    return {
        "result": Fingerprinter().of([files, checked.problems]),
        "rows": [dpipe.open_zarr(out).sizes["time"]],
        "blocks": checked.n_files,
        "read": checked.n_files,
    }


JOBS = {
    job.__name__: job
    for job in (fit, stream, shuffled, average, stopped, boost, together, search, predict, rechunk)
}


def main() -> int:
    """Do one job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=JOBS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--scheduler")
    arguments = parser.parse_args()
    client = Client(arguments.scheduler) if arguments.scheduler else None
    try:
        found = JOBS[arguments.kind](arguments.folder, arguments.workdir, client)
    except DpipeError as err:
        print(f"{type(err).__name__}: {err}", file=sys.stderr)
        return 3
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
