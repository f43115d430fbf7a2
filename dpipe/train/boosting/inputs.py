"""What beside X and y a boosted model is given: rows that are held out, and the groups of a ranker."""

from typing import Any, NamedTuple

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd

from dpipe.collect.source import Source, open_source
from dpipe.collect.split import split
from dpipe.errors import InputError
from dpipe.families.boosting import is_ranker, library_of, stops_early
from dpipe.families.compose import Walk
from dpipe.families.registry import Estimator
from dpipe.sizes import counted


class Given(NamedTuple):
    """The arguments of a fit, the rows that are held out taken apart."""

    X: Any
    y: Any
    w: Any
    held_out: Source | None


def take_apart(X: Any, y: Any, w: Any, validation: Any, qid: Any) -> Given:
    """Take apart what is held out, and put groups beside the targets.

    Raises
    ------
    InputError
        If `validation` is neither data nor a share, or `qid` is not a column.
    """
    held_out: tuple[Any, ...] | None = None
    if isinstance(validation, float | int) and not isinstance(validation, bool):
        X, held_out = _shared(X, y, w, float(validation), qid)
    elif validation is not None:
        held_out = _data(validation)
    if qid is not None:
        X, y = _with_groups(X, y, qid)
        if held_out is not None:
            if not isinstance(qid, str):
                raise InputError("validation: give qid as the name of a column that X has in both.")
            held_X, held_y = _with_groups(held_out[0], held_out[1], qid)
            held_out = (held_X, held_y, *held_out[2:])
    source = None
    if held_out is not None:
        source = open_source(held_out[0], held_out[1], held_out[2] if len(held_out) > 2 else None)
    return Given(X, y, w, source)


def _data(validation: Any) -> tuple[Any, ...]:
    if isinstance(validation, tuple) and len(validation) in (2, 3):
        return validation
    raise InputError(
        f"validation is {type(validation).__name__}; it must be (X, y), (X, y, sample_weight), or a share of the rows "
        "between 0 and 1."
    )


def _shared(X: Any, y: Any, w: Any, share: float, qid: Any) -> tuple[Any, tuple[Any, ...]]:
    """Hold out a share of the rows, by a hash of all their columns; of rankers, a share of the groups."""
    if not 0 < share < 1:
        raise InputError(f"validation must lie between 0 and 1, or be (X, y), got {share!r}.")
    if not isinstance(X, dd.DataFrame) or not isinstance(y, str) or not isinstance(w, str | None):
        raise InputError(
            f"validation={share:g} holds out rows of a Dask DataFrame whose target and weights are columns of it. "
            "Give y as the name of a column, or validation=(X, y)."
        )
    train, held = split(X, test_size=share, by=qid)
    return train, (held, y, w)


def _with_groups(X: Any, y: Any, qid: Any) -> tuple[Any, Any]:
    """Put the groups of the rows beside their targets, as a second column."""
    if isinstance(qid, str):
        if not isinstance(X, dd.DataFrame | pd.DataFrame):
            raise InputError(f"qid={qid!r} names a column, but X is a {type(X).__name__} without names.")
        if qid not in X.columns:
            raise InputError(f"qid={qid!r} is not a column of X. X has: {', '.join(map(repr, X.columns))}.")
        if not pd.api.types.is_numeric_dtype(X.dtypes[qid]):
            raise InputError(
                f"qid={qid!r} is of type {X.dtypes[qid]}; it must hold numbers. Number the groups first."
            )
        if isinstance(y, str) and y in X.columns:
            return X.drop(columns=[y, qid]), X[[y, qid]]
        ids = X[qid]
        X = X.drop(columns=[qid])
    else:
        ids = qid
    if isinstance(y, dd.Series):
        return X, y.to_frame(name="y").assign(qid=ids)
    if isinstance(y, pd.Series) or (isinstance(y, np.ndarray) and not isinstance(ids, da.Array)):
        return X, np.column_stack([np.asarray(y), np.asarray(ids)])
    if isinstance(y, da.Array) and isinstance(ids, da.Array):
        return X, da.concatenate([y[:, None], ids[:, None]], axis=1).rechunk({1: -1})
    raise InputError(
        f"qid is a {type(qid).__name__}, and y a {type(y).__name__}; give both as columns of X, or as series or arrays "
        "of the same blocks."
    )


def check_given(tree: Walk, source: Source, held_out: Source | None, *, grouped: bool) -> None:
    """Check that an estimator takes what it is given.

    Raises
    ------
    InputError
        If it does not, or needs more.
    """
    boosted = [fit.estimator for fit in tree.fits if fit.way.kind == "boost"]
    if not boosted:
        for what, given in (("validation", held_out is not None), ("qid", grouped)):
            if given:
                name = type(tree.fits[tree.root].estimator).__name__
                raise InputError(f"{what} is for the estimators of XGBoost and LightGBM, not for {name}.")
        return
    _check_boosted(boosted[0], held_out, grouped)
    if not grouped and getattr(source.y, "ndim", 1) == 2 and source.y.shape[1] != 1:
        _check_outputs(boosted[0])
    if held_out is not None and list(map(str, held_out.names)) != list(map(str, source.names)):
        raise InputError(
            f"validation: X has the columns {', '.join(map(str, held_out.names))}; it must have those of the rows to "
            f"learn from: {', '.join(map(str, source.names))}."
        )
    if held_out is not None and held_out.y is None:
        raise InputError("validation: y is None. Give (X, y).")


def _check_boosted(estimator: Estimator, held_out: Source | None, grouped: bool) -> None:
    name = type(estimator).__name__
    if is_ranker(estimator) != grouped:
        said = (
            "ranks the rows of groups. Give qid=..., a column that numbers them"
            if is_ranker(estimator)
            else "takes no qid, which tells the groups of a ranker. Leave it out"
        )
        raise InputError(f"{name} {said}.")
    if stops_early(estimator) and held_out is None:
        raise InputError(
            f"{name} is told to stop early, after {stops_early(estimator)} rounds without progress, but there are no "
            "rows to watch it on. Give validation=(X, y), or a share of the rows, such as validation=0.1."
        )


def _check_outputs(estimator: Estimator) -> None:
    if type(estimator).__name__ not in ("XGBRegressor", "XGBRFRegressor"):
        raise InputError(
            f"{type(estimator).__name__} learns one target, but y has several columns. Fit one model for each."
        )


def check_shares(tree: Walk, shares: int | None, n_blocks: int) -> int:
    """Give the number of shares that the rows of a boosted model are dealt into; 1 for all other estimators.

    Raises
    ------
    InputError
        If it is not a number of shares that the estimator and the blocks allow.
    """
    root = tree.fits[tree.root].estimator
    boosted = next((fit.estimator for fit in tree.fits if fit.way.kind == "boost"), None)
    dealt = boosted is not None and library_of(boosted) == "xgboost"
    if shares is None:
        return 1
    if isinstance(shares, bool) or not isinstance(shares, int) or shares < 1:
        raise InputError(f"shares must be an integer of at least 1, got {shares!r}.")
    if not dealt and shares > 1:
        name = type(root if boosted is None else boosted).__name__
        raise InputError(f"shares={shares} is for the estimators of XGBoost, not for {name}. Leave it out.")
    if shares > max(n_blocks, 1):
        raise InputError(
            f"shares={shares}, but the rows stand in {counted(n_blocks, 'block')}. Give at most that many, or "
            "make smaller blocks."
        )
    return shares
