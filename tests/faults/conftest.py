"""Data and undisturbed results that all faults are compared with; what was tried is said in the end."""

import pytest

from tests.faults import harness, job


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" and report.passed and "fault" in item.fixturenames:
        harness.TRIED.survived += 1
    return report


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    job.make_data(folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(data):
    """Results and durations of the jobs that nothing happens to, each run once."""
    found = {}

    def result(kind):
        if kind not in found:
            done = harness.run(kind, data, data / f"undisturbed-{kind}")
            assert done.status == 0, done.said
            found[kind] = done
        return found[kind]

    return result
