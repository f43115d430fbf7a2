"""Blocks in scratch come back as they were, and leave nothing behind, whatever happens to the process."""

import errno
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from dpipe.blocks import scratch
from dpipe.blocks.matrix import OneHot, hstack
from dpipe.blocks.rows import Rows
from dpipe.blocks.scratch import HeldBlock, ScratchBlock
from dpipe.blocks.side_by_side import side_by_side
from dpipe.errors import DpipeError

RNG = np.random.default_rng(0)
DENSE = RNG.normal(size=(50, 3)).astype(np.float32)
CSR = sp.random(50, 8, 0.3, format="csr", random_state=0)
CODES = OneHot(
    np.asfortranarray(RNG.integers(-1, 3, (50, 2)).astype(np.int32)), (3, 4), np.dtype("float32"), True
)


@pytest.mark.parametrize("y", [None, RNG.normal(size=50), RNG.integers(0, 3, (50, 2)), RNG.random(50) < 0.5])
@pytest.mark.parametrize("w", [None, RNG.random(50)])
def test_a_block_comes_back_as_it_was(tmp_path, y, w):
    parts = side_by_side([DENSE, CODES], sparse=True)
    kept = ScratchBlock.write(str(tmp_path), "token", {"d": DENSE, "s": CSR, "p": parts}, Rows(DENSE, y, w))
    rows = kept.rows()
    np.testing.assert_array_equal(rows.values["d"], DENSE)
    np.testing.assert_array_equal(rows.values["s"].toarray(), CSR.toarray())
    np.testing.assert_array_equal(rows.values["p"].written_out().toarray(), parts.written_out().toarray())
    for mine, theirs in ((rows.y, y), (rows.w, w)):
        assert (mine is None) == (theirs is None)
        if theirs is not None:
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


def test_labels_that_are_texts_come_back(tmp_path):
    y = np.array(["no", "yes", None, "no"] * 10, dtype=object)
    rows = ScratchBlock.write(str(tmp_path), "token", {"d": DENSE[:40]}, Rows(DENSE[:40], y, None)).rows()
    assert rows.y.tolist() == y.tolist()


def test_a_block_without_rows_has_none(tmp_path):
    rows = ScratchBlock.write(str(tmp_path), "token", {}, Rows(DENSE[:0], None, None)).rows()
    assert len(rows.X) == 0


def test_a_block_travels_to_another_process(tmp_path):
    kept = ScratchBlock.write(str(tmp_path), "token", {"d": DENSE}, Rows(DENSE, DENSE[:, 0], None))
    rows = pickle.loads(pickle.dumps(kept)).rows()
    np.testing.assert_array_equal(rows.values["d"], DENSE)
    np.testing.assert_array_equal(rows.y, DENSE[:, 0])


def test_what_is_read_may_be_changed_and_the_file_stays(tmp_path):
    kept = ScratchBlock.write(str(tmp_path), "token", {"d": DENSE}, Rows(DENSE, None, None))
    kept.rows().values["d"][:] = 0
    np.testing.assert_array_equal(kept.rows().values["d"], DENSE)


def test_the_file_has_no_name(tmp_path):
    kept = ScratchBlock.write(str(tmp_path), "token", {"d": DENSE}, Rows(DENSE, None, None))
    assert os.listdir(tmp_path) == []
    assert kept.rows().values["d"].shape == (50, 3)


def test_nothing_is_left_when_the_process_is_killed(tmp_path):
    program = (
        "import sys, time, numpy as np\n"
        "from dpipe.blocks.rows import Rows\n"
        "from dpipe.blocks.scratch import ScratchBlock\n"
        "X = np.ones((1000, 3))\n"
        "kept = ScratchBlock.write(sys.argv[1], 'token', {'d': X}, Rows(X, None, None))\n"
        "print('written', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    )
    with process:
        assert process.stdout.readline().strip() == b"written"
        process.send_signal(signal.SIGKILL)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scratch.os, "pwrite", full)
    with pytest.raises(DpipeError, match=r"Scratch cannot be written in .*No space left.*TMPDIR"):
        ScratchBlock.write(str(tmp_path), "token", {"d": DENSE}, Rows(DENSE, None, None))


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(
    "parts", [[DENSE, CODES], [CODES, DENSE], [CODES], [DENSE, CODES, DENSE[:, :1], CODES]]
)
def test_parts_multiply_as_the_matrix_they_stand_for(parts, sparse):
    beside = side_by_side(parts, sparse=sparse)
    matrix = hstack(parts, sparse=sparse)
    dense = matrix.toarray() if sparse else matrix
    right = RNG.normal(size=dense.shape[1]).astype(np.float32)
    left = RNG.normal(size=50).astype(np.float32)
    assert beside.shape == dense.shape
    assert beside.T.shape == dense.T.shape
    several = RNG.normal(size=(dense.shape[1], 3)).astype(np.float32)
    classes = RNG.normal(size=(2, 50)).astype(np.float32)
    for mine, theirs in (
        (beside @ right, dense @ right),
        (beside.T @ left, dense.T @ left),
        (beside @ several, dense @ several),
        (classes @ beside, classes @ dense),
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    written = beside.written_out()
    np.testing.assert_array_equal(written.toarray() if sparse else written, dense)


def test_parts_that_are_no_codes_are_left_alone():
    assert side_by_side([DENSE, DENSE], sparse=False) is None
    assert side_by_side([CODES, CSR], sparse=True) is None


def test_held_blocks_are_what_scratch_gives_and_cannot_be_written_to(tmp_path):
    own = DENSE.copy()
    values = {"d": own, "s": CSR, "f": pd.DataFrame({"a": [1, 2], "b": [0.5, 1.0]})}
    rows = Rows(own, DENSE[:, 0], None)
    held = HeldBlock.of(values, rows).rows()
    kept = ScratchBlock.write(str(tmp_path), "token", values, rows).rows()
    for key, value in kept.values.items():
        assert type(held.values[key]) is type(value)
        assert held.values[key].dtype == value.dtype
        plain = (each.toarray() if sp.issparse(each) else each for each in (held.values[key], value))
        np.testing.assert_array_equal(*plain)
    np.testing.assert_array_equal(held.y, kept.y)
    for array in (held.values["d"], held.values["s"].data, held.values["f"]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7.0
    own[0, 0] = 5.0  # the caller's array is as it was
