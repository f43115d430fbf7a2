"""What tests of split networks share: a plain loop of torch to compare with, and a layer that ends its process.

It is imported where PyTorch is not installed, too.
"""

import os
import signal


def losses_by_hand(net, loader, optimizer, loss, epochs=1):
    """Give the losses of a plain loop, which trains the module."""
    losses = []
    for _ in range(epochs):
        for x, target in loader:
            optimizer.zero_grad()
            found = loss(net(x), target)
            found.backward()
            optimizer.step()
            losses.append(float(found.detach()))
    return losses


def largest_difference(found, expected):
    return max(float((found[name] - value).abs().max()) for name, value in expected.items())


class EndsItsProcess:
    """What a layer does that ends its process, once and at the worst, when it has been called some times."""

    def __init__(self, mark, calls):
        super().__init__()
        self.mark, self.left = mark, calls

    def forward(self, x):
        self.left -= 1
        if self.left == 0 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x
