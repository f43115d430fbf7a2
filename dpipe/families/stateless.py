"""Transformers that learn nothing from the data: no pass at all."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_approximation import (
    AdditiveChi2Sampler,
    PolynomialCountSketch,
    RBFSampler,
    SkewedChi2Sampler,
)
from sklearn.preprocessing import Binarizer, FunctionTransformer, Normalizer, PolynomialFeatures
from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection

from dpipe.blocks.table import float_dtype
from dpipe.errors import InputError, UnsupportedEstimatorError
from dpipe.families import stand_in
from dpipe.families.registry import Estimator, Meta, Way, add


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    if meta.frame is not None:
        return clone(estimator).fit(meta.frame if _takes_frames(estimator) else sample(meta.frame))
    return stand_in.fitted_on_zeros(estimator, meta, meta.width or 1, meta.dtype)


def _takes_frames(estimator: Estimator) -> bool:
    return isinstance(estimator, FunctionTransformer) and not estimator.validate


def sample(frame: pd.DataFrame) -> pd.DataFrame:
    """Give one row of zeros with the columns of a frame."""
    return pd.DataFrame(
        np.zeros((1, frame.shape[1]), dtype=float_dtype(list(frame.dtypes))), columns=frame.columns
    )


def _output_of_function(estimator: Estimator, meta: Meta) -> Meta:
    """Call the function on no rows of a frame, or on one of a matrix, to see what columns it gives."""
    if estimator.func is None:
        return meta
    if meta.frame is None:
        return _output_of_matrix(estimator, meta)
    try:
        result = estimator.func(meta.frame.copy(), **(estimator.kw_args or {}))
    except Exception as err:
        name = getattr(estimator.func, "__name__", repr(estimator.func))
        raise InputError(
            f"FunctionTransformer: {name} fails on a frame without rows: {type(err).__name__}: {err}. "
            "Its output columns are found that way before anything is read; let it accept an empty frame."
        ) from err
    return Meta(frame=result.iloc[:0]) if isinstance(result, pd.DataFrame) else _meta_of_matrix(result)


def _check_rbf(estimator: Estimator) -> None:
    if estimator.gamma == "scale":
        raise UnsupportedEstimatorError(
            "RBFSampler(gamma='scale') takes its gamma from all of X. Give a number: 1 / (n_features * variance)."
        )


def _check_projection(estimator: Estimator) -> None:
    if estimator.n_components == "auto":
        raise UnsupportedEstimatorError(
            f"{type(estimator).__name__}(n_components='auto') depends on the number of rows. Give a number: "
            "sklearn.random_projection.johnson_lindenstrauss_min_dim(n_rows, eps=0.1)."
        )


def _n_components(estimator: Estimator, meta: Meta) -> Meta:
    return Meta(n_columns=int(estimator.n_components), dtype=meta.dtype)


def _wider(estimator: Estimator, meta: Meta) -> Meta:
    """Fit on one row to see how many columns come out."""
    if not meta.width:
        return Meta(dtype=meta.dtype, sparse=meta.sparse)
    made = clone(estimator).fit_transform(np.zeros((1, meta.width)))
    return Meta(n_columns=made.shape[1], dtype=meta.dtype, sparse=meta.sparse)


def _output_of_matrix(estimator: Estimator, meta: Meta) -> Meta:
    row = np.ones((1, meta.width or 0), dtype=meta.dtype)
    try:
        result = estimator.func(sp.csr_matrix(row) if meta.sparse else row, **(estimator.kw_args or {}))
    except Exception:  # the made-up row need not suit it: its output is seen when there is a real one
        return Meta(dtype=meta.dtype, sparse=meta.sparse)
    return _meta_of_matrix(result) if meta.width else replace(_meta_of_matrix(result), n_columns=None)


def _meta_of_matrix(result: Any) -> Meta:
    width = result.shape[1] if getattr(result, "ndim", 1) == 2 else None
    dtype = np.dtype(getattr(result, "dtype", np.float64))
    return Meta(n_columns=width, dtype=dtype, sparse=hasattr(result, "nnz"))


# what is fitted already stays as it is
add(FrozenEstimator, Way("stateless", lambda est, stats, meta: est, output=lambda est, meta: Meta()))
add(FunctionTransformer, Way("stateless", _finish, output=_output_of_function))
add(Normalizer, Way("stateless", _finish))
add(Binarizer, Way("stateless", _finish))
add(PolynomialFeatures, Way("stateless", _finish, output=_wider))
add(AdditiveChi2Sampler, Way("stateless", _finish, output=_wider))
add(RBFSampler, Way("stateless", _finish, check=_check_rbf, output=_n_components))
add(SkewedChi2Sampler, Way("stateless", _finish, output=_n_components))
add(PolynomialCountSketch, Way("stateless", _finish, output=_n_components))
for _projection in (GaussianRandomProjection, SparseRandomProjection):
    add(_projection, Way("stateless", _finish, check=_check_projection, output=_n_components))
