"""TargetEncoder: one pass; what follows it in a pipeline is fitted on its cross-fitted output, as in scikit-learn."""

from collections.abc import Sequence
from copy import copy
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.preprocessing import TargetEncoder

from dpipe.blocks.folds import DrawnFolds, Folds, KFolds, LabelPlaces, StratifiedFolds
from dpipe.blocks.table import Block, n_rows
from dpipe.blocks.target_sums import (
    MISSING,
    Kind,
    SumsByFold,
    SumsByValue,
    TargetSums,
    weighed,
)
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import refuse, stand_in
from dpipe.families.encode import encoded
from dpipe.families.registry import CrossFit, Estimator, Meta, Way, add


def _kind(estimator: Estimator) -> Kind:
    if estimator.target_type == "auto":
        return "auto"
    return "continuous" if estimator.target_type == "continuous" else "labels"


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    return _fitted(estimator, stats[0], meta)


def _fitted(estimator: Estimator, sums: TargetSums, meta: Meta) -> Estimator:
    refuse.unlabelled(estimator, sums.n_unlabelled)
    if sums.labels is None:
        refuse.gaps(estimator, finite=refuse.is_finite(*sums.tables), what="y")
    X = stand_in.of_values(sums.seen, meta)
    y = _made_up_targets(sums, n_rows(X))
    again = np.arange(len(y)) % n_rows(X)
    X = X.iloc[again] if isinstance(X, pd.DataFrame) else X[again]
    try:
        fitted = clone(estimator).fit(X, y)
    except IndexError as err:
        raise InputError(
            "TargetEncoder: target_type='multiclass' needs three classes. Use 'binary'."
        ) from err
    _put_in(fitted, sums)
    return fitted


def _made_up_targets(sums: TargetSums, n: int) -> np.ndarray:
    """Give targets of the same type, with every label."""
    if sums.labels is None:
        return (
            np.arange(n).astype(sums.dtype)
            if sums.dtype.kind != "f"
            else np.arange(n, dtype=sums.dtype) + 0.5
        )
    labels = np.array(sorted(sums.labels), dtype=sums.dtype)
    copies = 1 if 2 * len(labels) > sums.seen.n_rows else 3  # scikit-learn warns where few are alike
    return np.resize(labels, max(n, copies * len(labels)))


class _Targets(NamedTuple):
    """One of the numbers that a target is encoded as."""

    tables: list[np.ndarray]
    """For each column, count, mean and m2 of each of its categories."""
    mean: float
    variance: float


def _put_in(fitted: Estimator, sums: TargetSums) -> None:
    """Put in the encodings that follow from these sums."""
    targets = _targets(fitted, sums)
    means = [target.mean for target in targets]
    fitted.encodings_ = [
        _encoding(target.tables[j], target, fitted.smooth)
        for j in range(len(fitted.categories_))
        for target in targets
    ]
    kind = sums.dtype if sums.labels is None and sums.dtype == np.float32 else np.dtype("float64")
    fitted.target_mean_ = np.array(means) if fitted.target_type_ == "multiclass" else kind.type(means[0])


def _targets(fitted: Estimator, sums: TargetSums) -> list[_Targets]:
    if sums.labels is None:
        encodings: list[np.ndarray | None] = [None]
    elif fitted.target_type_ == "binary":
        encodings = [np.arange(len(fitted.classes_), dtype=np.float64)]
    else:
        encodings = list(np.eye(len(fitted.classes_)))
    found = []
    for values in encodings:
        tables = [
            table[0] if values is None else _of_labels(table[0], values, fitted, sums)
            for table in sums.tables
        ]
        count, mean, m2 = tables[-1][0]
        found.append(
            _Targets(
                [_of_categories(fitted, sums, j, tables[j]) for j in range(len(tables) - 1)], mean, m2 / count
            )
        )
    return found


def _of_labels(table: np.ndarray, values: np.ndarray, fitted: Estimator, sums: TargetSums) -> np.ndarray:
    """Give count, mean and m2 where each class is the number at its place among the classes."""
    assert sums.labels is not None
    number = dict(zip(fitted.classes_.tolist(), values.tolist(), strict=True))
    return weighed(table, np.array([number[label] for label in sums.labels]))


def _of_categories(fitted: Estimator, sums: TargetSums, j: int, table: np.ndarray) -> np.ndarray:
    """Sort a table by category; values that are none count for the first one, as in scikit-learn."""
    categories = [
        MISSING if value is None or value != value else value for value in fitted.categories_[j].tolist()
    ]
    places = sums.places[j]
    index = np.array([places.get(value, -1) for value in categories])
    out = np.where((index >= 0)[:, None], table[index], 0.0)
    known = set(categories)
    for value, i in places.items():
        if value not in known and table[i, 0]:
            out[0] = _added(out[0], table[i])
    return out


def _added(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    count, delta = a[0] + b[0], b[1] - a[1]
    return np.array([count, a[1] + delta * b[0] / count, a[2] + b[2] + delta**2 * a[0] * b[0] / count])


def _encoding(table: np.ndarray, target: _Targets, smooth: Any) -> np.ndarray:
    count, mean, m2 = table.T
    with np.errstate(invalid="ignore", divide="ignore"):
        if smooth == "auto":
            spread = target.variance * count
            share = spread / (spread + m2 / count)
        else:
            share = count / (count + smooth)
    return np.where(np.isnan(share), target.mean, share * mean + (1 - share) * target.mean)


def _times(fitted: Estimator) -> int:
    """Count the columns that each column becomes."""
    return len(fitted.classes_) if fitted.target_type_ == "multiclass" else 1


def _transform(fitted: Estimator, block: Block) -> np.ndarray:
    times = _times(fitted)
    parts = encoded(fitted, block, lambda table: np.split(table, table.shape[1] // times, axis=1))
    out = np.empty((n_rows(block), times * len(parts)))
    for j, (index, rows) in enumerate(parts):
        if len(index):
            out[:, j * times : (j + 1) * times] = rows[index]
    return out


def _output(estimator: Estimator, meta: Meta) -> Meta:
    one_each = estimator.target_type in ("continuous", "binary")
    return Meta(n_columns=meta.width if one_each else None)


class _Splitter(NamedTuple):
    """How folds are to be dealt out."""

    n_splits: int
    shuffle: bool
    seed: Any
    stratified: bool | None
    """None to follow the target."""


def _splitter(estimator: Estimator) -> _Splitter | None:
    cv: Any = 5 if estimator.cv is None else estimator.cv
    if isinstance(cv, Integral):
        shuffle, seed = estimator.shuffle, estimator.random_state
        stratified = False if estimator.target_type == "continuous" else None
        shuffle, seed = shuffle in ("deprecated", True), None if isinstance(seed, str) else seed
        return _Splitter(int(cv), shuffle, seed, stratified)
    if type(cv) in (KFold, StratifiedKFold):
        return _Splitter(cv.n_splits, cv.shuffle, cv.random_state, type(cv) is StratifiedKFold)
    return None


def _check(estimator: Estimator) -> None:
    splitter = _splitter(estimator)
    if splitter is None or not (splitter.seed is None or isinstance(splitter.seed, Integral)):
        raise UnsupportedEstimatorError(
            f"TargetEncoder(cv={estimator.cv!r}) is not supported. Use a number of folds, a KFold or a "
            "StratifiedKFold, with an integer or None as random_state."
        )


def _deals(estimator: Estimator) -> tuple[_Splitter, bool]:
    """Give how folds are dealt out, and whether that depends on where a row stands."""
    splitter = _splitter(estimator)
    assert splitter is not None
    return splitter, splitter.seed is not None or not splitter.shuffle


def _wanted_places(estimator: Estimator) -> tuple[Any, ...]:
    splitter, placed = _deals(estimator)
    return (LabelPlaces,) if placed and splitter.stratified is not False else ()


def _found_folds(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Folds:
    splitter, placed = _deals(estimator)
    seed = splitter.seed if splitter.shuffle else None
    if not placed:
        return DrawnFolds(splitter.n_splits, splitter.stratified is not False)
    if splitter.stratified is False:
        return KFolds(splitter.n_splits, seed)
    places: LabelPlaces = stats[0]
    if not places.continuous:
        return StratifiedFolds(places, splitter.n_splits, seed)
    if splitter.stratified:
        raise InputError("TargetEncoder(cv=StratifiedKFold(...)): y is continuous. Use a KFold.")
    return KFolds(splitter.n_splits, seed)


def _wanted_by_fold(estimator: Estimator) -> tuple[Any, ...]:
    splitter, placed = _deals(estimator)
    return (SumsByFold(_kind(estimator), splitter.n_splits, placed),)


class CrossFitted:
    """What rows are encoded as that are fitted on: by the targets of all other folds."""

    def __init__(self, fitted: Estimator, folds: Sequence[Estimator]) -> None:
        times = _times(fitted)
        unknown = np.ravel(folds[-1].target_mean_)  # that of the last fold, as scikit-learn leaves it
        self.fitted = fitted
        self.coder = copy(fitted)
        """Encodes values as the places of their categories; -1 is unknown."""
        self.coder.target_type_ = "continuous"
        self.coder.encodings_ = [np.arange(len(found), dtype=np.float64) for found in fitted.categories_]
        self.coder.target_mean_ = -1.0
        self.tables = [
            np.array(
                [
                    np.vstack([np.transpose(fold.encodings_[j * times : (j + 1) * times]), unknown])
                    for fold in folds
                ]
            )
            for j in range(len(fitted.categories_))
        ]
        """For each column an array of shape (n_folds, n_categories + 1, n_outputs)."""

    def transform(self, X: tuple[Block, np.ndarray]) -> np.ndarray:
        """Encode a block, each row as its fold has it."""
        block, folds = X
        times = _times(self.fitted)
        out = np.empty((n_rows(block), times * len(self.tables)))
        parts = encoded(self.coder, block, lambda table: list(table.T))
        for j, (index, places) in enumerate(parts):
            out[:, j * times : (j + 1) * times] = self.tables[j][folds, places.astype(np.intp)[index]]
        return out

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Name the columns of the output."""
        names: np.ndarray = self.fitted.get_feature_names_out(input_features)
        return names


def _finish_crossed(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> CrossFitted:
    sums: TargetSums = stats[0]
    fitted = _fitted(estimator, sums.of_folds(range(sums.n_folds)), meta)
    folds = []
    for i in range(sums.n_folds):
        others = sums.of_folds([j for j in range(sums.n_folds) if j != i])
        if not others.n_rows.sum():
            raise InputError(f"TargetEncoder(cv={sums.n_folds}): there are too few rows. Use fewer folds.")
        folds.append(copy(fitted))
        _put_in(folds[-1], others)
    return CrossFitted(fitted, folds)


def _transform_crossed(crossed: CrossFitted, X: tuple[Block, np.ndarray]) -> np.ndarray:
    return crossed.transform(X)


add(
    TargetEncoder,
    Way(
        "merge",
        _finish,
        lambda est: (SumsByValue(_kind(est)),),
        _transform,
        check=_check,
        output=_output,
        needs_y=True,
        exact="1e-9 relative; folds as scikit-learn deals them out for an integer seed",
        cross_fit=CrossFit(
            folds=Way("merge", _found_folds, _wanted_places),
            crossed=Way("merge", _finish_crossed, _wanted_by_fold, _transform_crossed, output=_output),
        ),
    ),
)
