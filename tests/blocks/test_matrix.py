"""Parts of a design matrix, put side by side: the same as scipy's stack, in any order of rows."""

import numpy as np
import pytest
import scipy.sparse as sp

from dpipe.blocks import matrix
from dpipe.blocks.matrix import OneHot, RowOrder, RowWise, hstack, learner_matrix, stack_rows

N = 25


@pytest.fixture(autouse=True)
def short_slices(monkeypatch):
    """Slices of a few rows, the last one shorter: what holds for them holds for long ones."""
    monkeypatch.setattr(matrix, "_ROWS_AT_A_TIME", 7)


def parts(*, missing):
    rng = np.random.default_rng(0)
    dense = np.asfortranarray(rng.normal(size=(N, 3)).astype("float32"))
    codes = np.asfortranarray(rng.integers(-1 if missing else 0, 4, size=(N, 2)).astype("int32"))
    one_hot = OneHot(codes, (4, 5), np.dtype("float32"), sparse=True)
    row_wise = RowWise(lambda rows: 2 * dense[rows], N)
    return [dense, one_hot, row_wise]


def written_out(part):
    if isinstance(part, OneHot):
        columns = [
            np.eye(width + 1, dtype=part.dtype)[codes][:, :width]
            for codes, width in zip(part.codes.T, part.widths, strict=True)
        ]
        return np.hstack(columns)
    return part.whole() if isinstance(part, RowWise) else part


ORDERS = {"as they stand": None, "shuffled": RowOrder(np.random.default_rng(1).permutation(N))}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_stack_rows(sparse, missing, order):
    given = parts(missing=missing)
    whole = np.hstack([written_out(part) for part in given])
    wanted = whole if ORDERS[order] is None else whole[ORDERS[order].rows]
    found = stack_rows(given, sparse=sparse, order=ORDERS[order])
    assert sp.issparse(found) == sparse
    assert found.dtype == np.float32
    if sparse:
        assert found.nnz == np.count_nonzero(whole)
        assert found.has_canonical_format
        found = found.toarray()
    else:
        assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, wanted)


def test_stack_rows_and_hstack_agree_on_other_kinds():
    dense, one_hot, _ = parts(missing=True)
    order = ORDERS["shuffled"]
    csr = sp.random(N, 4, density=0.3, format="csr", dtype="float32", random_state=0)
    wanted = hstack([dense, csr, one_hot], sparse=True).toarray()[order.rows]
    np.testing.assert_array_equal(
        stack_rows([dense, csr, one_hot], sparse=True, order=order).toarray(), wanted
    )
    objects = dense.astype(object)
    assert stack_rows([objects], sparse=False, order=order).tolist() == objects[order.rows].tolist()


@pytest.mark.parametrize("n", [0, 1])
def test_few_rows(n):
    found = stack_rows(
        [np.ones((n, 2)), OneHot(np.zeros((n, 1), dtype="int32"), (3,), np.dtype(float), True)], sparse=True
    )
    assert found.shape == (n, 5)
    assert found.sum() == 3 * n


def test_a_row_order_knows_both_sides():
    order = RowOrder(np.array([2, 0, 1]))
    letters = np.array(["a", "b", "c"])
    assert learner_matrix(letters.reshape(-1, 1).astype(object), order).ravel().tolist() == ["b", "c", "a"]
    placed = np.empty_like(letters)
    placed[order.places] = letters
    assert placed.tolist() == letters[order.rows].tolist() == ["b", "c", "a"]
