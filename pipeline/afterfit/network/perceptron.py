"""A perceptron with hidden layers of ReLUs, for what fits into one vector: pictures are flattened."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Perceptron(nn.Module):
    """Linear layers with ReLUs between them."""

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(first, second) for first, second in pairwise(sizes))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, ...) to outputs (B, C)."""
        *hidden, last = self.layers
        units = pixel_values.flatten(1)
        for layer in hidden:
            units = torch.relu(layer(units))
        return last(units)


def perceptron(sizes: Sequence[int], seed: int = 0) -> Perceptron:
    """With random weights that the seed names.

    Args:
        sizes: of inputs, hidden layers and outputs: [784, 400, 400, 10].
        seed: of the weights; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Perceptron(sizes)
