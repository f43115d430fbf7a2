"""Records are whole or not there; one run holds a ledger at a time."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from dpipe.errors import LedgerError
from dpipe.ledger import book
from dpipe.ledger.book import Ledger, records


def write(folder, **entries):
    with Ledger(folder) as ledger:
        for key, content in entries.items():
            ledger.pen.write(key, content)


def read_all(folder):
    return {key: place.read() for key, place in records(folder / "ledger").items()}


def test_later_records_replace_earlier_ones(tmp_path):
    write(tmp_path, a=b"one", b=b"two\nlines")
    write(tmp_path, a=b"three")
    assert read_all(tmp_path) == {"a": b"three", "b": b"two\nlines"}


@pytest.mark.parametrize("left", range(0, 120, 7))
def test_a_half_written_record_is_passed_over(tmp_path, left):
    write(tmp_path, first=b"x" * 10)
    (log,) = (tmp_path / "ledger").glob("*.log")
    whole = log.stat().st_size
    write(tmp_path, second=b"y" * 40)
    second = max((tmp_path / "ledger").glob("*.log"))
    content = second.read_bytes()
    with log.open("ab") as file:
        file.write(content[:left])
    second.unlink()
    assert read_all(tmp_path)["first"] == b"x" * 10
    assert ("second" in read_all(tmp_path)) == (left >= len(content))
    assert whole <= log.stat().st_size


def test_a_damaged_record_says_so(tmp_path):
    write(tmp_path, a=b"0123456789")
    (log,) = (tmp_path / "ledger").glob("*.log")
    log.write_bytes(log.read_bytes().replace(b"345", b"3x5"))
    with pytest.raises(LedgerError, match="damaged"):
        read_all(tmp_path)
    place = records(tmp_path / "ledger")["a"]
    log.unlink()
    with pytest.raises(LedgerError, match="Run again"):
        place.read()


def test_one_run_at_a_time(tmp_path):
    with Ledger(tmp_path), pytest.raises(LedgerError, match=f"process {os.getpid()}"):
        Ledger(tmp_path)
    Ledger(tmp_path).close()


def test_the_lock_of_a_killed_run_is_free(tmp_path):
    program = textwrap.dedent(
        f"""
        import time
        from dpipe.ledger.book import Ledger
        ledger = Ledger({str(tmp_path)!r})
        ledger.pen.write("a", b"1")
        print("held", flush=True)
        time.sleep(60)
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(LedgerError, match=f"process {process.pid} on .*Wait for it"):
            Ledger(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with Ledger(tmp_path) as ledger:
        assert ledger.find("a").read() == b"1"


def write_many(pen, first):
    for i in range(first, first + 200):
        pen.write(f"key {i}", bytes([i % 256]) * 1000)


def test_many_processes_write_at_once(tmp_path):
    with Ledger(tmp_path) as ledger:
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=write_many, args=(ledger.pen, 200 * i)) for i in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    found = read_all(tmp_path)
    assert found == {f"key {i}": bytes([i % 256]) * 1000 for i in range(600)}


def test_a_full_disk_leaves_whole_records_and_says_what_to_do(tmp_path, monkeypatch):
    write_at, calls = os.pwrite, []

    def filling(file, content, at):
        calls.append(len(content))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_at(file, bytes(content[:5]), at)

    with Ledger(tmp_path) as ledger:
        ledger.pen.write("a", b"1")
        monkeypatch.setattr(book.os, "pwrite", filling)
        with pytest.raises(LedgerError, match="No space left.*Make room"):
            ledger.pen.write("b", b"2" * 100)
        monkeypatch.undo()
        ledger.pen.write("c", b"3")
    assert read_all(tmp_path) == {"a": b"1", "c": b"3"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "ledger").write_text("a file")
    with pytest.raises(LedgerError, match="ledger"):
        Ledger(tmp_path)


def test_what_is_of_no_use_is_cleared_away(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "_WORTH_CLEARING_NBYTES", 1000)
    write(tmp_path, old=b"x" * 5000, used=b"y" * 100)
    assert len(read_all(tmp_path)) == 2
    with Ledger(tmp_path) as ledger:
        ledger.find("used")
        ledger.find("new")
        ledger.pen.write("new", b"z")
    assert read_all(tmp_path) == {"used": b"y" * 100, "new": b"z"}
    write(tmp_path, later=b"w")
    assert read_all(tmp_path)["later"] == b"w"


def test_a_run_that_failed_clears_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "_WORTH_CLEARING_NBYTES", 10)
    write_all = {"old": b"x" * 5000}
    with Ledger(tmp_path) as ledger:
        ledger.find("old")
        ledger.pen.write("old", write_all["old"])
    with pytest.raises(RuntimeError), Ledger(tmp_path):
        raise RuntimeError
    assert read_all(tmp_path) == write_all
