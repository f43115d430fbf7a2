"""Networks fitted like any estimator: out of core, in pipelines, planned, recorded, and applied block by block."""

import functools
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import warnings

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler, TargetEncoder

import dpipe
from dpipe.deploy.batch import score_files
from dpipe.deploy.bundle import write_bundle
from dpipe.errors import InputError, MemoryLimitError, UnsupportedEstimatorError
from tests.conftest import CHECKOUT
from tests.helpers import raise_if_computes

torch = pytest.importorskip("torch", reason="networks need PyTorch: pip install 'dpipe[torch]'")
torch.set_num_threads(1)  # small layers gain nothing by more, and other tests want the processors, too

DIGITS, LABELS = load_digits(return_X_y=True)
ADAM = functools.partial(torch.optim.Adam, lr=0.01)
SGD = functools.partial(torch.optim.SGD, lr=0.1)


def layers(*widths):
    torch.manual_seed(0)
    made = []
    for a, b in itertools.pairwise(widths):
        made += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    return torch.nn.Sequential(*made[:-1])


def digits(**given):
    how = {"classes": range(10), "batch_size": 128, "epochs": 15}
    return dpipe.DataParallel(layers(64, 64, 10), torch.nn.functional.cross_entropy, ADAM, **(how | given))


def digit_blocks():
    return da.from_array(DIGITS, chunks=(200, 64)), da.from_array(LABELS, chunks=200)


def rides(n=600):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"km": rng.gamma(2.0, 3.0, n), "zone": rng.choice(["a", "b", "c"], n)})
    frame["late"] = ((frame.km > 6) ^ (frame.zone == "b")).astype(int)
    return frame


def late_model(**given):
    columns = make_column_transformer((StandardScaler(), ["km"]), (OneHotEncoder(), ["zone"]))
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    how = {"classes": [0, 1], "batch_size": 64, "epochs": 30}
    return make_pipeline(columns, dpipe.DataParallel(layers(4, 16, 1), loss, ADAM, **(how | given)))


def test_digits_are_learned_out_of_core_and_predicted_block_by_block():
    X, y = digit_blocks()
    fitted = dpipe.fit(make_pipeline(StandardScaler(), digits()), X[:1400], y[:1400])
    assert type(fitted).__name__ == "Pipeline"
    with raise_if_computes():
        predicted = dpipe.predict(fitted, X[1400:])
        probabilities = dpipe.predict(fitted, X[1400:], method="predict_proba")
    np.testing.assert_array_equal(predicted.compute(), fitted.predict(DIGITS[1400:]))
    np.testing.assert_allclose(probabilities.compute().sum(axis=1), 1.0)
    assert dpipe.score(fitted, X[1400:], y[1400:], scoring="accuracy") > 0.9
    assert fitted.score(DIGITS[:1400], LABELS[:1400]) > 0.99


def test_a_pipeline_gives_what_its_parts_give_one_after_another():
    frame = rides()
    lazy = dd.from_pandas(frame, npartitions=5)
    fitted = dpipe.fit(late_model(), lazy, "late")
    X = frame[["km", "zone"]]
    assert fitted.score(X, frame.late) > 0.9
    first = fitted[:-1].fit(X).transform(X)
    alone = late_model()[-1].fit(
        da.from_array(np.asarray(first, np.float64), chunks=(120, 4)),
        da.from_array(frame.late.to_numpy(), chunks=120),
    )
    np.testing.assert_allclose(fitted[-1].losses_, alone.losses_, rtol=1e-4)
    assert set(fitted.predict(X)) == {0, 1}


def test_the_plan_tells_passes_and_memory_and_computes_nothing():
    X, y = digit_blocks()
    model = make_pipeline(StandardScaler(), digits(epochs=3))
    with raise_if_computes():
        plan = dpipe.plan(model, X, y)
    assert [step.way for step in plan.passes] == ["merge", "network"]
    assert plan.n_passes == 4
    assert plan.passes[1].rows == 3 * len(DIGITS)
    n_parameters = sum(each.numel() for each in model[-1].module.parameters())
    assert f"weights {n_parameters * 4 / 1024:.2f} kiB" in str(plan)
    with pytest.raises(MemoryLimitError, match="The plan needs"):
        dpipe.plan(digits(), X, y, memory="1 MiB")
    larger = dpipe.plan(
        dpipe.DataParallel(layers(64, 4096, 10), torch.nn.functional.cross_entropy, ADAM), X, y
    )
    # 4 copies of each parameter and what is given away, at least
    assert larger.projected_nbytes - plan.projected_nbytes > 5 * 4 * 64 * 4096


def test_a_pipeline_of_stages_trains_records_and_goes_on(tmp_path):
    frame = dd.from_pandas(rides(), npartitions=5)

    def made(epochs=4):
        pipe = dpipe.Pipeline("late", workdir=tmp_path)
        data = pipe.collect(frame)
        train, test = pipe.split(data, test_size=0.3, by="km")
        model = pipe.train(late_model(epochs=epochs), train, target="late")
        pipe.validate(model, test, scoring=["accuracy", "roc_auc"])
        return pipe

    with raise_if_computes():
        plan = made().plan()
    assert "network, 4 epochs" in str(plan)
    run = made().run(progress=False)
    assert run.metrics["roc_auc"] > 0.5
    again = made().run(progress=False)
    assert again.metrics == run.metrics
    assert "the network is on record" in (tmp_path / "report.html").read_text()
    more = made(epochs=5).run(progress=False).model[-1]
    # more epochs go on from those that were made
    assert more.losses_[: len(run.model[-1].losses_)] == run.model[-1].losses_


SCRIPT = """
import sys, time
import numpy as np
import torch
import dpipe
from tests.train.networks.test_fits import digit_blocks, digits, slow_cross_entropy

X, y = digit_blocks()
network = digits(epochs=3, checkpoint_every=2, ranks=int(sys.argv[3])).set_params(loss=slow_cross_entropy)
fitted = dpipe.fit(network, X, y, workdir=sys.argv[1])
np.savez(sys.argv[2], losses=fitted.losses_, **{name: value.numpy() for name, value in fitted.state_dict().items()})
"""


def slow_cross_entropy(output, y):
    time.sleep(float(os.environ["SECONDS_A_BATCH"]))
    return torch.nn.functional.cross_entropy(output, y)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kills", "ranks"),
    [(1, 1), pytest.param(4, 1, marks=pytest.mark.slow), pytest.param(3, 2, marks=pytest.mark.slow)],
)
def test_a_process_that_is_killed_ends_with_the_same_weights(tmp_path, kills, ranks):
    def run(seconds):
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "killed"), str(tmp_path / "end.npz"), str(ranks)],
            cwd=CHECKOUT,
            env={
                **os.environ,
                "SECONDS_A_BATCH": str(seconds),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(CHECKOUT),
            },
        )

    def checkpoints():
        return [path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("networks/*.pt")]

    for _ in range(kills):
        before, killed = checkpoints(), run(0.2)
        while checkpoints() == before and killed.poll() is None:
            time.sleep(0.02)
        time.sleep(np.random.default_rng().uniform(0, 1))
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
    assert run(0).wait() == 0
    found = np.load(tmp_path / "end.npz")
    whole = dpipe.fit(digits(epochs=3, ranks=ranks), *digit_blocks())
    # each batch had the loss that it has in a run without a stop: they came in the same order
    np.testing.assert_array_equal(found["losses"], whole.losses_)
    for name, value in whole.state_dict().items():
        np.testing.assert_array_equal(found[name], value)


def test_files_are_scored_by_a_network(tmp_path):
    frame = rides()
    fitted = dpipe.fit(late_model(epochs=2), dd.from_pandas(frame, npartitions=3), "late")
    X = frame[["km", "zone"]]
    bundle = write_bundle(tmp_path / "bundle", fitted, schema=pa.Schema.from_pandas(X, preserve_index=False))
    (tmp_path / "new").mkdir()
    frame.to_parquet(tmp_path / "new" / "0.parquet", row_group_size=100)
    score_files(bundle, tmp_path / "new", tmp_path / "scored", keep=["km"])
    found = pd.read_parquet(tmp_path / "scored" / "0.parquet")
    np.testing.assert_array_equal(found["km"], frame["km"])
    np.testing.assert_allclose(found["probability_1"], fitted.predict_proba(X)[:, 1], rtol=1e-5)


def test_partial_fit_goes_on_as_more_epochs_would():
    network = digits(shuffle=None, batch_size=len(DIGITS), shares=1)
    for _ in range(3):
        network.partial_fit(DIGITS, LABELS, classes=range(10))
    whole = digits(shuffle=None, batch_size=len(DIGITS), shares=1, epochs=3).fit(DIGITS, LABELS)
    np.testing.assert_allclose(network.losses_, whole.losses_, rtol=1e-5)
    with pytest.raises(InputError, match="but the network was given classes"):
        digits().partial_fit(DIGITS, LABELS, classes=[11])


def test_partial_fit_goes_on_after_fit_as_the_networks_of_scikit_learn_do():
    how = {"shuffle": None, "batch_size": len(DIGITS), "shares": 1}
    network, mlp = digits(**how, epochs=2), MLPClassifier(max_iter=2, shuffle=False, batch_size=len(DIGITS))
    network.optimizer = SGD  # which remembers nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for each in (network, mlp):
            each.fit(DIGITS, LABELS).partial_fit(DIGITS, LABELS)
    whole = digits(**how, epochs=3).set_params(optimizer=SGD).fit(DIGITS, LABELS)
    np.testing.assert_allclose(network.losses_, whole.losses_, rtol=1e-5)
    assert len(network.losses_) == len(mlp.loss_curve_) == 3
    network.fit(DIGITS, LABELS)  # anew
    np.testing.assert_allclose(network.losses_, whole.losses_[:2], rtol=1e-5)
    assert not hasattr(network, "n_calls_")


def test_a_search_compares_networks():
    X, y = digit_blocks()
    model = make_pipeline(StandardScaler(), digits(batch_size=32))
    space = {"dataparallel__optimizer": [functools.partial(torch.optim.SGD, lr=1e-6), ADAM]}
    found = dpipe.search(model, space, X, y, method="grid", max_iter=18)
    assert found.best_params_["dataparallel__optimizer"] is ADAM
    assert found.best_score_ > 0.8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"classes": ["a", "b"]}, "Encode other labels first"),
        ({"classes": range(9)}, "10 outputs for 9 classes"),
        ({"classes": None, "loss": torch.nn.functional.mse_loss}, "The loss does not take outputs"),
        ({"module": layers(63, 10)}, "does not take rows of 64 features"),
        ({"module": layers(64, 10).requires_grad_(False)}, "no parameter that could learn"),
        ({"module": "mlp"}, "must be a torch.nn.Module"),
        ({"loss": lambda output, y: output}, "must give one number"),
        ({"optimizer": lambda parameters: None}, "optimizer must give an optimizer"),
        ({"precision": "float16"}, "precision must be 'float32' or 'bfloat16'"),
        ({"validation": 0.1}, "validation must be rows of their own"),
        ({"shares": 2000, "batch_size": 2000}, "There are 1,797 rows"),
    ],
)
def test_what_does_not_go_together_is_told_before_anything_is_read(given, message):
    X, y = digit_blocks()
    with raise_if_computes(), pytest.raises(InputError, match=re.escape(message)):
        dpipe.fit(digits().set_params(**given), X, y)


def test_labels_that_were_not_named_weights_and_folds_are_refused():
    X, y = digit_blocks()
    network = digits(classes=range(10, 20))
    with pytest.raises(InputError, match=r"y holds .*, but classes=\[10, 11"):
        dpipe.fit(network, X, y)
    with pytest.raises(InputError, match="takes no sample_weight"):
        dpipe.fit(digits(), X, y, y)
    with pytest.raises(InputError, match="but y is None"):
        dpipe.fit(digits(), X)
    with pytest.raises(InputError, match="epochs, validation, qid and shares are not for a DataParallel"):
        dpipe.fit(digits(), X, y, epochs=2)
    encoded = make_pipeline(TargetEncoder(), digits())
    with pytest.raises(UnsupportedEstimatorError, match="OrdinalEncoder or a OneHotEncoder"):
        dpipe.fit(encoded, X, y)


def test_labels_come_in_the_order_of_the_outputs():
    X, y = digit_blocks()
    order = [9, 1, 8, 0, 2, 3, 4, 5, 7, 6]
    fitted = dpipe.fit(make_pipeline(StandardScaler(), digits(classes=order)), X, y)
    assert fitted.score(DIGITS, LABELS) > 0.95
    assert list(fitted.classes_) == order
    assert np.argmax(fitted.predict_proba(DIGITS[:50]), axis=1).tolist() == [
        order.index(label) for label in fitted.predict(DIGITS[:50])
    ]
