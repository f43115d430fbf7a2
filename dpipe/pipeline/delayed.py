"""What the `Delayed` results of a pipeline compute outside of a run."""

from pathlib import Path
from typing import Any

from dpipe.deploy.bundle import write_bundle
from dpipe.families.registry import Estimator
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
