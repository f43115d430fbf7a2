"""Polars and scikit-learn's SGD, by hand; with both options the fastest program found for this job.

Two passes over the files. The first is one streaming query per statistic, all of them collected together.
The second is one streaming query per file, which imputes, scales and encodes; its result is laid out in
rows as a sparse matrix. With `--ahead` a thread stays one file ahead of the classifier.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import sparse

from benchmarks.contenders.job import Block, Job, fit_and_score, main
from benchmarks.made_table import CATEGORICAL, LABEL, NUMERIC

N_NUMERIC = len(NUMERIC)
N_COLUMNS = N_NUMERIC + len(CATEGORICAL)


@dataclass(frozen=True)
class Statistics:
    """What the first pass learns.

    Attributes
    ----------
    mean, scale : numpy.ndarray of shape (20,)
        Mean of the known values; standard deviation once it has replaced what is missing.
    categories : tuple of list of str
        The distinct values of each string column, in order.
    """

    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    categories: tuple[list[str], ...]


def run(job: Job) -> float:
    """Fit on the training files, return the ROC AUC on the others."""
    encoder = Encoder(read_statistics(job.train))
    job.clock.lap("statistics")
    return fit_and_score(encoder.prepare, job)


def read_statistics(paths: list[Path]) -> Statistics:
    """Read all files once, with Polars' streaming engine."""
    lazy = pl.scan_parquet(paths)
    numeric = pl.col(NUMERIC)
    moments = lazy.select(
        numeric.mean().name.suffix("_mean"),
        numeric.var(ddof=0).name.suffix("_variance"),
        (numeric.count() / pl.len()).name.suffix("_known"),
    )
    distinct = [lazy.select(name).unique() for name in CATEGORICAL]
    found, *values = pl.collect_all([moments, *distinct], engine="streaming")
    mean, variance, known = np.array(found.row(0)).reshape(3, N_NUMERIC)
    scale = np.sqrt(variance * known)
    scale[scale == 0] = 1
    return Statistics(mean, scale, tuple(sorted(frame.to_series().to_list()) for frame in values))


class Encoder:
    """Turns a file into the matrix that the classifier learns from.

    Every row has 24 entries: 20 values, and a one for each string. What is missing is a zero after
    scaling; a string that was not seen in the first pass has a zero where its one would be.
    """

    def __init__(self, statistics: Statistics) -> None:
        columns = zip(NUMERIC, statistics.mean, statistics.scale, strict=True)
        values = [
            ((pl.col(name) - float(mean)) * float(1 / scale)).fill_null(0)  # still float32
            for name, mean, scale in columns
        ]
        ones: list[pl.Expr] = []
        places: list[pl.Expr] = []
        self._width = N_NUMERIC
        for name, categories in zip(CATEGORICAL, statistics.categories, strict=True):
            code = pl.col(name).cast(pl.Enum(categories), strict=False).to_physical().cast(pl.Int32)
            ones.append(code.is_not_null().cast(pl.Float32).alias(f"{name}_one"))
            places.append((code + self._width).fill_null(self._width))
            self._width += len(categories)
        self._expressions = [*values, *ones, *places, pl.col(LABEL)]
        self._data = [*NUMERIC, *(f"{name}_one" for name in CATEGORICAL)]

    def prepare(self, path: Path) -> Block:
        """Read one file and return its matrix and its labels."""
        frame = pl.scan_parquet(path).select(self._expressions).collect(engine="streaming")
        data = frame.select(self._data).to_numpy(order="c")
        indices = np.empty((len(frame), N_COLUMNS), dtype=np.int32)
        indices[:, :N_NUMERIC] = np.arange(N_NUMERIC)
        indices[:, N_NUMERIC:] = frame.select(list(CATEGORICAL)).to_numpy()
        starts = np.arange(0, data.size + 1, N_COLUMNS, dtype=np.int32)
        shape = (len(frame), self._width)
        X = sparse.csr_matrix((data.ravel(), indices.ravel(), starts), shape=shape)
        return X, frame[LABEL].to_numpy()


if __name__ == "__main__":
    main(run, can_permute=True)
