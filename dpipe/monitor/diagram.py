"""Draw the stages of a pipeline as SVG."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT, _GAP = 190, 64, 46


@dataclass(frozen=True)
class Diagram:
    """A drawing; shown as a picture in Jupyter."""

    svg: str

    def _repr_html_(self) -> str:
        return self.svg


def diagram(stages: Sequence[tuple[str, str]], edges: Sequence[tuple[int, int]]) -> Diagram:
    """Draw boxes from left to right, with an arrow for each edge.

    Parameters
    ----------
    stages : sequence of (name, description)
    edges : sequence of (int, int)
        From one stage to another, by position; the first comes earlier.

    Examples
    --------
    >>> diagram([("collect", "files"), ("train", "Ridge")], [(0, 1)]).svg.count("<rect")
    2
    """
    step = _WIDTH + _GAP
    total = max(len(stages) * step - _GAP, 1) + 20
    top = 30 + 16 * max((b - a for a, b in edges), default=1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {top + _HEIGHT + 10}" '
        f'width="{total}" font-family="sans-serif" role="img">',
        '<defs><marker id="tip" markerWidth="9" markerHeight="9" refX="8" refY="4" orient="auto">'
        '<path d="M0,0 L9,4 L0,8 z" fill="#5b6b7b"/></marker></defs>',
    ]
    parts += [_arrow(a, b, step, top) for a, b in edges]
    parts += [_box(i, name, says, step, top) for i, (name, says) in enumerate(stages)]
    return Diagram("".join([*parts, "</svg>"]))


def _box(i: int, name: str, says: str, step: int, top: int) -> str:
    x = 10 + i * step
    short = says if len(says) <= 30 else says[:29] + "\u2026"
    return (
        f"<g><title>{html.escape(f'{name}: {says}')}</title>"
        f'<rect x="{x}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="#eef3f8" stroke="#7f95ab"/>'
        f'<text x="{x + 12}" y="{top + 26}" font-size="15" font-weight="600" fill="#1d2b3a">'
        f"{html.escape(name)}</text>"
        f'<text x="{x + 12}" y="{top + 47}" font-size="11" fill="#45566a">{html.escape(short)}</text></g>'
    )


def _arrow(a: int, b: int, step: int, top: int) -> str:
    """A straight arrow to the next box, or an arc over those between."""
    if b == a + 1:
        start, end, y = 10 + a * step + _WIDTH, 10 + b * step, top + _HEIGHT // 2
        path = f"M{start},{y} L{end},{y}"
    else:
        start, end = 10 + a * step + _WIDTH * 3 // 4, 10 + b * step + _WIDTH // 4
        height = top - 16 * (b - a)
        path = f"M{start},{top} C{start},{height} {end},{height} {end},{top}"
    return f'<path d="{path}" fill="none" stroke="#5b6b7b" stroke-width="1.5" marker-end="url(#tip)"/>'
