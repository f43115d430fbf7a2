"""Rows that were set apart: one Parquet file for each block that has any, with the reasons.

The name of a file follows from the block alone, and a block always breaks the same rules in the same
rows: passing over it again writes the same file again, so that nothing is doubled or lost.
"""

import contextlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpipe.collect.contract import Broken
from dpipe.errors import ContractError

#: The column of a quarantine file that says what each row breaks.
REASON = "dpipe_reason"
_ABOUT = b"dpipe.quarantine"


@dataclass(frozen=True)
class QuarantinedBlock:
    """The rows of one block that were set apart."""

    file: Path
    block: str
    """The source file with its row groups, or the number of a partition."""
    rows: int
    reasons: dict[str, int] = field(default_factory=dict)
    """Rows for each reason; a row that breaks several rules counts for the first."""


@dataclass(frozen=True)
class Quarantined:
    """All rows that were set apart under a workdir."""

    blocks: tuple[QuarantinedBlock, ...]

    @property
    def rows(self) -> int:
        """Rows of all blocks."""
        return sum(block.rows for block in self.blocks)

    @property
    def reasons(self) -> dict[str, int]:
        """Rows for each reason, of all blocks."""
        total: Counter[str] = Counter()
        for block in self.blocks:
            total.update(block.reasons)
        return dict(total.most_common())

    def __str__(self) -> str:
        """List rows, block after block and reason after reason."""
        lines = [f"{self.rows:,} rows in quarantine, of {len(self.blocks):,} blocks"]
        for block in self.blocks:
            lines.append(f"  {block.block}: {block.rows:,} rows in {block.file}")
            lines += [f"    {rows:>8,}  {reason}" for reason, rows in block.reasons.items()]
        return "\n".join(lines)

    __repr__ = __str__


def quarantined(workdir: str | os.PathLike[str], name: str | None = None) -> Quarantined:
    """Count the rows that contracts have set apart, by block and reason, from the footers of their files.

    Parameters
    ----------
    workdir : path
        Of the pipeline. Without a folder ``quarantine`` there are none.
    name : str, optional
        Of one collect stage, such as "collect"; default all.

    Returns
    -------
    Quarantined
        Only of blocks that some pass has read by now.

    Raises
    ------
    ContractError
        If a file in the quarantine is damaged or is not one of dpipe.

    Examples
    --------
    >>> import tempfile
    >>> print(quarantined(tempfile.mkdtemp()))
    0 rows in quarantine, of 0 blocks
    """
    folder = Path(workdir) / "quarantine"
    return Quarantined(tuple(_told(path) for path in sorted(folder.glob(f"{name or '*'}/*.parquet"))))


def refused_per_block(workdir: str | os.PathLike[str], name: str) -> dict[str, int]:
    """Give the rows that were set apart of each block of a collect stage; blocks without any are not listed."""
    return {block.block: block.rows for block in quarantined(workdir, name).blocks}


def _told(path: Path) -> QuarantinedBlock:
    try:
        metadata = pq.read_metadata(path)
        about = json.loads((metadata.metadata or {})[_ABOUT])
        return QuarantinedBlock(path, about["block"], metadata.num_rows, dict(about["reasons"]))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as err:
        raise ContractError(
            f"{path} is not a file that a quarantine has written ({type(err).__name__}: {err}). Move it away."
        ) from err


@dataclass(frozen=True)
class Quarantine:
    """Where the refused rows of one collect stage go; small enough to travel with every task."""

    folder: str
    """An absolute path, the same for all workers."""

    def put(self, block: str, rows: pa.Table, broken: Sequence[Broken]) -> np.ndarray:
        """Set the broken rows of a block apart; give which rows are to be kept.

        The file appears whole or not at all, and goes if the block has no broken rows any more.
        """
        path = Path(self.folder) / quarantine_name(block)
        refused = np.zeros(rows.num_rows, dtype=bool)
        for item in broken:
            refused |= item.rows
        if not refused.any():
            path.unlink(missing_ok=True)
            return ~refused
        first, reasons = _reasons(broken, refused)
        about = {"block": block, "reasons": dict(Counter(first))}
        table = rows.filter(pa.array(refused)).append_column(REASON, pa.array(reasons, pa.string()))
        table = table.replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            pq.write_table(table, made)
            os.replace(made, path)
        finally:
            made.unlink(missing_ok=True)
        return ~refused

    def keep_only(self, blocks: Collection[str]) -> None:
        """Delete what earlier runs set apart of other blocks, so that counts are of this run's blocks alone."""
        names = {quarantine_name(block) for block in blocks}
        for path in Path(self.folder).glob("*.parquet"):
            if path.name not in names:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it stays if it holds anything
            Path(self.folder).rmdir()


def quarantine_name(block: str) -> str:
    """Name the file of a block: a readable beginning, and a hash that tells it from all others.

    Examples
    --------
    >>> quarantine_name("/data/2024-01.parquet, row groups 0-3")
    '2024-01-2ac1c7845259.parquet'
    """
    stem = "".join(char if char.isalnum() or char in "-_" else "-" for char in Path(block.split(",")[0]).stem)
    return f"{stem[:60]}-{sha256(block.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}.parquet"


def _reasons(broken: Sequence[Broken], refused: np.ndarray) -> tuple[list[str], list[str]]:
    """Give the first reason of each refused row, and all of them in one text."""
    said: list[list[str]] = [[] for _ in range(int(refused.sum()))]
    places = np.cumsum(refused) - 1
    for item in broken:
        for j in places[item.rows]:
            said[j].append(f"{item.column!r}: {item.rule}")
    return [reasons[0] for reasons in said], ["; ".join(reasons) for reasons in said]
