"""Loaders of other packages for the rows of `benchmarks.loader`, each in the format that it wants."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

BATCH = 1024
#: Rows of the first file, which those give that read row after row in Python.
PART_ROWS = 50_000


def _part(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the rows of which a part is given."""
    table = pq.ParquetFile(path).read().slice(0, PART_ROWS)
    *features, labels = (column.to_numpy() for column in table.columns)
    return np.stack(features, axis=1), labels


def write_mosaic(paths: Sequence[Path]) -> Path:
    """Write the shards of MosaicML Streaming, unless they are there."""
    from streaming import MDSWriter  # type: ignore[import-not-found,unused-ignore]

    folder = paths[0].parent / "mds"
    if not (folder / "index.json").exists():
        X, y = _part(paths[0])
        kinds = {"x": f"ndarray:float32:{X.shape[1]}", "y": "float32"}
        with MDSWriter(out=str(folder), columns=kinds) as out:
            for row, label in zip(X, y, strict=True):
                out.write({"x": row, "y": label})
    return folder


def mosaic_streaming(paths: Sequence[Path]) -> Iterator[Any]:
    """Give batches by MosaicML Streaming, shuffled, and torch's DataLoader."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    rows = StreamingDataset(local=str(write_mosaic(paths)), batch_size=BATCH, shuffle=True)
    for batch in DataLoader(rows, batch_size=BATCH):
        yield batch["x"], batch["y"]


def _row(item: tuple[np.ndarray, np.float32]) -> dict[str, Any]:
    return {"x": item[0], "y": float(item[1])}


def write_litdata(paths: Sequence[Path]) -> Path:
    """Write the chunks of LitData, unless they are there."""
    import litdata  # type: ignore[import-not-found,unused-ignore]

    folder = paths[0].parent / "litdata"
    if not (folder / "index.json").exists():
        rows = list(zip(*_part(paths[0]), strict=True))
        litdata.optimize(
            fn=_row, inputs=rows, output_dir=str(folder), num_workers=1, chunk_bytes="64MB", verbose=False
        )
    return folder


def litdata_streaming(paths: Sequence[Path]) -> Iterator[Any]:
    """Give batches by LitData, shuffled."""
    from litdata import StreamingDataLoader, StreamingDataset

    rows = StreamingDataset(str(write_litdata(paths)), shuffle=True)
    for batch in StreamingDataLoader(rows, batch_size=BATCH):
        yield batch["x"], batch["y"]


def ray_data(paths: Sequence[Path]) -> Iterator[Any]:
    """Give batches by Ray Data, of the first file, shuffled in a buffer of as many rows as dpipe mixes."""
    import ray  # type: ignore[import-not-found,unused-ignore]
    import torch

    if not ray.is_initialized():
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_parquet(str(paths[0]))
    mixed = min(8 * 65_536, rows.count() // 2)
    for batch in rows.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=mixed):
        labels = batch.pop("y")
        yield torch.stack([batch[name] for name in sorted(batch)], dim=1), labels


#: What writes the format of a loader, before anything is measured.
WRITERS: dict[str, Callable[[Sequence[Path]], Path]] = {
    "mosaic_streaming": write_mosaic,
    "litdata_streaming": write_litdata,
}
#: The module that a loader needs, and the name of its package.
NEEDS = {
    "mosaic_streaming": ("streaming", "mosaicml-streaming"),
    "litdata_streaming": ("litdata", "litdata"),
    "ray_data": ("ray.data", "ray[data]"),
}
LOADERS: dict[str, Callable[[Sequence[Path]], Iterator[Any]]] = {
    function.__name__: function for function in (mosaic_streaming, litdata_streaming, ray_data)
}
