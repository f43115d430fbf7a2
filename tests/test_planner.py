"""The planner: passes, reasons and memory, from estimators and shapes alone."""

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import LassoCV, LinearRegression, LogisticRegression, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, Normalizer, OneHotEncoder, StandardScaler

from dpipe.errors import MemoryLimitError, UnsupportedEstimatorError
from dpipe.families import catalog
from dpipe.families.compose import walk
from dpipe.families.registry import Meta
from dpipe.planner import DataShape, Resources, make_program

FRAME = pd.DataFrame(
    {
        "a": np.array([], dtype=float),
        "b": np.array([], dtype=float),
        "s": np.array([], dtype=str),
        "t": np.array([], dtype=str),
    }
)
NUMBERS = FRAME[["a", "b"]]
assert catalog.FAMILIES


def plan(estimator, frame=NUMBERS, *, rows=(1000,) * 10, epochs=1, **resources):
    shape = DataShape("a test", tuple(frame.columns), rows, (8,) * frame.shape[1], target_nbytes=8)
    settings = {"threads": 2, **resources}
    return make_program(walk(estimator, Meta(frame=frame)), shape, Resources(**settings), epochs=epochs).plan


def mixed():
    numeric = make_pipeline(SimpleImputer(), StandardScaler())
    text = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
    return make_column_transformer((numeric, ["a", "b"]), (text, ["s", "t"]))


@pytest.mark.parametrize(
    ("estimator", "frame", "passes"),
    [
        (Normalizer(), NUMBERS, 0),
        (make_pipeline(Normalizer(), FunctionTransformer()), NUMBERS, 0),
        (StandardScaler(), NUMBERS, 1),
        (mixed(), FRAME, 1),
        (make_pipeline(SimpleImputer(), MinMaxScaler(), StandardScaler()), NUMBERS, 1),
        (make_pipeline(Normalizer(), StandardScaler()), NUMBERS, 1),
        (make_union(StandardScaler(), MinMaxScaler(), SimpleImputer()), NUMBERS, 1),
        (make_pipeline(StandardScaler(), LinearRegression()), NUMBERS, 1),
        (make_pipeline(SimpleImputer(), LinearRegression()), NUMBERS, 2),
        (make_pipeline(MinMaxScaler(), StandardScaler(), PCA(1)), NUMBERS, 1),
        (make_pipeline(StandardScaler(), Normalizer(), StandardScaler()), NUMBERS, 2),
        (
            make_pipeline(StandardScaler(), Normalizer(), StandardScaler(), Normalizer(), GaussianNB()),
            NUMBERS,
            3,
        ),
        (make_pipeline(mixed(), SGDClassifier()), FRAME, 2),
        (SGDClassifier(), NUMBERS, 2),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
def test_the_fewest_passes(estimator, frame, passes):
    found = plan(estimator, frame)
    assert found.n_passes == passes == len(found.passes)


def test_a_plan_says_what_why_and_what_was_saved():
    found = plan(make_pipeline(mixed(), SGDClassifier()), FRAME)
    first, second = found.passes
    assert first.way == "merge"
    assert any("Moments" in text for text in first.collects)
    assert any("ValueCounts" in text for text in first.collects)
    assert any("imputed values add a known count" in rule for rule in first.rules)
    assert second.way == "stream"
    assert "learns in order" in second.why
    assert "pass 1" in second.why
    assert first.rows == 10_000
    assert first.nbytes == 10_000 * (4 * 8 + 8)
    chained = plan(make_pipeline(StandardScaler(), Normalizer(), StandardScaler()))
    assert "needs the output of Pipeline / standardscaler-1 (pass 1)" in chained.passes[1].why


def test_epochs_are_readings():
    found = plan(SGDClassifier(), epochs=3)
    assert found.n_passes == 4
    assert found.passes[1].rows == 30_000


def test_only_the_columns_that_are_needed_are_read():
    found = plan(make_column_transformer((StandardScaler(), ["b"])), FRAME)
    assert found.passes[0].columns == ("b",)
    assert plan(SGDClassifier()).passes[0].columns == ()


def test_plans_are_plain_comparable_records():
    assert plan(mixed(), FRAME) == plan(mixed(), FRAME)
    assert hash(plan(mixed(), FRAME)) == hash(plan(mixed(), FRAME))
    assert plan(mixed(), FRAME) != plan(mixed(), FRAME, threads=1)
    with pytest.raises(AttributeError):
        plan(mixed(), FRAME).n_blocks = 3


def test_a_plan_prints_and_escapes():
    frame = NUMBERS.rename(columns={"a": "<b>x</b>"})
    found = plan(StandardScaler(), frame)
    assert "1 pass over 10,000 rows in 10 blocks" in str(found)
    page = plan(make_column_transformer((StandardScaler(), ["<b>x</b>"])), frame)._repr_html_()
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x" in page


def test_a_budget_that_cannot_be_kept_is_refused_with_a_remedy():
    with pytest.raises(
        MemoryLimitError, match=r"needs .* MiB a worker, but the budget is 100.00 kiB.*Give at least"
    ):
        plan(StandardScaler(), rows=(100_000,), memory=100 * 1024)
    assert plan(StandardScaler(), rows=(100_000,), memory=2**30).projected_nbytes < 2**30


def test_the_projection_does_not_grow_with_the_number_of_blocks():
    few, many = (plan(mixed(), FRAME, rows=(1000,) * n) for n in (10, 10_000))
    assert few.projected_nbytes == many.projected_nbytes
    unknown = plan(mixed(), FRAME, rows=(None,) * 4)
    assert unknown.projected_nbytes is None
    assert "unknown" in str(unknown)


def test_an_estimator_without_a_way_is_named():
    with pytest.raises(UnsupportedEstimatorError, match="KNNImputer cannot be fitted block by block"):
        plan(make_pipeline(KNNImputer(), StandardScaler()))


def test_places_of_rows_wait_for_a_pass_that_counts_blocks_of_unknown_length():
    model = make_pipeline(StandardScaler(), LassoCV(cv=3))
    found = [plan(model, rows=lengths) for lengths in [(100, 100), (None, None)]]
    assert [each.n_passes for each in found] == [1, 2]
    assert "follow from what pass 1 has counted" in found[1].passes[1].why
    alone = plan(LassoCV(cv=3), rows=(None, None))
    assert alone.n_passes == 2
    assert alone.passes[0].collects[0].startswith("RowCount of ")


def test_blocks_are_held_in_memory_where_the_budget_leaves_room():
    settings = {"scratch": "/scratch", "scratch_free": 2**30, "available": 2**30}
    model = make_pipeline(StandardScaler(), LogisticRegression())
    rows, nbytes = (1000,) * 10, 10_000 * (2 * 12 + 8)

    def last(**more):
        return plan(model, rows=rows, **settings, **more).passes[-1]

    kept = last()
    assert kept.scratch.startswith("scratch: transformed blocks are kept, up to 312.50 kiB in /scratch")
    peak = kept.projected_nbytes
    for held in (last(may_hold=True), last(may_hold=True, memory=peak + nbytes)):
        assert held.scratch == "transformed blocks are held in memory, up to 312.50 kiB"
        assert (held.scratch_nbytes, held.projected_nbytes) == (None, peak + nbytes)
    assert last(may_hold=True, memory=peak + nbytes - 1) == kept
