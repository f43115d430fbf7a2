"""Rows that move between blocks are all there, once, and in an order that depends on nothing but the data."""

import gc
import os
import tempfile
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

import dpipe
from dpipe.collect.exchange import Exchange, Folder, Sent
from dpipe.collect.regroup import Cut, Piece, _joined
from dpipe.errors import ConservationError, DpipeError, InputError

RNG = np.random.default_rng(0)
ROWS = pd.DataFrame(
    {
        "k": RNG.integers(0, 50, 1000),
        "s": RNG.choice(["a", "b", None], 1000),
        "c": pd.Categorical(RNG.choice(["x", "y"], 1000)),
        "t": pd.date_range("2026-01-01", periods=1000),
        "n": pd.array(RNG.integers(0, 9, 1000), dtype="Int64"),
        "v": np.arange(1000.0),
    }
)


def blocks(frame, scheduler="sync"):
    return dask.compute(*frame.to_delayed(), scheduler=scheduler)


@pytest.mark.parametrize("n", [1, 3, 7, 20])
def test_a_key_is_in_one_block_and_every_row_is_there(n):
    parts = blocks(dpipe.shuffle(dd.from_pandas(ROWS, npartitions=7), ["k", "s"], blocks=n))
    assert len(parts) == n
    seen = [set(zip(part["k"], part["s"].fillna("missing"), strict=True)) for part in parts]
    assert sum(map(len, seen)) == len(set().union(*seen))
    whole = pd.concat(parts).sort_values("v").reset_index(drop=True)
    pd.testing.assert_frame_equal(whole, ROWS)
    # within a block, as stored
    assert all(part["v"].is_monotonic_increasing for part in parts)


@given(
    keys=st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=1, max_size=60),
    cuts=st.tuples(st.integers(1, 6), st.integers(1, 9)),
)
@settings(max_examples=25, deadline=None)
def test_any_keys_into_any_blocks(keys, cuts):
    rows = pd.DataFrame({"k": pd.Series(keys, dtype="str"), "v": range(len(keys))})
    frame = dd.from_pandas(rows, npartitions=cuts[0])
    for moved in (dpipe.shuffle(frame, "k", blocks=cuts[1]), dpipe.repartition(frame, cuts[1])):
        assert sorted(pd.concat(blocks(moved))["v"]) == list(range(len(keys)))


@pytest.mark.parametrize("n", [1, 2, 5, 7, 8, 30])
def test_other_blocks_with_the_rows_in_their_order(n):
    parts = blocks(dpipe.repartition(dd.from_pandas(ROWS, npartitions=7), n))
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), ROWS)
    sizes = [len(part) for part in parts]
    assert len(sizes) == n
    assert max(sizes) - min(sizes) <= 2


def test_threads_and_processes_give_the_same_order():
    frame = dd.from_pandas(ROWS, npartitions=9)
    wanted = blocks(dpipe.shuffle(frame, "k", blocks=4))
    for part, other in zip(wanted, blocks(dpipe.shuffle(frame, "k", blocks=4), "threads"), strict=True):
        pd.testing.assert_frame_equal(part, other)


@pytest.mark.cluster
def test_worker_processes(tmp_path):
    with LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        moved = dpipe.shuffle(dd.from_pandas(ROWS, npartitions=6), "k", folder=tmp_path)
        fitted = dpipe.fit(LinearRegression(), moved[["k"]], moved["v"], client=client)
    wanted = LinearRegression().fit(ROWS[["k"]], ROWS["v"])
    np.testing.assert_allclose(fitted.coef_, wanted.coef_, rtol=1e-9)
    assert len(list(tmp_path.glob("*.arrow"))) == 6


def test_a_second_pass_moves_nothing_again(tmp_path):
    dpipe.write_parquet(dd.from_pandas(ROWS, npartitions=3), tmp_path / "rows")
    moved = dpipe.shuffle(dpipe.read_parquet(tmp_path / "rows"), "k", folder=tmp_path / "pieces")
    first = blocks(moved)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "pieces").iterdir()}
    assert len(written) == 3
    for part, again in zip(first, blocks(moved), strict=True):
        pd.testing.assert_frame_equal(part, again)
    # nor does another run, where the source is the same
    blocks(dpipe.shuffle(dpipe.read_parquet(tmp_path / "rows"), "k", folder=tmp_path / "pieces"))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pieces").iterdir()} == written


def test_a_source_that_changed_is_moved_again(tmp_path):
    pieces = tmp_path / "pieces"
    for offset in (0, 1):
        rows = dd.from_pandas(ROWS.assign(v=ROWS["v"] + offset), npartitions=1)
        dpipe.write_parquet(rows, tmp_path / "rows", overwrite=True)
        moved = dpipe.shuffle(dpipe.read_parquet(tmp_path / "rows"), "k", folder=pieces)
        assert pd.concat(blocks(moved))["v"].min() == offset


def test_own_pieces_go_with_the_frame(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    moved = dpipe.shuffle(dd.from_pandas(ROWS, npartitions=2), "k")
    derived = moved.assign(w=1)
    del moved
    gc.collect()
    assert len(derived.compute(scheduler="sync")) == 1000
    (folder,) = (path for path in tmp_path.iterdir() if path.name.startswith("dpipe-exchange-"))
    assert len(list(folder.iterdir())) == 2
    del derived
    gc.collect()
    assert not folder.exists()


def test_pieces_that_are_gone_are_named(tmp_path):
    exchange = Exchange("shuffle by 'k'", ("k",), 2, "t", Folder(tmp_path))
    sent = Sent(str(tmp_path / "gone.arrow"), np.array([1, 1]), np.zeros(2, np.uint64))
    with pytest.raises(ConservationError, match=r"block 1 needs .*gone\.arrow"):
        exchange.gather([sent], 1, ROWS.iloc[:0])


def sent_of(exchange, frame):
    source = dd.from_pandas(frame, npartitions=1)
    from dpipe.collect.source import open_source

    (load,) = open_source(source).loads(None)[1]
    return exchange.cut(load, [], 0)


def test_lost_doubled_and_other_rows_stop_the_run(tmp_path):
    exchange = Exchange("shuffle by 'k'", ("k",), 1, "t", Folder(tmp_path))
    sent = sent_of(exchange, ROWS)
    for rows, sums in (
        (sent.rows + 1, sent.sums),
        (sent.rows - 1, sent.sums),
        (sent.rows, sent.sums + np.uint64(1)),
    ):
        with pytest.raises(ConservationError, match="shuffle by 'k': block 0 has"):
            exchange.gather([Sent(sent.path, rows, sums)], 0, ROWS.iloc[:0])
    with pytest.raises(ConservationError, match="1,001 rows are in the source, but 1,000 were read"):
        exchange.agreed([sent], 1001)
    assert len(exchange.gather(exchange.agreed([sent], 1000), 0, ROWS.iloc[:0])) == 1000


def test_a_piece_of_a_repartition_that_is_lost():
    piece = Piece(ROWS.iloc[:5], 6, 0)
    with pytest.raises(ConservationError, match="repartition: block 3 has 5 rows of 6"):
        _joined([piece], 3)


def test_half_a_file_is_written_again(tmp_path):
    exchange = Exchange("shuffle by 'k'", ("k",), 2, "t", Folder(tmp_path))
    path = Path(sent_of(exchange, ROWS).path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    sent_of(exchange, ROWS)
    assert path.read_bytes() == whole


def test_no_room_says_where(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    exchange = Exchange("shuffle by 'k'", ("k",), 2, "t", Folder(tmp_path))
    with pytest.raises(DpipeError, match=r"cannot be written: .*No space left.*folder=\.\.\."):
        sent_of(exchange, ROWS)
    assert not list(tmp_path.iterdir())


@given(n_in=st.integers(1, 40), n_out=st.integers(1, 40))
def test_cuts_fit_together(n_in, n_out):
    shares = np.zeros(n_out)
    for i in range(n_in):
        cut = Cut.of(i, n_in, n_out)
        assert len(cut.at) == len(cut.to) + 1
        assert list(cut.at) == sorted(cut.at)
        for j, width in zip(cut.to, np.diff(cut.at), strict=True):
            shares[j] += width
    np.testing.assert_allclose(shares, n_in / n_out)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda frame: dpipe.shuffle(ROWS, "k"), "shuffle takes a Dask DataFrame, got a DataFrame"),
        (lambda frame: dpipe.shuffle(frame, "nothing"), "no column 'nothing' to go by. The frame has: 'k'"),
        (lambda frame: dpipe.shuffle(frame, []), "no column named"),
        (lambda frame: dpipe.shuffle(frame, "k", blocks=0), "blocks must be a positive integer, got 0"),
        (lambda frame: dpipe.shuffle(frame, "k", blocks=True), "blocks must be a positive integer, got True"),
        (lambda frame: dpipe.repartition(frame, 2.5), "blocks must be a positive integer, got 2.5"),
        (lambda frame: dpipe.repartition([1], 2), "repartition takes a Dask DataFrame, got a list"),
    ],
)
def test_arguments_that_cannot_be(call, says):
    with pytest.raises(InputError, match=says):
        call(dd.from_pandas(ROWS, npartitions=2))
