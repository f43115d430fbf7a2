"""TfidfTransformer: one pass, from how many rows have an entry in each column."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfTransformer

from dpipe.blocks.matrix import to_matrix
from dpipe.blocks.statistics import Present
from dpipe.blocks.table import Block
from dpipe.families import stand_in
from dpipe.families.registry import Estimator, Meta, Way, add


def _finish(estimator: Estimator, stats: Sequence[Any], meta: Meta) -> Estimator:
    if not stats:
        return clone(estimator).fit(stand_in.numeric(meta, meta.width or 1, meta.dtype, sparse=meta.sparse))
    present: Present = stats[0]
    smooth = int(estimator.smooth_idf)
    X = stand_in.numeric(meta, len(present.rows), present.dtype, sparse=present.sparse)
    with np.errstate(divide="ignore"):  # of the stand-in, whose columns are empty
        fitted = clone(estimator).fit(X)
        idf = np.full(len(present.rows), present.n_rows + smooth, dtype=present.dtype)
        idf /= present.rows.astype(present.dtype) + smooth
    fitted.idf_ = np.log(idf) + idf.dtype.type(1)
    return fitted


def _transform(fitted: Estimator, block: Block) -> Block:
    return fitted.transform(to_matrix(block)).tocsr()


def _output(estimator: Estimator, meta: Meta) -> Meta:
    return Meta(n_columns=meta.width, dtype=meta.dtype, sparse=True)


add(
    TfidfTransformer,
    Way("merge", _finish, lambda est: (Present,) if est.use_idf else (), _transform, output=_output),
)
