"""All that a search follows from, and the blocks that it reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpipe.collect.source import Source
from dpipe.run.graph import GraphBuilder, Input, add_inputs
from dpipe.run.recorded import Recorded
from dpipe.tuning.foundation import Foundation
from dpipe.tuning.schedule import Bracket
from dpipe.tuning.space import Space

#: Inputs, and the tasks that they share.
Opened = tuple[list[Input], dict[Any, Any]]


@dataclass(frozen=True, eq=False)
class Setup:
    """All that a search follows from."""

    space: Space
    brackets: Sequence[Bracket]
    foundation: Foundation
    train: Source
    held: Source
    metric: str
    seed: int
    classes: Any = None


def opened(setup: Setup, token: str, recorded: Recorded | None) -> tuple[Opened, Opened]:
    """Give what loads the blocks to learn from, and those that are held out, with what they are for the ledger."""

    def inputs(source: Source) -> Opened:
        graph = GraphBuilder(token)
        found = add_inputs(graph, source, setup.foundation.columns)
        if recorded is not None:
            found = recorded.keyed(found, graph.tasks)
        return found, graph.tasks

    return inputs(setup.train), inputs(setup.held)
