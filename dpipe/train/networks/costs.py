"""What training a network takes: bytes of parameters, gradients and the rest, found without reading any data."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpipe.errors import InputError
from dpipe.sizes import MIB
from dpipe.train.networks.targets import Targets

#: What a process takes that computes with torch, before it has a network. Measured with torch 2.13 on CPU.
PROCESS_NBYTES = 520 * MIB
#: Gradients of activations lie beside those that were kept for them.
_BACKWARD = 2.0


@dataclass(frozen=True)
class Cost:
    """Bytes of a network in training."""

    weights: int
    """Parameters and buffers."""
    trainable: int
    """Parameters that have gradients."""
    state: int
    """What the optimizer remembers."""
    row: int
    """What is kept of one row on the way back through the layers."""

    def of_process(self, n_rows: int, n_parts: int, *, keeps_best: bool) -> int:
        """Count what a process takes that computes `n_rows` rows at a time and keeps 1/n_parts of the states."""
        copies = self.weights * (2 + keeps_best)  # what was learned is given away as bytes
        return copies + (self.trainable + self.state) // n_parts + int(_BACKWARD * n_rows * self.row)


def cost_of(module: Any, optimizer: Callable[[Any], Any], width: int | None) -> Cost:
    """Find what a network takes, from its parameters and one pass of two rows of zeros."""
    held = [*module.parameters(), *module.buffers()]
    trainable = sum(_nbytes(each) for each in module.parameters() if each.requires_grad)
    width = _likely_width(module) if width is None else width
    row = 0 if width is None else _kept_of_row(module, width)
    return Cost(sum(map(_nbytes, held)), trainable, int(trainable * _remembered(optimizer)), row)


def _nbytes(values: Any) -> int:
    return int(values.numel()) * int(values.element_size())


def _likely_width(module: Any) -> int | None:
    """Guess how many features a module takes: what its first layer does."""
    widths = (getattr(layer, "in_features", None) for layer in module.modules())
    return next((width for width in widths if isinstance(width, int)), None)


def _remembered(optimizer: Callable[[Any], Any]) -> float:
    """Find how much an optimizer remembers of each number, by one step on a few made-up ones."""
    import torch

    made = torch.nn.Parameter(torch.zeros(8, 8))
    made.grad = torch.zeros(8, 8)
    try:
        tried = optimizer([made])
        tried.step()
    except Exception:
        return 2.0  # it asks for more than parameters; as Adam, then
    found = [each for each in tried.state[made].values() if torch.is_tensor(each)]
    return float(sum(each.numel() for each in found if each.dim()) / made.numel())


def _kept_of_row(module: Any, width: int) -> int:
    import torch

    tried = copy.deepcopy(module).cpu().eval()
    own = {each.data_ptr() for each in (*tried.parameters(), *tried.buffers())}
    kept: dict[int, int] = {}

    def pack(values: Any) -> Any:
        if values.data_ptr() not in own:
            kept[values.data_ptr()] = _nbytes(values)
        return values

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda values: values):
        try:
            output = tried(torch.zeros(2, width))
        except Exception:
            return 0
        nbytes = sum(kept.values())
        del output
    return nbytes // 2


def check_network(
    module: Any,
    loss: Callable[[Any, Any], Any],
    optimizer: Callable[[Any], Any],
    width: int | None,
    y_shape: Sequence[int],
    y_dtype: np.dtype[Any] | None,
    classes: tuple[Any, ...] | None,
) -> None:
    """Try a network on two rows of zeros: its output, its targets, its loss and its optimizer.

    Parameters
    ----------
    module, loss, optimizer
        As for `dpipe.DataParallel`.
    width : int, optional
        Features; None if they are not known yet.
    y_shape : sequence of int
        Of one target: () or (n_targets,).
    y_dtype : numpy.dtype, optional
    classes : tuple, optional

    Raises
    ------
    InputError
        If they do not go together.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise InputError(f"module must be a torch.nn.Module, got {module!r}.")
    if not any(each.requires_grad for each in module.parameters()):
        raise InputError(
            "The module has no parameter that could learn: all of them have requires_grad=False."
        )
    tried = copy.deepcopy(module).cpu().eval()
    made = optimizer(tried.parameters())
    if not hasattr(made, "step"):
        raise InputError(
            f"optimizer must give an optimizer for some parameters, but gives {made!r}. Pass what makes one, such as "
            "functools.partial(torch.optim.SGD, lr=0.1)."
        )
    if width is None or y_dtype is None or y_dtype.kind not in "iufb":
        return
    try:
        output = tried(torch.zeros(2, width))
    except Exception as err:
        raise InputError(
            f"The module does not take rows of {width} features: {type(err).__name__}: {err}. X has as many after its "
            "preprocessing."
        ) from err
    check_loss(loss, output, y_shape, y_dtype, classes)


def check_loss(
    loss: Callable[[Any, Any], Any],
    output: Any,
    y_shape: Sequence[int],
    y_dtype: np.dtype[Any],
    classes: tuple[Any, ...] | None,
) -> None:
    """Try a loss on the outputs of two rows, and targets that are zeros.

    Raises
    ------
    InputError
        If they do not go together.
    """
    import torch

    kind = torch.float32 if y_dtype.kind == "f" else torch.int64
    y = torch.zeros((2, *y_shape), dtype=kind)
    if classes is not None:
        y = y + int(classes[0])
        n = output[0].numel()
        if n != len(classes) and not (n == 1 and len(classes) == 2):
            raise InputError(
                f"The module has {n} outputs for {len(classes)} classes. Give it one for each; or one for two classes."
            )
    targets = Targets(classes)(output, y)
    try:
        found = loss(output, targets)
    except Exception as err:
        raise InputError(
            f"The loss does not take outputs of shape {tuple(output.shape)} and targets of shape "
            f"{tuple(targets.shape)} and type {targets.dtype}: {type(err).__name__}: {err}. Give y the type that the "
            "loss wants: integers for labels, floats for numbers."
        ) from err
    if not torch.is_tensor(found) or found.numel() != 1 or not found.requires_grad:
        raise InputError(
            "The loss must give one number, the mean over the rows, that follows from the output."
        )
