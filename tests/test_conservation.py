"""Every stage knows how many rows came in and went out; what does not add up stops the run."""

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, SGDRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.blocks.flows import Flow
from dpipe.errors import ConservationError
from dpipe.monitor.record import RunRecord
from dpipe.pipeline.conservation import check_flows
from dpipe.pipeline.stages import Stage


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(3):
        place = np.arange(40) + 100 * i
        frame = pd.DataFrame({"place": place, "x": np.cos(place), "day": place % 7, "y": np.sin(place)})
        frame.to_csv(folder / f"{i}.csv", index=False)
    return folder


def without_first_days(frame):
    return frame[frame["day"] > 1]


def build(files, workdir, function=without_first_days, **ways):
    pipe = dpipe.Pipeline("counted", workdir=workdir)
    rows = pipe.collect(str(files / "*.csv"))
    chosen = pipe.preprocess(rows, function)
    train, test = pipe.split(chosen, **(ways or {"by": "place"}))
    model = pipe.train(LinearRegression(), train, target="y")
    pipe.validate(model, test, scoring=["r2"])
    return pipe


def counts(run):
    return [(stage.rows_in, stage.rows_out) for stage in RunRecord.read(run.workdir / "run.json").stages]


@pytest.mark.parametrize(
    "ways", [{"by": "place"}, {"time": "day", "test_from": 5, "gap": 1}], ids=["by", "time"]
)
def test_every_stage_tells_its_rows_also_where_all_is_on_record(files, tmp_path, ways):
    whole = pd.concat([pd.read_csv(path) for path in sorted(files.glob("*.csv"))])
    chosen = without_first_days(whole)
    on_a_side = len(chosen) if "by" in ways else int((chosen["day"] != 4).sum())
    first = counts(build(files, tmp_path / "run", **ways).run(progress=False))
    assert first[0] == (len(whole), len(whole))
    again = counts(build(files, tmp_path / "run", **ways).run(progress=False))
    assert first == again
    assert first[1] == (len(whole), len(chosen))
    assert first[2] == (len(chosen), on_a_side)
    assert first[3][0] + first[4][0] == on_a_side


_seen = set()


def losing_a_row_the_second_time(frame):
    if not len(frame):
        return frame
    first = int(frame["place"].iloc[0])
    if first == 100 and first in _seen:
        return frame.iloc[1:]
    _seen.add(first)
    return frame


_other = set()


def changing_a_row_the_second_time(frame):
    if not len(frame):
        return frame
    first = int(frame["place"].iloc[0])
    if first == 200 and first in _other:
        return frame.assign(place=frame["place"].where(frame["place"] != 210, 999))
    _other.add(first)
    return frame


def test_a_function_that_gives_other_rows_each_time_stops_the_run(files, tmp_path):
    with pytest.raises(ConservationError, match="preprocess: out: block 1 gave 40 rows in one pass and 39"):
        build(files, tmp_path / "lost", losing_a_row_the_second_time).run(progress=False)
    with pytest.raises(
        ConservationError, match="split: block 2 gave 40 rows in one pass and 40 in another, or"
    ):
        build(files, tmp_path / "changed", changing_a_row_the_second_time).run(progress=False)


def told(rows, keys, sides):
    flow = Flow(
        ("rows", "keys", "rows on no side", "keys on no side"),
        np.array([[*rows_keys, 1, 5] for rows_keys in zip(rows, keys, strict=True)]),
    )
    found = {"split": [flow, flow]}
    for number, side in enumerate(sides):
        found[f"split: side {number}"] = [Flow(("rows", "keys"), np.array(side))]
    return found


def test_both_sides_of_a_split_must_add_up_block_by_block():
    stages = [Stage("split", "split", "")]
    check_flows(stages, told([10, 10], [100, 200], [[[4, 40], [3, 90]], [[5, 55], [6, 105]]]))
    with pytest.raises(ConservationError, match="split: of block 1, 10 rows came in, but 2 and 6 went out"):
        check_flows(stages, told([10, 10], [100, 200], [[[4, 40], [2, 90]], [[5, 55], [6, 105]]]))
    with pytest.raises(
        ConservationError, match="split: of block 0, 10 rows came in, but 4 and 5 went out, or others"
    ):
        check_flows(stages, told([10, 10], [100, 200], [[[4, 41], [3, 90]], [[5, 55], [6, 105]]]))


@pytest.mark.parametrize(
    "epochs",
    [
        dpipe.Epochs(3, shuffle="rows", mix=2),
        dpipe.Epochs(4, shuffle="blocks", average=2),
        dpipe.Epochs(4, shuffle="rows", mix=3, validation=0.3, patience=4),
    ],
    ids=["mixed", "averaged", "stopped"],
)
@pytest.mark.parametrize(
    "model", [SGDRegressor(random_state=0), make_pipeline(StandardScaler(), SGDRegressor())]
)
def test_blocks_that_are_read_in_random_order_are_told_in_theirs(model, epochs, tmp_path):
    """Else the counts of one pass would stand beside those of other blocks in another."""
    frames = [pd.DataFrame({"x": np.arange(n) / 50, "y": 1.0}) for n in (40, 10, 30, 5, 50, 20)]
    pipe = dpipe.Pipeline("orders", workdir=tmp_path)
    rows = pipe.collect(dd.concat([dd.from_pandas(frame, npartitions=1) for frame in frames]))
    kept = pipe.preprocess(rows, without_the_first)
    train, test = pipe.split(kept, by=["x"])
    fitted = pipe.train(model, train, target="y", epochs=epochs)
    pipe.validate(fitted, test, scoring="r2")
    pipe.run(progress=False)
    record = RunRecord.read(tmp_path / "run.json")
    stages = {stage.name: stage for stage in record.stages}
    assert (stages["preprocess"].rows_in, stages["preprocess"].rows_out) == (155, 149)
    assert stages["split"].rows_in == stages["split"].rows_out == 149
    assert stages["train"].rows_in == 149 - stages["validate"].rows_in


def without_the_first(block):
    return block.iloc[1:]


def test_an_appended_csv_file_under_a_contract_costs_itself_alone(files, tmp_path):
    def read():
        pipe = dpipe.Pipeline("appended", workdir=tmp_path / "run")
        rows = pipe.collect(str(files / "*.csv"), schema="infer")
        pipe.train(LinearRegression(), pipe.preprocess(rows, without_first_days), target="y")
        run = RunRecord.read(pipe.run(progress=False).workdir / "run.json")
        return [one.n_blocks - one.n_recalled for one in run.passes], run.stages[0].rows_out

    assert read() == ([3], 120)
    (files / "3.csv").write_text((files / "2.csv").read_text())
    assert read() == ([1], 160)
