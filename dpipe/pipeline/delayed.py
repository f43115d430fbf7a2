"""What the `Delayed` results of a pipeline compute outside of a run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dask.delayed import Delayed, delayed
from distributed import Client

from dpipe.deploy.bundle import write_bundle
from dpipe.errors import InputError, OutputError
from dpipe.families.registry import Estimator
from dpipe.outputs.manifest import finished
from dpipe.outputs.rechunk import rechunk
from dpipe.pipeline.arrays import is_array
from dpipe.pipeline.stages import Stage
from dpipe.validate.score import score


class Held:
    """Carries a lazy collection through a Delayed call, which would compute it (and look into a dataclass)."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __dask_tokenize__(self) -> Any:
        return "held", id(self.value)


def score_delayed(model: Estimator, X: Held, y: Held, scoring: list[str]) -> dict[str, float]:
    """Score a model on rows that were carried."""
    found = score(model, X.value, y.value, scoring=scoring)
    return found if isinstance(found, dict) else {scoring[0]: found}


def maps_stage(function: Callable[..., Any], given: tuple[Any, ...], folder: Path) -> Stage:
    """Write what a function makes of models and arrays; give the stage, whose name is not known yet."""
    says = f"{getattr(function, '__name__', repr(function))} to {folder}"
    held = [value if isinstance(value, Delayed) else Held(value) for value in given]
    written = delayed(_maps_delayed, pure=False)(function, str(folder), *held)
    return Stage(
        "deploy", "", says, given, (written,), {"function": function, "given": given, "folder": folder}
    )


def _maps_delayed(function: Callable[..., Any], folder: str, *given: Any) -> Path:
    """Write what a function makes of fitted models and of arrays that were carried."""
    values = [each.value if isinstance(each, Held) else each for each in given]
    return write_maps(function, values, Path(folder), None, None)


def write_maps(
    function: Callable[..., Any],
    given: Sequence[Any],
    folder: Path,
    memory: int | None,
    client: Client | None,
) -> Path:
    """Write what a function makes as a Zarr store; the same is not written twice, and another in its place.

    Raises
    ------
    InputError
        If the function gives no labelled arrays.
    """
    made = function(*given)
    if not is_array(made):
        name = getattr(function, "__name__", repr(function))
        raise InputError(
            f"write: {name} gives a {type(made).__name__}; it must give an xarray DataArray or Dataset."
        )
    try:
        return rechunk(made, folder, memory=memory, client=client)
    except OutputError:
        if finished(folder) is None:
            raise
        return rechunk(made, folder, overwrite=True, memory=memory, client=client)


def bundle_delayed(
    model: Estimator,
    metrics: dict[str, float] | None,
    folder: str,
    name: str,
    schema: Any,
    target: str | None,
) -> Path:
    """Write a bundle of a model."""
    return write_bundle(folder, model, schema=schema, target=target, metrics=dict(metrics or {}), name=name)
