"""pyarrow, NumPy and scikit-learn's SGD: the program one would write for this very job.

Two passes over the files. The first finds means, standard deviations and categories, a few files at a
time, one thread each. The second writes the values and the dictionary codes of each file straight into
a sparse matrix. With `--ahead` a thread stays one file ahead of the classifier.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import sparse

from benchmarks.contenders.job import Block, Job, fit_and_score, main
from benchmarks.made_table import CATEGORICAL, LABEL, NUMERIC

N_NUMERIC = len(NUMERIC)
N_COLUMNS = N_NUMERIC + len(CATEGORICAL)
TILE = 2_048  # rows that are turned from columns into rows at once: they fit a core's cache

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """What the first pass learns: moments of the known values, and the distinct strings.

    Attributes
    ----------
    n_samples : int
        Rows, missing values included.
    known, mean, squares : numpy.ndarray of shape (20,)
        Number of known values, their mean, and the sum of squared differences from it.
    categories : tuple of frozenset of str
        The distinct values of each string column.
    """

    n_samples: int
    known: Floats
    mean: Floats
    squares: Floats
    categories: tuple[frozenset[str], ...]

    def merge(self, other: "Statistics") -> "Statistics":
        """Return the statistics of both, after Chan, Golub and LeVeque (1979)."""
        known = self.known + other.known
        shift = other.mean - self.mean
        return Statistics(
            self.n_samples + other.n_samples,
            known,
            self.mean + shift * other.known / known,
            self.squares + other.squares + shift**2 * self.known * other.known / known,
            tuple(mine | theirs for mine, theirs in zip(self.categories, other.categories, strict=True)),
        )

    @property
    def scale(self) -> Floats:
        """Standard deviation once the mean has replaced what is missing."""
        scale = np.sqrt(self.squares / self.n_samples)
        scale[scale == 0] = 1
        return scale


def run(job: Job) -> float:
    """Fit on the training files, return the ROC AUC on the others."""
    encoder = Encoder(read_statistics(job.train))
    job.clock.lap("statistics")
    return fit_and_score(encoder.prepare, job)


def read_statistics(paths: Sequence[Path]) -> Statistics:
    """Read all files once, one thread each."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        first, *rest = threads.map(_statistics_of, paths)
    for statistics in rest:
        first = first.merge(statistics)
    return first


def _read(path: Path, *, use_threads: bool) -> pa.Table:
    """Read one file, its strings as dictionary codes."""
    return pq.ParquetFile(path, read_dictionary=list(CATEGORICAL)).read(use_threads=use_threads)


def _statistics_of(path: Path) -> Statistics:
    """Read one file and return its statistics; every numeric column must hold some known value."""
    table = _read(path, use_threads=False)
    known = np.array([len(table[name]) - table[name].null_count for name in NUMERIC], dtype=float)
    mean = np.array([pc.mean(table[name]).as_py() for name in NUMERIC])
    variance = np.array([pc.variance(table[name]).as_py() for name in NUMERIC])
    # The writer puts a value into a dictionary only when some row holds it.
    categories = tuple(
        frozenset(value for chunk in table[name].chunks for value in chunk.dictionary.to_pylist())
        for name in CATEGORICAL
    )
    return Statistics(len(table), known, mean, variance * known, categories)


class Encoder:
    """Turns a file into the matrix that the classifier learns from.

    Every row has 24 entries: 20 values, and a one for each string. What is missing is a zero after
    scaling; a string that was not seen in the first pass has a zero where its one would be.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._mean = statistics.mean.astype(np.float32)[:, None]
        self._factor = (1 / statistics.scale).astype(np.float32)[:, None]
        self._places: list[dict[str, int]] = []
        self._width = N_NUMERIC
        for values in statistics.categories:
            self._places.append({value: self._width + rank for rank, value in enumerate(sorted(values))})
            self._width += len(values)

    def prepare(self, path: Path) -> Block:
        """Read one file and return its matrix and its labels."""
        table = _read(path, use_threads=True)
        data = np.ones((len(table), N_COLUMNS), dtype=np.float32)
        indices = np.empty((len(table), N_COLUMNS), dtype=np.int32)
        indices[:, :N_NUMERIC] = np.arange(N_NUMERIC)
        self._write_values(table, data)
        for column, (name, places) in enumerate(zip(CATEGORICAL, self._places, strict=True), N_NUMERIC):
            codes = _codes(table[name], places)
            data[codes < 0, column] = 0
            indices[:, column] = np.maximum(codes, N_NUMERIC)
        starts = np.arange(0, data.size + 1, N_COLUMNS, dtype=np.int32)
        shape = (len(table), self._width)
        X = sparse.csr_matrix((data.ravel(), indices.ravel(), starts), shape=shape)
        return X, table[LABEL].to_numpy()

    def _write_values(self, table: pa.Table, data: npt.NDArray[np.float32]) -> None:
        """Impute and scale the numeric columns into the rows of `data`."""
        columns = [table[name].to_numpy() for name in NUMERIC]  # null becomes NaN
        tile = np.empty((N_NUMERIC, TILE), dtype=np.float32)
        for start in range(0, len(table), TILE):
            values = tile[:, : len(table) - start]
            for row, column in zip(values, columns, strict=True):
                row[:] = column[start : start + TILE]
            values -= self._mean
            values *= self._factor
            np.copyto(values, 0, where=np.isnan(values))
            data[start : start + TILE, :N_NUMERIC] = values.T


def _codes(column: pa.ChunkedArray, places: dict[str, int]) -> npt.NDArray[np.int32]:
    """Return the column of the matrix that each string stands for, or -1."""
    parts = []
    for chunk in column.chunks:
        lookup = np.array([places.get(value, -1) for value in chunk.dictionary.to_pylist()], dtype=np.int32)
        parts.append(lookup[chunk.indices.to_numpy()])
    return np.concatenate(parts)


if __name__ == "__main__":
    main(run, can_permute=True)
