"""Data keeps what it promises, or the rows that do not are refused, set apart or cast: never lost."""

import json

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pandera.pandas as pandera
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

import dpipe
from dpipe.collect.contract import read_contract
from dpipe.collect.enforce import enforce, policy_for, read_contracted
from dpipe.collect.quarantine import REASON
from dpipe.errors import ConservationError, ContractError, InputError

STRICT = pa.schema(
    [pa.field("x", pa.int64(), nullable=False), pa.field("kind", pa.string()), ("y", pa.float64())]
)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "rows"


def write(folder, *files, row_group_size=4):
    folder.mkdir(exist_ok=True)
    for i, columns in enumerate(files):
        pq.write_table(pa.table(columns), folder / f"{i}.parquet", row_group_size=row_group_size)
    return folder


def good(n=8, **changed):
    return {
        "x": list(range(n)),
        "kind": ["day", "night"] * (n // 2),
        "y": [float(i) for i in range(n)],
        **changed,
    }


def bad_numbers(n=8):
    """Texts of numbers, two of which are none."""
    return [str(i) if i not in (3, 6) else "many" for i in range(n)]


def pipeline(folder, tmp_path, schema, on_violation="raise", **options):
    pipe = dpipe.Pipeline("contracted", workdir=tmp_path / "run")
    rows = pipe.collect(folder, schema=schema, on_violation=on_violation, **options)
    pipe.train(LinearRegression(), rows, features=["x"], target="y")
    return pipe


def test_what_keeps_its_contract_is_read_as_ever(folder, tmp_path):
    run = pipeline(write(folder, good(), good()), tmp_path, STRICT).run()
    assert run.model.n_features_in_ == 1
    assert not dpipe.quarantined(tmp_path / "run").rows


def test_nulls_are_refused_by_the_footer(folder, tmp_path):
    write(folder, good(), good(x=[1, None, 3, None, 5, 6, 7, 8]))
    with pytest.raises(
        ContractError, match=r"1\.parquet: column 'x' has 2 nulls, which the contract forbids"
    ):
        pipeline(folder, tmp_path, STRICT)


def test_rows_are_set_apart_and_counted(folder, tmp_path):
    write(folder, good(), good(x=[1, None, 3, None, 5, 6, 7, 8]), good(x=bad_numbers()))
    run = pipeline(folder, tmp_path, STRICT, "quarantine").run()
    apart = dpipe.quarantined(tmp_path / "run")
    assert apart.rows == 4
    assert apart.reasons == {
        "'x': null where the contract forbids it": 2,
        "'x': string that cannot be cast to int64 unchanged": 2,
    }
    assert {block.block.split(",")[0].rsplit("/")[-1] for block in apart.blocks} == {"1.parquet", "2.parquet"}
    kept = pd.DataFrame({"x": [*range(8), 1, 3, 5, 6, 7, 8, 0, 1, 2, 4, 5, 7]})
    kept["y"] = [*range(8), 0, 2, 4, 5, 6, 7, 0, 1, 2, 4, 5, 7]
    wanted = LinearRegression().fit(kept[["x"]], kept["y"])
    np.testing.assert_allclose(run.model.coef_, wanted.coef_, rtol=1e-12)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (stage,) = (stage for stage in record["stages"] if stage["kind"] == "collect")
    assert (stage["rows_in"], stage["rows_out"]) == (24, 20)
    assert "4 rows refused: 2 for 'x': null" in stage["note"]
    assert "4 rows refused" in run.report.read_text()


def test_the_refused_rows_are_as_they_were(folder, tmp_path):
    write(folder, good(x=bad_numbers()))
    pipeline(folder, tmp_path, STRICT, "quarantine").run()
    files = sorted((tmp_path / "run" / "quarantine" / "collect").glob("*.parquet"))
    rows = pd.concat([pd.read_parquet(file) for file in files])
    assert list(rows["x"]) == ["many", "many"]
    assert list(rows["y"]) == [3.0, 6.0]
    assert set(rows[REASON]) == {"'x': string that cannot be cast to int64 unchanged"}


def test_a_run_that_goes_on_keeps_its_counts(folder, tmp_path):
    write(folder, good(), good(x=bad_numbers()))
    pipeline(folder, tmp_path, STRICT, "quarantine").run()
    before = dpipe.quarantined(tmp_path / "run")
    # all blocks are on record: none is read again
    again = pipeline(folder, tmp_path, STRICT, "quarantine").run()
    (only,) = json.loads((tmp_path / "run" / "run.json").read_text())["passes"]
    assert only["n_recalled"] == only["n_blocks"] > 0
    assert dpipe.quarantined(tmp_path / "run") == before
    assert "2 rows refused" in again.report.read_text()


def test_a_file_that_was_repaired_leaves_the_quarantine(folder, tmp_path):
    write(folder, good(), good(x=bad_numbers()))
    pipeline(folder, tmp_path, STRICT, "quarantine").run()
    assert dpipe.quarantined(tmp_path / "run").rows == 2
    write(folder, good(), good())
    pipeline(folder, tmp_path, STRICT, "quarantine").run()
    assert dpipe.quarantined(tmp_path / "run").rows == 0


def test_a_quarantine_that_was_cleared_is_noticed(folder, tmp_path):
    write(folder, good(x=bad_numbers()))
    pipeline(folder, tmp_path, STRICT, "quarantine").run()
    for file in (tmp_path / "run" / "quarantine" / "collect").iterdir():
        file.unlink()
    with pytest.raises(ConservationError, match="8 rows, but 6 were kept and 0 refused"):
        pipeline(folder, tmp_path, STRICT, "quarantine").run()


def test_both_sides_of_a_split_count_once(folder, tmp_path):
    write(folder, good(40), good(40, x=bad_numbers(40)))
    pipe = dpipe.Pipeline("contracted", workdir=tmp_path / "run")
    rows = pipe.collect(folder, schema=STRICT, on_violation="quarantine")
    train, test = pipe.split(rows, by="y", test_size=0.4)
    model = pipe.train(LinearRegression(), train, features=["x"], target="y")
    pipe.validate(model, test, scoring=["r2"])
    pipe.run()
    assert dpipe.quarantined(tmp_path / "run").rows == 2
    stages = {s["name"]: s for s in json.loads((tmp_path / "run" / "run.json").read_text())["stages"]}
    assert (stages["collect"]["rows_in"], stages["collect"]["rows_out"]) == (80, 78)


def test_what_cannot_be_cast_is_refused_with_its_file_and_examples(folder, tmp_path):
    write(folder, good(), good(x=bad_numbers()))
    with pytest.raises((ContractError, OSError), match=r"1\.parquet"):
        pipeline(folder, tmp_path, STRICT).run()
    with pytest.raises(ContractError) as caught:
        pipeline(folder, tmp_path, STRICT, "coerce").run()
    said = str(caught.value)
    assert "1.parquet, row groups" in said
    assert "column 'x': string that cannot be cast to int64 unchanged" in said
    assert "'many'" in said
    assert "on_violation='quarantine'" in said


def test_coerce_casts_where_no_value_changes(folder, tmp_path):
    write(folder, good(), good(x=[float(i) for i in range(8)]))
    assert pipeline(folder, tmp_path, STRICT, "coerce").run().model is not None
    write(folder, good(), good(x=[0.5, *map(float, range(7))]))
    with pytest.raises(ContractError, match=r"double that cannot be cast to int64 unchanged, in 1 of .*0\.5"):
        pipeline(folder, tmp_path, STRICT, "coerce").run()


def test_a_category_never_seen(folder, tmp_path):
    contract = dpipe.Contract(STRICT, {"kind": ["day", "night"]})
    write(folder, good(), good(kind=["day"] * 7 + ["dusk"]))
    with pytest.raises(ContractError, match=r"1\.parquet.*'kind': a category never seen, in 1 of .*'dusk'"):
        pipeline(folder, tmp_path, contract).run()
    pipeline(folder, tmp_path, contract, "quarantine").run()
    assert dpipe.quarantined(tmp_path / "run").reasons == {"'kind': a category never seen": 1}


def test_inferred_once_and_kept(folder, tmp_path):
    write(folder, good())
    pipeline(folder, tmp_path, "infer").run()
    frozen = tmp_path / "run" / "contracts" / "collect.json"
    contract = read_contract(frozen)
    assert contract.schema.field("x") == pa.field("x", pa.int64(), nullable=False)
    assert contract.strict
    pipeline(write(folder, good(), good()), tmp_path, "infer").run()
    write(folder, good(), good(), good(x=[None, *range(7)]))
    with pytest.raises(ContractError, match=r"2\.parquet: column 'x' has 1 nulls"):
        pipeline(folder, tmp_path, "infer")
    write(folder, good(), good(), {**good(), "new": [1] * 8})
    with pytest.raises(ContractError, match=r"2\.parquet: it also has column 'new'"):
        pipeline(folder, tmp_path, "infer")
    frozen.write_text(frozen.read_text().replace('"int64"', '"int32"'))
    with pytest.raises(ContractError, match=r"collect\.json cannot be read .* edited by hand"):
        pipeline(folder, tmp_path, "infer")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 99}', "not json"])
def test_a_broken_contract_file(folder, tmp_path, text):
    write(folder, good())
    path = tmp_path / "run" / "contracts" / "collect.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ContractError, match=r"collect\.json cannot be read as a contract"):
        pipeline(folder, tmp_path, "infer")


def test_csv_files_under_a_contract(folder, tmp_path):
    folder.mkdir()
    pd.DataFrame(good(kind=["day", "dusk"] * 4)).to_csv(folder / "a.csv", index=False)
    contract = dpipe.Contract(STRICT, {"kind": ["day", "night"]})
    pipeline(str(folder / "*.csv"), tmp_path, contract, "quarantine").run()
    assert dpipe.quarantined(tmp_path / "run").rows == 4


PANDERA = pandera.DataFrameSchema(
    {
        "x": pandera.Column(int, pandera.Check.in_range(0, 5)),
        "kind": pandera.Column(str, pandera.Check.isin(["day", "night"])),
        "y": pandera.Column(float, nullable=True),
    }
)


def test_pandera_refuses_and_sets_apart(folder, tmp_path):
    write(folder, good(), good(kind=["day"] * 7 + ["dusk"]))
    with pytest.raises(ContractError, match=r"\.parquet.*column 'x': fails in_range\(0, 5\), in 2 of .*6, 7"):
        pipeline(folder, tmp_path, PANDERA).run()
    run = pipeline(folder, tmp_path, PANDERA, "quarantine").run()
    apart = dpipe.quarantined(tmp_path / "run")
    assert apart.rows == 4
    assert sum(apart.reasons.values()) == 4
    rows = pd.DataFrame(good()).query("x <= 5")
    wanted = LinearRegression().fit(pd.concat([rows, rows])[["x"]], pd.concat([rows, rows])["y"])
    np.testing.assert_allclose(run.model.coef_, wanted.coef_, rtol=1e-12)


def test_pandera_coerces(folder, tmp_path):
    write(folder, good(x=[str(i % 6) for i in range(8)]))
    with pytest.raises(ContractError, match="column 'x' is string instead of int64"):
        pipeline(folder, tmp_path, PANDERA)
    assert pipeline(folder, tmp_path, PANDERA, "coerce").run().model is not None
    write(folder, good(x=bad_numbers()))
    with pytest.raises(ContractError, match="many"):
        pipeline(folder, tmp_path, PANDERA, "coerce").run()


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (pandera.DataFrameSchema({"x": pandera.Column(int, unique=True)}), "unique=True in column 'x'"),
        (pandera.DataFrameSchema({"x": pandera.Column(int)}, unique=["x"]), "unique=..."),
        (pandera.DataFrameSchema({"x": pandera.Column(int)}, drop_invalid_rows=True), "drop_invalid_rows"),
        (pandera.DataFrameSchema({"x": pandera.Column(int)}, strict="filter"), "strict='filter'"),
    ],
)
def test_pandera_schemas_that_blocks_cannot_keep(folder, tmp_path, schema, says):
    with pytest.raises(InputError, match=says):
        pipeline(write(folder, good()), tmp_path, schema)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schema": "guess"}, "the only text allowed is 'infer'"),
        (
            {"schema": STRICT, "on_violation": "drop"},
            "on_violation must be one of 'raise', 'quarantine', 'coerce'",
        ),
        ({"schema": None, "on_violation": "quarantine"}, "needs a contract that can be broken"),
        ({"schema": 5}, "schema is a builtins.int"),
        ({"schema": pandera.DataFrameSchema({"q": pandera.Column(int)})}, "it lacks column 'q'"),
        ({"schema": pa.schema([pa.field("q", pa.int64(), nullable=False)])}, "it lacks column 'q'"),
    ],
)
def test_arguments_that_cannot_be(folder, tmp_path, options, says):
    with pytest.raises(InputError, match=says):
        pipeline(write(folder, good()), tmp_path, **options)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: dpipe.Contract(pa.schema([])), "at least one column"),
        (lambda: dpipe.Contract({"x": int}), "must be a pyarrow.schema"),
        (lambda: dpipe.Contract(pa.schema([("x", pa.int64()), ("x", pa.int64())])), "several columns 'x'"),
        (lambda: dpipe.Contract(STRICT, {"q": [1]}), "no column 'q' in the contract"),
        (lambda: dpipe.Contract(STRICT, {"kind": "day"}), "must be a sequence"),
        (lambda: dpipe.Contract(STRICT, {"x": ["day"]}), "values that are not int64"),
    ],
)
def test_contracts_that_cannot_be(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_a_damaged_file_in_quarantine_is_named(folder, tmp_path):
    pipeline(write(folder, good(x=bad_numbers())), tmp_path, STRICT, "quarantine").run()
    (file, *_) = (tmp_path / "run" / "quarantine" / "collect").iterdir()
    file.write_bytes(b"PAR1")
    with pytest.raises(ContractError, match="not a file that a quarantine has written"):
        dpipe.quarantined(tmp_path / "run")


VALUES = st.one_of(st.none(), st.integers(-3, 3).map(str), st.sampled_from(["", "many", "1.5", "9" * 30]))


@given(values=st.lists(VALUES, min_size=1, max_size=40), group=st.integers(1, 9), blocks=st.integers(1, 5))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_in_are_rows_out_and_rows_apart(values, group, blocks, tmp_path_factory):
    base = tmp_path_factory.mktemp("any")
    contract = dpipe.Contract(pa.schema([pa.field("x", pa.int64(), nullable=False), ("i", pa.int64())]))
    rows = {"x": pa.array(values, pa.string()), "i": range(len(values))}
    write(base / "rows", rows, row_group_size=group)
    fits = [i for i, v in enumerate(values) if v is not None and v.lstrip("-").isdigit() and len(v) < 19]
    for name, frame in (
        ("files", lambda p: read_contracted(base / "rows", contract, p, block_nbytes=64)),
        ("frame", lambda p: enforce(dd.from_pandas(pd.DataFrame(rows), npartitions=blocks), contract, p)),
    ):
        policy = policy_for("quarantine", base / "quarantine" / name)
        for _ in range(2):  # a second pass neither doubles nor loses
            kept = frame(policy).compute(scheduler="sync")
            assert list(kept["i"]) == fits
            assert list(kept["x"]) == [int(values[i]) for i in fits]
            assert dpipe.quarantined(base, name).rows == len(values) - len(fits)


@pytest.mark.cluster
def test_worker_processes_set_the_same_rows_apart(folder, tmp_path):
    write(folder, good(), good(x=bad_numbers()), good(x=[None, *range(7)]))
    with LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        pipeline(folder, tmp_path, STRICT, "quarantine").run(client=client)
    assert dpipe.quarantined(tmp_path / "run").rows == 3
