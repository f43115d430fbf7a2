"""Scores of classifiers on the rows of each fold, by those that have not seen them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dpipe.blocks.rows import Rows
from dpipe.blocks.table import Block, n_rows
from dpipe.composites.stacked import as_given
from dpipe.composites.views import InFold
from dpipe.families.registry import Estimator

Scores = Callable[[Rows], tuple[np.ndarray, Rows]]
"""Gives the scores of some rows, of shape (n_rows, n_scores), and these rows."""


@dataclass(frozen=True, eq=False)
class ScoresOf:
    """Scores of the rows of a view by one classifier; or of each fold's by the one that has not seen them."""

    fits: tuple[Estimator, ...]
    views: tuple[InFold, ...]

    def __call__(self, rows: Rows) -> tuple[np.ndarray, Rows]:
        """Score the rows that the views let through."""
        found, seen = [], []
        for fit, view in zip(self.fits, self.views, strict=True):
            mine = view(rows)
            if n_rows(mine.X):
                found.append(_scored(fit, mine.X))
                seen.append(mine)
        if not seen:
            return np.empty((0, 0)), self.views[0](rows)
        y = np.concatenate([np.asarray(mine.y) for mine in seen])
        w = None if rows.w is None else np.concatenate([mine.w for mine in seen if mine.w is not None])
        return np.concatenate(found), Rows(np.empty((len(y), 0)), y, w)


def _scored(fit: Estimator, X: Block) -> np.ndarray:
    if hasattr(fit, "decision_function"):
        said = fit.decision_function(as_given(fit, X))
        return said.reshape(-1, 1) if said.ndim == 1 else said
    said = fit.predict_proba(as_given(fit, X))
    return said[:, 1:] if said.shape[1] == 2 else said
