"""What a test does on a Grid Engine of its own: `grid_engine.sh python grid_engine_job.py FOLDER` prints it as JSON."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.cluster import keeper
from dpipe.cluster.check import check_cluster
from dpipe.cluster.cluster import Cluster
from dpipe.errors import ClusterError


def late(block: np.ndarray, pause: float) -> np.ndarray:
    """Give a block as it is, after a pause."""
    time.sleep(pause)
    return block


def bits(pause: float, client: Any = None) -> str:
    """Fit, and give what was learned to the bit; the same whatever the pause is."""
    X = da.random.default_rng(0).normal(size=(3200, 3), chunks=(100, 3))
    late_rows = X.map_blocks(late, pause, dtype=float, meta=np.empty((0, 3)))
    model = dpipe.fit(StandardScaler(), late_rows, client=client)
    return str(model.mean_.tobytes().hex() + model.var_.tobytes().hex())


def jobs() -> list[str]:
    """List the numbers of all jobs in the queue."""
    said = subprocess.run(["qstat"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in said.splitlines() if line.split()[:1] and line.split()[0].isdigit()]


def despite_a_lost_job(spec: Cluster) -> dict[str, Any]:
    """Fit, and end a job of the workers in mid-run."""
    with spec as client:
        client.wait_for_workers(2, timeout=90)
        first = jobs()[0]
        timer = threading.Timer(
            2, lambda: subprocess.run(["qdel", first], check=True, stdout=subprocess.DEVNULL)
        )
        timer.start()
        found = bits(0.5, client)
        timer.join()
        end = time.monotonic() + 60
        while first in jobs() or len(jobs()) < 2:
            if time.monotonic() > end:
                break
            time.sleep(0.5)
        return {"bits": found, "lost": first, "jobs": jobs()}


def error_of(spec: Cluster) -> dict[str, Any]:
    """Start what cannot start; give what is said, and after how many seconds."""
    begun = time.monotonic()
    try:
        with spec:
            return {"says": "it has started"}
    except ClusterError as err:
        return {"says": str(err), "seconds": time.monotonic() - begun}


def main(folder: Path) -> None:
    """Do all of it, and print what came of it."""
    keeper.EVERY_S = 0.5
    spec = Cluster(
        "sge",
        workers=2,
        memory="1 GiB",
        walltime="00:20:00",
        queue="all.q",
        directives=["-pe smp 1", "-V"],
        interface="lo",
        scratch=str(folder / "scratch"),
        folder=str(folder / "dpipe"),
    )
    checked = check_cluster(spec)
    found: dict[str, Any] = {
        "check": [str(finding) for finding in checked.findings],
        "script": checked.script,
    }
    found["undisturbed"] = bits(0.0)
    found["despite"] = despite_a_lost_job(spec)
    found["python"] = error_of(replace(spec, python="/nowhere/python"))
    found["queue"] = error_of(replace(spec, queue="nowhere"))
    found["left"] = jobs()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
