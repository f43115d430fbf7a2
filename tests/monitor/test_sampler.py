"""The memory sampler sees what is allocated, here and in child processes."""

import mmap
import subprocess
import sys
import time

import pytest

from dpipe.errors import InputError
from dpipe.monitor.sampler import MemorySampler

MB = 10**6


def test_it_sees_an_allocation_of_100_megabytes():
    with MemorySampler(pids=(), interval_s=0.02) as sampler:
        before = sampler.peak_nbytes
        # straight from the system: the allocator may still hold freed memory of the tests before
        with mmap.mmap(-1, 100 * MB) as block:
            block.write(bytes(100 * MB))
            time.sleep(0.2)
    assert 90 * MB < sampler.peak_nbytes - before < 200 * MB
    seconds = [second for second, _ in sampler.samples]
    assert seconds == sorted(seconds)
    assert max(nbytes for _, nbytes in sampler.samples) == sampler.peak_nbytes


@pytest.mark.parametrize("named", [True, False], ids=["by its pid", "as a child"])
def test_it_counts_other_processes_and_survives_their_end(named):
    code = "block = bytearray(b'x') * 60_000_000; print('ready', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child, MemorySampler(pids=()) as alone:
        assert child.stdout.readline() == b"ready\n"
        with MemorySampler(pids=[child.pid] if named else None, interval_s=0.02) as both:
            child.communicate(b"\n")
            time.sleep(0.1)
    assert both.peak_nbytes > alone.peak_nbytes + 50 * MB
    assert both.samples[-1][1] < both.peak_nbytes - 50 * MB


def test_a_process_that_has_ended_before_is_left_out():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with MemorySampler(pids=[child.pid]) as sampler:
        pass
    assert len(sampler.samples) == 2
    assert sampler.peak_nbytes > 0


def test_samples_are_thinned_without_losing_the_peak():
    with MemorySampler(pids=(), interval_s=0.001, max_samples=8) as sampler:
        time.sleep(0.2)
    assert 4 <= len(sampler.samples) <= 8
    assert max(nbytes for _, nbytes in sampler.samples) == sampler.peak_nbytes
    assert sampler._interval_s > 0.001


def test_it_makes_a_memory_record():
    with MemorySampler() as sampler:
        pass
    memory = sampler.memory(budget_nbytes=5, reserved_nbytes=1, projected_nbytes=3)
    assert (memory.budget_nbytes, memory.reserved_nbytes, memory.projected_nbytes) == (5, 1, 3)
    assert (memory.measured_nbytes, memory.samples) == (sampler.peak_nbytes, sampler.samples)


@pytest.mark.parametrize("wrong", [{"interval_s": 0}, {"max_samples": 1}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(InputError, match="use more than 0, and 2 or more"):
        MemorySampler(**wrong)
