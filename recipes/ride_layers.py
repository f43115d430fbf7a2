"""The first layer of a network for rides: names, which come as numbers, become points that it learns."""

from collections.abc import Sequence
from typing import Any

import torch


class Embedded(torch.nn.Module):
    """Give numbers as they are, and after them a learned point for each code.

    Parameters
    ----------
    n_numbers : int
        Columns of numbers, which come first.
    sizes : sequence of int
        Codes of each column of the others, 0 to size - 1; -1 is one that nobody knows.
    width : int
        Numbers of a point.

    Examples
    --------
    >>> layer = Embedded(1, [2, 3], width=4)
    >>> layer(torch.tensor([[0.5, 1.0, -1.0]])).shape
    torch.Size([1, 9])
    """

    firsts: torch.Tensor
    lasts: torch.Tensor

    def __init__(self, n_numbers: int, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.n_numbers = n_numbers
        rooms = torch.tensor(sizes) + 1
        self.register_buffer("firsts", torch.cumsum(rooms, 0) - rooms)
        self.register_buffer("lasts", rooms - 1)
        self.points = torch.nn.Embedding(int(rooms.sum()), width)

    def forward(self, rows: Any) -> Any:
        """Look the points up."""
        numbers, codes = rows[:, : self.n_numbers], rows[:, self.n_numbers :].long() + 1
        points = self.points(torch.minimum(codes.clamp(min=0), self.lasts) + self.firsts)
        return torch.cat([numbers, points.flatten(1)], dim=1)
