"""Plans as plain records: printable, comparable, testable without data or Dask."""

import html
from dataclasses import dataclass

from dpipe.sizes import format_bytes, format_rows


@dataclass(frozen=True)
class PassPlan:
    """One reading of all blocks."""

    number: int
    way: str
    """"merge" (blocks in any order), "refine" (the same, again and again), "stream" (in order), "average" (the same by
    several learners), "boost" (trees, round after round), "network" (batch after batch) or "score" (held-out rows)."""
    fits: tuple[str, ...]
    """Estimators that are fitted when it ends."""
    collects: tuple[str, ...]
    """Statistics that each block gives."""
    why: str
    """Why it could not be earlier."""
    rules: tuple[str, ...]
    """Algebra that saved another pass."""
    columns: tuple[str, ...]
    """Columns of X that it reads."""
    n_blocks: int
    epochs: int
    """How often it reads the blocks; at least, where that depends on the data."""
    rows: int | None
    """Rows that it reads in these; None if not known."""
    nbytes: int | None
    """Decoded bytes that it reads in these; None if not known."""
    projected_nbytes: int | None
    """Projected peak memory of a worker, in bytes; None if not known."""
    most_epochs: int = 1
    """How often it reads the blocks at most."""
    scratch: str = ""
    """What it keeps on disk between its readings, and where; or why it does not."""
    scratch_nbytes: int | None = None
    """Size of that at most, in bytes; None if there is none, or not known."""
    order: tuple[str, ...] = ()
    """In which order a learner sees the data, where it is not as stored."""

    @property
    def readings(self) -> str:
        """How often it reads the blocks, in words; empty for once."""
        if self.way == "refine":
            least = "" if self.epochs == self.most_epochs else f"{self.epochs} to "
            return f"{least}{self.most_epochs} readings"
        if self.way == "score":
            return f"{self.epochs} to {self.most_epochs} times" if self.most_epochs > self.epochs else ""
        most = f" to {self.most_epochs}" if self.most_epochs > self.epochs else ""
        return f"{self.epochs}{most} epochs" if self.epochs > 1 or most else ""


@dataclass(frozen=True)
class Plan:
    """What a fit would do: its passes, what each collects and why, bytes and memory."""

    estimator: str
    source: str
    n_rows: int | None
    n_blocks: int
    passes: tuple[PassPlan, ...]
    workers: int
    threads: int
    """Blocks at a time in a worker."""
    memory_nbytes: int | None
    """The budget of a worker; None for none."""
    reserved_nbytes: int
    """What a worker's process takes by itself."""
    projected_nbytes: int | None
    """Projected peak of a worker: the largest of its passes."""

    @property
    def n_passes(self) -> int:
        """How often the data is read, epochs included; at least, where that depends on the data."""
        return sum(step.epochs for step in self.passes)

    @property
    def most_passes(self) -> int:
        """How often the data is read at most."""
        return sum(max(step.epochs, step.most_epochs) for step in self.passes)

    @property
    def nbytes(self) -> int | None:
        """Decoded bytes that are read in all."""
        found = [step.nbytes for step in self.passes]
        return None if any(n is None for n in found) else sum(n or 0 for n in found)

    def __str__(self) -> str:
        """Draw the plan as a table."""
        lines = [self._headline(), ""]
        for step in self.passes:
            lines += _pass_lines(step)
        if not self.passes:
            lines.append("  No pass: nothing is learned from the data.")
        return "\n".join([*lines, "", self._footline()])

    __repr__ = __str__

    def _headline(self) -> str:
        rows = format_rows(self.n_rows)
        readings = f"{self.n_passes} pass{'es' * (self.n_passes != 1)}"
        if self.most_passes > self.n_passes:
            readings = f"{self.n_passes} to {self.most_passes} passes"
        size = "" if self.nbytes is None else f", {format_bytes(self.nbytes)} decoded in all"
        return (
            f"{self.estimator}: {readings} over {rows} rows in {self.n_blocks:,} "
            f"block{'s' * (self.n_blocks != 1)} of {self.source}{size}"
        )

    def _footline(self) -> str:
        peak = "unknown (blocks of unknown size)"
        if self.projected_nbytes is not None:
            peak = f"{format_bytes(self.projected_nbytes)} a worker"
        budget = "no budget" if self.memory_nbytes is None else f"budget {format_bytes(self.memory_nbytes)}"
        return (
            f"Projected peak memory {peak} ({budget}); {self.workers} worker{'s' * (self.workers != 1)}, "
            f"{self.threads} block{'s' * (self.threads != 1)} at a time in each."
        )

    def _repr_html_(self) -> str:
        head = "".join(
            f"<th style='text-align:left'>{name}</th>"
            for name in ("Pass", "Way", "Fits", "Collects", "Why not earlier", "Reads", "Peak")
        )
        body = "".join(f"<tr>{''.join(map(_cell, _html_cells(step)))}</tr>" for step in self.passes)
        return (
            f"<div><p><b>{html.escape(self._headline())}</b></p><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table><p>{html.escape(self._footline())}</p></div>"
        )


def _cell(text: str) -> str:
    lines = "<br>".join(html.escape(line) for line in text.split("\n"))
    return f"<td style='text-align:left; vertical-align:top'>{lines}</td>"


def _html_cells(step: PassPlan) -> tuple[str, ...]:
    return (
        str(step.number),
        step.way + (f", {step.readings}" if step.readings else ""),
        "\n".join(step.fits),
        "\n".join(step.collects),
        "\n".join([step.why, *step.rules, *step.order, *([step.scratch] if step.scratch else [])]),
        _reads(step),
        "" if step.projected_nbytes is None else format_bytes(step.projected_nbytes),
    )


def _reads(step: PassPlan) -> str:
    size = "" if step.nbytes is None else f", {format_bytes(step.nbytes)}"
    return f"{len(step.columns)} columns{size}"


def _pass_lines(step: PassPlan) -> list[str]:
    epochs = f", {step.readings}" if step.readings else ""
    peak = "" if step.projected_nbytes is None else f"   peak {format_bytes(step.projected_nbytes)}"
    lines = [f"  Pass {step.number}  {step.way}{epochs}   reads {_reads(step)}{peak}"]
    for label, texts in (
        ("fits", step.fits),
        ("collects", step.collects),
        ("why", (step.why,)),
        ("saved by", step.rules),
        ("order", step.order),
        ("keeps", (step.scratch,) if step.scratch else ()),
    ):
        for i, text in enumerate(texts):
            lines.append(f"    {label if i == 0 else '':9s} {text}")
    return lines
