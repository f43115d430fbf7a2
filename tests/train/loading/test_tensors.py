"""Batches of tensors, alone and in torch's own DataLoader; how much memory they take."""

import subprocess
import sys

import numpy as np
import pytest

import dpipe
from benchmarks.loader import run_apart
from dpipe.errors import InputError

X = np.arange(1200.0).reshape(300, 4)
Y = np.arange(300) % 3


def made(**given):
    return dpipe.Loader(X, Y, **({"batch_size": 32} | given))


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="batches of tensors need PyTorch: pip install 'dpipe[torch]'")


def test_importing_dpipe_does_not_import_torch():
    code = "import sys, dpipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tensors_hold_what_arrays_do(torch):
    pairs = list(zip(made(), made(tensors=False), strict=True))
    assert len(pairs) == 10
    for (x, y), (x_array, y_array) in pairs:
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert x.is_contiguous()
        np.testing.assert_array_equal(x.numpy(), x_array)
        np.testing.assert_array_equal(y.numpy(), y_array)


def test_the_loader_of_torch_takes_it(torch):
    loader = made()
    assert isinstance(loader, torch.utils.data.IterableDataset)
    theirs = torch.utils.data.DataLoader(loader, batch_size=None)
    for _ in range(2):
        epoch = loader.state_dict()["epoch"]
        found = [y for _, y in theirs]
        assert [y.tolist() for y in found] == [
            Y[loader.order.numbers(epoch, step)].tolist() for step in range(10)
        ]


def test_worker_processes_of_the_loader_of_torch_are_refused(torch):
    theirs = torch.utils.data.DataLoader(made(), batch_size=None, num_workers=1)
    with pytest.raises(InputError, match="num_workers=0"):
        list(theirs)


def test_ranks_are_those_of_the_process_group(torch, tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert len(torch.cat([y for _, y in made()])) == 300
    finally:
        torch.distributed.destroy_process_group()


def test_batches_are_pinned_where_there_is_a_gpu(torch):
    if not torch.cuda.is_available():
        pytest.skip("pinned memory is for CUDA, and there is no GPU here")
    x, _ = next(iter(made()))
    assert x.is_pinned()
    assert x.to("cuda", non_blocking=True).cpu().equal(x)


@pytest.mark.memory
def test_a_gigabyte_goes_through_less_than_200_megabytes(tmp_path):
    pytest.importorskip("torch", reason="the benchmark is of tensors")
    assert run_apart("dpipe_loader", tmp_path, 8_000_000)["peak_nbytes"] < 200e6
