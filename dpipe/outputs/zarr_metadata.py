"""What a Zarr store says of its arrays, of format 2 and 3: read, and rewritten where arrays become longer."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dpipe.errors import InputError, OutputError


@dataclass(frozen=True)
class StoreMetadata:
    """The metadata of a group on this machine, in one of the two formats."""

    folder: Path
    zarr_format: int

    @classmethod
    def of(cls, folder: Path) -> "StoreMetadata":
        """Look which format a store has.

        Raises
        ------
        OutputError
            If there is none.
        """
        if (folder / "zarr.json").exists():
            said = json.loads((folder / "zarr.json").read_bytes())
            if said.get("node_type") == "group":
                return cls(folder, 3)
        elif (folder / ".zgroup").exists():
            return cls(folder, 2)
        raise OutputError(
            f"{folder} holds no finished Zarr store of arrays with named dimensions. Write one first, with "
            "dpipe.rechunk or xarray's to_zarr, or let a call that was stopped finish."
        )

    @property
    def array_file(self) -> str:
        """Name the file that tells the shape of an array."""
        return "zarr.json" if self.zarr_format == 3 else ".zarray"

    def array(self, name: str) -> dict[str, Any]:
        """Read what is said of an array.

        Raises
        ------
        InputError
            If it is stored in shards.
        """
        said: dict[str, Any] = json.loads((self.folder / name / self.array_file).read_bytes())
        if any(codec["name"] == "sharding_indexed" for codec in said.get("codecs", ())):
            raise InputError(
                f"{self.folder}: {name!r} is stored in shards, which cannot be appended to. Rewrite the store."
            )
        return said

    def chunks(self, said: dict[str, Any]) -> tuple[int, ...]:
        """Give the sizes of the chunks of an array."""
        return tuple(
            said["chunk_grid"]["configuration"]["chunk_shape"] if self.zarr_format == 3 else said["chunks"]
        )

    def make_array(self, draft: Path, name: str, said: dict[str, Any], shape: Sequence[int]) -> None:
        """Make an array of another shape in another folder, encoded alike."""
        (draft / name).mkdir(parents=True, exist_ok=True)
        text = json.dumps({**said, "shape": list(shape)})
        (draft / name / self.array_file).write_text(text, encoding="utf-8")
        attributes = self.folder / name / ".zattrs"
        if self.zarr_format == 2 and attributes.exists():
            (draft / name / ".zattrs").write_bytes(attributes.read_bytes())

    def moved_chunks(self, draft: Path, name: str, axis: int, first: int) -> Iterator[tuple[str, str]]:
        """Name each chunk of a draft, and the one that it becomes when so many stand before it along an axis."""
        array = zarr.open_array(str(draft / name), mode="r")
        grid = [-(-n // size) for n, size in zip(array.shape, array.chunks, strict=True)]
        for place in np.ndindex(*grid):
            there = (*place[:axis], place[axis] + first, *place[axis + 1 :])
            keys = [array.metadata.encode_chunk_key(index) for index in (place, there)]
            yield f"{name}/{keys[0]}", f"{name}/{keys[1]}"

    def longer(self, arrays: dict[str, dict[str, Any]]) -> dict[str, str]:
        """Give the texts of the files that make arrays longer, by name; the one that readers look at first is last."""
        texts = {f"{name}/{self.array_file}": json.dumps(said) for name, said in arrays.items()}
        whole = self.folder / ("zarr.json" if self.zarr_format == 3 else ".zmetadata")
        if not whole.exists():
            return texts
        root = json.loads(whole.read_bytes())
        held = root.get("consolidated_metadata") if self.zarr_format == 3 else root
        if held is not None:
            for name, said in arrays.items():
                key = name if self.zarr_format == 3 else f"{name}/.zarray"
                if key in held["metadata"]:
                    held["metadata"][key]["shape"] = said["shape"]
            texts[whole.name] = json.dumps(root)
        return texts
