"""Join files of arrays along one dimension: by their headers and coordinates alone, checked before anything is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dpipe.collect.array_files import Header, Stored
from dpipe.errors import SourceError

#: Two names of one calendar.
_SAME_CALENDAR = {"gregorian": "standard"}


@dataclass(frozen=True)
class Joined:
    """Files that follow each other along a dimension."""

    files: tuple[Header, ...]
    """In the order of their coordinate."""
    dim: str | None
    """What they follow each other along; None for a single file."""
    coords: dict[str, np.ndarray]
    """Decoded coordinates of dimensions, whole."""

    @property
    def first(self) -> Header:
        """The file whose attributes are taken."""
        return self.files[0]


def groups_of(files: Sequence[Header]) -> list[list[Header]]:
    """Divide files into those that hold the same variables.

    Raises
    ------
    SourceError
        If files share some variables, but not all.
    """
    groups: dict[frozenset[str], list[Header]] = {}
    for file in files:
        groups.setdefault(file.data_names, []).append(file)
    known = list(groups)
    for i, names in enumerate(known):
        for others in known[:i]:
            if names & others:
                lacks, have = (names, others) if others - names else (others, names)
                missing = sorted(have - lacks)
                raise SourceError(
                    f"{groups[lacks][0].path} has no variable {', '.join(map(repr, missing))}, which "
                    f"{groups[have][0].path} has. Complete the file, leave it out, or leave the variable out: "
                    f"drop_variables={missing}."
                )
    return list(groups.values())


def joined(files: Sequence[Header], dim: str | None) -> Joined:
    """Put files that hold the same variables in the order of their coordinate.

    Parameters
    ----------
    files : sequence of Header
    dim : str, optional
        The dimension that they follow each other along; default the one whose coordinate differs.

    Raises
    ------
    SourceError
        If coordinates are not monotonic, overlap, or do not align, if calendars, units or types differ; the message
        names the file and the coordinate or variable.
    """
    coords = _decoded_coordinates(files)
    for file, held in zip(files, coords, strict=True):
        for name, values in held.items():
            _check_monotonic(file.path, name, values)
    if len(files) > 1:
        dim = _differing(files, coords) if dim is None else _known(files, dim)
        _check_aligned(files, coords, dim)
    elif dim is not None:
        dim = _known(files, dim)
    order = list(range(len(files)))
    if dim is not None and dim in coords[0]:
        order.sort(key=lambda i: (_first(coords[i][dim]), i))
        if _descends(coords, dim):
            order.reverse()
        _check_no_overlap([files[i] for i in order], [coords[i][dim] for i in order], dim)
    ordered = tuple(files[i] for i in order)
    for file in ordered[1:]:
        for name in file.variables.keys() & ordered[0].variables.keys():
            _check_same(file, ordered[0], name, dim)
    whole = dict(coords[0])
    if dim in whole:
        whole[dim] = np.concatenate([coords[i][dim] for i in order])
    return Joined(ordered, dim, whole)


def _decoded_coordinates(files: Sequence[Header]) -> list[dict[str, np.ndarray]]:
    """Decode the coordinates of all files: those of the same units at once."""
    found: list[dict[str, np.ndarray]] = [{} for _ in files]
    for name in dict.fromkeys(name for file in files for name in file.coordinates):
        having = [i for i, file in enumerate(files) if name in file.held]
        _check_calendars([files[i] for i in having], name)
        alike: dict[str, list[int]] = {}
        for i in having:
            variable = files[i].variables[name]
            alike.setdefault(f"{variable.dtype} {variable.attrs}", []).append(i)
        for members in alike.values():
            variable = files[members[0]].variables[name]
            try:
                values = variable.decoded(np.concatenate([files[i].held[name] for i in members]))
            except SourceError as err:
                raise SourceError(f"{files[members[0]].path}: {err}") from err
            ends = np.cumsum([len(files[i].held[name]) for i in members])[:-1]
            for i, part in zip(members, np.split(values, ends), strict=True):
                found[i][name] = part
    return found


def _check_calendars(files: Sequence[Header], name: str) -> None:
    calendars = [_calendar(file.variables[name]) for file in files]
    for file, calendar in zip(files, calendars, strict=True):
        if calendar != calendars[0]:
            raise SourceError(
                f"{file.path}: the calendar of {name!r} is {calendar!r}, but that of {files[0].path} is "
                f"{calendars[0]!r}. Days of different calendars cannot be put in one order: convert one of them "
                f"(xarray's convert_calendar), or open them apart."
            )


def _calendar(variable: Stored) -> str | None:
    if " since " not in str(variable.attrs.get("units", "")):
        return None
    named = str(variable.attrs.get("calendar", "standard")).lower()
    return _SAME_CALENDAR.get(named, named)


def _check_monotonic(path: str, name: str, values: np.ndarray) -> None:
    said = not_monotonic(values)
    if said:
        raise SourceError(
            f"{path}: the coordinate {name!r} {said}. Sort the file along it or remove what is there twice; or leave "
            f"the coordinate out, and count positions: drop_variables=[{name!r}]."
        )


def not_monotonic(values: np.ndarray) -> str:
    """Say what is wrong with the order of a coordinate; nothing if it rises or falls throughout."""
    if len(values) < 2:
        return ""
    if values.dtype.kind not in "biufM" and not hasattr(values.flat[0], "calendar"):
        texts, counts = np.unique(values.astype(str), return_counts=True)
        return f"has {texts[counts > 1][0]!r} twice" if (counts > 1).any() else ""
    rises, falls = values[1:] > values[:-1], values[1:] < values[:-1]
    if rises.all() or falls.all():
        return ""
    wrong = np.flatnonzero(~(rises if rises.sum() >= falls.sum() else falls))[0]
    before, after = values[wrong], values[wrong + 1]
    if before == after:
        return f"has {after} twice, at {wrong} and {wrong + 1}"
    return f"is not monotonic: {after} at {wrong + 1} comes after {before}"


def _differing(files: Sequence[Header], coords: Sequence[Mapping[str, np.ndarray]]) -> str:
    """Find the one dimension along which files differ."""
    first = coords[0]
    differ = [name for name in first if any(not _equal(other.get(name), first[name]) for other in coords[1:])]
    if len(differ) == 1:
        return differ[0]
    if len(differ) > 1:
        timely = [name for name in differ if _is_time(first[name])]
        if len(timely) != 1:
            raise SourceError(
                f"The files differ along {' and '.join(map(repr, differ))}; they can be joined along one dimension. "
                f"Open those that differ along one apart, and join these with xarray.concat; or name it: "
                "concat_dim=..."
            )
        return timely[0]  # the others are told of as files that do not align
    sizes = files[0].sizes
    odd = [
        dim for dim in sizes if dim not in first and any(file.sizes.get(dim) != sizes[dim] for file in files)
    ]
    if len(odd) == 1:
        return odd[0]
    raise SourceError(
        f"{files[1].path} holds the same coordinates as {files[0].path}: nothing tells which comes first. Leave one "
        f"out, or name the dimension that they follow each other along, which then has no coordinate: concat_dim=..."
    )


def _known(files: Sequence[Header], dim: str) -> str:
    for file in files:
        if dim not in file.sizes:
            raise SourceError(
                f"{file.path} has no dimension {dim!r}. It has: {', '.join(map(repr, file.sizes))}. Give one of "
                f"them as concat_dim."
            )
    return dim


def _equal(one: np.ndarray | None, other: np.ndarray) -> bool:
    return one is not None and one.shape == other.shape and bool((one == other).all())


def _is_time(values: np.ndarray) -> bool:
    return values.dtype.kind == "M" or (
        values.dtype.kind == "O" and len(values) > 0 and hasattr(values[0], "calendar")
    )


def _check_aligned(files: Sequence[Header], coords: Sequence[Mapping[str, np.ndarray]], dim: str) -> None:
    for file, held in zip(files[1:], coords[1:], strict=True):
        for name in dict.fromkeys([*coords[0], *held]):
            mine, theirs = held.get(name), coords[0].get(name)
            if mine is None or theirs is None:
                lacks, has = (file, files[0]) if mine is None else (files[0], file)
                raise SourceError(
                    f"{lacks.path} has no coordinate {name!r}, which {has.path} has. Complete the file, or leave it "
                    "out."
                )
            if name == dim or _equal(mine, theirs):
                continue
            raise SourceError(
                f"{file.path} does not align with {files[0].path} along {name!r}: {_unlike(mine, theirs)}. Bring them "
                "to one grid first, or open them apart."
            )


def _unlike(mine: np.ndarray, theirs: np.ndarray) -> str:
    if mine.shape != theirs.shape:
        return f"it has {len(mine):,} values instead of {len(theirs):,}"
    i = int(np.flatnonzero(mine != theirs)[0])
    return f"{mine[i]} instead of {theirs[i]} at {i}"


def _first(values: np.ndarray) -> Any:
    return values[0] if len(values) else 0


def _descends(coords: Sequence[Mapping[str, np.ndarray]], dim: str) -> bool:
    longest = max((held[dim] for held in coords), key=len)
    return len(longest) > 1 and bool(longest[1] < longest[0])


def _check_no_overlap(files: Sequence[Header], values: Sequence[np.ndarray], dim: str) -> None:
    falls = any(len(each) > 1 and each[1] < each[0] for each in values)
    filled = [(file, each) for file, each in zip(files, values, strict=True) if len(each)]
    for (before, one), (after, other) in pairwise(filled):
        if (one[-1] > other[0]) if falls else (one[-1] < other[0]):
            continue
        raise SourceError(
            f"{after.path} overlaps with {before.path} along {dim!r}: it begins at {other[0]}, and the other one "
            f"ends at {one[-1]}. Leave one of them out, or cut what is there twice."
        )


def _check_same(file: Header, first: Header, name: str, dim: str | None) -> None:
    mine, theirs = file.variables[name], first.variables[name]
    where = f"{file.path}: {name!r}"
    if mine.dims != theirs.dims:
        raise SourceError(
            f"{where} has the dimensions {mine.dims}, but {theirs.dims} in {first.path}. Transpose one of them."
        )
    for axis_dim, n, m in zip(mine.dims, mine.shape, theirs.shape, strict=True):
        if axis_dim != dim and n != m:
            raise SourceError(
                f"{where} does not align with {first.path} along {axis_dim!r}: it has {n:,} values instead of {m:,}. "
                "Bring them to one grid first, or open them apart."
            )
    units, others = (str(v.attrs.get("units", "")) for v in (mine, theirs))
    if units != others and not (" since " in units and " since " in others):
        raise SourceError(
            f"{where} is in {units or 'no units'!r}, but in {others or 'no units'!r} in {first.path}. Convert one of "
            "them, or open them apart: numbers of two units make no array."
        )
    if mine.is_text != theirs.is_text:
        raise SourceError(
            f"{where} is of type {mine.dtype}, but {theirs.dtype} in {first.path}. Convert one of them."
        )
