"""Targets as a loss takes them: labels by their place among the classes, and never stretched to another shape."""

from typing import Any

import numpy as np

from dpipe.errors import InputError


class Targets:
    """Turns targets of a batch into what the loss is given.

    Parameters
    ----------
    classes : tuple, optional
        Labels, in the order of the outputs; None where targets are taken as they are.
    """

    def __init__(self, classes: tuple[Any, ...] | None = None) -> None:
        self._labels = None if classes is None else np.asarray(classes)

    def __call__(self, output: Any, y: Any) -> Any:
        """Give the targets of some outputs.

        Raises
        ------
        InputError
            If a label is none of the classes, or the shapes do not go together.
        """
        y = y if self._labels is None else self._places(y)
        shape, wanted = tuple(output.shape), tuple(y.shape)
        if not y.is_floating_point() and shape != wanted:
            if shape == (*wanted, 1):  # a logit
                return y.to(output.dtype).reshape(shape)
            if shape[:1] + shape[2:] == wanted:  # an output for each class
                return y
        elif shape == wanted:
            return y.to(output.dtype)
        raise InputError(
            f"The module gives a row an output of shape {shape[1:]}, but its target is of shape {wanted[1:]}: a loss "
            "would pair each row with all others. Give it an output of the shape of y, such as torch.nn.Flatten(0) "
            "after one unit; or for labels, which are integers, one for each class."
        )

    def _places(self, y: Any) -> Any:
        import torch

        assert self._labels is not None
        labels = torch.as_tensor(self._labels.astype(np.int64), device=y.device)
        order = torch.argsort(labels)
        places = torch.searchsorted(labels[order], y.long()).clamp(max=len(labels) - 1)
        found = order[places]
        unknown = y[labels[found] != y]
        if len(unknown):
            named = ", ".join(f"{label:g}" for label in sorted(set(unknown.tolist()))[:5])
            raise InputError(
                f"y holds {named}, but classes={self._labels.tolist()!r} do not. Name all classes."
            )
        return found
