"""Stages of labelled arrays: sources that are arrays, functions from xarray to xarray, and what these need whole.

A stage of arrays can be made again on other data with the same dims: on the store that an earlier stage was written to.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import dask
import dask.array as da
import xarray as xr

from dpipe.collect.grib import open_grib
from dpipe.collect.netcdf import open_netcdf
from dpipe.collect.zarr_store import open_zarr
from dpipe.errors import DpipeError, InputError
from dpipe.fields.checks import budget
from dpipe.fields.splits import split as split_fields
from dpipe.pipeline.stages import Stage

#: How the names of files of arrays end.
_ENDINGS = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".he5")
_GRIB = (".grib", ".grib2", ".grb", ".grb2")
#: What makes a folder a Zarr store.
_OF_A_STORE = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")


def is_array(value: Any) -> bool:
    """Tell whether a value is an array or a dataset of xarray."""
    return isinstance(value, xr.DataArray | xr.Dataset)


def names_arrays(source: Any) -> bool:
    """Tell whether a source is labelled arrays, or files or stores of such."""
    if is_array(source):
        return True
    if not isinstance(source, str | os.PathLike | Sequence):
        return False
    entries = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not all(isinstance(entry, str | os.PathLike) for entry in entries):
        return False
    names = [os.fspath(entry).rstrip("/") for entry in entries]
    return bool(names) and all(_is_store(name) or _is_file(name) for name in names)


def _is_store(name: str) -> bool:
    return name.endswith(".zarr") or any(os.path.exists(os.path.join(name, each)) for each in _OF_A_STORE)


def _is_file(name: str) -> bool:
    if not os.path.isdir(os.path.expanduser(name)):
        return name.endswith(_ENDINGS + _GRIB)
    found = (each for _, _, names in os.walk(os.path.expanduser(name)) for each in names)
    return any(each.endswith(_ENDINGS) for each in found)


def open_arrays(
    source: Any,
    names: Sequence[str] | None,
    block_nbytes: int | str | None,
    storage_options: dict[str, Any] | None,
) -> tuple[Any, str]:
    """Open labelled arrays, or files or a store of them; give them, lazy, and what they are in a few words."""
    if is_array(source):
        opened, what = source, "arrays of xarray"
    else:
        entries = [source] if isinstance(source, str | os.PathLike) else list(source)
        options: dict[str, Any] = {"block_nbytes": block_nbytes, "storage_options": storage_options}
        if any(_is_store(os.fspath(entry).rstrip("/")) for entry in entries):
            if len(entries) > 1:
                raise InputError(
                    f"source names {len(entries):,} entries, of which some are Zarr stores: one store is opened at a "
                    "time. Join them first, with xarray.concat of dpipe.open_zarr(...)."
                )
            opened, what = open_zarr(entries[0], **options), "a Zarr store"
        elif all(os.fspath(entry).endswith(_GRIB) for entry in entries):
            opened, what = open_grib(entries, block_nbytes=block_nbytes), "GRIB files"
        else:
            opened, what = open_netcdf(entries, **options), "NetCDF or HDF5 files"
    if names is not None:
        opened = _chosen(opened, names)
    lazy = [array for array in variables_of(opened).values() if isinstance(array.data, da.Array)]
    if not lazy:
        opened = opened.chunk()
        lazy = [array for array in variables_of(opened).values() if isinstance(array.data, da.Array)]
    sizes = ", ".join(f"{dim}={n:,}" for dim, n in opened.sizes.items())
    n_blocks = sum(array.data.npartitions for array in lazy)
    return opened, f"{what}: {sizes}, in {n_blocks:,} block{'s' * (n_blocks != 1)}"


def _chosen(opened: Any, names: Sequence[str]) -> Any:
    missing = (
        [name for name in names if name not in opened.data_vars] if isinstance(opened, xr.Dataset) else names
    )
    if missing:
        has = ", ".join(map(repr, opened.data_vars)) if isinstance(opened, xr.Dataset) else "one array"
        raise InputError(
            f"columns: there is no variable {', '.join(map(repr, missing))}. The source has: {has}."
        )
    return opened[list(names)]


def variables_of(value: Any) -> dict[str, xr.Variable]:
    """Give the variables and coordinates of an array or a dataset, whose own one goes by the name ''."""
    if isinstance(value, xr.DataArray):
        return {"": value.variable, **{str(name): c.variable for name, c in value.coords.items()}}
    return {str(name): variable for name, variable in value.variables.items()}


def applied(function: Callable[..., Any], frame: Any, options: Mapping[str, Any]) -> Any:
    """Apply a function to labelled arrays, once and lazily.

    Raises
    ------
    InputError
        If it fails, computes, or gives no labelled arrays.
    """
    name = getattr(function, "__name__", repr(function))

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise InputError(
            f"preprocess: {name} computes values while the pipeline is built. Keep its results lazy (no .compute(), "
            ".load() or .values of them): the run computes all of it."
        )

    try:
        with dask.config.set(scheduler=refuse):
            made = function(frame, **options)
    except DpipeError:
        raise
    except Exception as err:
        raise InputError(
            f"preprocess: {name} fails on the arrays it is given: {type(err).__name__}: {err}. It is called with an "
            "xarray object at once, which must stay lazy."
        ) from err
    if not is_array(made):
        raise InputError(
            f"preprocess: {name} gives a {type(made).__name__}; from labelled arrays it must make an xarray DataArray "
            "or Dataset."
        )
    return made


def array_function(
    frame: Any, function: Callable[..., Any], options: Mapping[str, Any], settings: Mapping[str, Any]
) -> Stage:
    """Apply a function to labelled arrays; give the stage, whose name is not known yet."""

    def again(given: Any) -> tuple[Any, ...]:
        return (applied(function, given, options),)

    name = getattr(function, "__name__", repr(function))
    return Stage("preprocess", "", name, (frame,), again(frame), settings, again)


def array_split(frame: Any, dims: Any, options: Mapping[str, Any]) -> Stage:
    """Split labelled arrays by blocks of dims; give the stage, whose name is not known yet."""

    def again(given: Any) -> tuple[Any, Any]:
        return split_fields(given, dims, **options)

    start, gap = options["test_from"], options["gap"]
    share = f"{options['test_size']:.0%} of the blocks" if start is None else f"all from {start} on"
    named = dims if isinstance(dims, str) else ", ".join(dims)
    says = f"{share} to test, by {named}" + ("" if gap is None else f", {gap} apart")
    return Stage("split", "", says, (frame,), again(frame), {"drops": True}, again)


@dataclass
class Rebinding:
    """Makes stages again where the data of an earlier one has been replaced by equal data in other chunks."""

    values: dict[int, Any] = field(default_factory=dict)
    """What stands in for the outputs of stages, by their `id`."""
    arrays: dict[str, da.Array] = field(default_factory=dict)
    """What stands in for the arrays in them, by their names."""
    memory: int | str | None = None
    """The budget of the run, for functions of fields; stages were made before anything was known of it."""

    def replaced(self, old: Any, new: Any) -> None:
        """Let `new` stand in for `old`, an output of a stage."""
        self.values[id(old)] = new
        others = variables_of(new)
        for name, variable in variables_of(old).items():
            other = others.get(name)
            if _is_lazy(variable) and other is not None and other.shape == variable.shape:
                self.arrays[variable.data.name] = other.data

    def swap(self, value: Any) -> Any:
        """Give what stands in for a value: an output of a stage, or a selection of whole variables of one."""
        if isinstance(value, tuple):
            return tuple(map(self.swap, value))
        if not is_array(value) or not self.values:
            return value
        if id(value) in self.values:
            return self.values[id(value)]
        found = {
            name: self.arrays[variable.data.name]
            for name, variable in variables_of(value).items()
            if _is_lazy(variable) and variable.data.name in self.arrays
        }
        return _with_arrays(value, found) if found else value

    def stage(self, stage: Stage) -> Stage:
        """Make a stage again; the same one if nothing of it is replaced."""
        inputs = tuple(map(self.swap, stage.inputs))
        changed = any(new is not old for new, old in zip(inputs, stage.inputs, strict=True))
        if stage.again is not None:
            if not changed and self.memory is None:
                return stage
            with budget(self.memory):
                outputs = stage.again(*inputs)
            for old, new in zip(stage.outputs, outputs, strict=True):
                self.replaced(old, new)
            return replace(stage, inputs=inputs, outputs=outputs)
        settings = {name: self.swap(value) for name, value in stage.settings.items()}
        changed = changed or any(settings[name] is not value for name, value in stage.settings.items())
        # what others ask for by identity, a Delayed model, stays what it is
        return replace(stage, inputs=inputs, settings=settings) if changed else stage


def rebound(
    stages: Sequence[Stage], given: Mapping[str, Any], memory: int | str | None = None
) -> list[Stage]:
    """Make stages again after those, by name, whose outputs are given in other chunks; all of them within a budget.

    Parameters
    ----------
    stages : sequence of Stage
    given : mapping of str to xarray object
        For a stage by its name: its output, equal in all but its chunks.
    memory : int or str, optional
        The budget of the run, if there is one.
    """
    if not given and memory is None:
        return list(stages)
    binding, made = Rebinding(memory=memory), []
    for stage in stages:
        new = binding.stage(stage)
        if stage.name in given:
            binding.replaced(stage.outputs[0], given[stage.name])
            new = replace(new, outputs=(given[stage.name],))
        made.append(new)
    return made


def read_elsewhere(stages: Sequence[Stage], now: Sequence[Stage]) -> list[str]:
    """Tell of stages that read arrays which no stage has given, where others read what has been stored."""
    given = {id(output) for stage in stages for output in stage.outputs}
    names = [
        stage.name
        for stage, made in zip(stages, now, strict=True)
        for old, new in zip(stage.inputs, made.inputs, strict=True)
        if is_array(old) and old is new and id(old) not in given
    ]
    return [
        f"{name} reads arrays that were made outside of the pipeline's stages: not from a store, but from where they "
        "come. To read the store, make them by pipe.preprocess(...)."
        for name in dict.fromkeys(names)
    ]


@dataclass(frozen=True)
class Need:
    """What a later stage reads whole of a collected dataset."""

    dims: frozenset[str]
    why: str


def needs_after(stages: Sequence[Stage], i: int) -> list[Need]:
    """Find which dims of a stage's output later stages need whole, those of models first; computes nothing."""
    known = frozenset(map(str, stages[i].outputs[0].sizes))
    models, functions = list[Need](), list[Need]()
    reached = _Reached.of(stages[i].outputs)
    for stage in stages[i + 1 :]:
        if not any(map(reached.has, stage.inputs)):
            continue
        if stage.settings.get("store") is None:  # else what follows it reads its own store
            reached = reached.and_those(stage.outputs)
        if stage.kind == "preprocess":
            dims = _dims_needed(stage, known)
            if dims:
                functions.append(Need(dims, f"{stage.name} ({stage.says}) needs {_listed(dims)} whole"))
        samples = stage.settings.get("samples")
        if stage.kind == "train" and samples:
            named = samples["sample_dims"]
            named = {named} if isinstance(named, str) else set(named)
            dims = known & {str(dim) for dim in stage.settings["frame"].sizes} - named
            if dims:
                models.append(Need(dims, f"{stage.name} ({stage.says}) takes {_listed(dims)} as features"))
    return models + functions


@dataclass(frozen=True)
class _Reached:
    """Arrays that follow from the output of a stage: by their `id`, and by the names of what they are made of."""

    values: frozenset[int]
    names: frozenset[str]

    @classmethod
    def of(cls, outputs: Sequence[Any]) -> "_Reached":
        arrays = [value for value in outputs if is_array(value)]
        names = (v.data.name for value in arrays for v in variables_of(value).values() if _is_lazy(v))
        return cls(frozenset(map(id, arrays)), frozenset(names))

    def has(self, value: Any) -> bool:
        """Tell whether a value is one of them, or a selection of whole variables of one."""
        if not is_array(value):
            return False
        variables = variables_of(value).values()
        return id(value) in self.values or any(_is_lazy(v) and v.data.name in self.names for v in variables)

    def and_those(self, outputs: Sequence[Any]) -> "_Reached":
        """Add what was made of them."""
        more = _Reached.of(outputs)
        return _Reached(self.values | more.values, self.names | more.names)


def _is_lazy(variable: xr.Variable) -> bool:
    return isinstance(variable.data, da.Array)


def _listed(dims: frozenset[str]) -> str:
    return " and ".join(sorted(dims))


def with_chunks(value: Any, sizes: Mapping[str, tuple[int, ...]]) -> Any:
    """Give an object of no values with other chunks, as those that a store is going to have; they go by variable."""
    found = {
        name: da.zeros(variable.shape, dtype=variable.dtype, chunks=tuple(max(n, 1) for n in sizes[name]))
        for name, variable in variables_of(value).items()
        if _is_lazy(variable) and name in sizes
    }
    return _with_arrays(value, found)


def _with_arrays(value: Any, arrays: Mapping[str, da.Array]) -> Any:
    """Replace the data of some variables; '' is that of an array itself."""
    made = value.copy(deep=False)
    for name, array in arrays.items():
        if name == "":
            made = made.copy(data=array)
        else:
            made[name] = made[name].copy(data=array)
    return made


def _dims_needed(stage: Stage, known: frozenset[str]) -> frozenset[str]:
    """Find the dims that a function joins, or refuses, when they come in several blocks."""
    assert stage.again is not None
    (given,), (made,) = stage.inputs, stage.outputs
    found = set()
    for dim in known & set(map(str, given.sizes)):
        try:
            result = made if _n_blocks(given, dim) > 1 else stage.again(_cut(given, dim))[0]
        except InputError:
            found.add(dim)  # in one block it has worked
            continue
        if given.sizes[dim] > 1 and _n_blocks(result, dim) == 1:
            found.add(dim)
    return frozenset(found)


def _n_blocks(value: Any, dim: str) -> int:
    """Count the blocks along a dim; 0 where nothing lazy has it."""
    arrays = [v for v in variables_of(value).values() if _is_lazy(v) and dim in v.dims]
    return max((v.data.numblocks[v.dims.index(dim)] for v in arrays), default=0)


def _cut(value: Any, dim: str) -> Any:
    """Give an equal object of no values, in the same blocks but for one dim, which is cut in three."""
    sizes = {
        name: tuple(
            -(-n // 3) if str(each) == dim else max(chunks)
            for each, n, chunks in zip(v.dims, v.shape, v.data.chunks, strict=True)
        )
        for name, v in variables_of(value).items()
        if _is_lazy(v)
    }
    return with_chunks(value, sizes)
