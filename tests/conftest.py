"""Fixtures for all tests."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import dask
import pytest

from tests.faults.harness import TRIED
from tests.kernel_cases import SEEN

CHECKOUT = Path(__file__).resolve().parent.parent
SHARED_DATA_VARIABLE = "DPIPE_SHARED_DATA"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the fixture `shared_data`, so that `-m shared_data` finds it."""
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.shared_data)


@pytest.fixture(autouse=True)
def synchronous(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compute in this thread, unless the test is marked `cluster`."""
    if request.node.get_closest_marker("cluster"):
        yield
        return
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real data sets; the test is skipped where it is absent."""
    named = os.environ.get(SHARED_DATA_VARIABLE)
    folder = Path(named) if named else CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            f"no real data sets in {folder}: put them there, "
            f"or name their folder in the environment variable {SHARED_DATA_VARIABLE}"
        )
    return folder


def pytest_sessionfinish(session):
    """Give the process that prints the summary what this one has seen, where several share the tests."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        estimators = [f"{cls.__module__}.{cls.__qualname__}" for cls in SEEN.estimators]
        output["seen"] = [estimators, SEEN.cases, SEEN.worst, SEEN.worst_of]
        output["tried"] = asdict(TRIED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Add up what the processes have seen."""
    output = getattr(node, "workeroutput", {})
    if "seen" not in output:
        return  # it broke down
    estimators, cases, worst, worst_of = output["seen"]
    SEEN.estimators |= set(estimators)
    SEEN.cases += cases
    SEEN.worst, SEEN.worst_of = max((SEEN.worst, SEEN.worst_of), (worst, worst_of))
    for name, count in output["tried"].items():
        setattr(TRIED, name, getattr(TRIED, name) + count)


def pytest_terminal_summary(terminalreporter):
    """Close with what the comparisons with scikit-learn came to."""
    if SEEN.cases:
        terminalreporter.write_line(
            f"compared with scikit-learn: {len(SEEN.estimators)} estimators in {SEEN.cases:,} cases; "
            f"largest deviation {SEEN.worst:.1e}, of {SEEN.worst_of}"
        )
    if TRIED.faults:
        terminalreporter.write_line(str(TRIED))
    reports = [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())]
    faults = [
        (*value, report.outcome)
        for report in reports
        for name, value in report.user_properties
        if name == "fault"
    ]
    for fault, ended, seconds, outcome in faults:
        terminalreporter.write_line(f"{fault:<46} {ended:<58} {seconds:5.1f} s  {outcome}")
