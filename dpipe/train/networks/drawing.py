"""The first weights of a layer, made in parts: each process draws what one that has all of it would, and keeps its own.

What a layer does to make its weights is recorded where it takes no memory, and done again a few rows at a time. That
needs layers that fill their weights in place, as those of torch do.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dpipe.sizes import MIB
from dpipe.train.networks.pieces import Cut

#: What draws each number after the one before it, so that some rows after others are all of them.
_DRAWN = ("uniform_", "normal_")
#: What makes all numbers alike.
_FILLED = ("fill_", "zero_")
#: What does the same to each number by itself.
_EACH = (*_FILLED, "mul_", "add_", "sub_", "div_")
#: Torch draws normal numbers by so many at once.
_AT_ONCE = 16


@dataclass(frozen=True)
class Step:
    """One thing that was done to a weight, or to some rows of it."""

    name: str
    """Of the weight; empty for what became none."""
    method: str
    args: tuple[Any, ...]
    shape: tuple[int, int]
    """Rows and columns of the weight, as a matrix."""
    dtype: Any
    rows: tuple[int, int]
    """From where to where."""


@dataclass(frozen=True)
class Recorded:
    """How the weights of a layer are made."""

    steps: tuple[Step, ...]
    unknown: str = ""
    """What cannot be done in parts; empty if there is nothing."""


def recorded(make: Callable[[], Any]) -> Recorded:
    """Record how a function makes a module, without memory for its weights.

    Parameters
    ----------
    make : callable ``() -> torch.nn.Module``
        Is called once, where tensors have shapes and no numbers.

    Returns
    -------
    Recorded
        Whatever cannot be done in parts stands in its `unknown`; nothing that `make` raises comes through.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    done: list[tuple[str, Any, tuple[Any, ...]]] = []
    unknown: list[str] = []

    class Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
            plain = not any(isinstance(each, torch.Tensor) for each in args[1:])
            if name in _DRAWN + _EACH and plain and not any(kwargs.values()) and args[0].is_contiguous():
                # a stand-in with the memory of now: `weight.data = ...` may give the weight another one later
                done.append((name, args[0].detach(), args[1:]))
            elif func._schema.is_mutable or torch.Tag.nondeterministic_seeded in func.tags:
                unknown.append(name)
            return func(*args, **kwargs)

    try:
        # not on the meta device, of which some of torch.nn.init knows: it would do nothing there
        with FakeTensorMode(), Watched():  # type: ignore[no-untyped-call]
            module = make()
    except Exception as err:  # whatever looks at numbers that are not there
        return Recorded((), type(err).__name__)
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    names = {each.untyped_storage()._cdata: name for name, each in held.items()}
    steps = []
    for method, values, args in done:
        name = names.get(values.untyped_storage()._cdata, "")
        step = _step(name, method, args, values, held.get(name, values))
        if step is None:
            unknown.append(method)
        else:
            steps.append(step)
    # what only changes numbers says nothing of where they came from
    making = [step for step in steps if step.method in _DRAWN + _FILLED]
    filled = {step.name for step in making if step.rows == (0, step.shape[0])}
    unknown += [name for name in held if name not in filled]
    return Recorded(tuple(steps), ", ".join(dict.fromkeys(unknown)))


def _step(name: str, method: str, args: tuple[Any, ...], values: Any, whole: Any) -> Step | None:
    """Say to which rows of a weight something was done; None if that were not rows, or numbers were drawn for some."""
    n_rows, n_columns = (whole.shape[0], whole[:1].numel()) if whole.dim() else (1, 1)
    start = values.storage_offset() // max(n_columns, 1)
    stop = start + values.numel() // max(n_columns, 1)
    if values.numel() != (stop - start) * n_columns or (method in _DRAWN and (start, stop) != (0, n_rows)):
        return None
    return Step(name, method, args, (n_rows, n_columns), whole.dtype, (start, stop))


def draw(
    steps: tuple[Step, ...], own: Mapping[str, Any], cuts: Mapping[str, Cut], shard: int, n_shards: int
) -> None:
    """Make the weights of one process; the generator of torch is used as by a process that makes all of them.

    Parameters
    ----------
    steps : tuple of Step
    own : mapping of str to tensor
        What is filled.
    cuts : mapping of str to Cut
        Of those that hold a part only.
    shard, n_shards : int
    """
    import torch

    for step in steps:
        values, cut = own.get(step.name), cuts.get(step.name)
        for start, stop in _few(step):
            drawn = None
            if step.method in _DRAWN:
                drawn = torch.empty((stop - start, step.shape[1]), dtype=step.dtype)
                getattr(drawn, step.method)(*step.args)
            if values is None:
                continue
            for part, given in _parts(values, cut, step.shape, (start, stop), drawn, (shard, n_shards)):
                if given is None:
                    getattr(part, step.method)(*step.args)
                else:
                    part.copy_(given)


def _few(step: Step) -> Iterator[tuple[int, int]]:
    """Give some rows at a time, so that those drawn are what all of them would be."""
    start, end = step.rows
    size = max(MIB // max(step.shape[1] * step.dtype.itemsize, 1) // _AT_ONCE, 1) * _AT_ONCE
    while start < end:
        stop = end if end - start < size + _AT_ONCE else start + size
        yield start, stop
        start = stop


def _parts(
    values: Any,
    cut: Cut | None,
    shape: tuple[int, int],
    rows: tuple[int, int],
    drawn: Any,
    whose: tuple[int, int],
) -> Iterator[tuple[Any, Any]]:
    """Pair what a process has of some rows with what was drawn for it."""
    start, stop = rows
    values = values.view(-1, 1) if values.dim() < 2 else values.flatten(1)
    if cut is None or cut.dim == 1:
        given = drawn if drawn is None or cut is None else cut.of(drawn, *whose)
        yield values[start:stop], given
        return
    at = 0
    for first, last in cut.ranges(shape[0], *whose):
        a, b = max(first, start), min(last, stop)
        if a < b:
            yield (
                values[at + a - first : at + b - first],
                None if drawn is None else drawn[a - start : b - start],
            )
        at += last - first
