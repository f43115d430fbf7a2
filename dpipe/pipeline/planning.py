"""What a run of a pipeline would do: the plans of its stores and of its fits; nothing is computed."""

from collections.abc import Sequence
from pathlib import Path

from distributed import Client

from dpipe.cluster.specification import Specification
from dpipe.pipeline.arrays import read_elsewhere
from dpipe.pipeline.stages import PipelinePlan, Stage, fit_arguments
from dpipe.pipeline.stores import planned_stores
from dpipe.train.fit import on_record
from dpipe.train.prepare import prepare


def planned(
    name: str,
    stages: Sequence[Stage],
    memory: int | str | None,
    client: Client | Specification | None,
    workers: int | None,
    workdir: Path | None,
) -> PipelinePlan:
    """Plan all stages, and look up in a workdir, if there is one, what is done already.

    Raises
    ------
    MemoryLimitError
        If the budget cannot be kept.
    OutputError
        If the disk has no room for what a store needs.
    """
    fits, n_scorings = [], 0
    given, stores = planned_stores(stages, workdir, memory, client)
    recorded = read_elsewhere(stages, given) if stores else []
    for stage in given:
        if stage.kind == "train":
            data, options = fit_arguments(stage.settings)
            prepared = prepare(*data, **options, memory=memory, client=client, workers=workers)
            fits.append((stage.name, prepared.plan))
            if workdir is not None:
                recorded += on_record(prepared, workdir, stage.name)
        elif stage.kind == "validate":
            n_scorings += 1 + (stage.settings["reference"] is not None)
    said = tuple((stage.name, stage.says) for stage in stages)
    return PipelinePlan(name, said, tuple(fits), n_scorings, tuple(stores), tuple(recorded))
