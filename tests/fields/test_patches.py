"""Patches against windows that NumPy cuts, and back on the grid; chunks, sizes and overlaps drawn by hypothesis."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, Ridge

import dpipe
from dpipe import fields
from dpipe.errors import InputError, MemoryLimitError
from dpipe.ledger.book import Ledger
from dpipe.train.fit import run_fit
from dpipe.train.prepare import prepare
from tests.fields.made import field
from tests.fields.test_climate import chunkings
from tests.helpers import raise_if_computes

SIZES = {"time": 9, "lat": 6, "lon": 5}
CHUNKS = chunkings(SIZES)


@st.composite
def windows(draw):
    """Sizes of windows along some dims, and overlaps."""
    dims = draw(st.sets(st.sampled_from(sorted(SIZES)), min_size=1))
    sizes = {dim: draw(st.integers(1, SIZES[dim])) for dim in sorted(dims)}
    overlaps = {dim: draw(st.integers(max(0, n - 4), n - 1)) for dim, n in sizes.items()}
    return sizes, {dim: n for dim, n in overlaps.items() if n}


def positions(x, sizes, overlaps, remainder):
    """Where the windows begin along each dim."""
    found = {}
    for dim, size in sizes.items():
        n = x.sizes[dim]
        begins = list(range(0, n - size + 1, size - overlaps.get(dim, 0)))
        if remainder == "flush" and begins[-1] + size < n:
            begins.append(n - size)
        found[dim] = begins
    return found


@settings(max_examples=12, deadline=None)
@given(CHUNKS, windows(), st.sampled_from(["flush", "drop"]), st.permutations(sorted(SIZES)))
def test_patches_are_the_windows_of_numpy(chunks, drawn, remainder, dims):
    sizes, overlaps = drawn
    x = field(9).transpose(*dims)
    with raise_if_computes():
        found = fields.patches(x.chunk(chunks), sizes, overlaps, remainder=remainder)
    begins = positions(x, sizes, overlaps, remainder)
    assert found.dims == ("patch", *dims)
    assert found.dtype == x.dtype
    assert found.sizes["patch"] == np.prod([len(each) for each in begins.values()])
    for dim, each in begins.items():
        np.testing.assert_array_equal(np.unique(found[f"{dim}_origin"]), np.unique(x[dim].values[each]))
    values = found.values
    for i in range(found.sizes["patch"]):
        place = {dim: x.indexes[dim].get_loc(found[f"{dim}_origin"].values[i]) for dim in sizes}
        window = x.isel({dim: slice(at, at + sizes[dim]) for dim, at in place.items()})
        np.testing.assert_array_equal(values[i], window)
    for place in np.ndindex(*found.data.numblocks):
        wanted = tuple(found.data.chunks[axis][i] for axis, i in enumerate(place))
        assert found.data.blocks[place].compute().shape == wanted


@settings(max_examples=12, deadline=None)
@given(CHUNKS, CHUNKS, windows(), st.sampled_from(["uniform", "tapered"]))
def test_patches_go_back_to_where_they_were(chunks, other, drawn, weights):
    sizes, overlaps = drawn
    x = field(9)
    cut = fields.patches(x.chunk(chunks), sizes, overlaps)
    with raise_if_computes():
        back = fields.unpatch(cut, x.chunk(other), weights=weights)
    assert {dim: back.chunksizes[dim] for dim in sizes} == {dim: other[dim] for dim in sizes}
    xr.testing.assert_identical(back.compute(), x)


@settings(max_examples=8, deadline=None)
@given(CHUNKS, CHUNKS, windows(), st.sampled_from(["uniform", "tapered"]))
def test_means_of_overlaps_have_the_same_bits_in_any_chunks_and_order(chunks, other, drawn, weights):
    sizes, overlaps = drawn
    x = field(9)
    cut = fields.patches(x, sizes, overlaps)
    rng = np.random.default_rng(0)
    made = cut.copy(data=rng.normal(size=cut.shape)).compute()
    total, cover = xr.zeros_like(x), xr.zeros_like(x)
    for i in range(made.sizes["patch"]):
        place = {
            dim: slice(at := x.indexes[dim].get_loc(made[f"{dim}_origin"].values[i]), at + n)
            for dim, n in sizes.items()
        }
        weight = xr.DataArray(1.0)
        for dim, n in sizes.items():
            along = np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 if weights == "tapered" else np.ones(n)
            weight = weight * xr.DataArray(along, dims=dim)
        total[place] += (weight * made[i]).transpose(*x.dims).values
        cover[place] += weight.broadcast_like(cover[place].drop_vars(list(sizes))).transpose(*x.dims).values
    found = fields.unpatch(made, x, weights=weights)
    np.testing.assert_allclose(found, total / cover, rtol=1e-9, atol=1e-12)
    shuffled = made.isel(patch=rng.permutation(made.sizes["patch"])).chunk(patch=3)
    again = fields.unpatch(shuffled, x.chunk(other), weights=weights)
    assert again.values.tobytes() == found.values.tobytes()


def test_cells_without_a_patch_are_missing_and_some_patches_suffice():
    x = field(8, 6, 5).chunk(lat=4)
    cut = fields.patches(x, {"lat": 4, "lon": 2}, remainder="drop")
    back = fields.unpatch(cut, x)
    inside = {"lat": slice(4), "lon": slice(4)}
    xr.testing.assert_identical(back.isel(inside).compute(), x.isel(inside).compute())
    assert back.isel(lat=slice(4, None)).isnull().all()
    assert back.isel(lon=4).isnull().all()
    some = fields.unpatch(cut.isel(patch=[1]), x)
    np.testing.assert_array_equal(
        some.isel(lat=slice(4), lon=slice(2, 4)), x.isel(lat=slice(4), lon=slice(2, 4))
    )
    assert some.isel(lon=slice(0, 2)).isnull().all()


def test_labels_are_voted():
    x = xr.DataArray(np.zeros(4), dims="lat", coords={"lat": np.arange(4)})
    cut = fields.patches(x, {"lat": 2}, 1)
    for labels, wanted in (([5, 7, 7], [5, 5, 7, 7]), (["a", "b", "b"], ["a", "a", "b", "b"])):
        given_labels = xr.DataArray(labels, dims="patch", coords=cut.coords)
        found = fields.unpatch(given_labels, x)
        assert found.values.tolist() == wanted
    masked = xr.DataArray([5.0, np.nan, 7.0], dims="patch", coords=cut.coords, attrs={"flag_values": [5, 7]})
    assert fields.unpatch(masked, x).values.tolist() == [5, 5, 7, 7]
    assert fields.unpatch(masked, x, combine="mean", size={"lat": 2}).values.tolist() == [5, 5, 7, 7]
    missing = fields.unpatch(xr.DataArray(["a"], dims="patch", coords=cut.isel(patch=[0]).coords), x)
    assert missing.values.tolist() == ["a", "a", "", ""]


def test_a_data_set_is_cut_variable_by_variable():
    x = xr.Dataset({"z": field(), "kind": field() > 280, "area": ("cell", [1, 2])}, attrs={"title": "made"})
    cut = fields.patches(x.chunk(time=7, lat=4), {"lat": 3, "lon": 2}, {"lat": 1})
    assert cut["kind"].dims == ("patch", "time", "lat", "lon")
    assert cut["area"].dims == ("cell",)
    back = fields.unpatch(cut, x)
    xr.testing.assert_identical(back["z"].compute(), x["z"])
    np.testing.assert_array_equal(back["kind"], x["kind"])
    assert back.attrs == x.attrs


def test_many_windows_of_one_block_are_several_blocks(monkeypatch):
    monkeypatch.setattr("dpipe.fields.patching._CELLS", 40)
    x = field(40, 6, 5)
    cut = fields.patches(x.chunk(lat=3), {"time": 5, "lat": 2}, 1)
    assert max(cut.chunksizes["patch"]) * 10 <= 40
    xr.testing.assert_identical(fields.unpatch(cut, x).compute(), x)


def made_scene():
    """Bands of an image, a class of each pixel, and how much there is of something."""
    rng = np.random.default_rng(4)
    bands = xr.DataArray(
        rng.normal(size=(24, 20, 2)),
        dims=("lat", "lon", "band"),
        coords={"lat": np.linspace(40, 51.5, 24), "lon": np.arange(20.0), "band": [1, 2]},
    ).chunk(lat=9, lon=7)
    return bands, (bands.isel(band=0) + 2 * bands.isel(band=1)).rename("amount")


def test_a_target_for_each_cell_of_a_patch():
    bands, amount = made_scene()
    X, y = (fields.patches(each, {"lat": 3, "lon": 2}, {"lat": 1}) for each in (bands, amount))
    fitted = dpipe.fit(LinearRegression(), X, y, sample_dims="patch")
    n = X.sizes["patch"]
    usual = LinearRegression().fit(X.values.reshape(n, -1), y.values.reshape(n, -1))
    np.testing.assert_allclose(fitted.coef_, usual.coef_, atol=1e-9)
    predicted = dpipe.predict(fitted, X, sample_dims="patch")
    with raise_if_computes():
        found = fields.unpatch(predicted, amount)
    assert found.dims == amount.dims
    np.testing.assert_allclose(found, amount, atol=1e-9)
    xr.testing.assert_equal(found.coords.to_dataset(), amount.coords.to_dataset())


def test_classes_of_pixels():
    bands, amount = made_scene()
    label = (amount > 0).astype(int)
    X = fields.patches(bands, {"lat": 3, "lon": 3}, 2)
    middle = fields.patches(label, {"lat": 3, "lon": 3}, 2).isel(lat=1, lon=1)
    forest = RandomForestClassifier(5, random_state=0).fit(
        X.values.reshape(X.sizes["patch"], -1), middle.values
    )
    shares = dpipe.predict(forest, X, sample_dims="patch", method="predict_proba")
    found = fields.unpatch(shares, label, weights="tapered")
    assert found.dims == ("lat", "lon", "class")
    np.testing.assert_allclose(found.sum("class"), 1)
    labels = fields.unpatch(dpipe.predict(forest, X, sample_dims="patch"), label)
    assert set(np.unique(labels)) == {0, 1}
    assert labels.attrs["flag_meanings"] == "class_0 class_1"


def test_a_fit_of_patches_is_planned_and_resumed(tmp_path):
    bands, amount = made_scene()
    xr.Dataset({"bands": bands, "amount": amount}).to_zarr(tmp_path / "scene.zarr", consolidated=False)
    data = xr.open_zarr(tmp_path / "scene.zarr", consolidated=False)
    X, y = (fields.patches(data[name], {"lat": 3, "lon": 2}) for name in ("bands", "amount"))
    assert "samples patch" in str(dpipe.plan(Ridge(), X, y, sample_dims="patch"))
    prepared = prepare(Ridge(), X, y, sample_dims="patch")
    read = []
    for _ in range(2):
        with Ledger(tmp_path / "run") as ledger:
            _, tallies = run_fit(prepared, recorded=prepared.recorded(ledger, "fit", lambda text: None))
        read.append(sum(tally.n_blocks - tally.n_recalled for tally in tallies))
    assert read == [9, 0]


def test_a_pipeline_of_patches(tmp_path):
    bands, amount = made_scene()
    cut = fields.patches(xr.Dataset({"bands": bands, "amount": amount}), {"lat": 3, "lon": 2})
    pipe = dpipe.Pipeline("patches", workdir=tmp_path / "run")
    with raise_if_computes():
        pipe.train(Ridge(), cut, target="amount", sample_dims="patch")
        said = str(pipe.plan())
    assert "samples patch" in said
    assert "made by patches: each pass reads" in said
    model = pipe.run(progress=False).model
    predicted = dpipe.predict(model, cut[["bands"]], sample_dims="patch")
    assert abs(fields.unpatch(predicted, amount) - amount).max() < 0.5


def test_bad_input():
    x = field().chunk(time=10)
    bad = [
        ({"size": {"time": 41}}, "a window of 41 is longer than 'time', which has 40"),
        ({"size": {"depth": 2}}, "no dim 'depth'"),
        ({"size": {"time": 0}}, "size along 'time' must be an integer of at least 1, got 0"),
        ({"size": {"time": 4}, "overlap": 4}, "overlap=4 must be less than the size"),
        ({"size": {"time": 4}, "overlap": {"lat": 1}}, "must be an integer, or name dims of size, 'time'"),
        ({"size": {"time": 4}, "overlap": {"time": -1}}, "from 0 to 3, less than its size, got -1"),
        ({"size": {"time": 4}, "remainder": "pad"}, "remainder must be flush or drop, got 'pad'"),
    ]
    for arguments, message in bad:
        with pytest.raises(InputError, match=message):
            fields.patches(x, **arguments)
    with pytest.raises(InputError, match="is not monotonic"):
        fields.patches(x.isel(time=[0, 2, 1]), {"time": 2})
    with pytest.raises(InputError, match="a 'patch' already"):
        fields.patches(x.rename(lon="patch"), {"time": 2})
    with pytest.raises(InputError, match=r"'b' has other chunks along 'time' than 'a'.*unify_chunks"):
        fields.patches(xr.Dataset({"a": x, "b": x.chunk(time=7)}), {"time": 2})
    with pytest.raises(MemoryLimitError, match="patches: a region of shape"):
        fields.patches(x, {"time": 8}, 7, memory=1000)


def test_bad_input_on_the_way_back():
    x = field().chunk(time=10)
    cut = fields.patches(x, {"time": 8, "lat": 3})
    with pytest.raises(
        InputError, match=r"begins at lat=-50.0 does not fit .* it is not on it. Pass the field"
    ):
        fields.unpatch(cut, x.isel(lat=slice(1, None)))
    with pytest.raises(InputError, match="with 8 cells reaches beyond it"):
        fields.unpatch(cut, x.isel(time=slice(0, 38)))
    with pytest.raises(InputError, match=r"no origins on the dims of like.*assign_coords"):
        fields.unpatch(cut.drop_vars(["time_origin", "lat_origin"]), x)
    with pytest.raises(InputError, match="weights must be uniform or tapered, got 'steep'"):
        fields.unpatch(cut, x, weights="steep")
    with pytest.raises(InputError, match="combine must be mean or vote, got 'last'"):
        fields.unpatch(cut, x, combine="last")
    with pytest.raises(InputError, match="no dim 'patch'"):
        fields.unpatch(x, x)
    with pytest.raises(InputError, match="size says 4 cells along 'lat', but the patches have 3"):
        fields.unpatch(cut, x, size={"lat": 4})
    bare = cut.mean("lat")
    bare["lat_origin"].attrs = {}
    with pytest.raises(InputError, match=r"the size is not known. Say size=\{'lat'"):
        fields.unpatch(bare, x)
    with pytest.raises(InputError, match="values of type datetime64"):
        fields.unpatch(cut.time_origin, x)
    with pytest.raises(
        MemoryLimitError, match="unpatch: a block of 300 cells with the 4 patches that touch it"
    ):
        fields.unpatch(cut, x, memory=10_000)
