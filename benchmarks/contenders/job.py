"""The job that every contender does, and the parts that none of them could do better.

Fit on all files but the last two: mean-impute and standardise the numeric columns, one-hot encode the
string columns, and show each file once, in order, to a linear classifier. Score ROC AUC on the last two.
"""

import gc
import json
import resource
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import psutil
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.made_table import CATEGORICAL, NUMERIC, TEST_FILES

AHEAD = "prepare the next file in a thread, while the classifier learns from this one"
PERMUTED = "shuffle rows ahead of the classifier: it then reads memory in order, which is most of its time"
CLASSES = np.array([0, 1], dtype=np.int8)

Labels = npt.NDArray[np.int8]
Block = tuple[sparse.csr_matrix, Labels]
Prepared = TypeVar("Prepared")


class Clock:
    """Seconds since the start, shared out among named phases.

    Attributes
    ----------
    phases : dict of str to float
        Seconds of each phase so far.
    """

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        gc.collect()  # what the imports have left is nobody's work
        self._start = self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Count the time since the last lap towards `phase`."""
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._last
        self._last = now

    @property
    def seconds(self) -> float:
        """Seconds from the start to the last lap."""
        return self._last - self._start


@dataclass(frozen=True)
class Job:
    """What a contender is given.

    Attributes
    ----------
    train, test : list of pathlib.Path
        The files to fit on and the files to score on, in order.
    clock : Clock
        Started already.
    ahead : bool
        Prepare the next file in a thread, while the classifier learns from this one.
    permuted : bool
        Shuffle the rows of a file while it is prepared, instead of leaving it to the classifier.
    """

    train: list[Path]
    test: list[Path]
    clock: Clock
    ahead: bool = False
    permuted: bool = False


def make_model() -> Pipeline:
    """Return the whole job as one unfitted pipeline; float32 in, float32 all the way."""
    numeric = make_pipeline(SimpleImputer(), StandardScaler())
    strings = OneHotEncoder(handle_unknown="ignore", dtype=np.float32)
    columns = ColumnTransformer(
        [("numeric", numeric, list(NUMERIC)), ("strings", strings, list(CATEGORICAL))]
    )
    return Pipeline([("columns", columns), ("classifier", make_classifier())])


def make_classifier() -> SGDClassifier:
    """Return the unfitted last step."""
    return SGDClassifier(loss="log_loss", average=True, random_state=0)


def train_and_test(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files to fit on and the files to score on."""
    paths = sorted(folder.glob("*.parquet"))
    if len(paths) <= TEST_FILES:
        raise ValueError(f"{folder} holds {len(paths)} Parquet files; {TEST_FILES + 1} or more are needed.")
    return paths[:-TEST_FILES], paths[-TEST_FILES:]


def read_ahead(prepare: Callable[[Path], Prepared], paths: Sequence[Path]) -> Iterator[Prepared]:
    """Yield each file prepared, while a thread prepares the next one."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(prepare, paths[0])
        for path in paths[1:]:
            block = coming.result()
            coming = thread.submit(prepare, path)
            yield block
        yield coming.result()


def fit_and_score(prepare: Callable[[Path], Block], job: Job) -> float:
    """Learn from the prepared training files in order and return the ROC AUC on the others."""
    model = make_classifier().set_params(shuffle=not job.permuted)
    train = frozenset(job.train)

    def prepare_in_order(path: Path) -> Block:
        X, y = prepare(path)
        if not job.permuted or path not in train:
            return X, y
        order = np.random.default_rng(0).permutation(len(y))
        return X[order], y[order]

    labels, scores = [], []
    paths = [*job.train, *job.test]
    blocks = read_ahead(prepare_in_order, paths) if job.ahead else map(prepare_in_order, paths)
    for index, (X, y) in enumerate(blocks):
        job.clock.lap("wait" if job.ahead else "prepare")
        if index < len(job.train):
            model.partial_fit(X, y, classes=CLASSES)
            job.clock.lap("learn")
        else:
            labels.append(y)
            scores.append(model.decision_function(X))
            job.clock.lap("score")
    auc = float(roc_auc_score(np.concatenate(labels), np.concatenate(scores)))
    job.clock.lap("score")
    return auc


def main(run: Callable[[Job], float], *, can_permute: bool = False) -> None:
    """Do the job on the folder named on the command line and print one line of JSON."""
    parser = ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("folder", type=Path)
    if can_permute:
        parser.add_argument("--ahead", action="store_true", help=AHEAD)
        parser.add_argument("--permuted", action="store_true", help=PERMUTED)
    options = vars(parser.parse_args())
    train, test = train_and_test(options.pop("folder"))
    job = Job(train, test, Clock(), **options)
    print_result(run(job), job.clock)


def print_result(auc: float, clock: Clock) -> None:
    """Print what a contender reports, as one line of JSON."""
    result = {
        "contender": Path(sys.argv[0]).stem,
        "seconds": clock.seconds,
        "auc": auc,
        "peak_nbytes": peak_nbytes(),
        "phases": clock.phases,
    }
    print(json.dumps(result))


def peak_nbytes() -> int:
    """Return the peak resident memory of this process and its children, in bytes.

    It is the sum of what each process held at its own peak: exact for one process, an upper bound for
    several. Where there is no `/proc`, this process alone is counted.
    """
    if not Path("/proc/self/status").exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    here = psutil.Process()
    return sum(_high_water_mark(process.pid) for process in [here, *here.children(recursive=True)])


def _high_water_mark(pid: int) -> int:
    """Return the peak resident memory of one process, in bytes: 0 if it has just ended."""
    # Not ru_maxrss: a process starts with its parent's.
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)
