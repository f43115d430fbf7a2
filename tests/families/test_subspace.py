"""Principal components of wide rows, found in a few readings, are those of the exact decomposition."""

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
import scipy.sparse as sp
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from dpipe.errors import InputError, MemoryLimitError
from dpipe.families.subspace import _Krylov
from dpipe.ledger.book import Ledger
from dpipe.train.fit import run_fit
from dpipe.train.prepare import prepare
from tests.helpers import raise_if_computes
from tests.kernel_cases import array_blocks

WIDTH = 300


@pytest.fixture
def narrow(monkeypatch):
    """Take few features for many, so that small rows go the way of wide ones."""
    monkeypatch.setattr("dpipe.families.decompose._NARROW", 50)
    monkeypatch.setattr("dpipe.families.decompose._EIGEN", 10**9)


wide = pytest.mark.usefixtures("narrow")


def known(n, values, offset=0.0, seed=0):
    """Rows whose centred singular values are known, and their components."""
    rng = np.random.default_rng(seed)
    k = len(values)
    scores = rng.normal(size=(n, k))
    scores = np.linalg.qr(scores - scores.mean(axis=0))[0]
    rows = np.linalg.qr(rng.normal(size=(WIDTH, k)))[0].T
    return (scores * values) @ rows + offset, rows


STEEP = 100 * np.arange(1, 80) ** -1.5
WIDE, ROWS = known(150, STEEP, offset=40.0)
BLOCKS = (1, 0, 60, 2, 87)


def angles(found, wanted):
    """How far components are from others, up to their signs."""
    return np.abs(1 - np.abs(np.einsum("ij,ij->i", found, wanted))).max()


def assert_same_fit(ours, theirs, rtol=1e-7):
    assert set(vars(ours)) == set(vars(theirs))
    for name, value in vars(theirs).items():
        if name.endswith("_"):
            np.testing.assert_allclose(getattr(ours, name), value, rtol=rtol, atol=rtol, err_msg=name)


@wide
@pytest.mark.parametrize(
    ("n", "values"), [(150, STEEP), (1500, STEEP), (150, np.exp(-np.arange(60) / 4.0)), (30, STEEP[:20])]
)
def test_a_known_spectrum_comes_back(n, values):
    X, rows = known(n, values, offset=40.0)
    fitted = dpipe.fit(PCA(6), array_blocks(X, (n // 3, 1, n - n // 3 - 1)))
    np.testing.assert_allclose(fitted.singular_values_, values[:6], rtol=1e-9)
    assert angles(fitted.components_, rows[:6]) < 1e-13
    np.testing.assert_allclose(
        fitted.explained_variance_ratio_, (values**2 / (values**2).sum())[:6], rtol=1e-9
    )
    np.testing.assert_allclose(fitted.mean_, X.mean(axis=0), rtol=1e-12)


@wide
@pytest.mark.parametrize(
    "chosen", [{}, {"whiten": True}, {"svd_solver": "covariance_eigh"}, {"n_components": 1}]
)
def test_pca_is_that_of_scikit_learn(chosen):
    estimator = PCA(**{"n_components": 4, **chosen})
    expected = PCA(**{"n_components": 4, "svd_solver": "full", **chosen}).fit(WIDE)
    fitted = dpipe.fit(estimator, array_blocks(WIDE, BLOCKS))
    assert fitted.get_params() == estimator.get_params()
    assert fitted._fit_svd_solver == PCA(**{"n_components": 4, **chosen}).fit(WIDE)._fit_svd_solver
    fitted._fit_svd_solver = expected._fit_svd_solver
    fitted.svd_solver = expected.svd_solver
    assert_same_fit(fitted, expected)
    np.testing.assert_allclose(fitted.transform(WIDE), expected.transform(WIDE), rtol=1e-6, atol=1e-6)
    scores = fitted.transform(WIDE)
    np.testing.assert_allclose(
        fitted.inverse_transform(scores), expected.inverse_transform(scores), rtol=1e-6
    )


@wide
@pytest.mark.parametrize("offset", [0.0, 40.0])
def test_a_truncated_svd_is_that_of_scikit_learn(offset):
    X, _ = known(150, STEEP, offset=offset)
    expected = TruncatedSVD(5, algorithm="arpack", random_state=0).fit(X)
    fitted = dpipe.fit(TruncatedSVD(5, algorithm="arpack", random_state=0), array_blocks(X, BLOCKS))
    assert_same_fit(fitted, expected, rtol=1e-6)


@wide
def test_single_floats_are_added_up_in_double():
    X = WIDE.astype(np.float32)
    fitted = dpipe.fit(PCA(4), array_blocks(X, BLOCKS))
    assert fitted.components_.dtype == fitted.singular_values_.dtype == np.float32
    exact = np.linalg.svd(X.astype(float) - X.astype(float).mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(fitted.singular_values_, exact[:4], rtol=1e-6)


@wide
@pytest.mark.parametrize("estimator", [PCA(3), TruncatedSVD(3)])
def test_sparse_rows_are_not_filled(estimator):
    rng = np.random.default_rng(0)
    X = sp.random_array((200, WIDTH), density=0.02, rng=rng, format="csr") * 3.0
    X = sp.csr_matrix(X + sp.csr_array(np.outer(np.arange(200) % 2, np.arange(WIDTH) % 50 == 0) * 5.0))
    fitted = dpipe.fit(estimator, X)
    dense = dpipe.fit(estimator, X.toarray())
    np.testing.assert_allclose(fitted.singular_values_, dense.singular_values_, rtol=1e-9)
    np.testing.assert_allclose(np.abs(fitted.components_), np.abs(dense.components_), atol=1e-7)


@wide
def test_the_bits_do_not_depend_on_who_works():
    def found(n):
        with dask.config.set(scheduler="threads", num_workers=n):
            return dpipe.fit(make_pipeline(StandardScaler(), PCA(3)), array_blocks(WIDE, BLOCKS))[-1]

    one, two = found(1), found(2)
    np.testing.assert_array_equal(one.components_, two.components_)
    np.testing.assert_array_equal(one.singular_values_, two.singular_values_)


@wide
def test_steps_before_and_behind_it_go_on_as_usual():
    model = make_pipeline(StandardScaler(), PCA(3), KMeans(2, random_state=0, n_init=1))
    expected = model.fit(WIDE)
    fitted = dpipe.fit(model, array_blocks(WIDE, BLOCKS))
    np.testing.assert_allclose(fitted[1].singular_values_, expected[1].singular_values_, rtol=1e-9)
    np.testing.assert_array_equal(fitted.predict(WIDE), expected.predict(WIDE))


def fit_on_record(workdir, X):
    notes = []
    prepared = prepare(PCA(4), X)
    with Ledger(workdir) as ledger:
        fitted, tallies = run_fit(prepared, recorded=prepared.recorded(ledger, "fit", notes.append))
    return fitted, sum(tally.n_blocks - tally.n_recalled for tally in tallies)


@wide
def test_readings_on_record_are_not_done_again(tmp_path, monkeypatch):
    X = da.from_array(WIDE, chunks=(40, WIDTH))
    whole, read = fit_on_record(tmp_path / "whole", X)
    assert read > 2 * X.numblocks[0]

    take, taken = _Krylov.take, []

    def stopped(self, found):
        taken.append(found)
        if len(taken) == 2:
            raise KeyboardInterrupt
        take(self, found)

    with monkeypatch.context() as patch:
        patch.setattr(_Krylov, "take", stopped)
        with pytest.raises(KeyboardInterrupt):
            fit_on_record(tmp_path / "stopped", X)
    resumed, left = fit_on_record(tmp_path / "stopped", X)
    assert 0 < left == read - 2 * X.numblocks[0]
    np.testing.assert_array_equal(resumed.components_, whole.components_)


@wide
def test_a_flat_spectrum_takes_more_readings_and_is_told():
    X = np.random.default_rng(0).normal(size=(450, 500))
    exact = np.linalg.svd(X - X.mean(axis=0), compute_uv=False)
    fitted = dpipe.fit(PCA(3), X)
    np.testing.assert_allclose(fitted.singular_values_, exact[:3], rtol=1e-9)
    np.testing.assert_allclose(fitted.noise_variance_, (exact[3:] ** 2).sum() / 449 / 447, rtol=1e-9)


@wide
def test_what_does_not_converge_is_told(monkeypatch):
    monkeypatch.setattr("dpipe.families.subspace.MOST_READINGS", 3)
    with pytest.warns(ConvergenceWarning, match="After 3 readings the components are eigenvectors up to"):
        dpipe.fit(PCA(3), np.random.default_rng(0).normal(size=(300, WIDTH)))


@wide
def test_rows_without_differences_have_no_spread():
    X = np.tile(np.arange(WIDTH) / 8, (50, 1))
    X[:, 7] += np.arange(50) % 2
    fitted = dpipe.fit(PCA(3), X)
    np.testing.assert_allclose(fitted.explained_variance_, [12.5 / 49, 0, 0], atol=1e-12)
    np.testing.assert_allclose(fitted.components_ @ fitted.components_.T, np.eye(3), atol=1e-9)


def test_the_plan_tells_why():
    X = da.zeros((5_000, 60_000), chunks=(100, 60_000), dtype="f4")
    with raise_if_computes():
        text = str(dpipe.plan(make_pipeline(StandardScaler(), PCA(5)), X, memory="8 GiB"))
        tall = str(dpipe.plan(PCA(5), da.zeros((10**6, 1_100), chunks=(2_000, 1_100))))
    assert "cross products of 60,000 features take 26.82 GiB: only the leading 5 components" in text
    assert "refine, 2 to 40 readings" in text
    assert "CrossProducts" in tall or "Scatter of X" in tall


@pytest.mark.parametrize(
    ("estimator", "memory", "said"),
    [
        (PCA(), "2 GiB", r"PCA\(n_components=None\) needs all components: .* 26.82 GiB"),
        (PCA(0.9), "2 GiB", "Ask for a number of components"),
        (PCA("mle"), "2 GiB", "coarsen the features"),
        (PCA(5), "100 MiB", "The plan needs"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_figures(estimator, memory, said):
    X = da.zeros((70_000, 60_000), chunks=(100, 60_000), dtype="f4")
    with raise_if_computes(), pytest.raises(MemoryLimitError, match=said):
        dpipe.plan(estimator, X, memory=memory)


@pytest.mark.parametrize("estimator", [PCA(), PCA(0.9), PCA("mle")])
def test_what_is_larger_than_the_memory_is_refused_without_a_budget(estimator):
    X = da.zeros((2_000_000, 1_000_000), chunks=(10, 1_000_000), dtype="f4")
    with raise_if_computes(), pytest.raises(MemoryLimitError, match=r"7\.28 TiB, .* of memory are free"):
        dpipe.plan(estimator, X)


@pytest.mark.parametrize(("width", "way"), [(1_100, "merge"), (2_500, "refine")])
def test_the_way_does_not_depend_on_the_budget(width, way):
    X = da.zeros((100_000, width), chunks=(500, width), dtype="f4")
    own = psutil.Process().memory_info().rss  # many tests have run in it
    with raise_if_computes():
        ways = {
            dpipe.plan(PCA(5), X, memory=memory).passes[0].way
            for memory in (None, own + 700 * 2**20, own + 2**31, "64 GiB")
        }
    assert ways == {way}


@wide
def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(InputError, match="there are 20 rows of 300 features. Ask for at most 20"):
        dpipe.fit(PCA(21), WIDE[:20])
    holed = WIDE.copy()
    holed[17, 3] = np.nan
    with pytest.raises(InputError, match="PCA: X holds NaN or infinity"):
        dpipe.fit(PCA(2), array_blocks(holed, BLOCKS))
