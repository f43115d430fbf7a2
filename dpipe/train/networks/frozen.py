"""A module without torch's own objects: its layers as they are, its parameters and buffers as arrays.

That is how networks are kept in bundles, where nothing is unpickled: skops builds the layers from their attributes.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

#: The name of a parameter's values, in place of the parameter.
_ARRAY, _DTYPE, _LEARNS = "array", "dtype", "learns"


def frozen(module: Any) -> Any:
    """Give a copy of a module in which each parameter and buffer is a dict with its values."""
    import torch

    held = {}
    for each in (*module.parameters(), *module.buffers()):
        values = each.detach().cpu().contiguous()
        kept = values.view(torch.int16) if values.dtype == torch.bfloat16 else values
        learns = each.requires_grad if isinstance(each, torch.nn.Parameter) else None
        dtype = str(values.dtype).removeprefix("torch.")
        held[id(each)] = {_ARRAY: kept.numpy().copy(), _DTYPE: dtype, _LEARNS: learns}
    # what is copied looks first for what stands for an object: weights that are shared stay so
    return copy.deepcopy(module, held)


def thawed(module: Any) -> Any:
    """Put parameters and buffers back into what `frozen` gave."""
    made: dict[int, Any] = {}
    for part in module.modules():
        for named in (part._parameters, part._buffers):
            for name, values in named.items():
                if isinstance(values, Mapping):
                    if id(values) not in made:
                        made[id(values)] = _tensor(values)
                    named[name] = made[id(values)]
    return module


def _tensor(held: Mapping[str, Any]) -> Any:
    import torch

    values = torch.from_numpy(np.array(held[_ARRAY])).view(getattr(torch, held[_DTYPE]))
    return values if held[_LEARNS] is None else torch.nn.Parameter(values, requires_grad=held[_LEARNS])
