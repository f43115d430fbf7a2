"""What metrics remember of the rows they have seen: states that can be merged.

As for fits, each has `of`, which reads one block, and `merge`: any tree over the blocks gives
the metric of all rows, and a fixed tree gives the same bits every time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd

from dpipe.blocks.regression import target_matrix
from dpipe.blocks.statistics import Extremes, Moments
from dpipe.blocks.table import codes
from dpipe.errors import InputError

#: Bins of the calibration curve: scikit-learn's uniform strategy.
CALIBRATION_BINS = 20


@dataclass(frozen=True)
class Want:
    """A state that a pass collects: what it is, and what of the model's answers it reads."""

    state: Any
    """A class with ``of(block, want)`` and `merge`."""
    method: str
    """The model's method whose answers it reads."""
    positive: int = 1
    """Place of the positive label among the two labels, for what ranks or calibrates."""


@dataclass(frozen=True)
class ScoredBlock:
    """One block of test rows: what is true, and what the model says."""

    y: np.ndarray
    w: np.ndarray | None
    answers: Mapping[str, Any]
    """By the model's methods."""
    labels: tuple[Any, ...] = ()
    """The model's `classes_`."""
    scratch: str | None = None
    """Folder for what is too large to hold."""

    @cached_property
    def weights(self) -> np.ndarray:
        """Weights of the rows, ones without weights."""
        return np.ones(len(self.y)) if self.w is None else np.asarray(self.w, dtype=np.float64)

    @cached_property
    def target(self) -> np.ndarray:
        """The labels in one dimension, checked."""
        y = np.asarray(self.y)
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1:
            raise InputError(
                f"y has {y.shape[1]} columns; metrics of labels take one. Score each column apart."
            )
        missing = int(np.count_nonzero(pd.isna(y)))
        if missing:
            raise InputError(f"{missing:,} labels are missing in a block of y. Drop those rows first.")
        if y.dtype.kind == "f" and (y != np.floor(y)).any():
            odd = y[y != np.floor(y)][0]
            raise InputError(f"y holds {odd:g}, which is no label. Use a metric of regression, such as r2.")
        return y

    @cached_property
    def class_index(self) -> np.ndarray:
        """Each row's place among the model's labels."""
        found = codes(self.target.reshape(-1, 1), 0)
        place = {label: i for i, label in enumerate(self.labels)}
        unknown = [value for value in found.values if value not in place]
        if unknown:
            raise InputError(
                f"y holds {', '.join(map(repr, unknown[:5]))}, but the model knows only "
                f"{', '.join(map(repr, self.labels[:5]))}. Leave those rows out, or fit the model with them."
            )
        return np.array([place[value] for value in found.values], dtype=np.int64)[found.codes]

    def scores(self, want: Want) -> np.ndarray:
        """How strongly the model leans towards the positive label, each row a number."""
        answer = np.asarray(self.answers[want.method])
        if want.method == "predict_proba":
            answer = answer[:, want.positive]
        elif want.positive == 0:
            answer = -answer
        if not np.isfinite(answer).all():
            raise InputError(
                f"The model's {want.method} gives NaN or infinity. Check its input and parameters."
            )
        return answer if answer.dtype.kind == "f" else answer.astype(np.float64)


@dataclass(frozen=True)
class Confusion:
    """How often each label was taken for which."""

    counts: dict[tuple[Any, Any], float]
    """By (true, predicted): rows, or the sum of their weights. Whole numbers without weights."""

    @classmethod
    def of(cls, block: ScoredBlock, want: Want) -> Self:
        """Read one block."""
        answer = np.asarray(block.answers[want.method])
        true, said = codes(block.target.reshape(-1, 1), 0), codes(answer.reshape(-1, 1), 0)
        width = len(said.values)
        cells = true.codes.astype(np.int64) * width + said.codes
        n_cells = len(true.values) * width
        rows = np.bincount(cells, minlength=n_cells)
        sums = rows if block.w is None else np.bincount(cells, block.weights, minlength=n_cells)
        return cls(
            {
                (true.values[cell // width], said.values[cell % width]): sums[cell].item()
                for cell in np.flatnonzero(rows)
            }
        )

    def merge(self, other: Self) -> Self:
        """Join with the counts of later rows."""
        both = dict(self.counts)
        for cell, count in other.counts.items():
            both[cell] = both.get(cell, 0) + count
        return type(self)(both)

    @cached_property
    def labels(self) -> list[Any]:
        """All labels, true or predicted, sorted.

        Raises
        ------
        InputError
            If they cannot be sorted: the model gives other kinds of labels than y has.
        """
        found = {label for cell in self.counts for label in cell}
        try:
            return sorted(found)
        except TypeError as err:
            kinds = " and ".join(sorted({type(label).__name__ for label in found}))
            raise InputError(
                f"The labels of y and of the model are of different kinds: {kinds}. Convert y to what the "
                "model was fitted on."
            ) from err

    @cached_property
    def matrix(self) -> np.ndarray:
        """Sums by (true, predicted) of shape (n_labels, n_labels), as scikit-learn's confusion matrix."""
        place = {label: i for i, label in enumerate(self.labels)}
        out = np.zeros((len(place), len(place)))
        for (true, said), count in self.counts.items():
            out[place[true], place[said]] = count
        return out


@dataclass(frozen=True)
class Residuals:
    """Moments and extremes of the targets, the errors, and their sizes."""

    moments: Moments
    """Of 3 times n_outputs columns: targets, errors, sizes of errors."""
    extremes: Extremes

    @classmethod
    def of(cls, block: ScoredBlock, want: Want) -> Self:
        """Read one block."""
        try:
            true, said = target_matrix(block.y), target_matrix(block.answers[want.method])
        except (TypeError, ValueError) as err:
            raise InputError(f"y or the predictions are not numeric: {err}. Use a metric of labels.") from err
        if true.shape != said.shape:
            raise InputError(f"y has {true.shape[1]} columns, but the model predicts {said.shape[1]}.")
        missing = int((~np.isfinite(true)).sum())
        if missing:
            raise InputError(
                f"{missing:,} targets of a block of y are NaN or infinite. Drop those rows first."
            )
        errors = true - said
        if not np.isfinite(errors).all():
            raise InputError("The model predicts NaN or infinity. Check its input and parameters.")
        columns = np.hstack([true, errors, np.abs(errors)])
        return cls(Moments.of(columns, None, block.w), Extremes.of(columns))

    def merge(self, other: Self) -> Self:
        """Join with the residuals of later rows."""
        return type(self)(self.moments.merge(other.moments), self.extremes.merge(other.extremes))


@dataclass(frozen=True)
class ProbabilityLosses:
    """Sums of the losses of predicted probabilities."""

    weight: float
    log_loss: float
    brier: float

    @classmethod
    def of(cls, block: ScoredBlock, want: Want) -> Self:
        """Read one block."""
        proba = np.asarray(block.answers[want.method])
        if not np.isfinite(proba).all():
            raise InputError(
                f"The model's {want.method} gives NaN or infinity. Check its input and parameters."
            )
        proba = proba if proba.dtype.kind == "f" else proba.astype(np.float64)
        binary = proba.shape[1] == 2
        if binary:
            proba = np.column_stack([1 - proba[:, 1], proba[:, 1]])
        rows, true = np.arange(len(proba)), block.class_index
        eps = np.finfo(proba.dtype).eps
        log_loss = -np.log(np.clip(proba[rows, true], eps, 1 - eps).astype(np.float64))
        errors = proba.astype(np.float64)
        errors[rows, true] -= 1
        brier = np.square(errors).sum(axis=1) * (0.5 if binary else 1.0)
        w = block.weights
        return cls(float(w.sum()), float((w * log_loss).sum()), float((w * brier).sum()))

    def merge(self, other: Self) -> Self:
        """Join with the losses of later rows."""
        return type(self)(
            self.weight + other.weight, self.log_loss + other.log_loss, self.brier + other.brier
        )


@dataclass(frozen=True)
class Calibration:
    """Rows, predicted probability and positives in equal bins of the probability."""

    sums: np.ndarray
    """Of shape (3, CALIBRATION_BINS)."""

    @classmethod
    def of(cls, block: ScoredBlock, want: Want) -> Self:
        """Read one block."""
        proba = block.scores(want).astype(np.float64)
        inner = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)[1:-1]
        bins = np.searchsorted(inner, proba)
        true = block.class_index == want.positive
        parts = [block.weights, block.weights * proba, block.weights * true]
        return cls(np.stack([np.bincount(bins, part, minlength=CALIBRATION_BINS) for part in parts]))

    def merge(self, other: Self) -> Self:
        """Join with later rows."""
        return type(self)(self.sums + other.sums)
