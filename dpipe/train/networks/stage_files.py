"""Checkpoints of a module that several processes hold: a file of each stage, and one that says which belong together.

Weights and states stand under their names in the whole module, so that other stages can go on from them.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpipe.errors import LedgerError
from dpipe.train.networks.pieces import gathered_parts, put_together

#: The file that says which files are the last checkpoint.
MANIFEST = "stages.json"


@dataclass(frozen=True)
class Written:
    """A checkpoint that is there."""

    told: dict[str, Any]
    trees: tuple[dict[str, Any], ...]

    def tensors(self, part: str) -> dict[str, Any]:
        """Give a part of all stages; the files are mapped, and read where they are looked at.

        What processes have shared is put together.
        """
        return {name: put_together(held) for name, held in self.parts(part).items()}

    def parts(self, part: str) -> dict[str, list[Any]]:
        """Give what each process has written of it, by name."""
        return gathered_parts(tree[part] or {} for tree in self.trees)

    def first(self, part: str) -> Any:
        """Give a part that is the same in all stages that have it; None if none has."""
        return next((tree[part] for tree in self.trees if tree.get(part) is not None), None)


@dataclass(frozen=True)
class StageFiles:
    """The checkpoints of one training, in a folder that all stages see."""

    folder: str
    identity: str
    """What the weights follow from."""

    def write(
        self,
        tree: dict[str, Any],
        told: dict[str, Any],
        stage: int | None,
        n_stages: int,
        meet: Callable[[], Any],
    ) -> None:
        """Write a checkpoint together with the other stages; all of them call this, and `meet` waits for all.

        Whose weights another copy of the network has, gives None for its stage, and writes nothing.
        """
        import torch

        folder = Path(self.folder)
        folder.mkdir(exist_ok=True)
        names = [f"stage-{i}-of-{n_stages}-{told['epoch']}-{told['step']}.pt" for i in range(n_stages)]
        if stage is not None:
            _write_whole(folder / names[stage], lambda unfinished: torch.save(tree, unfinished))
        meet()
        if stage != 0:
            return
        manifest = json.dumps({"identity": self.identity, "files": names, **told})
        _write_whole(folder / MANIFEST, lambda unfinished: unfinished.write_text(manifest))
        # nobody writes the next checkpoint before this stage takes part in another batch
        for old in folder.glob("stage-*"):
            if old.name not in names:
                old.unlink(missing_ok=True)

    def last(self, epochs: int) -> Written | None:
        """Open the last checkpoint, if it is not of more epochs: plain tensors and numbers, never code.

        Raises
        ------
        LedgerError
            If a file of it is gone.
        """
        import torch

        path = Path(self.folder) / MANIFEST
        if not path.exists():
            return None
        told = json.loads(path.read_text())
        if told["identity"] != self.identity or (told["epoch"], told["step"]) > (epochs, 0):
            return None
        try:
            trees = [torch.load(path.parent / name, mmap=True, weights_only=True) for name in told["files"]]
        except FileNotFoundError as err:
            raise LedgerError(
                f"The checkpoint in {self.folder} lacks {Path(str(err.filename)).name}. Restore it, or remove "
                f"{MANIFEST} there to begin anew."
            ) from err
        return Written(told, tuple(trees))


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    write(unfinished)
    unfinished.replace(path)
