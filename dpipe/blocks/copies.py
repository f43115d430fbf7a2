"""Plans of copies that bring an array into other chunks within a bound of memory. Arithmetic only.

The plan is that of rechunker (Pangeo, 2020; after Drew Gregory, Tom Augspurger, Ryan Abernathey and others): join the
chunks to be written, and those to be read, as far as memory allows; where the one does not hold the other, copy through
one store between. Here what lies between is one file for each region that is read, cut at the borders of the regions
that are written, so that each task writes what no other one writes, whatever the sizes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product

Cuts = tuple[tuple[int, ...], ...]
Region = tuple[slice, ...]

#: How often a source chunk may be read, on average, before a store between is cheaper: it is a write and another read.
MOST_READINGS = 2.0


@dataclass(frozen=True)
class CopyPlan:
    """How one array is copied."""

    itemsize: int
    source: Cuts
    """Borders of the chunks as stored, along each axis, from 0 to its length."""
    target: tuple[int, ...]
    """Sizes of the chunks to be."""
    reads: Cuts | None
    """Borders of the regions that are read into the store between; None if there is none."""
    writes: Cuts
    """Borders of the regions that are written, each of whole chunks."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return tuple(cuts[-1] for cuts in self.source)

    @property
    def nbytes(self) -> int:
        """Decoded bytes of the array."""
        return math.prod(self.shape) * self.itemsize

    @property
    def between_nbytes(self) -> int:
        """What is on disk between the copies, in bytes."""
        return self.nbytes if self.reads is not None else 0

    @property
    def read_nbytes(self) -> int:
        """Bytes that are read of the source, a chunk counted as often as it is read."""
        return (
            self.nbytes
            if self.reads is not None
            else math.ceil(self.nbytes * readings(self.source, self.writes))
        )

    @property
    def region_nbytes(self) -> int:
        """The largest region that a task holds."""
        return max(_largest(cuts, self.itemsize) for cuts in (self.writes, self.reads) if cuts is not None)

    @property
    def block_nbytes(self) -> int:
        """The largest chunk as stored."""
        return _largest(self.source, self.itemsize)


def plan_copy(source: Cuts, target: Sequence[int], itemsize: int, limit: int) -> CopyPlan:
    """Plan the copies that bring an array into other chunks.

    Parameters
    ----------
    source : tuple of tuple of int
        Borders of the chunks as stored.
    target : sequence of int
        Sizes of the chunks to be.
    itemsize : int
        Bytes of a value.
    limit : int
        Bytes of a region that a task may hold; no less than a chunk of either.

    Examples
    --------
    >>> days = (tuple(range(0, 101, 10)), (0, 50))  # ten chunks of ten days, whole maps
    >>> plan_copy(days, (100, 5), 8, limit=100_000).reads is None  # all fits at once
    True
    >>> plan = plan_copy(days, (100, 5), 8, limit=8_000)
    >>> plan.reads, plan.writes
    (((0, 20, 40, 60, 80, 100), (0, 50)), ((0, 100), (0, 10, 20, 30, 40, 50)))
    """
    shape = [cuts[-1] for cuts in source]
    units = [max((stop - start for start, stop in pairwise(cuts)), default=1) for cuts in source]
    wide = _grown(target, units, shape, itemsize, limit)
    writes = tuple(_regular(n, size) for n, size in zip(shape, wide, strict=True))
    if readings(source, writes) <= MOST_READINGS:
        return CopyPlan(itemsize, source, tuple(target), None, writes)
    read = _grown(units, wide, shape, itemsize, limit)
    reads = tuple(_joined(cuts, size) for cuts, size in zip(source, read, strict=True))
    return CopyPlan(itemsize, source, tuple(target), reads, writes)


def readings(source: Cuts, regions: Cuts) -> float:
    """Tell how often a value of the source is read, on average, if each region reads all chunks that it touches."""
    total = 1.0
    for cuts, borders in zip(source, regions, strict=True):
        if not cuts[-1]:
            continue
        read = sum(
            cuts[last] - cuts[first] for first, last in (_touched(cuts, a, b) for a, b in pairwise(borders))
        )
        total *= read / cuts[-1]
    return total


def _touched(cuts: Sequence[int], start: int, stop: int) -> tuple[int, int]:
    """Give the borders around the chunks that a range touches, by position."""
    return _at_or_before(cuts, start), _at_or_before(cuts, stop - 1) + 1


def _at_or_before(cuts: Sequence[int], value: int) -> int:
    low, high = 0, len(cuts) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cuts[middle] <= value else (low, middle)
    return low


def _grown(
    unit: Sequence[int], toward: Sequence[int], shape: Sequence[int], itemsize: int, limit: int
) -> list[int]:
    """Join whole units, along the axes where other chunks are the largest beside them, as far as the limit allows."""
    sizes = [min(size, max(n, 1)) for size, n in zip(unit, shape, strict=True)]
    while True:
        short = [j for j in range(len(sizes)) if sizes[j] < min(toward[j], shape[j])]
        short.sort(key=lambda j: sizes[j] / min(toward[j], shape[j]))
        for j in short:
            rest = itemsize * math.prod(sizes) // sizes[j]
            most = min(
                2 * sizes[j], limit // max(rest, 1) // unit[j] * unit[j], -(-toward[j] // unit[j]) * unit[j]
            )
            if most > sizes[j]:
                sizes[j] = min(most, shape[j])
                break
        else:
            return sizes


def _regular(n: int, size: int) -> tuple[int, ...]:
    return (*range(0, n, size), n) if n else (0, 0)


def _joined(cuts: Sequence[int], size: int) -> tuple[int, ...]:
    """Join chunks, none cut, to regions of at most a size."""
    found = [cuts[0]]
    for before, border in pairwise(cuts):
        if border - found[-1] > size and before > found[-1]:
            found.append(before)
    return (*found, cuts[-1])


def _largest(cuts: Cuts, itemsize: int) -> int:
    return itemsize * math.prod(max(stop - start for start, stop in pairwise(each)) for each in cuts)


def borders(chunks: Sequence[Sequence[int]]) -> Cuts:
    """Give the borders of chunks from their sizes.

    Examples
    --------
    >>> borders([(2, 2, 1), (3,)])
    ((0, 2, 4, 5), (0, 3))
    """
    return tuple(tuple(accumulate(sizes, initial=0)) for sizes in chunks)


def regions(cuts: Cuts) -> Iterator[tuple[tuple[int, ...], Region]]:
    """Go through all regions: the position of each among them, and where it is."""
    for place in product(*(range(len(each) - 1) for each in cuts)):
        yield place, tuple(slice(each[j], each[j + 1]) for each, j in zip(cuts, place, strict=True))


def touching(cuts: Cuts, region: Region) -> list[tuple[tuple[int, ...], Region]]:
    """Give the regions between some borders that another region touches, in order."""
    spans = [_touched(each, part.start, part.stop) for each, part in zip(cuts, region, strict=True)]
    found = []
    for place in product(*(range(first, last) for first, last in spans)):
        where = tuple(slice(each[j], each[j + 1]) for each, j in zip(cuts, place, strict=True))
        if all(part.stop > part.start for part in where):
            found.append((place, where))
    return found


def shared(one: Region, other: Region) -> Region:
    """Give what two regions have in common."""
    return tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def within(part: Region, whole: Region) -> Region:
    """Give where a part lies inside of a region, counted from its corner."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(part, whole, strict=True))


def lengths(region: Region) -> tuple[int, ...]:
    """Give the shape of a region."""
    return tuple(part.stop - part.start for part in region)
